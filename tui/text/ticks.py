"""Round numbers along an axis, and their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence


def with_room(values: Sequence[float]) -> tuple[float, float]:
    """Return limits of an axis a tenth wider than the values, not below 0."""
    low, high = min(values), max(values)
    room = (high - low) * 0.1 or max(abs(high) * 0.1, 0.01)
    return max(low - room, 0.0), high + room


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return about `most` round numbers between two limits, and never fewer than two."""
    if not high > low:
        return [low]
    places: list[float] = []
    power = 10.0 ** math.floor(math.log10((high - low) / max(most, 2)))
    for step in (power / 2, power, 2 * power, 5 * power, 10 * power):
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        if last - first < 1 and places:
            break
        places = [round(index * step, 12) for index in range(first, last + 1)]
        if len(places) <= max(most, 2):
            break
    return places


def tick_labels(places: Sequence[float]) -> list[str]:
    """Return ticks as text, with the decimals that the finest of them needs."""
    labels: list[str] = []
    for decimals in range(13):
        labels = [f"{tick:.{decimals}f}" for tick in places]
        if all(abs(float(t) - x) <= 1e-12 * abs(x) for t, x in zip(labels, places, strict=True)):
            break
    return labels


def fitting_ticks(low: float, high: float, columns: int) -> list[float]:
    """Return round numbers along an axis of so many columns whose labels stand apart.

    At least two: where not even a few fit, the first with the last that leaves it room.
    """
    if not high > low:
        return [low]
    places: list[float] = []
    for most in range(max(columns // 8, 2), 1, -1):
        places = ticks(low, high, most)
        if _stand_apart(places, low, high, columns):
            return places
    for each in (places, ticks(low, high, 5), ticks(low, high, 10)):
        for last in each[:0:-1]:
            if _stand_apart([each[0], last], low, high, columns):
                return [each[0], last]
    return [places[0], places[-1]]


def _stand_apart(places: Sequence[float], low: float, high: float, columns: int) -> bool:
    """Return whether a blank is left between labels, put as textual-plot puts them."""
    free = -math.inf
    for tick, label in zip(places, tick_labels(places), strict=True):
        middle = 1 + math.floor((tick - low) * columns / (high - low)) - (tick == low)
        begin = middle - (len(label) - 1) // 2 if tick != high else middle - len(label) + 1
        if begin <= free:
            return False
        free = begin + len(label)
    return free <= columns + 2  # the axis and its frame; what lies behind is cut
