"""The samples of a problem as bars in time; what the colours say the letters say too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

STYLES = {
    ".": "dim",
    "p": "$text-warning",
    "=": "$text-primary",
    "-": "dim",
    "A": "bold $text-success",
    "a": "dim",
    "x": "bold $text-error",
    ">": "dim",
}


class Samples(VerticalScroll, inherit_bindings=False):
    """The samples; left and right move the cursor in time, so only up and down scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "scroll_up", "up", show=False),
        Binding("down", "scroll_down", "down", show=False),
        Binding("pageup", "page_up", "page up", show=False),
        Binding("pagedown", "page_down", "page down", show=False),
    ]


class SampleBars(Static):
    """Takes a header and rows."""

    DEFAULT_CSS = "SampleBars { height: auto; width: 1fr; }"

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, markup=False)

    def show(
        self,
        header: str,
        rows: Sequence[SampleRow],
        *,
        title: str = "",
        after: tuple[int, str] | None = None,
    ) -> None:
        """Draw the rows; `after` is how many of them stand before a mark, and its text."""
        lines = [Content.styled(title, "bold")] if title else []
        lines.append(Content.styled(header, "dim"))
        for order, row in enumerate(rows, 1):
            lines.append(_line(row, after[1] if after and after[0] == order else ""))
        self.update(Content("\n").join(lines))


def _line(row: SampleRow, mark: str) -> Content:
    style = {True: "$text-success", False: "$text-error", None: ""}[row.correct]
    parts: list[Content | str | tuple[str, str]] = [(row.left, style)]
    for letter, group in groupby(row.bar):
        parts.append(("".join(group), STYLES.get(letter, "")))
    if row.note:
        parts.append((f" {row.note}", "$text-warning"))
    if mark:
        parts.append((f" {mark}", "bold $text-accent"))
    return Content.assemble(*parts)


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """A sample's line: cells on the left, right or wrong, its bar, and what is special about it."""

    left: str
    correct: bool | None
    bar: str
    note: str
