"""Charts of one line each over a common time, with a cursor; a click says where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.widgets import Static

from tui.run_views import LEFT, RIGHT, Lane, lane_lines


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
        """Tell which column it was."""
        if event.x >= LEFT:
            self.post_message(self.Seek(event.x - LEFT))
