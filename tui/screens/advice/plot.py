"""What the Front panel draws: axes, points, both fronts, limits and an error bar, as numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from traces.schema.advice import Budget
from traces.schema.formats import scale
from traces.schema.quantities import Quantity, latency, quantity
from tui.text.fronts import CandidateRow
from tui.text.layout import fitting_ticks, log_ticks, with_room
from tui.text.words import front_goal

AXES = ("latency_s", "latency_p95_s", "cost_usd", "device_s", "energy_j", "tokens", "flops")
FAR = 4.0  # times the least number that the largest is, from which an axis is logarithmic
Line = tuple[list[float], list[float]]


def axes(budget: Budget, rows: Sequence[CandidateRow]) -> list[Quantity]:
    """Return what accuracy is drawn against, what is optimised first; none where none is known."""
    goal = front_goal(budget).name
    first = "device_s" if goal == "throughput_problems_per_s" else goal
    names = dict.fromkeys([first, latency(budget.latency_percentile).name, *AXES])
    return [
        quantity(name)
        for name in names
        if any(
            row.pick.estimates.get(name) is not None
            and row.pick.estimates.get("accuracy") is not None
            for row in rows
        )
    ]


def next_axis(known: Sequence[Quantity], current: Quantity | None) -> Quantity | None:
    """Return the axis after the current one."""
    if current not in known:
        return known[0] if known else None
    return known[(known.index(current) + 1) % len(known)]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A point and the ends of its intervals, which need not lie as far from it on both sides."""

    x: float
    y: float
    across: tuple[float, float]
    up: tuple[float, float]

    def arms(self) -> Iterator[tuple[float, float, float, float]]:
        """Yield each bar: its middle (x, y), and half of its width and height, one of them 0."""
        (left, right), (bottom, top) = self.across, self.up
        yield (left + right) / 2, self.y, (right - left) / 2, 0.0
        yield self.x, (bottom + top) / 2, 0.0, (top - bottom) / 2


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Accuracy against an axis, which is logarithmic where numbers lie far apart.

    Numbers are divided by `factor`, which gives the `unit` that tables write the largest in.
    """

    axis: Quantity
    log: bool
    factor: float
    unit: str

    @classmethod
    def of(cls, rows: Sequence[CandidateRow], axis: Quantity) -> Plane:
        xs = [each.value for row in rows if (each := row.pick.estimates.get(axis.name))]
        factor, unit = scale(max(xs, default=0.0), axis.unit)
        log = bool(xs) and min(xs) > 0 and max(xs) > FAR * min(xs)
        return cls(axis=axis, log=log, factor=factor, unit=unit)

    @property
    def title(self) -> str:
        """What stands at the axis: what it shows, and in which unit."""
        noun, unit = self.axis.noun, self.unit or self.axis.unit
        return noun if noun == unit else f"{noun} ({unit})"

    def x(self, value: float) -> float:
        """Return where a number of the axis lies."""
        value /= self.factor
        return math.log10(value) if self.log else value

    def place(self, row: CandidateRow) -> tuple[float, float] | None:
        x, y = (row.pick.estimates.get(name) for name in (self.axis.name, "accuracy"))
        return None if x is None or y is None else (self.x(x.value), y.value)

    def points(self, rows: Sequence[CandidateRow]) -> Mapping[str, Line]:
        """Return the places of the rows by their symbol."""
        by_symbol: dict[str, Line] = {}
        for row in rows:
            place = self.place(row)
            if place is not None:
                for values, value in zip(
                    by_symbol.setdefault(row.symbol, ([], [])), place, strict=True
                ):
                    values.append(value)
        return by_symbol

    def front(self, rows: Sequence[CandidateRow], role: str) -> Line:
        """Return a front's places by accuracy."""
        placed = [self.place(row) for row in rows if role in row.roles]
        places = sorted((y, x) for x, y in filter(None, placed))
        return [x for _, x in places], [y for y, _ in places]

    def error_bar(self, row: CandidateRow) -> Bar | None:
        """Return a candidate's error bar, None where an end of it is not known."""
        place, ends = self.place(row), []
        for name, at in ((self.axis.name, self.x), ("accuracy", float)):
            estimate = row.pick.estimates.get(name)
            if estimate is None or estimate.low is None or estimate.high is None:
                return None
            if at == self.x and self.log and estimate.low <= 0:
                return None
            ends.append((at(estimate.low), at(estimate.high)))
        assert place is not None
        return Bar(x=place[0], y=place[1], across=ends[0], up=ends[1])

    def ticks(self, low: float, high: float, columns: int) -> list[float]:
        """Return where ticks lie whose labels stand apart."""
        if self.log:
            return [math.log10(each) for each in log_ticks(10**low, 10**high, columns)]
        return fitting_ticks(low, high, columns)

    def room(self, xs: Sequence[float]) -> tuple[float, float]:
        """Return limits of the axis around places."""
        if not self.log:
            return with_room(xs)
        room = 0.08 * (max(xs) - min(xs))
        return min(xs) - room, max(xs) + room


def dotted(line: Line, x_gap: float, y_gap: float) -> Line:
    """Return points along a line so far apart, of which the larger share of a gap counts."""
    xs: list[float] = []
    ys: list[float] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(zip(*line, strict=True)):
        steps = max(int(max(abs(x1 - x0) / x_gap, abs(y1 - y0) / y_gap)), 1)
        xs += [x0 + (x1 - x0) * at / steps for at in range(steps)]
        ys += [y0 + (y1 - y0) * at / steps for at in range(steps)]
    return xs, ys
