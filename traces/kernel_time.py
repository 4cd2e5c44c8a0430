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
class Collective(Record):
    """One kind of collective: calls, bytes, seconds and seconds not hidden by compute, per rank."""

    name: str
    group_size: int | None
    calls: float
    bytes: float | None
    s: float
    exposed_s: float | None


@dataclass(frozen=True, kw_only=True)
class DeviceTime(Record):
    """Device-seconds inside the profiled windows, summed over ranks: with work, and without."""

    busy_s: float
    idle_s: float
    idle_share: float


def device_time(events: pl.DataFrame, engine: str) -> DeviceTime | None:
    """Return how busy the devices were in the windows of `events`; None without windows.

    A window's row has its device-nanoseconds in `detail` as `busy_ns` and `idle_ns`.
    """
    windows = events.filter(pl.col("kind").eq("window") & pl.col("engine").eq(engine))
    details = [json.loads(text) for text in windows["detail"].drop_nulls()]
    busy = sum(detail.get("busy_ns") or 0 for detail in details) / 1e9
    idle = sum(detail.get("idle_ns") or 0 for detail in details) / 1e9
    if busy + idle <= 0:
        return None
    return DeviceTime(busy_s=busy, idle_s=idle, idle_share=idle / (busy + idle))


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
        )
        for row in sums.iter_rows(named=True)
    )
