"""Operator times of one device and model as the seconds of an engine's steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from advisor.evidence.keys import tokens_a_request
from advisor.step_time.operators.attention import DecodeAttention
from advisor.step_time.operators.files import Operators
from advisor.step_time.operators.grids import doubled, fill_between, fill_beyond, to_grid
from advisor.step_time.operators.skew import decode_skew, mixed_skew
from advisor.step_time.table_cost import StepTables
from traces.errors import TablesError
from traces.schema.engine import CAPTURE, EngineConfig
from traces.statistics import Floats

Collectives = Callable[[Floats], Floats]  # tokens of steps -> their seconds of communication

# How often a layer runs: in a step, and in each decoder layer. Llama's order: norm, qkv, rotary,
# attention, o, norm, gate and up, activation, down; Qwen3 norms queries and keys besides.
CALLS: Final = {
    "embedding": (1, 0),
    "final_layernorm": (1, 0),
    "layernorm": (0, 2),
    "qkv_proj": (0, 1),
    "qk_norm": (0, 2),
    "rotary_emb": (0, 1),
    "o_proj": (0, 1),
    "gate_up_proj": (0, 1),
    "act_fn": (0, 1),
    "down_proj": (0, 1),
}
OPTIONAL: Final = ("qk_norm",)
PER_SEQUENCE: Final = ("lm_head", "sampler")
MOST_CAPTURED: Final = 512  # tokens of a CUDA graph
BLACKWELL: Final = r"\bG?B[23]00\b"  # in the names of GPUs of compute capability 10
WIDER_ON_BLACKWELL: Final = (0, 32)  # the vLLM that this is known of
LONGEST: Final = 1 << 20  # tokens of context that decode attention is continued to


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The largest values that were measured; what lies beyond is extrapolated.

    `tokens` of a step, `batch` decoding requests of `context` tokens, `sequences` rows of logits.
    """

    tokens: int
    sequences: int
    batch: int
    context: int

    def holds(self, peaks: Mapping[str, float], longest: int) -> bool:
        """Whether it holds a replay's largest steps, of contexts up to the `longest`."""
        return (
            peaks["tokens"] <= self.tokens
            and peaks["requests"] <= self.batch
            and longest <= self.context
        )


def domain(operators: Operators) -> Domain:
    """Return what a folder's tables cover."""
    chunk, _, batch, context, _ = operators.attention.T
    return Domain(
        tokens=int(min(rows[-1, 0] for rows in operators.dense.values())),
        sequences=int(min(rows[-1, 0] for rows in operators.per_sequence.values())),
        batch=int(batch[chunk == 0].max(initial=0)),
        context=int(context.max()),
    )


def step_tables(
    operators: Operators,
    *,
    num_hidden_layers: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    capture_sizes: Sequence[int] = (),
    tensor_parallel_size: int = 1,
    collectives: Collectives | None = None,
    skew: bool = True,
) -> StepTables:
    """Return the seconds of an engine's steps.

    `capture_sizes` are the numbers of tokens that CUDA graphs were captured for, none with
    enforce_eager: up to the largest, a step computes as many tokens as the next of them.
    `collectives` are the seconds that tensor parallelism adds. Raises TablesError when a layer is
    missing or not known, or the tables are those of another tensor-parallel size.
    """
    _check(operators, tensor_parallel_size, collectives)
    most = max(max_num_batched_tokens + max_num_seqs, domain(operators).tokens)
    tokens = np.arange(most + 1, dtype=float)
    computed = padded(tokens, capture_sizes)
    layers = np.zeros(most + 1)
    for layer, rows in operators.dense.items():
        once, each = CALLS[layer]
        layers += (once + each * num_hidden_layers) * interpolated(rows, computed)
    if collectives is not None:
        layers += collectives(computed)
    sequences = np.arange(max(max_num_seqs, domain(operators).sequences) + 1, dtype=float)
    logits = sum(interpolated(rows, sequences) for rows in operators.per_sequence.values())
    decode_batch, decode_kv, decode = _decode(operators.attention, max_num_seqs)
    (chunk, before, mixed_batch, mixed_kv), mixed = _mixed(
        operators.folder, operators.attention, max_num_batched_tokens, max_num_seqs
    )
    unequal = operators.skew if skew else None
    return StepTables(
        tokens=layers,
        sequences=np.asarray(logits, dtype=float),
        decode_batch=decode_batch,
        decode_kv=decode_kv,
        decode=decode * num_hidden_layers,
        decode_skew=decode_skew(unequal, decode_batch),
        chunk=chunk,
        before=before,
        mixed_batch=mixed_batch,
        mixed_kv=mixed_kv,
        mixed=mixed * num_hidden_layers,
        mixed_skew=mixed_skew(unequal, before, mixed_batch, mixed_kv),
        launch=mixed[:1, 0, 0, 0] * num_hidden_layers,
    )


def default_capture_sizes(
    max_num_seqs: int, tokens_a_request: int = 1, most: int = MOST_CAPTURED
) -> list[int]:
    """Return the numbers of tokens that vLLM captures CUDA graphs for unless it is told others.

    As `VllmConfig._set_cudagraph_sizes` of vLLM 0.32 has them: up to twice the tokens of
    max_num_seqs requests, at most `most`. With drafts also those of whole requests.
    """
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16)}
    if tokens_a_request > 1:
        requests = {size for size in sizes if size < max_num_seqs} | {max_num_seqs}
        sizes |= {each * tokens_a_request for each in requests}
    last = min(2 * max_num_seqs * tokens_a_request, most)
    return sorted(size for size in sizes if size <= last)


def captured_sizes(engine: EngineConfig) -> list[int]:
    """Return the numbers of tokens that an engine captured CUDA graphs for, none with eager mode.

    Newer engines capture more on data-centre Blackwell (compute capability 10). A largest size that
    was set holds whatever max_num_seqs is.
    """
    if engine.enforce_eager:
        return []
    setting = dict(engine.other).get(CAPTURE, "")
    if setting.isdecimal():
        return default_capture_sizes(int(setting), tokens_a_request(engine), int(setting))
    newest = engine.version is None or engine.version >= WIDER_ON_BLACKWELL
    wide = newest and re.search(BLACKWELL, engine.gpu or "") is not None
    return default_capture_sizes(
        engine.max_num_seqs or 1,
        tokens_a_request(engine),
        2 * MOST_CAPTURED if wide else MOST_CAPTURED,
    )


def interpolated(rows: Floats, counts: Floats) -> Floats:
    """Return seconds at counts, linear between measured ones.

    Before the first they are held; beyond the last they go on with the slope of the upper half.
    """
    measured, seconds = rows.T
    middle = int(np.searchsorted(measured, measured[-1] / 2))
    gap = measured[-1] - measured[middle]
    slope = max((seconds[-1] - seconds[middle]) / gap, 0.0) if gap else 0.0
    beyond = np.maximum(counts - measured[-1], 0.0)
    return np.asarray(np.interp(counts, measured, seconds) + slope * beyond, dtype=float)


def _check(operators: Operators, size: int, collectives: Collectives | None) -> None:
    folder = operators.folder
    for layer in operators.dense:
        if layer not in CALLS:
            raise TablesError(
                f"{folder / 'dense.csv'}: layer {layer:.40} is not known, so neither is how often"
                f" a step runs it. Known are {', '.join(CALLS)}"
            )
    missing = [name for name in CALLS if name not in operators.dense and name not in OPTIONAL]
    if missing:
        raise TablesError(
            f"{folder / 'dense.csv'}: no rows of {', '.join(missing)}. Profile the whole model"
        )
    names = set(operators.per_sequence)
    if names != set(PER_SEQUENCE):
        raise TablesError(
            f"{folder / 'per_sequence.csv'}: layers {', '.join(sorted(names))}. Expected are"
            f" {' and '.join(PER_SEQUENCE)}"
        )
    chunk, _, batch, _, _ = operators.attention.T
    for what, there in (
        ("a chunk alone", (batch == 0).any()),
        ("decoding requests alone", (chunk == 0).any()),
        ("a chunk beside decoding requests", ((chunk > 0) & (batch > 0)).any()),
    ):
        if not there:
            raise TablesError(f"{folder / 'attention.csv'}: no rows with {what}. Profile them")
    if operators.tensor_parallel_size != size:
        raise TablesError(
            f"{folder}: tables of tensor-parallel size {operators.tensor_parallel_size}, and the "
            f"engine has {size}. Give the folder of that size"
        )
    if size > 1 and collectives is None:
        raise TablesError(
            f"{folder}: operator tables leave out the collectives of tensor-parallel size {size}."
            " Give their times with --collectives: a CSV, a recording, or the name of a GPU of the"
            " prior, such as h100_sxm"
        )


def padded(tokens: Floats, capture_sizes: Sequence[int]) -> Floats:
    """Return how many tokens a step computes: those of the next captured size, if there is one."""
    sizes = np.array(sorted(capture_sizes), dtype=float)
    if not len(sizes):
        return tokens
    at = np.searchsorted(sizes, tokens)
    return np.where(at < len(sizes), sizes[np.minimum(at, len(sizes) - 1)], tokens)


@lru_cache(maxsize=64)
def _law_of(rows: bytes) -> DecodeAttention:
    """Return the law of measured batches, contexts and seconds, learned once for all limits."""
    return DecodeAttention().fit(*np.frombuffer(rows).reshape(-1, 3).T)


def _decode(attention: Floats, max_num_seqs: int) -> tuple[Floats, Floats, Floats]:
    """Return knots of batch and of context, and the seconds of a layer that only decodes."""
    rows = attention[attention[:, 0] == 0]
    law = _law_of(rows[:, 2:5].tobytes())
    (batches, contexts), grid = to_grid(rows[:, 2:4], rows[:, 4])
    fill_between(grid, (batches, contexts), (1, 0))
    more_batches = doubled(batches, max_num_seqs)
    more_contexts = doubled(contexts, LONGEST)
    extended = np.full((len(more_batches), len(more_contexts)), np.nan)
    extended[: len(batches), : len(contexts)] = grid
    at = np.meshgrid(more_batches, more_contexts, indexing="ij")
    guess = law.predict(at[0].ravel(), at[1].ravel()).reshape(extended.shape)
    return more_batches, more_contexts, np.where(np.isnan(extended), guess, extended)


def _mixed(
    folder: Path, attention: Floats, max_num_batched_tokens: int, max_num_seqs: int
) -> tuple[list[Floats], Floats]:
    """Return knots of chunk, before, batch and context, and the seconds of a layer.

    Beyond what was measured: twice the requests add as much again; a chunk of twice the tokens is
    one and then another with the first before it.
    """
    rows = attention[(attention[:, 0] > 0) & (attention[:, 2] > 0)]
    knots, grid = to_grid(rows[:, :4], rows[:, 4])
    only = attention[(attention[:, 0] > 0) & (attention[:, 2] == 0)]
    alone = np.full(grid.shape[:2], np.nan)
    places = [np.searchsorted(knots[axis], only[:, axis]) for axis in (0, 1)]
    there = np.ones(len(only), dtype=bool)
    for axis, place in enumerate(places):
        there &= knots[axis][np.minimum(place, len(knots[axis]) - 1)] == only[:, axis]
    alone[tuple(place[there] for place in places)] = only[there, 4]
    if np.isnan(alone).all():
        raise TablesError(
            f"{folder / 'attention.csv'}: no chunk was measured both alone and beside decoding "
            "requests, with as much before it. Profile the same chunks"
        )
    for table, order in ((alone, (1, 0)), (grid, (3, 1, 0, 2))):
        fill_between(table, knots, order)
        fill_beyond(table, knots, order, hold=False)
    chunk, before, batch, _ = knots
    batch = np.append(0.0, batch)
    grid = np.concatenate([np.repeat(alone[:, :, None, None], grid.shape[3], axis=3), grid], axis=2)
    launch = float(alone[0, 0])
    while batch[-1] < max_num_seqs - 1:
        batch = np.append(batch, 2 * batch[-1])
        grid = np.concatenate([grid, 2 * grid[:, :, -1:] - grid[:, :, :1]], axis=2)
    while chunk[-1] < max_num_batched_tokens:
        last = grid[-1, :, 0, 0]
        rows_beyond = np.column_stack([before, last])
        second = interpolated(rows_beyond, before + chunk[-1]) - launch
        grid = np.concatenate([grid, grid[-1:] + second[:, None, None]], axis=0)
        chunk = np.append(chunk, 2 * chunk[-1])
    return [chunk, before, batch, knots[3]], grid
