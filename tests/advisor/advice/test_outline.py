"""A first answer by the closed form, and the whole one that follows from the same advisor."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from advisor.advice.advisor import Advisor
from advisor.advice.answer import UNSURE
from advisor.search.budget import parse_budget
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.errors import UsageError
from traces.schema.advice import Budget
from traces.schema.formats import number
from tui.text.advice import against, verdict

pytestmark = pytest.mark.slow

BUDGET = parse_budget({"min_accuracy": "0.3", "price": "2.5"})


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        record(folder / f"seqs{seqs}", engine_of(max_num_seqs=seqs), VOTE16, problems=24)
        for seqs in (4, 16)
    ]


@pytest.fixture(scope="module")
def quick(recordings):
    return Advisor.fit(recordings, draws=40, quick=True)


def test_what_follows_is_the_answer_of_a_whole_fit(recordings, quick):
    assert quick.model.errors_ == {}  # nothing was left out yet
    whole = Advisor.fit(recordings, draws=40)
    refined = quick.refined()
    assert refined.model.errors_ == whole.model.errors_ != {}
    assert refined.recommend(BUDGET) == whole.recommend(BUDGET)


def test_the_outline_has_values_alone_near_those_of_the_replay(quick):
    outline = quick.outline(BUDGET)
    assert outline.stages.replayed == 0
    assert outline.stages.screened == (quick.space.replicas == 1).sum()
    answer = quick.recommend(BUDGET)
    by_key = {(p.engine.key(), p.policy.key()): p for p in (*answer.pareto, answer.system_optimal)}
    assert outline.pareto and outline.compute_pareto
    compared = 0
    for pick in (outline.system_optimal, *outline.pareto):
        assert pick.command is None
        assert all(each is None or each.low is None for each in pick.estimates.values())
        cost, device = pick.estimates["cost_usd"], pick.estimates["device_s"]
        assert cost.value == pytest.approx(device.value * 2.5 / 3600)
        other = by_key.get((pick.engine.key(), pick.policy.key()))
        if other is not None:
            compared += 1
            for name, off in (("accuracy", 0.05), ("tokens", 0.5), ("latency_s", 0.5)):
                value = other.estimates[name].value
                assert pick.estimates[name].value == pytest.approx(value, rel=off), name
    assert compared


def test_a_first_estimate_says_how_its_two_picks_compare(quick):
    outline = quick.outline(parse_budget({"min_accuracy": "0.3", "max_latency": "1s"}))
    ours = outline.system_optimal
    theirs = next(each for each in outline.pareto if each.policy != ours.policy)
    said = "".join(against(replace(outline, compute_optimal=theirs)))
    values = [number(each.estimates["latency_s"].value, "s") for each in (theirs, ours)]
    assert said.endswith(f", with a mean latency of {' against '.join(values)}.")
    # What is optimised and limited is named once.
    assert "It has the lowest mean latency (at most 1 s) with accuracy of" in verdict(outline)[1]


def test_the_outline_recommends_nothing_where_nothing_is_required(quick):
    outline = quick.outline(Budget(required=False))
    assert outline.system_optimal is None and outline.pareto
    with pytest.raises(UsageError, match="no recording holds power"):
        quick.outline(parse_budget({"max_energy": "5J"}))


def test_the_fronts_at_a_rate_are_of_engines_that_keep_up(quick):
    rate = float(np.median(quick.under(1.0).closed_form.capacity_per_s))
    shortlist = quick.shortlist(Budget(rate_per_s=rate))
    for metric in (None, "flops"):
        rows = shortlist.front(metric)
        assert rows and (shortlist.metrics.capacity_per_s[rows] > rate).all()


def test_a_further_limit_takes_no_candidate_from_those_before_it(quick):
    rate = float(np.median(quick.under(1.0).closed_form.capacity_per_s))
    limits = [f"{rate}/s", "0.5", "0.25s", "0.2s"]
    names, counts = ("rate", "min_accuracy", "max_latency", "max_cost"), []
    for few in range(1, len(limits) + 1):
        budget = parse_budget(dict(zip(names[:few], limits[:few], strict=True)))
        counts.append(dict(quick.outline(budget).infeasible))
        counts[-1].pop(UNSURE, None)
    assert all(more == more | few for few, more in pairwise(counts))
    assert len(counts[-1]) > len(counts[0])
