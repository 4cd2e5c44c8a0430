"""Tables of samples by difficulty: learned, and held against the best single policy.

A price of tokens makes one number of right answers and tokens, the gain. For a price the table is
learned that gains most: by class, or by how many of the first samples agree. Which of these it goes
by is chosen by cross-validation inside of the problems that it is learned from. It is judged on
problems that it was not learned from, against the single policy that is best on all of them, which
favours that policy. It is offered only where the difference is above 0, at LEVEL over all prices
and models.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from advisor.accuracy.subsets import RandomOrders, by_launch, routed, samples_of
from advisor.evidence.keys import Decoder
from advisor.evidence.pools import Pool
from advisor.evidence.runs import RecordedProblem
from traces.schema.advice import Routing
from traces.schema.estimate import Estimate
from traces.schema.tts.parameters import complete
from traces.schema.tts.policy import AS_SENT, Policy
from traces.schema.tts.routes import (
    CLASS,
    MOST_DOUBLED,
    OTHERS,
    Table,
    most_samples,
    table_for,
    write_routes,
)
from traces.statistics import paired, paired_change
from traces.summary.votes import majority_curve

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEVEL: Final = 0.05  # how often a table may be offered that gains nothing, over all that are tried
PRICES: Final = 3
FOLDS: Final = 10
FEWEST: Final = 40  # problems
FEWEST_SAMPLES: Final = 8
FEWEST_OF_CLASS: Final = 10  # problems that a class is learned from, else it goes with the others
MOST_CLASSES: Final = 32
MOST: Final = 1_000  # problems that are learned from
FIRST: tuple[int, ...] = (2, 3, 4, 6, 8)  # samples by whose agreement tables go


@dataclass(frozen=True)
class Single:
    """A policy with its right share and tokens of each problem: [problems]."""

    policy: Policy
    right: Floats
    tokens: Floats


@dataclass(frozen=True)
class Option:
    """What tables of one shape give: `right` and `tokens` [problems, levels, choices].

    `levels` are how many of the first `first` samples agree, or, where that is 0, classes, of which
    the last has those of the others. Both are means over orders in which other levels count 0.
    `counts` [choices] are the samples in all.
    """

    pool: Pool
    first: int
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    right: Floats
    tokens: Floats

    def tables(self, chosen: Ints) -> dict[str, Table]:
        """Return the tables of choices by level."""
        numbers = tuple(self.counts[place] for place in chosen)
        if self.first:
            return {OTHERS: (self.first,) if set(numbers) == {self.first} else numbers}
        return {name: (n,) for name, n in zip(self.classes, numbers, strict=True)}

    def gain(self, price: float) -> Floats:
        return self.right - price * self.tokens

    def learn(self, total: Floats) -> Ints:
        """Return the best choice of each level by its summed gain [levels, choices].

        A level that was not seen goes with the one below it, where answers agree less.
        """
        chosen = np.argmax(total, axis=1)
        seen = np.flatnonzero(np.abs(total).sum(axis=1) > 0)
        for level in range(len(chosen)):
            if len(seen) and level not in seen:
                below = seen[seen < level]
                chosen[level] = chosen[below[-1] if len(below) else seen[0]]
        return np.asarray(chosen)

    def of(self, values: Floats, chosen: Ints) -> Floats:
        """Return the sum over levels of the values [problems, levels, choices] that are chosen."""
        return np.asarray(values[:, np.arange(len(chosen)), chosen].sum(axis=1))


@dataclass(frozen=True)
class Tried:
    """A table under a price: what it would be, and how it did on problems that it had not seen.

    `held_out` and `single` are [2, problems]: right and tokens of both. `tables` are those that
    were learned without each problem. `sure` is by how many standard errors it gains.
    """

    price: float
    option: Option
    chosen: Ints
    against: Policy
    tables: tuple[Mapping[str, Table], ...]
    held_out: Floats
    single: Floats
    sure: float

    @property
    def gives_several(self) -> bool:
        """Whether it gives some problems more samples than others."""
        tables = self.option.tables(self.chosen)
        return len({n for table in tables.values() for n in table}) > 1


def with_routings(
    pools: Sequence[Pool], names: Sequence[str], seed: int = 0
) -> tuple[list[Pool], tuple[Routing, ...]]:
    """Return the pools with the routing policies that they are offered, and all that were tried.

    `names` are the problems that all pools have. Of more than MOST as many are learned from.
    """
    groups = _groups(pools, names)
    kept = np.random.default_rng([seed, 8]).permutation(len(names))[:MOST]
    learned = {names[place]: number for number, place in enumerate(sorted(kept))}
    groups_learned = [groups[place] for place in sorted(kept)]
    by_decoder: dict[Decoder, list[Pool]] = {}
    for pool in pools:
        by_decoder.setdefault(pool.key[0], []).append(pool)
    tried: list[Tried] = []
    for own in by_decoder.values():
        tried += try_tables(own, list(learned), groups_learned, seed)
    changed = {pool.key: pool for pool in pools}
    found: dict[Policy, Routing] = {}
    for each, offered in offers(tried):
        pool, tables = each.option.pool, each.option.tables(each.chosen)
        policy = complete(
            dataclasses.replace(
                pool.key[1],
                method="routed",
                n=most_samples(tables),
                rule=(("route", write_routes(tables)),),
            )
        )
        routing = _routing(each, policy, offered=offered)
        if policy in found and (found[policy].offered or not offered):
            continue
        found[policy] = routing
        if offered:
            now = changed[pool.key]
            by_problem = {}
            for name, group in zip(names, groups, strict=True):
                own_tables = each.tables[learned[name]] if name in learned else tables
                by_problem[name] = table_for(own_tables, group)
            changed[pool.key] = dataclasses.replace(
                now,
                policies=(*now.policies, policy),
                tables={**now.tables, policy: by_problem},
            )
    return [changed[pool.key] for pool in pools], tuple(found.values())


def offers(tried: Sequence[Tried]) -> list[tuple[Tried, bool]]:
    """Return each table that was tried, and whether it is offered."""
    wanted = NormalDist().inv_cdf(1 - LEVEL / max(len(tried), 1))
    return [(each, each.sure > wanted and each.gives_several) for each in tried]


def _groups(pools: Sequence[Pool], names: Sequence[str]) -> list[str | None]:
    """Return the class of each problem that may be named in a table."""
    told: dict[str, str | None] = {}
    for pool in pools:
        for run in pool.runs:
            told |= {name: each.group for name, each in run.problems.items() if each.group}
    return [
        group if (group := told.get(name)) is not None and CLASS.fullmatch(group) else None
        for name in names
    ]


def _routing(each: Tried, policy: Policy, *, offered: bool) -> Routing:
    (right, tokens), (right_single, tokens_single) = each.held_out, each.single
    accuracy = paired(right_single, right, "1")
    share = paired_change(tokens_single, tokens)
    assert accuracy is not None
    return Routing(
        model=each.option.pool.key[0][0],
        policy=policy,
        by="agreement" if each.option.first else "class",
        against=each.against,
        problems=len(right),
        accuracy=accuracy,
        tokens=share or Estimate(value=0.0, unit="1"),
        offered=offered,
    )


# What is tried.


def try_tables(
    pools: Sequence[Pool], names: Sequence[str], groups: Sequence[str | None], seed: int
) -> list[Tried]:
    """Return the best table for each price of tokens, from the samples of one model."""
    singles: list[Single] = []
    options: list[Option] = []
    if len(names) < FEWEST:
        return []
    for pool in pools:
        judged = pool.key[1] != AS_SENT and pool.curve is None
        problems = pool.loads(names) if judged else None
        if problems is not None:
            rng = np.random.default_rng([seed, 6])
            count = min(max(8_000 // len(names), 32), 128)
            orders = [RandomOrders(samples_of(problem.samples), rng, count) for problem in problems]
            singles += _singles(pool, problems, orders)
            options += _options(pool, orders, groups)
    if not options:
        return []
    fold = np.random.default_rng([seed, 7]).permutation(len(names)) % FOLDS
    return [_judge(options, singles, price, fold) for price in _prices(singles)]


def _singles(
    pool: Pool, problems: Sequence[RecordedProblem], orders: Sequence[RandomOrders]
) -> list[Single]:
    curves = [
        majority_curve([s.answer for s in p.samples], [s.correct for s in p.samples])
        for p in problems
    ]
    mean_tokens = np.array([each.tokens.mean() for each in orders])
    fewest = min(each.n for each in orders)
    found = []
    for policy in pool.policies:
        stop = policy.stop
        if stop is None or policy.n > fewest:
            continue
        if policy.all_samples_end:
            right = np.array([curve[policy.n - 1] for curve in curves])
            found.append(Single(policy, right, mean_tokens * policy.n))
        else:
            drawn = 1 if by_launch(stop) else stop.drawn_first or policy.n
            means = np.array([each.ended(policy.n, drawn, stop).mean(axis=1) for each in orders])
            found.append(Single(policy, means[:, 0], means[:, 1]))
    return found


def _options(
    pool: Pool, orders: Sequence[RandomOrders], groups: Sequence[str | None]
) -> list[Option]:
    fewest = min(each.n for each in orders)
    if fewest < FEWEST_SAMPLES:
        return []
    found = [_by_agreement(pool, first, orders, fewest) for first in FIRST if 2 * first <= fewest]
    sizes = Counter(group for group in groups if group is not None)
    classes = [c for c, n in sizes.most_common(MOST_CLASSES) if n >= FEWEST_OF_CLASS]
    if len(classes) > 1 or (classes and sizes[classes[0]] <= len(groups) - FEWEST_OF_CLASS):
        found.append(_by_class(pool, sorted(classes), orders, groups, fewest))
    return found


def _by_agreement(pool: Pool, first: int, orders: Sequence[RandomOrders], fewest: int) -> Option:
    counts = tuple(first << times for times in range(MOST_DOUBLED + 1) if first << times <= fewest)
    shape = (len(orders), first + 1, len(counts))
    right, tokens = np.zeros(shape), np.zeros(shape)
    for place, each in enumerate(orders):
        chosen = each.orders[:, :first]
        agree = each.marks[chosen].sum(axis=1).max(axis=1).astype(int)
        at_level = (agree[:, None] == np.arange(first + 1)) / len(agree)  # [orders, levels]
        for choice, count in enumerate(counts):
            ended = each.ended(count, count, routed((count,) * (first + 1)))
            if choice == 0:
                ended[1] = each.tokens[chosen].sum(axis=1)
            right[place, :, choice], tokens[place, :, choice] = ended @ at_level
    return Option(pool, first, (), counts, right, tokens)


def _by_class(
    pool: Pool,
    classes: Sequence[str],
    orders: Sequence[RandomOrders],
    groups: Sequence[str | None],
    fewest: int,
) -> Option:
    counts = tuple(1 << times for times in range(fewest.bit_length()) if 1 << times <= fewest)
    levels = [*classes, OTHERS]
    shape = (len(orders), len(levels), len(counts))
    right, tokens = np.zeros(shape), np.zeros(shape)
    for place, (each, group) in enumerate(zip(orders, groups, strict=True)):
        level = levels.index(group) if group is not None and group in classes else len(classes)
        for choice, count in enumerate(counts):
            ended = each.ended(count, count, routed((count,))).mean(axis=1)
            right[place, level, choice], tokens[place, level, choice] = ended
    return Option(pool, 0, tuple(levels), counts, right, tokens)


def _prices(singles: Sequence[Single]) -> list[float]:
    """Return prices of a token at which each of some policies is the best single one.

    They are of the convex front of accuracy and tokens, in its middle.
    """
    best: dict[float, float] = {}
    for each in singles:
        tokens, right = float(each.tokens.mean()), float(each.right.mean())
        best[tokens] = max(right, best.get(tokens, 0.0))
    front: list[tuple[float, float]] = []
    for point in sorted(best.items()):
        if front and point[1] <= front[-1][1]:
            continue
        while len(front) > 1 and _slope(front[-2], front[-1]) <= _slope(front[-1], point):
            front.pop()
        front.append(point)
    slopes = [_slope(*pair) for pair in pairwise(front)]
    slopes = [2 * slopes[0], *slopes, slopes[-1] / 2] if slopes else []
    middles = [float(np.sqrt(a * b)) for a, b in pairwise(slopes)]
    middles = middles[1:]  # the cheapest gains nothing by fewer samples
    if len(middles) <= PRICES:
        return middles
    places = np.linspace(0, len(middles) - 1, PRICES).round().astype(int)
    return [middles[place] for place in places]


def _slope(one: tuple[float, float], two: tuple[float, float]) -> float:
    return (two[1] - one[1]) / (two[0] - one[0])


def _judge(options: Sequence[Option], singles: Sequence[Single], price: float, fold: Ints) -> Tried:
    """Return the table for a price, and how it does where it is not learned from."""
    gains = [option.gain(price) for option in options]
    sums = [np.array([g[fold == f].sum(axis=0) for f in range(FOLDS)]) for g in gains]
    alone = np.array([s.right - price * s.tokens for s in singles])
    reference = singles[int(np.argmax(alone.sum(axis=1)))]
    problems = len(fold)
    held_out, single = np.empty((2, problems)), np.array([reference.right, reference.tokens])
    tables: list[Mapping[str, Table]] = [{}] * problems
    for f in range(FOLDS):
        inside = fold == f
        others = [g for g in range(FOLDS) if g != f]
        best = _best_option(options, gains, sums, fold, others)
        option = options[best]
        chosen = option.learn(sums[best][others].sum(axis=0))
        held_out[0, inside] = option.of(option.right[inside], chosen)
        held_out[1, inside] = option.of(option.tokens[inside], chosen)
        for place in np.flatnonzero(inside):
            tables[place] = option.tables(chosen)
    difference = (held_out[0] - single[0]) - price * (held_out[1] - single[1])
    error = float(difference.std(ddof=1) / np.sqrt(problems))
    best = _best_option(options, gains, sums, fold, list(range(FOLDS)))
    option = options[best]
    return Tried(
        price=price,
        option=option,
        chosen=option.learn(sums[best].sum(axis=0)),
        against=reference.policy,
        tables=tuple(tables),
        held_out=held_out,
        single=single,
        sure=float(difference.mean() / error) if error > 0 else 0.0,
    )


def _best_option(
    options: Sequence[Option],
    gains: Sequence[Floats],
    sums: Sequence[Floats],
    fold: Ints,
    folds: Sequence[int],
) -> int:
    """Return the option whose tables gain most on folds that they were not learned from."""
    totals = []
    for option, gain, by_fold in zip(options, gains, sums, strict=True):
        whole = by_fold[list(folds)].sum(axis=0)
        held = [option.of(gain[fold == g], option.learn(whole - by_fold[g])).sum() for g in folds]
        totals.append(float(np.sum(held)))
    return int(np.argmax(totals))
