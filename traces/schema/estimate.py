"""A number with its interval and unit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from traces.schema.record import Record


@dataclass(frozen=True, kw_only=True)
class Estimate(Record):
    """A number with its interval; no bare float leaves the advisor.

    `low` and `high` are None where no interval is known, and one of them alone where what was
    measured is too little to tell that end; `runs` is how many recorded runs it rests on;
    `extrapolated` says that it lies outside what was measured.
    """

    value: float
    low: float | None = None
    high: float | None = None
    unit: str
    runs: int | None = None
    extrapolated: bool = False

    def holds(self, value: float) -> bool | None:
        """Whether a value lies in the interval, None without both ends."""
        if self.low is None or self.high is None:
            return None
        return self.low <= value <= self.high

    def scaled(self, factor: float, unit: str) -> Estimate:
        """Return the number and its interval times a factor above 0, in another unit."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return replace(self, value=self.value * factor, low=low, high=high, unit=unit)

    def at_least(self, floor: float) -> Estimate:
        """Return the number and its interval, none of them below a floor."""
        low, high = (None if end is None else max(end, floor) for end in (self.low, self.high))
        return replace(self, value=max(self.value, floor), low=low, high=high)
