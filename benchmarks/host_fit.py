"""The host's part of a step, which no operator table has, and how far off the prior is.

Both are learned from runs that others measured (`host_term.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from advisor.step_time.host.law import TERMS
from advisor.step_time.host.spread import together
from advisor.step_time.law import non_negative_least_squares
from traces.statistics import LEVEL, Z95, Floats

SHARED: Final = np.array([1.0, 1.0, 1.0, 1.0, 0.0])  # [TERMS], 0 of what one generation has alone
POOLED: Final = 30.0  # points that the law of all generations counts as in the fit of one
NOISE: Final = 0.05  # the relative error that each of these points is taken to have
HUBER: Final = 0.05  # relative errors beyond this lose weight
ITERATIONS: Final = 12  # of reweighting
LEAST: Final = 1e-3  # the smallest spread


class HostTerm:
    """What a token takes beyond its kernels, by generations of engines.

    Attributes
    ----------
    shape_: non-negative seconds [TERMS] that all generations share, up to a factor of each.
    factors_: these factors by generation.
    seconds_: non-negative seconds [TERMS] by generation.

    Notes
    -----
    With x the exposure of a point to each term (how much longer a token takes for each second of
    it, by the replay), k the time by kernels alone and t the measured one, weighted least squares
    of (k + x c - t) / t with Huber's weights. First of one shape for all generations times a factor
    of each, in which each generation counts alike. Then of each generation by itself, held towards
    its factor times the shape: a coefficient that differs by its own size costs as much as POOLED
    points that are off by NOISE. So a generation that ran at few sizes has the gain of ranks of
    the others, and one that never ran has the mean factor. What one generation has alone (SHARED)
    is in no shape, and 0 where no point is exposed to it.

    """

    def fit(
        self, exposure: Floats, kernels: Floats, measured: Floats, generation: npt.NDArray[np.str_]
    ) -> "HostTerm":
        """Learn from exposures [points, TERMS] and the seconds of a token, [points] each.

        Raises ValueError without points.
        """
        if not len(measured):
            raise ValueError("no points to learn the host's part of a step from")
        names = sorted({str(name) for name in generation})
        self.factors_ = dict.fromkeys(names, 1.0)
        gap, weight = measured - kernels, 1 / measured
        alike = np.sqrt([1 / np.sum(generation == name) for name in generation])
        for _ in range(ITERATIONS):
            factor = np.array([self.factors_[str(name)] for name in generation])
            rows = exposure * SHARED * (factor * weight * alike)[:, None]
            self.shape_ = non_negative_least_squares(rows, gap * weight * alike) * SHARED
            for name in names:
                own = generation == name
                whole = exposure[own] @ self.shape_ * weight[own]
                power = float(whole @ whole)
                found = float(whole @ (gap * weight)[own]) / power if power else 1.0
                self.factors_[name] = max(found, 0.0)
            factor = np.array([self.factors_[str(name)] for name in generation])
            weight = self._weights(kernels + factor * (exposure @ self.shape_), measured)
        self.seconds_ = {
            name: self._own(
                self.factors_[name] * self.shape_,
                exposure[generation == name],
                kernels[generation == name],
                measured[generation == name],
            )
            for name in names
        }
        return self

    def seconds(self, generation: str) -> Floats:
        """Return the seconds [TERMS] of a generation; of one that never ran the mean of others."""
        if generation in self.seconds_:
            return self.seconds_[generation]
        return np.asarray(np.mean(list(self.factors_.values())) * self.shape_, dtype=float)

    def predict(
        self, exposure: Floats, kernels: Floats, generation: npt.NDArray[np.str_]
    ) -> Floats:
        """Return the seconds of a token [points]."""
        law = np.array([self.seconds(str(name)) for name in generation])
        return np.asarray(kernels + np.sum(exposure * law, axis=1), dtype=float)

    def _own(self, usual: Floats, exposure: Floats, kernels: Floats, measured: Floats) -> Floats:
        """Return the seconds [TERMS] of one generation, held towards `usual`."""
        hold = SHARED * NOISE * np.sqrt(POOLED) / np.maximum(usual, 1e-9)
        weight, found = 1 / measured, usual
        for _ in range(ITERATIONS):
            rows = np.vstack([exposure * weight[:, None], np.diag(hold)])
            target = np.append((measured - kernels) * weight, hold * usual)
            found = non_negative_least_squares(rows, target)
            weight = self._weights(kernels + exposure @ found, measured)
        return found

    def _weights(self, predicted: Floats, measured: Floats) -> Floats:
        off = np.abs(predicted / measured - 1)
        return np.asarray(1 / measured / np.sqrt(np.maximum(off / HUBER, 1.0)), dtype=float)


def as_table(model: HostTerm) -> Mapping[str, Mapping[str, float]]:
    """Return the seconds by generation and term, as they are kept."""
    return {
        name: dict(zip(TERMS, (float(f"{each:.4g}") for each in seconds), strict=True))
        for name, seconds in model.seconds_.items()
    }


class LeftOutSpread:
    """The spread of the log of measured over predicted time, by what was left out.

    Attributes
    ----------
    kernels_, host_: by stratum, the standard deviations of the log of the kernels' time and of
        the host's. A point has both, each by its share of the time (`together`).
    points_, clusters_: how many taught each.

    Notes
    -----
    Tables and the host's part err apart from one another, so that a step whose host takes half
    is known less well than one of long kernels. The two variances are those that squared errors
    have by likelihood. Both are then widened or narrowed alike by cross-conformal prediction, until
    intervals of LEVEL hold the points of clusters that are left out. Points of a model in a lab
    err alike, so each such cluster weighs the same.

    """

    def fit(
        self, errors: Floats, shares: Floats, clusters: Sequence[str], strata: Sequence[str]
    ) -> "LeftOutSpread":
        """Learn from log errors and the host's shares [points], each of a cluster and a stratum."""
        names, groups = np.array(strata), np.array(clusters)
        self.kernels_: dict[str, float] = {}
        self.host_: dict[str, float] = {}
        self.points_: dict[str, int] = {}
        self.clusters_: dict[str, int] = {}
        for name in sorted(set(strata)):
            own = names == name
            error, share, group = errors[own], shares[own], groups[own]
            kinds = sorted(set(group.tolist()))
            weight = np.array([1 / np.sum(group == each) for each in group])
            kernels, host = _spreads(error, share, weight)
            size = np.abs(error) / together(kernels, host, share)
            for kind in kinds if len(kinds) > 1 else []:
                here = group == kind
                others = _spreads(error[~here], share[~here], weight[~here])
                size[here] = np.abs(error[here]) / together(*others, share[here])
            order = np.argsort(size)
            reached = np.cumsum(weight[order]) / weight.sum()
            at = min(int(np.searchsorted(reached, LEVEL)), len(size) - 1)
            factor = float(size[order][at]) / Z95
            self.kernels_[name], self.host_[name] = factor * kernels, factor * host
            self.points_[name], self.clusters_[name] = len(size), len(kinds)
        return self

    def sigma(self, name: str, shares: Floats) -> Floats:
        """Return the spreads of points of a stratum, by the host's shares [points]."""
        return together(self.kernels_[name], self.host_[name], shares)


def _spreads(errors: Floats, shares: Floats, weights: Floats) -> tuple[float, float]:
    """Return the spread of the kernels' time and of the host's, by Gaussian likelihood.

    By least squares of squared errors, weighted again by what they are expected to be.
    """
    rows = np.column_stack([(1 - shares) ** 2, shares**2])
    found = np.full(2, float(np.average(errors**2, weights=weights)))
    for _ in range(ITERATIONS):
        weight = np.sqrt(weights) / np.maximum(rows @ found, LEAST**2)
        found = non_negative_least_squares(rows * weight[:, None], errors**2 * weight)
    kernels, host = np.sqrt(np.maximum(found, LEAST**2)).tolist()
    return kernels, host
