"""Charts over a common time, one below the other, with a cursor; a click says where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.widgets import Static

from traces.schema.formats import ABSENT, compact, number
from traces.statistics import Floats
from tui.text.layout import BLOCKS, sparkline

CURSOR = "bold $foreground on $accent-darken-2"


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
        room: int = 0,
        above: str = "",
    ) -> None:
        """Draw lanes in so many rows, at least one each; `below` are lines and their styles.

        Their `heading` stands above them. Without colours the cursor is reversed.
        """
        place = -1 if cursor is None else cursor
        at = "reverse" if self.app.no_color else CURSOR
        lines = lanes_content(lanes, place, at, room)
        lines += [Content.styled(text, style) for text, style in below]
        if above and lanes:
            lines.insert(0, Content.styled(above, "$text-muted"))
        self.update(Content("\n").join(lines))

    def on_click(self, event: Click) -> None:
        if event.x >= LEFT:
            self.post_message(self.Seek(event.x - LEFT))


LEFT = 18  # columns before a chart's bars
RIGHT = 8
MOST_ROWS = 14  # of a chart


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A chart: a number per bin, nan where there is none, in one colour of the theme.

    `top` fixes its height. One that is `beside` belongs to the lane above it.
    """

    name: str
    values: Floats
    unit: str = ""
    style: str = "$primary"
    top: float | None = None
    beside: bool = False

    @property
    def known(self) -> bool:
        return bool(np.isfinite(self.values).any())

    @property
    def highest(self) -> float | None:
        """The highest number, None where nothing is known."""
        finite = self.values[np.isfinite(self.values)]
        return float(finite.max()) if finite.size else None

    def told(self, value: float | None, *, bare: bool = False) -> str:
        """Return one of its numbers with its unit; a time in the unit that tables have for it.

        `bare` leaves out a unit that is the same for all.
        """
        if self.unit == "ms" and value is not None and np.isfinite(value):
            return number(value / 1e3, "s")
        unit = "" if bare or value is None else self.unit
        return f"{shown(value)} {unit}".rstrip()


def shown(value: float | None) -> str:
    """Return a number of a chart in few characters; one that counts things has no decimals."""
    if value is not None and 0 <= value < 1000 and float(value).is_integer():
        return f"{value:.0f}"
    return compact(value)


def lane_lines(lane: Lane, cursor: int, rows: int) -> list[str]:
    """Return a lane as so many lines: name, highest number and unit first, 0 at the bottom.

    Where the height is fixed it comes first, and the highest number below.

    The number under the cursor stands at the right, without a cursor (-1) the newest.
    """
    highest = lane.highest
    inside = cursor < lane.values.size
    here = lane.told(float(lane.values[cursor]), bare=True) if inside else ABSENT

    def labelled(name: str, value: float | None) -> str:
        return f"{name} {lane.told(value):>{LEFT - 2 - len(name)}}│"

    scaled = lane.top is not None and highest is not None and rows > 2  # a row more says the most
    head = labelled(lane.name, lane.top if scaled else highest)
    tail = f"│{here:>{RIGHT - 1}}"
    if rows == 1:
        return [f"{head}{sparkline(lane.values.tolist(), lane.top)}{tail}"]
    top = lane.top or highest or 0.0
    eighths = np.nan_to_num(lane.values / top if top > 0 else lane.values * 0) * rows * 8
    filled = np.clip(np.rint(eighths), 1, rows * 8).astype(int)
    seen = np.isfinite(lane.values)
    lines = []
    for above in range(rows - 1, -1, -1):
        level = np.where(seen, np.clip(filled - above * 8, 0, 8), 0)
        lines.append("".join(BLOCKS[each] for each in level))
    left = [head, *[f"{'│':>{LEFT}}"] * (rows - 2), f"{'0│':>{LEFT}}"]
    if scaled:
        left[1] = labelled("most", highest)
    right = [tail, *["│"] * (rows - 1)]
    return ["".join(parts) for parts in zip(left, lines, right, strict=True)]


def heading(begin: str, end: str, newest: str, columns: int) -> str:
    """Return what stands above lanes: which numbers are at their sides, and their time."""
    return f"{'highest':>{LEFT - 1}}│{begin}{end:>{columns - len(begin)}}│{newest:>{RIGHT - 1}}"


def lanes_content(lanes: Sequence[Lane], cursor: int, at: str, room: int) -> list[Content]:
    """Return lanes in their colours, in so many rows where that is at least one each.

    A lane that is 0 throughout has one row. The cursor's column (-1: none) has the style `at`.
    """
    flat = [not lane.top and lane.highest == 0 for lane in lanes]
    rows, gap = rows_for(room - 2 * sum(flat), len(lanes) - sum(flat))
    lines: list[Content] = []
    for lane, is_flat in zip(lanes, flat, strict=True):
        if lines and gap and not lane.beside:
            lines.append(Content(""))
        for text in lane_lines(lane, cursor, 1 if is_flat else rows):
            line = Content(text).stylize(lane.style, LEFT, LEFT + lane.values.size)
            if cursor >= 0:
                line = line.stylize(at, LEFT + cursor, LEFT + cursor + 1)
            lines.append(line)
    return lines


def rows_for(room: int, lanes: int) -> tuple[int, bool]:
    """Return how many rows each of so many lanes has in a room, and whether with gaps."""
    if lanes == 0 or room < 2 * lanes - 1:
        return 1, False
    return max(min((room + 1) // lanes - 1, MOST_ROWS), 1), True
