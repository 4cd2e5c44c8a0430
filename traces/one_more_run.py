"""Which share of its problems one more run has right: the laws `fresh` and `others`.

A run answers each problem once by its policy, so that its accuracy varies though nothing else
does. `fresh` is one more run of the same problems, `others` one of other problems like these. Both
have in them that few samples of each problem were recorded, and neither is the mean over all
problems, which varies less (`traces.statistics.share`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from traces.schema.estimate import Estimate, Predicted
from traces.statistics import LEVEL, Floats, beta_below, beta_quantiles, share_law


@dataclass(frozen=True, kw_only=True)
class RunLaw:
    """The law of the share of `problems` that a run has right.

    It is the beta law (a, b), of which each number of problems has the part that is nearest to it.
    `value` is the share that is expected.
    """

    value: float
    a: float
    b: float
    problems: int
    of: Predicted

    def quantiles(self, levels: ArrayLike) -> Floats:
        """Return shares below or at which a run lies with each chance of `levels`."""
        return _nearest(beta_quantiles(self.a, self.b, levels), self.problems)

    def chance(self, at_least: float) -> float:
        """Return the chance that a run has at least this share right."""
        fewest = np.ceil(at_least * self.problems - 1e-9)
        if fewest <= 0:
            return 1.0
        if fewest > self.problems:
            return 0.0
        return 1 - float(beta_below(self.a, self.b, (fewest - 0.5) / self.problems))

    def interval(self, *, extrapolated: bool = False) -> Estimate:
        """Return the value with the 90 % interval of the run."""
        low, high = self.quantiles((0.5 - LEVEL / 2, 0.5 + LEVEL / 2)).tolist()
        return Estimate(
            value=self.value,
            low=min(low, self.value),
            high=max(high, self.value),
            unit="1",
            extrapolated=extrapolated,
            of=self.of,
        )


def others(value: float, variance: float, problems: int, *, of: int | None = None) -> RunLaw:
    """Return the law of one run of `of` other problems, as many as there are without it.

    `value` and `variance` are those of the recorded problems' shares [problems], each the share of
    its votes that are right. Whatever a share's samples leave unknown is in that variance. To the
    law of the mean over all problems (`share_law`) comes that of so many answers that are right
    with the chance m, m (1 - m) / of, however alike the answers of one problem are.
    """
    of = problems if of is None else of
    a, b = share_law(value, variance, problems)
    mean = a / (a + b)
    alone = mean * (1 - mean)
    known = alone / (a + b + 1)
    return _law(value, mean, known + (alone - known) / of, of, "others")


def others_of(shares: Floats) -> RunLaw:
    """Return the law of one run of as many other problems, by the shares [problems] of these."""
    return others(float(shares.mean()), float(shares.var()), shares.size)


def fresh(value: float, variance: float, problems: int) -> RunLaw:
    """Return the law of one more run of the same problems.

    `value` is the mean share of the recorded votes that are right, and `variance` that of a new
    answer of a problem about the share that was recorded of it, on average over the problems. That
    is m (1 - m) where m is the chance that few recorded samples leave, the mean of its posterior
    (`advisor.accuracy.extrapolation`): the variance of the answer plus that of the chance. One
    problem more, half right, is mixed in (Jeffreys).
    """
    mean = (problems * value + 0.5) / (problems + 1)
    return _law(value, mean, (problems * variance + 0.5) / (problems + 1) ** 2, problems, "fresh")


def of_single_samples(shares: Floats, samples: int) -> float:
    """Return the variance that `fresh` takes, of policies that answer by one sample.

    `shares` [problems] are those of at least two recorded samples that are right: p (1 - p) is low
    by 1 / N, and the share itself is off by as much again.
    """
    spread = float((shares * (1 - shares)).mean())
    return spread * (samples + 1) / (samples - 1)


def _law(value: float, mean: float, variance: float, problems: int, of: Predicted) -> RunLaw:
    worth = mean * (1 - mean) / variance - 1
    worth = max(worth, 0.5 / min(mean, 1 - mean))  # neither end may be likelier than the middle
    return RunLaw(
        value=float(value), a=worth * mean, b=worth * (1 - mean), problems=problems, of=of
    )


def _nearest(shares: Floats, problems: int) -> Floats:
    return np.asarray(np.floor(shares * problems + 0.5) / problems)
