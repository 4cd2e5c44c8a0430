"""Votes, pass@k and paired intervals over a table of sampled answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from profiler.policies.choices import plurality

RESAMPLES = 2000
CONFIDENCE = 0.90


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over problems with the 90 % interval of a bootstrap over problems."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(per_problem: Sequence[float] | np.ndarray) -> Interval:
    """Return the mean of one number per problem; for a paired difference pass the differences."""
    return ratio_interval(per_problem, np.ones(len(per_problem)))


def ratio_interval(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray
) -> Interval:
    """Return the sum of numerators over sum of denominators, both resampled by problem."""
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    rows = np.random.default_rng(0).integers(0, len(above), (RESAMPLES, len(above)))
    ratios = above[rows].sum(1) / below[rows].sum(1)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value=float(above.sum() / below.sum()), low=float(low), high=float(high))


def pass_at(k: int, *, right: int, samples: int) -> float:
    """Return the chance that k samples of those drawn hold a right one (Chen et al., 2021)."""
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def majority_right(
    answers: Sequence[Sequence[str | None]], expected: Sequence[str], *, votes: int, draws: int = 8
) -> np.ndarray:
    """Return, per problem, the share of ``draws`` subsets of ``votes`` samples that vote right."""
    draw = np.random.default_rng(0)

    def share(row: Sequence[str | None], truth: str) -> float:
        if votes == len(row):
            return float(plurality(dict(enumerate(row))) == truth)
        subsets = ([row[i] for i in draw.permutation(len(row))[:votes]] for _ in range(draws))
        return float(np.mean([plurality(dict(enumerate(subset))) == truth for subset in subsets]))

    return np.array([share(row, truth) for row, truth in zip(answers, expected, strict=True)])
