"""What would change the answer: the limits, rates and prices at which another pick comes up.

A candidate meets a limit up to a value that its draws tell (`Question.needed`). Tightened, the pick
drops out at its own value, which is exact. Loosened, the first replayed candidate that is better
comes in; one that was not replayed for this budget may come in earlier, so that the value holds at
the latest, as prices do. Rates are tried in closed form, where that has the same pick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from advisor.advice.feasible import Question
from advisor.advice.reasons import name_of, name_without_limits
from traces.schema.advice import Turning

UNITS = {
    "min_accuracy": "1",
    "max_latency_s": "s",
    "max_device_s": "device-s",
    "max_cost_usd": "USD",
    "max_energy_j": "J",
}


DOUBLINGS, HALVINGS = 4, 5  # of the rate until the pick changes, and of where it does


def turnings(
    question: Question, system: int, at_rate: Callable[[float], str | None] | None
) -> Iterator[Turning]:
    """Yield the values at which the pick changes, a limit's tightening before its loosening.

    `at_rate` tells the closed form's pick at a rate; None tries no rates.
    """
    for name in question.limits:
        yield from _limit(question, name, system)
    yield from _prices(question, system)
    rate = question.measures.rate_per_s
    if rate is not None and at_rate is not None:
        mine = name_without_limits(question.measures.outcomes[system].candidate)
        if at_rate(rate) == mine:
            yield from _rates(rate, mine, at_rate)


def _rates(rate: float, mine: str, at_rate: Callable[[float], str | None]) -> Iterator[Turning]:
    for factor in (2.0, 0.5):
        near, far = rate, rate
        other: str | None = mine
        for _ in range(DOUBLINGS):
            far = near * factor
            other = at_rate(far)
            if other != mine:
                break
            near = far
        if other == mine:
            continue
        for _ in range(HALVINGS):
            middle = float(np.sqrt(near * far))
            found = at_rate(middle)
            if found == mine:
                near = middle
            else:
                far, other = middle, found
        yield Turning(
            name="rate",
            value=far,
            unit="/s",
            direction="above" if factor > 1 else "below",
            pick=other,
            exact=False,
            replayed=False,
        )


def _limit(question: Question, name: str, system: int) -> Iterator[Turning]:
    limit, cost = question.limits[name], question.cost()
    sign = -1.0 if limit.above else 1.0
    others = [row for row in question.order if question.asked[row] and row != system]
    needed = {row: sign * question.needed(name, row, alone=False) for row in others}
    mine = sign * question.needed(name, system, alone=False)
    tighter, looser = ("above", "below") if limit.above else ("below", "above")
    still = [row for row in others if needed[row] < mine - 1e-9 * abs(mine)]
    fitting = [row for row in still if np.isfinite(cost[row])]
    if np.isfinite(mine):
        yield Turning(
            name=name,
            value=sign * mine,
            unit=UNITS[name],
            direction="above" if tighter == "above" else "below",
            pick=_named(question, fitting[0]) if fitting else None,
        )
    wanted = sign * float(getattr(question.budget, name))
    better = [
        row
        for row in others
        if wanted < needed[row] < np.inf and cost[row] < cost[system] - 1e-9 * abs(cost[system])
    ]
    if better:
        row = min(better, key=lambda each: needed[each])
        yield Turning(
            name=name,
            value=sign * needed[row],
            unit=UNITS[name],
            direction="above" if looser == "above" else "below",
            pick=_named(question, row),
            exact=False,
        )


def _named(question: Question, row: int) -> str:
    return name_of(question.measures.outcomes[row].candidate)


def _prices(question: Question, system: int) -> Iterator[Turning]:
    """Yield the price of the pick's type of device from which another type is cheaper."""
    if question.budget.optimise != "cost" or not question.budget.prices:
        return
    outcomes, device = question.measures.outcomes, question.measures.values("device_s")
    own = outcomes[system].candidate.engine.gpu
    for row in question.order:
        other = outcomes[row].candidate.engine
        price = question.price[row]
        if other.gpu == own or not question.fits[row] or price is None:
            continue
        yield Turning(
            name="price",
            value=float(price * device[row] / device[system]),
            unit=f"USD per device-hour of {own or 'CPU'}",
            direction="above",
            pick=_named(question, int(row)),
            exact=False,
        )
        return
