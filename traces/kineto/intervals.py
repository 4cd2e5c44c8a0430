"""Arithmetic of time intervals: what encloses, what overlaps, what is left. All in nanoseconds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_DEEPEST = 64


def distinct(values: Ints) -> list[int]:
    """Return the different values in order; np.unique costs an import of numpy.ma."""
    return sorted(set(values.tolist()))


def enclosing(starts: Ints, ends: Ints, times: Ints) -> Ints:
    """Return for each time the index of the interval that holds it, -1 where none does.

    `starts` is sorted. Where intervals nest or overlap, the last begun counts; one that lies
    under more than 64 later ones is not found.
    """
    indices = np.full(times.shape, -1, dtype=np.int64)
    if not starts.size:
        return indices
    place = np.searchsorted(starts, times, side="right") - 1
    reach = np.maximum.accumulate(ends)  # no interval up to here ends later
    open_ = np.flatnonzero(place >= 0)
    for _ in range(_DEEPEST):
        if not open_.size:
            break
        at, time = place[open_], times[open_]
        holds = ends[at] >= time
        indices[open_[holds]] = at[holds]
        open_ = open_[~holds & (reach[at] >= time) & (at > 0)]
        place[open_] -= 1
    return indices


def union(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Return the same stretch of time as intervals that are sorted and do not touch."""
    if not starts.size:
        return starts, ends
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    reach = np.maximum.accumulate(ends)
    first = np.concatenate(([True], starts[1:] > reach[:-1]))
    last = np.concatenate((first[1:], [True]))
    return starts[first], reach[last]


def covered(whole: tuple[Ints, Ints], starts: Ints, ends: Ints) -> Ints:
    """Return how much of each interval lies inside `whole`, which `union` made."""
    begin, end = whole
    if not begin.size:
        return np.zeros(starts.shape, dtype=np.int64)
    before = np.concatenate(([0], np.cumsum(end - begin)))

    def up_to(times: Ints) -> Any:
        place = np.searchsorted(begin, times, side="right") - 1
        inside = np.clip(times - begin[place], 0, (end - begin)[place])
        return np.where(place < 0, 0, before[np.maximum(place, 0)] + inside)

    return np.asarray(up_to(ends) - up_to(starts), dtype=np.int64)


def length(starts: Ints, ends: Ints) -> int:
    """Return the length of the union of intervals."""
    begin, end = union(starts, ends)
    return int((end - begin).sum())


class Union:
    """The union of intervals that arrive a chunk at a time.

    Chunks in the order of time are kept beside one another. Others are merged when about of one
    size, so that none is looked at more often than the logarithm of their number.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, Ints]] = []
        self._in_order = True

    def add(self, starts: Ints, ends: Ints) -> None:
        if not starts.size:
            return
        part = union(starts, ends)
        self._in_order &= not self._parts or bool(part[0][0] > self._parts[-1][1][-1])
        self._parts.append(part)
        while (
            not self._in_order
            and len(self._parts) > 1
            and self._parts[-1][0].size * 2 > self._parts[-2][0].size
        ):
            self._parts[-2:] = [_merged(self._parts[-2:])]

    def whole(self) -> tuple[Ints, Ints]:
        """Return all of it, as `union` does."""
        return _merged(self._parts)

    def length(self) -> int:
        parts = self._parts if self._in_order else [self.whole()]
        return sum(int((end - begin).sum()) for begin, end in parts)


def _merged(parts: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    if not parts:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    starts, ends = map(np.concatenate, zip(*parts, strict=True))
    return union(starts, ends)


def self_times(threads: Ints, starts: Ints, durations: Ints) -> Ints:
    """Return each operator's time without what it called on its own thread.

    An operator that ends after its caller (a damaged trace) takes only their overlap from it.
    """
    ends = starts + durations
    order = np.lexsort((-durations, starts, threads))
    thread, start, end = (array[order].tolist() for array in (threads, starts, ends))
    own_times = durations[order].tolist()
    stack: list[int] = []
    current = None
    for index, begin in enumerate(start):
        if thread[index] != current:
            current = thread[index]
            stack.clear()
        while stack and end[stack[-1]] <= begin:
            stack.pop()
        if stack:
            caller = stack[-1]
            own_times[caller] -= min(end[index], end[caller]) - begin
        stack.append(index)
    result = np.empty(len(own_times), dtype=np.int64)
    result[order] = np.maximum(np.asarray(own_times, dtype=np.int64), 0)
    return result
