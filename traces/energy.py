"""Energy of a run: the devices' counters, or the integral of their power, over its time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from traces.schema import Estimate, Record


@dataclass(frozen=True, kw_only=True)
class Energy(Record):
    """Joules of the whole run, idle included, and the same by tokens, problems, right answers."""

    total: Estimate | None = None
    per_token: Estimate | None = None
    per_problem: Estimate | None = None
    per_correct: Estimate | None = None


def measured_energy(
    power: pl.DataFrame,
    window: tuple[int, int],
    *,
    tokens: float | None,
    problems: float | None,
    correct: float | None,
) -> Energy:
    """Return the energy between two times (unix nanoseconds), empty when it was not measured.

    The GPUs' when there are any, else the host's: one kind, never both added. None when a
    device's readings do not reach both ends of the window (within 2 s).
    """
    kinds = power["kind"].unique().to_list()
    kind = next((name for name in ("nvml", "rapl") if name in kinds), None)
    total = 0.0
    groups = power.filter(pl.col("kind") == kind).group_by("host", "device") if kind else ()
    for _, readings in groups:
        joules = _device_energy(readings.sort("time"), window)
        if joules is None:
            return Energy()
        total += joules
    if total <= 0:
        return Energy()

    def over(count: float | None, unit: str) -> Estimate | None:
        return Estimate(value=total / count, unit=unit) if count else None

    return Energy(
        total=Estimate(value=total, unit="J"),
        per_token=over(tokens, "J/token"),
        per_problem=over(problems, "J"),
        per_correct=over(correct, "J"),
    )


def _device_energy(readings: pl.DataFrame, window: tuple[int, int]) -> float | None:
    counted = readings.drop_nulls("energy_j")
    if counted.height > 1 and _covers(counted["time"], window):
        times, joules = counted["time"].to_numpy(), counted["energy_j"].to_numpy()
        if (np.diff(joules) >= 0).all():
            start, end = np.interp(np.subtract(window, times[0]), times - times[0], joules)
            return float(end - start)
    drawn = readings.drop_nulls("watts")
    if drawn.height < 2 or not _covers(drawn["time"], window):
        return None
    seconds = (drawn["time"].to_numpy() - window[0]) / 1e9
    watts = drawn["watts"].to_numpy()
    length = (window[1] - window[0]) / 1e9
    inside = seconds[(seconds > 0) & (seconds < length)]
    grid = np.concatenate(([0.0], inside, [length]))
    return float(np.trapezoid(np.interp(grid, seconds, watts), grid))


def _covers(times: pl.Series, window: tuple[int, int], slack_ns: int = 2_000_000_000) -> bool:
    first, last = int(times[0]), int(times[-1])
    return first <= window[0] + slack_ns and last >= window[1] - slack_ns
