"""Stopping rules in the order in which the samples finished.

A rule that stops early sees more short samples than a random subset has, so it is judged on finish
times. The tokens of a cancelled sample are estimated from its pace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from advisor.accuracy.samples import FEWEST, ProblemSamples
from traces.errors import RecordingError, TtscopeError
from traces.recording.reader import Recording
from traces.schema.tts.stop_rules import (
    DECIDE,
    NO_ANSWER,
    Stop,
    Votes,
    begin,
    lead_is_safe,
    take,
)
from traces.statistics import Floats
from traces.summary.run import Run as Summary


@dataclass(frozen=True)
class Decided:
    """A problem at its decision, after `seconds`: the votes by then and the tokens generated.

    `right` is the share of right samples among those of the answers that led. `early` says that
    some sample was still running.
    """

    right: float
    tokens: float
    seconds: float
    votes: Votes
    early: bool

    @property
    def ended(self) -> int:
        """How many samples were counted."""
        return self.votes.ended

    @property
    def certainty(self) -> float:
        """The posterior that the lead lasts."""
        return lead_is_safe(int(self.votes.first), int(self.votes.second))


def decide(problem: ProblemSamples, stop: Stop, weights: Floats | None = None) -> Decided:
    """Run a rule over the samples as they finished, all drawn at once; equal times go by index.

    `weights` are one per sample, else every vote counts 1.
    """
    numbers, right = problem.rights()
    tallies = [0.0] * len(numbers)
    votes = Votes(samples=len(problem.answers))
    begin(votes, 0)
    last = 0
    for last in np.lexsort((np.array(problem.indices), problem.finish_s)).tolist():
        answer, tally = NO_ANSWER, 0.0
        if (text := problem.answers[last]) is not None:
            answer = numbers[text]
            tallies[answer] += 1.0 if weights is None else float(weights[last])
            tally = tallies[answer]
        if take(votes, stop.rule, stop.value, last, answer, tally) == DECIDE:
            break
    now = float(problem.finish_s[last])
    bar = votes.first * (1 - 1e-12)
    leads = [answer for answer, tally in enumerate(tallies) if tally >= bar and tally > 0]
    share = float(right[leads].mean()) if leads else 0.0
    early = bool((problem.finish_s > now).any())
    return Decided(share, float(generated_by(problem, now).sum()), now, votes, early)


def generated_by(problem: ProblemSamples, seconds: float) -> Floats:
    """Return the tokens that each sample had generated: even pace from first token, or arrival."""
    begun = np.where(np.isfinite(problem.first_token_s), problem.first_token_s, 0.0)
    first = np.where(np.isfinite(problem.first_token_s), 1.0, 0.0)
    span = np.maximum(problem.finish_s - begun, 1e-12)
    part = np.clip((seconds - begun) / span, 0.0, 1.0)
    going = first + part * (problem.tokens - first)
    done = problem.finish_s <= seconds
    return np.where(done, problem.tokens, np.where(seconds < begun, 0.0, going))


# When samples would have ended had fewer been drawn: the recorded run, replayed with these alone.
#
# A recording with N in flight gives the order in which all N end. Fewer would share the engine
# differently: where slots were short, samples queued behind the others of their problem.


class ReplayedOrder:
    """The ends of a recorded run's samples, by problem and block of samples.

    Raises RecordingError when the run cannot be replayed.
    """

    def __init__(self, recording: Recording, summary: Summary) -> None:
        from advisor.evidence.gather import gather
        from advisor.step_time.cost import linear_cost
        from advisor.step_time.fit import learned

        evidence = gather([recording], judged=False)
        wanted = (summary.engine, summary.policy)
        matching_runs = [run for run in evidence.runs if (run.engine, run.policy) == wanted]
        if not matching_runs or matching_runs[0].drafts_untold:
            raise RecordingError(f"{recording.name}: cannot be replayed sample by sample")
        self.run = matching_runs[0]
        law = learned(evidence.steps).law(self.run.engine)
        self.cost = linear_cost(law.seconds, law.reads)
        self.facts = evidence.models.get(self.run.engine.model)
        self.blocks: dict[tuple[int, ...], Mapping[str, tuple[Floats, Floats]]] = {}

    def of(self, problem: ProblemSamples, places: Sequence[int]) -> ProblemSamples | None:
        """Return the samples at these places, ended as if they alone had been drawn.

        None where the problem is not among those that can be replayed.
        """
        recorded = self.run.problems.get(problem.problem_id)
        tokens = [] if recorded is None else [sample.output_tokens for sample in recorded.samples]
        if not np.array_equal(tokens, problem.tokens):
            return None
        block = tuple(places)
        if block not in self.blocks:
            self.blocks[block] = self._replayed(block)
        if problem.problem_id not in self.blocks[block]:
            return None
        first_token_s, finish_s = self.blocks[block][problem.problem_id]
        return replace(problem.take(block), first_token_s=first_token_s, finish_s=finish_s)

    def _replayed(self, block: tuple[int, ...]) -> Mapping[str, tuple[Floats, Floats]]:
        from advisor.replay.limits import limits_of  # numba takes a third of a second to load
        from advisor.replay.replay import Replicas, replay
        from advisor.replay.workload import ReplayWorkload

        run, problems, n = self.run, self.run.problems, len(block)
        loads = [
            replace(each, samples=tuple(each.samples[place] for place in block))
            for each in problems.values()
        ]
        arrivals = run.arrivals_s(problems) if run.concurrency is None else None
        workload = ReplayWorkload.from_loads(loads, arrivals)
        try:
            replayed = replay(
                workload,
                self.cost,
                limits_of(run.engine, self.facts, workload),
                concurrency=run.concurrency,
                replicas=Replicas.of(run.engine),
            )
        except ValueError:  # a sample is larger than the cache
            return {}
        since = np.repeat(replayed.arrival_s, n)
        first, end = replayed.first_token_s - since, replayed.end_s - since
        return {
            name: (first[place * n : (place + 1) * n], end[place * n : (place + 1) * n])
            for place, name in enumerate(problems)
        }


def replayed_order(recording: Recording, summary: Summary) -> ReplayedOrder | None:
    """Return the order by replay, None where the run cannot be replayed or has few samples."""
    if summary.policy is None or summary.policy.n <= FEWEST:  # nothing smaller is judged by it
        return None
    if not recording.rows("steps"):  # nothing that a law of steps is learned from
        return None
    try:
        return ReplayedOrder(recording, summary)
    except TtscopeError:
        return None
