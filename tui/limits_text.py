"""`ttscope show A B --fail-on`: which limits were broken, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

from traces.limits import Judged
from traces.schema import Estimate
from tui.formats import interval, number, wrap


def limit_lines(judged: Sequence[Judged], *, width: int = 80) -> list[str]:
    """Return a verdict per limit: FAIL or ok, the difference, and the side of its interval."""
    lines = [""] if judged else []
    for each in judged:
        beyond, within = "beyond the limit", "within the limit"
        if each.sure:
            side = f"the whole interval is {beyond if each.broken else within}"
        elif each.difference.low is None:
            side = "no interval is known"
        else:
            side = f"but the interval reaches {within if each.broken else beyond}"
            if each.problems_to_settle is not None:
                side += f"; some {each.problems_to_settle:,} problems would settle it"
        text = f"{each.limit.text}: {_difference(each)}, {side}"
        lines += wrap("FAIL" if each.broken else "ok", text, width=width, indent=6)
    return lines


def _difference(each: Judged) -> str:
    found = each.difference
    if not each.limit.relative:
        return f"{number(found.value, found.unit, sign=True)} {interval(found, sign=True)}".rstrip()
    return f"{_percent(found.value)} % {_percent_interval(found)}".rstrip()


def _percent(share: float) -> str:
    return f"{share * 100:+.1f}"


def _percent_interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"[{_percent(found.low)}, {_percent(found.high)}]"
