"""The experts that tokens are routed to: one fused kernel in vLLM, with its quantisation."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from advisor.step_time.operators.grids import growing
from advisor.step_time.prior.operations.times import (
    GPU_SPREAD,
    PRECISION_SPREAD,
    PRECISIONS,
    SHAPE_SPREAD,
    CallTimes,
    LeastWork,
    Precision,
    carried,
    precision_of,
)
from advisor.step_time.prior.tables import PriorTables
from traces.errors import TablesError
from traces.statistics import Floats

FAMILY, TABLE = "moe", "moe_perf.parquet"
# What of the tables is in the form of weights that a model has, and then what is nearest to it.
OWN: Final = {
    "bfloat16": ("bfloat16",), "fp8": ("fp8",), "fp8_block": ("fp8_block",), "mxfp8": (),
    "int8": (), "nvfp4": ("nvfp4",), "mxfp4": ("w4a16_mxfp4", "w4a8_mxfp4_mxfp8"),
    "int4": ("int4_wo",),
}  # fmt: skip
NEAR: Final = {
    "fp8": ("fp8_block",), "fp8_block": ("fp8",), "mxfp8": ("fp8_block", "fp8"),
    "int8": ("fp8", "fp8_block"), "nvfp4": ("w4a16_mxfp4", "int4_wo"),
    "mxfp4": ("int4_wo", "nvfp4"), "int4": ("w4a16_mxfp4",),
}  # fmt: skip
FORMS: Final = {
    "int4_wo": PRECISIONS["int4"],
    "w4a16_mxfp4": PRECISIONS["mxfp4"],
    "w4a8_mxfp4_mxfp8": replace(PRECISIONS["mxfp4"], peak="fp8"),
}
# Which experts tokens visit: the tables have them balanced, and two power laws. The milder one is
# what is told, and the others are how far off it may be.
ROUTING: Final = "power_law_1.01"
OTHERS: Final = ("balanced", "power_law_1.2")
BOUNDED: Final = ("fp8", "fp8_block")  # take no longer than bfloat16
SLOW: Final = 2.0
ENOUGH: Final = 0.5  # of the most counts of tokens, that a shape or a routing was measured at
USUAL: Final = (8.0, 1024.0)  # tokens of steps that the spread of the routing is taken over
TRUE: Final = 0.4  # of the roofline of a uniform choice: less is no time of all the work
# Kernels that were given the experts of each token: their times lack the kernel that chooses them.
GIVEN: Final = ("vllm_fused_moe", "vllm_marlin_int4_moe", "vllm_flashinfer_trtllm_moe_fp4")
LOGIT_BYTES: Final = 4  # of an expert and token, which that kernel reads in float32
Key = tuple[int, int, int, int, int, int]  # a shape, by the columns KEY
KEY: Final = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")


class Shape(NamedTuple):
    """Experts of a layer: a token visits `active` of `total`; `width` is that of one expert.

    `tensor` GPUs share each expert, `expert` GPUs all of them. All but `gated` are as the tables
    name a shape (KEY).
    """

    hidden: int
    width: int
    active: int
    total: int
    tensor: int = 1
    expert: int = 1
    gated: bool = True

    def work(self, form: Precision) -> LeastWork:
        """Return what one GPU does with all tokens of a step, by a choice that is uniform."""
        weights = (3 if self.gated else 2) * self.hidden * self.width / self.tensor
        local = self.total / self.expert

        def moved(tokens: Floats) -> Floats:
            visited = local * (1 - (1 - self.active / self.total) ** tokens)
            rows = tokens * self.active / self.expert
            values = rows * (2 * self.hidden + 2 * self.width / self.tensor)
            return np.asarray(visited * weights * form.parameter_bytes + 2.0 * values, dtype=float)

        return LeastWork(
            bytes=moved,
            flops=lambda tokens: 2.0 * tokens * self.active / self.expert * weights,
            peak=form.peak,
        )


def routed(tables: PriorTables, shape: Shape, form: str) -> CallTimes:
    """Return [rows, (tokens of all ranks, seconds)] of a layer's experts on one GPU.

    Raises TablesError where no GPU has a table of experts, or for a form that no rule prices.
    """
    form = precision_of(form)
    choices = (*OWN[form], *NEAR.get(form, ()), "bfloat16")
    for there in (tables, *tables.others):
        found = _on(tables, there, shape, form, choices)
        if found is not None:
            plain = (
                _on(tables, there, shape, "bfloat16", ("bfloat16",)) if form in BOUNDED else None
            )
            return found if plain is None else _bounded(found, plain, form)
    raise TablesError(
        f"{tables.system}: no table of experts ({FAMILY}/{TABLE}) is there for any GPU. Use a "
        "dense model"
    )


def _bounded(found: CallTimes, plain: CallTimes, form: str) -> CallTimes:
    """Return times of experts in a narrow form that take no longer than those in bfloat16.

    An engine has kernels of several kinds, and a table perhaps one that no engine takes: so where
    it takes `SLOW` times as long.
    """
    counts = found.rows[:, 0]
    most = np.interp(counts, *plain.rows.T) * np.maximum(counts / plain.rows[-1, 0], 1.0)
    usual = (counts >= USUAL[0]) & (counts <= USUAL[1])
    if not usual.any() or np.median(found.rows[usual, 1] / most[usual]) < SLOW:
        return found
    rows = np.column_stack([counts, np.minimum(found.rows[:, 1], most)])
    rule = f"experts in {form}: no longer than in bfloat16, which their table exceeds"
    return replace(found, rows=rows).by_rule(rule, PRECISION_SPREAD)


def _on(
    tables: PriorTables, there: PriorTables, shape: Shape, form: str, choices: tuple[str, ...]
) -> CallTimes | None:
    """Return the times by a system's tables, None where it has none."""
    wanted = shape[:6]
    versions = there.versions_of(FAMILY, TABLE)
    for dtype in choices:
        own = dtype in OWN[form]
        with_dtype = [v for v in versions if dtype in _forms(there, v)]
        if not with_dtype:
            continue
        exact = [v for v in with_dtype if wanted in _shapes(there, v, dtype)]
        version = (exact or with_dtype)[0]
        near = wanted if exact else _nearest(_shapes(there, version, dtype), wanted)
        rows, routing = _table(there, version, dtype, near)
        found = CallTimes(rows=rows, routing=routing)
        if exact and own and there is tables:
            return found
        before = Shape(*near, gated=shape.gated)
        measured = FORMS.get(dtype) or PRECISIONS[dtype]
        asked = measured if own else PRECISIONS[form]
        found = CallTimes(
            rows=carried(rows, before.work(measured), shape.work(asked), tables, there),
            routing=routing,
        )
        if not exact:
            found = found.by_rule(
                f"{_words(shape)}: as {_words(before)}, by bytes and FLOPs", SHAPE_SPREAD
            )
        if not own:
            found = found.by_rule(
                f"experts in {form}: those in {dtype} by bytes and peak", PRECISION_SPREAD
            )
        if there is not tables:
            found = found.by_rule(
                f"experts: those of {there.system} by bandwidth and peak", GPU_SPREAD
            )
        return found
    return None


def _words(shape: Shape) -> str:
    split = f", TP {shape.tensor}" * (shape.tensor > 1) + f", EP {shape.expert}" * (
        shape.expert > 1
    )
    return f"{shape.active} of {shape.total} experts of {shape.hidden:,} x {shape.width:,}{split}"


def _nearest(shapes: frozenset[Key], wanted: Key) -> Key:
    """Return the measured shape nearest in the logs of what a GPU holds and does."""

    def logs(key: Key) -> Floats:
        hidden, width, active, total, tensor, expert = key
        return np.log([hidden, width / tensor, active, total / expert, expert])

    own = logs(wanted)
    return min(sorted(shapes), key=lambda each: float(np.abs(logs(each) - own).sum()))


@lru_cache(maxsize=16)
def _read(tables: PriorTables, version: str) -> pl.DataFrame:
    found = tables.rows(FAMILY, TABLE, version)
    assert found is not None  # it is one of its versions
    return found


@lru_cache(maxsize=32)
def _forms(tables: PriorTables, version: str) -> frozenset[str]:
    return frozenset(_read(tables, version)["moe_dtype"].unique())


@lru_cache(maxsize=64)
def _shapes(tables: PriorTables, version: str, dtype: str) -> frozenset[Key]:
    """Return the shapes that were measured, but for those whose measuring ended early."""
    table = _read(tables, version).filter(moe_dtype=dtype)
    counts = table.group_by(KEY).agg(pl.col("num_tokens").n_unique())
    whole = counts.filter(pl.col("num_tokens") >= ENOUGH * pl.col("num_tokens").max())
    return frozenset(whole.select(KEY).iter_rows())


@lru_cache(maxsize=128)
def _table(tables: PriorTables, version: str, dtype: str, key: Key) -> tuple[Floats, float]:
    """Return [rows, (tokens, seconds)], and how far off (log of time) other routings are.

    Of several kernels the fastest counts: an engine runs one of them. What beats the roofline did
    not run. Raises TablesError where nothing else is there.
    """
    kept = _read(tables, version).filter(moe_dtype=dtype, **dict(zip(KEY, key, strict=True)))
    shape = Shape(*key)
    work = shape.work(FORMS.get(dtype) or PRECISIONS[dtype])
    least = TRUE * work.seconds(tables, kept["num_tokens"].to_numpy().astype(float))
    kept = kept.filter(pl.col("seconds") >= pl.Series(least))
    if "kernel_source" in kept.columns:
        choosing = LOGIT_BYTES * shape.total / tables.bandwidth_bytes_per_s * pl.col("num_tokens")
        chosen = pl.col("kernel_source").is_in(GIVEN).fill_null(False)
        kept = kept.with_columns(
            seconds=pl.col("seconds")
            + pl.when(chosen).then(tables.kernel_s + choosing).otherwise(0)
        )
    by = kept.group_by("distribution", "num_tokens").agg(pl.col("seconds").min())
    names = set(by["distribution"])
    if not names:
        raise TablesError(f"{tables.system}: all times of experts of {key} beat the roofline")
    most = max(len(by.filter(distribution=name)) for name in names)
    ordered = (ROUTING, *reversed(OTHERS), *sorted(names))
    names = {name for name in names if len(by.filter(distribution=name)) >= ENOUGH * most}
    own = next(name for name in ordered if name in names)

    def rows(name: str) -> Floats:
        part = by.filter(distribution=name).sort("num_tokens")
        found = part.select("num_tokens", "seconds").to_numpy().astype(float)
        found[:, 1] = growing(found[:, 1])
        return found

    found = rows(own)
    usual = found[(found[:, 0] >= USUAL[0]) & (found[:, 0] <= USUAL[1])]
    off = [
        float(np.mean(np.abs(np.log(np.interp(usual[:, 0], *rows(name).T) / usual[:, 1]))))
        for name in OTHERS
        if name in names and len(usual)
    ]
    return found, max(off, default=0.0)
