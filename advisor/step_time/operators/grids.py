"""Times between measured ones: on a grid with holes, and in pieces between breaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from traces.statistics import Floats

STALL: Final = 1.2  # times what more work takes: measured kernels differ by as much


def to_grid(rows: Floats, values: Floats) -> tuple[list[Floats], Floats]:
    """Return the sorted knots of each column of `rows`, and the values on their grid.

    Where nothing was measured the grid is NaN.
    """
    knots, places = [], []
    for column in rows.T:
        known, place = np.unique(column, return_inverse=True)
        knots.append(known)
        places.append(place)
    grid = np.full([len(known) for known in knots], np.nan)
    grid[tuple(places)] = values
    return knots, grid


def fill_between(grid: Floats, knots: Sequence[Floats], axes: Sequence[int]) -> None:
    """Fill holes between two known values of a line, linearly, axis by axis, until none is left."""
    left = -1
    while left != (left := int(np.isnan(grid).sum())):
        for axis in axes:
            for line in _lines(grid, axis):
                known = ~np.isnan(line)
                found = np.flatnonzero(known)
                if len(found) > 1:
                    inner = slice(found[0], found[-1] + 1)
                    line[inner] = np.interp(knots[axis][inner], knots[axis][known], line[known])


def fill_beyond(grid: Floats, knots: Sequence[Floats], axes: Sequence[int], *, hold: bool) -> None:
    """Fill the ends of lines: held at the first value, and held or going on after the last."""
    for axis in axes:
        at = knots[axis]
        for line in _lines(grid, axis):
            found = np.flatnonzero(~np.isnan(line))
            if not len(found):
                continue
            first, last = found[0], found[-1]
            line[:first] = line[first]
            slope = 0.0
            if len(found) > 1 and not hold:
                before = found[-2]
                slope = max((line[last] - line[before]) / (at[last] - at[before]), 0.0)
            line[last + 1 :] = line[last] + slope * (at[last + 1 :] - at[last])


def without_stalls(times: Floats, axis: int = -1) -> Floats:
    """Return times that grow along an axis, but for what kernels of other shapes take.

    Fewer tokens, requests or less context never take long: they could be padded. So a time of more
    than `STALL` times a later one is a disturbed measurement, and that much is kept of it.
    """
    later = np.flip(np.fmin.accumulate(np.flip(times, axis), axis), axis)
    return np.asarray(np.minimum(times, STALL * later), dtype=float)


def growing(times: Floats) -> Floats:
    """Return times [counts] that never fall: nearest in the log to those without stalls.

    Isotonic regression by pooling adjacent violators (Barlow et al. 1972).
    """
    logs = np.log(without_stalls(times))
    if (np.diff(logs) >= 0).all():
        return np.asarray(np.exp(logs), dtype=float)
    means, sizes = list[float](), list[int]()
    for each in logs.tolist():
        means.append(each)
        sizes.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            last, count = means.pop(), sizes.pop()
            means[-1] = (means[-1] * sizes[-1] + last * count) / (sizes[-1] + count)
            sizes[-1] += count
    return np.asarray(np.exp(np.repeat(means, sizes)), dtype=float)


def _lines(grid: Floats, axis: int) -> list[Floats]:
    """Return views of the lines along an axis that have holes and something known."""
    lines = np.moveaxis(grid, axis, -1)
    holes = np.isnan(lines)
    some = holes.any(axis=-1) & ~holes.all(axis=-1)
    return [lines[tuple(place)] for place in np.argwhere(some)]


def interpolate(grid: Floats, knots: Sequence[Floats], at: Sequence[Floats]) -> Floats:
    """Return a grid of two axes at points, linear between knots and held beyond them."""
    places = []
    for known, values in zip(knots, at, strict=True):
        inside = np.clip(values, known[0], known[-1])
        low = np.clip(np.searchsorted(known, inside, side="right") - 1, 0, max(len(known) - 2, 0))
        high = np.minimum(low + 1, len(known) - 1)
        gap = np.where(high > low, known[high] - known[low], 1.0)
        places.append((low, high, (inside - known[low]) / gap))
    (i, next_i, a), (j, next_j, b) = places
    first = grid[i, j] * (1 - b) + grid[i, next_j] * b
    second = grid[next_i, j] * (1 - b) + grid[next_i, next_j] * b
    return np.asarray(first * (1 - a) + second * a, dtype=float)


def doubled(knots: Floats, until: float) -> Floats:
    """Return knots continued by twice the last until one reaches `until`."""
    more = list(knots)
    while more[-1] < until:
        more.append(2 * more[-1])
    return np.array(more)


def pieces(values: Floats, breaks: Floats) -> Floats:
    """Return [values, pieces]: how much of each value lies between breaks, and beyond the last."""
    low = np.concatenate([[0.0], breaks])
    width = np.concatenate([np.diff(low), [np.inf]])
    return np.asarray(np.clip(values[:, None] - low, 0.0, width), dtype=float)
