import json
import shlex

import pytest

from advisor.budget import parse_budget
from tui.advice_text import advice_json, advice_lines

BUDGETS = [
    {},
    {"min_accuracy": "0.75"},
    {"min_accuracy": "0.75", "optimise": "cost", "price": 3.0},
    {"max_latency": "100ms", "percentile": 90, "optimise": "accuracy"},
    {"max_latency": "1us", "min_accuracy": "99%", "gpus": 1},
    {"rate": "2/s", "min_accuracy": "0.5"},
    {"rate": "100000/s"},
]


@pytest.mark.parametrize("given", BUDGETS)
@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_width(advisor, given, width):
    lines = advice_lines(advisor.recommend(parse_budget(given)), width=width)
    assert max(map(len, lines)) <= width
    assert lines[0].startswith(("RUN ", "NOTHING FITS "))


def test_the_command_can_be_pasted(advisor):
    answer = advisor.recommend(parse_budget({"min_accuracy": "0.75"}))
    lines = advice_lines(answer)
    start = lines.index("") + 1
    stop = next(i for i in range(start, len(lines)) if not lines[i].endswith("\\"))
    pasted = "\n".join(lines[start : stop + 1]).replace("\\\n", " ")
    assert shlex.split(pasted) == shlex.split(answer.system_optimal.command)


def test_the_document_is_the_contract(advisor):
    answer = advisor.recommend(parse_budget({"min_accuracy": "0.75", "max_latency": "1s"}))
    document = json.loads(json.dumps(advice_json(answer), allow_nan=False))
    assert list(document) == [
        "budget",
        "system_optimal",
        "compute_optimal",
        "regret",
        "pareto",
        "reasons",
        "near_misses",
        "measure_next",
        "candidates",
        "infeasible",
    ]
    pick = document["system_optimal"]
    assert set(pick) == {"engine", "policy", "command", "estimates", "probability_within_budget"}
    assert set(pick["estimates"]["accuracy"]) == {"value", "low", "high", "unit", "extrapolated"}
    assert pick["estimates"]["energy_j"] is None
    assert document["budget"]["max_latency_s"] == 1.0


def test_nothing_fits_names_the_nearest(advisor):
    answer = advisor.recommend(parse_budget({"max_latency": "1us", "min_accuracy": "0.5"}))
    text = "\n".join(advice_lines(answer))
    assert text.startswith("NOTHING FITS latency <= 1e-06 s, accuracy >= 0.5.")
    assert "latency: wanted 1e-06 s, nearest" in text
    assert advice_json(answer)["system_optimal"] is None


def test_a_price_shows_dollars_and_none_does_not(advisor):
    plain = "\n".join(advice_lines(advisor.recommend(parse_budget({}))))
    priced = "\n".join(advice_lines(advisor.recommend(parse_budget({"price": 3.0}))))
    assert "$" not in plain
    assert "cost a problem" in priced and "$" in priced
