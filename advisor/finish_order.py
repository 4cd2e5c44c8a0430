"""Rules that fire on what has finished, in the order in which the samples did finish.

Short samples end first, so that a rule which stops early sees more of them than a random subset
has: such a rule is judged only on the recorded finish times. What a cancelled sample had generated
by the decision is estimated from its own pace between its first token and its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from advisor.samples import ProblemSamples

Floats = npt.NDArray[np.float64]
# Given the tally of the answers so far and how many samples still run, whether to stop.
Stop = Callable[[Floats, int], bool]


@dataclass(frozen=True)
class Decided:
    """The right share of the answers that led at the decision, the tokens, and when it was."""

    right: float
    tokens: float
    seconds: float


def decide(problem: ProblemSamples, stop: Stop, weights: Floats | None = None) -> Decided:
    """Run a rule over the samples as they finished; equal times go by index.

    `weights` are one per sample, else every vote counts 1. Without a stop all samples decide.
    """
    numbers, right = problem.rights()
    tally = np.zeros(max(len(numbers), 1))
    order = np.lexsort((np.array(problem.indices), problem.finish_s))
    running = len(order)
    now = 0.0
    for place in order.tolist():
        running -= 1
        now = float(problem.finish_s[place])
        answer = problem.answers[place]
        if answer is not None:
            tally[numbers[answer]] += 1.0 if weights is None else weights[place]
        if stop(tally, running):
            break
    leads = (tally >= tally.max() * (1 - 1e-12)) & (tally > 0)
    share = float(right[leads[: right.size]].mean()) if leads.any() else 0.0
    return Decided(share, float(generated_by(problem, now).sum()), now)


def generated_by(problem: ProblemSamples, seconds: float) -> Floats:
    """Return the tokens that each sample had generated: even pace from first token to end.

    Where the first token's time was not recorded, the pace is even from the problem's arrival.
    """
    begun = np.where(np.isfinite(problem.first_token_s), problem.first_token_s, 0.0)
    first = np.where(np.isfinite(problem.first_token_s), 1.0, 0.0)
    span = np.maximum(problem.finish_s - begun, 1e-12)
    part = np.clip((seconds - begun) / span, 0.0, 1.0)
    going = first + part * (problem.tokens - first)
    done = problem.finish_s <= seconds
    return np.where(done, problem.tokens, np.where(seconds < begun, 0.0, going))


def first_answers(count: int) -> Stop:
    """Stop at the count-th sample that ended with an answer."""
    return lambda tally, running: tally.sum() >= count


def agreeing(count: int) -> Stop:
    """Stop when so many samples gave the same answer."""
    return lambda tally, running: tally.max() >= count


def settled(most: float = 1.0) -> Stop:
    """Stop when the leader can no longer be caught, no vote weighing more than `most`."""

    def stop(tally: Floats, running: int) -> bool:
        two = np.sort(np.append(tally, [0.0, 0.0]))[-2:]
        return bool(two[1] - two[0] > running * most)

    return stop


def safe_lead(threshold: float) -> Stop:
    """Stop when the posterior that the lead lasts reaches the threshold (ASC)."""

    def stop(tally: Floats, running: int) -> bool:
        two = np.sort(np.append(tally, [0.0, 0.0]))[-2:].astype(int)
        return lead_is_safe(int(two[1]), int(two[0])) >= threshold

    return stop


def lead_is_safe(first: int, second: int) -> float:
    """Return P(p > 1/2) for p ~ Beta(first + 1, second + 1) (Aggarwal et al. 2023).

    A binomial tail: sum over j = 0 .. first of C(first + second + 1, j) / 2^(first + second + 1).
    """
    trials = first + second + 1
    return float(sum(comb(trials, j) for j in range(first + 1)) / 2**trials)
