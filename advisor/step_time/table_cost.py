"""Operator tables, compiled: layers by tokens and by sequences, and attention.

All tables lie one after another in one array (`values`), each from where `starts` says: `PARTS`
in order. How tables come to be: operators/tables.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from advisor.compiled import inner
from traces.statistics import Floats, Ints

_NONE: Final = np.zeros(0)


class StepTables(NamedTuple):
    """Seconds by table; an empty table is a part of a step that is absent.

    `tokens` [t] are the seconds of a step of t tokens, `sequences` [s] those of s rows of logits.
    Attention is linear between knots and beyond the last: `decode` [batch, context] when only
    decoding happens, `mixed` [chunk, before, batch, context] beside one prompt chunk of so many
    tokens with so many before it, where batch 0 is the chunk alone. Knots of batches are
    `decode_batch` and `mixed_batch`, of context (that of one request, without the tokens of this
    step) `decode_kv` and `mixed_kv`. `launch` [1] is what an empty chunk would cost. `decode_skew`
    [batch] and `mixed_skew` [before, batch, longest context] say how far contexts that differ move
    attention from its time at their mean to its time at the longest.
    """

    tokens: Floats = _NONE
    sequences: Floats = _NONE
    decode_batch: Floats = _NONE
    decode_kv: Floats = _NONE
    decode: Floats = np.zeros((0, 0))
    decode_skew: Floats = _NONE
    chunk: Floats = _NONE
    before: Floats = _NONE
    mixed_batch: Floats = _NONE
    mixed_kv: Floats = _NONE
    mixed: Floats = np.zeros((0, 0, 0, 0))
    mixed_skew: Floats = np.zeros((0, 0, 0))
    launch: Floats = _NONE

    def packed(self) -> tuple[Floats, Ints]:
        """Return all values one after another, and where each part begins and the last ends.

        Raises ValueError when a table does not have the shape of its knots.
        """
        shapes = {
            "decode": (len(self.decode_batch), len(self.decode_kv)),
            "decode_skew": (len(self.decode_batch),),
            "mixed": (
                len(self.chunk), len(self.before), len(self.mixed_batch), len(self.mixed_kv)
            ),
            "mixed_skew": (len(self.before), len(self.mixed_batch), len(self.mixed_kv)),
        }  # fmt: skip
        for name, shape in shapes.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"{name} has the shape {np.shape(getattr(self, name))}: {shape}")
        parts = [np.ravel(part).astype(np.float64) for part in self]
        starts = np.cumsum([0, *map(len, parts)])
        return np.concatenate(parts), starts.astype(np.int64)


PARTS: Final = StepTables._fields
SECONDS: Final = ("tokens", "sequences", "decode", "mixed", "launch")  # no knots
(
    _TOKENS, _SEQUENCES, _DECODE_BATCH, _DECODE_KV, _DECODE, _DECODE_SKEW, _CHUNK, _BEFORE,
    _MIXED_BATCH, _MIXED_KV, _MIXED, _MIXED_SKEW, _LAUNCH,
) = range(len(PARTS))  # fmt: skip


def has_skew(values: Floats, starts: Ints) -> bool:
    """Whether contexts that differ move attention from its time at their mean."""
    return any(
        bool(values[starts[part] : starts[part + 1]].any()) for part in (_DECODE_SKEW, _MIXED_SKEW)
    )


@inner
def layer_seconds(values: Floats, starts: Ints, tokens: float, logits: float) -> float:
    """Return the seconds of the layers that work on `tokens` and on so many rows of logits."""
    seconds = 0.0
    if starts[_TOKENS + 1] > starts[_TOKENS]:
        seconds += _by_count(values, starts[_TOKENS], starts[_TOKENS + 1] - 1, tokens)
    if starts[_SEQUENCES + 1] > starts[_SEQUENCES]:
        seconds += _by_count(values, starts[_SEQUENCES], starts[_SEQUENCES + 1] - 1, logits)
    return seconds


@inner
def _by_count(values: Floats, first: int, last: int, count: float) -> float:
    """Return a table's seconds at a count; beyond its end with the slope of its upper half."""
    floor = int(count)
    at = first + floor
    if at < last:
        part = count - floor
        return float(values[at] + (values[at + 1] - values[at]) * part)
    half = (last + first) // 2
    slope = (values[last] - values[half]) / max(last - half, 1)
    return float(values[last] + (count - (last - first)) * slope)


@inner
def _segment(values: Floats, first: int, last: int, at: float) -> int:
    """Return the index of the knot, from `first` to before `last`, whose segment holds `at`.

    What lies outside belongs to the first or the last segment.
    """
    while last - first > 1:
        middle = (first + last) // 2
        if at >= values[middle]:
            first = middle
        else:
            last = middle
    return first


@inner
def _place(values: Floats, knot: int, last: int, at: float) -> float:
    """Return where `at` lies between a knot and the next; 0 before it or if there is none."""
    if knot >= last or at <= values[knot]:
        return 0.0
    return float((at - values[knot]) / (values[knot + 1] - values[knot]))


@inner
def decode_attention(
    values: Floats,
    starts: Ints,
    steps: int,
    decodes: float,
    context: float,
    growth: float,
    longest: float,
    longest_growth: float,
) -> float:
    """Return the attention of `steps` steps that only decode.

    In the i-th the mean context of a request is `context` + i x `growth`, the longest `longest` +
    i x `longest_growth`.
    """
    first, last = starts[_DECODE_BATCH], starts[_DECODE_BATCH + 1] - 1
    if last < first:
        return 0.0
    knot = _segment(values, first, last, decodes)
    place = _place(values, knot, last, decodes)
    at = starts[_DECODE_SKEW] + knot - first
    skew = values[at]
    if place != 0.0:  # beyond the largest batch its skew is held
        skew += (values[at + 1] - skew) * min(place, 1.0)
    width = starts[_DECODE_KV + 1] - starts[_DECODE_KV]
    row = starts[_DECODE] + (knot - first) * width
    seconds = _decode_sum(values, starts, row, width, place, context, growth, steps)
    if skew != 0.0:
        most = max(longest, context)
        other = _decode_sum(values, starts, row, width, place, most, longest_growth, steps)
        seconds += skew * (other - seconds)
    return seconds


@inner
def _decode_sum(
    values: Floats,
    starts: Ints,
    row: int,
    width: int,
    share: float,
    context: float,
    growth: float,
    steps: int,
) -> float:
    """Return the seconds of steps at context, context + growth, ..., segment by segment."""
    first, last = starts[_DECODE_KV], starts[_DECODE_KV + 1] - 1
    total, done = 0.0, 0
    knot = _segment(values, first, last, context)
    while done < steps:
        at = context + done * growth
        while knot < last - 1 and at >= values[knot + 1]:
            knot += 1
        cell = row + knot - first
        low = values[cell]
        if share != 0.0:
            low += (values[cell + width] - low) * share
        many = steps - done
        if at <= values[knot] or last == first:  # before the first knot: held
            if growth > 0.0 and last > first:
                many = min(many, int((values[knot] - at) / growth) + 1)
            total += many * low
        else:
            if growth > 0.0 and knot < last - 1:
                many = min(many, int((values[knot + 1] - at) / growth) + 1)
            high = values[cell + 1]
            if share != 0.0:
                high += (values[cell + width + 1] - high) * share
            slope = (high - low) / (values[knot + 1] - values[knot])
            middle = at + (many - 1) / 2 * growth - values[knot]
            total += many * (low + middle * slope)
        done += many
    return total


@inner
def chunk_attention(values: Floats, starts: Ints, tokens: int, before: int) -> float:
    """Return the attention of one prompt chunk alone, without the launch."""
    if starts[_CHUNK + 1] == starts[_CHUNK]:
        return 0.0
    return _mixed_at(values, starts, float(tokens), float(before), 0.0, 0.0) - float(
        values[starts[_LAUNCH]]
    )


@inner
def mixed_attention(
    values: Floats,
    starts: Ints,
    prompts: float,
    prompt_tokens: float,
    prompt_query: float,
    chunks: float,
    decodes: float,
    context: float,
    longest: float,
) -> float:
    """Return the attention of a step with prompt chunks.

    Several chunks are one of all their tokens with as much before it as gives the same work
    (queries x context): that has as many tiles, and small chunks run side by side. Chunks near
    their prompts' beginnings have less work than one chunk of so many tokens can have; then the
    sum of theirs (`chunks`, each without a launch) is taken in place of the one chunk's.
    """
    if starts[_CHUNK + 1] == starts[_CHUNK]:
        return 0.0
    before = max(prompt_query / prompt_tokens - (prompt_tokens + 1) / 2, 0.0)
    seconds = _mixed_at(values, starts, prompt_tokens, before, decodes, context)
    if decodes and longest > context:
        skew = _mixed_skew(values, starts, before, decodes, longest)
        if skew != 0.0:
            other = _mixed_at(values, starts, prompt_tokens, before, decodes, longest)
            seconds += skew * (other - seconds)
    if prompts > 1:
        alone = _mixed_at(values, starts, prompt_tokens, before, 0.0, 0.0)
        seconds -= max(alone - (values[starts[_LAUNCH]] + chunks), 0.0)
    return seconds


@inner
def _mixed_at(
    values: Floats, starts: Ints, chunk: float, before: float, batch: float, context: float
) -> float:
    """Return attention beside a chunk, by linear interpolation in all four."""
    first_a, last_a = starts[_CHUNK], starts[_CHUNK + 1] - 1
    first_b, last_b = starts[_BEFORE], starts[_BEFORE + 1] - 1
    first_c, last_c = starts[_MIXED_BATCH], starts[_MIXED_BATCH + 1] - 1
    first_d, last_d = starts[_MIXED_KV], starts[_MIXED_KV + 1] - 1
    a, b = _segment(values, first_a, last_a, chunk), _segment(values, first_b, last_b, before)
    c, d = _segment(values, first_c, last_c, batch), _segment(values, first_d, last_d, context)
    in_a, in_b = _place(values, a, last_a, chunk), _place(values, b, last_b, before)
    in_c, in_d = _place(values, c, last_c, batch), _place(values, d, last_d, context)
    of_d = last_d - first_d + 1
    of_c = (last_c - first_c + 1) * of_d
    of_b = (last_b - first_b + 1) * of_c
    cell = (a - first_a) * of_b + (b - first_b) * of_c + (c - first_c) * of_d + d - first_d
    cell += starts[_MIXED]
    seconds = 0.0
    for i in range(2 if in_a else 1):
        for j in range(2 if in_b else 1):
            for k in range(2 if in_c else 1):
                at = cell + i * of_b + j * of_c + k * of_d
                low = values[at]
                if in_d != 0.0:
                    low += (values[at + 1] - low) * in_d
                share = (in_a if i else 1 - in_a) * (in_b if j else 1 - in_b)
                seconds += share * (in_c if k else 1 - in_c) * low
    return seconds


@inner
def _mixed_skew(values: Floats, starts: Ints, before: float, batch: float, longest: float) -> float:
    """Return the skew beside a chunk, by linear interpolation, held beyond the knots."""
    first_b, last_b = starts[_BEFORE], starts[_BEFORE + 1] - 1
    first_c, last_c = starts[_MIXED_BATCH], starts[_MIXED_BATCH + 1] - 1
    first_d, last_d = starts[_MIXED_KV], starts[_MIXED_KV + 1] - 1
    b, c = _segment(values, first_b, last_b, before), _segment(values, first_c, last_c, batch)
    d = _segment(values, first_d, last_d, longest)
    in_b = min(_place(values, b, last_b, before), 1.0)
    in_c = min(_place(values, c, last_c, batch), 1.0)
    in_d = min(_place(values, d, last_d, longest), 1.0)
    of_c = last_d - first_d + 1
    of_b = (last_c - first_c + 1) * of_c
    cell = starts[_MIXED_SKEW] + (b - first_b) * of_b + (c - first_c) * of_c + d - first_d
    skew = 0.0
    for j in range(2 if in_b else 1):
        for k in range(2 if in_c else 1):
            at = cell + j * of_b + k * of_c
            low = values[at]
            if in_d != 0.0:
                low += (values[at + 1] - low) * in_d
            skew += (in_b if j else 1 - in_b) * (in_c if k else 1 - in_c) * low
    return skew
