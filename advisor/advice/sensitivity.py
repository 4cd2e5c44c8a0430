"""What would change the answer: the limits, rates and prices at which another pick comes up.

Where a limit is tightened, the pick drops out at the value that it needs (`BudgetCheck.needed`),
which is exact. Where it is loosened, the first replayed candidate that is better comes in, and one
that was not replayed may come in earlier. Rates are tried in closed form, where that has the same
pick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from advisor.advice.feasible import ReplayedCheck
from advisor.advice.reasons import name_of
from traces.schema.advice import Turning
from traces.schema.quantities import limited
from traces.statistics import ROUNDING, tied

DOUBLINGS, HALVINGS = 4, 5  # of the rate until the pick changes, and of where it does


def turnings(
    check: ReplayedCheck, system: int, at_rate: Callable[[float], str | None] | None
) -> Iterator[Turning]:
    """Yield the values at which the pick changes, a limit's tightening before its loosening.

    `at_rate` gives the closed form's pick at a rate; None tries no rates.
    """
    for field in check.limits:
        if field not in ("max_gpus", "rate"):
            yield from _limit(check, field, system)
    yield from _prices(check, system)
    rate = check.metrics.rate_per_s
    if rate is not None and at_rate is not None:
        pick = name_of(check.metrics.candidate(system), limits=False)
        if at_rate(rate) == pick:
            yield from _rates(rate, pick, at_rate)


def _rates(rate: float, pick: str, at_rate: Callable[[float], str | None]) -> Iterator[Turning]:
    for factor in (2.0, 0.5):
        near, far = rate, rate
        other: str | None = pick
        for _ in range(DOUBLINGS):
            far = near * factor
            other = at_rate(far)
            if other != pick:
                break
            near = far
        if other == pick:
            continue
        for _ in range(HALVINGS):
            middle = float(np.sqrt(near * far))
            there = at_rate(middle)
            if there == pick:
                near = middle
            else:
                far, other = middle, there
        yield Turning(
            name="rate",
            value=far,
            unit="/s",
            direction="above" if factor > 1 else "below",
            pick=other,
            exact=False,
            replayed=False,
        )


def _limit(check: ReplayedCheck, field: str, system: int) -> Iterator[Turning]:
    limit, cost = check.limits[field], check.cost
    sign = -1.0 if limit.above else 1.0
    unit = limited(field).unit
    name = name_of(check.metrics.candidate(system))
    asked = [row for row in check.order if check.asked[row]]
    limits = np.array([sign * check.needed(field, row, alone=False) for row in asked])
    needed = dict(zip(asked, tied(limits).tolist(), strict=True))
    # What differs in a limit that no name tells is the pick to who reads it.
    alike = [row for row in asked if name_of(check.metrics.candidate(row)) == name]
    others = [row for row in asked if row not in alike]
    least = min(needed[row] for row in {system, *alike} if np.isfinite(cost[row]))
    fitting = [
        row
        for row in others
        if needed[row] < least - ROUNDING * abs(least) and np.isfinite(cost[row])
    ]
    if np.isfinite(least):
        yield Turning(
            name=field,
            value=sign * least,
            unit=unit,
            direction="above" if limit.above else "below",
            pick=name_of(check.metrics.candidate(fitting[0])) if fitting else None,
        )
    wanted = sign * check.budget.limits()[field]
    better = [
        row
        for row in others
        if wanted < needed[row] < np.inf and cost[row] < cost[system] - ROUNDING * abs(cost[system])
    ]
    if better:
        row = min(better, key=lambda other: needed[other])
        yield Turning(
            name=field,
            value=sign * needed[row],
            unit=unit,
            direction="below" if limit.above else "above",
            pick=name_of(check.metrics.candidate(row)),
            exact=False,
        )


def _prices(check: ReplayedCheck, system: int) -> Iterator[Turning]:
    """Yield the price of the pick's type of device from which another type is cheaper."""
    if check.budget.goal != "cost" or not check.budget.prices:
        return
    device = check.metrics.values("device_s")
    engines = [replayed.candidate.engine for replayed in check.metrics.replayed]
    gpu = engines[system].gpu
    for row in check.order:
        price = check.price_of(row)
        if engines[row].gpu == gpu or not check.fits[row] or price is None:
            continue
        yield Turning(
            name="price",
            value=float(price * device[row] / device[system]),
            unit=f"USD per device-hour of {gpu or 'CPU'}",
            direction="above",
            pick=name_of(check.metrics.candidate(row)),
            exact=False,
        )
        return
