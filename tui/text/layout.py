"""Lines of text: aligned columns, wrapped sentences, sparklines, clocks and short labels."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence

from traces.schema.formats import ABSENT, compact
from traces.summary.run import Run

BLOCKS = " ▁▂▃▄▅▆▇█"


def sparkline(values: Iterable[float], top: float | None = None) -> str:
    """Return one block character per value, blank where it is nan; 0 is the lowest block.

    An eighth of the line stays empty above the highest, so that lines below each other stay apart.
    """
    numbers = list(values)
    finite = [value for value in numbers if math.isfinite(value)]
    highest = top if top is not None else max(finite, default=0.0)
    line = []
    for value in numbers:
        if not math.isfinite(value):
            line.append(" ")
        elif highest <= 0:
            line.append(BLOCKS[1])
        else:
            line.append(BLOCKS[1 + round(min(max(value / highest, 0), 1) * 6)])
    return "".join(line)


def chart_line(title: str, values: Sequence[float], unit: str = "") -> list[str]:
    """Return a line with the highest value and a sparkline; none where nothing is known."""
    highest = max((value for value in values if math.isfinite(value)), default=None)
    if highest is None:
        return []
    return [f"{title:<10}{compact(highest) + unit:>8} |{sparkline(values)}|"]


def clock(seconds: float, decimals: int = 1) -> str:
    """Return `m:ss.s`, or the seconds with more decimals."""
    minutes, rest = divmod(round(max(seconds, 0.0), decimals), 60)
    return f"{int(minutes)}:{rest:0{decimals + 3}.{decimals}f}"


def clock_decimals(span_s: float) -> int:
    """Return the decimals that tell times a hundredth of a stretch apart; at least one."""
    return max(2 - math.floor(math.log10(max(span_s, 1e-9))), 1)


def align(
    rows: Sequence[Sequence[str]],
    right: Iterable[int] = (),
    gap: int = 2,
    width: int | None = None,
) -> list[str]:
    """Return rows as lines with aligned columns; `right` names those flushed right.

    Where they do not fit into `width` the last columns follow below, again beside the first one.
    """
    if not rows:
        return []
    flush = set(right)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    blocks, used = [[0]], widths[0]
    for column in range(len(widths) - 1, 0, -1):
        used += gap + widths[column]
        if width is not None and used > width and len(blocks[0]) > 1:
            blocks.insert(0, [0])
            used = widths[0] + gap + widths[column]
        blocks[0].insert(1, column)
    lines = []
    for columns in blocks:
        for row in rows:
            cells = [
                row[each].rjust(widths[each]) if each in flush else row[each].ljust(widths[each])
                for each in columns
            ]
            lines.append((" " * gap).join(cells).rstrip())
    return lines


def side_by_side(rows: Sequence[Sequence[str]], width: int, right: Iterable[int] = ()) -> list[str]:
    """Return columns side by side, those for which there is no room below the first."""
    flush = set(right)
    close = align(rows, flush, gap=1)
    fits = max(map(len, close)) <= width < max(map(len, align(rows, flush)))
    return close if fits else align(rows, flush, width=width)


def wrap(label: str, text: str, *, width: int, indent: int) -> list[str]:
    """Return text in lines of `width`, the first led by `label`, the others indented.

    A number stays with its %, as in `fold`.
    """
    lines, line = [], label.ljust(indent)
    for word in re.findall(r"\S+(?: %\S*)?", text):
        joint = "" if line.endswith(" ") or not line.strip() else " "
        if len(line) + len(joint) + len(word) > width and line.strip():
            lines.append(line.rstrip())
            line = " " * indent + word
        else:
            line += joint + word
    return [*lines, line.rstrip()]


def labelled(rows: Iterable[tuple[str, str]], *, width: int, indent: int) -> list[str]:
    """Return texts, each led by its label, in lines of `width`."""
    return [line for label, text in rows for line in wrap(label, text, width=width, indent=indent)]


def fold(text: str, width: int, first: str = "", later: str = "") -> list[str]:
    """Return text in lines of `width`, led by `first` and then by `later`."""
    unbroken = text.replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.wrap(
        unbroken, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def without_middle(text: str, width: int) -> str:
    """Return text of at most so many columns; what is too long keeps as much of both ends."""
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[len(text) - half :]}"


def model_name(model: str) -> str:
    """Return the last part of a model's name or path."""
    return model.rstrip("/").rpartition("/")[2] or model


def labels(run: Run) -> tuple[str, str]:
    """Return the short form of the policy and of the engine."""
    policy = ABSENT if run.policy is None else run.policy.label()
    return policy, run.engine.label() if run.imported is None else ABSENT


# Round numbers along an axis, and their labels.


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


def log_ticks(low: float, high: float, columns: int) -> list[float]:
    """Return round numbers along a logarithmic axis whose labels stand apart, at least one."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places: list[float] = []
    for digits in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,), (2,), (5,), (3,)):
        ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
        places = [each for each in ticks if low <= each <= high]
        ends = math.log10(low), math.log10(high)
        labels = [f"{each:g}" for each in places]
        if places and _stand_apart([*map(math.log10, places)], *ends, columns, labels):
            return places
    return places[:1]


def _stand_apart(
    places: Sequence[float],
    low: float,
    high: float,
    columns: int,
    labels: Sequence[str] | None = None,
) -> bool:
    """Return whether a blank is left between labels, put as a chart puts them."""
    free = -math.inf
    for tick, label in zip(places, labels or tick_labels(places), strict=True):
        middle = 1 + math.floor((tick - low) * columns / (high - low)) - (tick == low)
        begin = middle - (len(label) - 1) // 2 if tick != high else middle - len(label) + 1
        if begin <= free:
            return False
        free = begin + len(label)
    return free <= columns + 2  # the axis and its frame; what lies behind is cut


def whole_parts(line: str, width: int, mark: str = "  ") -> str:
    """Return a line without the last of its parts where it is too long: no number is cut."""
    while len(line) > width and mark in line:
        line = line.rpartition(mark)[0]
    return line[:width]
