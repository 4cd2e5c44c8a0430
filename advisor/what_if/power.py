"""The stretches of a recording that a power law is learned from: time, steps, requests, joules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from advisor.evidence.keys import law_key
from advisor.step_time.law import non_negative_least_squares
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.summary.energy import run_energy

STRETCH_S: Final = 1.0  # GPU counters move every 20 to 100 ms (docs/energy.md)
FEWEST: Final = 24  # stretches, which are shorter in a short run


def power_law(recordings: Sequence[Recording], engine: EngineConfig) -> PowerLaw | None:
    """Return the power law of an engine, None where no recording of it has power."""
    tables = [
        power_table(recording, key)
        for recording in recordings
        for key, other in recording.manifest.engines.items()
        if law_key(other) == law_key(engine)
    ]
    return fit_power([table for table in tables if table is not None])


def power_table(recording: Recording, key: str) -> PowerTable | None:
    """Return the stretches of an engine's recording, None where power or steps are unknown."""
    found = run_energy(recording, key)
    steps = recording.steps.filter(pl.col("engine") == key).sort("end")
    steps = steps.drop_nulls(["end", "wall_ns", "prefill_requests", "decode_requests"])
    if found is None or steps.is_empty() or recording.manifest.dropped.get("steps"):
        return None
    curve, (start, end) = found
    ended = (steps["end"].to_numpy() - start) / 1e9
    took = steps.select(pl.coalesce("interval_ns", "wall_ns")).to_series().to_numpy() / 1e9
    begun = np.maximum(ended - took, np.concatenate(([-np.inf], ended[:-1])))
    requests = (steps["prefill_requests"] + steps["decode_requests"]).to_numpy()
    # Both rise in a straight line while a step runs and stand still between steps.
    places = np.column_stack([begun, ended]).ravel()
    amounts = np.column_stack([ended - begun, (ended - begun) * requests])
    sums = np.cumsum(amounts, axis=0)
    levels = np.stack([sums - amounts, sums], axis=1).reshape(-1, 2)
    length = (end - start) / 1e9
    count = int(max(length / STRETCH_S, FEWEST))
    edges = np.linspace(0.0, length, count + 1)
    busy, batch = (np.diff(np.interp(edges, places, levels[:, i])) for i in (0, 1))
    return PowerTable(
        amounts=np.column_stack([np.diff(edges), busy, batch]),
        joules=curve.between(edges[:-1], edges[1:]),
    )


# What an engine's devices draw: idle, more while a step runs, and more for each request in it.
#
#     joules = idle x seconds + busy x seconds of steps
#              + batch x sum over steps of seconds x requests
#
# The three are watts, non-negative least squares over stretches of recorded time (Lawson and
# Hanson 1974), which are longer than the sensors' delay. Utilisation is the part of the time in
# which steps run, so power is linear in it and in the batch.


Floats = npt.NDArray[np.float64]

BLOCKS = 8  # of neighbouring stretches, whose errors tell the spread


@dataclass(frozen=True, kw_only=True)
class PowerTable:
    """Stretches of a recording, each a row of seconds, seconds of steps, and request-seconds.

    `amounts` [stretches, 3] and the `joules` [stretches] that all devices drew.
    """

    amounts: Floats
    joules: Floats


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Watts of all devices of an engine: idle, while a step runs, and per request in it.

    `sigma` is the spread of the log of (recorded / predicted) energy over parts of the recordings,
    `batch` the least and the largest mean batch of a stretch, `least_busy` the least part of one in
    which steps ran: where they always ran, idle cannot be told from busy, and where the batch was
    always the same, its part not from the rest. `runs` recordings taught it.
    """

    watts: Floats
    sigma: float
    batch: tuple[float, float]
    least_busy: float
    runs: int

    def within(self, seconds: float, busy_s: float, request_s: float) -> bool:
        """Whether the mean batch and the part of the time in steps lie in what was recorded."""
        low, high = self.batch
        return low * busy_s <= request_s <= high * busy_s and busy_s >= self.least_busy * seconds

    def joules(self, seconds: float, busy_s: float, request_s: float) -> float:
        """Return the energy of so much time, time in steps, and requests x time in steps."""
        return float(self.watts @ [seconds, busy_s, request_s])


def fit_power(tables: Sequence[PowerTable]) -> PowerLaw | None:
    """Return the law of an engine's recordings, None where there is nothing to learn from."""
    tables = [table for table in tables if len(table.joules) >= BLOCKS]
    if not tables:
        return None
    amounts = np.concatenate([table.amounts for table in tables])
    joules = np.concatenate([table.joules for table in tables])
    watts = non_negative_least_squares(amounts, joules)
    if not watts.any():
        return None
    ran = amounts[:, 1] > 0
    batches = amounts[ran, 2] / amounts[ran, 1]
    errors = [
        np.log(drawn.sum() / float((part @ watts).sum()))
        for table in tables
        for part, drawn in zip(
            np.array_split(table.amounts, BLOCKS), np.array_split(table.joules, BLOCKS), strict=True
        )
        if drawn.sum() > 0
    ]
    return PowerLaw(
        watts=watts,
        sigma=float(np.sqrt(np.mean(np.square(errors)))),
        batch=(float(batches.min()), float(batches.max())),
        least_busy=float(np.min(amounts[:, 1] / amounts[:, 0])),
        runs=len(tables),
    )
