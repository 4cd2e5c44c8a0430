"""Budgets and plans that cannot be right, or contradict themselves: one clear line each."""

import pytest

from advisor.search.budget import parse_budget
from profiler.sweep.plan import load_plan
from traces.errors import UsageError
from tui.text.advice import advice_lines

BAD = [  # what is given, what the line must hold
    ({"max_latency": "soon"}, "--max-latency soon: is not understood"),
    ({"max_latency": "5 parsecs"}, "Write for example 5s, 250ms or 2min"),
    ({"max_latency": "-1s"}, "must be above 0"),
    ({"max_latency": "5s 3s"}, "is not understood"),
    ({"max_latency": ""}, "is not understood"),
    ({"max_latency": "1e999"}, "must be above 0 and finite"),
    ({"max_latency": "0ms"}, "must be above 0"),
    ({"max_latency": "nan"}, "must be above 0 and finite"),
    ({"max_latency": "5J"}, "--max-latency 5J"),
    ({"max_latency": "5s", "percentile": 100}, "50 to 99"),
    ({"max_latency": "5s", "percentile": 0}, "50 to 99"),
    ({"max_latency": "1s", "percentile": "p9.5"}, "--percentile p9.5: wants 50 to 99"),
    ({"max_latency": "1s", "percentile": True}, "50 to 99"),
    ({"percentile": 95, "optimise": "cost"}, "Give both"),
    ({"max_cost": "cheap"}, "--max-cost cheap"),
    ({"max_cost": "0.01"}, "$0.002 or 0.5s"),
    ({"max_cost": "$-3"}, "must be above 0"),
    ({"max_cost": "$0"}, "must be above 0"),
    ({"max_cost": "3m"}, "--max-cost 3m"),
    ({"max_energy": "5W"}, "800J or 2kJ"),
    ({"max_energy": "0J"}, "must be above 0"),
    ({"max_energy": "2mj"}, "--max-energy 2mj: is not understood"),
    ({"max_energy": "inf"}, "must be above 0 and finite"),
    ({"gpus": 0}, "at least 1"),
    ({"gpus": -4}, "at least 1"),
    ({"min_accuracy": "110%"}, "is above 1"),
    ({"min_accuracy": "80"}, "is above 1"),
    ({"min_accuracy": "0"}, "must be above 0"),
    ({"min_accuracy": "good"}, "0.8 or 80%"),
    ({"rate": "2/day"}, "2/s or 30/min"),
    ({"rate": "0/s"}, "must be above 0"),
    ({"price": "free"}, "wants USD per device-hour above 0"),
    ({"price": float("nan")}, "wants USD per device-hour above 0"),
    ({"price": ["0"]}, "wants USD per device-hour above 0"),
    ({"price": ["H100"]}, "--price H100"),
    ({"price": ["H100=-1"]}, "--price H100=-1"),
    ({"price": ["=2"]}, "names no type of device"),
    ({"price": ["H100=2", "H100=3"]}, "has a price already"),
    ({"price": ["2", "3"]}, "another price"),
    ({"optimise": "everything"}, "one of accuracy, latency"),
    ({"confidence": 1.0}, "between 0 and 1"),
    ({"confidence": 0}, "between 0 and 1"),
    ({"confidence": "90"}, "--confidence 90: wants a share between 0 and 1"),
    ({"confidence": float("nan")}, "between 0 and 1"),
]
CONTRADICTORY = [  # what is given, what is said of it
    ({"max_latency": "1us", "min_accuracy": "50%"}, "no candidate is 90 % sure of --max-latency"),
    ({"max_latency": "35ms", "min_accuracy": "0.8"}, "each alone is met, all together with "),
    ({"max_cost": "2ms", "min_accuracy": "0.5"}, "no candidate is 90 % sure of --max-cost"),
    ({"rate": "100000/s", "min_accuracy": "0.5"}, "no candidate is 90 % sure of --rate"),
    ({"min_accuracy": "99.99%"}, "no candidate is 90 % sure of --min-accuracy"),
    ({"max_cost": "$0.000001", "price": "2.5", "gpus": 1},
     "no candidate is 90 % sure of --max-cost"),
]  # fmt: skip
PLANS = [
    ("engines: []", "needs a list named engines"),
    ("engines: [{max_num_seqs: 4}]", "needs a model"),
    ("engines: [{model: demo/s}]", "needs policies"),
    ("engines: [{model: demo/s, policies: [{method: guess}]}]", "no method 'guess'"),
    ("engines: [{model: demo/s, gpus: 2, policies: [{n: 4}]}]", "no EngineOptions field 'gpus'"),
    ("budget: 5s\nengines: [{model: demo/s}]", "no field 'budget'"),
    ("engines: [{model: demo/s, policies: [{method: greedy, n: 4}]}]", "greedy draws one sample"),
    ("engines: [{", "not YAML"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_a_bad_budget_is_one_line_with_the_mend(given, message):
    with pytest.raises(UsageError) as caught:
        parse_budget(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), PLANS)
def test_a_bad_plan_is_one_line(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_plan(tmp_path / "plan.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("given", "message"), CONTRADICTORY)
def test_limits_that_contradict_are_said_to_with_what_they_would_take(fresh, given, message):
    budget = parse_budget(given)
    answer = fresh.recommend(budget)
    assert answer.system_optimal is None
    assert any(message in reason for reason in answer.reasons), answer.reasons
    wanted = set(budget.limits()) | ({"rate"} if "rate" in given else set())
    assert {miss.limit for miss in answer.near_misses} == wanted
    text = "\n".join(advice_lines(answer))
    assert text.startswith("Nothing fits")
    assert text.count("wanted") == len(answer.missed)


def test_a_price_of_a_device_that_was_not_recorded_is_refused(fresh):
    with pytest.raises(UsageError, match="no engine here runs on such a device"):
        fresh.recommend(parse_budget({"price": ["H100=2.5"], "optimise": "cost"}))
