"""Where profiled time went: kernel families and collectives, summed over the profiled steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import polars as pl

from traces.recording.tables import WINDOW, WindowDetail
from traces.recording.window_cost import WindowCost
from traces.schema.estimate import Estimate
from traces.schema.record import Record
from traces.statistics import Z95, Floats
from traces.summary.energy import Window, run_window


@dataclass(frozen=True, kw_only=True)
class FamilyTime(Record):
    """Seconds of one family of kernels, per rank, and its share of all kernel time."""

    family: str
    s: float
    share: float


@dataclass(frozen=True, kw_only=True)
class KernelTime(Record):
    """One kernel or operator: calls and seconds per rank, and its share of all kernel time."""

    name: str
    family: str
    calls: float
    s: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Collective(Record):
    """One kind of collective: calls, bytes, seconds and seconds not hidden by compute, per rank.

    `busbw_bytes_per_s` is nccl-tests' bus bandwidth, what a link carries: bytes / s times
    2 (n - 1) / n for an all-reduce and (n - 1) / n for the others that move a share to every rank
    (NVIDIA/nccl-tests, doc/PERFORMANCE.md). Waiting for a late rank counts as time.
    """

    name: str
    group_size: int | None
    calls: float
    bytes: float | None
    s: float
    exposed_s: float | None
    busbw_bytes_per_s: float | None = None


_SHARED = {"all_gather", "reduce_scatter", "all_to_all"}
_WHOLE = {"broadcast", "reduce"}


def bus_bandwidth(name: str, size: float | None, seconds: float, ranks: int | None) -> float | None:
    """Return bytes per second that each link carries, None where a part of it is not known."""
    if size is None or ranks is None or ranks < 2 or seconds <= 0:
        return None
    moved = (ranks - 1) / ranks
    factors = {"all_reduce": 2 * moved} | dict.fromkeys(_SHARED, moved) | dict.fromkeys(_WHOLE, 1.0)
    factor = factors.get(name)
    return None if factor is None else factor * size / seconds


@dataclass(frozen=True, kw_only=True)
class WindowSteps(Record):
    """Which steps a profiled window holds, `first` to `last`, or why that is `unknown`."""

    window: int
    first: int | None = None
    last: int | None = None
    unknown: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceTime(Record):
    """Device-seconds inside the profiled windows, summed over ranks: with work, and without.

    `steps` is how many engine steps the windows hold, `held` which of the recorded ones these are,
    `slowdown` how many times as long as the steps before they took, and `cost_share` what windows
    cost of the run's time; None where that was not measured, as in an imported trace.
    """

    busy_s: float
    idle_s: float
    idle_share: float
    windows: int
    steps: int
    ranks: int
    slowdown: float | None = None
    cost_share: float | None = None
    held: tuple[WindowSteps, ...] = ()


def device_time(
    events: pl.DataFrame,
    engine: str,
    cost_share: float | None = None,
    kernels: pl.DataFrame | None = None,
) -> DeviceTime | None:
    """Return how busy the devices were in the windows of `events`; None without windows.

    A window's row has its device-nanoseconds in `detail` as `busy_ns` and `idle_ns`; each rank
    has a row of its own. `kernels` are the engine's, by whose steps it is known which a window
    holds.
    """
    rows = events.filter(pl.col("kind").eq(WINDOW) & pl.col("engine").eq(engine))
    details = [msgspec.json.decode(text, type=WindowDetail) for text in rows["detail"].drop_nulls()]
    busy = sum(detail.busy_ns or 0 for detail in details) / 1e9
    idle = sum(detail.idle_ns or 0 for detail in details) / 1e9
    if busy + idle <= 0:
        return None
    steps: dict[int, int] = {}
    for detail in details:
        number = detail.window or 0
        steps[number] = max(steps.get(number, 0), detail.steps or 0)
    profiled = sum(detail.profiled_ns or 0 for detail in details)
    usual = sum(detail.usual_ns or 0 for detail in details)
    return DeviceTime(
        busy_s=busy,
        idle_s=idle,
        idle_share=idle / (busy + idle),
        windows=len(steps),
        steps=sum(steps.values()),
        ranks=round(len(details) / len(steps)),
        slowdown=profiled / usual if profiled and usual else None,
        cost_share=cost_share,
        held=() if kernels is None else _held(details, kernels),
    )


NOT_TOLD = "the recording does not say"


def _held(details: Sequence[WindowDetail], kernels: pl.DataFrame) -> tuple[WindowSteps, ...]:
    """Return of each window which recorded steps it holds, by its kernels' or as its row says."""
    placed = kernels.drop_nulls(["window_id", "step"]).group_by("window_id")
    ranges = {
        window: (first, last)
        for window, first, last in placed.agg(
            pl.col("step").min().alias("first"), pl.col("step").max().alias("last")
        ).iter_rows()
    }
    by_window: dict[int, WindowSteps] = {}
    for detail in details:
        window, first, last = detail.window or 0, detail.first_step, detail.last_step
        if first is None or last is None:
            first, last = ranges.get(window, (None, None))
        unknown = None
        if first is None:
            unknown = detail.steps_unknown or detail.error or NOT_TOLD
        if (
            window not in by_window or by_window[window].first is None
        ):  # a rank that knows is enough
            by_window[window] = WindowSteps(window=window, first=first, last=last, unknown=unknown)
    return tuple(by_window.values())


def _ranks(kernels: pl.DataFrame) -> int:
    return max(kernels["rank"].n_unique(), 1)


def time_by_family(kernels: pl.DataFrame) -> tuple[FamilyTime, ...] | None:
    """Return the families by falling time, None when no kernels were captured."""
    timed = kernels.select("family", time=pl.coalesce("self_time", "time")).drop_nulls()
    total = float(timed["time"].sum())
    if not timed.height or total <= 0:
        return None
    sums = (
        timed.group_by("family")
        .agg(pl.sum("time"))
        .sort("time", "family", descending=[True, False])
    )
    ranks = _ranks(kernels)
    return tuple(
        FamilyTime(family=family, s=time / ranks / 1e9, share=time / total)
        for family, time in sums.iter_rows()
    )


def top_kernels(kernels: pl.DataFrame, count: int = 5) -> tuple[KernelTime, ...] | None:
    """Return the most expensive kernels by own time, None when no kernels were captured."""
    timed = kernels.with_columns(own=pl.coalesce("self_time", "time")).drop_nulls("own")
    total = float(timed["own"].sum())
    if not timed.height or total <= 0:
        return None
    sums = (
        timed.group_by("name", "family")
        .agg(pl.col("count").fill_null(1).sum(), pl.sum("own"))
        .sort("own", "name", descending=[True, False])
        .head(count)
    )
    ranks = _ranks(kernels)
    return tuple(
        KernelTime(name=name, family=family, calls=n / ranks, s=ns / ranks / 1e9, share=ns / total)
        for name, family, n, ns in sums.iter_rows()
    )


def collectives(kernels: pl.DataFrame) -> tuple[Collective, ...] | None:
    """Return the collectives by falling time, None without kernels; unknown sums are None."""
    if not kernels.height:
        return None
    rows = kernels.drop_nulls("collective")
    ranks = _ranks(kernels)

    def whole(column: str) -> pl.Expr:
        return pl.when(pl.col(column).is_not_null().all()).then(pl.col(column).sum()).alias(column)

    sums = (
        rows.group_by("collective", "group_size")
        .agg(
            pl.col("count").fill_null(1).sum(),
            whole("bytes"),
            pl.col("time").sum(),
            whole("exposed_time"),
        )
        .sort("time", descending=True)
    )
    return tuple(
        Collective(
            name=row["collective"],
            group_size=row["group_size"],
            calls=row["count"] / ranks,
            bytes=None if row["bytes"] is None else row["bytes"] / ranks,
            s=row["time"] / ranks / 1e9,
            exposed_s=None if row["exposed_time"] is None else row["exposed_time"] / ranks / 1e9,
            busbw_bytes_per_s=bus_bandwidth(
                row["collective"], row["bytes"], row["time"] / 1e9, row["group_size"]
            ),
        )
        for row in sums.iter_rows(named=True)
    )


# A run's times without what the profiler's windows cost, and what a reader must know of that.


def sample_times(rows: pl.DataFrame, samples: pl.DataFrame, windows: WindowCost) -> pl.DataFrame:
    """Return `problem` and the times of `WindowTimes.of_samples` for a run's frames."""
    decided = rows.filter(pl.col("state") == "decided")
    return pl.DataFrame(WindowTimes(rows=decided, windows=windows).of_samples(samples))


@dataclass(frozen=True, kw_only=True)
class WindowTimes:
    """Takes the cost of `windows` out of the times of a run's decided problems, `rows`."""

    rows: pl.DataFrame
    windows: WindowCost

    @property
    def as_measured(self) -> bool:
        """Whether the cost is known of no problem: then all times have it in them."""
        return bool(self.rows["as_measured"].any())

    def estimate(self, found: Estimate | None) -> Estimate | None:
        """Mark a number that has the cost in it."""
        if found is None or not self.as_measured:
            return found
        return dataclasses.replace(found, extrapolated=True)

    def spread(
        self, found: Mapping[str, Estimate | None], sds: Floats
    ) -> dict[str, Estimate | None]:
        """Widen intervals by the standard errors of what was taken out, as if all erred alike."""
        finite = sds[np.isfinite(sds)]
        more = Z95 * float(finite.mean()) if finite.size else 0.0
        return {name: self.estimate(_wider(each, more)) for name, each in found.items()}

    def of_samples(self, samples: pl.DataFrame) -> dict[str, Any]:
        """Return the times of each sample of decided problems, seconds, and their standard errors.

        `ttft` is from arrival to first token, `tpot` = (end - first_token) / (output_tokens - 1)
        of samples with more than one token, `prefill` from the first scheduling to the first
        token, `decode` from there to the end, and `e2e` is all. A time is left out where the cost
        of a step that it met is not known, unless all are as measured.
        """
        timed = self.rows.filter(pl.col("latency_s").is_not_null() | pl.col("cost_unknown"))
        frame = samples.filter(pl.col("role").fill_null("sample") == "sample").join(
            timed.select("problem"), on="problem", how="semi", maintain_order="left"
        )
        parts = (
            ("ttft", "arrival", "first_token"),
            ("tpot", "first_token", "end"),
            ("prefill", "scheduled", "first_token"),
            ("decode", "first_token", "end"),
            ("e2e", "arrival", "end"),
        )
        more = pl.when(pl.col("output_tokens") > 1).then(pl.col("output_tokens") - 1)
        times = frame.select(
            pl.col("problem", "arrival", "scheduled", "first_token", "end").fill_null(0),
            more.cast(pl.Float64).alias("tokens"),
            *(((pl.col(end) - pl.col(begin)) / 1e9).alias(name) for name, begin, end in parts),
        )
        columns: dict[str, Any] = {"problem": times["problem"].to_numpy()}
        for name, begin, end in parts:
            since, until = (times[each].to_numpy() for each in (begin, end))
            per = times["tokens"].to_numpy() if name == "tpot" else 1.0  # null is nan
            took = times[name].to_numpy(writable=True)
            took -= self.windows.within_s(since, until)
            if not self.as_measured:
                took[self.windows.unknown(since, until)] = np.nan
            columns[f"{name}_s"] = took / per
            columns[f"{name}_sd_s"] = self.windows.sd_within_s(since, until) / per
        return columns

    def throughput(self, tokens: float | None, window: Window | None) -> Estimate | None:
        """Return generated tokens over the time from the first arrival to the last end.

        Marked where windows are in that time whose cost is not known. Unknown while problems are
        in flight (their tokens are).
        """
        if tokens is None or window is None:
            return None
        since, until = (np.array([each]) for each in window)
        seconds = (window[1] - window[0]) / 1e9 - float(self.windows.within_s(since, until)[0])
        marked = bool(self.windows.unknown(since, until)[0])
        if seconds <= 0:
            return None
        return Estimate(value=tokens / seconds, unit="tokens/s", extrapolated=marked)

    def notes(self, opened: int) -> list[str]:
        """Say what became of the time that windows cost; `opened` says how many were read."""
        window = run_window(self.rows, self.rows)
        if window is None:
            return []
        since, until = (np.array([each]) for each in window)
        touched, unknown = (int(self.rows[each].sum()) for each in ("slowed", "cost_unknown"))
        notes = []
        if touched > unknown:
            taken = float(self.windows.within_s(since, until)[0])
            more = Z95 * float(self.windows.sd_within_s(since, until)[0])
            share = taken / ((window[1] - window[0]) / 1e9)
            notes.append(
                f"kernel windows touched {touched:,} of {self.rows.height:,} problems. What they "
                f"cost, {taken:.3g} s [{taken - more:.3g}, {taken + more:.3g}] or {share:.1%} of "
                "the run, is taken out of its times"
            )
        if self.as_measured:
            notes.append(
                "kernel windows touched every problem, and too few steps alike show what they "
                "cost. Times marked * have it in them"
            )
        elif unknown:
            notes.append(f"problems slowed by the profiler, their times left out: {unknown:,}")
        if opened and not self.windows.places.size:
            notes.append(
                "kernel windows were open, and without steps it is not known whom they slowed. "
                "Times are as measured"
            )
        return notes


def _wider(found: Estimate | None, more: float) -> Estimate | None:
    if found is None or not more:
        return found
    low, high = found.low, found.high
    if low is not None:
        low = found.value - float(np.hypot(found.value - low, more))
    if high is not None:
        high = found.value + float(np.hypot(found.value - high, more))
    return dataclasses.replace(found, low=low, high=high).at_least(0.0)
