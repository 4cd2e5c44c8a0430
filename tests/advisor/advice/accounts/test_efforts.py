"""The map of efforts: which one, for all problems and for each class, from the same replays."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from advisor.advice.accounts.efforts import effort_map
from advisor.advice.advisor import Advisor
from advisor.search.budget import parse_budget
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.summary.run import to_plain

pytestmark = pytest.mark.slow

LOW = dataclasses.replace(VOTE16, n=2, reasoning_effort="low", max_tokens=40)
HIGH = dataclasses.replace(VOTE16, reasoning_effort="high")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An advisor of two efforts, and how often the samples of each problem are right."""
    folder = tmp_path_factory.mktemp("efforts")
    recordings = [
        record(folder / policy.reasoning_effort, engine_of("large"), policy, problems=60)
        for policy in (LOW, HIGH)
    ]
    rows = recordings[1].samples.group_by("problem_id").agg(right=pl.col("correct").mean())
    return Advisor.fit(recordings), dict(rows.iter_rows()), recordings


def mapped(made, groups=None, **given):
    advisor, _, _ = made
    budget = parse_budget(given)
    answer = advisor.recommend(budget)
    return answer, effort_map(advisor, budget, answer.system_optimal, groups or {})


def used(efforts):
    return [each for each in efforts if each.use]


def test_it_uses_the_effort_of_the_pick(made):
    for accuracy in ("0.5", "0.85"):
        answer, found = mapped(made, min_accuracy=accuracy)
        (chosen,) = used(found.efforts)
        assert chosen.policy == answer.system_optimal.policy
        assert chosen.estimates["accuracy"] == answer.system_optimal.estimates["accuracy"]
        assert {each.reasoning_effort for each in found.efforts} == {"low", "high"}
        assert found.classes == {} and found.left_out == 0
    assert chosen.reasoning_effort == "high"  # two samples are not accurate enough
    low = next(each for each in found.efforts if each.reasoning_effort == "low")
    assert low.probability_within_budget < 0.9


def test_cut_answers_are_those_as_long_as_allowed(made):
    _, found = mapped(made, min_accuracy="0.5")
    shares = {each.reasoning_effort: each.cut_share for each in found.efforts}
    lengths = made[2][0].samples["output_tokens"]
    assert 0.1 < (lengths >= 40).mean() < 0.9
    assert shares["low"].value == pytest.approx((lengths >= 40).mean())
    assert shares["high"].value == 0 < shares["high"].high < 0.1


def test_classes_are_judged_by_their_own_problems(made):
    _, right, _ = made
    order = sorted(right, key=right.get)
    groups = dict.fromkeys(order[:25], "hard") | dict.fromkeys(order[25:55], "easy")
    groups |= dict.fromkeys(order[55:58], "rare")  # two have none
    _, found = mapped(made, groups, min_accuracy="0.5", optimise="latency")
    assert {name: each.problems for name, each in found.classes.items()} == {"easy": 30, "hard": 25}
    assert found.left_out == 5
    for name, each in found.classes.items():
        members = [place for place, p in enumerate(made[0].space.problem_ids)
                   if groups.get(p) == name]  # fmt: skip
        state = made[0].under(None).metrics
        for effort in each.efforts:
            rows = [r for r in state.replayed if r.candidate.policy == effort.policy]
            values = {round(float(np.mean(r.accuracy[members])), 9) for r in rows}
            assert round(effort.estimates["accuracy"].value, 9) in values
    by_class = {name: {e.reasoning_effort: e for e in each.efforts}
                for name, each in found.classes.items()}  # fmt: skip
    for effort in ("low", "high"):
        values = {name: of[effort].estimates["accuracy"].value for name, of in by_class.items()}
        assert values["easy"] > values["hard"]
    document = to_plain(found)
    assert document["ttscope_effort_map"] == 1
    assert set(document["classes"]["easy"]["efforts"][0]) == {
        "reasoning_effort", "thinking_token_budget", "policy", "estimates", "cut_share",
        "probability_within_budget", "use",
    }  # fmt: skip


def test_classes_are_in_the_order_of_their_numbers(made):
    names = [f"level {at}" for at in (10, 3, 1)]
    groups = {name: names[at // 20] for at, name in enumerate(sorted(made[1]))}
    _, found = mapped(made, groups, min_accuracy="0.5")
    assert [*found.classes] == ["level 1", "level 3", "level 10"]


def test_the_same_problems_as_a_class_are_the_whole(made):
    """A class of all problems has the numbers of all."""
    groups = dict.fromkeys(made[1], "all")
    for given in ({"min_accuracy": "0.5"}, {"min_accuracy": "0.5", "rate": "5/s"}):
        _, found = mapped(made, groups, **given)
        whole, own = found.efforts, found.classes["all"].efforts
        assert [each.policy for each in whole] == [each.policy for each in own]
        for one, other in zip(whole, own, strict=True):
            chances = [each.probability_within_budget for each in (one, other)]
            assert chances[0] == pytest.approx(chances[1])
            for name, estimate in one.estimates.items():
                again = other.estimates[name]
                assert (estimate is None) == (again is None), name
                if estimate is not None:
                    ends = [(e.value, e.low, e.high) for e in (estimate, again)]
                    assert ends[0] == pytest.approx(ends[1], rel=1e-9), name
