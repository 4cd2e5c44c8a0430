"""A budget read against the metrics of candidates: which meet it, which is best, what is near.

A candidate is feasible when the wanted share of the joint draws meets all limits at once. Values
are those of the data themselves, to which the mean of the draws tends, so that a looser budget
never gives a worse objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final, Generic, TypeVar

import numpy as np

from advisor.search.budget import MetricBound, Prices, goal_of, limits_of_budget
from advisor.search.closed_form import ClosedForm
from advisor.search.metrics import CandidateMetrics, Metrics
from traces.schema.advice import Budget
from traces.schema.estimate import Estimate, Of
from traces.statistics import ENDS, ROUNDING, Bools, Floats, Ints, tied

M = TypeVar("M", bound=Metrics)

LUCK = 0.02  # of a chance, by which draws alone differ
LIMITED: Final[Of] = "others"  # whose run meets the limits: one more, of as many other problems
TOLD = 0.005  # share below which two times are one number in three digits
SAME = 0.01  # share by which FLOPs may differ and count as the same
ORDER = 0.05  # the same of engines that run one policy: its samples end in another order
SLACK = 0.1  # of probability that the few draws of the closed form may be short of
FAR = 2.0  # times the spread of the closed form that a candidate may turn out better
FRONT = 12  # candidates of the front that are replayed
NEAR = 3  # candidates nearest to a limit that are replayed
FASTEST = 12  # candidates that may serve most, replayed where a rate is missed
TWIN = 0.05  # of the closed form's logarithm; the replay tells whether a limit was reached
CHEAP = 16  # policies of fewest FLOPs, each replayed on its fastest engine
ENGINES = 8  # that may run the policy of fewest FLOPs, and are replayed


class BudgetCheck(Generic[M]):
    """A budget read against `metrics`: its limits, its goal, and what meets them.

    With `looked_at`, places of candidates, only these are asked about: what was replayed for
    another budget must not change the answer to this one. Arrays are [candidates].

    Attributes
    ----------
    asked: whether a candidate is asked about; several replicas only with `--gpus`.
    allowed: whether it also takes no more devices than `--gpus`.
    limits: by the budget's field, in the order in which they are counted.
    price: USD per device-hour, NaN where not known.
    sequence: the order in which candidates were looked at, which decides between equals.
    cost: what is optimised, less being better.
    chance: of meeting all limits at once, 0 for candidates that are not asked about.
    broken: place in `limits` of the first that is not met surely enough, -1 where all are; their
        number where each is, but not all at once.
    fits: whether a candidate meets all limits surely enough.

    """

    def __init__(
        self, metrics: M, budget: Budget, prices: Prices, looked_at: Sequence[int] | None = None
    ) -> None:
        budget = budget.settled(judged=metrics.space.judged)
        self.metrics, self.budget, self.prices = metrics, budget, prices
        by_kind = [prices.of(kind.engine) for kind in metrics.space.kinds]
        self.price: Floats = np.array(by_kind, dtype=float)[metrics.kind]
        self.per_second, powered = self.price / 3600, metrics.powered
        capacity = None if metrics.rate_per_s is None else metrics.capacity_per_s
        self.limits = limits_of_budget(
            budget, prices=self.per_second, powered=powered, capacity_per_s=capacity
        )
        self.goal = goal_of(budget, prices=self.per_second, powered=powered)
        count = len(self.price)
        self.asked: Bools = np.ones(count, dtype=bool)
        if budget.max_gpus is None:
            self.asked = metrics.space.alone[metrics.rows]
        self.sequence = np.arange(count)
        if looked_at is not None:
            self.sequence = np.full(count, count)
            self.sequence[list(looked_at)] = np.arange(len(looked_at))
            self.asked = self.asked & (self.sequence < count)
        self.allowed = self.asked
        if budget.max_gpus is not None:
            self.allowed = self.asked & (metrics.devices <= budget.max_gpus)
        self.cost = self._cost(0.0)
        self.chance, self.broken = self._judge(0.0)
        self.fits: Bools = self.allowed & (self.chance >= budget.confidence)

    def _cost(self, far: float) -> Floats:
        """Return what is optimised so that less is better, lowered by `far` spreads."""
        values = self.metrics.values(self.goal.metric) * self.goal.scale
        cost = -values if self.goal.higher else values
        if far == 0:
            return np.asarray(cost)
        lower = np.exp(-far * self.metrics.spread(self.goal.metric))
        return np.asarray(cost / lower if self.goal.higher else cost * lower)

    def cost_draws(self) -> Floats:
        """Return [candidates, draws] of `cost`.

        The tail that is assumed of a percentile has no mean, so that what lies beyond the upper end
        of its interval counts as that end.
        """
        values = self.metrics.draws(self.goal.metric) * self.goal.scale[:, None]
        if self.goal.metric.startswith("latency_p"):
            ends = np.quantile(values, ENDS[1], axis=1, keepdims=True, method="higher")
            values = np.minimum(values, ends)
        return -values if self.goal.higher else np.asarray(values)

    # -- limits --------------------------------------------------------------------------------

    def _judge(self, far: float) -> tuple[Floats, Ints]:
        """Return `chance` and `broken` where limits are eased by `far` spreads."""
        count, wanted = len(self.price), self.budget.confidence
        broken = np.full(count, -1, dtype=np.int64)
        broken[self.asked & ~self.allowed] = 0  # of limits, the first
        chance = self.allowed.astype(float)
        rows = np.flatnonzero(self.allowed)
        joint: Bools | None = None
        for place, (field, limit) in enumerate(self.limits.items()):
            if field == "max_gpus":
                continue
            never, always = self._certain(limit, rows, far)
            fails = rows[never]
            chance[fails] = 0.0
            kept = ~never
            rows = rows[kept]
            joint = None if joint is None else joint[kept]
            unsure = np.flatnonzero(~always[kept])
            if len(unsure):
                met = self._met(limit, rows[unsure], far)
                if joint is None:
                    joint = np.ones((len(rows), met.shape[1]), dtype=bool)
                joint[unsure] &= met
                fails = np.concatenate([fails, rows[unsure[self.metrics.chance(met) < wanted]]])
            broken[fails[broken[fails] < 0]] = place
        if joint is not None:
            chance[rows] = self.metrics.chance(joint)
            broken[rows[(chance[rows] < wanted) & (broken[rows] < 0)]] = len(self.limits)
        return chance, broken

    def _bound(self, limit: MetricBound, rows: Ints, far: float) -> Floats:
        bound = limit.bound[rows]
        # What lies on it meets it, by whichever order of sums.
        slack = np.where(np.isfinite(bound), ROUNDING * np.abs(bound), 0.0)
        bound = bound - slack if limit.above else bound + slack
        if limit.above or far == 0:
            return np.asarray(bound)
        return np.asarray(bound * np.exp(far * self.metrics.spread(limit.metric)[rows]))

    def _certain(self, limit: MetricBound, rows: Ints, far: float) -> tuple[Bools, Bools]:
        """Return which candidates meet a limit in no draw, and which in all."""
        low, high = self.metrics.extremes(limit.metric, rows, LIMITED)
        bound = self._bound(limit, rows, far)
        if limit.above:
            return high < bound, low >= bound
        return low > bound, high <= bound

    def _met(self, limit: MetricBound, rows: Ints, far: float = 0.0, *, of: Of = LIMITED) -> Bools:
        draws = self.metrics.draws(limit.metric, rows, of=of)
        bound = self._bound(limit, rows, far)[:, None]
        return np.asarray(draws >= bound if limit.above else draws <= bound)

    @cached_property
    def met(self) -> Mapping[str, Bools]:
        """Whether each limit is met: [candidates, draws] by the budget's field."""
        return self._each_met(LIMITED)

    @cached_property
    def met_by_all(self) -> Mapping[str, Bools]:
        """The same of the mean over all problems like these, in which no run has its luck."""
        return self._each_met("all")

    def _each_met(self, of: Of) -> Mapping[str, Bools]:
        rows = np.arange(len(self.price))
        return {field: self._met(limit, rows, of=of) for field, limit in self.limits.items()}

    def within(self, *fields: str) -> Bools:
        """Return whether candidates are asked about and meet limits surely enough, if given."""
        within = self.asked.copy()
        for field in fields:
            if field in self.limits:
                within &= self.metrics.chance(self.met[field]) >= self.budget.confidence
        return within

    # -- order ---------------------------------------------------------------------------------

    @cached_property
    def order(self) -> Ints:
        """Candidates, the best first. Of equal cost the surest of the limits comes first."""
        keys = [tied(self.cost), *self._surest(), self.sequence.astype(float)]
        return np.asarray(np.lexsort(keys[::-1]), dtype=np.int64)

    def _surest(self) -> list[Floats]:
        """Return what decides between equals [candidates], less being better.

        First is the chance to meet all limits, to a percent. Of accuracy and latency what is not
        limited goes first, or else accuracy.
        """
        latency, accuracy, *others = self.metrics.ties()
        alone = "min_accuracy" in self.limits and "max_latency_s" not in self.limits
        first = [latency, accuracy] if alone else [accuracy, latency]
        return [-np.round(self.chance, 2), *first, *others]

    def best(self, allowed: Bools | None = None) -> int | None:
        wanted = (self.fits if allowed is None else allowed & self.asked) & np.isfinite(self.cost)
        rows = self.order[wanted[self.order]]
        return self._as_usual(int(rows[0]), wanted) if len(rows) else None

    def _as_usual(self, row: int, wanted: Bools) -> int:
        """Return the row of an offered engine nearest to vLLM's own limits that does as well.

        As well is a cost that is the same in three digits, and about the same chance.
        """
        space, rows = self.metrics.space, np.arange(len(self.metrics.space))[self.metrics.rows]
        least, space_row = self.cost[row], rows[row]
        if space.kinds[space.kind[space_row]].prior is None:
            return row
        alike = wanted & (self.cost <= least + TOLD * abs(least))
        alike &= self.chance >= self.chance[row] - LUCK
        for values in (space.kind, space.replicas):
            alike &= values[rows] == values[space_row]
        far = np.where(alike, space.unusual[rows], np.inf)
        return row if far[row] <= far.min() else int(far.argmin())

    def front(self, metric: str | None = None) -> list[int]:
        """Return the Pareto front of accuracy against a metric, the objective's, best first."""
        return self._front(metric, self.within("max_gpus", "rate"))

    def _front(self, metric: str | None, allowed: Bools) -> list[int]:
        accuracy = self.metrics.values("accuracy")
        if metric is None and self.goal.metric == "accuracy":
            metric = "latency_s"
        cost = self.cost if metric is None else self.metrics.values(metric)
        allowed = allowed & np.isfinite(cost)
        usual = allowed if metric is None else self._fastest(allowed)
        rows = self.order[usual[self.order]]
        rows = rows[np.lexsort((tied(-accuracy[rows]), tied(cost[rows])))]
        reached = np.maximum.accumulate(np.concatenate([[-np.inf], accuracy[rows]]))[:-1]
        front = [int(row) for row in rows[accuracy[rows] > reached + ROUNDING]]
        if metric is None:
            return [self._as_usual(row, allowed) for row in front]
        chosen: list[int] = []
        for row in front:
            more = allowed & (accuracy > (accuracy[chosen[-1]] if chosen else -np.inf) + ROUNDING)
            if more[row]:
                best_row = self.best(more & self._as_few(row, cost))
                chosen.append(row if best_row is None else best_row)
        return chosen

    def _as_few(self, row: int, least: Floats) -> Bools:
        """Whether candidates run a row's policy with its model, on as few FLOPs (or tokens).

        A rule's savings differ with the engine's limits, by less than `ORDER` for no good reason.
        """
        return np.asarray(self._of_policy(row) & (least <= least[row] * (1 + ORDER)))

    def _of_policy(self, row: int) -> Bools:
        policies = self.metrics.space.policies[self.metrics.kind]
        return np.asarray(policies == policies[row])

    def _fastest(self, allowed: Bools) -> Bools:
        """Whether candidates are the allowed one of their kind with the lowest mean latency.

        A kind's FLOPs are those of it, whatever is optimised or limited: a rule that stops early
        draws fewer samples under limits that let few run at once, which nobody would serve with.
        """
        rows = np.flatnonzero(allowed)
        keys = [self.metrics.kind, *self.metrics.ties(), self.sequence]
        rows = rows[np.lexsort([key[rows] for key in keys][::-1])]
        fastest = np.zeros(len(allowed), dtype=bool)
        fastest[rows[np.unique(self.metrics.kind[rows], return_index=True)[1]]] = True
        return fastest

    def compute_optimal(self, system: int | None, *, of: str = "flops") -> int | None:
        """Return the candidate of fewest FLOPs, or tokens, that is as accurate as is asked for.

        That is `min_accuracy` with the wanted probability, else the accuracy of the pick. Of
        policies with as few it is the fastest (`_fastest`). Of the policy's engines with as few
        (`_as_few`) it is the best on the objective, so that regret is no artefact.
        """
        enough = self.within("max_gpus", "rate", "min_accuracy")
        if "min_accuracy" not in self.limits:
            if system is None:
                return None
            accuracy = self.metrics.values("accuracy")
            enough &= accuracy >= accuracy[system] - ROUNDING
        least = self.metrics.values(of)
        enough &= np.isfinite(least)
        rows = np.flatnonzero(self._fastest(enough))
        if not len(rows):
            return None
        rows = rows[least[rows] <= least[rows].min() * (1 + SAME)]
        first = np.lexsort([key[rows] for key in [*self.metrics.ties(), self.sequence]][::-1])[0]
        return self.best(enough & self._as_few(int(rows[first]), least))

    def equals(self, system: int) -> list[int]:
        """Return other feasible candidates whose objective cannot be told from the pick's."""
        draws, stating = self.cost_draws(), ~self.metrics.choosing
        equals = []
        for row in self.order[(self.fits & np.isfinite(self.cost))[self.order]]:
            if row != system:
                with np.errstate(invalid="ignore"):  # of two that are infinite
                    difference = np.nan_to_num(draws[row] - draws[system], nan=0.0)
                low, high = np.quantile(difference[stating], ENDS)
                equals += [int(row)] if low <= 0 <= high else []
        return equals

    # -- what a limit would have to be ---------------------------------------------------------

    def needed(self, field: str, row: int, *, alone: bool = True) -> float:
        """Return the limit that a candidate would meet with the wanted probability.

        `alone`: whatever the other limits are; else together with them, and infinite (-infinite for
        the accuracy) where these are not met surely enough themselves.
        """
        limit = self.limits[field]
        sign = -1.0 if limit.above else 1.0
        draws = sign * self.metrics.draws(limit.metric, of=LIMITED)[row]
        if field == "max_cost_usd":
            draws = draws * self.per_second[row]
        draws = np.where(np.isnan(draws), np.inf, draws)  # of no known price: no limit is met
        if not alone:
            others = [met[row] for other, met in self.met.items() if other != field]
            draws = np.where(np.all(others, axis=0), draws, np.inf) if others else draws
        worst = -np.inf
        for half in (self.metrics.choosing, ~self.metrics.choosing):
            values = np.sort(draws[half])
            count = int(np.ceil(self.budget.confidence * len(values) - 1e-9))
            worst = max(worst, float(values[max(count, 1) - 1]))
        return sign * worst

    def near_misses(self) -> list[tuple[str, int]]:
        """Return, for each limit, the candidate nearest to it, meeting the others if any does."""
        misses = []
        for field in self.limits:
            others = [met for other, met in self.met.items() if other != field]
            allowed = self.asked
            if others:
                chance = self.metrics.chance(np.all(others, axis=0))
                allowed = self.asked & (chance >= self.budget.confidence)
            alone = not allowed.any()
            row = self._nearest(field, self.asked if alone else allowed, alone=alone)
            if row is not None:
                misses.append((field, row))
        return misses

    def _nearest(self, field: str, allowed: Bools, *, alone: bool) -> int | None:
        rows = self.order[allowed[self.order]]
        if field == "max_gpus":
            short = self.metrics.devices[rows].astype(float)
        elif field == "rate":
            short = -self.metrics.capacity_per_s[rows]
        else:
            short = np.array([self.needed(field, row, alone=alone) for row in rows])
            short = -short if self.limits[field].above else short
            has_value = np.isfinite(self.metrics.values(self.limits[field].metric)[rows])
            short = np.where(has_value, short, np.inf)
        finite = short[np.isfinite(short)]
        if not len(finite):
            return None
        return int(rows[short <= finite.min() + ROUNDING * abs(finite.min())][0])

    # -- estimates of what was replayed --------------------------------------------------------

    def estimate(self: ReplayedCheck, name: str, row: int) -> Estimate | None:
        """Return a candidate's metric with its interval, None where it is not known."""
        return self.metrics.estimate(name, row, price=self.price_of(row))

    def difference(self: ReplayedCheck, name: str, first: int, second: int) -> Estimate | None:
        """Return what the first candidate has more than the second, drawn together."""
        prices = self.price_of(first), self.price_of(second)
        return self.metrics.difference(name, first, second, prices=prices)

    def price_of(self, row: int) -> float | None:
        """Return USD per device-hour of a candidate, None where it is not known."""
        return None if np.isnan(self.price[row]) else float(self.price[row])


ReplayedCheck = BudgetCheck[CandidateMetrics]


class Shortlist(BudgetCheck[ClosedForm]):
    """A budget read against the closed form of all candidates: which of them to replay.

    One may meet a limit that it would meet with its metric `FAR` spreads lower.
    """

    @cached_property
    def least(self) -> Floats:
        """What `cost` may turn out to be."""
        return self._cost(FAR)

    @cached_property
    def possible(self) -> Bools:
        """Whether a candidate may fit."""
        chance, _ = self._judge(FAR)
        return self.allowed & (chance >= self.budget.confidence - SLACK)

    @cached_property
    def order(self) -> Ints:
        keys = [tied(self.cost), *self._surest()]
        return np.asarray(np.lexsort(keys[::-1]), dtype=np.int64)

    def _distinct(self, rows: Ints, key: Floats) -> Ints:
        """Return rows in the order of `key` [candidates], one for each that differ in closed form.

        Of equal keys the one that would be the pick comes first. It was run, if any was.
        """
        space, metrics = self.metrics.space, self.metrics
        order = self._sorted(rows[np.isfinite(key[rows])], key)
        names = np.column_stack(
            [
                space.kind[order],
                space.replicas[order],
                np.round(np.log(np.maximum(metrics.latency_s[order], 1e-12)) * 1e4),
                np.round(np.log(np.maximum(metrics.device_s[order], 1e-12)) * 1e4),
            ]
        ).astype(np.int64)
        _, first = np.unique(names, axis=0, return_index=True)
        return np.asarray(order[np.sort(first)])

    def _sorted(self, rows: Ints, key: Floats) -> Ints:
        """Return rows in the order of `key` [candidates], and equals as picks are chosen."""
        keys = [tied(key[rows]), *(each[rows] for each in self._surest())]
        return np.asarray(rows[np.lexsort(keys[::-1])])

    def _cheapest(self, rows: Ints, key: Floats, count: int) -> list[int]:
        """Return rows of the least keys that differ from one another, at most `count`."""
        if len(rows) > 40 * count:
            last = np.partition(key[rows], 40 * count)[40 * count]
            rows = rows[key[rows] <= last + ROUNDING * abs(last)]
            rows = self._sorted(rows, key)[: 40 * count]
        return [int(row) for row in self._distinct(rows, key)[:count]]

    def leaders(self, most: int) -> list[int]:
        """Return the candidates that may be best, at most so many, the most promising first."""
        return self._cheapest(np.flatnonzero(self.possible), self.least, most)

    def fewest(self, of: str, accuracy: float | None) -> list[int]:
        """Return one candidate of each policy of fewest FLOPs or tokens that is accurate enough.

        That is the budget's accuracy, or else at least `accuracy`.
        """
        metrics, space = self.metrics, self.metrics.space
        enough = self._keeping_up()
        if "min_accuracy" in self.limits:
            rows = np.flatnonzero(enough)
            chance = metrics.chance(self._met(self.limits["min_accuracy"], rows))
            enough[rows[chance < self.budget.confidence - SLACK / 2]] = False
        elif accuracy is not None:
            enough &= metrics.values("accuracy") >= accuracy - 0.02
        rows = np.flatnonzero(self._fastest(enough))
        rows = rows[np.argsort(tied(metrics.values(of)[rows]), kind="stable")]
        _, first = np.unique(space.policies[space.kind[rows]], return_index=True)
        return [int(row) for row in rows[np.sort(first)[:CHEAP]]]

    def surest(self, above: int = 0) -> list[int]:
        """Return the candidates of more than `above` devices that most surely meet all limits."""
        rows = np.flatnonzero(self.possible & (self.metrics.devices > above))
        return self._cheapest(rows, -self.chance, ENGINES)

    def engines_of(self, row: int) -> list[int]:
        """Return candidates with a row's policy and model, on the best and the fastest engines."""
        rows = np.flatnonzero(self.allowed & self._of_policy(row))
        keys = (self.cost, self.metrics.values("latency_s"))
        return [each for key in keys for each in self._cheapest(rows, key, ENGINES)]

    def _keeping_up(self) -> Bools:
        """Return which allowed candidates serve as many problems as arrive."""
        metrics = self.metrics
        if metrics.rate_per_s is None:
            return self.allowed.copy()
        return np.asarray(self.allowed & (metrics.rate_per_s < metrics.capacity_per_s))

    def front(self, metric: str | None = None) -> list[int]:
        """Return candidates all along the front, the most accurate first."""
        front = self._front(metric, self._keeping_up())[::-1]
        if len(front) > FRONT:
            places = np.unique(np.linspace(0, len(front) - 1, FRONT).round().astype(int))
            front = [front[place] for place in places]
        return front

    def nearest(self) -> list[int]:
        """Return the candidates nearest to each limit, where the others are met if they can be."""
        shortfalls = {}
        for field, limit in self.limits.items():
            values = self.metrics.values(limit.metric)
            with np.errstate(divide="ignore"):  # no accuracy at all is infinitely short of it
                ratio = limit.bound / values if limit.above else values / limit.bound
            shortfalls[field] = np.where(ratio > 0, ratio, np.inf)
        nearest: list[int] = []
        rows = np.flatnonzero(self.asked)
        met = {field: self._met(limit, rows) for field, limit in self.limits.items()}
        for field, short in shortfalls.items():
            others = [each for other, each in met.items() if other != field]
            enough = self.budget.confidence - SLACK  # of the others at once, as in `near_misses`
            meets = rows
            if others:
                meets = rows[self.metrics.chance(np.all(others, axis=0)) >= enough]
            meets, count = meets if len(meets) else rows, NEAR
            if field == "rate":  # nothing else looks for what serves most
                far = np.exp(FAR * self.metrics.spread("device_s")[meets])
                meets, count = meets[short[meets] <= short[meets].min() * far], FASTEST
            nearest += self._cheapest(meets, short, count)
        return nearest

    def twins(self, row: int) -> list[int]:
        """Return the candidates that differ from one in limits that hardly bind, if at all."""
        space, metrics = self.metrics.space, self.metrics
        same = (space.kind == space.kind[row]) & (space.replicas == space.replicas[row])
        for values in (metrics.latency_s, metrics.device_s):
            same &= np.abs(np.log(values / values[row])) < TWIN
        rows = np.flatnonzero(same)
        return [int(each) for each in rows[np.argsort(space.preferred[rows], kind="stable")]]
