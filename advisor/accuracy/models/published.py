"""What a published curve of votes says: accuracy between its points, beyond them, and how surely.

The model is `VoteCurve`. At a point the accuracy is as published. Everywhere the interval has the
choice of problems in it, elsewhere what the points leave open too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from advisor.accuracy.models.vote_curve import VoteCurve
from traces.schema.estimate import Estimate
from traces.schema.tts.published import PublishedCurve
from traces.statistics import Floats, others, share

LEARNED = 8  # points that the laws are weighted by, evenly spread on a logarithmic scale
DRAWS = 400  # of sets of problems, for intervals
SETS = 100  # of them, held problem by problem


class CurveAccuracy:
    """The accuracy of votes of some `counts` of samples, 1 or more, by a published curve."""

    def __init__(self, curve: PublishedCurve, counts: Sequence[int], seed: int = 0) -> None:
        self.curve, self._counts = curve, sorted(set(counts))
        accuracy = curve.accuracy
        self._model = VoteCurve(problems=curve.problems, seed=seed).fit(
            {n: accuracy[n] for n in learned(list(accuracy))}, self._counts
        )
        self._places = {n: place for place, n in enumerate(self._model.counts_)}

    def value(self, count: int) -> float:
        published = self.curve.accuracy.get(count)
        return self._model.predict(count).value if published is None else published

    def same_problems(self, count: int) -> Estimate:
        """Return what the same run would have given on these problems with another count."""
        return self._model.predict(count)

    def votes(self, problems: int) -> dict[int, Floats]:
        """Return [sets, problems] by count: made-up problems. Only their means are sound."""
        votes, _ = self._model.benchmarks(SETS, problems)
        by_count = {}
        for count in self._counts:
            each = votes[:, :, self._places[count]]
            if count in self.curve.accuracy:  # where the laws were not weighted by it too
                each = each + (self.value(count) - each.mean(axis=1, keepdims=True))
            by_count[count] = np.asarray(each + (self.value(count) - each.mean()))
        return by_count

    def estimate(self, count: int) -> Estimate:
        """Return the accuracy with the interval of the mean over all problems like these."""
        beyond = count not in self.curve.accuracy
        value, problems = self.value(count), self.curve.problems
        return share(value, self._variance(count), problems, extrapolated=beyond)

    def other_problems(self, count: int, *, of: int | None = None) -> Estimate:
        """Return the accuracy with the interval of one run of as many other problems, or `of`."""
        beyond = count not in self.curve.accuracy
        law = others(self.value(count), self._variance(count), self.curve.problems, of=of)
        return law.interval(extrapolated=beyond)

    def _variance(self, count: int) -> float:
        """Return the variance of the problems' shares, by that of their mean."""
        problems, value = self.curve.problems, self.value(count)
        votes, off = self._model.benchmarks(DRAWS, min(problems, 2_000))
        place = self._places[count]
        means = votes[:, :, place].mean(axis=1)
        means = np.full(DRAWS, value) if count in self.curve.accuracy else means
        # As far as the set lies off, another way: which problems were taken.
        shrink = np.sqrt(min(problems, 2_000) / problems)
        means = np.clip(means + shrink * off[:, place], 0.0, 1.0)
        return problems * float(means.var())


def learned(counts: Sequence[int]) -> list[int]:
    """Return at most `LEARNED` of ascending counts, the first and the last among them."""
    if len(counts) <= LEARNED:
        return list(counts)
    logs = np.log(counts)
    aims = np.linspace(logs[0], logs[-1], LEARNED)
    return sorted({counts[int(np.abs(logs - aim).argmin())] for aim in aims})
