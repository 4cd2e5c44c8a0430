"""Where profiled time went: kernel families and collectives, summed over the profiled steps."""

from __future__ import annotations

import json
from dataclasses import dataclass

import polars as pl

from traces.schema import Record


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
class DeviceTime(Record):
    """Device-seconds inside the profiled windows, summed over ranks: with work, and without.

    `steps` is how many engine steps the windows hold, `slowdown` how many times as long as the
    steps before they took, and `cost_share` what windows cost of the run's time; None where that
    was not measured, as in an imported trace.
    """

    busy_s: float
    idle_s: float
    idle_share: float
    windows: int
    steps: int
    ranks: int
    slowdown: float | None = None
    cost_share: float | None = None


def device_time(
    events: pl.DataFrame, engine: str, cost_share: float | None = None
) -> DeviceTime | None:
    """Return how busy the devices were in the windows of `events`; None without windows.

    A window's row has its device-nanoseconds in `detail` as `busy_ns` and `idle_ns`; each rank
    has a row of its own.
    """
    rows = events.filter(pl.col("kind").eq("window") & pl.col("engine").eq(engine))
    details = [json.loads(text) for text in rows["detail"].drop_nulls()]
    busy = sum(detail.get("busy_ns") or 0 for detail in details) / 1e9
    idle = sum(detail.get("idle_ns") or 0 for detail in details) / 1e9
    if busy + idle <= 0:
        return None
    steps: dict[int, int] = {}
    for detail in details:
        number = detail.get("window") or 0
        steps[number] = max(steps.get(number, 0), detail.get("steps") or 0)
    profiled, usual = (
        sum(d.get(name) or 0 for d in details) for name in ("profiled_ns", "usual_ns")
    )
    return DeviceTime(
        busy_s=busy,
        idle_s=idle,
        idle_share=idle / (busy + idle),
        windows=len(steps),
        steps=sum(steps.values()),
        ranks=round(len(details) / len(steps)),
        slowdown=profiled / usual if profiled and usual else None,
        cost_share=cost_share,
    )


def _ranks(kernels: pl.DataFrame) -> int:
    return max(kernels["rank"].n_unique(), 1)


def time_by_family(kernels: pl.DataFrame) -> tuple[FamilyTime, ...] | None:
    """Return the families by falling time, None when no kernels were captured."""
    own = kernels.select("family", time=pl.coalesce("self_time", "time")).drop_nulls()
    total = float(own["time"].sum())
    if not own.height or total <= 0:
        return None
    sums = (
        own.group_by("family").agg(pl.sum("time")).sort("time", "family", descending=[True, False])
    )
    ranks = _ranks(kernels)
    return tuple(
        FamilyTime(family=family, s=time / ranks / 1e9, share=time / total)
        for family, time in sums.iter_rows()
    )


def top_kernels(kernels: pl.DataFrame, count: int = 5) -> tuple[KernelTime, ...] | None:
    """Return the most expensive kernels by own time, None when no kernels were captured."""
    own = kernels.with_columns(own=pl.coalesce("self_time", "time")).drop_nulls("own")
    total = float(own["own"].sum())
    if not own.height or total <= 0:
        return None
    sums = (
        own.group_by("name", "family")
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
    """Return the collectives by falling time, None when no kernels were captured.

    Bytes and exposed time are None where a part of them is not known.
    """
    if not kernels.height:
        return None
    found = kernels.drop_nulls("collective")
    ranks = _ranks(kernels)

    def whole(column: str) -> pl.Expr:
        return pl.when(pl.col(column).is_not_null().all()).then(pl.col(column).sum()).alias(column)

    sums = (
        found.group_by("collective", "group_size")
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
