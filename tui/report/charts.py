"""Charts as inline SVG: accuracy against a measure, with intervals, fronts, picks and limits."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from traces.schema.estimate import Estimate
from traces.schema.formats import scale
from tui.report.markup import Html, tag
from tui.text.layout import ticks, with_room

WIDTH, HEIGHT = 460.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 12.0, 46.0
LOG_FROM: Final = 8.0  # largest over smallest value from which an axis is logarithmic


@dataclass(frozen=True, kw_only=True)
class Point:
    """A configuration on a chart: its place, its role (also its CSS class), and its tooltip.

    It is system or compute by the front that it is on, both, measured, pick or rival.
    """

    x: Estimate
    y: Estimate
    shape: str
    tip: str


@dataclass(frozen=True, kw_only=True)
class PixelAxis:
    """Maps values to pixels; `log` where the values span much."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a value; those outside are put at the rim."""
        low, high = self._of(self.low), self._of(self.high)
        share = (self._of(max(value, self.low)) - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def marks(self) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high, 6)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            numbers = [
                step * 10.0**power
                for power in range(
                    math.floor(self._of(self.low)), math.floor(self._of(self.high)) + 1
                )
                for step in steps
                if self.low <= step * 10.0**power <= self.high
            ]
            if len(numbers) <= 8:
                return numbers
        return numbers


def _ends(estimate: Estimate) -> list[float]:
    return [end for end in (estimate.low, estimate.value, estimate.high) if end is not None]


def _x_axis(values: Sequence[float]) -> PixelAxis:
    low, high = min(values), max(values)
    log = low > 0 and high / low > LOG_FROM
    start, end = (low / 1.15, high * 1.15) if log else with_room((low, high))
    return PixelAxis(low=start, high=end, start=LEFT, end=WIDTH - RIGHT, log=log)


def scatter(
    points: Sequence[Point],
    *,
    label: str,
    unit: str,
    x_limit: float | None = None,
    y_limit: float | None = None,
    joined: Collection[str] = (),
) -> Html:
    """Return accuracy (up) against a measure (right); lines join the fronts that are `joined`."""
    limits = [] if x_limit is None else [x_limit]
    xs = [end for point in points for end in _ends(point.x)]
    inside = [limit for limit in limits if min(xs) / 3 < limit < max(xs) * 3]
    across = _x_axis([*xs, *inside])
    ys = [end for point in points for end in _ends(point.y)]
    ys += [] if y_limit is None else [y_limit]
    low, high = with_room(ys)
    upward = PixelAxis(low=low, high=min(high, 1.02), start=HEIGHT - BOTTOM, end=TOP)
    factor, name = money(across.high) if unit == "USD" else scale(across.high, unit)
    parts: list[Html] = [*_grid(across, upward, factor, f"{label} ({name})" if name else label)]
    if y_limit is not None:
        parts.append(_limit(LEFT, upward.at(y_limit), WIDTH - RIGHT, upward.at(y_limit)))
    for limit in inside:
        parts.append(_limit(across.at(limit), TOP, across.at(limit), HEIGHT - BOTTOM))
    for kind in joined:
        front = [p for p in points if p.shape in (kind, "both")]
        parts.append(_line(sorted(front, key=lambda p: p.y.value), across, upward, kind))
    order = ("measured", "both", "system", "compute", "rival", "pick")
    for point in sorted(points, key=lambda p: order.index(p.shape)):
        parts.append(_mark(point, across, upward))
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="group",
        aria_label=f"accuracy against {label}",
    )


def money(most: float) -> tuple[float, str]:
    """Return what to divide dollars by so that they can be read, and what they are then."""
    if most >= 0.01:
        return 1.0, "$"
    return (1e-3, "$ per 1,000") if most >= 1e-5 else (1e-6, "$ per million")


def _grid(across: PixelAxis, upward: PixelAxis, factor: float, label: str) -> list[Html]:
    parts = []
    for mark in upward.marks():
        y = upward.at(mark)
        parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(tag("text", f"{mark:g}", x=LEFT - 7, y=y + 4, text_anchor="end"))
    for mark in across.marks():
        x = across.at(mark)
        parts.append(tag("line", class_="grid", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM))
        text = f"{mark / factor:,.6g}"
        parts.append(tag("text", text, x=x, y=HEIGHT - BOTTOM + 17, text_anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    logged = f"{label}, logarithmic" if across.log else label
    parts.append(
        tag("text", f"{logged} →", class_="title", x=middle, y=HEIGHT - 8, text_anchor="middle")
    )
    up = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        tag(
            "text", "accuracy →", class_="title", x=13.0, y=up, text_anchor="middle",
            transform=f"rotate(-90 13 {up:g})",
        )
    )  # fmt: skip
    return parts


def _limit(x1: float, y1: float, x2: float, y2: float) -> Html:
    return tag("line", class_="limit", x1=x1, y1=y1, x2=x2, y2=y2)


def _line(points: Sequence[Point], across: PixelAxis, upward: PixelAxis, kind: str) -> Html:
    places = " ".join(f"{across.at(p.x.value):.1f},{upward.at(p.y.value):.1f}" for p in points)
    return tag("polyline", class_=f"front {kind}", points=places, fill="none")


def _mark(point: Point, across: PixelAxis, upward: PixelAxis) -> Html:
    x, y = across.at(point.x.value), upward.at(point.y.value)
    parts: list[Html] = []
    for estimate, axis, horizontal in ((point.x, across, True), (point.y, upward, False)):
        if estimate.low is None or estimate.high is None or point.shape == "measured":
            continue
        low, high = axis.at(estimate.low), axis.at(estimate.high)
        ends = (low, y, high, y) if horizontal else (x, low, x, high)
        x1, y1, x2, y2 = ends
        parts.append(tag("line", class_="whisker", x1=x1, y1=y1, x2=x2, y2=y2))
    parts += symbol(point.shape, x, y)
    beyond = point.x.extrapolated or point.y.extrapolated
    return tag(
        "g",
        *parts,
        class_=f"mark {point.shape}{' beyond' if beyond else ''}",
        tabindex="0",
        role="img",
        aria_label=point.tip,
    )


def symbol(shape: str, x: float, y: float) -> list[Html]:
    """Return how a shape is drawn around a place: told apart without colour."""
    dot = tag("circle", class_="dot", cx=x, cy=y, r=4.0)
    square = tag("rect", class_="square", x=x - 6, y=y - 6, width=12.0, height=12.0)
    letter = {"pick": "A", "rival": "B"}.get(shape, "")
    text = tag("text", letter, class_="letter", x=x, y=y + 4.5, text_anchor="middle")
    if shape == "pick":
        return [tag("circle", class_="badge", cx=x, cy=y, r=10.0), text]
    if shape == "rival":
        return [tag("rect", class_="badge", x=x - 9, y=y - 9, width=18.0, height=18.0), text]
    if shape == "measured":
        return [tag("path", d=f"M{x - 4:g} {y - 4:g}l8 8m0 -8l-8 8")]
    if shape == "both":
        return [square, dot]
    return [dot] if shape == "system" else [square]


def key(shape: str, text: str, *, joined: bool = False) -> Html:
    """Return one entry of a legend, of a front that is `joined` somewhere with its line."""
    line = tag("line", class_=f"front {shape}", x1=0.0, x2=34.0, y1=12.0, y2=12.0)
    drawn = [line] if joined else []
    mark = tag("g", *symbol(shape, 17.0, 12.0), class_=f"mark {shape}")
    svg = tag("svg", *drawn, mark, viewBox="0 0 34 24", width="34", height="24", aria_hidden="true")
    return tag("span", svg, text, class_="key")


def limit_key() -> Html:
    """Return the legend's entry of the budget's limits."""
    svg = tag(
        "svg", _limit(0, 12, 34, 12), viewBox="0 0 34 24", width="34", height="24",
        aria_hidden="true",
    )  # fmt: skip
    return tag("span", svg, "limit of the budget", class_="key")
