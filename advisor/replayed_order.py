"""When samples would have ended had fewer been drawn: the recorded run, replayed with these alone.

What was recorded with N in flight says in which order all N end. Fewer share the engine otherwise:
where slots were short, a sample's end tells how long it queued behind its siblings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from advisor.evidence import Run, gather
from advisor.load import Load
from advisor.models.step_cost import linear_cost
from advisor.models.step_time import StepTimeModel
from advisor.replay import replay
from advisor.samples import FEWEST, ProblemSamples
from advisor.space import limits_of
from advisor.workload import Workload
from traces.errors import TtscopeError
from traces.recording import Recording
from traces.summary import Run as Summary

Floats = npt.NDArray[np.float64]


class ReplayedOrder:
    """The ends of a recorded run's samples, by problem and block of samples.

    Raises RecordingError or UsageError when the run cannot be replayed.
    """

    def __init__(self, recording: Recording, summary: Summary) -> None:
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
        assert self.run is not None
        run, problems = self.run, self.run.problems
        loads = [Load.of(each, each.samples[start : start + n]) for each in problems.values()]
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
