"""Attention that was measured as a whole layer: latent (MLA), sparse, and compressed attention.

Their tables have one time for all of a layer's attention, matrix products included, of a model with
so many heads. Here the products of that model are taken out again, so that a step with prompts and
decoding requests reads its weights once, and the asked model's own products in their own precision
stand beside what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import polars as pl

from advisor.step_time.prior.operations.attention import MeasuredMixer, decoding_grid
from advisor.step_time.prior.operations.products import product
from advisor.step_time.prior.operations.times import GPU_SPREAD, SHAPE_SPREAD
from advisor.step_time.prior.tables import PriorTables, at_heads
from traces.errors import TablesError
from traces.schema.layers import Attention
from traces.statistics import Floats

Shapes = Sequence[tuple[str, int, int]]  # name, outputs and inputs of products on one GPU

GIVEN_BACK: Final = ("o_proj", "o_b_proj")  # products whose outputs have the hidden size
LEAST: Final = 0.1  # of a layer's time that is left without its products, at the least
# Some tables of latent attention were measured kernel by kernel, where launches leave gaps that a
# CUDA graph does not have. gb300 was measured both ways (0.24 and 0.27): the gaps are of so many
# seconds by requests, whatever the context and the heads.
GAPS: Final = np.array([(1, 39e-6), (8, 50e-6), (32, 56e-6), (128, 60e-6), (512, 66e-6)])
GAPLESS: Final = 45e-6  # above the shortest time of a table in graphs (28 us; 57 us with gaps)


@dataclass(frozen=True, kw_only=True)
class Module:
    """Tables of whole layers: their family, how files are named, and the model whose they are.

    `hidden` is that model's hidden size. `latent` are the widths of its latents, of queries and of
    keys with their positions, and of a head's queries and values, where its products follow from
    them.
    """

    family: str
    kind: str
    model: str | None
    hidden: int
    form: str | None = None  # the only one of its products
    latent: tuple[int, int, int, int] | None = None

    @property
    def decode(self) -> str:
        return f"{self.kind}_generation_module_perf.parquet"

    @property
    def prompt(self) -> str:
        return f"{self.kind}_context_module_perf.parquet"

    def products(self, heads: int, hidden: int, asked: Shapes) -> list[tuple[int, int]]:
        """Return outputs and inputs of the products in the table, of so many heads.

        Where they do not follow from `latent` they are the `asked` model's, between heads and the
        hidden size of the table's.
        """
        if self.latent is not None:
            query, key, of_query, of_value = self.latent
            return [
                (query + key, self.hidden), (heads * of_query, query),
                (self.hidden, heads * of_value),
            ]  # fmt: skip
        back = [name.endswith(GIVEN_BACK) for name, _, _ in asked]
        return [
            (self.hidden if is_back else outputs,
             self.hidden if inputs == hidden and not is_back else inputs)
            for is_back, (_, outputs, inputs) in zip(back, asked, strict=True)
        ]  # fmt: skip


LATENT: Final = (
    Module(  # DeepSeek-V3
        family="mla", kind="mla", model=None, hidden=7168, latent=(1536, 512 + 64, 128 + 64, 128)
    ),
)  # fmt: skip
SPARSE: Final = (
    Module(
        family="sparse_attention", kind="dsa", model="deepseek-ai/DeepSeek-V3.2", hidden=7168
    ),
    Module(family="sparse_attention", kind="dsa", model="zai-org/GLM-5", hidden=6144),
)  # fmt: skip
INDEXED: Final = (Module(family="msa", kind="msa", model=None, hidden=6144),)
_V4: Final = (("Flash", 4096), ("Pro", 7168))
COMPRESSED, HEAVY = (
    tuple(
        Module(
            family="sparse_attention", kind=kind, model=f"sgl-project/DeepSeek-V4-{name}-FP8",
            hidden=hidden, form="fp8_block",
        )
        for name, hidden in _V4
    )
    for kind in ("dsv4_csa", "dsv4_hca")
)  # fmt: skip


def modules_of(attention: Attention) -> tuple[Sequence[Module], str | None]:
    """Return the tables of a layer's attention, none where it is that of heads, and any rule."""
    if attention.latent is not None:
        if attention.top_k is None:
            return LATENT, None
        rule = "layers that use the choice of an earlier one: as with an index"
        return SPARSE, rule if attention.index_dim is None else None
    if attention.top_k is not None and attention.kind == "full_attention":
        return INDEXED, None
    if attention.kind == "compressed_attention":
        return (HEAVY if attention.top_k is None else COMPRESSED), None
    if attention.one_entry:
        return HEAVY, "windows beside compressed attention: as attention compressed 128 to 1"
    return (), None


def whole_layer(
    tables: PriorTables,
    modules: Sequence[Module],
    heads: int,
    hidden: int,
    products: Shapes,
    form: str,
    *,
    kv_fp8: bool,
    rule: str | None = None,
) -> MeasuredMixer:
    """Return a layer's attention without the products in the table, which are there in one `form`.

    `products` are the asked model's. `heads` are those of one GPU. Raises TablesError
    where no GPU has such a table.
    """
    nearest = sorted(modules, key=lambda each: abs(np.log(each.hidden / hidden)))
    there, module = _where(tables, nearest)
    family = module.family.replace("_", " ")
    rules = [] if rule is None else [(rule, SHAPE_SPREAD)]
    if module.hidden != hidden:
        note = f"{family} of hidden size {hidden:,}: as of {module.hidden:,}"
        rules.append((note, SHAPE_SPREAD))
    if there is not tables:
        rules.append((f"{family}: that of {there.system} by bandwidth and peak", GPU_SPREAD))
    moving = there.bandwidth_bytes_per_s / tables.bandwidth_bytes_per_s
    computing = there.peak("bfloat16") / tables.peak("bfloat16")
    measured = module.form or ("bfloat16" if form == "bfloat16" else "fp8_block")
    decode = _of(there, module, module.decode, heads, measured, kv_fp8)
    if modules is LATENT and _rows(there, module, module.decode)["seconds"].gt(GAPLESS).all():
        decode[:, 2] = np.maximum(
            decode[:, 2] - np.interp(decode[:, 0], *GAPS.T), LEAST * decode[:, 2]
        )
        note = "latent attention: less the gaps between kernels, which graphs do not have"
        rules.append((note, SHAPE_SPREAD))
    prompt_rows = _of(there, module, module.prompt, heads, measured, kv_fp8)
    batches, contexts, grid = decoding_grid(there, decode)
    alone = prompt_rows[prompt_rows[:, 0] == 1, 1:]
    inside = module.products(heads, hidden, products)
    grid = _less(there, grid.T, batches, inside, measured).T
    prompts = _less(there, alone[:, 1], alone[:, 0], inside, measured)
    return MeasuredMixer(
        batches=batches,
        contexts=contexts,
        grid=grid * moving,
        lengths=alone[:, 0],
        prompts=np.maximum.accumulate(prompts) * computing,
    ).by_rules(rules)


def _less(
    tables: PriorTables,
    seconds: Floats,
    tokens: Floats,
    products: Sequence[tuple[int, int]],
    form: str,
) -> Floats:
    """Return times [.., tokens] of layers without their products, some of them at the least."""
    spent = np.zeros(len(tokens))
    for outputs, inputs in products:
        rows = product(tables, outputs, inputs, form).rows
        spent += np.interp(tokens, *rows.T)
    return np.maximum(seconds - spent, LEAST * seconds)


def _where(tables: PriorTables, modules: Sequence[Module]) -> tuple[PriorTables, Module]:
    """Return the system, this one or the nearest to it, that has the first of some tables."""
    for there in (tables, *tables.others):
        for module in modules:
            files = (module.decode, module.prompt)
            if not any(_rows(there, module, name).is_empty() for name in files):
                return there, module
    first = modules[0]
    raise TablesError(
        f"{tables.system}: no table {first.family}/{first.decode}, {first.family}/{first.prompt}, "
        "for any GPU. Ask about another model (--model-config)"
    )


@lru_cache(maxsize=32)
def _rows(tables: PriorTables, module: Module, name: str) -> pl.DataFrame:
    table = tables.rows(module.family, name)
    if table is None:
        return pl.DataFrame()
    if module.model is not None:
        table = table.filter(model=module.model)
    return table.filter(step=0) if "context" in name else table


def _of(
    tables: PriorTables, module: Module, name: str, heads: int, form: str, kv_fp8: bool
) -> Floats:
    """Return [rows, (batch, length, seconds)] of so many heads, linear between measured ones."""
    length = "isl" if "context" in name else "step"
    table = _rows(tables, module, name)
    for column, wanted in (
        ("gemm_type", form),
        ("kv_cache_dtype", "fp8" if kv_fp8 else "bfloat16"),
    ):
        kept = table.filter(pl.col(column) == wanted)
        table = table if kept.is_empty() else kept
    return at_heads(table, length, heads)
