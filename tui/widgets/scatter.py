"""A chart of points and lines in a frame with ticks, which draws itself as one widget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.reactive import Reactive
from textual.strip import Strip
from textual.widget import Widget

from tui.text.layout import tick_labels

LEFT = 7  # columns left of the frame
TALL = 12  # rows from which the axes have labels
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a braille cell, by column and row
Cell = tuple[str, Style]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows, from where to where, and where its ticks are.

    Of a logarithmic one these are logarithms (base 10) of what is written.
    """

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False

    def share(self, value: float) -> float:
        """Return how far along the axis a value lies, from 0 to 1."""
        return (value - self.low) / ((self.high - self.low) or 1.0)

    def named(self) -> Iterator[tuple[float, str]]:
        """Yield the ticks that lie on it, with what is written at them."""
        labels = tick_labels(self.ticks)
        if self.log:
            labels = [f"{float(f'{10**tick:.6g}'):g}" for tick in self.ticks]
        for tick, label in zip(self.ticks, labels, strict=True):
            if self.low <= tick <= self.high:
                yield self.share(tick), label


class Scatter(Widget):
    """Takes axes, then what is drawn in their frame: later things hide earlier ones.

    `draw` is called before it is shown in another size, or after `redraw`. Its size asks for no
    layout of the screen.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"scatter--axis", "scatter--text"}
    DEFAULT_CSS = """
    Scatter {
        & > .scatter--axis { color: $foreground 35%; }
        & > .scatter--text { color: $text-muted; }
    }
    """

    virtual_size = Reactive(Size(0, 0))

    def __init__(self, *, id: str, draw: Callable[[], None]) -> None:
        super().__init__(id=id)
        self.x: Axis | None = None
        self.y: Axis | None = None
        self.columns = 1  # of the x axis: what the left margin and the frame leave
        self.rows = 1  # of the y axis
        self._draw = draw
        self._is_stale = False
        self._fitted = Size(0, 0)
        self._margins = (0, 1)  # rows above the frame and below it
        self._cells: dict[tuple[int, int], Cell] = {}  # in the frame, by column and row
        self._strips: list[Strip] | None = None

    def _fit(self) -> None:
        self._fitted = self.size
        self._margins = (1, 3) if self.size.height >= TALL else (0, 1)
        self.columns = max(self.size.width - LEFT - 2, 1)
        self.rows = max(self.size.height - sum(self._margins) - 2, 1)
        self._is_stale, self._strips = True, None

    def redraw(self) -> None:
        """Have it drawn again before it is shown next."""
        self._is_stale = True
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips = None

    # -- what is drawn -------------------------------------------------------------------------

    def clear(self) -> None:
        self.begin(None, None)

    def begin(self, x: Axis | None, y: Axis | None) -> None:
        """Draw again between these axes."""
        self.x, self.y, self._strips = x, y, None
        self._cells.clear()
        if not self._is_stale:
            self.refresh()

    def points(self, xs: Iterable[float], ys: Iterable[float], mark: str, style: str) -> None:
        for place in map(self._cell, xs, ys):
            self._put(place, mark, style)

    def line(self, xs: Sequence[float], ys: Sequence[float], style: str) -> None:
        """Join places by lines of dots. A cell holds two by four dots."""
        dots: list[tuple[int, int]] = []
        for (x0, y0), (x1, y1) in pairwise(map(self._dot, xs, ys)):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            dots += [
                (round(x0 + (x1 - x0) * at / steps), round(y0 + (y1 - y0) * at / steps))
                for at in range(steps + 1)
            ]
        self._put_dots(dots, style)

    def dots(self, xs: Iterable[float], ys: Iterable[float], style: str) -> None:
        self._put_dots(map(self._dot, xs, ys), style)

    def bar(self, x: float, y: float, style: str, *, across: float = 0.0, up: float = 0.0) -> None:
        """Draw an error bar of half widths in one direction around a place, to half a cell."""
        assert self.x is not None and self.y is not None
        column, row = self._cell(x, y)
        if across:
            length = round(2 * across / (self.x.high - self.x.low) * self.columns) - 1
            step, line, ends = (1, 0), "─", ("╶", "╴")
        else:
            length = round(2 * up / (self.y.high - self.y.low) * self.rows) - 1
            step, line, ends = (0, 1), "│", ("╷", "╵")
        full = max(length, 0) // 2
        for at in range(-full, full + 1):
            self._put((column + at * step[0], row + at * step[1]), line, style)
        if length > 0 and length % 2:
            for at, end in zip((-full - 1, full + 1), ends, strict=True):
                self._put((column + at * step[0], row + at * step[1]), end, style)

    def _cell(self, x: float, y: float) -> tuple[int, int]:
        assert self.x is not None and self.y is not None
        column = math.floor(self.x.share(x) * self.columns)
        return column, math.ceil((1 - self.y.share(y)) * self.rows) - 1

    def _dot(self, x: float, y: float) -> tuple[int, int]:
        assert self.x is not None and self.y is not None
        column = math.floor(self.x.share(x) * self.columns * 2)
        return column, math.floor((1 - self.y.share(y)) * self.rows * 4)

    def _put_dots(self, dots: Iterable[tuple[int, int]], style: str) -> None:
        cells: dict[tuple[int, int], int] = {}
        for column, row in dots:
            cell = (column // 2, row // 4)
            cells[cell] = cells.get(cell, 0) | DOTS[column % 2][row % 4]
        for cell, bits in cells.items():
            self._put(cell, chr(0x2800 + bits), style)

    def _put(self, place: tuple[int, int], mark: str, style: str) -> None:
        if 0 <= place[0] < self.columns and 0 <= place[1] < self.rows:
            self._cells[place] = (mark, Style.parse(style))

    # -- how -----------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        if self._fitted != self.size:
            self._fit()
        if self._is_stale:
            self._draw()
            self._is_stale, self._strips = False, None
        if self._strips is None:
            self._strips = [*self._drawn()]
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width)

    def _drawn(self) -> Iterator[Strip]:
        width, height = self.size
        base = self.rich_style
        blank = (" ", base)
        lines: list[list[Cell]] = [[blank] * width for _ in range(height)]
        if self.x is not None and self.y is not None:
            self._draw_axes(self.x, self.y, lines)
            top = self._margins[0] + 1
            for (column, row), (mark, style) in self._cells.items():
                if column < self.columns and row < self.rows:  # else it is still to be drawn
                    lines[top + row][LEFT + 1 + column] = (mark, base + style)
        for line in lines:
            yield Strip(
                [
                    Segment("".join(mark for mark, _ in cells), style)
                    for style, cells in groupby(line, key=lambda cell: cell[1])
                ],
                width,
            )

    def _draw_axes(self, x: Axis, y: Axis, lines: list[list[Cell]]) -> None:
        axis = self.get_component_rich_style("scatter--axis")
        text = self.get_component_rich_style("scatter--text")
        (above, below), columns, rows = self._margins, self.columns, self.rows
        foot = above + rows + 1

        def write(begin: int, row: int, words: str, style: Style) -> None:
            if row < len(lines):
                for at, letter in enumerate(words, begin):
                    if 0 <= at < len(lines[row]):
                        lines[row][at] = (letter, style)

        write(LEFT, above, f"┏{'━' * columns}┓", axis)
        for row in range(above + 1, foot):
            write(LEFT, row, "┃", axis)
            write(LEFT + columns + 1, row, "┃", axis)
        write(LEFT, foot, f"┗{'━' * columns}┛", axis)
        for share, label in x.named():
            at = LEFT + 1 + math.floor(share * columns) - (share == 0)
            if LEFT < at <= LEFT + columns:
                write(at, above, "┻", axis)
                write(at, foot, "┳", axis)
            write(at - len(label) + 1 if share == 1 else _middle(at, label), foot + 1, label, text)
        for share, label in y.named():
            row = above + max(math.ceil((1 - share) * rows), 1)
            write(LEFT, row, "┫", axis)
            write(LEFT + columns + 1, row, "┣", axis)
            write(LEFT - 1 - len(label[: LEFT - 1]), row, label[: LEFT - 1], text)
        if below > 1:
            write(_middle(LEFT - 2, y.label), 0, y.label, text)
            write(_middle(LEFT + (columns + 2) // 2, x.label), foot + 3, x.label, text)


def _middle(at: int, words: str) -> int:
    """Return where words begin whose middle is at a column."""
    return at - (len(words) - 1) // 2
