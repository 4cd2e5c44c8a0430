"""Energy of a run: what its devices drew, and which samples and problems it was drawn for.

The energy of a step is what was drawn while it ran; it is shared among the step's samples by
their tokens, as its time is (problems.py). What was drawn outside every step is idle.
Samples + idle = the energy from the run's first arrival to its last end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
import polars as pl

from traces.recording.reader import Recording
from traces.schema.estimate import Estimate
from traces.schema.record import Record
from traces.statistics import Floats, ratio
from traces.summary.problems import of_a_server, share, step_ns

NOT_RECORDED = "no power was recorded"


@dataclass(frozen=True, kw_only=True)
class Energy(Record):
    """Energy of the whole run, idle included, and the same by tokens, problems, right answers.

    `idle` (J) was drawn while no step ran, `idle_share` is its part of the total; `mean_w` and
    `max_w` the power of all devices together. `kind` is what was read (nvml, rapl), `method` how:
    by energy counters, by integrating the power, or (`law`) foretold by a replay. `reason` says why
    there is no total.
    """

    total: Estimate | None = None
    per_token: Estimate | None = None
    per_problem: Estimate | None = None
    per_correct: Estimate | None = None
    idle: Estimate | None = None
    idle_share: Estimate | None = None
    mean_w: Estimate | None = None
    max_w: Estimate | None = None
    kind: str | None = None
    method: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class EnergyShares:
    """Joules from the window's start to its end.

    `steps` has one number per step, `samples` one per sample (nan where its steps are not known).
    `idle` is None where no step was recorded.
    """

    total: float
    idle: float | None
    steps: Floats
    samples: Floats


def share_energy(
    curve: Curve,
    window: Window,
    steps: pl.DataFrame,
    samples: pl.DataFrame,
    *,
    shared: bool = False,
) -> EnergyShares:
    """Share the energy of a window among one engine's steps (in order) and its samples.

    A step runs from the end of the step before, or from its own start where the engine had been
    idle, to its end; the part outside the window does not count. `shared` is as of `share`.
    """
    length = (window[1] - window[0]) / 1e9
    total = float(curve.between(np.array([0.0]), np.array([length]))[0])
    nowhere = np.full(samples.height, np.nan)
    if not steps.height or steps["end"].null_count():
        return EnergyShares(
            total=total, idle=None, steps=np.full(steps.height, np.nan), samples=nowhere
        )
    ended = (steps["end"] - window[0]).to_numpy().astype(float) / 1e9
    begun = ended - step_ns(steps, samples) / 1e9
    ended = np.maximum.accumulate(np.clip(ended, 0.0, length))
    before = np.concatenate(([0.0], ended[:-1]))
    begun = np.clip(np.maximum(begun, before), 0.0, ended)
    drawn = curve.between(begun, ended)
    gaps = curve.between(np.append(before, ended[-1]), np.append(begun, length))
    return EnergyShares(
        total=total,
        idle=float(gaps.sum()),
        steps=drawn,
        samples=share(drawn, steps, samples, shared=shared),
    )


def attribute_energy(
    recording: Recording,
    engine: str,
    window: Window | None,
    *,
    alone: bool,
    asked: bool = True,
    steps: pl.DataFrame,
    samples: pl.DataFrame,
    rows: pl.DataFrame,
) -> tuple[Energy, pl.DataFrame, pl.DataFrame]:
    """Return a run's energy, and its samples and problem rows with a column `energy_j`.

    A sample's is its share of the steps; a problem's is its samples' plus an equal part of idle,
    so that the mean over problems is the total over problems. What others on a server had in its
    steps is no problem's, and as large a part of idle. Null where it is not known, as for
    problems that the profiler slowed. `alone` says that no other run shares the recording, `asked`
    that its requests were sent for it: of others' traffic some may be traced, and steps alone tell.
    """
    curve = _curve(recording, engine, window)
    if isinstance(curve, Curve) and not alone:
        curve = "several runs of the recording share its devices"
    unknown = pl.lit(None, pl.Float64).alias("energy_j")
    if isinstance(curve, str) or window is None:
        reason = curve if isinstance(curve, str) else None
        return Energy(reason=reason), samples.with_columns(unknown), rows.with_columns(unknown)
    dropped = recording.manifest.dropped
    if dropped.get("steps") or dropped.get("samples"):
        steps = steps.clear()
    of_engine = (samples["engine"] == engine).fill_null(False)
    shared = of_a_server(recording, engine)
    shares = share_energy(curve, window, steps, samples.filter(of_engine), shared=shared)
    joules = np.full(samples.height, np.nan)
    joules[of_engine.to_numpy()] = shares.samples
    samples = samples.with_columns(pl.Series("energy_j", joules).fill_nan(None))
    part = _part_of(shares) if shared else 1.0
    part = 1.0 if part is None and asked else part
    idle = None if shares.idle is None or part is None else shares.idle * part
    rows = _by_problem(rows, samples, idle)
    energy = _numbers(curve, shares, rows, part)
    slowed = pl.when(~pl.col("slowed")).then("energy_j")
    return energy, samples, rows.with_columns(energy_j=slowed)


def run_window(problems: pl.DataFrame, samples: pl.DataFrame) -> Window | None:
    """Return the first arrival and the last end of a run, None where there are none."""
    ends = pl.concat([problems["end"], problems["decided_at"], samples["end"]]).drop_nulls()
    starts = problems["arrival"].drop_nulls()
    if not ends.len() or not starts.len():
        return None
    return int(starts.to_numpy().min()), int(ends.to_numpy().max())


def run_energy(recording: Recording, engine: str) -> tuple[Curve, Window] | None:
    """Return an engine's energy curve and window, None where not known or several share it."""
    if len(recording.manifest.engines) != 1:
        return None
    window = run_window(recording.problems, recording.samples)
    curve = _curve(recording, engine, window)
    return None if isinstance(curve, str) or window is None else (curve, window)


def _mean_w(curve: Curve) -> float:
    rise = curve.joules[-1] - curve.joules[0]
    return float(rise / (curve.seconds[-1] - curve.seconds[0]))


def of_one_kind(power: pl.DataFrame) -> pl.DataFrame:
    """The GPUs' readings when there are any, else the host's; never both added."""
    of_gpus = power.filter(kind="nvml")
    return of_gpus if of_gpus.height else power.filter(kind="rapl")


def _curve(recording: Recording, engine: str, window: Window | None) -> Curve | str:
    power = of_one_kind(recording.frame("power"))
    if power.is_empty():
        return _trouble(recording) or NOT_RECORDED
    if window is None:
        return "no problem ended"
    wanted = recording.manifest.engines[engine].num_devices
    read = power.select("host", "device").unique().height
    if power["kind"][0] == "nvml" and read != wanted:
        reason = f"{read} devices were read, the engine has {wanted}"
    else:
        curve = energy_curve(power, window)
        if isinstance(curve, Curve):
            return curve
        reason = curve
    trouble = _trouble(recording)
    return reason if trouble is None else f"{reason} ({trouble})"


def _trouble(recording: Recording) -> str | None:
    """Return what the power probe said when it gave up."""
    details = recording.frame("events")["detail"].drop_nulls().to_list()
    said = (text.removeprefix("power: ") for text in details if text.startswith("power: "))
    return next(said, None)


def _by_problem(rows: pl.DataFrame, samples: pl.DataFrame, idle: float | None) -> pl.DataFrame:
    complete = pl.col("energy_j").is_not_null().all()
    sums = samples.group_by("problem").agg(pl.when(complete).then(pl.col("energy_j").sum()))
    part = None if idle is None else idle / max(rows.height, 1)
    return rows.join(sums, on="problem", how="left", maintain_order="left").with_columns(
        energy_j=pl.col("energy_j") + pl.lit(part, pl.Float64)
    )


def _part_of(shares: EnergyShares) -> float | None:
    """Return the part of what steps drew that samples have, None where it is not known."""
    attributed, drawn = float(np.nansum(shares.samples)), float(np.nansum(shares.steps))
    return min(attributed / drawn, 1.0) if attributed > 0 and drawn > 0 else None


def _numbers(curve: Curve, shares: EnergyShares, rows: pl.DataFrame, part: float | None) -> Energy:
    decided = rows["state"] == "decided"
    total = None if part is None else shares.total * part
    over = partial(_over, total, rows["energy_j"])
    if (rows["state"] == "in_flight").any():  # their tokens and answers are not known
        over = partial(_over, total, None)
    idle = shares.idle
    return Energy(
        total=Estimate(value=shares.total, unit="J"),
        per_token=over(rows["tokens"], "J/token"),
        per_problem=over(decided, "J"),
        per_correct=over(rows["correct"].set(~decided, 0.0), "J"),
        idle=None if idle is None else Estimate(value=idle, unit="J"),
        idle_share=None if idle is None else Estimate(value=idle / shares.total, unit="1"),
        mean_w=Estimate(value=_mean_w(curve), unit="W"),
        max_w=Estimate(value=curve.max_w, unit="W"),
        kind=curve.kind,
        method=curve.method,
    )


def _over(
    total: float | None, joules: pl.Series | None, counts: pl.Series, unit: str
) -> Estimate | None:
    """Return total / counts; an interval over problems where each problem's energy is known."""
    below = counts.cast(pl.Float64)
    if total is None or joules is None or below.null_count() or not below.sum():
        return None
    value = total / float(below.sum())
    if joules.null_count():
        return Estimate(value=value, unit=unit)
    drawn = ratio(joules.to_numpy(), below.to_numpy(), unit)
    if drawn is None or drawn.low is None or drawn.high is None:
        return Estimate(value=value, unit=unit)
    low, high = min(drawn.low, value), max(drawn.high, value)
    return Estimate(value=value, low=low, high=high, unit=unit)


# The energy drawn up to a moment, from the readings of a run's devices.
#
# A device that counts its energy is taken at its counter, any other at the integral of its power by
# the trapezoidal rule; between two readings the power is the mean of that time.
# Whatever the readings leave open (they do not reach the run's ends, they pause for seconds) is
# said as a reason instead of a number.


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
    kind: str
    method: Method
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
    curves = []
    devices = power.sort("host", "device", "time").group_by("host", "device", maintain_order=True)
    for (_, device), readings in devices:
        curve = _device_curve(readings, window[0], length)
        if isinstance(curve, str):
            return f"{device}: {curve}"
        curves.append(curve)
    if not curves:
        return NOT_RECORDED
    grid = np.unique(np.concatenate([each.seconds for each in curves] + [np.array([0.0, length])]))
    grid = grid[(grid >= 0) & (grid <= length)]
    joules = np.sum([np.interp(grid, each.seconds, each.joules) for each in curves], axis=0)
    if joules[-1] <= joules[0]:
        return "the counters did not move"
    by_power = any(each.method == "power" for each in curves)
    return Curve(
        seconds=grid,
        joules=np.asarray(joules, dtype=float),
        kind=power["kind"][0],
        method="power" if by_power else "counter",
        max_w=_highest(curves, grid, joules, length),
    )


def _device_curve(readings: pl.DataFrame, start_ns: int, length: float) -> _Device | str:
    drawn = _series(readings, "watts", start_ns)
    counted = _series(readings, "energy_j", start_ns)
    watts = drawn if drawn[0].size > 1 else None
    reason = "it gave neither energy nor power"
    if counted[0].size > 1 and (reason := _uncovered(counted[0], length)) == "":
        by_counter = _from_counter(counted, drawn, length)
        if not isinstance(by_counter, str):
            return _Device(*_reach(*by_counter, length), "counter", watts)
        reason = by_counter
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
    sound = readings.select(pl.col("time") - start_ns, column).drop_nulls()
    sound = sound.filter(pl.col(column).is_finite() & (pl.col(column) >= 0))
    sound = sound.unique("time", keep="last", maintain_order=True)
    seconds = sound["time"].to_numpy().astype(float) / 1e9
    return seconds, sound[column].to_numpy().astype(float)


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
        updates = times[moved]
        is_covered = moved.size > 1 and not _uncovered(updates, length)
        keep = moved if is_covered else np.unique(np.concatenate(([0], moved, [times.size - 1])))
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


# What the devices draw by what they do: idle, and while steps run.


STRETCH_S: Final = 1.0  # GPU counters move every 20 to 100 ms (docs/energy.md)
FEWEST: Final = 24  # stretches, which are shorter in a short run


@dataclass(frozen=True, kw_only=True)
class PowerTable:
    """Stretches of a recording, each a row of seconds, seconds of steps, and request-seconds.

    `amounts` [stretches, 3] and the `joules` [stretches] that all devices drew.
    """

    amounts: Floats
    joules: Floats


_STEPS: Final = ("engine", "end", "wall_ns", "interval_ns", "prefill_requests", "decode_requests")


def power_table(recording: Recording, key: str) -> PowerTable | None:
    """Return the stretches of an engine's recording, None where power or steps are unknown.

    They reach from the first arrival to the last end. Of an engine of several replicas the joules
    are those of one.
    """
    energy = run_energy(recording, key)
    if energy is None or recording.manifest.dropped.get("steps"):
        return None
    curve, window = energy
    replicas = recording.manifest.engines[key].data_parallel_size
    steps = recording.frame("steps", _STEPS).filter(pl.col("engine") == key).sort("end")
    steps = steps.drop_nulls(["end", "prefill_requests", "decode_requests"])
    samples = recording.samples.filter(pl.col("engine") == key)
    steps = steps.with_columns(took=step_ns(steps, samples) / 1e9).filter(pl.col("took") > 0)
    if steps.is_empty():
        return None
    start, end = window
    ended = (steps["end"].to_numpy() - start) / 1e9
    took = steps["took"].to_numpy()
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
        joules=curve.between(edges[:-1], edges[1:]) / replicas,
    )
