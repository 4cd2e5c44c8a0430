"""Attention to keys and values: to the whole context, to a window of it, or to chunks.

A mixer is what of a layer depends on the requests of a step, and not only on its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import polars as pl

from advisor.step_time.operators.grids import (
    fill_between,
    fill_beyond,
    growing,
    to_grid,
    without_stalls,
)
from advisor.step_time.prior.operations.times import SHAPE_SPREAD, Ruled
from advisor.step_time.prior.tables import PriorTables, at_heads
from traces.errors import TablesError
from traces.schema.layers import Attention
from traces.statistics import Floats

DECODE, PROMPT = "generation_attention_perf.parquet", "context_attention_perf.parquet"


# FlashAttention 2 computes the chunks and the decoding requests of a step in one kernel, by tiles
# that are made for chunks: so many requests that decode take so many times as long in it. Means of
# two cards (LLMServingSim's tables of an RTX 4090 and an RTX PRO 6000), of contexts from 512 on.
TOGETHER: Final = np.array([(1.0, 1.0), (4.0, 1.6), (32.0, 1.6), (64.0, 1.9), (128.0, 2.6)])
# Compute capabilities where vLLM has other kernels: FlashAttention 3, and one each on Blackwell.
OTHER_KERNELS: Final = (90, 100, 103)
MOST_KV_HEADS: Final = 8  # of decode attention that was measured
NEAR: Final = 4  # times a shape, within which another one stands for it


def along(known: Floats, seconds: Floats, at: Floats) -> Floats:
    """Return times at lengths, beyond the last as start + a length + b length^2 through two."""
    times = np.interp(at, known, seconds)
    if len(known) > 2 and (far := at > known[-1]).any():
        x, y = known[[-2, -1]], seconds[[-2, -1]] - seconds[0]
        square = (y[1] / x[1] - y[0] / x[0]) / (x[1] - x[0])
        square = max(float(square), 0.0)
        line = max(float(y[1] / x[1] - square * x[1]), 0.0)
        times[far] = seconds[0] + line * at[far] + square * at[far] ** 2
    return np.asarray(times, dtype=float)


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredMixer(Ruled):
    """Times of a table: `grid` [batches, contexts] decoding, `prompts` [lengths] of whole prompts.

    Beyond the grid requests add as much as the last ones did, and so do contexts unless they are
    `bounded`: a layer that reads no more than a window. `together` says that one kernel computes
    chunks and decoding requests.
    """

    batches: Floats
    contexts: Floats
    grid: Floats
    lengths: Floats
    prompts: Floats
    bounded: bool = False
    together: bool = False

    def decode(self, batches: Floats, contexts: Floats) -> Floats:
        """Return the seconds [batches, contexts] of a step that only decodes."""
        by_context = _continued(self.grid, self.contexts, contexts, hold=self.bounded)
        return _continued(by_context.T, self.batches, batches, hold=False).T

    def prompt(self, lengths: Floats) -> Floats:
        """Return the seconds [lengths] of a whole prompt of each length."""
        return along(self.lengths, self.prompts, lengths)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounded:
    """A layer that reads no more than a window: the whole layer at contexts of the window.

    `chunked` ones begin again at each chunk, so that they read half of it on average.
    """

    whole: MeasuredMixer
    window: int
    chunked: bool

    @property
    def together(self) -> bool:
        return self.whole.together

    @property
    def batches(self) -> Floats:
        return self.whole.batches

    @property
    def contexts(self) -> Floats:
        """Measured contexts, and the window."""
        return np.union1d(self.whole.contexts, [float(self.window)])

    @property
    def lengths(self) -> Floats:
        """Measured lengths, and the window."""
        return np.union1d(self.whole.lengths, [float(self.window)])

    @property
    def rule(self) -> str:
        subject = (
            f"attention to {'chunks' if self.chunked else 'a window'} of {self.window:,} tokens"
        )
        rule = f"{subject}: as to a whole context of {'half ' if self.chunked else ''}so many"
        return rule if self.whole.rule is None else f"{self.whole.rule}\n{rule}"

    @property
    def spread(self) -> float:
        return float(np.hypot(self.whole.spread, SHAPE_SPREAD))

    def decode(self, batches: Floats, contexts: Floats) -> Floats:
        read = np.minimum(contexts, self.window)
        if self.chunked:
            read = np.where(contexts > self.window, self.window / 2, read)
        return self.whole.decode(batches, read)

    def prompt(self, lengths: Floats) -> Floats:
        full = self.whole.prompt(np.minimum(lengths, self.window))
        start = float(self.whole.prompt(np.ones(1))[0])
        each = 2.0 if not self.chunked else 1.0  # a query in a window reads twice a chunk's mean
        more = np.maximum(lengths - self.window, 0.0) / self.window
        most = float(self.whole.prompt(np.array([float(self.window)]))[0])
        return np.asarray(full + each * more * (most - start), dtype=float)


Mixer = MeasuredMixer | Bounded  # the seconds of one layer beyond its matrix products


def beside(mixer: Mixer, batches: Floats, contexts: Floats) -> Floats:
    """Return the seconds [batches, contexts] that requests that decode take beside a chunk."""
    alone = mixer.decode(batches, contexts)
    return alone * np.interp(batches, *TOGETHER.T)[:, None] if mixer.together else alone


def attending(tables: PriorTables, attention: Attention, size: int, *, kv_fp8: bool) -> Mixer:
    """Return the attention of a layer whose heads are shared among `size` GPUs.

    Raises TablesError where nothing near was measured.
    """
    heads = attention.heads // size
    kv_heads = max(attention.kv_heads // size, 1)
    window = attention.window or 0
    shape = (heads, kv_heads, attention.head_dim)
    chunked = attention.kind == "chunked_attention"
    if (
        window
        and not chunked
        and _has(tables, DECODE, shape, window)
        and _has(tables, PROMPT, shape, window)
    ):
        return _measured(tables, shape, window, kv_fp8)
    unbounded = _measured(tables, shape, 0, kv_fp8)
    if not window:
        return unbounded
    return Bounded(whole=unbounded, window=window, chunked=chunked)


def _has(tables: PriorTables, name: str, shape: tuple[int, int, int], window: int) -> bool:
    heads, kv_heads, head_dim = shape
    table = _rows(tables, name)
    if "window_size" not in table.columns:
        return False
    measured_heads = table.filter(
        num_key_value_heads=kv_heads, head_dim=head_dim, window_size=window
    )["num_heads"]
    return bool(len(measured_heads)) and min(measured_heads) <= heads <= max(measured_heads)


@lru_cache(maxsize=64)
def _rows(tables: PriorTables, name: str) -> pl.DataFrame:
    return tables.read("attention", name).filter(attn_dtype="bfloat16")


@lru_cache(maxsize=64)
def _measured(
    tables: PriorTables, shape: tuple[int, int, int], window: int, kv_fp8: bool
) -> MeasuredMixer:
    decode, rule, spread = _shaped(tables, DECODE, shape, window, kv_fp8)
    # A prompt's own keys are attended to before they are stored, in whatever form.
    prompt_rows, prompt_rule, prompt_spread = _shaped(tables, PROMPT, shape, window, kv_fp8=False)
    entry = 2.0 * shape[1] * shape[2] * (1 if kv_fp8 else 2)  # bytes of a token
    batches, contexts, grid = decoding_grid(tables, decode, entry=entry, window=window)
    alone = prompt_rows[prompt_rows[:, 0] == 1, 1:]
    return MeasuredMixer(
        batches=batches,
        contexts=contexts,
        grid=grid,
        lengths=alone[:, 0],
        prompts=alone[:, 1],
        bounded=bool(window),
        together=(tables.gpu.get("sm_version") or OTHER_KERNELS[0]) not in OTHER_KERNELS,
        rule=rule or prompt_rule,
        spread=max(spread, prompt_spread),
    )


def decoding_grid(
    tables: PriorTables, rows: Floats, *, entry: float = 0.0, window: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Return batches, contexts and seconds on their grid, of rows (batch, context, seconds).

    Large batches were measured up to the contexts that the memory held. Beyond them a request's
    context adds what it does in the batch below, or without one what it did on average, up to the
    `window`. Nothing takes less than reading `entry` bytes for each token of context, at the
    bandwidth that the GPU has, or where nothing was measured at what kernels reach of it: as
    stated, or more if the longest contexts that were measured show it.
    """
    (batches, contexts), grid = to_grid(rows[:, :2], rows[:, 2])
    knots = (batches, contexts)
    grid = without_stalls(without_stalls(grid, 0), 1)
    fill_between(grid, knots, (1, 0))
    measured = ~np.isnan(grid)
    reads = np.minimum(contexts, window) if window else contexts
    moved = batches[:, None] * reads * entry
    ends = np.arange(len(batches)), len(contexts) - 1 - np.argmax(measured[:, ::-1], axis=1)
    reached = float(np.nanmax(moved[ends] / grid[ends], initial=tables.bandwidth_bytes_per_s))
    for at, line in enumerate(grid):
        places = np.flatnonzero(~np.isnan(line))
        if not len(places):
            continue
        first, last = places[0], places[-1]
        slope = (line[last] - line[first]) / max(reads[last] - reads[first], 1.0)
        more = max(slope, 0.0) * (reads[last + 1 :] - reads[last])
        if at and not np.isnan(grid[at - 1, last:]).any():
            below = grid[at - 1] * (batches[at] / batches[at - 1])
            more = np.maximum.accumulate(np.maximum(below[last + 1 :] - below[last], 0.0))
        line[last + 1 :] = line[last] + more
    fill_beyond(grid, knots, (1, 0), hold=False)
    for axis in (0, 1):  # more requests and more context never take less
        grid = np.apply_along_axis(growing, axis, grid)
    speed = np.where(measured, tables.peak_bandwidth, min(reached, tables.peak_bandwidth))
    return batches, contexts, np.maximum(grid, moved / speed)


def _shaped(
    tables: PriorTables, name: str, shape: tuple[int, int, int], window: int, kv_fp8: bool
) -> tuple[Floats, str | None, float]:
    """Return [rows, (batch, length, seconds)] of a shape, and the rule where it is another's.

    Linear in heads between measured ones. A shape that was not measured is the nearest one by what
    it reads (decoding) or computes (prompts), beside the start of a kernel.
    """
    heads, kv_heads, head_dim = shape
    if name == DECODE and kv_heads > MOST_KV_HEADS and not (kv_heads % 2 or heads % 2):
        # Twice as many KV heads do the work of twice the requests.
        half = (heads // 2, kv_heads // 2, head_dim)
        rows, rule, spread = _shaped(tables, name, half, window, kv_fp8)
        rows = rows[rows[:, 0] % 2 == 0]
        return np.column_stack([rows[:, 0] / 2, rows[:, 1:]]), rule, spread
    kind, length = ("generation", "step") if name == DECODE else ("context", "isl")
    table = _rows(tables, name)
    if "window_size" in table.columns:
        table = table.filter(window_size=window)
    if kind == "context":
        table = table.filter(step=0)
    stored = table.filter(kv_cache_dtype="fp8" if kv_fp8 else "bfloat16")
    rule, spread, scale = None, 0.0, 1.0
    same_shape = {"num_key_value_heads": kv_heads, "head_dim": head_dim}
    if stored.filter(**same_shape).is_empty() and kv_fp8:
        stored = table.filter(kv_cache_dtype="bfloat16")
        rule, spread = f"{kind} attention to a cache in FP8: as in bfloat16", SHAPE_SPREAD
    kept = stored.filter(**same_shape)
    measured_heads = np.array(sorted(kept["num_heads"].unique()), dtype=float)
    if not len(measured_heads) or not measured_heads[0] <= heads <= measured_heads[-1]:
        near = _nearest(stored, heads, kv_heads, head_dim)
        if near is None:
            raise TablesError(
                f"{tables.system}: no {kind} attention of {heads} heads and {kv_heads} KV heads of "
                f"{head_dim} was measured, nor of a shape within {NEAR} times it "
                f"(attention/{name}). Ask about another model (--model-config), "
                "tensor_parallel_size or GPU"
            )
        kept = stored.filter(num_key_value_heads=near[1], head_dim=near[2])
        work = (kv_heads * head_dim) / (near[1] * near[2])
        if kind == "context":
            work = (heads * head_dim) / (near[0] * near[2])
        rule = (
            f"{kind} attention of {heads} heads, {kv_heads} KV heads of {head_dim}: as of "
            f"{near[0]}, {near[1]} of {near[2]}, by what they "
            f"{'read' if kind == 'generation' else 'compute'}"
        )
        heads, scale, spread = near[0], work, SHAPE_SPREAD
    rows = at_heads(kept, length, heads)
    if scale != 1.0:
        start = float(rows[:, 2].min())
        rows[:, 2] = start + (rows[:, 2] - start) * scale
    return rows, rule, spread


def _nearest(
    table: pl.DataFrame, heads: int, kv_heads: int, head_dim: int
) -> tuple[int, int, int] | None:
    """Return the measured shape nearest in the logs of its sizes, the head's width first.

    None where all differ by more than `NEAR` times in the width or in all heads together.
    """
    measured = table.select("num_heads", "num_key_value_heads", "head_dim").unique().rows()
    wanted = np.array([heads * head_dim, kv_heads * head_dim, head_dim])
    shapes = [
        each
        for each in measured
        if np.abs(np.log([each[0] * each[2], each[1] * each[2], each[2]] / wanted)).max()
        <= np.log(NEAR)
    ]

    def apart(each: tuple[int, int, int]) -> float:
        logs = np.abs(np.log(np.array(each) / np.array([heads, kv_heads, head_dim])))
        return float(logs @ [1.0, 1.0, 3.0])

    return min(sorted(shapes), key=apart, default=None)


def _continued(grid: Floats, knots: Floats, at: Floats, *, hold: bool) -> Floats:
    """Return lines [.., knots] at other places, linear between knots and beyond the last."""
    lines = np.stack([np.interp(at, knots, line) for line in grid])
    if hold or len(knots) < 2:
        return lines
    slope = (grid[:, -1] - grid[:, -2]) / (knots[-1] - knots[-2])
    beyond = np.maximum(at - knots[-1], 0.0)
    return np.asarray(lines + np.maximum(slope, 0.0)[:, None] * beyond, dtype=float)
