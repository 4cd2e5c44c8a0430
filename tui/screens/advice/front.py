"""The Front panel: both fronts in a plot, and what is on them in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.events import Resize
from textual.message import Message
from textual.widgets import DataTable

from traces.schema.advice import Budget, Recommendation
from traces.schema.quantities import Quantity
from tui.screens.advice.plot import Plane, axes, dotted, next_axis
from tui.screens.advice.rows import COLOURS, CUT, table_of
from tui.text.advice import limit_on
from tui.text.fronts import FLOPS, FRONT, CandidateRow, joined_on, names_of
from tui.text.layout import ticks, with_room
from tui.widgets.scatter import Axis, Scatter
from tui.widgets.still import StillColumn, StillRow, StillText
from tui.widgets.table import RowTable

TABLE_SHARE = 0.6  # of the width, at most
LEAST_PLOT = 28
STACKED = 100  # columns below which the rows stand under the plot where their names are cut
EDGE = 2  # a scroll bar
JOINTS = {"●": "─", "○": "┈"}  # of the fronts, in the legend


JustifyMethod = Literal["left", "right"]


class FrontPanel(StillColumn):
    """Shows an answer's candidates; the row under the cursor has its error bar in the plot."""

    @dataclass
    class RowChanged(Message):
        """Another row is looked at."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, classes="panel")
        self.rows: list[CandidateRow] = []
        self._answer: Recommendation | None = None
        self._axis: Quantity | None = None
        self._goal: Quantity | None = None  # what was drawn first, until another axis is chosen
        self._filled: tuple[object, ...] = ()  # what the table shows
        self._plotted: tuple[object, ...] = ()  # what the plot shows
        self._legend = Content("")
        self.border_title = "Front"

    def compose(self) -> ComposeResult:
        with StillRow(id="middle"):
            yield Scatter(id="scatter", draw=self._draw_plot)
            yield RowTable(id="picks")
        yield StillText(id="legend")

    def on_mount(self) -> None:
        self.app.theme_changed_signal.subscribe(self, lambda _: self._recolour())

    @property
    def plot(self) -> Scatter:
        return self.query_one(Scatter)

    @property
    def table(self) -> DataTable[Text]:
        return self.query_one("#picks", DataTable)

    @property
    def axis(self) -> Quantity | None:
        return self._axis

    @property
    def selected(self) -> CandidateRow | None:
        """The row under the cursor."""
        row = self.table.cursor_row
        return self.rows[row] if 0 <= row < len(self.rows) else None

    def clear(self) -> None:
        self.rows, self._answer, self._filled, self._plotted = [], None, (), ()
        self.query_one("#middle").display = False
        self.table.clear(columns=True)
        self.plot.clear()
        self._show_legend(Content(""))
        self.border_title, self.border_subtitle = "Front", ""

    def show(self, answer: Recommendation, rows: Sequence[CandidateRow]) -> None:
        """Show an answer; a cursor that was moved stays on its configuration if it is there."""
        at = self.selected if self.table.cursor_row > 0 else None
        self._answer, self.rows, self._filled, self._plotted = answer, [*rows], (), ()
        self.query_one("#middle").display = True
        quantities = axes(answer.budget, rows)
        goal = quantities[0] if quantities else None
        if goal != self._goal or self._axis not in quantities:
            self._axis = self._goal = goal
        self.plot.display = self._axis is not None
        if self._axis is None:
            self.border_title = "Front"
        keys = [row.key for row in rows]
        self._fill(0 if at is None or at.key not in keys else keys.index(at.key))
        out = sum(answer.infeasible.values())
        met = f"{answer.candidates - out:,} of {answer.candidates:,} candidates"
        self.border_subtitle = f"{met} meet the budget" if answer.budget.required else met
        self.draw()

    def next_axis(self) -> None:
        """Draw accuracy against the next thing that is known."""
        if self._answer is not None:
            self._axis = next_axis(axes(self._answer.budget, self.rows), self._axis)
            self._fill(self.table.cursor_row)
            self.draw()

    @on(Resize)
    def _fit(self) -> None:
        if self._answer is not None:
            self._fill(self.table.cursor_row)
            self._say_legend()

    def _recolour(self) -> None:
        if self._answer is not None:
            self._fill(self.table.cursor_row)
            self.draw()

    def _fill(self, row: int) -> None:
        assert self._answer is not None
        table, width = self.table, self.size.width
        room = max(int(width * TABLE_SHARE), min(width - LEAST_PLOT, 50)) - EDGE
        filled = (width, self.app.theme, self._axis)
        if filled == self._filled:  # it was hidden meanwhile
            return
        self._filled = filled
        alone, budget, axis = self._axis is None, self._answer.budget, self._axis
        heads, cells = table_of(self.rows, budget, width - EDGE if alone else room, axis)
        stacked = alone or (width < STACKED and any(CUT in row[1] for row in cells))
        if stacked and not alone:
            heads, cells = table_of(self.rows, budget, width - EDGE, axis)
        self.query_one("#middle").set_class(stacked, "stacked")
        with self.prevent(DataTable.RowHighlighted):
            table.clear(columns=True)
            for at, head in enumerate(heads):  # measured here: the table would draw twice
                wide = max(map(len, [head, *(each[at] for each in cells)]))
                justify: JustifyMethod = "left" if at < 2 else "right"
                table.add_column(Text(head, justify=justify), width=wide)
            for each, candidate in zip(cells, self.rows, strict=True):
                style = f"bold {self._colour(candidate.symbol)}"
                symbol = Text(each[0], style=style)
                others = [
                    Text(text, justify="left" if at == 0 else "right")
                    for at, text in enumerate(each[1:])
                ]
                table.add_row(symbol, *others)  # without keys: the present one may stand twice
            table.move_cursor(row=min(max(row, 0), max(len(self.rows) - 1, 0)))

    def _colour(self, symbol: str) -> str:
        return self.app.theme_variables[COLOURS[symbol]]

    @on(DataTable.RowHighlighted, "#picks")
    def _row_changed(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        self._plot()
        self.post_message(self.RowChanged())

    def draw(self) -> None:
        self._plot()
        self._say_legend()

    def _plot(self) -> None:
        """Have the plot drawn where it shows something else."""
        plotted = (self._axis, self.table.cursor_row, self.app.theme)
        if self._axis is not None and plotted != self._plotted:
            self._plotted = plotted
            self.border_title = f"Front: accuracy against {Plane.of(self.rows, self._axis).title}"
            self.plot.redraw()

    def _draw_plot(self) -> None:
        axis, plot = self._axis, self.plot
        if self._answer is None or axis is None:
            return
        budget = self._answer.budget
        plane = Plane.of(self.rows, axis)
        by_symbol = plane.points(self.rows)
        if not by_symbol:
            plot.clear()
            return
        bar = None if self.selected is None else plane.error_bar(self.selected)
        xs, ys = ([v for pair in by_symbol.values() for v in pair[side]] for side in (0, 1))
        if bar is not None:
            xs, ys = [*xs, *bar.across], [*ys, *bar.up]
        limit = limit_on(budget, axis)
        if limit is not None and limit > 0:
            xs.append(plane.x(limit))
        (left, right), (bottom, top) = plane.room(xs), with_room(ys)
        top = min(top, 1.02)
        plot.begin(
            Axis(
                label=plane.title, low=left, high=right, log=plane.log,
                ticks=plane.ticks(left, right, plot.columns),
            ),
            Axis(label="accuracy", low=bottom, high=top, ticks=ticks(bottom, top, plot.rows // 2)),
        )  # fmt: skip
        style = self.app.theme_variables["error"]
        if limit is not None and limit > 0:
            heights = np.linspace(bottom, top, 2 * plot.rows)
            x = [plane.x(limit)] * len(heights)
            plot.points(x, heights, "┊", style)
        if budget.min_accuracy is not None and bottom <= budget.min_accuracy <= top:
            across = np.linspace(left, right, 2 * plot.columns)
            y = [budget.min_accuracy] * len(across)
            plot.points(across, y, "┈", style)
        joined = joined_on(budget, axis)
        if FRONT in joined:
            plot.line(*plane.front(self.rows, FRONT), self._colour("●"))
        if FLOPS in joined:
            x_cell, y_cell = (right - left) / plot.columns, (top - bottom) / plot.rows
            plot.dots(*dotted(plane.front(self.rows, FLOPS), x_cell, y_cell / 2), self._colour("○"))
        if bar is not None:
            style = self.app.theme_variables["foreground"]
            for middle, height, half, rise in bar.arms():
                plot.bar(middle, height, style, across=half, up=rise)
        for symbol in reversed(COLOURS):
            if symbol in by_symbol:
                style = f"bold {self._colour(symbol)}"
                plot.points(*by_symbol[symbol], symbol, style)

    def _say_legend(self) -> None:
        if self._answer is None:
            return
        budget: Budget = self._answer.budget
        seen = {row.symbol for row in self.rows}
        lines, drawn_on = {"●": FRONT, "○": FLOPS}, joined_on(budget, self._axis)
        parts: list[tuple[str, str, str]] = []  # a mark, its style, and what it means
        for symbol, name in names_of(budget).items():
            joined = sum(lines.get(symbol) in row.roles & drawn_on for row in self.rows) > 1
            if symbol in seen or joined:
                drawn = f"{symbol}{JOINTS[symbol] * 2}" if joined else symbol
                parts.append((drawn, f"bold ${COLOURS[symbol]}", name))
        if budget.limits() and self._axis is not None:
            parts.append(("┈┈", "$error", "limit"))
        if self._axis is not None:
            parts.append(("─┼─", "$foreground", "90 % interval"))
        legend, free = Content(""), self.size.width
        for mark, style, name in parts:
            entry = Content.assemble((mark, style), f" {name}")
            if len(legend) and entry.cell_length + 2 > free:
                legend, free = legend + "\n", self.size.width
            elif len(legend):
                legend, free = legend + "  ", free - 2
            legend, free = legend + entry, free - entry.cell_length
        self._show_legend(legend)

    def _show_legend(self, legend: Content) -> None:
        if legend != self._legend:
            self._legend = legend
            self.query_one("#legend", StillText).update(legend)
