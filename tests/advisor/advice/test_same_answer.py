"""An answer does not depend on what was asked before; rates and device time agree with latency."""

import pytest

from traces.schema.advice import Budget

pytestmark = pytest.mark.slow

BUDGETS = [
    Budget(min_accuracy=0.6),
    Budget(min_accuracy=0.7, optimise="cost"),
    Budget(optimise="accuracy"),
    Budget(min_accuracy=0.5, max_gpus=4, optimise="throughput"),
    Budget(min_accuracy=0.99, max_latency_s=0.01),
    Budget(min_accuracy=0.5, rate_per_s=2.0),
]


@pytest.fixture(scope="module")
def seasoned(fresh_advisor):
    """An advisor that was asked every budget."""
    advisor = fresh_advisor()
    for budget in BUDGETS:
        advisor.recommend(budget)
    return advisor


@pytest.mark.parametrize("budget", BUDGETS[1::2])
def test_other_budgets_before_change_nothing(fresh_advisor, seasoned, budget):
    assert seasoned.recommend(budget).to_json() == fresh_advisor().recommend(budget).to_json()


def picks_of(answer):
    found = [answer.system_optimal, answer.compute_optimal, *answer.pareto, *answer.equals]
    return [pick for pick in found if pick is not None]


def test_replicas_serve_no_more_than_what_is_in_flight(seasoned):
    """Little's law: at most so many are in flight, fewer at the end; idle devices are paid for."""
    advisor = seasoned
    in_flight = advisor.evidence.load[0]
    picks = [
        pick
        for most in (1, 2, 8)
        for goal in ("throughput", "cost", "latency")
        for pick in picks_of(advisor.recommend(Budget(max_gpus=most, optimise=goal)))
    ]
    several = [pick for pick in picks if pick.engine.data_parallel_size > 1]
    assert several
    for pick in several:
        latency = pick.estimates["latency_s"].value
        served = pick.estimates["throughput_problems_per_s"].value
        assert 0.6 * in_flight < served * latency < 1.01 * in_flight
        paid = pick.estimates["device_s"].value
        assert paid == pytest.approx(pick.engine.num_devices / served)
    for pick in picks:
        if pick.engine.data_parallel_size == 1:
            served = pick.estimates["throughput_problems_per_s"].value
            assert served * pick.estimates["latency_s"].value == pytest.approx(in_flight, rel=0.2)


def test_more_devices_are_never_said_to_serve_fewer(seasoned):
    advisor = seasoned
    served = [
        advisor.recommend(Budget(max_gpus=most, optimise="throughput"))
        .system_optimal.estimates["throughput_problems_per_s"]
        .value
        for most in (1, 2, 4, 8)
    ]
    assert served == sorted(served)


def test_at_a_rate_that_is_kept_up_with_it_is_the_throughput(seasoned):
    advisor = seasoned
    capacity = max(outcome.capacity_per_s for outcome in advisor.metrics(None).replayed)
    rate = 0.8 * capacity
    answer = advisor.recommend(Budget(rate_per_s=rate, optimise="cost"))
    pick = answer.system_optimal
    served = pick.estimates["throughput_problems_per_s"]
    assert pick.probability_within_budget >= 0.9
    assert served.value == pytest.approx(rate)
    if pick.probability_within_budget > 0.95:
        assert served.low == pytest.approx(rate)
    assert served.high == pytest.approx(rate)


def test_the_nearest_is_the_best_that_meets_the_other_limits(seasoned):
    advisor = seasoned
    fastest = advisor.recommend(Budget(optimise="latency")).system_optimal
    limit = 3 * fastest.estimates["latency_s"].value
    best = advisor.recommend(Budget(max_latency_s=limit, optimise="accuracy")).system_optimal
    answer = advisor.recommend(Budget(max_latency_s=limit, min_accuracy=0.999))
    assert answer.system_optimal is None
    (near,) = (miss for miss in answer.near_misses if miss.limit == "min_accuracy")
    assert near.nearest.value >= best.estimates["accuracy"].value - 0.02
