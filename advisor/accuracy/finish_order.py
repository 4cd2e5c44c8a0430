"""Rules that fire on what has finished, in the order in which the samples did finish.

Short samples end first, so that a rule which stops early sees more of them than a random subset
has: such a rule is judged only on the recorded finish times. What a cancelled sample had generated
by the decision is estimated from its own pace between its first token and its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import comb

import numpy as np
import numpy.typing as npt

from advisor.accuracy.samples import FEWEST, ProblemSamples
from advisor.evidence.runs import RecordedProblem, Run
from traces.errors import TtscopeError
from traces.recording.reader import Recording
from traces.summary.run import Run as Summary

Floats = npt.NDArray[np.float64]


@dataclass
class Tally:
    """The votes so far: the two that lead, of all answers together, and how many still run."""

    running: int
    first: float = 0.0
    second: float = 0.0
    total: float = 0.0
    leader: int = -1
    votes: dict[int, float] = field(default_factory=dict)

    def add(self, answer: int, weight: float) -> None:
        """Count a vote; weights are not negative."""
        own = self.votes[answer] = self.votes.get(answer, 0.0) + weight
        self.total += weight
        if answer == self.leader:
            self.first = own
        elif own > self.first:
            self.first, self.second, self.leader = own, self.first, answer
        else:
            self.second = max(self.second, own)


Stop = Callable[[Tally], bool]


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
    order = np.lexsort((np.array(problem.indices), problem.finish_s))
    tally = Tally(running=len(order))
    last = 0
    for last in order.tolist():
        tally.running -= 1
        answer = problem.answers[last]
        if answer is not None:
            tally.add(numbers[answer], 1.0 if weights is None else float(weights[last]))
        if stop(tally):
            break
    now = float(problem.finish_s[last])
    bar = tally.first * (1 - 1e-12)
    leads = [each for each, votes in tally.votes.items() if votes >= bar and votes > 0]
    share = float(right[leads].mean()) if leads else 0.0
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
    return lambda tally: tally.total >= count


def agreeing(count: int) -> Stop:
    """Stop when so many samples gave the same answer."""
    return lambda tally: tally.first >= count


def settled(most: float = 1.0) -> Stop:
    """Stop when the leader can no longer be caught, no vote weighing more than `most`."""
    return lambda tally: tally.first - tally.second > tally.running * most


def safe_lead(threshold: float) -> Stop:
    """Stop when the posterior that the lead lasts reaches the threshold (ASC)."""
    return lambda tally: lead_is_safe(int(tally.first), int(tally.second)) >= threshold


@lru_cache(maxsize=4096)
def lead_is_safe(first: int, second: int) -> float:
    """Return P(p > 1/2) for p ~ Beta(first + 1, second + 1) (Aggarwal et al. 2023).

    A binomial tail: sum over j = 0 .. first of C(first + second + 1, j) / 2^(first + second + 1).
    """
    trials = first + second + 1
    return float(sum(comb(trials, j) for j in range(first + 1)) / 2**trials)


@lru_cache(maxsize=16)
def safe_leads(most: int) -> Floats:
    """Return the posterior that a lead of v1 to v2 lasts, [v1, v2], for up to `most` votes.

    Of one vote more it goes to either side: P(v1, v2) = P(v1 - 1, v2) / 2 + P(v1, v2 - 1) / 2.
    """
    found = np.zeros((most + 2, most + 2))  # with a row and a column for no vote less
    found[1:, 0] = 1.0
    for votes in range(2 * most + 1):
        first = np.arange(max(votes - most, 0), min(votes, most) + 1)
        second = votes - first
        before = found[first, second + 1] + found[first + 1, second]
        found[first + 1, second + 1] = before / 2
    return np.ascontiguousarray(found[1:, 1:])


# When samples would have ended had fewer been drawn: the recorded run, replayed with these alone.
#
# What was recorded with N in flight says in which order all N end. Fewer share the engine
# otherwise: where slots were short, a sample's end tells how long it queued behind its siblings.


class ReplayedOrder:
    """The ends of a recorded run's samples, by problem and block of samples.

    Raises RecordingError or UsageError when the run cannot be replayed.
    """

    def __init__(self, recording: Recording, summary: Summary) -> None:
        from advisor.evidence.gather import gather
        from advisor.step_time.cost import linear_cost
        from advisor.step_time.fit import StepTimeModel

        evidence = gather([recording], judged=False)
        engine, policy = summary.engine, summary.policy
        own = [run for run in evidence.runs if (run.engine, run.policy) == (engine, policy)]
        self.run: Run | None = own[0] if own else None
        if self.run is not None:
            law = StepTimeModel().fit(evidence.steps).law(self.run.engine)
            self.cost = linear_cost(law.seconds)
        self.blocks: dict[tuple[int, int], Mapping[str, tuple[Floats, Floats]]] = {}

    def of(self, problem: ProblemSamples, start: int, n: int) -> ProblemSamples | None:
        """Return the n samples from place `start`, ended as if they alone had been drawn.

        None where the problem is not among those that can be replayed.
        """
        known = None if self.run is None else self.run.problems.get(problem.problem_id)
        tokens = [] if known is None else [sample.output_tokens for sample in known.samples]
        if not np.array_equal(tokens, problem.tokens):
            return None
        if (start, n) not in self.blocks:
            self.blocks[start, n] = self._replayed(start, n)
        first_token_s, finish_s = self.blocks[start, n][problem.problem_id]
        part = problem.take(slice(start, start + n))
        return replace(part, first_token_s=first_token_s, finish_s=finish_s)

    def _replayed(self, start: int, n: int) -> Mapping[str, tuple[Floats, Floats]]:
        from advisor.replay.limits import limits_of
        from advisor.replay.replay import replay  # numba takes a third of a second to load
        from advisor.replay.workload import Workload

        assert self.run is not None
        run, problems = self.run, self.run.problems
        loads = [
            RecordedProblem.of(each, each.samples[start : start + n]) for each in problems.values()
        ]
        arrivals = run.arrivals_s(problems) if run.concurrency is None else None
        found = replay(
            Workload.from_loads(loads, arrivals),
            self.cost,
            limits_of(run.engine),
            concurrency=run.concurrency,
        )
        since = np.repeat(found.arrival_s, n)
        first, end = found.first_token_s - since, found.end_s - since
        return {
            name: (first[place * n : (place + 1) * n], end[place * n : (place + 1) * n])
            for place, name in enumerate(problems)
        }


def replayed_order(recording: Recording, summary: Summary) -> ReplayedOrder | None:
    """Return the order by replay, None where the run cannot be replayed or has few samples."""
    if summary.policy is None or summary.policy.n <= FEWEST:  # nothing smaller is judged by it
        return None
    try:
        order = ReplayedOrder(recording, summary)
    except TtscopeError:
        return None
    return None if order.run is None else order
