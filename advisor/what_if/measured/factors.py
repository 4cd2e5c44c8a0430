"""What measured times say of the prior: a factor of its kernels and one of the host's part.

Each point is replayed under its own load. Two loads tell the two factors apart, as kernels grow
with the context and the host with the requests; one load moves both as far as each is uncertain.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from advisor.evidence.features import FEATURES
from advisor.replay.limits import Limits, limits_of
from advisor.replay.replay import Replicas, replay
from advisor.replay.workload import Workload
from advisor.step_time.cost import StepCost, scaled_cost
from advisor.step_time.prior.recalibration import PriorTimes, Recalibration, cost_of, spread_of
from advisor.what_if.measured.points import ITL, MeasuredPoint
from traces.errors import UsageError
from traces.schema.engine import EngineConfig
from traces.schema.formats import digits, number
from traces.statistics import Floats

Predicted = Callable[[Floats, Sequence[MeasuredPoint]], Floats]  # of the logs of both factors

NOISE: Final = 0.03  # spread (sd) of the log of a mean time that is measured again
KERNELS: Final = 0.10  # of the log of the kernels' factor
HOST: Final = 0.7  # of that of the host's part, which differs between hosts and versions
APART: Final = np.log(1.25)  # points that a fit is off by more contradict one another
SAME_LOAD: Final = np.log(1.02)  # by the prior: points of as many requests that are one load
AGAIN: Final = np.log(1.10)  # by which measurements of one load differ at most
LEAST: Final = 0.5  # measured over the prior: what lies beyond both is no such engine
MOST: Final = 10.0
_ROUNDS: Final = 4
_STEP: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class PricedEngine:
    """An engine as the prior has it: what its steps cost, `drafts` [FEATURES] of that.

    `limits` are those of a workload, by which a cache of several kinds of blocks is counted.
    `replicas` are the ranks of data parallelism that take the measured load together.
    """

    cost: StepCost
    drafts: Floats
    limits: Callable[[Workload], Limits]
    replicas: Replicas

    @classmethod
    def of(
        cls, times: PriorTimes, engine: EngineConfig, replicas: Replicas | None = None
    ) -> PricedEngine:
        """Price an engine of one rank. Raises as `PriorTimes.times`."""
        drafting = times.drafting(engine)
        return cls(
            cost=cost_of(times.prior(engine), times.shared(engine), drafting),
            drafts=np.zeros(len(FEATURES)) if drafting is None else drafting.seconds,
            limits=lambda work: limits_of(engine, times.facts, work, times.models),
            replicas=replicas or Replicas(),
        )

    def seconds(self, point: MeasuredPoint, kernels: float = 1.0, host: float = 1.0) -> float:
        """Return the mean time per token of a point's load, as a client measures it.

        Tables and drafting take `kernels` times as long, and the host's laws `host` times.
        """
        cost = scaled_cost(self.cost, kernels)._replace(
            linear=host * self.cost.linear + (kernels - host) * self.drafts,
            hidden=host * self.cost.hidden,
        )
        work = point.workload
        try:
            run = replay(
                work,
                cost,
                self.limits(work),
                concurrency=point.concurrency,
                replicas=self.replicas,
            )
        except ValueError as error:
            raise UsageError(f"--measured {point.name}: {error}") from None
        more = work.output_tokens > 1
        took = (run.end_s - run.first_token_s)[more]
        if point.what == ITL:
            return float(took.sum() / work.verify_steps[more].sum())
        return float(np.mean(took / (work.output_tokens[more] - 1)))


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Points with their times by the prior as it came and by the factors, in seconds."""

    found: Recalibration
    points: tuple[MeasuredPoint, ...]
    before: Floats
    after: Floats

    def notes(self) -> list[str]:
        """Say which factors were found, and how each point comes out."""
        kernels, host = self.found.step, self.found.host
        factors = f"kernels x{kernels:.2f}, the host's part x{host:.2f}"
        each = ", ".join(
            f"{point.name} ({point.what} {point.seconds * 1e3:.2f} ms measured, "
            f"{was * 1e3:.2f} by the prior, {now * 1e3:.2f} now)"
            for point, was, now in zip(self.points, self.before, self.after, strict=True)
        )
        told = [f"recalibrated by {each}: {factors}"]
        if len(self.points) == 1:
            told.append(
                "one load does not tell kernels and host apart: another --measured or import at "
                "another concurrency does"
            )
        return told


def fit_points(
    times: PriorTimes,
    engine: EngineConfig,
    points: Sequence[MeasuredPoint],
    replicas: Replicas | None = None,
) -> Fitted:
    """Return the prior's factors by which points come out, as the engine would run them.

    The engine is one of the `replicas` that take a load together. The largest posterior of both
    logs under normal laws (NOISE, KERNELS, HOST), by Gauss-Newton.
    Raises UsageError for a point that no engine like this has, and for points that contradict one
    another.
    """
    priced = PricedEngine.of(times, engine, replicas)
    measured = np.array([point.seconds for point in points])

    def predicted(logs: Floats, chosen: Sequence[MeasuredPoint]) -> Floats:
        return np.array([priced.seconds(point, *np.exp(logs)) for point in chosen])

    before = predicted(np.zeros(2), points)
    for point, was in zip(points, before, strict=True):
        ratio = point.seconds / was
        if not LEAST <= ratio <= MOST:
            raise UsageError(
                f"--measured {point.name}: {point.what} {number(point.seconds, 's')} is "
                f"{digits(ratio)} times the {number(was, 's')} that the tables give for this "
                "engine and load. Check the time, the model and the GPU"
            )
    _check_again(points, before)
    logs = _solved(predicted, points)
    after = predicted(logs, points)
    errors = np.log(after / measured)
    if len(points) > 1 and np.abs(errors).max() > APART:
        raise UsageError(
            f"{' and '.join(each.name for each in points)} contradict one another: no factors of "
            "kernels and host give them all. Nearest are "
            f"{', '.join(f'{each * 1e3:.3g} ms' for each in after)}"
        )
    left = errors
    if len(points) > 1:
        kept = [[other for other in points if other is not point] for point in points]
        left = np.array([
            np.log(predicted(_solved(predicted, rest), [point])[0] / point.seconds)
            for rest, point in zip(kept, points, strict=True)
        ])  # fmt: skip
    raw = float(np.mean(np.log(before / measured)))
    shape = times.shape(engine)
    base, ran = times.found, times.ran
    sigma = spread_of(left, raw, mean=0.0)
    found = Recalibration(
        families={} if base is None else base.families,
        step=(1.0 if base is None else base.step) * float(np.exp(logs[0])),
        host=(1.0 if base is None else base.host_factor) * float(np.exp(logs[1])),
        sigma=sigma if ran is None else max(sigma, ran.sigma),
        checked=frozenset({shape}) | (frozenset() if base is None else base.checked),
        recordings=(
            *(() if ran is None else ran.recordings),
            *(point.name for point in points),
        ),
    )
    return Fitted(found=found, points=tuple(points), before=before, after=after)


def _check_again(points: Sequence[MeasuredPoint], before: Floats) -> None:
    """Raise UsageError for times that differ where the prior has them alike: it is one load."""
    known = zip(points, before.tolist(), strict=True)
    for (one, was), (other, then) in itertools.combinations(known, 2):
        alike = one.concurrency == other.concurrency is not None
        apart = abs(np.log(one.seconds / other.seconds))
        if alike and abs(np.log(was / then)) < SAME_LOAD and apart > AGAIN:
            raise UsageError(
                f"{one.name} and {other.name} contradict one another: "
                f"{one.seconds * 1e3:.3g} ms and {other.seconds * 1e3:.3g} ms were measured of "
                f"what the prior takes for one load ({was * 1e3:.3g} ms and {then * 1e3:.3g} ms)"
            )


def _solved(predicted: Predicted, points: Sequence[MeasuredPoint]) -> Floats:
    """Return the logs of both factors."""
    measured = np.array([point.seconds for point in points])
    logs = np.zeros(2)
    sure = np.diag([1 / KERNELS**2, 1 / HOST**2])
    for _ in range(_ROUNDS):
        here = np.log(predicted(logs, points))
        slopes = np.column_stack([
            (np.log(predicted(logs + step, points)) - here) / _STEP for step in np.eye(2) * _STEP
        ])  # fmt: skip
        gap = np.log(measured) - here
        normal = slopes.T @ slopes / NOISE**2 + sure
        step = np.linalg.solve(normal, slopes.T @ gap / NOISE**2 - sure @ logs)
        logs = logs + np.clip(step, -0.7, 0.7)
        if np.abs(step).max() < 1e-3:
            break
    return logs
