"""Lists of linked records and heaps of samples in a replayed engine, without allocation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from advisor.compiled import inner, wide
from advisor.replay.simulation.state import NONE, World


@inner
def append(records: npt.NDArray[np.void], line: Any, i: int) -> None:
    """Put a record at the end of a list."""
    record = records[i]
    record.before, record.after = line.last, NONE
    if line.last == NONE:
        line.first = i
    else:
        records[line.last].after = i
    line.last = i


@inner
def unlink(records: npt.NDArray[np.void], line: Any, i: int) -> None:
    """Take a record out of its list."""
    record = records[i]
    if record.before == NONE:
        line.first = record.after
    else:
        records[record.before].after = record.after
    if record.after == NONE:
        line.last = record.before
    else:
        records[record.after].before = record.before


@inner
def wait_first(world: World, e: int, s: int) -> None:
    """Put a sample at the front of the waiting list."""
    engine, sample = world.engines[e], world.samples[s]
    engine.waiting += 1
    sample.before, sample.after = NONE, engine.queue.first
    if engine.queue.first == NONE:
        engine.queue.last = s
    else:
        world.samples[engine.queue.first].before = s
    engine.queue.first = s


@inner
def _sooner(world: World, tall: int, one: int, other: int) -> bool:
    """Whether a sample comes before another: by its turn, or by its context if `tall` is 1."""
    a, b = world.samples[one], world.samples[other]
    if tall:
        return a.known - a.since > b.known - b.since
    return a.turns < b.turns or (a.turns == b.turns and one < other)


@inner
def _put(world: World, tall: int, e: int, place: int, s: int) -> None:
    if tall:
        world.slots[e, place].tall = s
        world.samples[s].rank = place
    else:
        world.slots[e, place].heap = s
        world.samples[s].place = place


@inner
def _at(world: World, tall: int, e: int, place: int) -> int:
    return world.slots[e, place].tall if tall else world.slots[e, place].heap


@inner
def _settle(world: World, tall: int, e: int, place: int, s: int, count: int) -> None:
    """Put a sample where it belongs, from a free place on up or down."""
    while place > 0:
        parent = _at(world, tall, e, (place - 1) // 2)
        if not _sooner(world, tall, s, parent):
            break
        _put(world, tall, e, place, parent)
        place = (place - 1) // 2
    while True:
        child = 2 * place + 1
        if child >= count:
            break
        least = _at(world, tall, e, child)
        if child + 1 < count:
            other = _at(world, tall, e, child + 1)
            if _sooner(world, tall, other, least):
                child, least = child + 1, other
        if not _sooner(world, tall, least, s):
            break
        _put(world, tall, e, place, least)
        place = child
    _put(world, tall, e, place, s)


@inner
def push(world: World, e: int, s: int, keep_longest: bool) -> None:
    """Add a decoding sample to the heaps."""
    engine = world.engines[e]
    engine.heap += 1
    _settle(world, wide(0), e, engine.heap - 1, s, engine.heap)
    if keep_longest:
        _settle(world, wide(1), e, engine.heap - 1, s, engine.heap)


@inner
def sink(world: World, e: int, s: int) -> None:
    """Put a sample whose turn is later now where it belongs in its heap."""
    engine = world.engines[e]
    _settle(world, wide(0), e, wide(world.samples[s].place), s, engine.heap)


@inner
def remove(world: World, e: int, s: int, keep_longest: bool) -> None:
    """Take a sample out of the heaps."""
    engine, sample = world.engines[e], world.samples[s]
    engine.heap -= 1
    last = world.slots[e, engine.heap].heap
    if last != s:
        _settle(world, wide(0), e, wide(sample.place), last, engine.heap)
    if keep_longest:
        last = world.slots[e, engine.heap].tall
        if last != s:
            _settle(world, wide(1), e, wide(sample.rank), last, engine.heap)


@inner
def longest(world: World, e: int, keep_longest: bool) -> float:
    """Return the most context that a decoding sample reads in the next step, 0 if not kept."""
    engine = world.engines[e]
    if not keep_longest or engine.heap == 0:
        return 0.0
    sample = world.samples[world.slots[e, 0].tall]
    return float(sample.known - sample.since + engine.clock + 1)
