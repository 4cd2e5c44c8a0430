"""Layers that keep a state of a request: gated delta nets, Kimi delta attention, Mamba."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from advisor.step_time.prior.operations.attention import MeasuredMixer
from advisor.step_time.prior.operations.times import BYTES_SPREAD, GPU_SPREAD, SHAPE_SPREAD
from advisor.step_time.prior.tables import PriorTables, between
from traces.schema.layers import State
from traces.statistics import Floats

KDA: Final = ("kda", "kda_perf.parquet")
GDN: Final = ("linear_attention", "gdn_perf.parquet")
KERNELS: Final = 3  # of a Mamba layer: convolution, state, gated norm
ONE: Final = np.ones(1)


def keeping(tables: PriorTables, state: State, size: int, *, delta: bool) -> MeasuredMixer:
    """Return what a layer does with its state, heads shared among `size` GPUs.

    `delta` says that it is Kimi's delta attention. What no table has (Mamba, convolutions alone) is
    a rule: the state is read and written once, at the bandwidth.
    """
    if state.kind != "linear_attention":
        return _by_bytes(tables, state, size)
    family, name = KDA if delta else GDN
    for there in (tables, *tables.others):
        table = there.rows(family, name)
        if table is not None:
            return _measured(tables, there, table, state, size)
    return _by_bytes(tables, state, size)


def _measured(
    tables: PriorTables, there: PriorTables, table: pl.DataFrame, state: State, size: int
) -> MeasuredMixer:
    """Return the times of a table's kernels, linear in heads between measured ones."""
    heads = state.heads / size
    measured_heads = np.array(sorted(table["num_v_heads"].unique()), dtype=float)
    rules = []
    width = float(table["head_k_dim"][0] * table["head_v_dim"][0])
    head_values = state.values / state.heads
    scale = head_values / width
    if not measured_heads[0] <= heads <= measured_heads[-1] or scale != 1.0:
        scale *= max(heads / measured_heads[-1], 1.0)
        rule = f"linear attention of {heads:g} heads: by the bytes of its state"
        rules.append((rule, SHAPE_SPREAD))
    moving = computing = 1.0
    if there is not tables:
        rule = f"linear attention: that of {there.system} by bandwidth and peak"
        rules.append((rule, GPU_SPREAD))
        moving = there.bandwidth_bytes_per_s / tables.bandwidth_bytes_per_s
        computing = there.peak("bfloat16") / tables.peak("bfloat16")
    batches, decode = _phase(table, "generation", heads, measured_heads)
    lengths, prompts = _phase(table, "context", heads, measured_heads)
    return MeasuredMixer(
        batches=batches,
        contexts=ONE,
        bounded=True,
        grid=(decode * scale * moving)[:, None],
        lengths=lengths,
        prompts=prompts * scale * computing,
    ).by_rules(rules)


def _phase(table: pl.DataFrame, phase: str, heads: float, known: Floats) -> tuple[Floats, Floats]:
    """Return requests that decode, or the lengths of a prompt, with the seconds of all kernels.

    Of kernels that do the same, the one that takes least counts: an engine runs one of them.
    """
    kept = table.filter(phase=phase)
    by = "batch_size"
    if phase == "context":
        kept, by = kept.filter(batch_size=1), "seq_len"
    step = pl.when(pl.col("kernel_source").str.contains("conv1d")).then(0).otherwise(1)
    kept = kept.group_by("num_v_heads", step.alias("step"), "kernel_source", by).agg(
        pl.col("seconds").mean()
    )
    kept = kept.group_by("num_v_heads", "step", by).agg(pl.col("seconds").min())
    sums = kept.group_by("num_v_heads", by).agg(pl.col("seconds").sum()).sort(by)
    total: Floats | None = None
    counts: Floats = np.array(sorted(sums[by].unique()), dtype=float)
    for at, share in between(known, heads):
        part = sums.filter(num_v_heads=int(known[at]))
        seconds = share * np.interp(counts, part[by].to_numpy(), part["seconds"].to_numpy())
        total = seconds if total is None else total + seconds
    assert total is not None
    return counts, total


def _by_bytes(tables: PriorTables, state: State, size: int) -> MeasuredMixer:
    """Return what reading and writing the state takes, and of a prompt its FLOPs."""
    moved = 2.0 * (state.size_bytes or 4.0 * state.values) / size
    start = KERNELS * tables.kernel_s
    batches = np.geomspace(1.0, 1024.0, 11)
    lengths = np.append(1.0, 16.0 * 4.0 ** np.arange(6))
    tokens = np.maximum(
        state.flops / size * lengths / tables.peak("bfloat16"),
        2.0 * 2 * (state.values / 128 + state.convolved_values) / size * lengths
        / tables.bandwidth_bytes_per_s,
    )  # fmt: skip
    return MeasuredMixer(
        batches=batches,
        contexts=ONE,
        bounded=True,
        grid=(start + moved * batches / tables.bandwidth_bytes_per_s)[:, None],
        lengths=lengths,
        prompts=start + moved / tables.bandwidth_bytes_per_s + tokens,
    ).by_rule(f"{state.kind} layers: the bytes of their state and their FLOPs", BYTES_SPREAD)
