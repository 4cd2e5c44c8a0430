"""What a pick costs as people count it: per million tokens, per thousand problems, against an API.

Worked out from the draws of the answer, so that an interval is of the ratio and not of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from advisor.advice.advisor import Advisor
from advisor.advice.feasible import ReplayedCheck
from traces.errors import UsageError
from traces.schema.advice import Pick, Recommendation
from traces.schema.estimate import Estimate, Interval, Of
from traces.schema.record import Record

NO_POWER = "no recording holds power. Record on a GPU, or name one with --gpu"
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, kw_only=True)
class Tariff(Record):
    """Prices beside that of a device-hour: USD per kWh, and per million output tokens of an API.

    `pue` is the power of the whole site over that of its devices, 1 or more.
    Raises UsageError for what none of these can be.
    """

    kwh_price: float | None = None
    pue: float | None = None
    api_price: float | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--kwh-price", self.kwh_price, 0.0),
            ("--api-price", self.api_price, 0.0),
            ("--pue", self.pue, 1.0),
        ):
            if value is not None and not (math.isfinite(value) and value >= least and value > 0):
                wanted = "a number from 1, such as 1.3" if least else "USD above 0"
                raise UsageError(f"{name} {value:g}: wants {wanted}")
        if self.pue is not None and self.kwh_price is None:
            raise UsageError("--pue goes with --kwh-price, which it raises")

    @property
    def usd_per_joule(self) -> float | None:
        """What a joule of the devices costs; None without a price per kWh."""
        if self.kwh_price is None:
            return None
        return (self.pue or 1.0) * self.kwh_price / _JOULES_PER_KWH

    @property
    def asked(self) -> bool:
        return self.kwh_price is not None or self.api_price is not None


@dataclass(frozen=True, kw_only=True)
class Costs(Record):
    """What one pick costs; None is not known, or was not asked.

    `idle_share` of the paid device time has no step, at the rate. From `break_even_per_s` problems
    a second on renting costs less than the API, whose price for the same output tokens is
    `api_usd_per_thousand_problems`. It can serve `capacity_per_s`.
    """

    usd_per_million_tokens: Estimate | None = None
    usd_per_thousand_problems: Estimate | None = None
    electricity_usd_per_thousand_problems: Estimate | None = None
    idle_share: Estimate | None = None
    api_usd_per_thousand_problems: Estimate | None = None
    break_even_per_s: Estimate | None = None
    capacity_per_s: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Accounts(Record):
    """The costs of both picks, and the prices that were given."""

    tariff: Tariff
    system_optimal: Costs | None
    compute_optimal: Costs | None

    @property
    def known(self) -> bool:
        """Whether anything is known of either pick."""
        picks = (self.system_optimal, self.compute_optimal)
        return any(value is not None for each in picks if each for value in vars(each).values())


def accounts_of(advisor: Advisor, answer: Recommendation, tariff: Tariff) -> Accounts:
    """Return what the picks of an answer that this advisor gave cost.

    Raises UsageError for a price of energy where none was recorded, and for one of an API where
    devices have none.
    """
    check = advisor.check(answer.budget)
    if tariff.kwh_price is not None and not check.metrics.powered.any():
        raise UsageError(f"--kwh-price: {NO_POWER}")
    if tariff.api_price is not None and not np.isfinite(check.price).any():
        raise UsageError(
            "--api-price is compared with what devices cost. Give --price, such as --price 2.5 "
            "per device-hour"
        )

    def of(pick: Pick | None) -> Costs | None:
        return None if pick is None else _costs(advisor, check, pick, tariff)

    return Accounts(
        tariff=tariff,
        system_optimal=of(answer.system_optimal),
        compute_optimal=of(answer.compute_optimal),
    )


def _costs(advisor: Advisor, check: ReplayedCheck, pick: Pick, tariff: Tariff) -> Costs:
    metrics = check.metrics
    (space_row,) = advisor.space.rows_of(pick.engine, pick.policy)
    row = metrics.place[space_row]
    replayed, resampling = metrics.replayed[row], metrics.resampling

    costs = dict[str, Estimate | None]()

    def value(name: str) -> float:
        return float(metrics.values(name)[row])

    def add(
        name: str, unit: str, of: Callable[[Callable[[str], Any]], Any], *, exact: bool = False
    ) -> None:
        """Add what is worked out by `of` from metrics by their name: values, or their draws."""
        known = float(of(value))
        if not np.isfinite(known):
            return

        def ends(which: Of) -> Interval:
            drawn = of(lambda name: metrics.draws(name, np.array([row]), of=which)[0])
            return resampling.interval(known, drawn, unit)

        costs[name] = Estimate.predicted(
            known,
            unit,
            fresh=ends("fresh"),
            others=ends("others"),
            of="others",
            runs=len(replayed.candidate.pool.runs) if exact else replayed.law.runs,
            extrapolated=not exact and replayed.extrapolated,
        )

    price = check.price_of(row)
    if price is not None:
        per_s = price / 3600
        add("usd_per_million_tokens", "USD", lambda of: of("device_s") * per_s / of("tokens") * 1e6)
        add("usd_per_thousand_problems", "USD", lambda of: of("device_s") * per_s * 1e3)
    if (per_joule := tariff.usd_per_joule) is not None:
        factor = 1e3 * per_joule
        add("electricity_usd_per_thousand_problems", "USD", lambda of: of("energy_j") * factor)
    if metrics.rate_per_s is not None and replayed.keeps_up:
        add("idle_share", "1", lambda of: np.clip(1 - of("busy_s") / of("device_s"), 0, 1))
    if tariff.api_price is not None:
        api = tariff.api_price / 1e6
        add("api_usd_per_thousand_problems", "USD", lambda of: of("tokens") * api * 1e3, exact=True)
        if price is not None:
            rent_per_s = float(metrics.devices[row]) * price / 3600
            add("break_even_per_s", "problems/s", lambda of: rent_per_s / (of("tokens") * api),
                exact=True)  # fmt: skip
            capacity = advisor.replays.capacity_per_s(space_row)
            costs["capacity_per_s"] = resampling.estimate(
                capacity,
                capacity / metrics.loads[row],
                "problems/s",
                runs=replayed.law.runs,
                extrapolated=replayed.extrapolated,
            )
    return Costs(**costs)
