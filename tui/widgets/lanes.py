"""Charts of one line each over a common time, with a cursor; a click says where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.widgets import Static

from traces.schema.formats import ABSENT, compact
from traces.statistics import Floats
from tui.text.layout import BLOCKS, sparkline


class Lanes(Static):
    """Takes lanes of numbers, the cursor's column, and lines of text that go below them."""

    DEFAULT_CSS = "Lanes { height: auto; }"

    @dataclass
    class Seek(Message):
        """A column of the charts was clicked."""

        column: int

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, markup=False)

    @staticmethod
    def bins(width: int) -> int:
        """Return how many columns there are for the charts in a width."""
        return max(width - LEFT - RIGHT - 1, 10)

    def show(
        self,
        lanes: Sequence[Lane],
        cursor: int | None,
        below: Sequence[tuple[str, str]] = (),
        *,
        rows: int = 1,
    ) -> None:
        """Draw lanes of so many rows; each of `below` is a line and its style."""
        place = -1 if cursor is None else cursor
        lines = []
        for lane in lanes:
            style = "$text-secondary" if lane.name.startswith(" ") else "$text-primary"
            for text in lane_lines(lane, place, rows):
                line = Content(text).stylize(style, LEFT, LEFT + lane.values.size)
                if place >= 0:
                    line = line.stylize("reverse", LEFT + place, LEFT + place + 1)
                lines.append(line)
        lines += [Content.styled(text, style) for text, style in below]
        self.update(Content("\n").join(lines))

    def on_click(self, event: Click) -> None:
        if event.x >= LEFT:
            self.post_message(self.Seek(event.x - LEFT))


LEFT = 14  # columns before a chart's bars
RIGHT = 8


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One line of a chart: a number per bin, nan where there is none; `top` fixes its height."""

    name: str
    values: Floats
    top: float | None = None

    @property
    def known(self) -> bool:
        """Whether there is any number."""
        return bool(np.isfinite(self.values).any())


def lane_lines(lane: Lane, cursor: int, rows: int) -> list[str]:
    """Return a lane as so many lines, the lowest with its name and numbers.

    Without a cursor (-1) the newest number stands at the right.
    """
    finite = lane.values[np.isfinite(lane.values)]
    highest = float(finite.max()) if finite.size else None
    here = compact(float(lane.values[cursor])) if cursor < lane.values.size else ABSENT
    head = f"{lane.name:<8}{compact(highest)[:5]:>{LEFT - 9}}|"
    if rows == 1:
        return [f"{head}{sparkline(lane.values.tolist(), lane.top)}|{here:>{RIGHT - 1}}"]
    top = lane.top or highest or 0.0
    eighths = np.nan_to_num(lane.values / top if top > 0 else lane.values * 0) * rows * 8
    filled = np.clip(np.rint(eighths), 1, rows * 8).astype(int)
    seen = np.isfinite(lane.values)
    lines = []
    for above in range(rows - 1, -1, -1):
        level = np.where(seen, np.clip(filled - above * 8, 0, 8), 0)
        lines.append("".join(BLOCKS[each] for each in level))
    blank = " " * (LEFT - 1)
    return [
        *(f"{blank}|{line}|" for line in lines[:-1]),
        f"{head}{lines[-1]}|{here:>{RIGHT - 1}}",
    ]
