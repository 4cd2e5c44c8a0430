"""A budget, and the recommendation that answers it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.formats import counted, number
from traces.schema.record import Record
from traces.schema.tts.policy import Policy

Objective = Literal["accuracy", "latency", "cost", "energy", "throughput"]


@dataclass(frozen=True, kw_only=True)
class Budget(Record):
    """What a problem may take; what is None is not limited.

    `latency_percentile` is which latency is limited and optimised, None the mean. `optimise` is
    None where nobody said it, and `goal` says then what is. `required` is False where neither a
    limit nor what to optimise was given: nothing is recommended then.
    """

    max_latency_s: float | None = None
    latency_percentile: int | None = None
    max_device_s: float | None = None
    max_cost_usd: float | None = None
    max_energy_j: float | None = None
    max_gpus: int | None = None
    min_accuracy: float | None = None
    rate_per_s: float | None = None
    price_usd_per_device_hour: float | None = None
    prices: tuple[tuple[str, float], ...] = ()  # (type of device, USD per device-hour)
    optimise: Objective | None = None
    confidence: float = 0.9
    required: bool = True

    def limits(self) -> dict[str, float]:
        names = ("max_latency_s", "max_device_s", "max_cost_usd", "max_energy_j", "max_gpus")
        given = {name: getattr(self, name) for name in (*names, "min_accuracy")}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def goal(self) -> Objective:
        """What is optimised: as said, or else accuracy within limits on time, cost and energy."""
        if self.optimise is not None:
            return self.optimise
        limits = self.limits().keys()
        spent = limits & {"max_latency_s", "max_device_s", "max_cost_usd", "max_energy_j"}
        return "accuracy" if spent and "min_accuracy" not in limits else "latency"

    def settled(self, *, judged: bool) -> Budget:
        """Return the budget with its goal said, latency where no answer is `judged`."""
        goal = self.goal if judged or self.optimise is not None else "latency"
        return replace(self, optimise=goal)

    def price_of(self, gpu: str | None) -> float | None:
        """Return USD per device-hour of a GPU (None: a CPU) as given, None where it was not."""
        types = dict(self.prices)
        for name in sorted(types, key=len, reverse=True):  # H100 PCIe before H100
            if is_named(gpu or "CPU", name):
                return types[name]
        return self.price_usd_per_device_hour


def is_named(device: str, name: str) -> bool:
    """Whether a device has a name among its words: an L40S is no L4."""
    word = rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])"
    return re.search(word, device, re.IGNORECASE) is not None


@dataclass(frozen=True, kw_only=True)
class Load(Record):
    """The load that something holds for: problems in flight, or those that arrive a second."""

    concurrency: int | None
    rate_per_s: float | None

    def words(self) -> str:
        if self.rate_per_s is not None:
            return number(self.rate_per_s, "problems/s")
        return f"{counted(self.concurrency or 0, 'problem')} in flight"


@dataclass(frozen=True, kw_only=True)
class Measured(Record):
    """What a run of a configuration measured, under the names of a pick's estimates.

    `at_load` says that it ran under the load of the answer, and not under another one, which is
    `concurrency` problems in flight or `rate_per_s`. Both are None where the load is not known,
    which is no other one. `runs` counts the runs under that load.
    """

    recording: str
    problems: int
    concurrency: int | None
    rate_per_s: float | None
    estimates: Mapping[str, Estimate | None]
    at_load: bool = True
    runs: int = 1

    @property
    def load(self) -> Load:
        return Load(concurrency=self.concurrency, rate_per_s=self.rate_per_s)


ESTIMATES = (  # of a pick, in the order in which they are shown
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


@dataclass(frozen=True, kw_only=True)
class Pick(Record):
    """A candidate with what is expected of it.

    `prior` is the system of whose tables its step times are; None where they were recorded.
    `measured` is what a run of it gave, None where it was not run. `beyond` is the share of its
    busy time in steps that are larger than any recorded, None where it was not replayed.
    """

    engine: EngineConfig
    policy: Policy
    command: str | None = None
    estimates: Mapping[str, Estimate | None]
    probability_within_budget: float
    prior: str | None = None
    measured: Measured | None = None
    beyond: float | None = None


@dataclass(frozen=True, kw_only=True)
class NearMiss(Record):
    """The candidate that comes closest to a limit of those that nothing meets together.

    `sure` is the probability that it meets this limit, which may be met where the others are not.
    """

    limit: str
    wanted: float
    nearest: Estimate
    sure: float
    pick: Pick


@dataclass(frozen=True, kw_only=True)
class Turning(Record):
    """The value of a limit, rate or price at which the answer changes, and to what.

    `direction` is "above" or "below" the value; without `pick` nothing known fits there. `exact`:
    the pick drops out there; else another is better there, and one not looked at may be earlier.
    `replayed` says that the value is of replayed candidates, not of the closed form.
    """

    name: str
    value: float
    unit: str
    direction: Literal["above", "below"]
    pick: str | None
    exact: bool = True
    replayed: bool = True


@dataclass(frozen=True, kw_only=True)
class Stages(Record):
    """How the answer came about: candidates by closed form, and those that were replayed.

    `spread` is what nine tenths of the replays lay within of the closed form, a share. `first` is
    the closed form's pick where the replay changed it.
    """

    screened: int
    replayed: int
    spread: float | None
    first: str | None


@dataclass(frozen=True, kw_only=True)
class Present(Record):
    """The configuration that runs today, and what it has more than the pick: `difference`.

    `best` says that it is the pick, or cannot be told apart from it on what is optimised.
    """

    pick: Pick
    best: bool
    difference: Mapping[str, Estimate | None]


@dataclass(frozen=True, kw_only=True)
class Routing(Record):
    """A table of samples by difficulty, and what it gains over the best single policy, `against`.

    `by` says what it goes by. `accuracy` is the difference and `tokens` the change, a share, on
    problems that it was not learned from. It is `offered` where its gain is told apart from none.
    """

    model: str
    policy: Policy
    by: Literal["agreement", "class"]
    against: Policy
    problems: int
    accuracy: Estimate
    tokens: Estimate
    offered: bool


@dataclass(frozen=True, kw_only=True)
class Experiment(Record):
    """A run that would make the answer surer.

    `regret` is what the pick is expected to lose against the best, as a share of what is optimised,
    and `regret_after` the same once this run is known.
    """

    engine: EngineConfig
    policy: Policy
    reason: str
    regret: float
    regret_after: float


@dataclass(frozen=True, kw_only=True)
class Recommendation(Record):
    """What to run for a budget; picks are None when nothing fits.

    `pareto` is the front of accuracy against what is optimised (latency where that is accuracy),
    `compute_pareto` against FLOPs. `load` is what it holds for, `notes` what to know of the
    recordings. `alternatives` are as good in what is optimised, and more accurate or faster.
    `warning` says that the replay does not give what was recorded, None where it does.
    """

    budget: Budget
    system_optimal: Pick | None
    compute_optimal: Pick | None
    regret: Mapping[str, Estimate | None]
    pareto: tuple[Pick, ...]
    compute_pareto: tuple[Pick, ...] = ()
    reasons: tuple[str, ...]
    alternatives: tuple[str, ...] = ()
    near_misses: tuple[NearMiss, ...]
    measure_next: tuple[str, ...]
    candidates: int
    infeasible: Mapping[str, int]
    equals: tuple[Pick, ...] = ()
    sensitivity: tuple[Turning, ...] = ()
    stages: Stages | None = None
    present: Present | None = None
    experiments: tuple[Experiment, ...] = ()
    routings: tuple[Routing, ...] = ()
    load: Load | None = None
    notes: tuple[str, ...] = ()
    warning: str | None = None

    @property
    def missed(self) -> tuple[NearMiss, ...]:
        """The near misses of limits that are missed; all where each is met, but not all at once."""
        sure = self.budget.confidence
        return tuple(each for each in self.near_misses if each.sure < sure) or self.near_misses
