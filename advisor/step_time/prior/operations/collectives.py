"""What several GPUs say to one another: all-reduces, dispatch and combine, stages of a pipeline."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import polars as pl

from advisor.step_time.operators.tables import interpolated
from advisor.step_time.prior.operations.times import BYTES_SPREAD, GPU_SPREAD, CallTimes
from advisor.step_time.prior.tables import BYTES_PER_ELEMENT, PriorTables
from traces.errors import TablesError
from traces.statistics import Floats

DISPATCH: Final = ("all_gather", "reduce_scatter")
HALF: Final = "half"  # NCCL's name for 16 bits


def dispatched(tables: PriorTables, hidden: int, group: int) -> CallTimes:
    """Return [rows, (tokens of all ranks, seconds)] of handing tokens to experts and back.

    As vLLM's own way (`allgather_reducescatter`) does: all ranks gather the tokens of all, and the
    sums of their experts are scattered. The table's sizes are of what is gathered.
    """
    times = [_nccl(tables, name, group) for name in DISPATCH]
    tokens = np.append(0.0, 2.0 ** np.arange(17))
    size = tokens * hidden * BYTES_PER_ELEMENT
    rows = np.column_stack([tokens, sum(interpolated(each.rows, size) for each in times)])
    first = times[0]
    return CallTimes(rows=rows, rule=first.rule, spread=first.spread)


@lru_cache(maxsize=32)
def _nccl(tables: PriorTables, name: str, group: int) -> CallTimes:
    """Return [rows, (bytes, seconds)] of one of NCCL's collectives in a group.

    A group of more GPUs than a node has, or than were measured, also takes its bytes between nodes.
    """
    for there in (tables, *tables.others):
        if there.nccl is None:
            continue
        table = there.nccl.filter(pl.col("op_name") == name, pl.col("nccl_dtype") == HALF)
        sizes = sorted(table["num_gpus"].unique())
        if not sizes:
            continue
        own = min((each for each in sizes if each >= group), default=sizes[-1])
        kept = table.filter(num_gpus=own).group_by("message_size").agg(pl.col("seconds").min())
        rows = kept.sort("message_size").select("message_size", "seconds").to_numpy().astype(float)
        rows[:, 0] *= BYTES_PER_ELEMENT
        found = CallTimes(rows=rows)
        if there is not tables:
            ratio = float(there.node.get("intra_node_bw", 1)) / float(
                tables.node.get("intra_node_bw") or there.node.get("intra_node_bw", 1)
            )
            rows[:, 1] = rows[0, 1] + (rows[:, 1] - rows[0, 1]) * ratio
            found = found.by_rule(f"dispatch and combine: those of {there.system}", GPU_SPREAD)
        across = float(tables.node.get("inter_node_bw") or 0.0)
        if group > own and across:
            rows[:, 1] += rows[:, 0] * (1 - own / group) / across
            found = found.by_rule(
                f"dispatch and combine of {group} GPUs: as of {own}, and bytes between nodes",
                BYTES_SPREAD,
            )
        return found
    raise TablesError(
        f"{tables.system}: no table of NCCL's collectives (comm/nccl). Set "
        "engine.data_parallel_size=1"
    )


def handed_on(tables: PriorTables, hidden: int, counts: Floats) -> CallTimes:
    """Return [rows, (tokens, seconds)] of giving a stage's output to the next one of a pipeline."""
    latency = float(tables.node.get("p2p_latency") or tables.kernel_s)
    speed = float(tables.node.get("intra_node_bw") or tables.bandwidth_bytes_per_s)
    seconds = latency + counts * hidden * 2 * BYTES_PER_ELEMENT / speed  # values and residual
    return CallTimes(
        rows=np.column_stack([counts, seconds]),
        rule="between stages of a pipeline: bytes at the speed of the links",
        spread=BYTES_SPREAD,
    )
