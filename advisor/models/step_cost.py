"""What a step costs, compiled: the form in which a replay asks for seconds.

A step's time is a sum: a linear law of its composition (`composition.FEATURES`), and where operator
tables are the source, the layers that work on tokens, those that work on sequences, and attention.
A part that is not there is an empty table.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from advisor.compiled import compiled
from advisor.composition import FEATURES

Floats = npt.NDArray[np.float64]


class StepCost(NamedTuple):
    """Seconds of a step. `linear` [FEATURES] times the composition of the step."""

    linear: Floats


def linear_cost(seconds: Floats) -> StepCost:
    """Return the cost of a linear law, `seconds` per unit of each of FEATURES."""
    if np.shape(seconds) != (len(FEATURES),):
        raise ValueError(f"a linear law has {len(FEATURES)} coefficients")
    return StepCost(linear=np.ascontiguousarray(seconds, dtype=np.float64))


def needs_longest(cost: StepCost) -> bool:
    """Whether the longest context of a batch matters to its time."""
    return False


@compiled
def chunk_seconds(cost: StepCost, tokens: int, before: int) -> float:
    """Return what a step pays for one prompt chunk apart from the sums in `step_seconds`.

    `tokens` are computed now, `before` were computed earlier or came from the cache.
    """
    return 0.0


@compiled
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
        seconds += law[1] + law[4] * prompts + chunks
    if drafting and decodes:
        seconds += law[2] + law[5] * decodes
    return seconds


@compiled
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
    middle = (steps - 1) / 2
    return steps * step_seconds(
        cost, 0, 0, 0.0, 0.0, 0.0, decodes, decode_tokens,
        decode_context + middle * growth, longest + middle * longest_growth, drafting,
    )  # fmt: skip
