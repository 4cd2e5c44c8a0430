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
        ("max_latency", "1e3 ms", 1), ("max_cost", "0.5s", 0.5),
    ],
)  # fmt: skip
def test_times(option, text, seconds):
    budget = parse_budget({option: text})
    assert (budget.max_latency_s or budget.max_device_s) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["95", "p95", "P95", "95%", "0.95", 95])
def test_percentiles(text):
    assert parse_budget({"percentile": text, "max_latency": "1s"}).latency_percentile == 95


@pytest.mark.parametrize("text", ["0.9", "90%", "90 %", ".9", 0.9])
def test_confidence(text):
    assert parse_budget({"confidence": text}).confidence == pytest.approx(0.9)


def test_nothing_given_is_no_limit():
    assert parse_budget({}).limits() == {}
    assert parse_budget({"max_cost": "0.002usd"}).max_cost_usd == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"max_latency": "banana"}, "--max-latency banana: is not understood"),
        ({"max_latency": "nan"}, "must be above 0 and finite"),
        ({"max_latency": "inf"}, "must be above 0 and finite"),
        ({"max_latency": "-5s"}, "must be above 0"),
        ({"max_latency": "0"}, "must be above 0"),
        ({"max_latency": "1e999"}, "must be above 0 and finite"),
        ({"max_latency": "5 parsecs"}, "for example 5s, 250ms or 2min"),
        ({"max_latency": ""}, "is not understood"),
        ({"max_cost": "0.002"}, r"Write for example \$0.002 or 0.5s"),
        ({"max_energy": "5s"}, "--max-energy 5s"),
        ({"max_energy": "2mj"}, "--max-energy 2mj: is not understood"),
        ({"min_accuracy": "1.2"}, "above 1"),
        ({"min_accuracy": "150%"}, "above 1"),
        ({"rate": "2"}, None),
        ({"rate": "fast"}, "--rate fast"),
        ({"percentile": 100, "max_latency": "1s"}, "50 to 99"),
        ({"percentile": "p9.5", "max_latency": "1s"}, "--percentile p9.5: wants 50 to 99"),
        ({"percentile": True, "max_latency": "1s"}, "50 to 99"),
        ({"confidence": "90"}, "--confidence 90: wants a share between 0 and 1"),
        ({"gpus": 0}, "at least 1"),
        ({"price": float("nan")}, "--price"),
        ({"price": -1}, "--price"),
        ({"optimise": "speed"}, "one of accuracy, latency"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"confidence": float("nan")}, "between 0 and 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(given_, message):
    if message is None:
        parse_budget(given_)
        return
    with pytest.raises(UsageError, match=message) as caught:
        parse_budget(given_)
    assert "\n" not in str(caught.value)


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
    with pytest.raises(UsageError, match="L4=0.7: no recorded engine runs on such a device"):
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
