"""A budget -> what to run: the system-optimal and the compute-optimal configuration.

The system-optimal candidate is the best on what is optimised among those that meet every limit
with the wanted probability. The compute-optimal one needs the fewest FLOPs for the same accuracy;
the difference of the two is the regret of having taken FLOPs as the measure.

A candidate is feasible when the wanted share of the joint draws meets all limits at once, in the
half of the draws that chooses and again in the half that states. Values are those of the data
themselves (all problems once, no model error), which is what the mean of the draws tends to, so
that a looser budget never gives a worse objective.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from advisor.command import serve_command
from advisor.draws import HIGH, LOW, Draws
from advisor.evidence import Evidence, gather, law_key
from advisor.measures import Measures, latency_name
from advisor.models.step_time import StepTimeModel
from advisor.outcomes import Outcomes
from advisor.reasons import measure_next, reasons
from advisor.space import Space, explore
from traces.errors import RecordingError, UsageError
from traces.recording import Recording
from traces.schema import Budget, Estimate, NearMiss, Pick, Recommendation

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

METRICS = (
    "accuracy",
    "latency_s",
    "latency_p95_s",
    "cost_usd",
    "device_s",
    "energy_j",
    "tokens",
    "flops",
    "throughput_problems_per_s",
)
REGRETS = ("latency_s", "latency_p95_s", "device_s", "cost_usd", "energy_j")
LIMITS = {  # field of the budget -> why a candidate that breaks it is not taken
    "max_gpus": "needs more devices than allowed",
    "rate": "cannot keep up with the rate",
    "min_accuracy": "not accurate enough",
    "max_latency_s": "too slow",
    "max_device_s": "takes too many device-seconds",
    "max_cost_usd": "too expensive",
    "max_energy_j": "takes too much energy",
}
ModelPath = Callable[[str], str]


class Advisor:
    """Answers budgets from recordings; `fit` learns, `recommend` filters and sorts."""

    def __init__(
        self, evidence: Evidence, space: Space, model: StepTimeModel, draws: Draws
    ) -> None:
        self.evidence, self.space, self.model, self.draws = evidence, space, model, draws
        self._outcomes = Outcomes(evidence, space, model, draws.seed)
        self._measures: dict[float | None, Measures] = {}
        self.measures(None if evidence.load[1] is None else evidence.load[1])

    @classmethod
    def fit(cls, recordings: Sequence[Recording], *, seed: int = 0, draws: int = 400) -> Advisor:
        """Learn from recordings and replay every candidate under the recorded load.

        Raises UsageError when they answer different workloads and RecordingError when they hold
        nothing to learn from.
        """
        evidence = gather(recordings)
        model = StepTimeModel().fit(evidence.steps)
        space = explore(evidence)
        if not space.candidates:
            why = "; ".join(space.dropped) or "their engines have no recorded steps"
            raise RecordingError(f"{', '.join(evidence.recordings)}: no candidate to judge: {why}")
        return cls(evidence, space, model, Draws(len(space.problem_ids), count=draws, seed=seed))

    def measures(self, rate_per_s: float | None) -> Measures:
        """Return every candidate's metrics at an arrival rate (None: the recorded load)."""
        concurrency, recorded_rate = self.evidence.load
        rate = recorded_rate if rate_per_s is None else rate_per_s
        if rate not in self._measures:
            outcomes = self._outcomes.compute(concurrency=concurrency, rate_per_s=rate)
            self._measures[rate] = Measures(
                outcomes,
                self.draws,
                rate_per_s=rate,
                watts=self.evidence.watts,
                law_key=law_key,
            )
        return self._measures[rate]

    def recommend(self, budget: Budget, *, model_path: ModelPath | None = None) -> Recommendation:
        """Return what to run for a budget; nothing that fits is an answer too.

        `model_path` turns a model's name into what `vllm serve` is given. Raises UsageError when
        the budget limits what was not measured (energy) or has no price.
        """
        measures = self.measures(budget.rate_per_s)
        return _Question(self, measures, budget, model_path).answer()


class _Question:
    """One budget, asked of the candidates' metrics."""

    def __init__(
        self, advisor: Advisor, measures: Measures, budget: Budget, model_path: ModelPath | None
    ) -> None:
        self.advisor, self.measures, self.budget = advisor, measures, budget
        self.model_path = model_path or str
        price = budget.price_usd_per_device_hour
        self.price = advisor.evidence.price_usd_per_device_hour if price is None else price
        self.objective = measures.objective(budget)
        self.met = self._limits()
        count = (len(measures.outcomes), advisor.draws.count)
        joint = np.ones(count, dtype=bool)
        for met in self.met.values():
            joint &= met
        self.chance = self._chances(joint)
        self.order = self._order()

    def answer(self) -> Recommendation:
        """Return the recommendation."""
        budget, measures = self.budget, self.measures
        fits = self.chance >= budget.confidence
        system = self._best(fits)
        compute = self._compute_optimal(system)
        regret: Mapping[str, Estimate | None] = {}
        if system is not None and compute is not None:
            regret = {
                name: measures.difference(name, compute, system, price=self.price)
                for name in REGRETS
            }
        rows = [] if system is not None else self._near_misses()
        misses = tuple(self._near_miss(limit, row) for limit, row in rows)
        dropped = Counter(self.advisor.space.dropped) + self._infeasible()
        return Recommendation(
            budget=budget,
            system_optimal=None if system is None else self._pick(system),
            compute_optimal=None if compute is None else self._pick(compute),
            regret=regret,
            pareto=tuple(self._pick(row) for row in self._front(self.objective)),
            compute_pareto=tuple(self._pick(row) for row in self._front("flops")),
            reasons=tuple(
                reasons(
                    self.advisor.evidence,
                    self.advisor.space,
                    measures,
                    budget,
                    objective=self.objective,
                    system=system,
                    compute=compute,
                    equals=[] if system is None else self._equals(system, fits),
                    misses=misses,
                    needed={
                        limit: self.needed(limit, row)
                        for limit, row in rows
                        if limit not in ("max_gpus", "rate")
                    },
                    price=self.price,
                )
            ),
            near_misses=misses,
            measure_next=tuple(
                measure_next(self.advisor.evidence, self.advisor.space, measures, system)
            ),
            candidates=len(measures.outcomes) + sum(self.advisor.space.dropped.values()),
            infeasible=dict(dropped),
        )

    # -- limits --------------------------------------------------------------------------------

    def _limits(self) -> dict[str, Bools]:
        """Return [candidates, draws] of which limit is met, by name, in LIMITS' order."""
        budget, measures = self.budget, self.measures
        met: dict[str, Bools] = {}
        if budget.max_gpus is not None:
            allowed = measures.devices <= budget.max_gpus
            met["max_gpus"] = np.repeat(allowed[:, None], self.advisor.draws.count, axis=1)
        if measures.rate_per_s is not None:
            met["rate"] = measures.keeps_up
        if budget.min_accuracy is not None:
            met["min_accuracy"] = measures.draws("accuracy") >= budget.min_accuracy
        for limit, (name, scale) in self._upper_limits().items():
            met[limit] = measures.draws(name) * scale <= getattr(budget, limit)
        return met

    def _upper_limits(self) -> dict[str, tuple[str, float]]:
        """Return the metric and its factor for each upper limit that is given."""
        budget = self.budget
        found: dict[str, tuple[str, float]] = {}
        if budget.max_latency_s is not None:
            found["max_latency_s"] = latency_name(budget.latency_percentile), 1.0
        if budget.max_device_s is not None:
            found["max_device_s"] = "device_s", 1.0
        if budget.max_cost_usd is not None:
            if self.price is None:
                raise UsageError(
                    "--max-cost in USD needs --price, such as --price 2.5 per device-hour; "
                    "or give device-seconds, such as --max-cost 0.5s"
                )
            found["max_cost_usd"] = "device_s", self.price / 3600
        if budget.max_energy_j is not None:
            if all(watts is None for watts in self.measures.watts):
                raise UsageError("--max-energy: no recording holds power; record on a GPU")
            found["max_energy_j"] = "energy_j", 1.0
        return found

    def _chances(self, met: Bools) -> Floats:
        """Return the share of draws that are met: the lower of the two halves."""
        choosing = self.advisor.draws.choosing
        halves = met[:, choosing].mean(axis=1), met[:, ~choosing].mean(axis=1)
        return np.asarray(np.minimum(*halves))

    def _infeasible(self) -> Counter[str]:
        """Return how many candidates each limit rules out, each counted once."""
        count = Counter[str]()
        left = np.ones(len(self.chance), dtype=bool)
        for limit, met in self.met.items():
            fails = left & (self._chances(met) < self.budget.confidence)
            count[LIMITS[limit]] += int(fails.sum())
            left &= ~fails
        count["not sure enough of all limits at once"] += int(
            (left & (self.chance < self.budget.confidence)).sum()
        )
        return Counter({name: number for name, number in count.items() if number})

    # -- choosing ------------------------------------------------------------------------------

    def _order(self) -> npt.NDArray[np.int64]:
        """Return the candidates from best to worst; among equals, what was run, then its engine."""
        measures = self.measures
        seqs = [o.candidate.engine.max_num_seqs or 0 for o in measures.outcomes]
        ran = {run.engine for run in self.advisor.evidence.runs}
        new = [2 - o.candidate.recorded - (o.candidate.engine in ran) for o in measures.outcomes]
        ranked = [
            measures.cost(self.objective),
            -measures.values("accuracy"),
            measures.values("latency_s"),
            measures.values("device_s"),
        ]
        rounded = [np.array([float(f"{value:.9g}") for value in key]) for key in ranked]
        keys = [np.array(seqs, dtype=float), np.array(new, dtype=float), *rounded[::-1]]
        return np.asarray(np.lexsort(keys), dtype=np.int64)

    def _best(self, allowed: Bools) -> int | None:
        for row in self.order:
            if allowed[row] and np.isfinite(self.measures.cost(self.objective)[row]):
                return int(row)
        return None

    def _compute_optimal(self, system: int | None) -> int | None:
        """Return the candidate of fewest FLOPs that is as accurate as is asked for.

        That is `min_accuracy` with the wanted probability, else the accuracy of the pick. Among
        engines with the same FLOPs it is the best on the objective, so that regret is no artefact.
        """
        measures, accurate = self.measures, self.met.get("min_accuracy")
        if accurate is not None:
            enough = self._chances(accurate) >= self.budget.confidence
        elif system is not None:
            values = measures.values("accuracy")
            enough = values >= values[system] - 1e-12
        else:
            return None
        for limit in ("max_gpus", "rate"):
            if limit in self.met:
                enough &= self._chances(self.met[limit]) >= self.budget.confidence
        if not enough.any():
            return None
        flops = measures.values("flops")
        return self._best(enough & (flops <= flops[enough].min() * (1 + 1e-9)))

    def _equals(self, system: int, fits: Bools) -> list[int]:
        """Return other feasible candidates whose objective cannot be told from the pick's."""
        draws = self.measures.draws(self.objective)
        if self.budget.optimise == "accuracy":
            draws = self.measures.draws("accuracy")
        stating = ~self.advisor.draws.choosing
        found = []
        for row in self.order:
            if row == system or not fits[row]:
                continue
            low, high = np.quantile((draws[row] - draws[system])[stating], (LOW, HIGH))
            if low <= 0 <= high:
                found.append(int(row))
        return found

    def _front(self, metric: str) -> list[int]:
        """Return the Pareto front of accuracy against a metric, best first."""
        measures = self.measures
        name = "latency_s" if metric == "accuracy" else metric
        cost, accuracy = measures.cost(name), measures.values("accuracy")
        allowed = np.ones(len(cost), dtype=bool)
        for limit in ("max_gpus", "rate"):
            if limit in self.met:
                allowed &= self._chances(self.met[limit]) >= self.budget.confidence
        place = np.empty(len(cost), dtype=np.int64)
        place[self.order] = np.arange(len(cost))
        front, best = [], -np.inf
        for row in np.lexsort((place, -accuracy, cost)):
            if allowed[row] and np.isfinite(cost[row]) and accuracy[row] > best + 1e-12:
                front.append(int(row))
                best = accuracy[row]
        return front

    # -- answers -------------------------------------------------------------------------------

    def _pick(self, row: int) -> Pick:
        candidate = self.measures.outcomes[row].candidate
        names = list(METRICS)
        asked = latency_name(self.budget.latency_percentile)
        if asked not in names:
            names.insert(3, asked)
        path = self.model_path(candidate.engine.model)
        return Pick(
            engine=candidate.engine,
            policy=candidate.policy,
            command=serve_command(candidate.engine, model_path=path, policy=candidate.policy),
            estimates={name: self.measures.estimate(name, row, price=self.price) for name in names},
            probability_within_budget=float(self.chance[row]),
        )

    def _near_misses(self) -> list[tuple[str, int]]:
        """Return, for each limit, the candidate nearest to it, meeting the others if any does."""
        found = []
        for limit in self.met:
            others = np.ones_like(self.met[limit])
            for name, met in self.met.items():
                if name != limit:
                    others &= met
            allowed = self._chances(others) >= self.budget.confidence
            if not allowed.any():
                allowed[:] = True
            row = self._nearest(limit, allowed)
            if row is not None:
                found.append((limit, row))
        return found

    def _nearest(self, limit: str, allowed: Bools) -> int | None:
        measures = self.measures
        rows = np.flatnonzero(allowed)
        if limit == "max_gpus":
            short = measures.devices[rows].astype(float)
        elif limit == "rate":
            short = -np.array([measures.outcomes[row].capacity_per_s for row in rows])
        else:
            short = np.array([self.needed(limit, row) for row in rows])
            short = -short if limit == "min_accuracy" else short
        if not len(rows) or not np.isfinite(short).any():
            return None
        nearest = rows[short <= short.min() + 1e-12 * abs(short.min())]
        return next(int(row) for row in self.order if row in nearest)

    def needed(self, limit: str, row: int) -> float:
        """Return the limit that a candidate would meet with the wanted probability."""
        name, scale = self._upper_limits().get(limit, ("accuracy", 1.0))
        draws = self.measures.draws(name)[row] * scale
        share = self.budget.confidence
        choosing = self.advisor.draws.choosing
        halves = [draws[choosing], draws[~choosing]]
        if limit == "min_accuracy":
            return float(min(np.quantile(half, 1 - share, method="lower") for half in halves))
        return float(max(np.quantile(half, share, method="higher") for half in halves))

    def _near_miss(self, limit: str, row: int) -> NearMiss:
        measures = self.measures
        outcome = measures.outcomes[row]
        if limit == "max_gpus":
            wanted = float(self.budget.max_gpus or 0)
            nearest = Estimate(value=float(measures.devices[row]), unit="devices")
        elif limit == "rate":
            wanted = measures.rate_per_s or 0.0
            draws = outcome.capacity_per_s / measures.factors[row]
            nearest = self.advisor.draws.estimate(
                outcome.capacity_per_s,
                draws,
                "problems/s",
                runs=outcome.law.runs,
                extrapolated=outcome.extrapolated,
            )
        else:
            wanted = float(getattr(self.budget, limit))
            name = self._upper_limits().get(limit, ("accuracy", 1.0))[0]
            name = "cost_usd" if limit == "max_cost_usd" else name
            estimate = measures.estimate(name, row, price=self.price)
            assert estimate is not None  # a limit on what is not known was refused
            nearest = estimate
        return NearMiss(limit=limit, wanted=wanted, nearest=nearest, pick=self._pick(row))
