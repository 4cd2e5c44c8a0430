"""Nothing fits: the limit that is missed is named as an option, with what it would take."""

import dataclasses
import re

import pytest

from advisor.advice.advisor import Advisor
from advisor.advice.reasons import _enough
from advisor.search.budget import parse_budget
from tests.advisor import synthetic
from tests.advisor.synthetic import GREEDY, engine_of, record
from tui.text.advice import advice_json, advice_lines, fits, nearest_line

FIELDS = {
    "--max-latency": "max_latency_s",
    "--max-cost": "max_device_s",
    "--min-accuracy": "min_accuracy",
}
BUDGETS = [
    {"max_latency": "1us", "min_accuracy": "50%"},
    {"max_latency": "35ms", "min_accuracy": "0.8"},
    {"max_latency": "1s", "min_accuracy": "0.999", "max_cost": "1ms"},
    {"max_latency": "1us", "max_cost": "9s", "min_accuracy": "0.999"},
    {"max_latency": "30ms", "percentile": 90, "min_accuracy": "0.6"},
]


@pytest.mark.slow
@pytest.mark.parametrize("given", BUDGETS)
def test_what_a_limit_would_have_to_be_is_looser_and_enough(fresh, given):
    """A budget with the value that is said has an answer, where the candidate would then fit."""
    budget = parse_budget(given)
    answer = fresh.recommend(budget)
    assert answer.system_optimal is None
    said = re.findall(
        r"(--[a-z-]+) would have to be (\d+(?:\.\d+)?).*\. Then .* (surely meets it|fits)",
        "\n".join(answer.reasons),
    )
    assert said
    for option, told, end in said:
        name = FIELDS[option]
        wanted, value = getattr(budget, name), float(told)
        assert value < wanted if name == "min_accuracy" else value > wanted
        loose = dataclasses.replace(budget, **{name: value})
        if end == "fits":
            assert fresh.recommend(loose).system_optimal is not None
        alone = {each: None for each in budget.limits() if each not in (name, "latency_percentile")}
        assert fresh.recommend(dataclasses.replace(loose, **alone)).system_optimal is not None


@pytest.mark.parametrize("given", BUDGETS)
def test_a_limit_that_is_met_is_not_named_as_missed(fresh, given):
    answer = fresh.recommend(parse_budget(given))
    line = nearest_line(answer)
    missed = {miss.limit for miss in answer.near_misses if miss.sure < 0.9}
    (option,) = re.findall(r"--[a-z-]+", line)
    assert FIELDS[option] in missed
    for miss in answer.near_misses:
        assert 0 <= miss.pick.probability_within_budget <= miss.sure <= 1


def test_the_line_names_the_option_and_the_unit(fresh):
    """The accuracy is met by some, the latency by none, so that it is the latency that is told."""
    answer = fresh.recommend(parse_budget({"max_latency": "1us", "min_accuracy": "0.5"}))
    assert answer.system_optimal is None and advice_json(answer)["system_optimal"] is None
    assert answer.candidates == sum(answer.infeasible.values())
    assert re.match(
        r"nearest to --max-latency 1 us \(mean\) is \d\d\.\d ms by small with .*\d+ sample",
        nearest_line(answer),
    )
    misses = {miss.limit: miss for miss in answer.near_misses}
    assert misses["min_accuracy"].sure >= 0.9 > misses["max_latency_s"].sure
    assert misses["max_latency_s"].wanted == 1e-6 < misses["max_latency_s"].nearest.value
    assert any("--max-latency would have to be" in reason for reason in answer.reasons)
    text = " ".join(" ".join(advice_lines(answer)).split())
    assert text.startswith("Nothing fits the budget: mean latency of at most 1 us, accuracy of")
    assert "mean latency: wanted 1 us, nearest" in text
    assert "--min-accuracy would have to be" not in text
    assert "99 % sure of it" not in text  # what is met is not listed as missed
    assert "Nearest to each limit that is missed" in text
    assert text.count("wanted") == 1


def test_a_value_within_the_limit_that_is_not_sure_enough_says_so(fresh):
    fastest = fresh.recommend(parse_budget({"optimise": "latency"})).system_optimal
    wanted = fastest.estimates["latency_s"].value * 1.001
    line = nearest_line(fresh.recommend(parse_budget({"max_latency": f"{wanted}s"})))
    assert re.search(r"but that is only [1-8]\d % sure, not 90 %$", line), line


def test_a_limit_beyond_the_slowest_of_few_problems_is_met_as_far_as_it_is_beyond(two_models):
    """All of 20 lie below p95 in 36 %, so that 90 % takes a limit above the slowest of them."""
    given = {"percentile": 95, "min_accuracy": "0.3"}
    answer = two_models.recommend(parse_budget(given | {"max_latency": "100s"}))
    pick, assumed = answer.system_optimal, "the slowest of 20 problems does not bound p95"
    assert pick.probability_within_budget >= 0.9 and pick.estimates["latency_p95_s"].high is None
    assert any(each.startswith(assumed) for each in answer.reasons)
    seen = pick.estimates["latency_p95_s"].value
    answer = two_models.recommend(parse_budget(given | {"max_latency": f"{seen * 1.05}s"}))
    assert answer.system_optimal is None
    told = " ".join(answer.reasons)
    (needed,) = re.findall(r"--max-latency would have to be ([\d.]+ m?s) \(p95\)", told)
    loose = parse_budget(given | {"max_latency": needed.replace(" ", "")})
    assert two_models.recommend(loose).system_optimal is not None


@pytest.mark.slow
def test_the_nearest_number_of_devices_is_the_fewest_that_are_enough(two_models):
    """The closed form's nearest do not fit by the replay, so that more are looked at in turn."""
    given = {"rate": "65/s", "gpus": 1, "min_accuracy": "0.7", "optimise": "cost"}
    budget = parse_budget(given)
    answer = two_models.recommend(budget)
    (miss,) = (each for each in answer.near_misses if each.limit == "max_gpus")
    for count in (2, 4, 8):
        more = two_models.recommend(dataclasses.replace(budget, max_gpus=count))
        assert (more.system_optimal is not None) == (count >= miss.nearest.value)


def test_where_nothing_fits_no_candidate_is_counted_as_fitting(two_models):
    """Some fit by the closed form. One that stands for them was replayed, and does not."""
    budget = parse_budget({"rate": "33/s", "gpus": 1, "min_accuracy": "0.7"})
    answer = two_models.recommend(budget)
    assert answer.system_optimal is None
    assert two_models.shortlist(budget).fits.any()
    assert sum(answer.infeasible.values()) == answer.candidates
    assert fits(answer)[0].startswith("0 of ")
    told = "only single engines were asked about"
    assert not any(told in each for each in answer.reasons)
    more = parse_budget({"rate": "36/s", "min_accuracy": "0.7"})  # than any single one can serve
    answer = two_models.recommend(more)
    (hint,) = (each for each in answer.reasons if told in each)
    assert hint.endswith("--gpus 8 offers up to 8 of this one")


def test_an_engine_without_a_price_is_near_no_limit_of_cost(tmp_path):
    """The faster one has no price, so that no limit of cost is ever said to be enough for it."""
    advisor = Advisor.fit(
        [
            record(tmp_path / "cpu", engine_of(), GREEDY, problems=6),
            record(tmp_path / "gpu", engine_of(gpu="h100"), GREEDY, problems=6, drift=-0.5),
        ],
        draws=40,
    )
    for cost, enough in (("$0.0000000001", False), ("$1", True)):
        answer = advisor.recommend(parse_budget({"price": ("CPU=0.05",), "max_cost": cost}))
        assert (answer.system_optimal is not None) == enough
        assert all(miss.pick.engine.gpu is None for miss in answer.near_misses)
        assert len(answer.near_misses) == (not enough)
        assert not any("h100" in str(each.pick) for each in answer.sensitivity)


def test_a_model_that_is_never_right_is_nearest_with_nothing(tmp_path, monkeypatch):
    never = {(level, None): (0.0, 40.0) for level in ("easy", "hard")}
    monkeypatch.setattr(synthetic, "BY_CLASS", never)
    run = record(tmp_path / "wrong", engine_of(), GREEDY, problems=6, classes=True)
    answer = Advisor.fit([run], draws=40).recommend(parse_budget({"min_accuracy": "0.5"}))
    assert answer.system_optimal is None
    (miss,) = answer.near_misses
    assert miss.nearest.value == 0


def test_a_value_is_rounded_to_where_it_is_enough():
    assert _enough(0.080012, above=False) == 0.0801
    assert _enough(0.08, above=False) == 0.08
    assert _enough(1234.5, above=False) == 1240
    assert _enough(0.98699, above=True) == 0.986
