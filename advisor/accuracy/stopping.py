"""Where a stopping rule would have ended each problem of a run, and what that saves.

Finish times are those recorded. A rule that ends a problem early would also free the engine for
others, so the time saved is at least this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from advisor.accuracy.finish_order import decide
from advisor.accuracy.samples import ProblemSamples, read_samples
from traces.errors import RecordingError
from traces.schema.estimate import Estimate
from traces.schema.tts.stop_rules import AGREE, ALL, FIRST, SAFE, SETTLED, Stop, lead_is_safe
from traces.statistics import paired, paired_change
from traces.summary.run import Run

# numpy's short calls starve other threads. A pause after so many problems lets the screen be drawn.
TURN = 20
PAUSE_S = 1e-4


@dataclass(frozen=True)
class StopRule:
    """A rule by its label; `value` is that of the rule for n samples drawn at once."""

    label: str
    rule: int
    value: Callable[[int], float]

    def stop(self, n: int) -> Stop:
        return Stop(rule=self.rule, value=self.value(n))


RULES: tuple[StopRule, ...] = (
    StopRule("ASC .90", SAFE, lambda n: 0.90),
    StopRule("ASC .95", SAFE, lambda n: 0.95),
    StopRule("ASC .99", SAFE, lambda n: 0.99),
    StopRule("half agree", AGREE, lambda n: n // 2 + 1),
    StopRule("a quarter agree", AGREE, lambda n: n // 4 + 1),
    StopRule("half have answered", FIRST, lambda n: n // 2),
    StopRule("lead cannot be lost", SETTLED, lambda n: 1),
)
ALL_END = StopRule("all", ALL, lambda n: 0)


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A problem under a rule, which decides after `seconds` from the arrival.

    `ended` samples were counted by then, `lead` votes for the answer in front and `second` for the
    next. `right` is the right share of those in front. `early`: some sample was still running.
    """

    seconds: float
    ended: int
    lead: int
    second: int
    right: float
    tokens: float
    early: bool

    @property
    def certainty(self) -> float:
        """The posterior that the lead lasts."""
        return lead_is_safe(self.lead, self.second)


@dataclass(frozen=True, kw_only=True)
class Savings:
    """A rule on all problems of a run, against waiting for every sample, paired by problem.

    Changes of latency and tokens are shares of what the run took; accuracy is a difference.
    `same_answers`: no problem is right more or less often. `stopped` are by the problem's id.
    """

    rule: str
    problems: int
    early: int
    latency_p50: Estimate | None
    latency_p95: Estimate | None
    tokens: Estimate | None
    accuracy: Estimate | None
    same_answers: bool
    stopped: Mapping[str, Stopped]


def stop_problem(problem: ProblemSamples, rule: StopRule) -> Stopped:
    """Run a rule over one problem's samples as they finished."""
    decided = decide(problem, rule.stop(len(problem.answers)))
    return Stopped(
        seconds=decided.seconds,
        ended=decided.votes.ended,
        lead=int(decided.votes.first),
        second=int(decided.votes.second),
        right=decided.right,
        tokens=decided.tokens,
        early=bool((problem.finish_s > decided.seconds).any()),
    )


def savings(run: Run, rule: StopRule) -> Savings:
    """Return what a rule would have saved.

    Raises RecordingError when the run cannot say: its samples were cut off by a rule already
    (advisor/accuracy/samples.py), there is one per problem, or it is not known when they ended.
    """
    samples = read_samples(run)
    if samples.n < 2 or not samples.problems:
        raise RecordingError(f"{samples.name}: one sample per problem leaves nothing to stop")
    if not all(np.isfinite(each.finish_s).all() for each in samples.problems):
        raise RecordingError(f"{samples.name}: it is not recorded when its samples ended")
    stopped, waited = list[Stopped](), list[Stopped]()
    for place, problem in enumerate(samples.problems):
        stopped.append(stop_problem(problem, rule))
        waited.append(stop_problem(problem, ALL_END))
        if place % TURN == 0:
            time.sleep(PAUSE_S)

    def columns(name: str) -> tuple[np.ndarray, np.ndarray]:
        rows = (waited, stopped)
        before, after = (np.array([getattr(e, name) for e in r], dtype=float) for r in rows)
        return before, after

    times, rights = columns("seconds"), columns("right")
    return Savings(
        rule=rule.label,
        problems=len(stopped),
        early=sum(each.early for each in stopped),
        latency_p50=paired_change(*times, q=0.5),
        latency_p95=paired_change(*times, q=0.95),
        tokens=paired_change(*columns("tokens")),
        accuracy=paired(*rights, "1"),
        same_answers=bool(np.array_equal(*rights)),
        stopped={
            problem.problem_id: each
            for problem, each in zip(samples.problems, stopped, strict=True)
        },
    )
