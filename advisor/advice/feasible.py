"""One budget, asked of candidates that were replayed: which meet it, which is best, what is near.

A candidate is feasible when the wanted share of the joint draws meets all limits at once, in the
half of the draws that chooses and again in the half that states. Values are those of the data
themselves (all problems once, no model error), which is what the mean of the draws tends to, so
that a looser budget never gives a worse objective.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from advisor.evidence.measured import RunsMade
from advisor.search.budget import Prices, goal_of, limits_of_budget
from advisor.search.metrics import Measures
from advisor.search.resampling import HIGH, LOW, Draws
from traces.schema.advice import Budget
from traces.schema.estimate import Estimate

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SAME = 0.01  # share by which FLOPs may differ and count as the same


class Question:
    """The limits of a budget on the candidates of `measures`, and how they rank.

    It is asked of the places `among` them, else of all: what was replayed for another budget must
    not change the answer to this one.

    Attributes
    ----------
    met: [candidates, draws] by the name of a limit, in LIMITS' order.
    chance: [candidates] of meeting all at once, 0 for candidates that are not asked about.
    fits: whether that is enough.
    sequence: [candidates], the order in which they were looked at, which decides between equals.
    order: the candidates from best to worst.

    """

    def __init__(
        self,
        measures: Measures,
        draws: Draws,
        budget: Budget,
        prices: Prices,
        made: RunsMade,
        among: Sequence[int] | None = None,
    ) -> None:
        self.measures, self.draws, self.budget, self.prices = measures, draws, budget, prices
        self.made = made
        engines = [outcome.candidate.engine for outcome in measures.outcomes]
        self.price = [prices.of(engine) for engine in engines]
        self.per_second = np.array([np.nan if p is None else p / 3600 for p in self.price])
        self.joules = np.array(
            [
                np.nan if watts is None else watts / devices
                for watts, devices in zip(measures.watts, measures.devices, strict=True)
            ]
        )
        known = {"prices": self.per_second, "joules": self.joules}
        self.limits = {each.name: each for each in limits_of_budget(budget, **known)}
        self.goal = goal_of(budget, **known)
        self.asked = np.array(
            [budget.max_gpus is not None or e.data_parallel_size == 1 for e in engines], dtype=bool
        )
        self.sequence = np.arange(len(engines))
        if among is not None:
            self.sequence = np.full(len(engines), len(engines))
            self.sequence[list(among)] = np.arange(len(among))
            self.asked &= self.sequence < len(engines)
        self.met = self._met()
        joint = np.ones((len(engines), draws.count), dtype=bool)
        for met in self.met.values():
            joint &= met
        self.chance = self.chances(joint) * self.asked
        self.fits = self.chance >= budget.confidence
        self.order = self._order()

    def _met(self) -> dict[str, Bools]:
        budget, measures = self.budget, self.measures
        met: dict[str, Bools] = {}
        if budget.max_gpus is not None:
            allowed = measures.devices <= budget.max_gpus
            met["max_gpus"] = np.repeat(allowed[:, None], self.draws.count, axis=1)
        if measures.rate_per_s is not None:
            met["rate"] = measures.keeps_up
        for name, limit in self.limits.items():
            drawn, bound = measures.draws(limit.metric), limit.bound[:, None]
            met[name] = drawn >= bound if limit.above else drawn <= bound
        return met

    def chances(self, met: Bools) -> Floats:
        """Return the share of draws that are met: the lower of the two halves."""
        choosing = self.draws.choosing
        halves = met[..., choosing].mean(axis=-1), met[..., ~choosing].mean(axis=-1)
        return np.asarray(np.minimum(*halves))

    def broken(self) -> list[str | None]:
        """Return the first limit that each candidate does not meet surely enough, or None.

        Candidates that meet each but not all at once have "".
        """
        found: list[str | None] = [None] * len(self.chance)
        left = np.ones(len(found), dtype=bool)
        for name, met in self.met.items():
            fails = left & (self.chances(met) < self.budget.confidence)
            for row in np.flatnonzero(fails):
                found[row] = name
            left &= ~fails
        for row in np.flatnonzero(left & (self.chance < self.budget.confidence)):
            found[row] = ""
        return found

    # -- ranking -------------------------------------------------------------------------------

    def cost(self) -> Floats:
        """Return what is optimised so that less is better, infinite where it is not known."""
        values = self.measures.values(self.goal.metric) * self.goal.scale
        return -values if self.goal.higher else np.asarray(values)

    def cost_draws(self) -> Floats:
        """Return [candidates, draws] of `cost`."""
        values = self.measures.draws(self.goal.metric) * self.goal.scale[:, None]
        return -values if self.goal.higher else np.asarray(values)

    def _order(self) -> npt.NDArray[np.int64]:
        """Return the candidates from best to worst; among equals, what was run, then its engine."""
        measures = self.measures
        picks = [outcome.candidate for outcome in measures.outcomes]
        ran = self.made.engines
        ranked = [
            self.cost(),
            -measures.values("accuracy"),
            measures.values("latency_s"),
            measures.values("device_s"),
        ]
        rounded = [np.array([float(f"{value:.9g}") for value in key]) for key in ranked]
        keys: list[Floats] = [
            self.sequence.astype(float),
            np.array([-(each.engine.max_num_batched_tokens or 0) for each in picks], dtype=float),
            np.array([each.engine.max_num_seqs or 0 for each in picks], dtype=float),
            np.array([2 - each.recorded - (each.engine in ran) for each in picks], dtype=float),
            np.array([each.engine.data_parallel_size for each in picks], dtype=float),
            *rounded[::-1],
        ]
        return np.asarray(np.lexsort(keys), dtype=np.int64)

    def best(self, allowed: Bools) -> int | None:
        """Return the best of some candidates."""
        cost = self.cost()
        for row in self.order:
            if allowed[row] and self.asked[row] and np.isfinite(cost[row]):
                return int(row)
        return None

    def within(self, *names: str) -> Bools:
        """Return whether candidates are asked about and meet the named limits surely enough."""
        allowed = self.asked.copy()
        for name in names:
            if name in self.met:
                allowed &= self.chances(self.met[name]) >= self.budget.confidence
        return allowed

    def compute_optimal(self, system: int | None, *, of: str = "flops") -> int | None:
        """Return the candidate of fewest FLOPs, or tokens, that is as accurate as is asked for.

        That is `min_accuracy` with the wanted probability, else the accuracy of the pick. Among
        engines with the same FLOPs (a rule's depend on who ends first) it is the best on the
        objective, so that regret is no artefact.
        """
        enough = self.within("max_gpus", "rate", "min_accuracy")
        if "min_accuracy" not in self.met:
            if system is None:
                return None
            values = self.measures.values("accuracy")
            enough &= values >= values[system] - 1e-12
        if not enough.any():
            return None
        least = self.measures.values(of)
        enough &= np.isfinite(least)
        if not enough.any():
            return None
        return self.best(enough & (least <= least[enough].min() * (1 + SAME)))

    def equals(self, system: int) -> list[int]:
        """Return other feasible candidates whose objective cannot be told from the pick's."""
        drawn = self.cost_draws()
        stating, known = ~self.draws.choosing, np.isfinite(self.cost())
        found = []
        for row in self.order:
            if row == system or not self.fits[row] or not known[row]:
                continue
            low, high = np.quantile((drawn[row] - drawn[system])[stating], (LOW, HIGH))
            if low <= 0 <= high:
                found.append(int(row))
        return found

    def front(self, metric: str | None = None) -> list[int]:
        """Return the Pareto front of accuracy against a metric, the objective's, best first."""
        measures = self.measures
        accuracy = measures.values("accuracy")
        on_accuracy = self.goal.metric == "accuracy"
        cost = measures.values("latency_s") if on_accuracy else self.cost()
        if metric is not None:
            cost = measures.values(metric)
        allowed = self.within("max_gpus", "rate")
        place = np.empty(len(cost), dtype=np.int64)
        place[self.order] = np.arange(len(cost))
        front, best = list[int](), -np.inf
        for row in np.lexsort((place, -accuracy, cost)):
            if allowed[row] and np.isfinite(cost[row]) and accuracy[row] > best + 1e-12:
                front.append(int(row))
                best = accuracy[row]
        return front

    # -- what a limit would have to be ---------------------------------------------------------

    def needed(self, name: str, row: int, *, alone: bool = True) -> float:
        """Return the limit that a candidate would meet with the wanted probability.

        `alone`: whatever the other limits are; else together with them, and infinite (-infinite for
        the accuracy) where these are not met surely enough themselves.
        """
        limit = self.limits[name]
        sign = -1.0 if limit.above else 1.0
        drawn = sign * self.measures.draws(limit.metric)[row] * self.unit(name, row)
        others = np.ones(self.draws.count, dtype=bool)
        for other, met in self.met.items():
            if other != name and not alone:
                others &= met[row]
        worst = -np.inf
        for half in (self.draws.choosing, ~self.draws.choosing):
            values = np.sort(np.where(others[half], drawn[half], np.inf))
            count = int(np.ceil(self.budget.confidence * len(values) - 1e-9))
            worst = max(worst, float(values[max(count, 1) - 1]))
        return sign * worst

    def unit(self, name: str, row: int) -> float:
        """Return what a limit's metric is multiplied by to be in the unit of the budget."""
        if name == "max_cost_usd":
            return float(self.per_second[row])
        if name == "max_energy_j":
            return float(self.joules[row])
        return 1.0

    def near_misses(self) -> list[tuple[str, int]]:
        """Return, for each limit, the candidate nearest to it, meeting the others if any does."""
        found = []
        for limit in self.met:
            others = np.ones_like(self.met[limit])
            for name, met in self.met.items():
                if name != limit:
                    others &= met
            allowed = self.asked & (self.chances(others) >= self.budget.confidence)
            alone = not allowed.any()
            row = self._nearest(limit, self.asked if alone else allowed, alone=alone)
            if row is not None:
                found.append((limit, row))
        return found

    def _nearest(self, limit: str, allowed: Bools, *, alone: bool) -> int | None:
        measures = self.measures
        rows = np.flatnonzero(allowed)
        rows = rows[np.argsort(self.sequence[rows])]
        if limit == "max_gpus":
            short = measures.devices[rows].astype(float)
        elif limit == "rate":
            short = -np.array([measures.outcomes[row].capacity_per_s for row in rows])
        else:
            short = np.array([self.needed(limit, row, alone=alone) for row in rows])
            short = -short if limit == "min_accuracy" else short
        if not len(rows) or not np.isfinite(short).any():
            return None
        finite = short[np.isfinite(short)]
        nearest = rows[short <= finite.min() + 1e-12 * abs(finite.min())]
        return next(int(row) for row in self.order if row in nearest)

    # -- estimates -----------------------------------------------------------------------------

    def estimate(self, name: str, row: int) -> Estimate | None:
        """Return a candidate's metric with its interval, None where it is not known."""
        return self.measures.estimate(name, row, price=self.price[row])

    def differences(
        self, names: Sequence[str], first: int, second: int
    ) -> dict[str, Estimate | None]:
        """Return by name what the first candidate has more than the second, drawn together."""
        return {
            name: self.measures.difference(name, first, second, prices=self.price) for name in names
        }
