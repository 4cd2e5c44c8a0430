"""The joint draws: one resampling of the problems and of the models' errors for all candidates.

Draw b takes the same problems, and the same error of a step-time law, for every candidate, so that
differences between candidates are paired. Laws of different engines err independently.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from advisor.evidence.features import Features
from advisor.evidence.keys import law_key
from advisor.step_time.law import StepLaw
from advisor.step_time.power.law import PowerLaw
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate, Interval, Of
from traces.statistics import (
    ENDS,
    Floats,
    beta_quantiles,
    order_of_draws,
    others,
    quantile_law,
    share_law,
    skew_of_mean,
    weighted_quantiles,
    widened,
)

Ints32 = npt.NDArray[np.int32]

SPREAD = 1.0  # (sd of the log) of the problems' times, where one alone is seen


class Resampling:
    """`count` draws over `problems` problems; the odd ones state what the even ones chose."""

    def __init__(self, problems: int, *, count: int = 400, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 0])
        self.seed, self.count = seed, count
        self.weights: Ints32 = rng.multinomial(
            problems, np.full(problems, 1 / problems), size=count
        ).astype(np.int32)
        # Half a right and half a wrong answer (Jeffreys): no answer is ever certain.
        self.unseen = rng.gamma(0.5, size=(2, count))
        self.choosing = np.arange(count) % 2 == 0
        # Shares from 0 to 1 of what is between two bounds.
        self.power, self.growth = np.empty((2, count))
        for shares in (self.power, self.growth):
            for half in (self.choosing, ~self.choosing):
                shares[half] = rng.permutation((np.arange(half.sum()) + 0.5) / max(half.sum(), 1))
        self._scores: dict[EngineConfig, Floats] = {}
        # How many times what one problem takes others may take on average: the mean of a
        # log-normal law over one value of it.
        self.unlike = np.exp(SPREAD**2 / 2 + SPREAD * self.scores("others"))

    def factor(
        self,
        engine: EngineConfig,
        law: StepLaw,
        *,
        outside: bool,
        totals: Features[float] | None = None,
    ) -> Floats:
        """Return the factor on an engine's step time per draw, log-normal with mean 1.

        `outside` says that the candidate lies outside the law's recorded domain. With the `totals`
        of its steps there is what the law's `ends` differ by in them, too.
        """
        key = law_key(engine)
        if key not in self._scores:
            self._scores[key] = self.scores(repr(key))
        sigma = law.sigma_outside if outside else law.sigma
        speed = np.exp(sigma * self._scores[key] - sigma**2 / 2)
        if totals is None or law.ends is None:
            return speed
        counts = np.array(totals)
        ratios = law.ends @ counts / (law.seconds @ counts)
        return np.asarray(speed * _between(ratios, self.growth))

    def power_errors(self, laws: Iterable[PowerLaw]) -> list[Floats]:
        """Return the factor on the energy of each power law per draw, log-normal with mean 1."""
        return [
            np.exp(law.sigma * self.scores(f"power {place}") - law.sigma**2 / 2)
            for place, law in enumerate(laws)
        ]

    def scores(self, name: str) -> Floats:
        """Return standard normal draws of what has that name, [draws]."""
        rng = np.random.default_rng([self.seed, 1, zlib.crc32(name.encode())])
        z = np.empty(self.count)
        for half in (self.choosing, ~self.choosing):
            z[half] = rng.permutation(_normal_scores(int(half.sum())))
        return z

    def mean(self, values: Floats, *, of: Of = "all") -> Floats:
        """Return the mean over problems per draw of [problems] or [replays, problems] values.

        Of all problems like these, or `others`: of a run of as many other ones. With several
        replays, draws take them in turn. Means of few problems lie as far apart as Student's law
        has them, and farther on the side of the long tail (`widened`). One problem tells no spread,
        so that one is assumed (`SPREAD`).
        """
        rows = np.atleast_2d(values)
        turn = self._turn(len(rows))
        means = (self.weights @ rows.T / rows.shape[1])[np.arange(self.count), turn]
        if rows.shape[1] == 1:
            means = means * self.unlike
        skew = skew_of_mean(rows)[turn]
        value = rows.mean(axis=1)[turn]
        return farther(value, widened(value, means, rows.shape[1], skew=skew, positive=True), of)

    def quantile(
        self,
        values: Floats,
        q: float,
        order: Floats | None = None,
        *,
        lower: bool = False,
        of: Of = "all",
    ) -> Floats:
        """Return the quantile over problems per draw, values as for `mean`.

        The draws (or `order` [draws]) say in which of them it is larger. How large is the law of
        order statistics (`quantile_law`), as no draw has a problem that is worse than the worst.
        Limits take the upper law, and lower ends of intervals the `lower` one.
        """
        rows = np.atleast_2d(values)
        turn = self._turn(len(rows))
        drawn = self.quantile_order(rows, q) if order is None else order
        quantiles, turns = np.empty(self.count), min(len(rows), (self.count + 1) // 2)
        for number in range(turns):
            ordered = np.sort(rows[number])
            for half in (self.choosing, ~self.choosing):
                mine = np.flatnonzero(half & (turn == number))
                place = np.argsort(np.argsort(drawn[mine], kind="stable"), kind="stable")
                levels = (place + (number + 0.5) / turns) / max(mine.size, 1)
                quantiles[mine] = quantile_law(ordered, q, levels, lower=lower, of=of)
        return quantiles

    def quantile_order(self, values: Floats, q: float) -> Floats:
        """Return numbers [draws] that are larger where more of the drawn problems take long.

        They are the draws' quantiles, and of draws that have the same one their means.
        """
        rows = np.atleast_2d(values)
        turn = self._turn(len(rows))
        drawn = np.empty(self.count)
        for number in np.unique(turn):  # of very many replays not all have one
            row, of_row = rows[number], turn == number
            order = np.argsort(row, kind="stable")
            weights = self.weights[of_row]
            quantiles = weighted_quantiles(row[order], order, weights, q)
            ordered = order_of_draws(quantiles, weights, row)
            drawn[np.flatnonzero(of_row)[ordered]] = np.arange(ordered.size)
        return drawn

    def accuracy(self, values: Floats) -> Floats:
        """Return the mean share over problems and one more, values as for `mean`.

        The draws say which of two candidates is the better where both are drawn. How far they lie
        from the value is the law of shares (`share_law`), so that they agree with its interval.
        """
        right, wrong = self.unseen
        problems, expected = values.shape[-1], values.mean(axis=tuple(range(values.ndim - 1)))
        drawn = (self.weights @ expected + right) / (problems + right + wrong)
        law = share_law(float(expected.mean()), float(expected.var()), problems)
        shares = np.empty(self.count)
        for half in (self.choosing, ~self.choosing):
            levels = (np.arange(half.sum()) + 0.5) / max(half.sum(), 1)
            shares[half] = beta_quantiles(*law, levels)[np.argsort(np.argsort(drawn[half]))]
        return shares

    def run_accuracy(self, values: Floats, luck: float = 0.0) -> Floats:
        """Return the share that one more run of as many other problems has right, as `accuracy`.

        `others` has its law, of a value that is less by the `luck` that the candidate had
        (`own_luck`). The luck of the run itself is that of no other metric.
        """
        problems, expected = values.shape[-1], values.mean(axis=tuple(range(values.ndim - 1)))
        value = float(np.clip(expected.mean() - luck, 0.0, 1.0))
        variance = float(expected.var())
        law = others(value, variance, problems)
        of_run = np.sqrt(max(value * (1 - value) - variance, 0.0) / problems)
        drawn = self.weights @ expected / problems + of_run * self.scores("luck of a run")
        shares = np.empty(self.count)
        for half in (self.choosing, ~self.choosing):
            levels = (np.arange(half.sum()) + 0.5) / max(half.sum(), 1)
            shares[half] = law.quantiles(levels)[np.argsort(np.argsort(drawn[half]))]
        return shares

    def estimate(
        self, value: float, draws: Floats, unit: str, *, runs: int | None, extrapolated: bool
    ) -> Estimate:
        """Return a value with the interval of its draws, of all problems like these."""
        ends = self.interval(value, draws, unit)
        return Estimate(
            value=float(value),
            low=ends.low,
            high=ends.high,
            unit=unit,
            runs=runs,
            extrapolated=extrapolated,
            of=None if ends == Interval() else "all",
        )

    def interval(self, value: float, draws: Floats, unit: str) -> Interval:
        """Return the interval of draws, which holds the value.

        One problem has none, but for shares. An end is None where the draws have none.
        """
        if self.weights.shape[1] < 2 and unit != "1":
            return Interval()
        with np.errstate(invalid="ignore"):  # between infinite ones
            low, high = np.quantile(draws[~self.choosing], ENDS)
        return Interval(
            low=float(min(low, value)) if np.isfinite(low) else None,
            high=float(max(high, value)) if np.isfinite(high) else None,
        )

    def apart(self, spread: float) -> Floats:
        """Return factors [draws] of a run of the same problems, for a `spread` of its log (sd)."""
        return np.asarray(np.exp(spread * self.scores("fresh")))

    def _turn(self, replays: int) -> npt.NDArray[np.int64]:
        return np.arange(self.count) // 2 % replays


def farther(value: float | Floats, draws: Floats, of: Of) -> Floats:
    """Return draws of the mean over all problems, or those of a run of as many `others`.

    These lie farther off by sqrt(2), as those problems are drawn too. Of what is above 0 that is so
    in logs.
    """
    if of == "all":
        return draws
    if np.min(value) > 0 and np.min(draws) > 0:
        return np.asarray(value * (draws / value) ** np.sqrt(2))
    return np.asarray(value + np.sqrt(2) * (draws - value))


def _between(ratios: Floats, shares: Floats) -> Floats:
    """Return draws from the ratios' least to their largest, with a mean of 1, which lies between.

    `shares` are from 0 to 1, and go from the first ratio's end to the last one's.
    """
    low, high = ratios.min(), ratios.max()
    first, last = (low, high) if ratios[-1] >= ratios[0] else (high, low)
    below = (last - 1) / (last - first) if last != first else 0.5  # the nearer end is the likelier
    return np.asarray(np.interp(shares, [0.0, below, 1.0], [first, 1.0, last]))


def _normal_scores(count: int) -> Floats:
    """Return `count` standard normal numbers that are evenly spread, ascending."""
    inverse = NormalDist().inv_cdf
    scores = np.array([inverse((i + 0.5) / count) for i in range(count)])
    return np.asarray(scores / np.sqrt(np.mean(np.square(scores))))
