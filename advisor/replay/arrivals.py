"""When problems come at a rate that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from advisor.evidence.runs import RecordedRun, rate_under_load
from advisor.step_time.pace import Pace
from traces.statistics import Floats

FEWEST: Final = 100  # problems, from which they come at another rate as they did, only faster


@dataclass(frozen=True, kw_only=True, eq=False)
class Hours:
    """The hours in which problems came by the clock, `rate_per_s` of the time in which they came.

    `came_s` [problems] are seconds since the first, ascending. At another rate the same hours pass
    faster or slower, with their bursts, and each problem meets the machine as it did.
    """

    came_s: Floats
    rate_per_s: float

    @property
    def period_s(self) -> float:
        """How long they last until they may begin anew."""
        return float(self.came_s[-1]) + 1 / self.rate_per_s

    def faster(self, rate_per_s: float) -> float:
        """Return how many times as fast they pass at a rate."""
        return rate_per_s / self.rate_per_s

    def at(self, rate_per_s: float, count: int) -> Floats:
        """Return when so many come [count], ascending: as they did, and again after the last."""
        laps = np.arange(-(-count // len(self.came_s)))
        came = np.add.outer(laps * self.period_s, self.came_s).ravel()[:count]
        return np.asarray(came / self.faster(rate_per_s))

    def pace_at(self, rate_per_s: float, pace: Pace, until_s: float) -> Pace:
        """Return the machine's pace in these hours, which pass faster, and again until then."""
        return pace.passing(self.faster(rate_per_s), self.period_s, until_s)


def hours_of(run: RecordedRun) -> Hours | None:
    """Return the hours in which a run's problems came, in their order.

    None of problems that came when others were answered, and of too few to tell bursts.
    """
    came = [each.arrival_ns for each in run.problems.values()]
    known = np.array([each for each in came if each is not None], dtype=np.int64)
    if run.concurrency is not None or run.at_once is not None or len(known) < FEWEST:
        return None
    rate = rate_under_load(came, (each.latency_s for each in run.problems.values()))
    if rate is None or len(known) < len(came) or (np.diff(known) < 0).any():
        return None
    return Hours(came_s=(known - known[0]) / 1e9, rate_per_s=rate)
