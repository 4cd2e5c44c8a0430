"""Lines of text: aligned columns, wrapped sentences, sparklines, clocks and short labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from traces.schema.formats import ABSENT, compact
from traces.summary.run import Run

BLOCKS = " ▁▂▃▄▅▆▇█"


def sparkline(values: Iterable[float], top: float | None = None) -> str:
    """Return one block character per value, blank where it is nan; 0 is the lowest block."""
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
            line.append(BLOCKS[1 + round(min(max(value / highest, 0), 1) * 7)])
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


def align(rows: Sequence[Sequence[str]], right: Iterable[int] = (), gap: int = 2) -> list[str]:
    """Return rows as lines with aligned columns; `right` names those flushed right."""
    if not rows:
        return []
    flush = set(right)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if column in flush else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * gap).join(cells).rstrip())
    return lines


def wrap(label: str, text: str, *, width: int, indent: int) -> list[str]:
    """Return text in lines of `width`, the first led by `label`, the others indented."""
    lines, line = [], label.ljust(indent)
    for word in text.split():
        joint = "" if line.endswith(" ") or not line.strip() else " "
        if len(line) + len(joint) + len(word) > width and line.strip():
            lines.append(line.rstrip())
            line = " " * indent + word
        else:
            line += joint + word
    return [*lines, line.rstrip()]


def model_name(model: str) -> str:
    """Return the last part of a model's name or path."""
    return model.rstrip("/").rpartition("/")[2] or model


def labels(run: Run) -> tuple[str, str]:
    """Return the short form of the policy and of the engine."""
    policy = ABSENT if run.policy is None else run.policy.label()
    return policy, run.engine.label() if run.imported is None else ABSENT
