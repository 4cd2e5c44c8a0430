"""How numbers look: three digits, a unit that fits, "-" for what was not measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from traces.schema.estimate import OF, Estimate, Of

ABSENT = "-"
OUTSIDE = "*"  # after a number that lies outside what was measured
LEAST_USD = 1e-9  # from which on dollars have no exponent
TIMES = 4.0  # from this change on, how many times as much is easier to read than per cent
_TIMES = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))
_THOUSANDS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SHORT = {
    "s/token": "s",
    "device-s": "dev-s",
    "device-s/token": "dev-s",
    "tokens": "",
    "tokens/s": "tok/s",
    "J/token": "J",
    "1": "",
    "USD": "",
}
_UNSCALED = ("1", "USD", "tokens", "tokens/s", "problems/s", "devices")


def scale(value: float, unit: str) -> tuple[float, str]:
    """Return what to divide a number by and the unit to write after it."""
    name = _SHORT.get(unit, unit)
    size = abs(value)
    if unit in _UNSCALED or not math.isfinite(size) or not size:
        return 1.0, name
    small = name.rpartition("-")[2] == "s" or (unit.startswith("J") and size < 1)
    table = _TIMES if small else _THOUSANDS
    factor, prefix = next(((f, p) for f, p in table if size >= f), table[-1])
    head, mark, tail = name.rpartition("-")
    return factor, f"{head}{mark}{prefix}{tail}"


def digits(value: float, least: float = 1e-4) -> str:
    """Return three significant digits: 0.0123, 1.23, 12.3, 1,234; below `least` as 1.23e-05."""
    if not math.isfinite(value):
        return ABSENT
    size = abs(float(f"{value:.3g}"))  # rounded, so that 9.996 is 10.0
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    if size < least:
        return f"{value:.2e}"
    return f"{value:.{2 - math.floor(math.log10(size))}f}"


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
    if unit == "devices" and text in ("1", "-1"):
        name = "device"
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
        return _dollars(value, digits(abs(value), LEAST_USD))
    return f"{value:,.0f}" if unit == "devices" else digits(value)


def _dollars(value: float, size: str) -> str:
    return f"{'-' if value < 0 else ''}${size}"


def written(value: float, unit: str) -> str:
    """Return a number that somebody chose, such as a limit, without zeros at its end: `50 ms`.

    A rate has three digits where it has more than four, as one that was recorded or given a minute.
    """
    factor, name = scale(value, unit)
    text = f"{value / factor:g}"
    if unit == "USD":
        if 0 < abs(value) < 1e-4:  # where :g has an exponent
            text = f"{abs(value):.15f}".rstrip("0")
        text = _dollars(value, text.removeprefix("-"))
    elif unit == "problems/s" and len(text.replace(".", "").lstrip("0")) > 4:
        text = digits(value)
    return f"{text} {name}".rstrip()


def interval(estimate: Estimate | None, *, sign: bool = False) -> str:
    """Return `[low, high]` in the unit that `number` gives the value; empty without one.

    An end that is not known is "-". No end has a comma of its own. A value that cannot differ, such
    as the device time at a rate, has no interval.
    """
    if estimate is None or (estimate.low is None and estimate.high is None):
        return ""
    if estimate.cannot_differ:
        return ""
    factor, _ = scale(estimate.value, estimate.unit)

    def told(end: float | None) -> str:
        if end is None:
            return ABSENT
        if sign and estimate.unit == "1":
            return _points(end).replace("±", "")
        text = _plain(end / factor, estimate.unit).replace("$", "").replace(",", "")
        return f"+{text}" if sign and end > 0 else text

    return f"[{told(estimate.low)}, {told(estimate.high)}]"


def value_of(estimate: Estimate | None, *, sign: bool = False) -> str:
    """Return the value alone, marked when it lies outside what was measured."""
    if estimate is None:
        return ABSENT
    mark = OUTSIDE if estimate.extrapolated else ""
    return number(estimate.value, estimate.unit, sign=sign) + mark


def with_interval(estimate: Estimate | None, *, sign: bool = False) -> str:
    """Return value and interval."""
    return f"{value_of(estimate, sign=sign)} {interval(estimate, sign=sign)}".rstrip()


def intervals_of(
    estimates: Iterable[Estimate | None],
    *,
    beside: Mapping[str, Iterable[Estimate | None]] | None = None,
) -> str:
    """Return what the intervals of a table are of, for its head; empty where none has any.

    `beside` are columns, by their names, whose intervals may be of something else.
    """
    main = _mostly(estimates)
    named = {name: _mostly(column) for name, column in (beside or {}).items()}
    apart = {name: of for name, of in named.items() if of is not None}
    if main is None and apart:
        main = next(iter(apart.values()))
    if main is None:
        return ""
    others = [f"{name}: of {OF[of]}" for name, of in apart.items() if of != main]
    return f"90 % intervals of {OF[main]}" + (f" ({', '.join(others)})" if others else "")


def _mostly(estimates: Iterable[Estimate | None]) -> Of | None:
    known = Counter(each.of for each in estimates if each is not None and each.of is not None)
    return known.most_common(1)[0][0] if known else None


def half_width(estimate: Estimate | None) -> str:
    """Return half the interval's width of a share, such as `.022`."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{(estimate.high - estimate.low) / 2:.3f}".removeprefix("0")


def integer(value: float | None) -> str:
    """Return a count with its thousands set apart: `1,024`."""
    return ABSENT if value is None else f"{value:,.0f}"


def listed(names: Sequence[str], most: int) -> str:
    """Return the first names, and how many more there are: `a, b and 3 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def counted(count: int, word: str) -> str:
    """Return `1 sample`, `1,024 samples`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def percent(share: float | None, decimals: int = 0) -> str:
    """Return a share as whole per cent; `<1 %` for what is above nothing."""
    if share is None or not math.isfinite(share):
        return ABSENT
    if decimals:
        return f"{share * 100:.{decimals}f} %"
    if 0 < share < 0.005:
        return "<1 %"
    if 0.995 <= share < 1:
        return ">99 %"
    return f"{share * 100:.0f} %"


def chance(share: float | None) -> str:
    """Return a probability that was counted over draws, as whole per cent that it does reach.

    It is never quite 0 or 1, and 89.9 % is not 90 %.
    """
    if share is None or not math.isfinite(share):
        return ABSENT
    if share < 0.01:
        return "<1 %"
    return ">99 %" if share > 0.99 else f"{math.floor(share * 100 + 1e-9)} %"


def percent_change(share: float | None) -> str:
    """Return by what share a number is above another: `+1.2 %`, or `13.6 times` as much."""
    if share is None or not math.isfinite(share):
        return ABSENT
    return f"{digits(1 + share)} times" if share >= TIMES else f"{_signed(share)} %"


def _signed(share: float) -> str:
    text = f"{share * 100:+.1f}" if share else "0"
    return "0.0" if text in {"+0.0", "-0.0"} else text


def relative_change(share: Estimate | None) -> str:
    """Return by what share a number is above another, with its interval.

    `+1.2 % [-0.4, +2.8]`, or `13.6 times [9.81, 18.2]` as much.
    """
    if share is None:
        return ABSENT
    text = percent_change(share.value)
    if share.low is None or share.high is None or share.low == share.value == share.high:
        return text
    ends = (share.low, share.high)
    shown = [digits(1 + end) if share.value >= TIMES else _signed(end) for end in ends]
    return f"{text} [{', '.join(each.replace(',', '') for each in shown)}]"


def compact(value: float | None) -> str:
    """Return a number in at most five characters: 834, 2.57k, 22.1k, 1.2M."""
    if value is None or not math.isfinite(value):
        return ABSENT
    for factor, mark in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{digits(value / factor)}{mark}"
    return digits(value)
