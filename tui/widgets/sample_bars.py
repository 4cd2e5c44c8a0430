"""The samples of a problem as bars in time; without colours letters say what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

STATES = {  # the letter of a state: its block, and in which style
    ".": ("·", "$text-muted"),
    "p": ("▆", "$warning"),
    "=": ("▆", "$primary"),
    "A": ("▆", "$success"),
    "~": ("▂", "$primary"),
    "a": ("▂", "$success"),
    "x": ("x", "bold $text-error"),
    ">": (">", "$text-muted"),
}
WORDS = (  # states by what they are called, in the order of time
    (".", "queued"),
    ("p", "prefill"),
    ("=", "thinking"),
    ("A", "answering"),
    ("~a", "after the stop"),
    ("x", "cancelled or failed"),
    (">", "still running"),
)


class Samples(VerticalScroll, inherit_bindings=False):
    """The samples; left and right move the cursor in time, so only up and down scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "scroll_up", "up", show=False),
        Binding("down", "scroll_down", "down", show=False),
        Binding("pageup", "page_up", "page up", show=False),
        Binding("pagedown", "page_down", "page down", show=False),
    ]


class SampleBars(Static):
    """Draws samples."""

    DEFAULT_CSS = "SampleBars { height: auto; width: 1fr; }"

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, markup=False)

    def show(self, bars: Bars | None) -> None:
        if bars is None:
            self.update("")
            return
        letters, scale, rows, after = self.app.no_color, bars.scale, bars.rows, bars.after
        lines = [Content.styled(bars.title, "bold")] if bars.title else []
        legend = legend_of(rows, letters=letters)
        middle = scale.columns - len(scale.end) - 2  # between 0 and the end
        fits = legend.cell_length + 2 <= middle
        if not fits and legend.cell_length:
            lines.append(legend_of(rows, letters=letters, width=len(scale.left) + scale.columns))
        left = (middle - legend.cell_length) // 2 if fits else 0
        blank = middle - left - (legend.cell_length if fits else 0)
        lines.append(
            Content.assemble(
                (f"{scale.left}{'0' if scale.end else ' '}{' ' * (left + 1)}", "$text-muted"),
                legend if fits else "",
                (f"{' ' * max(blank, 1)}{scale.end}", "$text-muted"),
            )
        )
        for order, row in enumerate(rows, 1):
            lines += _lines(row, after[1] if after and after[0] == order else "", scale, letters)
        self.update(Content("\n").join(lines))


def legend_of(rows: Sequence[SampleRow], *, letters: bool, width: int | None = None) -> Content:
    """Return what the bars and marks of these rows are, and of no others.

    What does not fit into a width begins a line.
    """
    there = set("".join(row.bar for row in rows))
    items: list[Content] = []
    for states, word in WORDS:
        drawn = {
            (state if letters else STATES[state][0], STATES[state][1]): None
            for state in states
            if state in there
        }
        if drawn:
            items.append(Content.assemble(*drawn, (f" {word}", "$text-muted")))
    for correct, mark, word in ((True, "+", "right"), (False, "-", "wrong")):
        if any(row.correct is correct for row in rows):
            style = "$text-success" if correct else "$text-error"
            items.append(Content.assemble((mark, style), (f" {word}", "$text-muted")))
    lines: list[Content] = []
    for item in items:
        if lines and (width is None or lines[-1].cell_length + 2 + item.cell_length <= width):
            lines[-1] = Content.assemble(lines[-1], "  ", item)
        else:
            lines.append(item)
    return Content("\n").join(lines)


def _lines(row: SampleRow, mark: str, scale: Scale, letters: bool) -> list[Content]:
    """Return a sample's line, with a mark behind it, else below it where there is no room."""
    style = {True: "$text-success", False: "$text-error", None: ""}[row.correct]
    parts: list[Content | str | tuple[str, str]] = [(row.left, style)]
    for letter, group in groupby(row.bar):
        block, colour = STATES.get(letter, (letter, ""))
        parts.append(((letter if letters else block) * len(list(group)), colour))
    if row.note:
        parts.append((f" {row.note}", "$text-warning"))
    line = Content.assemble(*parts)
    if not mark:
        return [line]
    if line.cell_length + 1 + len(mark) <= scale.width:
        return [Content.assemble(line, (f" {mark}", "bold $text-accent"))]
    indent = max(min(len(row.left), scale.width - len(mark)), 0)
    return [line, Content.styled(f"{' ' * indent}{mark[: scale.width]}", "bold $text-accent")]


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A problem's samples as lines: after how many of them a rule stops, and its mark."""

    title: str
    scale: Scale
    rows: tuple[SampleRow, ...]
    after: tuple[int, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The header of bars: what stands left of them, their columns, the time at their end.

    The time is empty where none is known. `width` is that of the whole line.
    """

    left: str
    columns: int
    end: str
    width: int


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """A sample's line: cells on the left, right or wrong, its bar, and what is special about it."""

    left: str
    correct: bool | None
    bar: str
    note: str
