"""What only moves values: norms, activations, rotary positions, embedding, sampling."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from advisor.step_time.prior.operations.times import (
    BYTES_SPREAD,
    GPU_SPREAD,
    SHAPE_SPREAD,
    CallTimes,
)
from advisor.step_time.prior.tables import PriorTables
from traces.statistics import Floats

# The least that sampling moves for each logit: read in bfloat16, written and read in float32.
SAMPLER_BYTES: Final = 10
SAMPLER_KERNELS: Final = 3
# Sampling within top_p (or top_k) sorted all logits until SORTED_UNTIL: vLLM's authors measured
# 1.07 ms for 64 rows of 131,072 on a B200 and 2.40 ms for 128 (pull request 40376). A row is sorted
# by itself, so that a GPU's bandwidth says little of it.
SORTED_UNTIL: Final = (0, 17)  # of vLLM
SORT_S: Final = 1.35e-10  # of a logit
SORT_RULE: Final = "sampling within top_p: what sorting the logits took vLLM's authors on a B200"
SORT_SPREAD: Final = 0.3


def sorts_logits(version: tuple[int, int] | None) -> bool:
    """Whether a vLLM is known to sort all logits for top_p."""
    return version is not None and version < SORTED_UNTIL


def moving(tables: PriorTables, counts: Floats, size: float, *, kernels: int = 1) -> Floats:
    """Return [rows, (count, seconds)] of kernels that move `size` bytes for each of a count."""
    seconds = kernels * tables.kernel_s + counts * size / tables.bandwidth_bytes_per_s
    return np.column_stack([counts, seconds])


def connected(tables: PriorTables, hidden: int, count: int) -> CallTimes:
    """Return [rows, (tokens, seconds)] of a layer's hyper-connections, which mix `count` streams.

    As the table has them (before and after both parts of a layer); the rule is their bytes.
    """
    for there in (tables, *tables.others):
        table = there.rows("mhc", "mhc_module_perf.parquet")
        if table is None:
            continue
        sizes = sorted(table["hidden_size"].unique())
        nearest = min(sizes, key=lambda each: abs(np.log(each / hidden)))
        kept = table.filter(hidden_size=nearest).group_by("op_name", "num_tokens")
        sums = kept.agg(pl.col("seconds").min()).group_by("num_tokens").agg(pl.col("seconds").sum())
        rows = sums.sort("num_tokens").select("num_tokens", "seconds").to_numpy().astype(float)
        times = CallTimes(rows=rows)
        if there is not tables:
            ratio = there.bandwidth_bytes_per_s / tables.bandwidth_bytes_per_s
            times = CallTimes(rows=rows * [1.0, ratio]).by_rule(
                f"hyper-connections: those of {there.system} by bandwidth", GPU_SPREAD
            )
        return (
            times
            if nearest == hidden
            else times.by_rule(
                f"hyper-connections of hidden size {hidden:,}: as of {nearest:,}", SHAPE_SPREAD
            )
        )
    rows = moving(tables, np.geomspace(1.0, 2.0**14, 15), 4.0 * 2 * hidden * count, kernels=4)
    return CallTimes(rows=rows).by_rule("hyper-connections: the bytes they move", BYTES_SPREAD)
