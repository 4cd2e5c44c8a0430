"""One level for all checks of a gate, and how often it fails where a run is worse.

The end of a 90 % interval is wrong in 5 % of equal runs. Of several checks any may be wrong, so
that together they keep that level by Holm's method (1979): the clearest of m checks must be as
clear as one in m allows, the next as one in m - 1, and so on. That holds whatever they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Final

from traces.schema.estimate import Estimate
from traces.schema.record import Record
from traces.statistics import LEVEL, Z95

GATE_LEVEL: Final = 0.5 - LEVEL / 2  # of equal runs, that fail at most
OFTEN: Final = 0.9  # of worse runs, which a number of problems should fail
FALL: Final = 0.05  # of accuracy, whose power is told
RISE: Final = 0.2  # of other numbers, as a share
MOST_PROBLEMS: Final = 1_000_000
_NORMAL = NormalDist()


def by_noise(measured: Estimate, bound: float, *, above: bool, beside: float = 0.0) -> float:
    """Return how often noise alone shows as much, were the true value at a bound.

    It is the normal law's, whose spread is that of the interval's end on the bound's side. `beside`
    is the half width of the bound's own 90 % interval. An open end shows nothing.
    """
    half = half_width(measured, above=above, beside=beside)
    if half is None:
        return 1.0
    distance = measured.value - bound if above else bound - measured.value
    if half == 0:
        return 0.0 if distance > 0 else 1.0
    return _NORMAL.cdf(-Z95 * distance / half)


def half_width(measured: Estimate, *, above: bool, beside: float = 0.0) -> float | None:
    """Return the half width of an interval on a bound's side, with that of the bound."""
    end = measured.low if above else measured.high
    return None if end is None else sqrt((measured.value - end) ** 2 + beside**2)


def together(chances: Sequence[float]) -> list[float]:
    """Return the chances by which noise alone shows as much in any of as many checks (Holm)."""
    most, found = 0.0, [1.0] * len(chances)
    for place, index in enumerate(sorted(range(len(chances)), key=lambda index: chances[index])):
        most = max(most, min(chances[index] * (len(chances) - place), 1.0))
        found[index] = most
    return found


@dataclass(frozen=True, kw_only=True)
class Power(Record):
    """How often a gate fails where the true value is worse by `worse_by`.

    That is a share of what was promised or recorded before, or of its limit, and a difference where
    the unit is 1. `share` is that of runs of as many problems as were judged. With `more_problems`
    it is `share_of_more`: the first of 1, 2, 5, 10, 20, .. that fails nine in ten, or else the best
    that any number does (`more_problems` is None then).
    """

    check: str
    kind: str
    metric: str
    worse_by: float
    unit: str
    problems: int
    share: float
    more_problems: int | None
    share_of_more: float


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What a check can tell: how wide it measures, and from where it fails.

    `metric` is the tag of its number. `half` is the half width of its interval, as a share of that
    number, or a difference where the unit is 1. `shown_from` is how much worse must be shown, and
    `beyond` how much worse must be measured. The share `of_problems` of the squared width narrows
    with the number of problems. `worse_by` is the change whose power is told.
    """

    check: str
    kind: str
    metric: str
    unit: str
    half: float
    worse_by: float
    shown_from: float = 0.0
    beyond: float = 0.0
    problems: int
    of_problems: float = 1.0

    def power(self, checks: int) -> Power:
        """Return the power beside so many checks of the gate that share its level."""
        many = (first * 10**zeros for zeros in range(7) for first in (1, 2, 5))
        more = [count for count in many if self.problems < count <= MOST_PROBLEMS]
        enough = (count for count in more if self._share(checks, count) >= OFTEN)
        found = next(enough, None)
        return Power(
            check=self.check,
            kind=self.kind,
            metric=self.metric,
            worse_by=self.worse_by,
            unit=self.unit,
            problems=self.problems,
            share=self._share(checks, self.problems),
            more_problems=found,
            share_of_more=self._share(checks, found or max(self.problems, MOST_PROBLEMS)),
        )

    def _share(self, checks: int, problems: int) -> float:
        narrower = self.of_problems * self.problems / problems + 1 - self.of_problems
        sd = self.half / Z95 * sqrt(narrower)
        if not sd:
            return float(self.worse_by > max(self.shown_from, self.beyond))
        edge = self.shown_from - _NORMAL.inv_cdf(GATE_LEVEL / checks) * sd
        return _NORMAL.cdf((self.worse_by - max(edge, self.beyond)) / sd)
