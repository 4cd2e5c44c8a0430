"""A budget as limits on metrics: what must be at least or at most what, candidate by candidate."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from traces.errors import UsageError
from traces.schema.advice import Budget, Objective
from traces.schema.engine import EngineConfig

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


# A budget as people write it: `5s`, `$0.002`, `800J`, `80%`, `2/s`.


_TIME = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_ENERGY = {"mj": 1e-3, "j": 1.0, "kj": 1e3, "wh": 3600.0, "kwh": 3.6e6}
_RATE = {"/s": 1.0, "/sec": 1.0, "/min": 1 / 60, "/h": 1 / 3600}
_MONEY = {"$": 1.0, "usd": 1.0}
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+|nan|inf)(?:e[-+]?\d+)?)\s*(.*)", re.IGNORECASE)


def is_given(given: Mapping[str, Any]) -> bool:
    """Whether the options hold a requirement: a limit, or what to optimise.

    A rate, a price, a percentile or a confidence by itself is none.
    """
    asked = ("max_latency", "max_cost", "max_energy", "min_accuracy", "gpus", "optimise")
    return any(given.get(name) is not None for name in asked)


def parse_budget(given: Mapping[str, Any]) -> Budget:
    """Return the budget of options by name (`max_latency`, `price`, ...); None is not limited.

    Raises UsageError naming the option, its value and an example.
    """
    max_device_s = max_cost_usd = None
    cost = given.get("max_cost")
    if cost is not None:
        text = str(cost).strip()
        if text.lower().startswith("$") or text.lower().endswith("usd"):
            max_cost_usd = parse_money(text, "--max-cost")
        else:
            units = {name: size for name, size in _TIME.items() if name != "m"}
            max_device_s = _parse(text, units, "--max-cost", "$0.002 or 0.5s", need_unit=True)
    percentile = given.get("percentile")
    if percentile is not None:
        if isinstance(percentile, bool) or percentile not in range(50, 100):
            raise UsageError(f"--percentile {percentile}: wants 50 to 99, such as 95")
        if given.get("max_latency") is None and given.get("optimise") not in (None, "latency"):
            raise UsageError("--percentile: says which percentile --max-latency limits; give both")
    gpus = given.get("gpus")
    if gpus is not None and gpus < 1:
        raise UsageError(f"--gpus {gpus}: wants at least 1")
    optimise = given.get("optimise") or Budget.optimise
    if optimise not in get_args(Objective):
        raise UsageError(f"--optimise {optimise}: wants one of {', '.join(get_args(Objective))}")
    confidence = given.get("confidence")
    confidence = Budget.confidence if confidence is None else float(confidence)
    if not 0 < confidence < 1:
        raise UsageError(f"--confidence {confidence:g}: wants a share between 0 and 1, such as 0.9")
    price, prices = parse_prices(given.get("price"))

    def optional(name: str, parse: Any) -> float | None:
        value = given.get(name)
        return None if value is None else parse(str(value), f"--{name.replace('_', '-')}")

    return Budget(
        max_latency_s=optional("max_latency", parse_seconds),
        latency_percentile=percentile,
        max_device_s=max_device_s,
        max_cost_usd=max_cost_usd,
        max_energy_j=optional("max_energy", parse_energy),
        max_gpus=gpus,
        min_accuracy=optional("min_accuracy", parse_share),
        rate_per_s=optional("rate", parse_rate),
        price_usd_per_device_hour=price,
        prices=prices,
        optimise=cast(Objective, optimise),
        confidence=confidence,
        required=is_given(given),
    )


def parse_prices(given: Any) -> tuple[float | None, tuple[tuple[str, float], ...]]:
    """Return USD per device-hour for all devices, and by type of device.

    `given` is a number, or one or more texts as `2.5`, `$2.5`, `H100=2.5`, `H100=2.5,A100=1.2`.
    Raises UsageError for what is none of these, a type that stands twice, and several for all.
    """
    if given is None:
        return None, ()
    texts = [str(each) for each in given] if isinstance(given, list | tuple) else [str(given)]
    plain: list[float] = []
    types: dict[str, float] = {}
    for part in (part for text in texts for part in text.split(",")):
        name, equals, amount = part.rpartition("=")
        value = _price(amount, part)
        if not equals:
            plain.append(value)
        elif not name.strip():
            raise UsageError(f"--price {part}: names no type of device; write H100=2.5")
        elif name.strip() in types:
            raise UsageError(f"--price {part}: {name.strip()} has a price already")
        else:
            types[name.strip()] = value
    if len(plain) > 1:
        raise UsageError(f"--price {plain[1]:g}: another price for all devices was given")
    return (plain[0] if plain else None), tuple(types.items())


def _price(text: str, whole: str) -> float:
    try:
        value = float(text.strip().removeprefix("$"))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(
            f"--price {whole}: wants USD per device-hour above 0, such as 2.5 or H100=2.5"
        )
    return value


def parse_seconds(text: str, option: str = "--max-latency") -> float:
    """Return seconds of `5s`, `250ms`, `2min`; a bare number is seconds."""
    return _parse(text, _TIME, option, "5s, 250ms or 2min")


def parse_energy(text: str, option: str = "--max-energy") -> float:
    """Return joules of `800J`, `2kJ`, `1Wh`; a bare number is joules."""
    return _parse(text, _ENERGY, option, "800J or 2kJ")


def parse_rate(text: str, option: str = "--rate") -> float:
    """Return problems per second of `2/s`, `30/min`; a bare number is per second."""
    return _parse(text, _RATE, option, "2/s or 30/min")


def parse_money(text: str, option: str = "--max-cost") -> float:
    """Return USD of `$0.002`, `0.002usd`; a bare number is USD."""
    plain = text.strip()
    return _parse(plain[1:] if plain.startswith("$") else plain, _MONEY, option, "$0.002")


def parse_share(text: str, option: str = "--min-accuracy") -> float:
    """Return the share of `0.8` or `80%`, above 0 and at most 1."""
    value = _parse(text, {"%": 0.01}, option, "0.8 or 80%")
    if value > 1:
        raise UsageError(f"{option} {text}: is above 1; wants a share such as 0.8 or 80%")
    return value


def _parse(
    text: str, units: Mapping[str, float], option: str, example: str, *, need_unit: bool = False
) -> float:
    found = _NUMBER.fullmatch(text.strip())
    unit = found.group(2).strip().lower() if found else ""
    if found is None or (unit not in units and (unit or need_unit)):
        raise UsageError(f"{option} {text}: is not understood; write for example {example}")
    value = float(found.group(1)) * units.get(unit, 1.0)
    if not 0 < value < math.inf:
        raise UsageError(f"{option} {text}: must be above 0 and finite; for example {example}")
    return value
