"""A budget as limits on metrics: what must be at least or at most what, candidate by candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from traces.errors import UsageError
from traces.schema import Budget, EngineConfig

Floats = npt.NDArray[np.float64]

LIMITS = {  # field of the budget -> why a candidate that breaks it is not taken
    "max_gpus": "needs more devices than allowed",
    "rate": "cannot keep up with the rate",
    "min_accuracy": "not accurate enough",
    "max_latency_s": "too slow",
    "max_device_s": "takes too many device-seconds",
    "max_cost_usd": "too expensive",
    "max_energy_j": "takes too much energy",
}
OPTIONS = {
    "max_latency_s": "--max-latency",
    "max_device_s": "--max-cost",
    "max_cost_usd": "--max-cost",
    "max_energy_j": "--max-energy",
    "max_gpus": "--gpus",
    "min_accuracy": "--min-accuracy",
    "rate": "--rate",
}
UNSURE = "not sure enough of all limits at once"


def latency_name(percentile: int | None) -> str:
    """Return the name of the latency that a budget speaks of."""
    return "latency_s" if percentile is None else f"latency_p{percentile}_s"


def statistic_words(percentile: int | None) -> str:
    """Return the statistic of latencies that is meant, the mean or a percentile."""
    return "mean" if percentile is None else f"p{percentile}"


def latency_words(percentile: int | None) -> str:
    """Return which latency is meant, such as `mean latency`."""
    return f"{statistic_words(percentile)} latency"


def which_latency(limit: str, percentile: int | None) -> str:
    """Return what follows a value of a limit: which latency it is of, such as ` (mean)`."""
    return f" ({statistic_words(percentile)})" if limit == "max_latency_s" else ""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit on a metric: `bound` [candidates], at least that where `above`, else at most.

    `name` is the budget's field. Limits on cost and energy are bounds on device-seconds.
    """

    name: str
    metric: str
    bound: Floats
    above: bool = False


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is optimised: a metric times `scale` [candidates]; `higher` says that more is better."""

    metric: str
    scale: Floats
    higher: bool


class Prices:
    """USD per device-hour of each engine, by the type of its device where types have prices.

    A `recorded` price is that of the devices recorded on, `gpus`; None says that all are.
    """

    def __init__(
        self,
        budget: Budget,
        recorded: float | None,
        gpus: frozenset[str | None] | None = None,
    ) -> None:
        self._types = dict(budget.prices)
        given = budget.price_usd_per_device_hour
        self.plain = recorded if given is None and not self._types else given
        self.recorded = given is None and not self._types and recorded is not None
        self._gpus = gpus if self.recorded else None

    def of(self, engine: EngineConfig) -> float | None:
        """Return the price of an engine's device, None where it is not known."""
        device = (engine.gpu or "cpu").lower()
        for name, price in self._types.items():
            if name.lower() in device:
                return price
        return self.plain if self._gpus is None or engine.gpu in self._gpus else None

    def check(self, engines: Sequence[EngineConfig]) -> None:
        """Raise UsageError for a type of device that no engine has."""
        devices = {(engine.gpu or "CPU") for engine in engines}
        for name, price in self._types.items():
            if not any(name.lower() in device.lower() for device in devices):
                raise UsageError(
                    f"--price {name}={price:g}: no recorded engine runs on such a device; "
                    f"recorded are {', '.join(sorted(devices))}"
                )


def limits_of_budget(budget: Budget, *, prices: Floats, joules: Floats) -> list[Limit]:
    """Return the limits on what must be bought, in LIMITS' order without devices and the rate.

    `prices` and `joules` [candidates] are USD and joules per device-second, NaN where not known.
    Raises UsageError where no candidate's is.
    """
    count = len(prices)
    found = []
    if budget.min_accuracy is not None:
        bound = np.full(count, budget.min_accuracy)
        found.append(Limit(name="min_accuracy", metric="accuracy", bound=bound, above=True))
    if budget.max_latency_s is not None:
        name = latency_name(budget.latency_percentile)
        bound = np.full(count, budget.max_latency_s)
        found.append(Limit(name="max_latency_s", metric=name, bound=bound))
    if budget.max_device_s is not None:
        bound = np.full(count, budget.max_device_s)
        found.append(Limit(name="max_device_s", metric="device_s", bound=bound))
    if budget.max_cost_usd is not None:
        if not np.isfinite(prices).any():
            raise UsageError(
                "--max-cost in USD needs --price, such as --price 2.5 per device-hour; "
                "or give device-seconds, such as --max-cost 0.5s"
            )
        bound = _known(budget.max_cost_usd / prices)
        found.append(Limit(name="max_cost_usd", metric="device_s", bound=bound))
    if budget.max_energy_j is not None:
        if not np.isfinite(joules).any():
            raise UsageError("--max-energy: no recording holds power; record on a GPU")
        bound = _known(budget.max_energy_j / joules)
        found.append(Limit(name="max_energy_j", metric="device_s", bound=bound))
    return found


def goal_of(budget: Budget, *, prices: Floats, joules: Floats) -> Goal:
    """Return what a budget optimises. Raises UsageError for energy where none was recorded."""
    ones = np.ones(len(prices))
    if budget.optimise == "accuracy":
        return Goal(metric="accuracy", scale=ones, higher=True)
    if budget.optimise == "throughput":
        return Goal(metric="throughput_problems_per_s", scale=ones, higher=True)
    if budget.optimise == "cost":
        known = prices[np.isfinite(prices)]
        # A type without a price may cost anything, so it is never the cheapest.
        same = not len(known) or (len(known) == len(prices) and (known == known[0]).all())
        scale = ones if same else np.where(np.isfinite(prices), prices, np.inf)
        return Goal(metric="device_s", scale=scale, higher=False)
    if budget.optimise == "energy":
        if not np.isfinite(joules).any():
            raise UsageError("--optimise energy: no recording holds power; record on a GPU")
        scale = np.where(np.isfinite(joules), joules, np.inf)
        return Goal(metric="device_s", scale=scale, higher=False)
    return Goal(metric=latency_name(budget.latency_percentile), scale=ones, higher=False)


def _known(bound: Floats) -> Floats:
    """Return bounds of which those that are not known cannot be met."""
    return np.where(np.isfinite(bound), bound, -np.inf)
