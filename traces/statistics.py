"""Intervals: Jeffreys' for shares, ranks for quantiles, the bootstrap for all else.

Every interval holds 90 % (`LEVEL`), those of 2 to 5 problems 80 to 90. The bootstrap draws
problems, never samples or tokens: the samples of one problem resemble each other, and counting them
as independent makes intervals that are too narrow. It is seeded, so that the same recording always
shows the same numbers. Of more than `MANY` problems blocks of them are drawn, so that its memory is
bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from traces.schema.estimate import Estimate, Interval, Of, Predicted

LEVEL = 0.9
ENDS = 0.5 - LEVEL / 2, 0.5 + LEVEL / 2  # of an interval, as quantiles
ROUNDING = 1e-9  # share by which numbers may differ that are equal but for the order of sums
Z95 = 1.6449  # of the normal law; 90 % lie between it and its negative
REPLICATES = 2000
_CHUNK_CELLS = 1_000_000
MANY = 5_000  # problems from which a mean is normal, and no bootstrap tells more
_BLOCKS = 2_000  # of problems, that are drawn together where there are more than `MANY`
_LEVELS = 100  # of a law, evenly spread

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def jeffreys(successes: float, total: int) -> tuple[float, float]:
    """Return the interval of a proportion of independent answers, a beta law's quantiles.

    The law is Beta(successes + 1/2, failures + 1/2) (Brown, Cai and DasGupta 2001). Raises
    ValueError when `total` is not positive.
    """
    if total < 1:
        raise ValueError("jeffreys: needs at least one answer")
    rate = successes / total
    estimate = share(rate, rate * (1 - rate), total)
    assert estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


def share_law(value: float, variance: float, problems: int) -> tuple[float, float]:
    """Return the beta law (a, b) of a mean share over all problems like these.

    One problem more, half right and half wrong (Jeffreys), is mixed into `problems` of a mean
    `value` and a `variance`: where the problems agree, all others need not. The variance of few is
    as Student's law has it (`wider`), at most that of answers that are right or wrong.
    """
    most = value * (1 - value)
    inflated = min(variance * wider(problems) ** 2, most) if problems > 1 else most
    inflated = max(inflated, variance)
    mean = (problems * value + 0.5) / (problems + 1)
    spread = problems * (inflated + (value - mean) ** 2) + 0.25 + (0.5 - mean) ** 2
    worth = mean * (1 - mean) * (problems + 1) * (problems + 2) / spread - 1
    worth = max(worth, 0.5 / min(mean, 1 - mean))
    return worth * mean, worth * (1 - mean)


def beta_quantiles(a: float, b: float, levels: ArrayLike) -> Floats:
    """Return quantiles of Beta(a, b), neither below 1/2, to five digits."""
    angles, below = _beta_law(a, b)
    return np.asarray(np.sin(np.interp(np.asarray(levels), below, angles)) ** 2)


def beta_below(a: float, b: float, shares: ArrayLike) -> Floats:
    """Return the chances that Beta(a, b), neither below 1/2, lies below some shares."""
    angles, below = _beta_law(a, b)
    return np.asarray(np.interp(np.arcsin(np.sqrt(shares)), angles, below))


def _beta_law(a: float, b: float) -> tuple[Floats, Floats]:
    """Return angles, and the chance that Beta(a, b) lies below the squared sine of each.

    The density is summed over these angles, over which it is smooth. scipy has the same, and takes
    half a second to load.
    """
    a, b = max(a, 0.5), max(b, 0.5)
    middle, reach = np.arctan2(np.sqrt(a), np.sqrt(b)), 5 / np.sqrt(a + b)
    angles = np.linspace(max(middle - reach, 0.0), min(middle + reach, np.pi / 2), 4001)
    logs = (2 * a - 1) * np.log(np.maximum(np.sin(angles), 1e-300))
    logs += (2 * b - 1) * np.log(np.maximum(np.cos(angles), 1e-300))
    density = np.exp(logs - logs.max())
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return angles, below / below[-1]


def share(value: float, variance: float, problems: int, *, extrapolated: bool = False) -> Estimate:
    """Return a mean share with its interval (`share_law`): the one of accuracy everywhere.

    `variance` is that of the problems about their mean, or `problems` times that of the mean.
    """
    law = share_law(value, variance, problems)
    low, high = beta_quantiles(*law, ENDS).tolist()
    value = float(value)  # no number of numpy's, which JSON and the report's HTML write otherwise
    low, high = min(low, value), max(high, value)
    return Estimate(value=value, low=low, high=high, unit="1", extrapolated=extrapolated, of="all")


def proportion(answers: ArrayLike) -> Estimate | None:
    """Return the mean of one number per problem in [0, 1], None when there is none.

    Some may be in between right and wrong, such as the expected result of a vote with ties.
    """
    finite = _finite(answers)
    return column_means(finite[:, None], "1")[0] if finite.size else None


def mean(values: ArrayLike, unit: str, *, signed: bool = False) -> Estimate | None:
    """Return the mean over problems without nan; only what is `signed` may be below 0."""
    finite = _finite(values)
    if not finite.size:
        return None
    if finite.size > MANY:
        estimate = _normal(finite, unit)
        return estimate if signed else estimate.at_least(0.0)
    draws = _weighted_sums(finite)[0] / finite.size
    estimate = _estimate(
        float(finite.sum() / finite.size),
        draws,
        finite.size,
        unit,
        skew=skew_of_mean(finite),
        positive=not signed and bool(finite.min() > 0),
    )
    return estimate if signed else estimate.at_least(0.0)


def _normal(values: Floats, unit: str) -> Estimate:
    """Return the mean of many values with the normal interval."""
    centre = float(values.mean())
    half = Z95 * float(np.sqrt(float(values.var()) / values.size))
    low, high = max(centre - half, float(values.min())), min(centre + half, float(values.max()))
    return Estimate(value=centre, low=min(low, centre), high=max(high, centre), unit=unit, of="all")


def bootstrap_means(values: Floats, *, replicates: int = 10_000) -> Floats:
    """Return [replicates, columns], means over as many problems drawn with replacement.

    `values` are [problems, columns]; a replicate draws the same problems for all columns, so that
    differences between columns are paired. How often each problem is drawn is counted first: then
    all columns are one matrix product.
    """
    size = values.shape[0]
    means = np.empty((replicates, values.shape[1]))
    start = 0
    for counts in _drawn_of(size, replicates):
        means[start : start + len(counts)] = counts @ values / size
        start += len(counts)
    return means


def _drawn_of(size: int, replicates: int) -> Iterable[Floats]:
    """Return how often each of `size` problems is drawn, in chunks of replicates."""
    several = replicates * size > _CHUNK_CELLS
    return _draw(size, replicates) if several else _kept_draws(size, replicates)


@lru_cache(maxsize=4)
def _kept_draws(size: int, replicates: int) -> tuple[Floats, ...]:
    return tuple(_draw(size, replicates))


def _draw(size: int, replicates: int) -> Iterator[Floats]:
    rng = np.random.default_rng([0, size])
    rows = max(1, _CHUNK_CELLS // size)
    for start in range(0, replicates, rows):
        count = min(rows, replicates - start)
        drawn = rng.integers(0, size, (count, size), dtype=np.int32)
        drawn += np.arange(count, dtype=np.int32)[:, None] * size
        counts = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        yield counts.astype(float)


def column_means(values: Floats, unit: str) -> list[Estimate]:
    """Return the mean over problems of every column of [problems, columns], with its interval.

    Shares (unit 1) have that of `share`, else it is a bootstrap's, or the normal law's of more
    than MANY. Raises ValueError without problems.
    """
    if not len(values):
        raise ValueError("column_means: needs at least one problem")
    values, size = np.asarray(values, dtype=float), len(values)
    if unit == "1":
        return [share(float(each.mean()), float(each.var()), size) for each in values.T]
    if size > MANY:
        return [_normal(column, unit) for column in values.T]
    draws = bootstrap_means(values)
    return [
        _estimate(float(column.mean()), drawn, size, unit, skew=skew_of_mean(column))
        for column, drawn in zip(values.T, draws.T, strict=True)
    ]


def problems_to_tell(
    difference: Estimate, problems: int, *, of_problems: float = 1.0
) -> int | None:
    """Return how many problems would tell a true difference of this size from none.

    The share `of_problems` of the interval's squared width narrows with them. None where no number
    would do, no interval is known or the difference is 0.
    """
    if difference.low is None or difference.high is None or not difference.value:
        return None
    if not difference.low <= 0 <= difference.high:
        return problems
    half = (difference.high - difference.low) / 2
    return problems_to_reach(abs(difference.value), half, problems, of_problems=of_problems)


def problems_to_reach(
    distance: float, half: float, problems: int, *, of_problems: float = 1.0, power: int = 2
) -> int | None:
    """Return how many problems would narrow an interval's half-width to a distance.

    None where what problems do not narrow is as wide as that alone. `power` is 1 for an interval
    that narrows with their number and not with its root.
    """
    left = distance**2 - (1 - of_problems) * half**2
    if left <= 0:
        return None
    ratio_ = float(np.sqrt(of_problems * half**2 / left))
    return max(ceil(problems * ratio_**power), problems + 1)


def ratio(
    numerators: ArrayLike, denominators: ArrayLike, unit: str, *, least: float = 0.0
) -> Estimate | None:
    """Return sum(numerators) / sum(denominators), one pair per problem, with its interval.

    Pairs with a nan are left out. None when the denominators sum to 0. No such number is below the
    `least`, as no time is below 0.
    """
    above, below = _both(numerators, denominators)
    if not below.size or below.sum() == 0:
        return None
    draws, value = _divide(*_weighted_sums(above, below)), above.sum() / below.sum()
    skew = skew_of_mean(above - value * below)
    estimate = _estimate(float(value), draws, below.size, unit, skew=skew, positive=True)
    if estimate.high is not None and (above <= below).all():  # a share
        estimate = replace(estimate, high=min(estimate.high, 1.0))
    return estimate.at_least(least)


def quantile(
    values: ArrayLike, q: float, unit: str, *, problems: ArrayLike | None = None
) -> Estimate | None:
    """Return the `q` quantile (linear interpolation) with its interval over problems.

    `problems` names each value's problem by a number; without it every value is a problem. An end
    is None where the problems are too few to tell it.
    """
    numbers, owners = _owned(values, problems)
    return _quantile(numbers, owners, q, unit) if numbers.size else None


def spread(
    values: ArrayLike, unit: str, problems: ArrayLike | None = None
) -> dict[str, Estimate | None]:
    """Return mean, p50 and p95 of values that belong to problems (`quantile`)."""
    numbers, owners = _owned(values, problems)
    if not numbers.size:
        return {"mean": None, "p50": None, "p95": None}
    sums, counts = np.bincount(owners, weights=numbers), np.bincount(owners).astype(float)
    return {
        "mean": ratio(sums, counts, unit),
        "p50": _quantile(numbers, owners, 0.5, unit),
        "p95": _quantile(numbers, owners, 0.95, unit),
    }


def _owned(values: ArrayLike, problems: ArrayLike | None) -> tuple[Floats, NDArray[np.intp]]:
    """Return the values that are known, and of each the number of its problem, from 0."""
    numbers = np.asarray(values, dtype=float)
    finite = np.isfinite(numbers)
    if problems is None:
        return numbers[finite], np.arange(int(finite.sum()))
    _, owners = np.unique(np.asarray(problems)[finite], return_inverse=True)
    return numbers[finite], owners


def _quantile(numbers: Floats, owners: NDArray[np.intp], q: float, unit: str) -> Estimate:
    """Return the `q` quantile between the values at ranks that hold it (`_ranks`).

    The bootstrap ends at the last of the values, and misses the true p95 of 60 problems above it
    17 % of the time where 5 % are meant.
    """
    numbers = np.maximum(numbers, 0.0)  # of times, whose cost that was taken out may be too much
    value = float(np.quantile(numbers, q))
    estimate = Estimate(value=value, unit=unit)
    if owners.max() < 1:
        return estimate
    size = _as_many_as(numbers > value, owners)
    low, high = _ranks(size, q)
    places = np.arange(1, numbers.size + 1) / (numbers.size + 1)
    ordered = np.sort(numbers)

    def at(rank: int) -> float:
        return float(np.interp(rank / (size + 1), places, ordered))

    return replace(
        estimate,
        low=min(at(low), value) if low else None,
        high=max(at(high), value) if high <= size else None,
        of="all",
    )


def _as_many_as(above: NDArray[np.bool_], owners: NDArray[np.intp]) -> int:
    """Return how many independent values tell as much of their share above a limit as these do.

    Values of a problem resemble each other: by how much more the share varies from problem to
    problem than that of independent values, there are fewer (Kish's design effect). Few problems
    tell that effect badly, which Student's law makes up for.
    """
    counts = np.bincount(owners).astype(float)
    if counts.size == owners.size:
        return owners.size
    share = float(above.mean())
    beyond = np.bincount(owners, weights=above) - share * counts
    alone = owners.size * share * (1 - share)
    effect = owners.size / counts.size if alone <= 0 else float((beyond**2).sum()) / alone
    effect *= counts.size / (counts.size - 1) * (student_95(counts.size - 1) / Z95) ** 2
    return max(int(owners.size / max(effect, 1.0)), 1)


TAIL = 1.0  # index of the Pareto law of what is longer than all that was seen


def quantile_law(
    ordered: Floats, q: float, levels: Floats, *, lower: bool = False, of: Of = "all"
) -> Floats:
    """Return a value below which the true `q` quantile lies with each chance of `levels`.

    It is one of the ascending values (`_below`). Where even the last of them is not sure enough,
    the share of what lies above it has a beta law, and is taken to fall from there as a Pareto
    law's of index `TAIL` does, whose mean is infinite: half of it lies beyond twice that value.
    With `lower` it is a value above which the quantile lies with the chance 1 - level. Of `others`
    it is the quantile of a run of as many other problems. Where that lies among the values does not
    depend on their law (order statistics), so that draws of the uniform law tell it.
    """
    ends = np.concatenate([[-np.inf], ordered, ordered[-1:]])
    if of == "others":
        places, farther = _places_of_others(ordered.size, q)
        at = np.minimum((levels * places.size).astype(np.int64), places.size - 1)
        ranks, beyond = places[at] + 1, farther[at]
    else:
        ranks = np.searchsorted(_below(ordered.size, q), levels - 1e-12) + 1
        above = 1 - (1 - levels) ** (1 / ordered.size)  # so many may lie above the last
        beyond = np.where(ranks > ordered.size, above / (1 - q), 1.0)
    values = np.asarray(ends[ranks - lower], dtype=float)
    return values if lower else values * beyond ** (1 / TAIL)


def off_together(
    ratios: Floats, sd: float, level: float, *, weights: Floats | None = None
) -> float:
    """Return the quantile of what is off by two independent factors.

    One is any of `ratios` [n], as likely as `weights` say. The other's log is normal, of that `sd`.
    """
    levels = (np.arange(_LEVELS) + 0.5) / _LEVELS
    scores = np.array([NormalDist().inv_cdf(each) for each in levels.tolist()])
    off = (ratios[:, None] * np.exp(sd * scores)).ravel()
    chances = np.full(ratios.size, 1.0) if weights is None else weights
    chances = np.repeat(chances / chances.sum() / _LEVELS, _LEVELS)
    order = np.argsort(off)
    below = np.cumsum(chances[order])
    place = min(int(np.searchsorted(below, level - 1e-12)), off.size - 1)
    return float(off[order[place]])


def quantile_of_others(rows: Floats, q: float, sds: tuple[float, float]) -> Interval:
    """Return by how many times the `q` quantile of a run of as many other problems lies off.

    `rows` [runs, problems] are what several runs gave, and `sds` those of the log of what they all
    are off by, below and above: the interval is of both together. An end that so few problems do
    not tell is None.
    """
    levels = (np.arange(_LEVELS) + 0.5) / _LEVELS

    def end(sd: float, level: float, *, lower: bool) -> float:
        off = [
            quantile_law(np.sort(row), q, levels, lower=lower, of="others") / np.quantile(row, q)
            for row in rows
        ]
        return off_together(np.concatenate(off), sd, level)

    low = end(sds[0], ENDS[0], lower=True)
    high = end(sds[1], ENDS[1], lower=False)
    return Interval(
        low=min(low, 1.0) if low > 0 else None,
        high=max(high, 1.0) if tells_above(rows.shape[1], q) else None,
    )


OTHERS = 4_000  # draws of two sets of as many


@lru_cache(maxsize=64)
def _places_of_others(size: int, q: float) -> tuple[Ints, Floats]:
    """Return how many of `size` values lie below the `q` quantile of as many others, ascending.

    And how many times as much of the law lies above the last value as above that quantile, 1 where
    it lies below the last.
    """
    rng = np.random.default_rng([3, size])
    ranks, shares = [], []
    for first in range(0, OTHERS, rows := max(1, _CHUNK_CELLS // size)):
        count = min(rows, OTHERS - first)
        seen = rng.random((count, size))
        others = np.quantile(rng.random((count, size)), q, axis=1)
        ranks.append((seen < others[:, None]).sum(axis=1))
        shares.append((1 - seen.max(axis=1)) / np.maximum(1 - others, 1e-12))
    rank, share = np.concatenate(ranks), np.maximum(np.concatenate(shares), 1.0)
    order = np.lexsort((share, rank))
    return rank[order].astype(np.int64), share[order]


@lru_cache(maxsize=64)
def _below(size: int, q: float) -> Floats:
    """Return the chances that the true `q` quantile lies below each of so many ascending values.

    It lies below the value at rank r where fewer than r of them lie below it, whose number is
    binomial, whatever their law is (order statistics).
    """
    return np.asarray(1 - np.cumsum(_binomial(size, q)[:0:-1])[::-1])


def _ranks(size: int, q: float) -> tuple[int, int]:
    """Return the ranks, from 1, of the values between which the true `q` quantile lies.

    Between two ranks an end would be wrong too often where times jump, as of problems that run
    into max_tokens: by 13 % for the lower end of p95 from 13 problems. 0 where even the first value
    leaves out more than an end may, size + 1 where the last does: 20 of 20 lie below the true p95
    with a chance of .95^20 = 36 %.
    """
    below, tail = _below(size, q), ENDS[0]
    low = np.searchsorted(below, tail + 1e-12, side="right")
    return int(low), int(np.searchsorted(below, 1 - tail - 1e-12)) + 1


def tells_above(size: int, q: float) -> bool:
    """Whether so many values by themselves have an upper end of the true `q` quantile's interval.

    All of them lie below it with a chance of q^size.
    """
    return q**size <= ENDS[0]


def _binomial(size: int, chance: float) -> Floats:
    """Return the probabilities of 0 .. `size` successes, each with a chance between 0 and 1."""
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, size + 1)))))
    ways = logs[size] - logs - logs[::-1]
    successes = np.arange(size + 1)
    log_chances = ways + successes * np.log(chance) + (size - successes) * np.log1p(-chance)
    return np.asarray(np.exp(log_chances))


def tied(values: Floats) -> Floats:
    """Return values [n] in which those that differ by rounding alone are equal.

    Another processor adds in another order, and what is sorted by such sums must not depend on it.
    Each is compared with its neighbours, as rounding sets those apart that lie beside an edge.
    """
    if not values.size:
        return values
    order = np.argsort(values, kind="stable")
    ascending = np.asarray(values, dtype=float)[order]
    lower, upper = ascending[:-1], ascending[1:]
    finite = np.isfinite(upper) & np.isfinite(lower)
    with np.errstate(invalid="ignore"):
        near = upper - lower <= ROUNDING * np.maximum(np.abs(lower), np.abs(upper))
    firsts = np.concatenate([[True], ~np.where(finite, near, upper == lower)])
    same = np.empty_like(ascending)
    same[order] = ascending[np.flatnonzero(firsts)][np.cumsum(firsts) - 1]
    return same


def apart(first: ArrayLike, second: ArrayLike) -> Floats:
    """Return second - first, 0 where they differ by rounding alone."""
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    found = two - one
    near = np.abs(found) <= ROUNDING * np.maximum(np.abs(one), np.abs(two))
    return np.where(near, 0.0, found)


def largest(values: Floats) -> Ints:
    """Return the place of the largest of finite values [.., n], of those tied with it the first.

    They may be differences, whose rounding is that of what is the largest in size.
    """
    slack = ROUNDING * np.abs(values).max(axis=-1, keepdims=True)
    return np.asarray(np.argmax(values >= values.max(axis=-1, keepdims=True) - slack, axis=-1))


def order_of_draws(quantiles: Floats, weights: NDArray[np.int32], values: Floats) -> Ints:
    """Return draws by their quantile, and those with the same one by their weighted sum of values.

    `weights` are [draws, n] and `values` [n]. Draws whose sums are the same stay in their order.
    """
    return np.asarray(np.lexsort((tied(weights @ values), tied(quantiles))), dtype=np.int64)


def paired(first: ArrayLike, second: ArrayLike, unit: str) -> Estimate | None:
    """Return mean(second) - mean(first) over problems that have both, with its interval."""
    return mean(apart(*_both(first, second)), unit, signed=True)


def paired_change(first: ArrayLike, second: ArrayLike, q: float | None = None) -> Estimate | None:
    """Return (second - first) / first of the means, or of the `q` quantiles, with its interval.

    Both are over the problems that have both, drawn together. None where the first is 0.
    """
    before, after = _both(first, second)
    if not before.size:
        return None
    return change(drawn(before, q), drawn(after, q))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A mean or a quantile over problems: as it is, and as each draw of the problems has it."""

    value: float
    draws: Floats
    problems: int

    def times(self, factors: Floats) -> Drawn:
        """Return the same with every draw multiplied by a factor of its own."""
        return replace(self, draws=self.draws * factors)

    def scaled(self, factor: float) -> Drawn:
        """Return the same with the value and every draw multiplied by one factor."""
        return replace(self, value=self.value * factor, draws=self.draws * factor)


def drawn(
    values: Floats, q: float | None = None, *, problems: NDArray[np.intp] | None = None
) -> Drawn:
    """Return the mean, or the `q` quantile, of finite values with its draws.

    `problems` has each value's problem, from 0; without it every value is a problem. Draws of as
    many problems are the same ones, so that two runs of the same problems are paired. Of a quantile
    beyond which not one of the values lies they are nan: it is the largest value, and where the
    next one would lie no draw of these tells.
    """
    owners = np.arange(values.size) if problems is None else problems
    size = int(owners.max()) + 1
    if q is None:
        sums: Floats = np.bincount(owners, weights=values, minlength=size).astype(float)
        counts: Floats = np.bincount(owners, minlength=size).astype(float)
        draws = _divide(*_weighted_sums(sums, counts))
        return Drawn(value=float(values.mean()), draws=draws, problems=size)
    order = np.argsort(values, kind="stable")
    drawn_of, blocks = owners[order], size
    if size > MANY:
        drawn_of, blocks = _block_of(size)[drawn_of], _BLOCKS
    value = float(np.quantile(values, q))
    if size > 1 and _as_many_as(values > value, owners) * min(q, 1 - q) < 1 - 1e-9:
        return Drawn(value=value, draws=np.full(REPLICATES, np.nan), problems=size)
    draws = weighted_quantiles(values[order], drawn_of, _weights(blocks), q)
    return Drawn(value=value, draws=draws, problems=size)


def difference(first: Drawn, second: Drawn, unit: str) -> Estimate:
    """Return second - first with its interval."""
    draws, value = apart(first.draws, second.draws), float(apart(first.value, second.value))
    return _estimate(value, draws, first.problems, unit)


def change(first: Drawn, second: Drawn) -> Estimate | None:
    """Return (second - first) / first with its interval, None where the first is 0."""
    if first.value == 0:
        return None
    draws = _divide(second.draws, first.draws)
    quotient = _estimate(second.value / first.value, draws, first.problems, "1", positive=True)
    low, high = (
        None if end is None else float(apart(1.0, end)) for end in (quotient.low, quotient.high)
    )
    return replace(quotient, value=float(apart(1.0, quotient.value)), low=low, high=high)


@lru_cache(maxsize=8)
def normal_scores(count: int, seed: int) -> Floats:
    """Return `count` normal numbers that are evenly spread, in an order that the seed draws."""
    normal = NormalDist()
    scores = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    shuffled = np.random.default_rng([seed, count]).permutation(scores)
    shuffled.setflags(write=False)
    return np.asarray(shuffled)


def student_95(freedom: int) -> float:
    """Return the 95 % point of Student's t (Cornish-Fisher series; exact for 1 and 2)."""
    if freedom == 1:
        return 6.3138
    if freedom == 2:
        return 2.92
    z, n = Z95, freedom
    first = (z**3 + z) / (4 * n)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    return float(z + first + second + third)


def weighted_quantiles(
    values: Floats, owners: NDArray[np.intp], weights: NDArray[np.int32] | Floats, q: float
) -> Floats:
    """Return one `q` quantile per row of `weights`, as if value i stood weights[owners[i]] times.

    `values` ascend. The quantile interpolates linearly, as numpy's does on the repeated values.
    A rank is looked up in two levels, first among about sqrt(n) groups of neighbours and then
    within one: exact, and far less work than cumulative sums over all values.
    """
    width = int(np.ceil(np.sqrt(values.size)))
    groups = -(-values.size // width)
    place = np.arange(values.size) // width
    members = np.bincount(owners * groups + place, minlength=weights.shape[1] * groups)
    members = members.reshape(weights.shape[1], groups).astype(float)
    rows = max(1, _CHUNK_CELLS // max(weights.shape[1], groups))
    quantiles = []
    for start in range(0, weights.shape[0], rows):
        drawn = weights[start : start + rows]
        masses: Floats = np.asarray(drawn.astype(float, copy=False) @ members, dtype=float)
        position = q * np.maximum(masses.sum(axis=1) - 1, 0)
        below = np.floor(position)
        left = _ranked(values, owners, drawn, masses, below)
        right = _ranked(values, owners, drawn, masses, np.ceil(position))
        part = position - below
        result = left * (1 - part) + right * part
        quantiles.append(np.where(masses.sum(axis=1) > 0, result, np.nan))
    return np.concatenate(quantiles)


def _ranked(
    values: Floats,
    owners: NDArray[np.intp],
    weights: NDArray[np.int32] | Floats,
    masses: Floats,
    rank: Floats,
) -> Floats:
    """Return the value at a rank (from 0) of each row's repeated values."""
    ends = np.cumsum(masses, axis=1)
    group = np.minimum((ends <= rank[:, None]).sum(axis=1), masses.shape[1] - 1)
    rows = np.arange(rank.size)
    before = ends[rows, group] - masses[rows, group]
    width = int(np.ceil(np.sqrt(values.size)))
    index = group[:, None] * width + np.arange(width)
    last = values.size - 1
    drawn = weights[rows[:, None], owners[np.minimum(index, last)]] * (index <= last)
    inside = before[:, None] + np.cumsum(drawn, axis=1)
    places = group * width + (inside <= rank[:, None]).sum(axis=1)
    return np.asarray(values[np.minimum(places, last)], dtype=float)


@lru_cache(maxsize=4)
def _weights(size: int) -> Floats:
    """Return how often each of `size` problems is drawn, one row per replicate.

    They are floats, since every product would convert whole numbers anew.
    """
    rng = np.random.default_rng(size)
    counts = np.empty((REPLICATES, size))
    rows = max(1, _CHUNK_CELLS // size)
    for start in range(0, REPLICATES, rows):
        chunk = counts[start : start + rows]
        drawn = rng.integers(0, size, chunk.shape) + size * np.arange(len(chunk))[:, None]
        chunk[:] = np.bincount(drawn.ravel(), minlength=chunk.size).reshape(chunk.shape)
    counts.setflags(write=False)
    return counts


@lru_cache(maxsize=4)
def _block_of(size: int) -> NDArray[np.intp]:
    """Return the block of each of more than `MANY` problems, which are dealt out at random.

    Blocks of independent problems are as independent, and their draws spread as those of problems.
    """
    blocks = np.random.default_rng([2, size]).permutation(size) % _BLOCKS
    blocks.setflags(write=False)
    return np.asarray(blocks)


def _weighted_sums(*values: Floats) -> list[Floats]:
    """Return the sums of each of some values of problems [problems], one a replicate."""
    each = np.stack(values)
    if (size := each.shape[1]) > MANY:
        block = _block_of(size)
        each = np.stack([np.bincount(block, weights=own, minlength=_BLOCKS) for own in each])
    return list(each @ _weights(each.shape[1]).T)


def _divide(above: Floats, below: Floats) -> Floats:
    empty = np.full_like(above, np.nan)
    return np.asarray(np.divide(above, below, out=empty, where=below != 0), dtype=float)


def wider(problems: int) -> float:
    """Return by how much an interval of few problems, two at least, is wider than its bootstrap's.

    Draws of n problems vary by (n - 1) / n too little, and the normal law knows their spread where
    Student's does not: sqrt(n / (n - 1)) t / z.
    """
    return float(np.sqrt(problems / (problems - 1)) * student_95(problems - 1) / Z95)


def skew_of_mean(values: Floats) -> Floats:
    """Return the skewness of means of values [.., n]: theirs over the root of their number.

    It lies between -1 and 1, above 0 where a few values are much larger than the others.
    """
    off = values - values.mean(axis=-1, keepdims=True)
    most = np.abs(off).max(axis=-1, keepdims=True)
    off /= np.where(most > 0, most, 1.0)  # so that no cube is too small or too large for a float
    squares = off * off
    sums = squares.sum(axis=-1)
    return np.asarray((squares * off).sum(axis=-1) / np.where(sums > 0, sums, 1.0) ** 1.5)


def widened(
    value: float | Floats,
    draws: Floats,
    problems: int,
    *,
    skew: float | Floats = 0.0,
    positive: bool = False,
) -> Floats:
    """Return draws that lie `wider` times as far from the value; one problem's are left.

    On the side of the long tail they lie farther still, by the share `skew` (`skew_of_mean`), as
    few problems seldom show how long that tail is. Of what is `positive` all that is so in logs.
    """
    if problems < 2:
        return draws
    in_tail = (draws > value) == (skew > 0)
    farther = wider(problems) * np.where(in_tail, 1 + np.abs(skew), 1.0)
    if positive and np.min(value) > 0 and np.min(draws) > 0:
        return np.asarray(value * (draws / value) ** farther)
    return np.asarray(value + farther * (draws - value))


def _estimate(
    value: float,
    draws: Floats,
    problems: int,
    unit: str,
    *,
    skew: float | Floats = 0.0,
    positive: bool = False,
) -> Estimate:
    """Return the percentile interval, `widened` for few problems; one problem has none.

    Rounding, or a quantile of few problems, may leave the value just outside: it is taken in.
    """
    draws = draws[np.isfinite(draws)]
    if problems < 2 or not draws.size:
        return Estimate(value=value, unit=unit)
    ends: Floats = np.quantile(draws, ENDS).astype(float)
    low, high = widened(value, ends, problems, skew=skew, positive=positive)
    return Estimate(
        value=value, low=min(float(low), value), high=max(float(high), value), unit=unit, of="all"
    )


def _finite(values: ArrayLike) -> Floats:
    numbers = np.asarray(values, dtype=float)
    finite: Floats = numbers[np.isfinite(numbers)]
    return finite


def _both(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    keep = np.isfinite(one) & np.isfinite(two)
    return one[keep], two[keep]


# Which share of its problems one more run has right: the laws `fresh` and `others`.
#
# A run answers each problem once by its policy, so that its accuracy varies though nothing else
# does. `fresh` is one more run of the same problems, `others` one of other problems like these.
# Both have in them that few samples of each problem were recorded, and neither is the mean over all
# problems, which varies less (`share`).


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
        low, high = self.quantiles(ENDS).tolist()
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
