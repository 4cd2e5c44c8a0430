"""Energy of a run: what its devices drew, and which samples and problems it was drawn for.

The energy of a step is what was drawn while it ran; it is shared among the step's samples by
their tokens, as its time is (traces/shares.py). What was drawn outside every step is idle.
Samples + idle = the energy from the run's first arrival to its last end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from traces.power_curve import Curve, Window, energy_curve
from traces.recording import Recording
from traces.schema import Estimate, Record
from traces.shares import share
from traces.statistics import Floats, ratio

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
    curve: Curve, window: Window, steps: pl.DataFrame, samples: pl.DataFrame
) -> EnergyShares:
    """Share the energy of a window among one engine's steps (in order) and its samples.

    A step runs from the end of the step before, or from its own start where the engine had been
    idle, to its end; the part outside the window does not count.
    """
    length = (window[1] - window[0]) / 1e9
    total = float(curve.between(np.array([0.0]), np.array([length]))[0])
    nowhere = np.full(samples.height, np.nan)
    if not steps.height or steps["end"].null_count():
        return EnergyShares(
            total=total, idle=None, steps=np.full(steps.height, np.nan), samples=nowhere
        )
    time = pl.coalesce("interval_ns", "wall_ns").fill_null(0)
    begun, ended = (
        steps.select(column).to_series().to_numpy().astype(float) / 1e9
        for column in (pl.col("end") - window[0] - time, pl.col("end") - window[0])
    )
    ended = np.maximum.accumulate(np.clip(ended, 0.0, length))
    before = np.concatenate(([0.0], ended[:-1]))
    begun = np.clip(np.maximum(begun, before), 0.0, ended)
    drawn = curve.between(begun, ended)
    gaps = curve.between(np.append(before, ended[-1]), np.append(begun, length))
    return EnergyShares(
        total=total, idle=float(gaps.sum()), steps=drawn, samples=share(drawn, steps, samples)
    )


def attribute_energy(
    recording: Recording,
    engine: str,
    window: Window | None,
    *,
    alone: bool,
    steps: pl.DataFrame,
    samples: pl.DataFrame,
    rows: pl.DataFrame,
) -> tuple[Energy, pl.DataFrame, pl.DataFrame]:
    """Return a run's energy, and its samples and problem rows with a column `energy_j`.

    A sample's is its share of the steps; a problem's is its samples' plus an equal part of idle,
    so that the mean over problems is the total over problems. Null where it is not known, as for
    problems that the profiler slowed. `alone` says that no other run shares the recording.
    """
    power, kind = of_one_kind(recording.frame("power"))
    curve = _curve(recording, engine, power, kind, window)
    if isinstance(curve, Curve) and not alone:
        curve = "several runs of the recording share its devices"
    unknown = pl.lit(None, pl.Float64).alias("energy_j")
    if isinstance(curve, str) or window is None:
        reason = curve if isinstance(curve, str) else None
        return Energy(reason=reason), samples.with_columns(unknown), rows.with_columns(unknown)
    dropped = recording.manifest.dropped
    if dropped.get("steps") or dropped.get("samples"):
        steps = steps.clear()
    own = (samples["engine"] == engine).fill_null(False)
    shares = share_energy(curve, window, steps, samples.filter(own))
    joules = np.full(samples.height, np.nan)
    joules[own.to_numpy()] = shares.samples
    samples = samples.with_columns(pl.Series("energy_j", joules).fill_nan(None))
    rows = _by_problem(rows, samples, shares.idle)
    energy = _numbers(curve, shares, kind, rows)
    slowed = pl.when(~pl.col("slowed")).then("energy_j")
    return energy, samples, rows.with_columns(energy_j=slowed)


def run_window(problems: pl.DataFrame, samples: pl.DataFrame) -> Window | None:
    """Return the first arrival and the last end of a run, None where there are none."""
    ends = pl.concat([problems["end"], problems["decided_at"], samples["end"]]).drop_nulls()
    starts = problems["arrival"].drop_nulls()
    if not ends.len() or not starts.len():
        return None
    return int(starts.to_numpy().min()), int(ends.to_numpy().max())


def mean_power_w(recording: Recording, engine: str) -> float | None:
    """Return the power of an engine's devices from the first arrival to the last end, in watts.

    By counter or by power, of GPUs or of the processor, as in `Energy.mean_w`; None where that is
    not known, or where several engines share the recording.
    """
    found = run_energy(recording, engine)
    return None if found is None else _mean_w(found[0])


def run_energy(recording: Recording, engine: str) -> tuple[Curve, Window] | None:
    """Return the energy curve of an engine's devices over its run and the run's window.

    None where that is not known, or where several engines share the recording.
    """
    if len(recording.manifest.engines) != 1:
        return None
    window = run_window(recording.problems, recording.samples)
    power, kind = of_one_kind(recording.frame("power"))
    curve = _curve(recording, engine, power, kind, window)
    return None if isinstance(curve, str) or window is None else (curve, window)


def _mean_w(curve: Curve) -> float:
    rise = curve.joules[-1] - curve.joules[0]
    return float(rise / (curve.seconds[-1] - curve.seconds[0]))


def of_one_kind(power: pl.DataFrame) -> tuple[pl.DataFrame, str | None]:
    """The GPUs' readings when there are any, else the host's; never both added."""
    kinds = power["kind"].unique().to_list()
    kind = next((name for name in ("nvml", "rapl") if name in kinds), None)
    return power.filter(pl.col("kind") == (kind or "")), kind


def _curve(
    recording: Recording,
    engine: str,
    power: pl.DataFrame,
    kind: str | None,
    window: Window | None,
) -> Curve | str:
    if kind is None:
        return _trouble(recording) or NOT_RECORDED
    if window is None:
        return "no problem ended"
    wanted = recording.manifest.engines[engine].num_devices
    read = power.select("host", "device").unique().height
    if kind == "nvml" and read != wanted:
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
    known = pl.col("energy_j").is_not_null().all()
    sums = samples.group_by("problem").agg(pl.when(known).then(pl.col("energy_j").sum()))
    part = None if idle is None else idle / max(rows.height, 1)
    return rows.join(sums, on="problem", how="left", maintain_order="left").with_columns(
        energy_j=pl.col("energy_j") + pl.lit(part, pl.Float64)
    )


def _numbers(curve: Curve, shares: EnergyShares, kind: str | None, rows: pl.DataFrame) -> Energy:
    decided = rows["state"] == "decided"
    over = partial(_over, shares.total, rows["energy_j"])
    if (rows["state"] == "in_flight").any():  # their tokens and answers are not known
        over = partial(_over, shares.total, None)
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
        kind=kind,
        method=curve.method,
    )


def _over(total: float, joules: pl.Series | None, counts: pl.Series, unit: str) -> Estimate | None:
    """Return total / counts; an interval over problems where each problem's energy is known."""
    below = counts.cast(pl.Float64)
    if joules is None or below.null_count() or not below.sum():
        return None
    value = total / float(below.sum())
    if joules.null_count():
        return Estimate(value=value, unit=unit)
    drawn = ratio(joules.to_numpy(), below.to_numpy(), unit)
    if drawn is None or drawn.low is None or drawn.high is None:
        return Estimate(value=value, unit=unit)
    low, high = min(drawn.low, value), max(drawn.high, value)
    return Estimate(value=value, low=low, high=high, unit=unit)
