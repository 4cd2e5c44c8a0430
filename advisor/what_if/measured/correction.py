"""What measured times say of the prior: by how much its steps are too short or too long, by load.

Each point is replayed under its own load. What it says of others is `MeasuredLoads`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np

from advisor.replay.limits import limits_of
from advisor.replay.replay import Replicas, replay
from advisor.replay.result import Replayed
from advisor.step_time.cost import StepCost, scaled_cost
from advisor.step_time.prior.recalibration import (
    FADES,
    UNLIKE,
    MeasuredLoads,
    PriorTimes,
    StepLoad,
    spread_at,
)
from advisor.what_if.measured.points import ITL, MeasuredPoint
from traces.errors import UsageError
from traces.schema.engine import EngineConfig
from traces.schema.formats import digits, number
from traces.statistics import Floats

SAME_LOAD: Final = np.log(1.02)  # by the prior: points of as many requests that are one load
MOST_APART: Final = np.log(1.10)  # by which measurements of one load differ at most, or fall
NEAR: Final = 1e-3  # of the log of a time, that a factor of steps is found to
_ROUNDS: Final = 12


@dataclass(frozen=True, kw_only=True)
class PricedEngine:
    """An engine of one rank as the prior has it, for points.

    `replicas` are the ranks of data parallelism that take the measured load together.
    """

    times: PriorTimes
    engine: EngineConfig
    replicas: Replicas = field(default_factory=Replicas)

    def run(self, point: MeasuredPoint, cost: StepCost) -> Replayed:
        """Replay a point's load, all of whose requests ran at once.

        So many at a time it may have had, whatever the limit that is asked about. Raises UsageError
        where the engine cannot have it.
        """
        work, times, engine = point.workload, self.times, self.engine
        at_once = -(-(point.concurrency or 0) // self.replicas.count)
        if engine.max_num_seqs is not None and at_once > engine.max_num_seqs:
            engine = replace(engine, max_num_seqs=at_once)
        limits = limits_of(engine, times.facts, work, times.models)
        try:
            return replay(work, cost, limits, concurrency=point.concurrency, replicas=self.replicas)
        except ValueError as error:
            raise UsageError(f"--measured {point.name}: {error}") from None


def seconds_of(point: MeasuredPoint, run: Replayed) -> float:
    """Return the mean time per token of a replay of a point, as a client measures it."""
    more = point.workload.output_tokens > 1
    took = (run.end_s - run.first_token_s)[more]
    if point.what == ITL:
        return float(took.sum() / point.workload.verify_steps[more].sum())
    return float(np.mean(took / (point.workload.output_tokens[more] - 1)))


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """Points with their times by the prior as it came and as corrected, in seconds."""

    measured: MeasuredLoads
    points: tuple[MeasuredPoint, ...]
    before: Floats
    after: Floats

    def notes(self) -> list[str]:
        """Say what was measured, and how each point comes out."""
        each = ", ".join(
            f"{point.name} ({point.what} {point.seconds * 1e3:.2f} ms measured, "
            f"{was * 1e3:.2f} by the prior, {now * 1e3:.2f} now)"
            for point, was, now in zip(self.points, self.before, self.after, strict=True)
        )
        return [
            f"recalibrated by {each}. Other loads are corrected less, a third as much where a step "
            f"has {2 ** FADES[0]:.0f} times the requests, and more where the prior is far off"
        ]


def corrected(
    times: PriorTimes,
    engine: EngineConfig,
    points: Sequence[MeasuredPoint],
    replicas: Replicas | None = None,
) -> Corrected:
    """Return by how much the prior is off at points, as the engine would run them.

    The engine is one of the `replicas` that take a load together. Raises UsageError for a point
    that no engine like this has, and for points that contradict one another.
    """
    priced = PricedEngine(times=times, engine=engine, replicas=replicas or Replicas())
    steps = times.times(engine, 0)
    runs = [priced.run(each, steps.cost) for each in points]
    before = np.array([seconds_of(each, run) for each, run in zip(points, runs, strict=True)])
    _check_again(points, before)
    logs, loads, spreads = [], [], []
    for point, was, usual in zip(points, before.tolist(), runs, strict=True):
        log, load = _log_factor(priced, point, steps.cost, was)
        logs.append(log)
        loads.append(load)
        spreads.append(spread_at(steps, partial(priced.run, point), times.sigma_of(engine, usual)))
    measured = MeasuredLoads(loads=tuple(loads), logs=np.array(logs), spreads=np.array(spreads))
    after = []
    for point, load, spread in zip(points, loads, spreads, strict=True):
        cost = scaled_cost(steps.cost, float(np.exp(measured.correction(load, spread)[0])))
        after.append(seconds_of(point, priced.run(point, cost)))
    return Corrected(measured=measured, points=tuple(points), before=before, after=np.array(after))


def _log_factor(
    priced: PricedEngine, point: MeasuredPoint, cost: StepCost, usual_s: float
) -> tuple[float, StepLoad]:
    """Return the log of the factor of steps with which a point takes its time, and its load.

    Where requests arrive by themselves, slower steps have more of them. By the secant, inside of
    UNLIKE. Raises UsageError where no factor there gives the time.
    """
    most = float(np.log(UNLIKE))
    before, gap = 0.0, float(np.log(point.seconds / usual_s))
    log, slope = float(np.clip(gap, -most, most)), 1.0
    for _ in range(_ROUNDS):
        run = priced.run(point, scaled_cost(cost, float(np.exp(log))))
        left = float(np.log(point.seconds / seconds_of(point, run)))
        if abs(left) < NEAR:
            return log, StepLoad.of(run)
        if log != before:
            slope = max((gap - left) / (log - before), 1.0)
        before, gap = log, left
        log = float(np.clip(log + left / slope, -most, most))
    raise UsageError(
        f"--measured {point.name}: {point.what} {number(point.seconds, 's')} is "
        f"{digits(point.seconds / usual_s)} times the {number(usual_s, 's')} that the tables give "
        "for this engine and load. Check the time, the model and the GPU"
    )


def _check_again(points: Sequence[MeasuredPoint], before: Floats) -> None:
    """Raise UsageError for times that contradict one another.

    They differ where the prior has them alike: it is one load. Or more requests in flight, of the
    same lengths, take less.
    """
    priced_points = zip(points, before.tolist(), strict=True)
    for (one, was), (other, then) in itertools.combinations(priced_points, 2):
        few, many = sorted((one, other), key=lambda each: each.concurrency or 0)
        if (
            0 < (few.concurrency or 0) < (many.concurrency or 0)
            and few.has_lengths_of(many)
            and np.log(few.seconds / many.seconds) > MOST_APART
        ):
            raise UsageError(
                f"{few.name} and {many.name} contradict one another: {many.concurrency} requests "
                f"in flight cannot take less a token than {few.concurrency} of the same lengths"
            )
        alike = one.concurrency == other.concurrency is not None
        apart = abs(np.log(one.seconds / other.seconds))
        if alike and abs(np.log(was / then)) < SAME_LOAD and apart > MOST_APART:
            raise UsageError(
                f"{one.name} and {other.name} contradict one another: "
                f"{one.seconds * 1e3:.3g} ms and {other.seconds * 1e3:.3g} ms were measured of "
                f"what the prior takes for one load ({was * 1e3:.3g} ms and {then * 1e3:.3g} ms)"
            )
