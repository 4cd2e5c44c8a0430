import dataclasses
from typing import get_args

import pytest

from traces.schema.advice import Budget, Objective
from traces.schema.quantities import (
    GATES,
    LIMITS,
    QUANTITIES,
    latency,
    limited,
    objective,
    quantity,
    which_latency,
)


def test_every_quantity_is_named_once():
    for field in ("name", "tag"):
        keys = [getattr(each, field) for each in QUANTITIES]
        assert len(keys) == len(set(keys))
    for each in QUANTITIES:
        assert quantity(each.name) is quantity(each.tag) is each
        assert each.unit
        assert each.meaning.endswith(".")


def test_a_percentile_of_latency_is_a_quantity():
    p90 = quantity("latency_p90_s")
    assert (p90.noun, p90.title, p90.unit) == ("p90 latency", "latency p90", "s")
    assert latency(95) == quantity("latency_s.p95")
    assert latency().name == "latency_s"
    with pytest.raises(KeyError):
        quantity("speed")


def test_every_limit_and_objective_of_a_budget_has_a_quantity():
    fields = {field.name for field in dataclasses.fields(Budget)} | {"rate"}
    assert set(LIMITS) <= fields
    assert set(Budget(required=False).limits()) <= set(LIMITS)
    assert {field for field, limit in LIMITS.items() if limit.at_least} == {"min_accuracy", "rate"}
    assert limited("max_latency_s", 90).noun == "p90 latency"
    assert limited("max_cost_usd").unit == "USD"
    assert [which_latency("max_latency_s", each) for each in (None, 95)] == [" (mean)", " (p95)"]
    assert which_latency("max_cost_usd", 95) == ""
    for name in get_args(Objective):
        highest = name in ("accuracy", "throughput")
        assert objective(name, 95).higher_is_better == highest
    assert objective("latency", 95).name == "latency_p95_s"


def test_gates_name_what_runs_have():
    assert GATES["p95"].tag == "latency_s.p95"
    assert GATES["latency"] is GATES["mean"]
    assert GATES["energy"].tag == "energy_j.per_problem"
