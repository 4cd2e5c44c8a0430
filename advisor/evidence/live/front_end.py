"""What a server's front end does not see of its steps, inferred from what it does see.

The plugin (profiler/plugin/batches.py) counts a prompt in the step that gives its first token, so
that the earlier chunks of a long prompt are in no row, and it never sees which context a prompt
reads. vLLM fills a step up to `max_num_batched_tokens`, running requests first, so a prompt that
does not fit filled the steps before. With --enable-logging-iteration-details the chunks are
measured, and their context alone is inferred. Forward-pass metrics tell sums over a step's prompts.
The sums of one prompt give its context exactly. Those of several give it nearly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from traces.statistics import Floats

NEEDED = ("running", "kv_blocks", "cached_prompt_tokens", "finished", "source")  # and COMPOSITION


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


def with_decode_context(steps: pl.DataFrame, block_size: int | None) -> pl.DataFrame:
    """Return an engine's steps, in order, with the context of decoding requests in each of them.

    The plugin loses it while preempted requests wait, and after clients cancelled requests. These
    are the steps of a busy server, so that without them the others would speak for a quiet one.
    What a request reads on average lies between that of the known steps before and after. Where no
    step is known, as steps were missing before and the server was never idle, it is what the blocks
    in use hold, each request's last one half full.
    """
    decodes = steps["decode_requests"].fill_null(0).to_numpy().astype(float)
    read = steps["decode_kv_tokens"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    known = np.isfinite(read) & (decodes > 0)
    if known.any():
        each = np.interp(np.arange(len(read)), np.flatnonzero(known), read[known] / decodes[known])
    elif block_size is not None:
        blocks, running = (
            steps[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
            for name in ("kv_blocks", "running")
        )
        each = np.maximum((blocks / np.maximum(running, 1.0) - 0.5) * block_size, 1.0)
    else:
        return steps
    inferred = pl.Series(np.rint(each * decodes)).fill_nan(None).cast(pl.Int64)
    return steps.with_columns(decode_kv_tokens=pl.col("decode_kv_tokens").fill_null(inferred))


def with_context_of_several(steps: pl.DataFrame) -> pl.DataFrame:
    """Return steps in which the context of several prompts is inferred from their sums.

    The prompts of a step have equal lengths. Where the cache holds most of them they are one
    prompt of several samples, computed once.
    """
    several = pl.col("prefill_query_context").is_null() & pl.col("prefill_kv_tokens").is_not_null()
    if steps.filter(several).is_empty():
        return steps
    names = ("prefill_tokens", "prefill_requests", "prefill_kv_tokens")
    tokens, prompts, read = (steps[name].fill_null(0).to_numpy().astype(float) for name in names)
    context = _query_context(tokens, np.maximum(prompts, 1.0), np.maximum(read - tokens, 0.0))
    inferred = pl.Series(np.rint(context)).cast(pl.Int64)
    return steps.with_columns(
        prefill_query_context=pl.when(several).then(inferred).otherwise("prefill_query_context")
    )


def _placed(
    tokens: Floats, prompts: Floats, cached: Floats, room: Floats, follows: npt.NDArray[np.bool_]
) -> dict[str, Floats]:
    """Return columns of prompts [steps], chunks in the steps in which they had room.

    Prompts that end in the same step have all of their tokens in it, but for the first of them.
    """
    count = np.maximum(prompts, 1.0)
    alike = are_siblings(tokens, count, cached)
    made = {
        "prefill_requests": prompts.copy(),
        "prefill_tokens": tokens.copy(),
        "prefill_kv_tokens": np.where(prompts > 0, cached + tokens, 0.0),
        "prefill_query_context": _query_context(tokens, count, cached),
    }
    begins = np.flatnonzero((tokens > room) & follows)
    for last in begins[::-1]:
        over = room[last] * np.ceil((tokens[last] - room[last]) / max(room[last], 1.0))
        if over <= 0 or over >= tokens[last]:
            continue
        begun = 0.0 if alike[last] else cached[last] / count[last]
        rest, end = over, begun + over
        chunks = []
        step = last - 1
        while rest > 0:
            first = step == 0 or not follows[step]
            free = max(room[step] - made["prefill_tokens"][step], 0.0)
            chunk = rest if first else min(rest, free)
            if chunk > 0:
                chunks.append((step, chunk, end))
                rest, end = rest - chunk, end - chunk
            step -= 1
        for place, chunk, upto in chunks:
            attended = chunk * (upto - chunk) + chunk * (chunk + 1) / 2
            made["prefill_requests"][place] += 1
            made["prefill_tokens"][place] += chunk
            made["prefill_kv_tokens"][place] += upto
            made["prefill_query_context"][place] += attended
            made["prefill_query_context"][last] -= attended
        made["prefill_tokens"][last] -= over
    np.maximum(made["prefill_query_context"], 0.0, out=made["prefill_query_context"])
    return made


def are_siblings(tokens: Floats, count: Floats, cached: Floats) -> npt.NDArray[np.bool_]:
    """Return where the prompts of a step are one prompt, computed once: [steps].

    So much was computed as one of them has, and more came from the cache.
    """
    return (count > 1) & (cached > 0) & (tokens >= (tokens + cached) / count)


def _query_context(tokens: Floats, count: Floats, cached: Floats) -> Floats:
    """Return the sum over computed tokens of the context that each attends to, [steps]."""
    mean, each = (tokens + cached) / count, tokens / count
    equal = tokens * ((mean - each) + (each + 1) / 2)
    more = np.where(count > 1, (tokens - mean) / np.maximum(count - 1, 1.0), 0.0)
    siblings = mean * (mean + 1) / 2 + (count - 1) * (more * (mean - more) + more * (more + 1) / 2)
    return np.where(are_siblings(tokens, count, cached), siblings, equal)


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
