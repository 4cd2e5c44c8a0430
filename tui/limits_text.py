"""`ttscope show A B --fail-on`: which limits were broken, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

from traces.limits import Judged
from traces.schema import Estimate
from tui.formats import interval, number, wrap


def limit_lines(judged: Sequence[Judged], *, width: int = 80) -> list[str]:
    """Return a verdict per limit: FAIL, ok or ? (not sure), the difference and its interval."""
    lines = [""] if judged else []
    for each in judged:
        label, side = "ok", "the whole interval is within the limit"
        if each.broken:
            label, side = "FAIL", "the whole interval is beyond the limit"
        elif not each.sure:
            label = "?"
            beyond = each.limit.beyond(each.difference.value)
            here, there = ("beyond", "within") if beyond else ("within", "beyond")
            side = f"measured {here} the limit, but the interval reaches {there}, so not sure"
            if each.problems_to_settle is not None:
                side += f". Some {each.problems_to_settle:,} problems would settle it"
            elif each.timed:
                side += ". More problems would not settle it, as runs differ by as much"
        text = f"{each.limit.text}: {_difference(each)}, {side}"
        lines += wrap(label, text, width=width, indent=6)
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
