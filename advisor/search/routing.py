"""Tables of samples by difficulty: learned, and held against the best single policy.

A price of tokens makes one number of right answers and tokens, the gain. For each price the table
that gains most is learned: by class, or by how many of the first samples agree, as cross-validation
inside of the problems says. By class it may choose a reasoning effort too, where problems were
recorded with several and otherwise alike. It is judged on problems that it was not learned from,
against the single policy that is best on all of them, which favours that policy, and offered only
where it gains at LEVEL over all prices and models.
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

from advisor.accuracy.subsets import RandomOrders, by_launch, samples_of
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
from traces.statistics import Floats, Ints, largest, paired, paired_change
from traces.summary.votes import majority_curve

LEVEL: Final = 0.05  # how often a table may be offered that gains nothing, over all that are tried
PRICES: Final = 3
FOLDS: Final = 10
FEWEST: Final = 40  # problems
FEWEST_SAMPLES: Final = 8
FEWEST_OF_EFFORT: Final = 2  # samples of a problem at each of several efforts
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

    `levels` are how many of the first `first` samples agree, or, where that is 0, classes, the last
    for the others. Both are means over orders in which other levels count 0. `counts` [choices] are
    the samples in all, drawn from `pools`, of one reasoning effort each.
    """

    pools: tuple[Pool, ...]
    first: int
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    right: Floats
    tokens: Floats

    def tables(self, chosen: Ints) -> dict[str, Table]:
        numbers = tuple(self.counts[place] for place in chosen)
        if self.first:
            return {OTHERS: (self.first,) if set(numbers) == {self.first} else numbers}
        return {name: (n,) for name, n in zip(self.classes, numbers, strict=True)}

    def pools_by_class(self, chosen: Ints) -> dict[str, Pool]:
        """Return the pools that tables of choices by level draw from."""
        pools = [self.pools[place] for place in chosen]
        return {OTHERS: pools[0]} if self.first else dict(zip(self.classes, pools, strict=True))

    @property
    def spans(self) -> bool:
        """Whether its choices are of several reasoning efforts."""
        return any(pool is not self.pools[0] for pool in self.pools)

    def gain(self, price: float) -> Floats:
        return self.right - price * self.tokens

    def learn(self, total: Floats) -> Ints:
        """Return the best choice of each level by its summed gain [.., levels, choices].

        A level that was not seen goes with the one below it, where answers agree less, or else with
        the lowest that was. A class that was not seen takes what is best for all problems together.
        """
        seen = np.abs(total).sum(axis=-1) > 0
        best = largest(total)
        if not self.first:
            alike = largest(total.sum(axis=-2))[..., None]
            return np.where(seen, best, alike)
        seen_levels = np.where(seen, np.arange(total.shape[-2]), -1)
        below = np.maximum.accumulate(seen_levels, axis=-1)
        lowest = np.argmax(seen, axis=-1)[..., None]
        as_level = np.where(below >= 0, below, lowest)
        return np.asarray(np.take_along_axis(best, as_level, axis=-1))

    def of(self, values: Floats, chosen: Ints) -> Floats:
        """Return the sum over levels of the values [problems, levels, choices] that are chosen."""
        return np.asarray(values[:, np.arange(len(chosen)), chosen].sum(axis=1))


@dataclass(frozen=True)
class Tried:
    """A table under a price: what it would be, and how it did on problems that it had not seen.

    `held_out`, by the option that was best without each problem, and `single` are [2, problems]:
    right and tokens. `tables` are those that `option` learns without each problem, and `pools` what
    these draw from, both by class. It gains by `sure` standard errors.
    """

    price: float
    option: Option
    chosen: Ints
    against: Policy
    tables: tuple[Mapping[str, Table], ...]
    pools: tuple[Mapping[str, Pool], ...]
    held_out: Floats
    single: Floats
    sure: float

    @property
    def gives_several(self) -> bool:
        """Whether it gives some problems more samples than others, or another effort."""
        pools = self.option.pools_by_class(self.chosen)
        cells = self.option.tables(self.chosen).items()
        return len({(id(pools[name]), n) for name, table in cells for n in table}) > 1


def with_routings(
    pools: Sequence[Pool], names: Sequence[str]
) -> tuple[list[Pool], tuple[Routing, ...]]:
    """Return the pools with the routing policies that they are offered, and all that were tried.

    A policy of several reasoning efforts has a pool of its own, behind the others. `names` are the
    problems that all pools have. Of more than MOST as many are learned from.
    """
    groups = _groups(pools, names)
    kept = np.random.default_rng([0, 8]).permutation(len(names))[:MOST]
    learned = {names[place]: number for number, place in enumerate(sorted(kept))}
    groups_learned = [groups[place] for place in sorted(kept)]
    by_decoder: dict[Decoder, list[Pool]] = {}
    for pool in pools:
        by_decoder.setdefault(pool.key[0], []).append(pool)
    tried: list[Tried] = []
    for same_decoder in by_decoder.values():
        tried += try_tables(same_decoder, list(learned), groups_learned, 0)
    changed, added = {pool.key: pool for pool in pools}, list[Pool]()
    routings: dict[Policy, Routing] = {}
    for each, offered in offers(tried):
        tables = each.option.tables(each.chosen)
        drawn_from = each.option.pools_by_class(each.chosen)
        policy = _policy(tables, drawn_from)
        routing = _routing(each, policy, offered=offered)
        if policy in routings and (routings[policy].offered or not offered):
            continue
        routings[policy] = routing
        if not offered:
            continue
        by_problem, pool_of = dict[str, Table](), dict[str, Pool]()
        for name, group in zip(names, groups, strict=True):
            place = learned.get(name)
            by_problem[name] = table_for(tables if place is None else each.tables[place], group)
            pool_of[name] = table_for(drawn_from if place is None else each.pools[place], group)
        if each.option.spans:
            added.append(_of_efforts(policy, by_problem, pool_of))
            continue
        now = changed[each.option.pools[0].key]
        changed[now.key] = dataclasses.replace(
            now,
            policies=(*now.policies, policy),
            tables={**now.tables, policy: by_problem},
        )
    return [*(changed[pool.key] for pool in pools), *added], tuple(routings.values())


def _policy(tables: Mapping[str, Table], pools: Mapping[str, Pool]) -> Policy:
    efforts = {name: pool.key[1].reasoning_effort for name, pool in pools.items()}
    route = write_routes(tables, efforts)
    policy = dataclasses.replace(
        next(iter(pools.values())).key[1],
        method="routed",
        n=most_samples(tables),
        reasoning_effort=None,
        rule=(("route", route),),
    )
    return complete(policy)


def _of_efforts(policy: Policy, tables: Mapping[str, Table], pools: Mapping[str, Pool]) -> Pool:
    """Return the samples that a policy of several efforts has of each problem."""
    parts = list({id(pool): pool for pool in pools.values()}.values())
    runs = {id(run): run for pool in parts for run in pool.runs}
    return Pool(
        key=(parts[0].key[0], policy),
        runs=tuple(runs.values()),
        policies=(policy,),
        problem_ids=frozenset(pools),
        tables={policy: tables},
        by_problem=pools,
    )


def offers(tried: Sequence[Tried]) -> list[tuple[Tried, bool]]:
    """Return each table that was tried, and whether it is offered."""
    wanted = NormalDist().inv_cdf(1 - LEVEL / max(len(tried), 1))
    return [(each, each.sure > wanted and each.gives_several) for each in tried]


def _groups(pools: Sequence[Pool], names: Sequence[str]) -> list[str | None]:
    """Return the class of each problem that may be named in a table."""
    group_of: dict[str, str | None] = {}
    for pool in pools:
        for run in pool.runs:
            group_of |= {name: each.group for name, each in run.problems.items() if each.group}
    return [
        group if (group := group_of.get(name)) is not None and CLASS.fullmatch(group) else None
        for name in names
    ]


def _routing(each: Tried, policy: Policy, *, offered: bool) -> Routing:
    (right, tokens), (right_single, tokens_single) = each.held_out, each.single
    accuracy = paired(right_single, right, "1")
    share = paired_change(tokens_single, tokens)
    assert accuracy is not None
    return Routing(
        model=each.option.pools[0].key[0][0],
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
    if len(names) < FEWEST:
        return []
    singles, options = measured(pools, names, groups, [seed, 6])
    if not options:
        return []
    fold = np.random.default_rng([seed, 7]).permutation(len(names)) % FOLDS
    return [_judge(options, singles, price, fold) for price in _prices(singles)]


def measured(
    pools: Sequence[Pool], names: Sequence[str], groups: Sequence[str | None], seed: Sequence[int]
) -> tuple[list[Single], list[Option]]:
    """Return what single policies and what tables give on these problems."""
    singles: list[Single] = []
    options: list[Option] = []
    by_class: dict[Policy, list[Option]] = {}
    efforts = Counter(_but_effort(pool) for pool in pools)
    for pool in pools:
        judged = pool.key[1] != AS_SENT and pool.curve is None
        judged = judged and all(run.answers_told for run in pool.runs)
        problems = pool.loads(names) if judged else None
        if problems is not None:
            rng = np.random.default_rng(seed)
            count = min(max(8_000 // len(names), 32), 128)
            orders = [RandomOrders(samples_of(problem.samples), rng, count) for problem in problems]
            singles += _singles(pool, problems, orders)
            several = efforts[_but_effort(pool)] > 1
            pool_options = _options(pool, orders, groups, several=several)
            options += pool_options
            if several:
                by_class.setdefault(_but_effort(pool), []).extend(
                    o for o in pool_options if not o.first
                )
    options += [_across(own) for own in by_class.values() if len(own) > 1]
    return singles, options


def _but_effort(pool: Pool) -> Policy:
    """Return how a pool was sampled, but for its reasoning effort."""
    return dataclasses.replace(pool.key[1], reasoning_effort=None)


def _across(options: Sequence[Option]) -> Option:
    """Return the tables by class whose choices are those of several efforts."""
    return Option(
        pools=tuple(pool for each in options for pool in each.pools),
        first=0,
        classes=options[0].classes,
        counts=tuple(count for each in options for count in each.counts),
        right=np.concatenate([each.right for each in options], axis=2),
        tokens=np.concatenate([each.tokens for each in options], axis=2),
    )


def _singles(
    pool: Pool, problems: Sequence[RecordedProblem], orders: Sequence[RandomOrders]
) -> list[Single]:
    fewest = min(each.n for each in orders)
    full_votes = [each.n for each in pool.policies if each.all_samples_end and each.n <= fewest]
    curves = [
        majority_curve(
            [s.answer for s in p.samples],
            [s.correct for s in p.samples],
            max(full_votes, default=0),
        )
        for p in problems
    ]
    mean_tokens = np.array([each.tokens.mean() for each in orders])
    singles = []
    for policy in pool.policies:
        stop = policy.stop
        if stop is None or policy.n > fewest:
            continue
        if policy.all_samples_end:
            right = np.array([curve[policy.n - 1] for curve in curves])
            singles.append(Single(policy, right, mean_tokens * policy.n))
        else:
            drawn = 1 if by_launch(stop) else stop.drawn_first or policy.n
            means = np.array([each.ended(policy.n, drawn, stop).mean(axis=1) for each in orders])
            singles.append(Single(policy, means[:, 0], means[:, 1]))
    return singles


def _options(
    pool: Pool,
    orders: Sequence[RandomOrders],
    groups: Sequence[str | None],
    *,
    several: bool,
) -> list[Option]:
    """Return the tables of a pool; those by class need few samples where efforts are `several`."""
    fewest = min(each.n for each in orders)
    if fewest < (FEWEST_OF_EFFORT if several else FEWEST_SAMPLES):
        return []
    firsts = [first for first in FIRST if 2 * first <= fewest and fewest >= FEWEST_SAMPLES]
    able = [tuple(first << t for t in range(MOST_DOUBLED + 1)) for first in firsts]
    sizes = Counter(group for group in groups if group is not None)
    classes = [c for c, n in sizes.most_common(MOST_CLASSES) if n >= FEWEST_OF_CLASS]
    if len(classes) > 1 or (classes and sizes[classes[0]] <= len(groups) - FEWEST_OF_CLASS):
        firsts.append(0)
        able.append(tuple(1 << times for times in range(fewest.bit_length())))
    if not firsts:
        return []
    able = [tuple(count for count in own if count <= fewest) for own in able]
    counts = sorted({count for own in able for count in own}, reverse=True)
    asked = np.array([[count in own for count in counts] for own in able]).reshape(len(able), -1)
    tried = [each.tables(firsts, counts, asked) for each in orders]
    options = []
    for place, (first, choices) in enumerate(zip(firsts, able, strict=True)):
        columns = [counts.index(count) for count in choices]
        ended = [each[place, columns] for each, _ in tried]  # of each problem [choices, 2, orders]
        if first:
            options.append(_by_agreement(pool, first, choices, ended, [a[place] for _, a in tried]))
        else:
            options.append(_by_class(pool, sorted(classes), choices, ended, groups))
    return options


def _by_agreement(
    pool: Pool, first: int, counts: tuple[int, ...], ended: Sequence[Floats], agree: Sequence[Ints]
) -> Option:
    shape = (len(ended), first + 1, len(counts))
    right, tokens = np.zeros(shape), np.zeros(shape)
    for place, (each, votes) in enumerate(zip(ended, agree, strict=True)):
        at_level = (votes[:, None] == np.arange(first + 1)) / len(votes)  # [orders, levels]
        right[place], tokens[place] = (each @ at_level).transpose(1, 2, 0)
    return Option((pool,) * len(counts), first, (), counts, right, tokens)


def _by_class(
    pool: Pool,
    classes: Sequence[str],
    counts: tuple[int, ...],
    ended: Sequence[Floats],
    groups: Sequence[str | None],
) -> Option:
    levels = [*classes, OTHERS]
    shape = (len(ended), len(levels), len(counts))
    right, tokens = np.zeros(shape), np.zeros(shape)
    for place, (each, group) in enumerate(zip(ended, groups, strict=True)):
        level = levels.index(group) if group is not None and group in classes else len(classes)
        right[place, level], tokens[place, level] = each.mean(axis=2).T
    return Option((pool,) * len(counts), 0, tuple(levels), counts, right, tokens)


def _prices(singles: Sequence[Single]) -> list[float]:
    """Return prices of a token, of the middle of the front, at which some policies are the best."""
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
    reference = singles[int(largest(alone.sum(axis=1)))]
    problems = len(fold)
    held_out, single = np.empty((2, problems)), np.array([reference.right, reference.tokens])
    overall = _best_option(options, sums, range(FOLDS))
    option = options[overall]
    tables, pools = [], []  # of each fold
    for f in range(FOLDS):
        inside = fold == f
        others = [g for g in range(FOLDS) if g != f]
        best = _best_option(options, sums, others)
        chosen = options[best].learn(sums[best][others].sum(axis=0))
        held_out[0, inside] = options[best].of(options[best].right[inside], chosen)
        held_out[1, inside] = options[best].of(options[best].tokens[inside], chosen)
        chosen = option.learn(sums[overall][others].sum(axis=0))
        tables.append(option.tables(chosen))
        pools.append(option.pools_by_class(chosen))
    difference = (held_out[0] - single[0]) - price * (held_out[1] - single[1])
    error = float(difference.std(ddof=1) / np.sqrt(problems))
    return Tried(
        price=price,
        option=option,
        chosen=option.learn(sums[overall].sum(axis=0)),
        against=reference.policy,
        tables=tuple(tables[f] for f in fold),
        pools=tuple(pools[f] for f in fold),
        held_out=held_out,
        single=single,
        sure=float(difference.mean() / error) if error > 0 else 0.0,
    )


def _best_option(options: Sequence[Option], sums: Sequence[Floats], folds: Sequence[int]) -> int:
    """Return the option whose tables gain most on folds that they were not learned from.

    `sums` have the gains of each option's folds [folds, levels, choices].
    """
    totals = []
    for option, by_fold in zip(options, sums, strict=True):
        gains = by_fold[list(folds)]
        chosen = option.learn(gains.sum(axis=0) - gains)
        totals.append(float(np.take_along_axis(gains, chosen[..., None], axis=-1).sum()))
    return int(largest(np.array(totals)))
