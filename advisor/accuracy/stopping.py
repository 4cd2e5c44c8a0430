"""Where a stopping rule would have ended each problem of a run, and what that saves.

The rules themselves stand in traces/schema/tts/stop_rules.py.

Finish times are those recorded. A rule that ends a problem early would also free the engine for
others, so the time saved is at least this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from advisor.accuracy.finish_order import Decided, decide
from advisor.accuracy.samples import read_samples
from traces.errors import RecordingError
from traces.schema.estimate import Estimate
from traces.schema.tts.stop_rules import AGREE, FIRST, SAFE, SETTLED, Stop
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
    stopped: Mapping[str, Decided]


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
    stopped, waited = list[Decided](), list[Decided]()
    for place, problem in enumerate(samples.problems):
        stopped.append(decide(problem, rule.stop(samples.n)))
        waited.append(decide(problem, Stop()))
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
