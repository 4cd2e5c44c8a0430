"""The power law of an engine, learned from the stretches of its recordings.

One law for `replay` and `advise`: of the same time, busy time and batch it gives the same joules.

    joules = idle x seconds + (base + more x shape(batch)) x seconds of steps

The watts are non-negative least squares over stretches of recorded time (Lawson and Hanson 1974),
which are longer than the sensors' delay. `batch` is the mean number of requests in a step. A shape
rises, is concave, and is 0 without a request: a power of the batch, or one that saturates. Each
shape has one parameter, and no recording names the shape. Each is as likely as it fits the recorded
batches, so that what they leave open is in the interval. The same holds for idle power where steps
ran all the time. No board draws more than its limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from advisor.kept import kept, plain_fields, with_arrays
from advisor.step_time.law import non_negative_least_squares
from advisor.step_time.power.boards import limit_of
from traces.schema.engine import EngineConfig
from traces.statistics import ENDS, Bools, Floats, Ints, tied
from traces.summary.energy import PowerTable

BLOCKS: Final = 8  # of neighbouring stretches, whose errors give the spread
LEVEL_STEP: Final = 1.5  # times the batch of a level of batches, from which on is the next level
FEW: Final = 3  # stretches, of which a level has more
FLOOR: Final = 0.02  # error of a level's power that no shape is blamed for: sensors and clocks
IDLE: Final = 0.5  # of a stretch without a step, from which idle power is seen
SELDOM: Final = 0.05  # of the time without a step, up to which it is not
TINY: Final = 1e-12  # joules
IDLES: Final = (np.arange(8) + 0.5) / 8  # of the most that it can be, where it is not seen
EXPONENTS: Final = tuple((np.arange(9) / 8).tolist())  # shapes that are a power of the batch
HALVES: Final = tuple((2.0 ** np.arange(7)).tolist())  # batches at half of others' most


def power_laws(
    tables: Mapping[EngineConfig, Sequence[PowerTable]],
) -> dict[EngineConfig, PowerLaw]:
    """Return the law of each engine that has stretches to learn from."""
    laws = {key: fit_power(stretches, limit_of(key)) for key, stretches in tables.items()}
    return {key: law for key, law in laws.items() if law is not None}


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Watts of all devices of one replica of an engine, as laws of which each may be the true one.

    `watts` [laws, 3] are idle, base and more; `shape` [laws] is the place of their shape, `chance`
    [laws] how likely each is. `sigma` is the spread of the log of (recorded / predicted) energy
    over parts of the recordings. `batch` is the least and the largest mean batch of a stretch,
    `least_busy` the least part of one in which steps ran. `limit_w` is what all boards may draw.
    """

    watts: Floats
    shape: Ints
    chance: Floats
    sigma: float
    batch: tuple[float, float]
    least_busy: float
    limit_w: float | None = None

    def within(self, seconds: float, busy_s: float, request_s: float) -> bool:
        """Whether the mean batch and the part of the time in steps lie in what was recorded."""
        low, high = self.batch
        batched = low * busy_s * (1 - 1e-9) <= request_s <= high * busy_s * (1 + 1e-9)
        return batched and busy_s >= self.least_busy * seconds

    def joules(
        self, seconds: Floats | float, busy_s: Floats | float, batch: Floats | float
    ) -> Floats:
        """Return the energy of so much time, with steps in `busy_s` of it: [..] as `batch` [..].

        It is the mean over the laws.
        """
        idle, active = self._watts(batch)
        return np.asarray((idle @ self.chance) * seconds + (active @ self.chance) * busy_s)

    def draws(self, seconds: Floats, busy_s: Floats, batch: Floats, shares: Floats) -> Floats:
        """Return [rows, draws] of the energy, of [rows, draws] of time and [rows] of `batch`.

        Each draw takes the law at its place in `shares` [draws], numbers from 0 to 1.
        """
        idle, active = self._watts(batch)
        law = np.searchsorted(np.cumsum(self.chance), shares)
        law = np.minimum(law, len(self.chance) - 1)
        return np.asarray(idle[law] * seconds + active[:, law] * busy_s)

    def each(self, seconds: float, busy_s: float, batch: float) -> Floats:
        """Return the energy that each of the laws has [laws]."""
        idle, active = self._watts(batch)
        return np.asarray(idle * seconds + active * busy_s)

    def ends(self, seconds: float, busy_s: float, batch: float) -> tuple[float, float]:
        """Return the least and the most energy, as the laws that hold nine in ten have it."""
        joules = self.each(seconds, busy_s, batch)
        order = np.argsort(tied(joules), kind="stable")
        place = np.cumsum(self.chance[order]) - self.chance[order] / 2
        low, high = np.interp(ENDS, place, joules[order])
        return float(low), float(high)

    def _watts(self, batch: Floats | float) -> tuple[Floats, Floats]:
        """Return the watts of each law without a step [laws], and beyond while steps run."""
        idle, base, more = self.watts.T
        active = base + more * shapes_of(batch)[..., self.shape]
        if self.limit_w is not None:
            active = np.minimum(active, np.maximum(self.limit_w - idle, 0.0))
        return idle, active


def shapes_of(batch: Floats | float) -> Floats:
    """Return [.., shapes] of mean batches [..], which are 1 where the batch is 1."""
    b = np.maximum(np.asarray(batch, dtype=float), 1e-9)[..., None]
    halves = np.array(HALVES)
    return np.concatenate([b ** np.array(EXPONENTS), b * (1 + halves) / (b + halves)], axis=-1)


def fit_power(tables: Sequence[PowerTable], limit_w: float | None = None) -> PowerLaw | None:
    """Return the law of an engine's recordings, None where there is nothing to learn from."""
    tables = [table for table in tables if len(table.joules) >= BLOCKS]
    if not tables:
        return None
    return kept(
        (tables, limit_w),
        lambda: _fitted(tables, limit_w),
        lambda law: None if law is None else plain_fields(law),
        _of_plain,
    )


def _of_plain(fields: dict[str, Any] | None) -> PowerLaw | None:
    if fields is None:
        return None
    return PowerLaw(**with_arrays(fields) | {"batch": tuple(fields["batch"])})


def _fitted(tables: Sequence[PowerTable], limit_w: float | None) -> PowerLaw | None:
    amounts = np.concatenate([np.zeros((0, 3)), *(table.amounts for table in tables)])
    joules = np.concatenate([np.zeros(0), *(table.joules for table in tables)])
    seconds, busy, requests = amounts.T
    ran = busy > 0
    if not ran.any() or joules.sum() <= 0:
        return None
    batch = np.divide(requests, busy, out=np.zeros_like(busy), where=ran)
    several = batch[ran].max() > LEVEL_STEP * batch[ran].min()
    levels = _levels(batch, busy < IDLE * seconds)
    idles = [None]
    if busy.sum() > (1 - SELDOM) * seconds.sum() or (busy > (1 - IDLE) * seconds).all():
        most = (np.bincount(levels, joules) / np.bincount(levels, seconds)).min()
        idles = list(most * IDLES)
    watts, scores = [], []
    for idle in idles:
        for shape in shapes_of(batch).T:
            columns = [busy, busy * shape] if several else [busy * shape]
            found = _watts_of(seconds, np.column_stack(columns), joules, idle)
            watts.append(found)
            expected = found[0] * seconds + (found[1] + found[2] * shape) * busy
            sums = (np.maximum(np.bincount(levels, each), TINY) for each in (joules, expected))
            off = np.log(np.divide(*sums))
            scores.append(-len(off) / 2 * np.log(FLOOR**2 + np.mean(np.square(off))))
    likely = np.exp(np.array(scores) - max(scores))
    law = PowerLaw(
        watts=np.array(watts),
        shape=np.tile(np.arange(len(EXPONENTS) + len(HALVES)), len(idles)),
        chance=likely / likely.sum(),
        sigma=0.0,
        batch=(float(batch[ran].min()), float(batch[ran].max())),
        least_busy=float(np.min(busy / seconds)),
        limit_w=limit_w,
    )
    return replace(law, sigma=_spread(law, tables))


def _levels(batch: Floats, idle: Bools) -> Ints:
    """Return the level of each stretch, from 0: idle ones are one, others by their batch.

    A level of a few stretches is one with that of the next smaller batch.
    """
    numbers = np.floor(np.log(np.maximum(batch, 1.0)) / np.log(LEVEL_STEP)).astype(np.int64)
    numbers[idle] = -1
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    level, stretches, levels = 0, 0, []
    for count in counts.tolist():
        levels.append(level)
        stretches += count
        if stretches >= FEW:
            level, stretches = level + 1, 0
    return np.asarray(np.minimum(levels, max(level - 1, 0))[place], dtype=np.int64)


def _watts_of(
    seconds: Floats, columns: Floats, joules: Floats, idle: float | None
) -> tuple[float, float, float]:
    """Return idle, base and more watts, of one column more alone; `idle` ones where given."""
    if idle is None:
        found = non_negative_least_squares(np.column_stack([seconds, columns]), joules)
    else:
        active = non_negative_least_squares(columns, joules - idle * seconds)
        found = np.concatenate([[idle], active])
    base = float(found[1]) if len(found) > 2 else 0.0
    return float(found[0]), base, float(found[-1])


def _spread(law: PowerLaw, tables: Sequence[PowerTable]) -> float:
    """Return the spread of the log of (recorded / predicted) energy over parts of recordings."""
    errors = []
    for table in tables:
        parts = zip(
            np.array_split(table.amounts, BLOCKS), np.array_split(table.joules, BLOCKS), strict=True
        )
        for amounts, joules in parts:
            seconds, busy_s, request_s = amounts.sum(axis=0).tolist()
            expected = law.joules(seconds, busy_s, request_s / busy_s if busy_s else 0.0)
            if joules.sum() > 0 and expected > 0:
                errors.append(np.log(joules.sum() / expected))
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0
