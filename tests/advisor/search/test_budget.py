from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.search.budget import Prices, parse_budget
from traces.errors import UsageError
from traces.schema.engine import EngineConfig


def test_units_people_write():
    budget = parse_budget(
        {
            "max_latency": "250ms", "percentile": 95, "max_cost": "$0.002", "max_energy": "2kJ",
            "gpus": 4, "min_accuracy": "80%", "rate": "30/min", "price": 2.5, "optimise": "cost",
            "confidence": 0.8,
        }
    )  # fmt: skip
    assert budget.max_latency_s == pytest.approx(0.25)
    assert budget.max_cost_usd == pytest.approx(0.002)
    assert budget.max_energy_j == 2000
    assert budget.min_accuracy == pytest.approx(0.8)
    assert budget.rate_per_s == pytest.approx(0.5)
    assert (budget.latency_percentile, budget.max_gpus) == (95, 4)
    assert (budget.optimise, budget.confidence) == ("cost", 0.8)


@pytest.mark.parametrize(
    ("option", "text", "seconds"),
    [
        ("max_latency", "5s", 5), ("max_latency", "2min", 120), ("max_latency", "1.5", 1.5),
        ("max_latency", "1e3 ms", 1), ("max_cost", "0.5s", 0.5), ("rate", "2", 2),
    ],
)  # fmt: skip
def test_times_and_rates(option, text, seconds):
    budget = parse_budget({option: text})
    found = budget.max_latency_s or budget.max_device_s or budget.rate_per_s
    assert found == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("given", "goal"),
    [
        ({"max_latency": "5s"}, "accuracy"), ({"max_cost": "0.5s"}, "accuracy"),
        ({"max_energy": "5J"}, "accuracy"), ({"max_latency": "5s", "gpus": 2}, "accuracy"),
        ({"max_latency": "5s", "min_accuracy": "0.8"}, "latency"), ({"gpus": 2}, "latency"),
        ({"min_accuracy": "0.8"}, "latency"), ({"rate": "2/s"}, "latency"), ({}, "latency"),
        ({"max_latency": "5s", "optimise": "latency"}, "latency"),
        ({"max_latency": "5s", "optimise": "cost"}, "cost"),
    ],
)  # fmt: skip
def test_within_limits_on_what_is_spent_alone_accuracy_is_optimised(given, goal):
    budget = parse_budget(given)
    assert budget.goal == budget.settled(judged=True).optimise == goal
    unjudged = budget.settled(judged=False).optimise  # where nobody knows what is right
    assert unjudged == given.get("optimise", "latency")


@pytest.mark.parametrize("text", ["95", "p95", "P95", "95%", "0.95", 95])
def test_percentiles(text):
    assert parse_budget({"percentile": text, "max_latency": "1s"}).latency_percentile == 95


@pytest.mark.parametrize("text", ["0.9", "90%", "90 %", ".9", 0.9])
def test_confidence(text):
    assert parse_budget({"confidence": text}).confidence == pytest.approx(0.9)


def test_nothing_given_is_no_limit():
    assert parse_budget({}).limits() == {}
    assert parse_budget({"max_cost": "0.002usd"}).max_cost_usd == pytest.approx(0.002)


@pytest.mark.slow
@given(st.text(max_size=12), st.sampled_from(["max_latency", "max_cost", "min_accuracy", "rate"]))
def test_any_text_is_parsed_or_refused(text, option):
    try:
        budget = parse_budget({option: text})
    except UsageError:
        return
    assert all(0 < value < float("inf") for value in budget.limits().values())


def test_a_device_has_the_price_of_its_own_type():
    given = ["A10=0.75", "A100=1.8", "L4=0.7", "H100=3", "H100 PCIe=2", "H20=1"]
    prices = Prices(parse_budget({"price": given}), None)
    expected = {
        "NVIDIA A10": 0.75, "NVIDIA A100-SXM4-80GB": 1.8, "NVIDIA A10G": None, "NVIDIA L4": 0.7,
        "NVIDIA L40S": None, "NVIDIA H100 PCIe": 2.0, "NVIDIA H100 80GB HBM3": 3.0,
        "NVIDIA H200": None, None: None,
    }  # fmt: skip
    engines = {gpu: EngineConfig(model="m", gpu=gpu) for gpu in expected}
    assert {gpu: prices.of(engine) for gpu, engine in engines.items()} == expected
    with pytest.raises(UsageError, match="L4=0.7: no engine here runs on such a device"):
        Prices(parse_budget({"price": "L4=0.7"}), None).check([engines["NVIDIA L40S"]])


def test_a_run_has_the_price_of_the_answer_and_its_own_where_that_has_none():
    def price(given, recorded, gpu="L4", own=3.0, gpus=("L4",)):
        run = SimpleNamespace(
            engine=EngineConfig(model="m", gpu=gpu), price_usd_per_device_hour=own
        )
        return Prices(parse_budget({"price": given}), recorded, frozenset(gpus)).of_run(run)

    assert price(None, 2.0) == price(None, 2.0, own=None) == 2.0
    assert price(None, None) == price(None, 2.0, gpu="A10") == 3.0
    assert price("1", 2.0) == 1.0
    assert price("A10=1", 2.0) is None is price(None, None, own=None)


@pytest.mark.parametrize(("text", "joules"), [("2MJ", 2e6), ("2mJ", 2e-3), ("2KJ", 2e3)])
def test_a_million_joules_is_no_thousandth_of_one(text, joules):
    assert parse_budget({"max_energy": text}).max_energy_j == pytest.approx(joules)
