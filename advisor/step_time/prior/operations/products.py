"""Matrix products, by the form in which their weights are stored.

The tables' times of quantised products include the kernel that quantises the activations.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import polars as pl

from advisor.step_time.operators.grids import fill_beyond, growing, to_grid
from advisor.step_time.prior.operations.times import (
    PRECISION_SPREAD,
    PRECISIONS,
    CallTimes,
    LeastWork,
    carried,
    precision_of,
)
from advisor.step_time.prior.tables import PriorTables, between
from traces.statistics import Floats

# The forms that a table may have for each, the nearest first. bfloat16 is in every table.
NEAREST: Final = {
    "bfloat16": (),
    "fp8": ("fp8",),
    "fp8_block": ("fp8_block", "fp8"),
    "mxfp8": ("fp8",),
    "int8": ("fp8",),
    "nvfp4": ("nvfp4",),
    "mxfp4": (),
    "int4": (),
    "float32_cores": (),
}
ON_GPU: Final = (
    "products of FP8 blocks where their table has the host's time: as FP8 with one scale"
)
ENOUGH: Final = 0.1  # of the times of the form with most of them
FEW: Final = 64  # tokens of products that no GPU is busy with
LAUNCHED: Final = 4.0  # times the usual time of the nearest form, when few tokens: the host's time
HIDDEN: Final = 1.5  # times it, up to which a measured time may be the host's


def product(tables: PriorTables, n: int, k: int, form: str = "bfloat16") -> CallTimes:
    """Return the seconds of tokens x k times k x n, weights in `form`.

    Raises TablesError for a form that no rule prices.
    """
    form = precision_of(form)
    forms = _measured(tables)
    for near in NEAREST[form]:
        if near in forms:
            found = CallTimes(rows=_table(tables, near, n, k))
            if near != form:
                rule = f"products in {form}: as those in {near}"
                return found.by_rule(rule, PRECISION_SPREAD)
            return found.by_rule(ON_GPU, PRECISION_SPREAD) if forms[near] else found
    plain = _table(tables, "bfloat16", n, k)
    if form == "bfloat16":
        return CallTimes(rows=plain)
    rows = carried(plain, _work(n, k, "bfloat16"), _work(n, k, form), tables)
    rule = f"products in {form.removesuffix('_cores')}: those in bfloat16 by bytes and peak"
    return CallTimes(rows=rows).by_rule(rule, PRECISION_SPREAD)


def _work(n: int, k: int, form: str) -> LeastWork:
    kind = PRECISIONS[form]
    return LeastWork(
        bytes=lambda m: n * k * kind.parameter_bytes + 2.0 * m * (n + k),
        flops=lambda m: 2.0 * m * n * k,
        peak=kind.peak,
    )


@lru_cache(maxsize=32)
def _gemm(tables: PriorTables) -> pl.DataFrame:
    """Return the seconds of every form and shape; those that are the host's marked `launched`.

    Products of FP8 blocks were measured launched one by one, where Python takes longer to launch
    them than the GPU to compute them: so do all kernels that take `LAUNCHED` times as long as FP8
    with one scale while there are few tokens. What takes no longer than they usually do then may be
    the host's time, and that of FP8 with one scale stands for it.
    """
    rows = tables.read("gemm")
    by = ["gemm_dtype", "kernel_source"] if "kernel_source" in rows.columns else ["gemm_dtype"]
    few = rows.filter(pl.col("m") <= FEW).group_by(by).agg(floor=pl.col("seconds").median())
    plain = few.filter(gemm_dtype="fp8")["floor"].min()
    rows = rows.join(few, on=by, how="left")
    shapes = ["n", "k", "m"]
    near = rows.filter(gemm_dtype="fp8").group_by(shapes).agg(near=pl.col("seconds").mean())
    slow = pl.lit(False) if plain is None else pl.col("floor") > LAUNCHED * pl.lit(plain)
    launched = (
        (pl.col("gemm_dtype") == "fp8_block")
        & slow.fill_null(False)
        & (pl.col("seconds") < HIDDEN * pl.col("floor"))
        & pl.col("near").is_not_null()
    )
    rows = rows.join(near, on=shapes, how="left").with_columns(launched=launched)
    own = pl.min_horizontal("seconds", "near")
    rows = rows.with_columns(seconds=pl.when("launched").then(own).otherwise("seconds"))
    return rows.group_by("gemm_dtype", *shapes).agg(
        pl.col("seconds").mean(), pl.col("launched").any()
    )


@lru_cache(maxsize=32)
def _measured(tables: PriorTables) -> dict[str, bool]:
    """Return the forms of a table, and whether times of some stand for the host's.

    A form that was measured at few shapes says nothing of others.
    """
    forms = _gemm(tables).group_by("gemm_dtype").agg(pl.col("launched").any(), size=pl.len())
    forms = forms.filter(pl.col("size") >= ENOUGH * pl.col("size").max())
    return dict(forms.select("gemm_dtype", "launched").iter_rows())


@lru_cache(maxsize=64)
def _grid(tables: PriorTables, form: str) -> tuple[list[Floats], Floats]:
    rows = _gemm(tables).filter(gemm_dtype=form)
    knots, grid = to_grid(
        rows.select("n", "k", "m").to_numpy().astype(float), rows["seconds"].to_numpy()
    )
    fill_beyond(grid, knots, (0, 1), hold=False)
    return knots, grid


def _table(tables: PriorTables, form: str, n: int, k: int) -> Floats:
    """Return [rows, (tokens, seconds)] of one form.

    Linear in n and in k between measured ones, which is exact for a launch and a price per byte or
    FLOP; beyond the largest in proportion, below the smallest held. No less than reading the
    weights, which an engine's other layers push out of the cache that a lone product keeps them in.
    """
    (ns, ks, tokens), grid = _grid(tables, form)
    beyond = max(n / ns[-1], 1.0) * max(k / ks[-1], 1.0)
    seconds = np.zeros(len(tokens))
    for i, a in between(ns, float(n)):
        for j, b in between(ks, float(k)):
            seconds += a * b * grid[i, j]
    known = ~np.isnan(seconds)
    reading = n * k * PRECISIONS[form].parameter_bytes / tables.peak_bandwidth
    seconds = np.maximum(beyond * growing(seconds[known]), reading)
    return np.column_stack([tokens[known], seconds])
