"""A budget as limits on metrics and a goal, and as people write it: `5s`, `$0.002`, `80%`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from traces.errors import UsageError
from traces.schema.advice import Budget, Objective, is_named
from traces.schema.engine import EngineConfig
from traces.schema.quantities import LIMITS, limited, objective
from traces.statistics import Bools, Floats

if TYPE_CHECKING:
    from traces.summary.run import Run


@dataclass(frozen=True, kw_only=True)
class MetricBound:
    """A limit on a metric: `bound` [candidates], at least that where `above`, else at most.

    Limits on cost are bounds on device-seconds.
    """

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
        self, budget: Budget, recorded: float | None, gpus: frozenset[str | None] | None = None
    ) -> None:
        self._budget, self._types = budget, dict(budget.prices)
        given = budget.price_usd_per_device_hour
        self._asked = given is not None or bool(self._types)
        self.plain = given if self._asked else recorded
        self.recorded = not self._asked and recorded is not None
        self._gpus = gpus if self.recorded else None

    def of(self, engine: EngineConfig) -> float | None:
        """Return the price of an engine's device, None where it is not known."""
        if not self.recorded:
            return self._budget.price_of(engine.gpu)
        return self.plain if self._gpus is None or engine.gpu in self._gpus else None

    def of_run(self, run: Run) -> float | None:
        """Return the price of a run's devices: that of its own cost where none is known here."""
        price = self.of(run.engine)
        return run.price_usd_per_device_hour if price is None and not self._asked else price

    def check(self, engines: Sequence[EngineConfig]) -> None:
        """Raise UsageError for a type of device that no engine has."""
        devices = {(engine.gpu or "CPU") for engine in engines}
        for name, price in self._types.items():
            if not any(is_named(device, name) for device in devices):
                raise UsageError(
                    f"--price {name}={price:g}: no engine here runs on such a device. There are "
                    f"{', '.join(sorted(devices))}"
                )


def limits_of_budget(
    budget: Budget, *, prices: Floats, powered: Bools, capacity_per_s: Floats | None = None
) -> dict[str, MetricBound]:
    """Return the limits of a budget by its field, in the order of `LIMITS`.

    `prices` [candidates] are USD per device-second, NaN where not known, `powered` says whether
    power is known. `capacity_per_s` is what can be served, where problems arrive at a rate. Raises
    UsageError for a limit on cost or energy where that is not known of any candidate.
    """
    wanted = budget.limits()
    limits = {}
    for field in LIMITS:
        if field == "rate" and capacity_per_s is not None:
            limits[field] = MetricBound(metric="load_per_s", bound=capacity_per_s)
        if field not in wanted:
            continue
        metric = limited(field, budget.latency_percentile)
        bound = np.full(len(prices), wanted[field])
        if metric.name == "energy_j" and not powered.any():
            raise UsageError(
                "--max-energy: no recording holds power. Record on a GPU, or name one with --gpu"
            )
        if metric.name != "cost_usd":
            limits[field] = MetricBound(
                metric=metric.name, bound=bound, above=metric.higher_is_better
            )
            continue
        priced = np.isfinite(prices)
        if not priced.any():
            raise UsageError(
                "--max-cost in USD needs --price, such as --price 2.5 per device-hour. "
                "Or give device-seconds, such as --max-cost 0.5s"
            )
        # A candidate whose price is not known cannot meet the limit.
        limits[field] = MetricBound(
            metric="device_s", bound=np.where(priced, bound / prices, -np.inf)
        )
    return limits


def goal_of(budget: Budget, *, prices: Floats, powered: Bools) -> Goal:
    """Return what a budget optimises. Raises UsageError for energy where none was recorded."""
    metric, scale = objective(budget.goal, budget.latency_percentile), np.ones(len(prices))
    if metric.name == "energy_j" and not powered.any():
        raise UsageError(
            "--optimise energy: no recording holds power. Record on a GPU, or name one with --gpu"
        )
    if metric.name != "cost_usd":
        return Goal(metric=metric.name, scale=scale, higher=metric.higher_is_better)
    if np.isfinite(prices).any() and (prices != prices[0]).any():
        # A type without a price may cost anything, so it is never the cheapest.
        scale = np.where(np.isfinite(prices), prices, np.inf)
    return Goal(metric="device_s", scale=scale, higher=False)


_TIME = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_UNITS = {  # of an option's value, and how it is written; without a unit it is 1
    "--max-latency": (_TIME, "5s, 250ms or 2min"),
    "--max-turn-latency": (_TIME, "5s, 250ms or 2min"),
    "--max-energy": (
        {"mJ": 1e-3, "j": 1.0, "kj": 1e3, "MJ": 1e6, "wh": 3600.0, "kwh": 3.6e6},  # M is not m
        "800J or 2kJ",
    ),
    "--rate": ({"/s": 1.0, "/sec": 1.0, "/min": 1 / 60, "/h": 1 / 3600}, "2/s or 30/min"),
    "--min-accuracy": ({"%": 0.01}, "0.8 or 80%"),
}
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+|nan|inf)(?:e[-+]?\d+)?)\s*(.*)", re.IGNORECASE)


def is_given(given: Mapping[str, Any]) -> bool:
    """Whether the options hold a requirement: a limit, or what to optimise.

    A rate, a price, a percentile or a confidence by itself is none.
    """
    required = ("max_latency", "max_cost", "max_energy", "min_accuracy", "gpus", "optimise")
    return any(given.get(name) is not None for name in required)


def parse_budget(given: Mapping[str, Any]) -> Budget:
    """Return the budget of options by name (`max_latency`, `price`, ...); None is not limited.

    Raises UsageError naming the option, its value and an example.
    """
    percentile, gpus = _percentile(given.get("percentile")), given.get("gpus")
    of_latency = given.get("max_latency") is not None or given.get("optimise") in (None, "latency")
    if percentile is not None and not of_latency:
        raise UsageError("--percentile: says which percentile --max-latency limits. Give both")
    if gpus is not None and gpus < 1:
        raise UsageError(f"--gpus {gpus}: wants at least 1")
    optimise = given.get("optimise")
    if optimise is not None and optimise not in get_args(Objective):
        raise UsageError(f"--optimise {optimise}: wants one of {', '.join(get_args(Objective))}")

    def optional(name: str) -> float | None:
        value = given.get(name)
        return None if value is None else parse_value(str(value), f"--{name.replace('_', '-')}")

    max_device_s, max_cost_usd = _cost(given.get("max_cost"))
    price, prices = _prices(given.get("price"))
    return Budget(
        max_latency_s=optional("max_latency"),
        latency_percentile=percentile,
        max_device_s=max_device_s,
        max_cost_usd=max_cost_usd,
        max_energy_j=optional("max_energy"),
        max_gpus=gpus,
        min_accuracy=optional("min_accuracy"),
        rate_per_s=optional("rate"),
        price_usd_per_device_hour=price,
        prices=prices,
        optimise=cast(Objective | None, optimise),
        confidence=_confidence(given.get("confidence")),
        required=is_given(given),
    )


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _confidence(given: Any) -> float:
    """Return a share of certainty as 0.9 or `90%`. Raises UsageError for what is none."""
    if given is None:
        return Budget.confidence
    text = str(given).strip()
    value = _float(text.removesuffix("%")) * (0.01 if text.endswith("%") else 1.0)
    if not 0 < value < 1:
        raise UsageError(f"--confidence {given}: wants a share between 0 and 1, such as 0.9 or 90%")
    return value


def _percentile(given: Any) -> int | None:
    """Return a percentile as 95, `p95`, `95%` or 0.95. Raises UsageError for what is none."""
    if given is None:
        return None
    value = _float(str(given).strip().lower().removeprefix("p").removesuffix("%"))
    value = round(value * 100 if 0 < value < 1 else value, 9)
    if value not in range(50, 100):
        raise UsageError(f"--percentile {given}: wants 50 to 99, such as 95")
    return int(value)


def _cost(given: Any) -> tuple[float | None, float | None]:
    """Return device-seconds and USD of `--max-cost`: `0.5s`, `$0.002` or `0.002usd`."""
    if given is None:
        return None, None
    text = str(given).strip()
    if text.lower().startswith("$") or text.lower().endswith("usd"):
        return None, _number(text.removeprefix("$"), {"usd": 1.0}, "--max-cost", "$0.002")
    units = {name: size for name, size in _TIME.items() if name != "m"}
    return _number(text, units, "--max-cost", "$0.002 or 0.5s", need_unit=True), None


def _prices(given: Any) -> tuple[float | None, tuple[tuple[str, float], ...]]:
    """Return USD per device-hour for all devices, and by type of device.

    `given` is a number, or one or more texts as `2.5`, `$2.5`, `H100=2.5`, `H100=2.5,A100=1.2`.
    Raises UsageError for what is none of these, a type that stands twice, and several for all.
    """
    if given is None:
        return None, ()
    texts = given if isinstance(given, list | tuple) else [given]
    plain: list[float] = []
    types: dict[str, float] = {}
    for part in (part for text in texts for part in str(text).split(",")):
        name, equals, amount = part.rpartition("=")
        value = _float(amount.strip().removeprefix("$"))
        if not 0 < value < math.inf:
            raise UsageError(
                f"--price {part}: wants USD per device-hour above 0, such as 2.5 or H100=2.5"
            )
        if not equals:
            plain.append(value)
        elif not name.strip():
            raise UsageError(f"--price {part}: names no type of device. Write H100=2.5")
        elif name.strip() in types:
            raise UsageError(f"--price {part}: {name.strip()} has a price already")
        else:
            types[name.strip()] = value
    if len(plain) > 1:
        raise UsageError(f"--price {plain[1]:g}: another price for all devices was given")
    return (plain[0] if plain else None), tuple(types.items())


def parse_value(text: str, option: str) -> float:
    """Return the value of an option of a budget: seconds, joules, problems/s, or a share up to 1.

    Raises UsageError for what is no number with a unit of it, and for 0 and less.
    """
    units, example = _UNITS[option]
    value = _number(text, units, option, example)
    if "%" in units and value > 1:
        raise UsageError(f"{option} {text}: is above 1. Give a share such as {example}")
    return value


def _number(
    text: str, units: Mapping[str, float], option: str, example: str, *, need_unit: bool = False
) -> float:
    match = _NUMBER.fullmatch(text.strip())
    unit = match.group(2).strip() if match else ""
    unit = unit if unit in units else unit.lower()
    if match is None or (unit not in units and (unit or need_unit)):
        raise UsageError(f"{option} {text}: is not understood. Write for example {example}")
    value = float(match.group(1)) * units.get(unit, 1.0)
    if not 0 < value < math.inf:
        raise UsageError(f"{option} {text}: must be above 0 and finite, for example {example}")
    return value
