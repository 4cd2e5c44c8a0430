"""What a step costs, compiled: the form in which a replay asks for seconds.

A step's time is a sum: a linear law of its composition (`features.FEATURES`), and where operator
tables are the source, the layers that work on tokens, those that work on sequences, and attention
(table_cost.py). A part that is not there is empty.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from advisor.compiled import inner, wide
from advisor.evidence.features import FEATURES
from advisor.step_time.table_cost import (
    NO_TABLES,
    PARTS,
    SECONDS,
    StepTables,
    chunk_attention,
    decode_attention,
    has_skew,
    layer_seconds,
    mixed_attention,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class StepCost(NamedTuple):
    """Seconds of a step. `linear` [FEATURES] times the composition of the step, and tables.

    Of the law, the work between steps is apart: `host_seconds`, the rest is `step_seconds`.

    `values` are all tables one after another, each beginning where `starts` says: few arrays, as
    every call of a compiled function copies the fields.
    """

    linear: Floats
    values: Floats
    starts: Ints


def linear_cost(seconds: Floats) -> StepCost:
    """Return the cost of a linear law, `seconds` per unit of each of FEATURES."""
    return table_cost(NO_TABLES, seconds)


def table_cost(tables: StepTables, seconds: Floats | None = None) -> StepCost:
    """Return the cost that tables give, with a linear law beside them if there is one."""
    law = np.zeros(len(FEATURES)) if seconds is None else seconds
    if np.shape(law) != (len(FEATURES),):
        raise ValueError(f"a linear law has {len(FEATURES)} coefficients")
    values, starts = tables.packed()
    return StepCost(np.ascontiguousarray(law, dtype=np.float64), values, starts)


def scaled_cost(cost: StepCost, factor: float) -> StepCost:
    """Return the cost of steps that take `factor` times as long."""
    values = cost.values.copy()
    if len(values):
        for name in SECONDS:
            part = PARTS.index(name)
            values[cost.starts[part] : cost.starts[part + 1]] *= factor
    return cost._replace(linear=cost.linear * factor, values=values)


def needs_longest(cost: StepCost) -> bool:
    """Whether the longest context of a batch matters to its time."""
    return has_skew(cost.values, cost.starts)


@inner
def host_seconds(
    cost: StepCost, problem_starts: int, sample_starts: int, sample_ends: int
) -> float:
    """Return what the process does before a step for what began or ended since the one before."""
    law = cost.linear
    return law[9] * problem_starts + law[10] * sample_starts + law[11] * sample_ends  # type: ignore[no-any-return]


@inner
def chunk_seconds(cost: StepCost, tokens: int, before: int) -> float:
    """Return what a step pays for one prompt chunk apart from the sums in `step_seconds`.

    `tokens` are computed now, `before` were computed earlier or came from the cache.
    """
    if len(cost.values) == 0:
        return 0.0
    return chunk_attention(cost.values, cost.starts, tokens, before)


@inner
def step_seconds(
    cost: StepCost,
    prompts: int,
    prompt_tokens: int,
    prompt_read: float,
    prompt_query: float,
    chunks: float,
    decodes: int,
    decode_tokens: float,
    decode_context: float,
    longest: float,
    drafting: bool,
) -> float:
    """Return the seconds of one step.

    `prompts` requests compute `prompt_tokens` of their prompts, read `prompt_read` tokens of
    context (each chunk with what was before it) and attend to `prompt_query` (sum over tokens of
    the context of each); `chunks` is the sum of their `chunk_seconds`. `decodes` requests forward
    `decode_tokens` and read `decode_context` tokens, the longest of them `longest`; with `drafting`
    they verify drafts.
    """
    law = cost.linear
    pace = decode_tokens / decodes if decodes else 0.0
    seconds: float = (
        law[0] + law[3] * (prompts + decodes) + law[6] * (prompt_tokens + decode_tokens)
    )
    seconds += law[7] * (prompt_read + decode_context)
    seconds += law[8] * (prompt_query + decode_context * pace)
    if prompts:
        seconds += law[1] + law[4] * prompts
    if drafting and decodes:
        seconds += law[2] + law[5] * decodes
    if len(cost.values) == 0:
        return seconds
    values, starts = cost.values, cost.starts
    seconds += layer_seconds(values, starts, prompt_tokens + decode_tokens, prompts + decode_tokens)
    context = decode_context / decodes - pace if decodes else 0.0
    if prompts:
        seconds += mixed_attention(
            values, starts, prompts, prompt_tokens, prompt_query, chunks, decodes, context,
            longest - pace,
        )  # fmt: skip
    elif decodes:
        seconds += decode_attention(
            values, starts, wide(1), decodes, context, 0.0, longest - pace, 0.0
        )
    return seconds


@inner
def leap_seconds(
    cost: StepCost,
    steps: int,
    decodes: int,
    decode_tokens: float,
    decode_context: float,
    growth: float,
    longest: float,
    longest_growth: float,
    drafting: bool,
) -> float:
    """Return the seconds of `steps` steps in which only decoding happens.

    In the i-th, i from 0, the context read is `decode_context` + i x `growth` and the longest
    `longest` + i x `longest_growth`; the sum is in closed form.
    """
    law = cost.linear
    middle = decode_context + (steps - 1) / 2 * growth
    pace = decode_tokens / decodes if decodes else 0.0
    once: float = law[0] + law[3] * decodes + law[6] * decode_tokens
    once += law[7] * middle + law[8] * middle * pace
    if drafting and decodes:
        once += law[2] + law[5] * decodes
    if len(cost.values) == 0:
        return steps * once
    values, starts = cost.values, cost.starts
    once += layer_seconds(values, starts, decode_tokens, decode_tokens)
    seconds = steps * once
    if decodes:
        seconds += decode_attention(
            values, starts, steps, decodes, decode_context / decodes - pace, growth / decodes,
            longest - pace, longest_growth,
        )  # fmt: skip
    return seconds
