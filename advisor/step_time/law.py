"""The law of step times, and its prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from advisor.evidence.features import ALL, FEATURES, Reads
from traces.schema.engine import EngineConfig
from traces.statistics import Z95, Floats
from traces.summary.comparison import RUN_TO_RUN

if TYPE_CHECKING:
    from advisor.step_time.cost import Most, StepCost


FEWER: Final = 2.0  # times fewer requests than recorded, from which a step is outside of that
SLACK: Final = 1.1  # times the most of the recorded steps, up to which a step is inside

# The share of busy time in steps beyond the recorded ones from which a prediction is marked: if
# these took twice as long as predicted, it would move by a tenth of what runs differ by.
TELLING: Final = 0.1 * Z95 * RUN_TO_RUN


@dataclass(frozen=True, kw_only=True, eq=False)
class PriorCost:
    """Step times of a GPU that was not measured: the cost of an engine there, by its limits.

    `system` names the tables, `label` with their version; `recordings` recalibrated them, of their
    `kernels` alone if that is so, and `checked` says that one of these was of this model and
    tensor-parallel size; `told` says where the spread is from, and `holds` whether the tables hold
    the largest values of a replay, of contexts up to the longest. `drafts` says up to which batch
    the engine's drafts pay there, None without any.
    """

    system: str
    label: str
    recordings: tuple[str, ...]
    told: str
    checked: bool
    cost: Callable[[EngineConfig], StepCost]
    holds: Callable[[Mapping[str, float], int], bool]
    drafts: str | None = None
    kernels: bool = False


@dataclass(frozen=True, kw_only=True)
class StepLaw:
    """Seconds of a step of one engine: `seconds` [FEATURES] times its composition.

    `high` is the most of each feature in the recorded steps, `fewest` the requests that nearly all
    of them had. `sigma` is the spread of the log of (recorded / predicted) total time in a run that
    was not learned from, inside the recorded domain; `sigma_outside` the same with runs that lay
    outside what was left to learn from. `runs` are the recordings it was learned from, `repeats`
    and `repeats_outside` how many were held out to find the spreads (0: `RUN_TO_RUN` is assumed).
    With a `prior` nothing was recorded: `seconds` come near to its tables, from which replays take
    their times. `reads` is what its features count. `coarse` says that its steps were means between
    two polls, which `sigma` holds too. `ends` [2 or 3, FEATURES] are laws that fit its
    steps as well, from one that grows little with requests to one that grows much, between which it
    lies (None of a prior). Where the steps tell what each feature costs they are alike.
    """

    seconds: Floats
    fewest: float
    high: Floats
    sigma: float
    sigma_outside: float
    runs: int
    repeats: int
    repeats_outside: int
    prior: PriorCost | None = None
    reads: Reads = ALL
    coarse: bool = False
    ends: Floats | None = None

    def predict(self, composition: Floats) -> Floats:
        """Return the seconds of steps, [steps] for a composition [steps, FEATURES]."""
        return np.asarray(composition @ self.seconds, dtype=float)

    @property
    def most(self) -> Most:
        """The most of a step that is as those recorded."""
        from advisor.step_time.cost import Most  # numba takes a third of a second to load

        high = dict(zip(FEATURES, (SLACK * self.high).tolist(), strict=True))
        return Most(**{name: high[name] for name in Most._fields})

    def within(self, runs: Sequence[StepTotals]) -> bool:
        """Whether steps beyond the recorded ones take too little time to move what is predicted."""
        return beyond_share(runs) <= TELLING

    def smaller(self, requests: float) -> bool:
        """Whether steps of so many requests in the mean are much smaller than those recorded."""
        return FEWER * requests < self.fewest

    def beyond(self, peaks: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        """Return the named features whose largest values lie outside: (value, largest recorded)."""
        high = dict(zip(FEATURES, self.high.tolist(), strict=True))
        return {
            name: (value, high[name]) for name, value in peaks.items() if value > SLACK * high[name]
        }


def non_negative_least_squares(rows: Floats, target: Floats) -> Floats:
    """Return x >= 0 that minimises |rows x - target| (`NonNegativeRegression`)."""
    from advisor.step_time.regression import NonNegativeRegression  # loads scikit-learn

    return NonNegativeRegression().fit(rows, target).coef_


class StepTotals(Protocol):
    """What a law asks of a replay: `totals` [FEATURES] and `peak` of its steps, and their seconds.

    `beyond_s` are those of steps beyond the law's `most`.
    """

    @property
    def totals(self) -> Floats: ...

    @property
    def peak(self) -> dict[str, float]: ...

    @property
    def busy_s(self) -> float: ...

    @property
    def beyond_s(self) -> float: ...


def beyond_share(runs: Sequence[StepTotals]) -> float:
    """Return the share of the busy time of replays that steps beyond the recorded ones take."""
    return sum(run.beyond_s for run in runs) / max(sum(run.busy_s for run in runs), 1e-300)


def largest(runs: Sequence[StepTotals]) -> dict[str, float]:
    """Return the most of a step in any of some replays, by feature."""
    return {name: max(run.peak[name] for run in runs) for name in runs[0].peak}


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Where a question's step times come from.

    `sigma` is the spread of a whole run's speed inside and outside what was recorded, None for
    operator tables, which no run of the user's has checked; `runs` taught it, and `repeats` are the
    recordings left out from which these spreads are measured, 0 where they are assumed, which holds
    what a `coarse` law adds. `ends` are the costs that fast and slow steps are made of, where they
    are others than `cost`. `others` are costs that the recorded steps cannot tell from it. `ttft`
    are the least, the usual and the largest ratio of others' TTFT to the predicted. `beyond` says
    which peaks lie outside of the recorded steps, as (value, largest recorded), `smaller` whether
    so many requests a step do, and `fewest` how many there were. `notes` are what else there is to
    say of them. `at_load` gives those of a load, which it sees from what a run of it does with a
    cost, where loads were measured.
    """

    cost: StepCost
    sigma: tuple[float, float] | None
    runs: int | None
    within: Callable[[Sequence[StepTotals]], bool]
    notes: tuple[str, ...] = ()
    repeats: tuple[int, int] | None = None
    coarse: bool = False
    beyond: Callable[[Mapping[str, float]], Mapping[str, tuple[float, float]]] = lambda _: {}
    smaller: Callable[[float], bool] = lambda _: False
    fewest: float = 0.0
    ends: tuple[StepCost, StepCost] | None = None
    others: tuple[StepCost, ...] = ()
    ttft: tuple[float, float, float] = (1.0, 1.0, 1.0)
    at_load: Callable[[Callable[[StepCost], StepTotals]], StepTimes] | None = None

    def under(self, run: Callable[[StepCost], StepTotals]) -> StepTimes:
        """Return those of the load of a run, which `run` replays with a cost."""
        return self if self.at_load is None else self.at_load(run)

    def at_known_pace(self, spread: float) -> StepTimes:
        """Return the same where the machine's pace is known: so much of `sigma` is left at most.

        What lies outside of the recorded steps is as far off as before.
        """
        if self.sigma is None:
            return self
        inside, outside = self.sigma
        left = min(inside, spread)
        beyond = max(outside**2 - inside**2, 0.0)
        return replace(self, sigma=(left, float(np.sqrt(left**2 + beyond))), repeats=None)

    def at(self, factor: float) -> StepCost:
        """Return the cost of steps that take `factor` times as long."""
        from advisor.step_time.cost import scaled_cost  # numba takes a third of a second to load

        if factor == 1.0:
            return self.cost
        return scaled_cost(self.cost if self.ends is None else self.ends[factor > 1.0], factor)
