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


def series(steps: pl.DataFrame, num_gpu_blocks: int | None, bins: int) -> Series | None:
    """Return the steps of one engine over time, None when there are none.

    vLLM keeps one block for itself, so the share is of `num_gpu_blocks` - 1.
    """
    steps = steps.drop_nulls("end")
    if not steps.height or bins < 1:
        return None
    ends = steps["end"].to_numpy()
    start = int(ends[0]) - int(steps["wall_ns"][0] or 0)
    span = max(int(ends.max()) - start, 1)
    edges = start + np.linspace(0, span, bins + 1).astype(np.int64)
    place = np.clip((ends - start) * bins // (span + 1), 0, bins - 1)
    batch = steps.select(pl.col("prefill_requests") + pl.col("decode_requests")).to_series()
    batch = batch.fill_null(steps["running"])
    tokens = steps.select(OUTPUT_TOKENS).to_series()
    first = np.full(bins, -1, dtype=np.int64)
    first[place[::-1]] = np.arange(steps.height - 1, -1, -1)
    usable = None if num_gpu_blocks is None else num_gpu_blocks - 1
    blocks = _highest(steps["kv_blocks"], place, bins)
    return Series(
        edges_ns=edges,
        batch=_highest(batch, place, bins),
        waiting=_highest(steps["waiting"], place, bins),
        kv_share=blocks / usable if usable else np.full(bins, np.nan),
        tokens_per_s=_summed(tokens, place, bins) / (span / bins / 1e9),
        first_step=first,
    )


def _highest(values: pl.Series, place: NDArray[np.int64], bins: int) -> Floats:
    numbers = values.cast(pl.Float64).to_numpy()
    found = np.full(bins, -np.inf)
    known = ~np.isnan(numbers)
    np.maximum.at(found, place[known], numbers[known])
    return np.where(np.isfinite(found), found, np.nan)


def _summed(values: pl.Series, place: NDArray[np.int64], bins: int) -> Floats:
    numbers = values.cast(pl.Float64).to_numpy()
    known = ~np.isnan(numbers)
    total = np.bincount(place[known], weights=numbers[known], minlength=bins)
    seen = np.bincount(place[known], minlength=bins) > 0
    return np.where(seen, total, np.nan)
