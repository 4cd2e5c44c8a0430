"""A published curve of votes: accuracy and tokens by number of samples, no sample known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from traces.errors import RecordingError
from traces.schema.record import Record

SPREAD = 0.6  # of the logarithm of lengths, where nobody states it


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Record):
    """The accuracy of votes of `n` samples, and the tokens of all of these, means over problems.

    `ci` is half the 95 % interval that was published with it, None where none was.
    """

    n: int
    accuracy: float
    tokens: float
    ci: float | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedCurve(Record):
    """Points in ascending order of n, averages over the same `problems`.

    `spread` is the standard deviation of the natural logarithm of a sample's length. Half of its
    square lies between problems and half between the samples of one.
    """

    points: tuple[CurvePoint, ...]
    problems: int
    spread: float = SPREAD
    prompt_tokens: int | None = None

    @property
    def accuracy(self) -> Mapping[int, float]:
        return {point.n: point.accuracy for point in self.points}

    @property
    def most(self) -> int:
        return self.points[-1].n

    @property
    def tokens_per_sample(self) -> float:
        """The mean over all points, each weighing as many samples as it has."""
        return sum(p.tokens for p in self.points) / sum(p.n for p in self.points)

    @classmethod
    def told(cls, provenance: Mapping[str, Any]) -> PublishedCurve | None:
        """Return a recording's curve, None for none. Raises RecordingError if damaged."""
        imported = provenance.get("imported")
        data = imported.get("curve") if isinstance(imported, Mapping) else None
        if data is None:
            return None
        try:
            curve = cls.from_json(data)
            counts = [point.n for point in curve.points]
            sound = counts == sorted(set(counts)) and counts[0] >= 1 and curve.problems >= 1
            sound = sound and all(0 <= p.accuracy <= 1 and p.tokens > 0 for p in curve.points)
            sound = sound and 0 <= curve.spread < 10
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            sound = False
        if not sound:
            raise RecordingError("the curve of an import is damaged. Import it again")
        return curve
