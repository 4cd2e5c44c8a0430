"""Which candidates to replay for a budget, by the closed form: those that may be the answer.

A candidate may meet a limit when it would with its metric lowered by how far the closed form lies
from the replay (twice the distance that nine tenths keep within). Candidates whose limits never
bind are one and the same; one of them stands for all.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from advisor.evidence.gather import Evidence
from advisor.search.budget import Goal, Limit, Prices, goal_of, limits_of_budget
from advisor.search.closed_form import Screen
from advisor.search.space import Space
from traces.schema.advice import Budget

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SLACK = 0.1  # of probability that the few draws of the closed form may be short of
FAR = 2.0  # times the spread of the closed form that a candidate may turn out better
FRONT = 12  # candidates of the front that are replayed
NEAR = 3  # candidates nearest to a limit that are replayed
TWIN = 0.05  # of the closed form's logarithm; the replay tells whether a limit was reached
ALIKE = 0.1  # share by which FLOPs may differ and either may turn out the fewer
CHEAP = 12  # kinds of fewest FLOPs of which two candidates are replayed


class Costs:
    """What a space's engines cost per device-second, kept from budget to budget."""

    def __init__(self, evidence: Evidence, space: Space, watts: Mapping[int, float]) -> None:
        self._space = space
        self._engines = [kind.engine for kind in space.kinds]
        each = [
            watts[i] / kind.engine.num_devices if i in watts else np.nan
            for i, kind in enumerate(space.kinds)
        ]
        self.joules: Floats = np.array(each)[space.kind]

    def prices(self, prices: Prices) -> Floats:
        """Return USD per device-second of every candidate, NaN where not known."""
        each = [prices.of(engine) for engine in self._engines]
        known = np.array([np.nan if price is None else price / 3600 for price in each])
        return np.asarray(known[self._space.kind])


class Ranking:
    """A budget, asked of all candidates in closed form: what may fit, and what to replay.

    Attributes
    ----------
    asked: whether a candidate is asked about; several replicas only with `--gpus`.
    cost: what is optimised, less being better; `least` what it may turn out to be.
    fits, possible: whether a candidate meets the limits, and whether it may.
    broken: the place in `names` of the first limit that it does not meet, -1 where it fits.

    """

    def __init__(
        self, screen: Screen, costs: Costs, budget: Budget, prices: Prices, preferred: Ints
    ) -> None:
        self.screen, self.space, self.budget = screen, screen.space, budget
        self.preferred = preferred
        known = {"prices": costs.prices(prices), "joules": costs.joules}
        self.limits = limits_of_budget(budget, **known)
        if screen.rate_per_s is not None:
            load = Limit(name="rate", metric="load_per_s", bound=screen.capacity_per_s)
            self.limits.insert(0, load)
        self.goal = goal_of(budget, **known)
        devices, most = self.space.devices, budget.max_gpus
        self.asked: Bools = self.space.replicas == 1 if most is None else devices > 0
        self.allowed = self.asked if most is None else self.asked & (devices <= most)
        self.names = ["max_gpus", *(limit.name for limit in self.limits), ""]
        self.cost, self.least = self._cost(0.0), self._cost(FAR)
        self.chance, self.broken = self._judge(0.0)
        self.fits = self.allowed & (self.broken < 0)
        chance, _ = self._judge(FAR)
        self.possible = self.allowed & (chance >= budget.confidence - SLACK)

    def _cost(self, far: float) -> Floats:
        goal: Goal = self.goal
        values = self.screen.values(goal.metric) * goal.scale
        found = -values if goal.higher else values
        if goal.metric in ("accuracy", "tokens", "flops"):
            return np.asarray(found)
        lower = np.exp(-far * self._spread(goal.metric))
        return np.asarray(found / lower if goal.higher else found * lower)

    def _spread(self, metric: str) -> Floats:
        """Return the distance to the replay that nine tenths keep within, for each candidate."""
        name = "latency_s" if metric.startswith("latency") else "device_s"
        spread = self.screen.spread[name]
        grows = self.screen.slowing if name == "latency_s" else np.ones(len(self.space))
        return np.minimum(spread * grows, 2.0)

    def _judge(self, far: float) -> tuple[Floats, Ints]:
        """Return the probability of meeting all limits, and the first that fails."""
        count, wanted = len(self.space), self.budget.confidence
        broken = np.full(count, -1, dtype=np.int64)
        broken[~self.allowed & self.asked] = 0
        chance = self.allowed.astype(float)
        rows = np.flatnonzero(self.allowed)
        joint: Bools | None = None
        for place, limit in enumerate(self.limits, 1):
            never, always = self._certain(limit, rows, far)
            broken[rows[never]], chance[rows[never]] = place, 0.0
            kept = ~never
            rows = rows[kept]
            joint = None if joint is None else joint[kept]
            open_ = np.flatnonzero(~always[kept])
            if not len(open_):
                continue
            met = self._met(limit, rows[open_], far)
            if joint is None:
                joint = np.ones((len(rows), met.shape[1]), dtype=bool)
            joint[open_] &= met
            alone = met.mean(axis=1)
            fails = open_[alone < wanted]
            broken[rows[fails]] = place
        if joint is not None:
            chance[rows] = joint.mean(axis=1)
            unsure = rows[(chance[rows] < wanted) & (broken[rows] < 0)]
            broken[unsure] = len(self.names) - 1
        return chance, broken

    def _certain(self, limit: Limit, rows: Ints, far: float) -> tuple[Bools, Bools]:
        """Return which candidates meet a limit in no draw, and which in all."""
        low, high = self.screen.extremes(limit.metric, rows)
        bound = limit.bound[rows] * self._eased(limit, rows, far)
        if limit.above:
            return high < bound, low >= bound
        return low > bound, high <= bound

    def _eased(self, limit: Limit, rows: Ints, far: float) -> Floats:
        if limit.above or far == 0:
            return np.ones(len(rows))
        return np.asarray(np.exp(far * self._spread(limit.metric)[rows]))

    def _met(self, limit: Limit, rows: Ints, far: float) -> Bools:
        drawn = self.screen.draws(limit.metric, rows)
        bound = (limit.bound[rows] * self._eased(limit, rows, far))[:, None]
        return np.asarray(drawn >= bound if limit.above else drawn <= bound)

    # -- what to replay ------------------------------------------------------------------------

    def distinct(self, rows: Ints, key: Floats) -> Ints:
        """Return rows in the order of `key` [candidates], one for each that differ in closed form.

        It is the one that was run, if any was.
        """
        rows = rows[np.isfinite(key[rows])]
        order = rows[np.lexsort((self.preferred[rows], key[rows]))]
        space = self.space
        names = np.column_stack(
            [
                space.kind[order],
                space.replicas[order],
                np.round(np.log(np.maximum(self.screen.latency_s[order], 1e-12)) * 1e4),
                np.round(np.log(np.maximum(self.screen.device_s[order], 1e-12)) * 1e4),
            ]
        ).astype(np.int64)
        _, first = np.unique(names, axis=0, return_index=True)
        return np.asarray(order[np.sort(first)])

    def best(self) -> int | None:
        """Return what the closed form alone would pick."""
        rows = np.flatnonzero(self.fits & np.isfinite(self.cost))
        if not len(rows):
            return None
        return int(rows[np.lexsort((self.preferred[rows], self.cost[rows]))[0]])

    def leaders(self, most: int) -> list[int]:
        """Return the candidates that may be best, at most so many, the most promising first."""
        rows = np.flatnonzero(self.possible)
        cut = self._cheapest(rows, self.least, 40 * most)
        return [int(row) for row in self.distinct(cut, self.least)[:most]]

    def _cheapest(self, rows: Ints, key: Floats, count: int) -> Ints:
        """Return the rows of the least keys, before they are compared with one another."""
        if len(rows) <= count:
            return rows
        return np.asarray(rows[np.argpartition(key[rows], count)[:count]])

    def fewest(self, of: str, accuracy: float | None) -> list[int]:
        """Return the candidates of fewest FLOPs or tokens that are accurate enough.

        That is the budget's accuracy, or else at least `accuracy`.
        """
        enough = self.allowed.copy()
        if self.screen.rate_per_s is not None:
            enough &= self.screen.rate_per_s < self.screen.capacity_per_s
        for limit in self.limits:
            if limit.name == "min_accuracy":
                rows = np.flatnonzero(enough)
                chance = self._met(limit, rows, 0.0).mean(axis=1)
                enough[rows[chance < self.budget.confidence - SLACK / 2]] = False
        if self.budget.min_accuracy is None and accuracy is not None:
            enough &= self.screen.values("accuracy") >= accuracy - 0.02
        least = self.screen.values(of)
        rows = np.flatnonzero(enough)
        # Of each kind the row of fewest, and the best of those that may be as few.
        order = rows[np.lexsort((self.preferred[rows], least[rows]))]
        kinds, first = np.unique(self.space.kind[order], return_index=True)
        found: list[int] = []
        for place in np.argsort(first, kind="stable")[:CHEAP]:
            mine = order[self.space.kind[order] == kinds[place]]
            alike = mine[least[mine] <= (1 + ALIKE) * least[mine[0]]]
            found += [int(mine[0]), *(int(row) for row in self.distinct(alike, self.cost)[:1])]
        return found

    def front(self, metric: str | None = None) -> list[int]:
        """Return candidates on the front of accuracy against a metric: what is optimised."""
        on_accuracy = self.goal.metric == "accuracy"
        cost = self.screen.values("latency_s") if on_accuracy else self.cost
        if metric is not None:
            cost = self.screen.values(metric)
        rows = np.flatnonzero(self.allowed & np.isfinite(cost))
        accuracy = self.screen.values("accuracy")
        # For each accuracy only its cheapest candidate can be on the front.
        order = rows[
            np.lexsort((self.preferred[rows], self.cost[rows], cost[rows], -accuracy[rows]))
        ]
        _, first = np.unique(-accuracy[order], return_index=True)
        found, best = list[int](), np.inf
        for row in order[first]:
            if cost[row] < best:
                found.append(int(row))
                best = cost[row]
        if len(found) > FRONT:
            places = np.unique(np.linspace(0, len(found) - 1, FRONT).round().astype(int))
            found = [found[place] for place in places]
        return found

    def nearest(self) -> list[int]:
        """Return the candidates nearest to each limit, where the others are met if they can be."""
        found: list[int] = []
        rows = np.flatnonzero(self.asked)
        shortfalls: dict[str, Floats] = {}
        for limit in self.limits:
            values = self.screen.values(limit.metric)
            ratio = limit.bound / values if limit.above else values / limit.bound
            shortfalls[limit.name] = np.where(ratio > 0, ratio, np.inf)
        if self.budget.max_gpus is not None:
            shortfalls["max_gpus"] = self.space.devices / self.budget.max_gpus
        for name, short in shortfalls.items():
            others = np.ones(len(self.space), dtype=bool)
            for other, ratio in shortfalls.items():
                if other != name:
                    others &= ratio <= 1.0
            allowed = rows[others[rows]] if others[rows].any() else rows
            near = self.distinct(self._cheapest(allowed, short, 40 * NEAR), short)
            found += [int(row) for row in near[:NEAR]]
        return found

    def twins(self, row: int) -> list[int]:
        """Return the candidates that differ from one in limits that hardly bind, if at all."""
        space, screen = self.space, self.screen
        same = (space.kind == space.kind[row]) & (space.replicas == space.replicas[row])
        for values in (screen.latency_s, screen.device_s):
            same &= np.abs(np.log(values / values[row])) < TWIN
        rows = np.flatnonzero(same)
        return [int(each) for each in rows[np.argsort(self.preferred[rows], kind="stable")]]
