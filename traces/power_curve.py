"""The energy drawn up to a moment, from the readings of a run's devices.

A device that counts its energy is taken at its counter, any other at the integral of its power by
the trapezoidal rule; between two readings the power is the mean of that time.
Whatever the readings leave open (they do not reach the run's ends, they pause for seconds) is
said as a reason instead of a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from traces.statistics import Floats

Method = Literal["counter", "power"]
Window = tuple[int, int]

_SLACK_S = 1.0  # how far readings may end from the window's ends
_SLACK_SHARE = 0.25  # and at most this part of the window
_PAUSE_S = 2.0  # power is not integrated over longer pauses
_EDGE_S = 0.5  # the stretch whose mean power is extended to the window's ends


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Energy drawn since the first reading by all devices together.

    `seconds` ascend from the window's start at 0 to its end or beyond; `joules` belong to them and
    never fall; in between the energy rises in straight lines. `max_w` is the highest power.
    """

    seconds: Floats
    joules: Floats
    method: Method
    devices: int
    max_w: float

    def between(self, start_s: Floats, end_s: Floats) -> Floats:
        """Return the joules between pairs of times in seconds from the window's start."""
        until, since = (np.interp(at, self.seconds, self.joules) for at in (end_s, start_s))
        return np.asarray(until - since, dtype=float)


@dataclass(frozen=True)
class _Device:
    seconds: Floats
    joules: Floats
    method: Method
    watts: tuple[Floats, Floats] | None  # times and power readings


def energy_curve(power: pl.DataFrame, window: Window) -> Curve | str:
    """Return the energy of all devices in a `power` table of one kind, or why it is not known.

    Every device must be known: a sum over some of them would pass for the sum over all.
    """
    length = (window[1] - window[0]) / 1e9
    if length <= 0:
        return "the run has no duration"
    found = []
    devices = power.sort("host", "device", "time").group_by("host", "device", maintain_order=True)
    for (_, device), readings in devices:
        curve = _device_curve(readings, window[0], length)
        if isinstance(curve, str):
            return f"{device}: {curve}"
        found.append(curve)
    if not found:
        return "no power was recorded"
    grid = np.unique(np.concatenate([each.seconds for each in found] + [np.array([0.0, length])]))
    grid = grid[(grid >= 0) & (grid <= length)]
    joules = np.sum([np.interp(grid, each.seconds, each.joules) for each in found], axis=0)
    if joules[-1] <= joules[0]:
        return "the counters did not move"
    by_power = any(each.method == "power" for each in found)
    return Curve(
        seconds=grid,
        joules=np.asarray(joules, dtype=float),
        method="power" if by_power else "counter",
        devices=len(found),
        max_w=_highest(found, grid, joules, length),
    )


def _device_curve(readings: pl.DataFrame, start_ns: int, length: float) -> _Device | str:
    drawn = _series(readings, "watts", start_ns)
    counted = _series(readings, "energy_j", start_ns)
    watts = drawn if drawn[0].size > 1 else None
    reason = "it gave neither energy nor power"
    if counted[0].size > 1 and (reason := _uncovered(counted[0], length)) == "":
        found = _from_counter(counted, drawn, length)
        if not isinstance(found, str):
            return _Device(*_reach(*found, length), "counter", watts)
        reason = found
    if watts is not None:
        times = drawn[0]
        pause = _longest_pause(times, 0.0, length)
        missing = _uncovered(times, length)
        if not missing and pause <= _PAUSE_S:
            steps = np.diff(times) * (drawn[1][1:] + drawn[1][:-1]) / 2
            joules = np.concatenate(([0.0], np.cumsum(steps)))
            return _Device(*_reach(times, joules, length), "power", watts)
        reason = missing or f"its power was not read for {pause:.1f} s"
    return reason


def _series(readings: pl.DataFrame, column: str, start_ns: int) -> tuple[Floats, Floats]:
    """Return times in seconds from the start and the sound values of a column, one per time."""
    known = readings.select(pl.col("time") - start_ns, column).drop_nulls()
    known = known.filter(pl.col(column).is_finite() & (pl.col(column) >= 0))
    known = known.unique("time", keep="last", maintain_order=True)
    seconds = known["time"].to_numpy().astype(float) / 1e9
    return seconds, known[column].to_numpy().astype(float)


def _uncovered(times: Floats, length: float) -> str:
    """Return which end of the window the readings miss; empty when neither."""
    slack = min(_SLACK_S, _SLACK_SHARE * length)
    if times[0] > slack:
        return f"its readings begin {times[0]:.1f} s after the run's start"
    if times[-1] < length - slack:
        return f"its readings end {length - times[-1]:.1f} s before the run's end"
    return ""


def _longest_pause(times: Floats, start: float, end: float) -> float:
    """Return the longest time without a reading that touches a stretch."""
    touching = (times[1:] > start) & (times[:-1] < end)
    return float(np.max(np.diff(times), where=touching, initial=0.0))


def _from_counter(
    counted: tuple[Floats, Floats], drawn: tuple[Floats, Floats], length: float
) -> tuple[Floats, Floats] | str:
    """Return times and cumulative joules; a counter that falls is bridged by the power."""
    times, counter = counted
    rises = np.diff(counter)
    for place in np.flatnonzero(rises < 0):  # it wrapped, or the driver was loaded anew
        bridged = _integral(drawn, times[place], times[place + 1])
        if bridged is None:
            return "its energy counter fell back and no power reading says by how much"
        rises[place] = bridged
    moved = np.flatnonzero(rises > 0) + 1
    if not moved.size:
        return "its energy counter did not move"
    keep = np.arange(times.size)
    if (rises == 0).any():
        # Read more often than it is updated: a straight line between updates, not stairs.
        own = times[moved]
        whole = moved.size > 1 and not _uncovered(own, length)
        keep = moved if whole else np.unique(np.concatenate(([0], moved, [times.size - 1])))
    joules = np.concatenate(([0.0], np.cumsum(rises)))
    return times[keep], joules[keep]


def _integral(drawn: tuple[Floats, Floats], start: float, end: float) -> float | None:
    """Return the integral of the power readings, None where they do not say it."""
    times, watts = drawn
    if times.size < 2 or times[0] > start or times[-1] < end:
        return None
    if _longest_pause(times, start, end) > _PAUSE_S:
        return None
    inside = times[(times > start) & (times < end)]
    grid = np.concatenate(([start], inside, [end]))
    return float(np.trapezoid(np.interp(grid, times, watts), grid))


def _reach(times: Floats, joules: Floats, length: float) -> tuple[Floats, Floats]:
    """Extend to both ends of the window with the mean power of the half second next to each."""
    if times[0] > 0:
        last = min(int(np.searchsorted(times, times[0] + _EDGE_S)), times.size - 1)
        slope = (joules[last] - joules[0]) / (times[last] - times[0])
        times = np.concatenate(([0.0], times))
        joules = np.concatenate(([joules[0] - slope * times[1]], joules))
    if times[-1] < length:
        first = max(int(np.searchsorted(times, times[-1] - _EDGE_S, side="right")) - 1, 0)
        slope = (joules[-1] - joules[first]) / (times[-1] - times[first])
        end = joules[-1] + slope * (length - times[-1])
        times, joules = np.append(times, length), np.append(joules, end)
    return times, joules


def _highest(devices: list[_Device], grid: Floats, joules: Floats, length: float) -> float:
    """Return the highest power of all devices together, by their readings if all have them."""
    readings = [each.watts for each in devices if each.watts is not None]
    if len(readings) == len(devices):
        at = np.unique(np.concatenate([times for times, _ in readings] + [np.array([0.0])]))
        at = at[(at >= 0) & (at <= length)]
        summed = np.sum([np.interp(at, times, watts) for times, watts in readings], axis=0)
        return float(summed.max())
    return float((np.diff(joules) / np.diff(grid)).max())
