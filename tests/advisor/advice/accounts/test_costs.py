"""Costs as people count them: each number by hand, and intervals of the ratio."""

import dataclasses

import numpy as np
import pytest

from advisor.advice.accounts.costs import Tariff, accounts_of
from advisor.advice.advisor import Advisor
from advisor.evidence.keys import law_key
from advisor.search.budget import parse_budget
from traces.errors import UsageError
from traces.summary.energy import PowerTable
from tui.text.advice import cost_lines

pytestmark = pytest.mark.slow

GIVEN = {"min_accuracy": "0.6", "optimise": "cost", "price": 3.6}  # 0.001 USD a device-second


def accounts(advisor, tariff=None, **more):
    answer = advisor.recommend(parse_budget(GIVEN | more))
    return answer, accounts_of(advisor, answer, tariff or Tariff())


def width(estimate):
    return (estimate.high - estimate.low) / estimate.value


def test_costs_are_those_of_the_estimates(advisor):
    answer, found = accounts(advisor)
    costs, known = found.system_optimal, answer.system_optimal.estimates
    cost, tokens = known["cost_usd"], known["tokens"]
    assert costs.usd_per_thousand_problems.value == pytest.approx(1000 * cost.value)
    assert costs.usd_per_thousand_problems.high == pytest.approx(1000 * cost.high)
    assert costs.usd_per_million_tokens.value == pytest.approx(1e6 * cost.value / tokens.value)
    # Problems that take more tokens cost more: the ratio is surer than its parts taken apart.
    assert width(costs.usd_per_million_tokens) < width(cost) + width(tokens)
    assert costs.idle_share is costs.break_even_per_s is costs.capacity_per_s is None
    assert costs.electricity_usd_per_thousand_problems is None
    unpriced = accounts(advisor, price=None)[1].system_optimal
    assert set(dataclasses.astuple(unpriced)) == {None}
    assert cost_lines(answer, dataclasses.replace(found, system_optimal=unpriced,
                                                  compute_optimal=None)) == []  # fmt: skip


def test_idle_time_is_what_the_rate_leaves(advisor):
    """A problem takes as much of the devices at twice the rate, or less where steps are shared."""
    busy = []
    for rate in (1.0, 2.0):
        answer, found = accounts(advisor, rate=f"{rate}/s")
        share = found.system_optimal.idle_share
        assert 0 <= share.low <= share.value <= share.high <= 1
        busy.append((1 - share.value) * answer.system_optimal.engine.num_devices / rate)
    assert 0.5 * busy[0] < busy[1] < 1.02 * busy[0]


def test_from_the_break_even_rate_on_renting_costs_less(advisor):
    answer, found = accounts(advisor, Tariff(api_price=20.0))
    pick, costs = answer.system_optimal, found.system_optimal
    rate, api = costs.break_even_per_s.value, costs.api_usd_per_thousand_problems.value
    assert api == pytest.approx(pick.estimates["tokens"].value * 20.0 / 1e3)
    rent_per_s = pick.engine.num_devices * 3.6 / 3600
    for factor, cheaper in ((0.9, False), (1.1, True)):
        assert (1000 * rent_per_s / (rate * factor) < api) is cheaper
    assert costs.break_even_per_s.low < rate < costs.break_even_per_s.high
    dear = accounts(advisor, Tariff(api_price=40.0))[1].system_optimal
    assert dear.break_even_per_s.value == pytest.approx(rate / 2)
    assert costs.capacity_per_s.value > 0
    text = " ".join(" ".join(cost_lines(answer, found)).split())
    assert "prompts not counted" in text and "renting costs less from" in text
    within = rate <= costs.capacity_per_s.value
    assert ("--rate says" in text) is within
    cheap = accounts(advisor, Tariff(api_price=1e-6))
    assert "cannot serve so many" in " ".join(" ".join(cost_lines(*cheap)).split())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"kwh_price": 0.0}, "--kwh-price 0: wants USD above 0"),
        ({"api_price": -1.0}, "--api-price -1: wants"),
        ({"api_price": float("nan")}, "--api-price nan: wants"),
        ({"kwh_price": 0.2, "pue": 0.9}, "--pue 0.9: wants a number from 1"),
        ({"pue": 1.2}, "--pue goes with --kwh-price"),
    ],
)
def test_prices_that_are_none_are_refused(given, reason):
    with pytest.raises(UsageError, match=reason):
        Tariff(**given)


def test_what_nothing_is_known_of_is_refused(advisor):
    with pytest.raises(UsageError, match="no recording holds power"):
        accounts(advisor, Tariff(kwh_price=0.2))
    with pytest.raises(UsageError, match="Give --price"):
        accounts(advisor, Tariff(api_price=1.0), price=None)


def test_electricity_is_joules_times_pue_times_price(advisor):
    amounts = np.column_stack([np.ones(40), np.tile([0.0, 1.0], 20), np.tile([0.0, 4.0], 20)])
    steady = PowerTable(amounts=amounts, joules=np.full(40, 500.0))
    keys = {law_key(kind.engine) for kind in advisor.space.kinds}
    evidence = dataclasses.replace(advisor.evidence, power={key: [steady] for key in keys})
    advisor = Advisor.of(evidence, model=advisor.model, draws=40)
    answer, found = accounts(advisor, Tariff(kwh_price=0.18, pue=1.25))
    joules = answer.system_optimal.estimates["device_s"].value * 500
    expected = 1000 * joules / 3.6e6 * 1.25 * 0.18
    assert found.system_optimal.electricity_usd_per_thousand_problems.value == pytest.approx(
        expected
    )
    text = " ".join(" ".join(cost_lines(answer, found)).split())
    assert "$0.18 per kWh and a PUE of 1.25" in text
