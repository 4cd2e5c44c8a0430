"""A recording over time: batch, KV cache, queue and tokens per second, in as many bins as fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.statistics import Floats

OUTPUT_TOKENS = pl.col("decode_requests") + pl.col("accepted").list.sum().fill_null(0)


@dataclass(frozen=True, kw_only=True)
class Series:
    """Equal bins of time; nan where no step ended.

    `edges_ns` has one entry more than the bins (unix nanoseconds). `batch` (requests in the
    step), `waiting` and `kv_share` (of the allocated blocks) are the highest of a bin;
    `tokens_per_s` the tokens that decoding gave in it over its length. `first_step` is the
    position of each bin's first step in the table of steps, -1 where none ended.
    """

    edges_ns: NDArray[np.int64]
    batch: Floats
    waiting: Floats
    kv_share: Floats
    tokens_per_s: Floats
    first_step: NDArray[np.int64]

    @property
    def bins(self) -> int:
        """How many bins there are."""
        return int(self.batch.size)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The steps of one engine as arrays, from which any stretch is binned without a copy.

    `ends_ns` ascend; `positions` are those in the table of steps. `tokens_before` has one entry
    more: the tokens that decoding gave before each step. The gauges are nan where not recorded.
    """

    start_ns: int
    ends_ns: NDArray[np.int64]
    positions: NDArray[np.int32]
    batch: NDArray[np.float32]
    waiting: NDArray[np.float32]
    kv_blocks: NDArray[np.float32]
    usable_blocks: int | None
    tokens_before: Floats
    tokens_known: bool

    @property
    def end_ns(self) -> int:
        """When the last step ended."""
        return int(self.ends_ns[-1])

    @classmethod
    def of(cls, steps: pl.DataFrame, num_gpu_blocks: int | None) -> Timeline | None:
        """Return the steps of one engine, None when there are none.

        vLLM keeps one block for itself, so the share is of `num_gpu_blocks` - 1.
        """
        ends = steps["end"]
        positions = np.flatnonzero(ends.is_not_null().to_numpy()).astype(np.int32)
        if not positions.size:
            return None
        if positions.size < steps.height:
            steps = steps.filter(ends.is_not_null())
        ends = steps["end"]
        times = ends.to_numpy()
        if not ends.is_sorted():
            times = np.maximum.accumulate(times)
        start = int(times[0]) - int(steps["wall_ns"][0] or 0)
        batch = pl.coalesce(pl.col("prefill_requests") + pl.col("decode_requests"), "running")
        tokens = steps.select(OUTPUT_TOKENS.cast(pl.Float64)).to_series()
        before = np.zeros(steps.height + 1)
        np.cumsum(tokens.fill_null(0.0).to_numpy(), out=before[1:])
        return cls(
            start_ns=start,
            ends_ns=times,
            positions=positions,
            batch=_gauge(steps, batch),
            waiting=_gauge(steps, pl.col("waiting")),
            kv_blocks=_gauge(steps, pl.col("kv_blocks")),
            usable_blocks=None if num_gpu_blocks is None else num_gpu_blocks - 1,
            tokens_before=before,
            tokens_known=tokens.null_count() < steps.height,
        )

    def bins(self, bins: int, start_ns: int | None = None, end_ns: int | None = None) -> Series:
        """Return a stretch of time, the whole if not given, in equal bins; at least one."""
        start = self.start_ns if start_ns is None else start_ns
        end = max(self.end_ns if end_ns is None else end_ns, start + 1)
        edges = start + np.linspace(0, end - start, max(bins, 1) + 1).astype(np.int64)
        place = np.searchsorted(self.ends_ns, edges, side="right")
        if start <= self.start_ns:
            place[0] = 0
        begin, until = place[:-1], place[1:]
        some = until > begin
        seconds = np.diff(edges) / 1e9
        made = self.tokens_before[until] - self.tokens_before[begin]
        rate = np.divide(made, seconds, out=np.zeros_like(made), where=seconds > 0)
        first = np.full(some.size, -1, dtype=np.int64)
        first[some] = self.positions[begin[some]]
        return Series(
            edges_ns=edges,
            batch=_highest(self.batch, begin, until, some),
            waiting=_highest(self.waiting, begin, until, some),
            kv_share=_highest(self.kv_blocks, begin, until, some) / (self.usable_blocks or np.nan),
            tokens_per_s=np.where(some & self.tokens_known, rate, np.nan),
            first_step=first,
        )

    def step_at(self, time_ns: int) -> int:
        """Return the position of the step that runs at a time, or ends next after it."""
        place = int(np.searchsorted(self.ends_ns, time_ns, side="left"))
        return int(self.positions[min(place, self.positions.size - 1)])


def series(steps: pl.DataFrame, num_gpu_blocks: int | None, bins: int) -> Series | None:
    """Return the steps of one engine over time, None when there are none."""
    found = Timeline.of(steps, num_gpu_blocks)
    return None if found is None or bins < 1 else found.bins(bins)


def _gauge(steps: pl.DataFrame, values: pl.Expr) -> NDArray[np.float32]:
    return steps.select(values.cast(pl.Float32)).to_series().to_numpy()


def _highest(
    values: NDArray[np.float32],
    begin: NDArray[np.intp],
    until: NDArray[np.intp],
    some: NDArray[np.bool_],
) -> Floats:
    """Return the highest number of each stretch, nan where there is none."""
    found = np.full(some.size, np.nan)
    if some.any():
        # Stretches that are not empty follow one another, so each ends where the next begins.
        last = until[some][-1]
        found[some] = np.fmax.reduceat(values[:last], begin[some])
    return found
