"""A number with its unit, its interval, and what that interval is of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final, Literal, TypeVar, cast

from traces.schema.record import Record

Of = Literal["all", "fresh", "others"]
Predicted = Literal["fresh", "others"]

# What the interval of an estimate is of: nine in ten of these lie in it.
OF: Final[dict[Of, str]] = {
    "all": "all problems like these",
    "fresh": "one more run of the same problems",
    "others": "one more run of as many other problems",
}


@dataclass(frozen=True, kw_only=True)
class Interval(Record):
    """Two ends, None where what was measured is too little to tell that end."""

    low: float | None = None
    high: float | None = None

    def each_end(self, change: Callable[[float], float | None]) -> Interval:
        """Return the interval with a change of the ends that are known."""
        low, high = (None if end is None else change(end) for end in (self.low, self.high))
        return Interval(low=low, high=high)

    def holding(self, other: Interval) -> Interval:
        """Return the least interval that holds both; an end that is not known stays so."""
        low, high = (
            None if own is None or end is None else least(own, end)
            for own, end, least in ((self.low, other.low, min), (self.high, other.high, max))
        )
        return Interval(low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Estimate(Record):
    """A number with its interval; no bare float leaves the advisor.

    `low` and `high` are None where no interval is known, and one of them alone where what was
    measured is too little to tell that end; `runs` is how many recorded runs it rests on;
    `extrapolated` says that it lies outside what was measured.

    `of` says what lies between the ends (`OF`), None where that is neither. A prediction has two
    intervals, `fresh` and `others`, and its ends are those of one of them.
    """

    value: float
    low: float | None = None
    high: float | None = None
    unit: str
    runs: int | None = None
    extrapolated: bool = False
    of: Of | None = None
    fresh: Interval | None = None
    others: Interval | None = None

    @classmethod
    def predicted(
        cls,
        value: float,
        unit: str,
        *,
        fresh: Interval,
        others: Interval,
        of: Predicted,
        runs: int | None = None,
        extrapolated: bool = False,
    ) -> Estimate:
        """Return a prediction with both of its intervals, whose ends are those of `of`.

        What one more run of the same problems may have, one of others may have too.
        """
        both = cls(
            value=value,
            unit=unit,
            runs=runs,
            extrapolated=extrapolated,
            fresh=fresh,
            others=others.holding(fresh),
        )
        return both.which(of)

    def which(self, of: Predicted) -> Estimate:
        """Return the same prediction with the ends of one of its intervals.

        What has but one interval, or none, is left as it is.
        """
        ends = self.fresh if of == "fresh" else self.others
        return self if ends is None else replace(self, low=ends.low, high=ends.high, of=of)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what only predictions have is left out of other numbers."""
        plain = super().to_json()
        return {k: v for k, v in plain.items() if v is not None or k not in _OF_PREDICTIONS}

    def holds(self, value: float) -> bool | None:
        """Whether a value lies in the interval, None without both ends."""
        if self.low is None or self.high is None:
            return None
        return self.low <= value <= self.high

    def each_interval(self, change: Callable[[Interval], Interval]) -> Estimate:
        """Return the number with a change of all of its intervals."""
        ends = change(Interval(low=self.low, high=self.high))
        fresh, others = (
            None if each is None else change(each) for each in (self.fresh, self.others)
        )
        return replace(self, low=ends.low, high=ends.high, fresh=fresh, others=others)

    def beside(self, other: Estimate, change: Callable[[Interval, Interval], Interval]) -> Estimate:
        """Return the number with a change of each interval by another number's of the same kind."""
        ends = change(
            Interval(low=self.low, high=self.high), Interval(low=other.low, high=other.high)
        )
        fresh, others = (
            None if own is None else own if its is None else change(own, its)
            for own, its in ((self.fresh, other.fresh), (self.others, other.others))
        )
        return replace(self, low=ends.low, high=ends.high, fresh=fresh, others=others)

    def scaled(self, factor: float, unit: str) -> Estimate:
        """Return the number and its intervals times a factor above 0, in another unit."""
        moved = self.each_interval(lambda ends: ends.each_end(lambda end: end * factor))
        return replace(moved, value=self.value * factor, unit=unit)

    @property
    def cannot_differ(self) -> bool:
        """Whether both ends are the value, but for rounding."""
        ends = (self.low, self.high)
        return all(end is not None and math.isclose(end, self.value) for end in ends)

    def at_least(self, floor: float) -> Estimate:
        """Return the number and its intervals, none of them below a floor."""
        moved = self.each_interval(lambda ends: ends.each_end(lambda end: max(end, floor)))
        return replace(moved, value=max(self.value, floor))


T = TypeVar("T")


def with_intervals(value: T, of: Predicted) -> T:
    """Return dataclasses, mappings or tuples whose predictions have the ends of one interval."""
    return cast("T", _which(value, of))


def _which(value: Any, of: Predicted) -> Any:
    if isinstance(value, Estimate):
        return value.which(of)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {each.name: _which(getattr(value, each.name), of) for each in fields(value)}
        return replace(value, **changed)
    if isinstance(value, Mapping):
        return {name: _which(each, of) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_which(each, of) for each in value)
    return value


_OF_PREDICTIONS = ("of", "fresh", "others")
