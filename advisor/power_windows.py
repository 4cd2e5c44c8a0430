"""The stretches of a recording that a power law is learned from: time, steps, requests, joules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl

from advisor.evidence import law_key
from advisor.models.power import PowerLaw, PowerTable, fit_power
from traces.energy import run_energy
from traces.recording import Recording
from traces.schema import EngineConfig

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
