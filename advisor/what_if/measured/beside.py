"""What a client measured of a run beside what the replay says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from advisor.evidence.features import Work
from advisor.replay.result import Replayed
from traces.recording.reader import Recording
from traces.statistics import Floats

PARTS: Final = ("mean", "p50", "p95", "p99")
DECODES: Final = Work._fields.index("decode_requests")


@dataclass(frozen=True, kw_only=True)
class ComparedTime:
    """A time of a client, in seconds: as measured (None: not told) and as predicted."""

    name: str
    part: str
    measured_s: float | None
    predicted_s: float | None

    @property
    def relative(self) -> float | None:
        """Predicted over measured less 1, None where either is not known."""
        if not self.measured_s or self.predicted_s is None:
            return None
        return self.predicted_s / self.measured_s - 1


def beside(
    recording: Recording, runs: Sequence[Replayed], *, on_tables: bool
) -> tuple[ComparedTime, ...]:
    """Return TTFT, TPOT and ITL of an import of measured requests, and of replays of it.

    ITL is over tokens: of steps, each as often as it decodes requests. Of other recordings it alone
    is told, and only for step times of tables.
    """
    told = recording.manifest.provenance.get("imported")
    ended = recording.samples.filter(
        pl.col("first_token").is_not_null(), pl.col("end").is_not_null()
    )
    made = [_predicted(run) for run in runs]
    if told is None or ended.is_empty():
        itl = {part: _mean([each["ITL"].get(part) for each in made]) for part in PARTS}
        rows = tuple(
            ComparedTime(name="ITL", part=part, measured_s=None, predicted_s=value)
            for part, value in itl.items()
        )
        return rows if on_tables else ()
    arrival, first, end, tokens = (
        ended[name].cast(pl.Float64).to_numpy()
        for name in ("arrival", "first_token", "end", "output_tokens")
    )
    more = tokens > 1
    measured: dict[str, Any] = {
        "TTFT": _quantiles((first - arrival) / 1e9),
        "TPOT": _quantiles((end - first)[more] / 1e9 / (tokens[more] - 1)),
        "ITL": told.get("itl_s") or {},
    }
    return tuple(
        ComparedTime(
            name=name,
            part=part,
            measured_s=measured[name].get(part),
            predicted_s=_mean([each[name].get(part) for each in made]),
        )
        for name in measured
        for part in PARTS
    )


def _predicted(run: Replayed) -> dict[str, dict[str, float]]:
    more = (run.generated_tokens > 1) & ~run.cancelled
    took = (run.end_s - run.first_token_s)[more] / (run.generated_tokens[more] - 1)
    found = {"TTFT": _quantiles(run.first_token_s - run.queued_s), "TPOT": _quantiles(took)}
    log = run.log
    if log is None or not len(log):
        return {**found, "ITL": {}}
    weights = log["work"][:, DECODES] * log["steps"]
    return {**found, "ITL": _quantiles(log["seconds"] / log["steps"], weights)}


def _quantiles(values: Floats, weights: Floats | None = None) -> dict[str, float]:
    """Return mean and quantiles of values that are known, each as often as its weight."""
    if weights is None:
        values = values[np.isfinite(values)]
        if not values.size:
            return {}
        found = {part: float(np.quantile(values, int(part[1:]) / 100)) for part in PARTS[1:]}
        return {"mean": float(values.mean()), **found}
    kept = np.isfinite(values) & (weights > 0)
    values, weights = values[kept], weights[kept]
    if not values.size:
        return {}
    order = np.argsort(values)
    values, sums = values[order], np.cumsum(weights[order])
    found = {"mean": float(np.average(values, weights=weights[order]))}
    for part in PARTS[1:]:
        at = np.searchsorted(sums, int(part[1:]) / 100 * sums[-1])
        found[part] = float(values[min(int(at), len(values) - 1)])
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
