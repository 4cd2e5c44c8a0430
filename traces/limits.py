"""Limits on what a run may change against another, as people write them for CI: `p95>+5%`.

A limit is broken when the whole 90 % interval of the difference lies beyond it. So the same
configuration run twice breaks none by chance more often than an interval misses. Where the interval
reaches to both sides nothing is sure, and how many problems would settle it is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from traces.comparison import Change, Difference
from traces.errors import TtscopeError, UsageError
from traces.schema import Estimate
from traces.statistics import problems_to_reach
from traces.summary import to_plain

# What people write -> the metric's tag, and the unit of a limit that is no share.
NAMES: dict[str, str] = {
    "accuracy": "accuracy",
    "latency": "latency_s.mean",
    "mean": "latency_s.mean",
    "p50": "latency_s.p50",
    "p95": "latency_s.p95",
    "tokens": "tokens_per_problem",
    "flops": "flops_per_problem",
    "ttft_p50": "ttft_s.p50",
    "ttft_p95": "ttft_s.p95",
    "tpot_p50": "tpot_s.p50",
    "tpot_p95": "tpot_s.p95",
    "throughput": "throughput_tokens_per_s",
    "device_s": "device_s_per_problem",
    "cost": "cost_usd_per_problem",
    "energy": "energy_j.per_problem",
}
EXAMPLE = "p95>+5%, accuracy<-.02 or tokens>+100"
_LIMIT = re.compile(r"\s*([a-z0-9_]+)\s*([<>])\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*(%?)\s*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How far the second run may go above (or below) the first in one metric.

    `amount` is in the metric's unit, or a share of the first run's number where `relative`.
    """

    text: str
    tag: str
    above: bool
    amount: float
    relative: bool

    def beyond(self, value: float) -> bool:
        """Whether a difference lies beyond the limit; one that equals it does not."""
        return value > self.amount if self.above else value < self.amount


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A limit with the difference it was held against, in the limit's own terms.

    `timed`: the number differs from run to run.

    `broken`: the whole 90 % interval lies beyond the limit. `sure`: it lies on one side, beyond or
    within. `problems_to_settle` is how many problems would put it on one side if the difference
    stayed as it is, None where it lies there or no number would.
    """

    limit: Limit
    difference: Estimate
    broken: bool
    sure: bool
    problems_to_settle: int | None
    timed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return {
            "limit": self.limit.text,
            "metric": self.limit.tag,
            "relative": self.limit.relative,
            "difference": to_plain(self.difference),
            "failed": self.broken,
            "sure": self.sure,
            "problems_to_settle": self.problems_to_settle,
        }


def parse_limit(text: str) -> Limit:
    """Return the limit of `p95>+5%`: a metric, > or <, and by how much the second may differ.

    A plus or minus sign is needed, as the number is a difference. Raises UsageError.
    """
    found = _LIMIT.fullmatch(text)
    if found is None:
        raise UsageError(f"--fail-on {text!r}: is not understood; write for example {EXAMPLE}")
    name, side, amount, percent = found.groups()
    if name not in NAMES:
        raise UsageError(f"--fail-on {text!r}: no metric {name}; one of {', '.join(NAMES)}")
    if amount[0] not in "+-" and float(amount):
        raise UsageError(
            f"--fail-on {text!r}: the number is a difference, so give its sign; for example "
            f"{name}{side}+{amount}{percent}"
        )
    return Limit(
        text=text.strip(),
        tag=NAMES[name],
        above=side == ">",
        amount=float(amount) * (0.01 if percent else 1.0),
        relative=bool(percent),
    )


def judge(limits: Sequence[Limit], compared: Difference) -> tuple[Judged, ...]:
    """Hold limits against the paired differences of two runs.

    Raises TtscopeError where one cannot be held: a gate that nothing was measured for must not
    pass.
    """
    if compared.reason is not None:
        raise TtscopeError(f"--fail-on cannot be judged: {compared.reason}")
    changes = {change.metric.tag: change for change in compared.changes}
    return tuple(_judge(limit, changes.get(limit.tag), compared) for limit in limits)


def _judge(limit: Limit, change: Change | None, compared: Difference) -> Judged:
    found = None if change is None else change.relative if limit.relative else change.difference
    if found is None and limit.tag == NAMES["cost"] and change is None:
        raise TtscopeError(f"--fail-on {limit.text!r} cannot be judged: give --price")
    if found is None:
        raise TtscopeError(
            f"--fail-on {limit.text!r} cannot be judged: {limit.tag} was not measured in both "
            f"{compared.first} and {compared.second}"
            + (", or is 0 in the first" if change is not None else "")
        )
    if found.low is None or found.high is None:
        raise TtscopeError(
            f"--fail-on {limit.text!r} cannot be judged: one problem has no interval; record more"
        )
    assert change is not None
    low, high = limit.beyond(found.low), limit.beyond(found.high)
    needed = None
    if low != high:
        needed = problems_to_reach(
            abs(found.value - limit.amount),
            (found.high - found.low) / 2,
            change.problems,
            of_problems=change.of_problems,
            # Where no problem was won or lost the interval narrows with their number itself.
            power=1 if limit.tag == "accuracy" and change.all_equal else 2,
        )
    return Judged(
        limit=limit,
        difference=found,
        broken=low and high,
        sure=low == high,
        problems_to_settle=needed,
        timed=change.metric.timed,
    )
