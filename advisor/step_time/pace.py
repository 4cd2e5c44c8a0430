"""How fast a machine was over time, against what a law of step times has.

The pace is how many times as long steps took as by the law. A replay runs in the machine's own
time, in which each step takes what the law has. What comes by the clock is put there, and what the
replay gives is put back: dt = pace(t) d(machine time). At another rate the same hours pass faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from advisor.evidence.gather import StepTable
from advisor.evidence.keys import law_key
from advisor.evidence.runs import RecordedRun
from advisor.step_time.law import StepLaw
from traces.schema.engine import EngineConfig
from traces.statistics import Floats

WINDOW_S: Final = 0.25  # of one pace, or as long as STEPS steps take: load and pace change at once
STEPS: Final = 20
SHRUNK: Final = 0.01  # of a window: so many seconds at the mean pace count beside its steps
MOST_KNOTS: Final = 1_000_000  # of a pace that comes again
FEWEST: Final = 100  # problems, from which they come at another rate as they did, only faster
FAR: Final = 1e9  # seconds before and after what was recorded, at the mean pace


@dataclass(frozen=True, kw_only=True, eq=False)
class Pace:
    """The same instants by the clock and in the machine's time, [knots], ascending from 0.

    `mean` is how many times as long all steps took together.
    """

    clock_s: Floats
    machine_s: Floats
    mean: float

    @classmethod
    def constant(cls, mean: float) -> Pace:
        """Return a pace that is always the same."""
        return cls._with_ends(np.zeros(1), np.zeros(1), mean)

    @classmethod
    def of(cls, ends_s: Floats, took_s: Floats, law_s: Floats) -> Pace:
        """Return the pace of steps that ended then, took that long, and take that by the law.

        All are [steps]. No step ended before 0.
        """
        mean = float(took_s.sum() / law_s.sum())
        window_s = max(WINDOW_S, STEPS * float(took_s.mean()))
        used, place = np.unique((ends_s / window_s).astype(np.int64), return_inverse=True)
        took = np.bincount(place, took_s) + SHRUNK * window_s * mean
        law = np.bincount(place, law_s) + SHRUNK * window_s
        knots = np.unique(np.concatenate([[0], used, used + 1]))
        pace = np.full(len(knots) - 1, mean)  # between the windows that have steps, too
        pace[np.searchsorted(knots, used)] = took / law
        clock = knots * window_s
        machine = np.concatenate([[0.0], np.cumsum(np.diff(clock) / pace)])
        return cls._with_ends(clock, machine, mean)

    @classmethod
    def _with_ends(cls, clock_s: Floats, machine_s: Floats, mean: float) -> Pace:
        far = np.array([FAR])
        return cls(
            clock_s=np.concatenate([-far, clock_s, clock_s[-1:] + far]),
            machine_s=np.concatenate([-far / mean, machine_s, machine_s[-1:] + far / mean]),
            mean=mean,
        )

    def passing(self, hours: Hours, until_s: float) -> Pace:
        """Return the pace as the hours pass, again and again until then."""
        period_s, faster = hours.period_s, hours.faster
        inside = (self.clock_s > 0) & (self.clock_s < period_s)
        clock = np.concatenate([[0.0], self.clock_s[inside], [period_s]])
        machine = self.in_machine_time(clock)
        most = max(MOST_KNOTS // len(clock), 1)
        laps = np.arange(min(math.ceil(until_s * faster / period_s), most))
        clock, machine = (
            np.append(0.0, np.add.outer(each[-1] * laps, each[1:] - each[0]).ravel())
            for each in (clock, machine - machine[0])
        )
        return self._with_ends(clock / faster, machine / faster, self.mean)

    def stretched(self, factor: float) -> Pace:
        """Return the pace of a machine on which all takes `factor` times as long, arrivals too."""
        return replace(self, clock_s=self.clock_s * factor, mean=self.mean * factor)

    def in_machine_time(self, clock_s: Floats) -> Floats:
        """Return instants [..] by the clock in the machine's time, nan where they are."""
        return np.asarray(np.interp(clock_s, self.clock_s, self.machine_s))

    def by_clock(self, machine_s: Floats) -> Floats:
        """Return instants [..] of the machine's time by the clock, nan where they are."""
        return np.asarray(np.interp(machine_s, self.machine_s, self.clock_s))

    def at(self, clock_s: Floats) -> Floats:
        """Return the pace at instants [..] by the clock."""
        each = np.diff(self.clock_s) / np.diff(self.machine_s)
        place = np.searchsorted(self.clock_s, clock_s, side="right") - 1
        return np.asarray(each[np.clip(place, 0, len(each) - 1)])

    def ends(self) -> tuple[float, float]:
        """Return between which paces nine in ten of the time lies."""
        spans = np.diff(self.clock_s)[1:-1]
        if not spans.size:
            return self.mean, self.mean
        pace = spans / np.diff(self.machine_s)[1:-1]
        order = np.argsort(pace)
        share = np.cumsum(spans[order]) / spans.sum()
        low, high = (pace[order][np.searchsorted(share, q)] for q in (0.05, 0.95))
        return float(low), float(high)


def pace_of(
    tables: Sequence[StepTable], law: StepLaw, engine: EngineConfig, since_ns: int | None = None
) -> Pace | None:
    """Return the pace of an engine's recorded steps, from an instant on (None: from the first).

    The engine's limits may be others. None where no step of it has a time.
    """
    key = law_key(engine)
    own = [each for each in tables if each.ends is not None and law_key(each.engine) == key]
    if not own:
        return None
    ends = np.concatenate([each.ends for each in own if each.ends is not None])
    took = np.concatenate([each.seconds for each in own])
    expected = np.concatenate([law.predict(each.composition) for each in own])
    since = ((ends - (ends.min() if since_ns is None else since_ns)) / 1e9).astype(float)
    known = (since >= 0) & (expected > 0)
    if not known.any():
        return None
    return Pace.of(since[known], took[known], expected[known])


def pace_of_run(run: RecordedRun, tables: Sequence[StepTable], law: StepLaw | None) -> Pace | None:
    """Return the machine's pace while a run's problems came, None where that is not known.

    In a closed loop nothing came by the clock.
    """
    arrivals = [problem.arrival_ns for problem in run.problems.values()]
    known = [each for each in arrivals if each is not None]
    if law is None or run.concurrency is not None or len(known) < len(arrivals) or not known:
        return None
    own = [table for table in tables if table.recording == run.recording]
    return pace_of(own, law, run.engine, min(known))


def at_one_pace(table: StepTable, seconds: Floats) -> StepTable:
    """Return steps with the times that they take at the mean pace, by a law [FEATURES].

    Where a step's time of day is not known they are as recorded.
    """
    if table.ends is None:
        return table
    since = ((table.ends - table.ends.min()) / 1e9).astype(float)
    pace = Pace.of(since, table.seconds, table.composition @ seconds)
    return replace(table, seconds=table.seconds / (pace.at(since) / pace.mean))


@dataclass(frozen=True, kw_only=True, eq=False)
class Hours:
    """The hours in which problems came by the clock, which pass `faster` at another rate.

    `came_s` [problems] are the recorded seconds since the first, ascending. The hours begin again
    after `period_s` of these. Bursts stay, and each problem meets the machine as it did.
    """

    came_s: Floats
    period_s: float
    faster: float

    def arrivals(self, count: int) -> Floats:
        """Return when so many come [count], ascending: as they did, and again after the last."""
        laps = np.arange(-(-count // len(self.came_s)))
        came = np.add.outer(laps * self.period_s, self.came_s).ravel()[:count]
        return np.asarray(came / self.faster)


def hours_at(
    rate_per_s: float, recorded_per_s: float | None, came_s: Floats, *, at_once: int | None
) -> Hours | None:
    """Return recorded hours as they pass at a rate; None where problems come at random.

    That is so of clients that wait for answers (`at_once` requests), and of too few problems to
    tell bursts.
    """
    if recorded_per_s is None or at_once is not None or len(came_s) < FEWEST:
        return None
    period_s = float(came_s[-1]) + 1 / recorded_per_s
    return Hours(came_s=came_s, period_s=period_s, faster=rate_per_s / recorded_per_s)
