"""What if, of a pick: at the budget's rate and prices, with a replica for each rank."""

import dataclasses
import re

import pytest

from advisor.advise import Advisor
from advisor.budget import parse_budget
from advisor.predict import predict
from advisor.replay import Replicas
from advisor.step_times import Question
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.metrics import estimate_of
from traces.schema import Pick
from tui.formats import value_of
from tui.views import load
from tui.what_if import what_if


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    return load(record(folder, engine_of(), VOTE16, problems=24, concurrency=4).path)[0]


def pick_of(entry, **changes):
    engine = dataclasses.replace(entry.run.engine, **changes)
    return Pick(
        engine=engine,
        policy=entry.run.policy,
        command=None,
        estimates={},
        probability_within_budget=1.0,
    )


def row(lines, title):
    """The pick's cell and the changed one's."""
    (line,) = (line for line in lines if line.startswith(title))
    return re.split(r"  +", line)[1:3]


def test_ranks_are_replicas(entry):
    lines = what_if([entry], pick_of(entry), "engine.data_parallel_size=2")
    two = predict(
        entry.recording,
        entry.run,
        Question(
            engine=entry.run.engine,
            policy=entry.run.policy,
            replicas=Replicas(count=2, routing="least-outstanding"),
        ),
    ).predicted
    for title, tag in (("latency mean", "latency_s.mean"), ("device-s", "device_s_per_problem")):
        one, changed = row(lines, title)
        assert changed == value_of(estimate_of(two, tag))
        assert (title == "device-s") or changed != one


def test_the_rate_and_the_prices_are_the_budgets(entry):
    budget = parse_budget({"rate": "2/s", "price": "cpu=3.6", "optimise": "cost"})
    lines = what_if([entry], pick_of(entry), "engine.max_num_seqs=4", budget)
    assert lines[0].endswith("engine.max_num_seqs=4, at 2 problems/s")
    # An engine that idles is paid for: a device for the half second in which a problem comes.
    assert row(lines, "device-s") == ["500 dev-ms", "500 dev-ms"]
    assert row(lines, "cost") == ["$0.000500", "$0.000500"]
    closed = what_if([entry], pick_of(entry), "engine.max_num_seqs=4")
    assert row(closed, "latency mean") != row(lines, "latency mean")


def test_a_pick_at_a_rate_costs_what_the_table_says(entry):
    budget = parse_budget({"rate": "2/s", "price": "3.6", "optimise": "cost"})
    answer = Advisor.fit([entry.recording], draws=40).recommend(budget)
    pick = answer.system_optimal
    lines = what_if([entry], pick, "engine.max_num_seqs=4", budget)
    assert row(lines, "cost")[0] == value_of(pick.estimates["cost_usd"])
