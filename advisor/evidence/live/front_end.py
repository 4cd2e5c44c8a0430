"""What a server's front end does not see of its steps, inferred from what it does see.

The plugin (profiler/plugin/batches.py) counts a prompt in the step that gives its first token, so
that the earlier chunks of a long prompt are in no row, and it never sees which context a prompt
reads. vLLM fills a step up to `max_num_batched_tokens`, running requests first, so a prompt that
does not fit filled the steps before. With --enable-logging-iteration-details the chunks are
measured, and their context alone is inferred.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]

NEEDED = ("running", "cached_prompt_tokens", "finished", "source")  # beside COMPOSITION


@dataclass
class _Prompts:
    """Prompts of one step that are not placed yet: tokens to compute, and where they end."""

    tokens: float
    end: float  # the context that the last of these tokens attends to, the mean of the prompts
    count: float  # prompts


def with_prompt_context(steps: pl.DataFrame, max_num_batched_tokens: int | None) -> pl.DataFrame:
    """Return an engine's steps, in order, with what is not told of their prompts inferred.

    Rows that tell `prefill_kv_tokens` stay as they are. Of the others the prompts of a step have
    equal lengths, and those longer than `max_num_batched_tokens` leaves room for began in the
    steps before.
    """
    unseen = steps["prefill_kv_tokens"].is_null() & steps["prefill_tokens"].is_not_null()
    if not unseen.any():
        return steps
    names = ("prefill_tokens", "prefill_requests", "cached_prompt_tokens", "decode_tokens")
    tokens, prompts, cached, decode = (
        steps[name].fill_null(0).to_numpy().astype(float) for name in names
    )
    follows = steps["interval_ns"].is_not_null().to_numpy()  # on the step before, without a pause
    if (steps["source"] == "measured").any():
        placed = _measured_chunks(tokens, prompts, cached, steps, follows)
    else:
        room = np.full(len(tokens), np.inf)
        if max_num_batched_tokens is not None:
            room = np.maximum(max_num_batched_tokens - decode, 0.0)
        placed = _placed(tokens, prompts, cached, room, follows)
    columns = [pl.Series(name, np.rint(each)) for name, each in placed.items()]
    return steps.with_columns(
        pl.when(pl.Series(unseen)).then(each.cast(pl.Int64)).otherwise(pl.col(each.name))
        .alias(each.name)
        for each in columns
    )  # fmt: skip


def _placed(
    tokens: Floats, prompts: Floats, cached: Floats, room: Floats, follows: npt.NDArray[np.bool_]
) -> dict[str, Floats]:
    """Return columns of prompts [steps], chunks in the steps in which they had room."""
    made = {
        "prefill_requests": prompts.copy(),
        "prefill_tokens": np.zeros_like(tokens),
        "prefill_kv_tokens": np.zeros_like(tokens),
        "prefill_query_context": np.zeros_like(tokens),
    }
    waiting: list[_Prompts] = []
    for step in range(len(tokens) - 1, -1, -1):
        if tokens[step] <= 0 and prompts[step] <= 0 and not waiting:
            continue
        free, first = room[step], step == 0 or not follows[step]
        if prompts[step] > 0:
            count = prompts[step]
            own = _Prompts(tokens[step], (cached[step] + tokens[step]) / count, count)
            share = own.tokens
            if share > free > 0 and not first:  # its last chunk is what full steps left
                share -= free * np.ceil((share - free) / free)
            free -= _take(made, step, own, share)
            if own.tokens > 0:
                waiting.append(own)
        while waiting and (free > 0 or first):
            last = waiting[-1]
            if prompts[step] <= 0 or last.count > prompts[step]:
                made["prefill_requests"][step] += last.count
            free -= _take(made, step, last, last.tokens if first else min(free, last.tokens))
            if last.tokens <= 0:
                waiting.pop()
    return made


def _take(made: dict[str, Floats], step: int, prompts: _Prompts, tokens: float) -> float:
    """Put the last so many tokens of prompts into a step, and return how many."""
    each = tokens / prompts.count
    made["prefill_tokens"][step] += tokens
    made["prefill_kv_tokens"][step] += prompts.end * prompts.count
    made["prefill_query_context"][step] += tokens * (prompts.end - each + (each + 1) / 2)
    prompts.tokens -= tokens
    prompts.end -= each
    return tokens


def _measured_chunks(
    tokens: Floats,
    prompts: Floats,
    cached: Floats,
    steps: pl.DataFrame,
    follows: npt.NDArray[np.bool_],
) -> dict[str, Floats]:
    """Return columns of prompts [steps] whose chunks are measured and whose context is not.

    A prompt whose request decodes in the next step ended in this one; the tokens of those that did
    not are the context of the chunks that follow.
    """
    decodes = steps["decode_requests"].fill_null(0).to_numpy().astype(float)
    finished = steps["finished"].fill_null(0).to_numpy().astype(float)
    later = np.append(decodes[1:], 0.0)
    ended = np.maximum(later - decodes + finished, 0.0)
    ended[:-1] = np.where(follows[1:], ended[:-1], prompts[:-1])
    begun = np.zeros_like(tokens)  # of prompts that go on, computed before a step
    open_tokens = 0.0
    for step in np.flatnonzero(prompts > 0):
        begun[step] = open_tokens if follows[step] else 0.0
        going = max(prompts[step] - ended[step], 0.0) / prompts[step]
        open_tokens = (begun[step] + tokens[step]) * going
    count = np.maximum(prompts, 1.0)
    before = (begun + cached) / count
    each = tokens / count
    return {
        "prefill_kv_tokens": (before + each) * prompts,
        "prefill_query_context": tokens * (before + (each + 1) / 2),
    }
