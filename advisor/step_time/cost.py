"""What a step costs, compiled: the form in which a replay asks for seconds.

A step's time is a sum: a linear law of its composition (`features.FEATURES`), and where operator
tables are the source, the layers that work on tokens, those that work on sequences, and attention
(table_cost.py). A part that is not there is empty.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import polars as pl

from advisor.compiled import compiled, inner, wide
from advisor.evidence.features import (
    ALL,
    FEATURES,
    Reads,
    Work,
    features_of,
    mean_of,
    work_in,
    work_of_steps,
    work_planned,
)
from advisor.step_time.table_cost import (
    PARTS,
    SECONDS,
    StepTables,
    chunk_attention,
    decode_attention,
    has_skew,
    layer_seconds,
    mixed_attention,
)
from traces.recording.tables import COMPOSITION
from traces.schema.window import in_window, window_context
from traces.statistics import Floats, Ints

PROBLEM_STARTS: Final = FEATURES.index("problem_starts")
SAMPLE_STARTS: Final = FEATURES.index("sample_starts")
SAMPLE_ENDS: Final = FEATURES.index("sample_ends")


class Most(NamedTuple):
    """The most of a step that a law was learned from: what has more lies beyond."""

    requests: float = np.inf
    tokens: float = np.inf
    kv_tokens: float = np.inf


ANY: Final = Most()


class StepCost(NamedTuple):
    """Seconds of a step. `linear` [FEATURES] times the composition of the step, and tables.

    Of the law, the work between steps is apart: `host_seconds`, the rest is `steps_seconds`.

    `values` are all tables one after another, each beginning where `starts` says: few arrays, as
    every call of a compiled function copies the fields. `reads` says what the law counts. `hidden`
    [FEATURES] is a law of what the host does while the tables' kernels run, empty without it: then
    both take as long as the longer one. Steps beyond `most` are timed apart.
    """

    linear: Floats
    values: Floats
    starts: Ints
    reads: Reads
    hidden: Floats
    most: Most = ANY


def linear_cost(seconds: Floats, reads: Reads = ALL, most: Most = ANY) -> StepCost:
    """Return the cost of a linear law, `seconds` per unit of each of FEATURES."""
    return table_cost(StepTables(), seconds)._replace(reads=reads, most=most)


def table_cost(tables: StepTables, seconds: Floats | None = None) -> StepCost:
    """Return the cost that tables give, with a linear law beside them if there is one."""
    law = np.zeros(len(FEATURES)) if seconds is None else seconds
    if np.shape(law) != (len(FEATURES),):
        raise ValueError(f"a linear law has {len(FEATURES)} coefficients")
    values, starts = tables.packed()
    linear = np.ascontiguousarray(law, dtype=np.float64)
    return StepCost(linear, values, starts, ALL, np.zeros(0))


def scaled_cost(cost: StepCost, factor: float) -> StepCost:
    """Return the cost of steps that take `factor` times as long."""
    values = cost.values.copy()
    if len(values):
        for name in SECONDS:
            part = PARTS.index(name)
            values[cost.starts[part] : cost.starts[part + 1]] *= factor
    return cost._replace(linear=cost.linear * factor, values=values, hidden=cost.hidden * factor)


def with_hidden(cost: StepCost, seconds: Floats, share: float) -> StepCost:
    """Add a law [FEATURES] to a cost. Kernels hide a share of it."""
    hidden = share * seconds if share else np.zeros(0)
    return cost._replace(linear=cost.linear + (1 - share) * seconds, hidden=hidden)


def needs_longest(cost: StepCost) -> bool:
    """Whether the longest context of a batch matters to its time."""
    return has_skew(cost.values, cost.starts)


step_features, mean_work = inner(features_of), inner(mean_of)
work_at, planned_work = inner(work_in), inner(work_planned)
tokens_in_window, prompt_in_window = inner(in_window), inner(window_context)


@inner
def host_seconds(
    cost: StepCost, problem_starts: int, sample_starts: int, sample_ends: int
) -> float:
    """Return what the process does before a step for what began or ended since the one before."""
    seconds: float = (
        cost.linear[PROBLEM_STARTS] * problem_starts
        + cost.linear[SAMPLE_STARTS] * sample_starts
        + cost.linear[SAMPLE_ENDS] * sample_ends
    )
    return seconds


@inner
def chunk_seconds(cost: StepCost, tokens: int, before: int) -> float:
    """Return what a step pays for one prompt chunk apart from the sums in `steps_seconds`.

    `tokens` are computed now, `before` were computed earlier or came from the cache.
    """
    if len(cost.values) == 0:
        return 0.0
    return chunk_attention(cost.values, cost.starts, tokens, before)


@inner
def steps_seconds(
    cost: StepCost,
    work: Work[float],
    steps: int,
    growth: float,
    window_growth: float,
    longest: float,
    longest_growth: float,
    chunks: float,
    speculative: bool,
) -> float:
    """Return the seconds of a step, or of `steps` of them in which only decoding happens.

    `work` is that of the first. `chunks` is the sum of its `chunk_seconds`, `longest` the longest
    context that a decoding request reads. In each further step the context read grows by `growth`,
    that in a window by `window_growth` and the longest by `longest_growth`; the sum is in closed
    form.
    """
    once = 0.0
    mean = mean_work(work, steps, growth, window_growth)
    features = step_features(mean, speculative, cost.reads.experts)
    for place, value in enumerate(features[:PROBLEM_STARTS]):
        once += cost.linear[place] * value
    if len(cost.values) == 0:
        return steps * once
    values, starts, decodes = cost.values, cost.starts, work.decode_requests
    tokens = work.prefill_tokens + work.decode_tokens
    layers = layer_seconds(values, starts, tokens, work.prefill_requests + work.decode_tokens)
    per_request = work.decode_tokens / decodes if decodes else 0.0
    context = work.decode_kv_tokens / decodes - per_request if decodes else 0.0
    beside = 0.0
    if len(cost.hidden) > 0:
        for place, value in enumerate(features[:PROBLEM_STARTS]):
            beside += cost.hidden[place] * value
    if work.prefill_requests:
        attention = mixed_attention(
            values, starts, work.prefill_requests, work.prefill_tokens, work.prefill_query_context,
            chunks, decodes, context, longest - per_request,
        )  # fmt: skip
        return steps * once + max(steps * layers + attention, steps * beside)
    if not decodes:
        return steps * (once + max(layers, beside))
    seconds = steps * layers + decode_attention(
        values, starts, steps, decodes, context, growth / decodes, longest - per_request,
        longest_growth,
    )  # fmt: skip
    if beside * steps > 0.0:
        hidden = _steps_below(
            values, starts, steps, decodes, context, growth / decodes, longest - per_request,
            longest_growth, beside - layers,
        )  # fmt: skip
        if hidden > 0:
            kernels = hidden * layers + decode_attention(
                values, starts, hidden, decodes, context, growth / decodes, longest - per_request,
                longest_growth,
            )  # fmt: skip
            seconds += max(hidden * beside - kernels, 0.0)
    return steps * once + seconds


@inner
def _steps_below(
    values: Floats,
    starts: Ints,
    steps: int,
    decodes: float,
    context: float,
    growth: float,
    longest: float,
    longest_growth: float,
    bound: float,
) -> int:
    """Return how many of the steps come before the first whose attention takes `bound` seconds.

    Attention does not become shorter while contexts grow.
    """
    low, high = 0, steps
    while low < high:
        middle = (low + high) // 2
        spent = decode_attention(
            values, starts, 1, decodes, context + middle * growth, growth,
            longest + middle * longest_growth, longest_growth,
        )  # fmt: skip
        if spent < bound:
            low = middle + 1
        else:
            high = middle
    return low


def predicted_steps(cost: StepCost, steps: pl.DataFrame, *, drafting: bool = False) -> Floats:
    """Return the seconds [steps] of rows that have all of COMPOSITION.

    The chunks of a step, of which the row has sums, are taken as equal. With `drafting` in each
    step drafts are made.
    """
    return _predicted(cost, np.column_stack(work_of_steps(steps)), drafting)


def drafts_speed(
    without: StepCost,
    drafting: StepCost,
    batches: Ints,
    *,
    computed: float,
    kept: float,
    context: float,
) -> Floats:
    """Return how many times as fast drafts are as none [batches], for so many requests in a step.

    That is tokens a second: kept x T(B) / T_drafts(B). A step computes `computed` tokens of each
    request and keeps `kept` of them, at contexts of `context` tokens.
    """
    took = []
    for cost, tokens in ((without, 1.0), (drafting, computed)):
        rows = pl.DataFrame(
            dict.fromkeys(COMPOSITION, np.zeros(len(batches)))
            | {
                "decode_requests": batches.astype(float),
                "decode_tokens": tokens * batches,
                "decode_kv_tokens": context * batches,
            }
        )
        took.append(predicted_steps(cost, rows, drafting=cost is drafting))
    return np.asarray(kept * took[0] / took[1])


@compiled
def _predicted(cost: StepCost, rows: Floats, drafting: bool) -> Floats:
    """Return the seconds [steps] of rows [steps, fields of `Work`]."""
    seconds = np.empty(len(rows))
    for place in range(len(rows)):
        work = work_at(rows[place])
        prompts, tokens = int(work.prefill_requests), int(work.prefill_tokens)
        chunks = 0.0
        if prompts:
            before = max(int(work.prefill_kv_tokens) - tokens, 0) // prompts
            chunks = prompts * chunk_seconds(cost, max(tokens // prompts, 1), before)
        seconds[place] = steps_seconds(cost, work, wide(1), 0.0, 0.0, 0.0, 0.0, chunks, drafting)
    return seconds
