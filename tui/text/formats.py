"""How numbers look: three digits, a unit that fits, "-" for what was not measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from traces.schema.estimate import Estimate
from traces.summary.run import Run

ABSENT = "-"
OUTSIDE = "*"  # after a number that lies outside what was measured
BLOCKS = " ▁▂▃▄▅▆▇█"
_TIMES = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))
_THOUSANDS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SHORT = {
    "s": "s",
    "s/token": "s",
    "device-s": "dev-s",
    "device s": "dev-s",
    "devices": "devices",
    "device-s/token": "dev-s",
    "tokens": "",
    "tokens/s": "tok/s",
    "FLOP": "FLOP",
    "J": "J",
    "J/token": "J",
    "1": "",
    "USD": "",
}


def scale(value: float, unit: str) -> tuple[float, str]:
    """Return what to divide a number by and the unit to write after it."""
    name = _SHORT.get(unit, unit)
    size = abs(value)
    if unit == "USD" or unit in ("1", "tokens", "tokens/s") or not math.isfinite(size) or not size:
        return 1.0, name
    table = _TIMES if "s" in name.split("-")[-1:] else _THOUSANDS
    if unit.startswith("J") and size < 1:
        table = _TIMES
    factor, prefix = next(((f, p) for f, p in table if size >= f), table[-1])
    head, mark, tail = name.rpartition("-")
    return factor, f"{head}{mark}{prefix}{tail}"


def digits(value: float) -> str:
    """Return three significant digits without an exponent: 0.0123, 1.23, 12.3, 1,234."""
    size = abs(value)
    if not math.isfinite(value):
        return ABSENT
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    places = 2 - math.floor(math.log10(size))
    return f"{value:.{min(places, 6)}f}"


def number(value: float | None, unit: str, *, sign: bool = False) -> str:
    """Return a number with its unit, such as `12.3 ms`; shares have three decimals.

    With a sign it is a difference, of shares in percentage points: `+1.2 points`.
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    if sign and unit == "1":
        return f"{_points(value)} points"
    factor, name = scale(value, unit)
    text = _plain(value / factor, unit)
    if sign and value > 0:
        text = f"+{text}"
    return f"{text} {name}".rstrip()


def _points(share: float) -> str:
    """Return a difference of shares in percentage points: +1.2, -0.04, ±0 where there is none."""
    value = share * 100
    if abs(value) < 1e-9:  # rounding
        return "±0"
    if abs(value) >= 0.095:
        return f"{value:+.1f}"
    return f"{value:+.2f}" if abs(value) >= 0.005 else f"{'+' if value > 0 else '-'}<0.01"


def _plain(value: float, unit: str) -> str:
    if unit == "1":
        return f"{value:.3f}"
    if unit == "USD":
        return f"{'-' if value < 0 else ''}${digits(abs(value))}"
    return digits(value)


def interval(estimate: Estimate | None, *, sign: bool = False) -> str:
    """Return `[low, high]` in the unit that `number` gives the value; empty without one."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    if sign and estimate.unit == "1":
        return f"[{_points(estimate.low)}, {_points(estimate.high)}]".replace("±", "")
    factor, _ = scale(estimate.value, estimate.unit)
    ends = [_plain(end / factor, estimate.unit) for end in (estimate.low, estimate.high)]
    ends = [text.replace("$", "") for text in ends]
    if sign:
        pairs = zip(ends, (estimate.low, estimate.high), strict=True)
        ends = [f"+{text}" if end > 0 else text for text, end in pairs]
    return f"[{', '.join(ends)}]"


def value_of(estimate: Estimate | None, *, sign: bool = False) -> str:
    """Return the value alone, marked when it lies outside what was measured."""
    if estimate is None:
        return ABSENT
    mark = OUTSIDE if estimate.extrapolated else ""
    return number(estimate.value, estimate.unit, sign=sign) + mark


def whole(estimate: Estimate | None, *, sign: bool = False) -> str:
    """Return value and interval."""
    return f"{value_of(estimate, sign=sign)} {interval(estimate, sign=sign)}".rstrip()


def half_width(estimate: Estimate | None) -> str:
    """Return half the interval's width of a share, such as `.022`."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{(estimate.high - estimate.low) / 2:.3f}".removeprefix("0")


def counted(count: int, word: str) -> str:
    """Return `1 sample`, `1,024 samples`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def percent(share: float | None) -> str:
    """Return a share as whole per cent; `<1 %` for what is above nothing."""
    if share is None or not math.isfinite(share):
        return ABSENT
    if 0 < share < 0.005:
        return "<1 %"
    if 0.995 <= share < 1:
        return ">99 %"
    return f"{share * 100:.0f} %"


def compact(value: float | None) -> str:
    """Return a number in at most five characters: 834, 2.57k, 22.1k, 1.2M."""
    if value is None or not math.isfinite(value):
        return ABSENT
    for factor, mark in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{digits(value / factor)}{mark}"
    return digits(value)


def sparkline(values: Iterable[float], top: float | None = None) -> str:
    """Return one block character per value, blank where it is nan; 0 is the lowest block."""
    numbers = list(values)
    known = [value for value in numbers if math.isfinite(value)]
    highest = top if top is not None else max(known, default=0.0)
    line = []
    for value in numbers:
        if not math.isfinite(value):
            line.append(" ")
        elif highest <= 0:
            line.append(BLOCKS[1])
        else:
            line.append(BLOCKS[1 + round(min(max(value / highest, 0), 1) * 7)])
    return "".join(line)


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


def with_room(values: Sequence[float]) -> tuple[float, float]:
    """Return limits of an axis a tenth wider than the values, not below 0."""
    low, high = min(values), max(values)
    room = (high - low) * 0.1 or max(abs(high) * 0.1, 0.01)
    return max(low - room, 0.0), high + room


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return about `most` round numbers between two limits, and never fewer than two."""
    if not high > low:
        return [low]
    found: list[float] = []
    power = 10.0 ** math.floor(math.log10((high - low) / max(most, 2)))
    for step in (power / 2, power, 2 * power, 5 * power, 10 * power):
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        if last - first < 1 and found:
            break
        found = [round(index * step, 12) for index in range(first, last + 1)]
        if len(found) <= max(most, 2):
            break
    return found


def tick_labels(found: Sequence[float]) -> list[str]:
    """Return ticks as text, with the decimals that the finest of them needs."""
    labels: list[str] = []
    for decimals in range(13):
        labels = [f"{tick:.{decimals}f}" for tick in found]
        if all(abs(float(t) - x) <= 1e-12 * abs(x) for t, x in zip(labels, found, strict=True)):
            break
    return labels


def fitting_ticks(low: float, high: float, columns: int) -> list[float]:
    """Return round numbers along an axis of so many columns whose labels stand apart.

    At least two: where not even a few fit, the first with the last that leaves it room.
    """
    if not high > low:
        return [low]
    found: list[float] = []
    for most in range(max(columns // 8, 2), 1, -1):
        found = ticks(low, high, most)
        if _stand_apart(found, low, high, columns):
            return found
    for each in (found, ticks(low, high, 5), ticks(low, high, 10)):
        for last in each[:0:-1]:
            if _stand_apart([each[0], last], low, high, columns):
                return [each[0], last]
    return [found[0], found[-1]]


def _stand_apart(found: Sequence[float], low: float, high: float, columns: int) -> bool:
    """Return whether a blank is left between labels, put as textual-plot puts them."""
    free = -math.inf
    for tick, label in zip(found, tick_labels(found), strict=True):
        middle = 1 + math.floor((tick - low) * columns / (high - low)) - (tick == low)
        begin = middle - (len(label) - 1) // 2 if tick != high else middle - len(label) + 1
        if begin <= free:
            return False
        free = begin + len(label)
    return free <= columns + 2  # the axis and its frame; what lies behind is cut


def model_name(model: str) -> str:
    """Return the last part of a model's name or path."""
    return model.rstrip("/").rpartition("/")[2] or model


def labels(run: Run) -> tuple[str, str]:
    """Return the short form of the policy and of the engine."""
    return (ABSENT if run.policy is None else run.policy.label(), run.engine.label())
