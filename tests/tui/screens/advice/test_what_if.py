"""What if, of a pick: at the budget's rate and prices, with a replica for each rank."""

import dataclasses
import re

import pytest

from advisor.advice.advisor import Advisor
from advisor.advice.beside import beside
from advisor.search.budget import parse_budget
from advisor.what_if.question import changed
from tests.advisor.synthetic import FACTS, VOTE16, engine_of, record
from traces.errors import UsageError
from traces.schema.advice import ESTIMATES, Budget, Pick
from traces.schema.formats import value_of
from traces.schema.quantities import quantity
from tui.screens.advice.what_if import examples, what_if
from tui.screens.entries import load
from tui.text.layout import side_by_side

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    return load(record(folder, engine_of(), VOTE16, problems=24, concurrency=4).path)[0]


@pytest.fixture(scope="module")
def advisor(entry):
    return Advisor.fit([entry.recording], draws=40)


def pick_of(entry, **changes):
    engine = dataclasses.replace(entry.run.engine, **changes)
    return Pick(
        engine=engine, policy=entry.run.policy, command=None, estimates={},
        probability_within_budget=1.0,
    )  # fmt: skip


def row(told, noun):
    """The pick's value and the changed one's."""
    (cells,) = (cells for cells in told[1] if cells[0] == noun)
    return [each.partition(" [")[0] for each in cells[1:3]]


@pytest.mark.parametrize("rate", [None, 2.0])
@pytest.mark.parametrize(
    ("change", "engine", "policy"),
    [
        ("engine.data_parallel_size=2", {"data_parallel_size": 2}, {}),
        ("engine.max_num_seqs=4", {"max_num_seqs": 4}, {}),
        ("policy.n=8", {}, {"n": 8}),
    ],
)
def test_a_change_to_another_candidate_has_its_numbers(
    entry, advisor, rate, change, engine, policy
):
    budget = Budget(optimise="latency", rate_per_s=rate, price_usd_per_device_hour=2.5)
    told = what_if(advisor, pick_of(entry), change, budget)
    engine = dataclasses.replace(entry.run.engine, **engine)
    rows = advisor.space.rows_of(engine, dataclasses.replace(entry.run.policy, **policy))
    state = advisor.under(rate)
    state.replay(rows)
    (place,) = (state.metrics.place[each] for each in rows)
    check = advisor.check(budget)
    for name in ESTIMATES:
        if (found := check.estimate(name, place)) is not None:
            assert row(told, quantity(name).noun)[1] == value_of(found), name


@pytest.mark.parametrize("limits", [{}, {"rate": "2/s"}, {"rate": "2/s", "percentile": "95"}])
def test_the_pick_has_the_numbers_of_the_answer(advisor, limits):
    """All of them, at a rate too, whatever is changed."""
    asked = {"optimise": "latency", "price": "2.5", **limits}
    budget = parse_budget(asked)
    for pick in advisor.recommend(budget).pareto[:3]:
        for change in examples(pick).split(" or "):
            told = what_if(advisor, pick, change, budget)
            known = [each for each in pick.estimates.items() if each[1] is not None]
            assert len(known) == len(told[1]) - 1 >= 7
            for name, each in known:
                assert row(told, quantity(name).noun)[0] == value_of(each), (name, change)


def test_the_rate_and_the_prices_are_the_budgets(entry, advisor):
    budget = parse_budget({"rate": "2/s", "price": "cpu=3.6", "optimise": "cost"})
    told = what_if(advisor, pick_of(entry), "engine.max_num_seqs=4", budget)
    assert "engine.max_num_seqs=4, at 2 problems/s" in told[0]
    # An engine that idles is paid for: a device for the half second in which a problem comes.
    paid = [[each.rstrip("*") for each in row(told, name)] for name in ("device time", "cost")]
    assert paid == [["500 dev-ms"] * 2, ["$0.000500"] * 2]
    closed = what_if(advisor, pick_of(entry), "engine.max_num_seqs=4")
    assert row(closed, "mean latency") != row(told, "mean latency")


def test_a_change_of_accuracy_is_in_points(entry, advisor):
    told = what_if(advisor, pick_of(entry), "policy.n=1")
    (change,) = (cells[-1] for cells in told[1] if cells[0] == "accuracy")
    before, after = map(float, row(told, "accuracy"))
    assert change.endswith(" pts") and before != after
    assert float(change.split()[-2]) == pytest.approx(100 * (after - before), abs=0.11)


RULES = [
    ("agreement", 8, {"agree": 5.0, "in_flight": 8.0}),
    ("first_finish", 8, {"first": 4.0}),
    ("adaptive", 8, {"threshold": 0.95, "in_flight": 4.0}),
    ("early_stopping", 8, {"window": 4.0}),
    ("majority", 1, {}),
]


def rule_of(method, n, rule):
    return dataclasses.replace(VOTE16, method=method, n=n, rule=tuple(sorted(rule.items())))


@pytest.mark.parametrize(("method", "n", "rule"), RULES)
def test_the_examples_work_for_the_pick_that_they_stand_beside(entry, advisor, method, n, rule):
    pick = dataclasses.replace(pick_of(entry), policy=rule_of(method, n, rule))
    for change in examples(pick).split(" or "):
        told = what_if(advisor, pick, change)
        assert change in told[0]
        assert row(told, "mean latency")[1] != "-"
    assert ("policy.n" in examples(pick)) == (n > 1)


@pytest.mark.parametrize(
    ("n", "rule"), [(4, {"agree": 3.0, "in_flight": 4.0}), (6, {"agree": 4.0, "in_flight": 6.0})]
)
def test_fewer_samples_take_the_rule_with_them(entry, n, rule):
    run = dataclasses.replace(entry.run, policy=rule_of(*RULES[0]))
    _, policy, _ = changed(run, [f"policy.n={n}"])
    assert (policy.n, dict(policy.rule)) == (n, rule)
    _, policy, _ = changed(run, [f"policy.n={n}", "policy.agree=2"])
    assert dict(policy.rule) == rule | {"agree": 2.0}


@pytest.mark.parametrize(("ranks", "size"), [(1, 2), (2, 4)])
def test_more_ranks_of_a_mixture_are_servers_of_as_many_as_the_pick_has(tmp_path, ranks, size):
    base = record(tmp_path / "one", engine_of(data_parallel_size=ranks), VOTE16, problems=24)
    facts = dataclasses.replace(FACTS["small"], num_experts=8, experts_per_token=2)
    dataclasses.replace(base.manifest, models={"small": facts}).write(base.path)
    (entry,) = load(base.path)
    advisor = Advisor.fit([entry.recording], draws=40)
    told = what_if(advisor, pick_of(entry), f"engine.data_parallel_size={size}")
    servers = dataclasses.replace(entry.run.engine, data_parallel_size=size).of_servers(ranks)
    check = beside(advisor, [(servers, entry.run.policy)], Budget())
    assert row(told, "mean latency")[1] == value_of(check.estimate("latency_s", 0))
    assert check.metrics.candidate(0).engine == servers
    if ranks == 2:
        with pytest.raises(UsageError, match="has 2 data-parallel ranks. Ask for 2, 4 or another"):
            what_if(advisor, pick_of(entry), "engine.data_parallel_size=3")


def test_what_was_asked_for_and_does_not_fit_says_what_to_set(entry):
    run = dataclasses.replace(
        entry.run, policy=rule_of("agreement", 8, {"agree": 7.0, "in_flight": 8.0})
    )
    with pytest.raises(UsageError, match="agree must be at most n = 4, not 7. Set agree too"):
        changed(run, ["policy.n=4"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("engine.max_num_seq=8", "no such field: did you mean max_num_seqs?"),
        ("engine.tensor_paralel_size=2", "did you mean tensor_parallel_size?"),
        ("policy.temprature=0.5", "did you mean temperature?"),
        ("policy.in_flght=2", "did you mean in_flight?"),
        ("engine.zzz=2", "one of model, dtype"),
    ],
)
def test_a_name_that_is_nearly_right_is_guessed(entry, change, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        changed(entry.run, [change])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("policy.n=64", "16 samples per problem were recorded. Record more, or ask for fewer"),
        ("policy.temperature=0.1", "no samples of small were recorded for maj@16 T=0.1 on such"),
        ("engine.tensor_parallel_size=4", "was never recorded with"),
        ("engine.max_num_batched_tokens=2", "vLLM needs a token for each of max_num_seqs"),
        ("policy.method=best_of_n", "the samples answer for"),
    ],
)
def test_what_the_recordings_cannot_say_is_refused(entry, advisor, change, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        what_if(advisor, pick_of(entry), change)


def test_the_table_is_whole_at_80_columns_and_named_as_the_answer(entry, advisor):
    _, rows = what_if(advisor, pick_of(entry), "engine.max_num_seqs=4")
    lines = side_by_side(rows, 75)
    assert len(lines) == len(rows) and max(map(len, lines)) <= 75
    assert {"mean latency", "device time", "tokens"} <= {cells[0] for cells in rows}
