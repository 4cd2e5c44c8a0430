"""What if, of a pick: at the budget's rate and prices, with a replica for each rank."""

import dataclasses
import re

import pytest

from advisor.advice.advisor import Advisor
from advisor.replay.replay import Replicas
from advisor.search.budget import parse_budget
from advisor.what_if.predict import predict
from advisor.what_if.question import Question, changed
from tests.advisor.synthetic import FACTS, VOTE16, engine_of, record
from traces.errors import UsageError
from traces.schema.advice import Pick
from traces.schema.formats import value_of
from traces.summary.metrics import estimate_of
from tui.screens.advice.what_if import examples, what_if
from tui.screens.entries import load

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    return load(record(folder, engine_of(), VOTE16, problems=24, concurrency=4).path)[0]


def pick_of(entry, **changes):
    engine = dataclasses.replace(entry.run.engine, **changes)
    return Pick(
        engine=engine, policy=entry.run.policy, command=None, estimates={},
        probability_within_budget=1.0,
    )  # fmt: skip


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


def test_an_engine_changes_no_accuracy_of_the_pick(entry):
    answer = Advisor.fit([entry.recording], draws=40).recommend(parse_budget({"rate": "2/s"}))
    picks = [pick for pick in answer.pareto if pick.policy.method in ("adaptive", "early_stopping")]
    for pick in picks[:2] or answer.pareto[:1]:
        cells = row(what_if([entry], pick, "engine.max_num_seqs=4"), "accuracy")
        assert cells[0] == cells[1] == value_of(pick.estimates["accuracy"])


def test_a_change_of_accuracy_is_in_points(entry):
    lines = what_if([entry], pick_of(entry), "policy.n=1")
    (line,) = (line for line in lines if line.startswith("accuracy"))
    before, after = map(float, row(lines, "accuracy"))
    assert line.endswith(" pts") and before != after
    assert float(line.split()[-2]) == pytest.approx(100 * (after - before), abs=0.11)


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
def test_the_examples_work_for_the_pick_that_they_stand_beside(entry, method, n, rule):
    pick = dataclasses.replace(pick_of(entry), policy=rule_of(method, n, rule))
    for change in examples(pick).split(" or "):
        lines = what_if([entry], pick, change)
        assert lines[0].endswith(change)
        assert row(lines, "latency mean")[1] != "-"
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
    lines = what_if([entry], pick_of(entry), f"engine.data_parallel_size={size}")
    servers = dataclasses.replace(entry.run.engine, data_parallel_size=size).of_servers(ranks)
    asked = Question(engine=servers, policy=entry.run.policy)
    two = predict(entry.recording, entry.run, asked).predicted
    assert row(lines, "latency mean")[1] == value_of(estimate_of(two, "latency_s.mean"))
    if ranks == 2:
        with pytest.raises(UsageError, match="has 2 data-parallel ranks. Ask for 2, 4 or another"):
            what_if([entry], pick_of(entry), "engine.data_parallel_size=3")


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


def test_nothing_is_learned_from_a_prediction_and_none_is_the_base(run, entry, tmp_path):
    run.ok("replay", entry.path, "--set", "engine.max_num_seqs=16", "-o", tmp_path / "predicted")
    (predicted,) = load(tmp_path / "predicted")
    assert predicted.comparable and predicted.run.replay_of == entry.path.name
    pick = pick_of(entry, max_num_seqs=16)
    alone = what_if([entry], pick, "engine.max_num_seqs=8")
    assert what_if([predicted, entry], pick, "engine.max_num_seqs=8") == alone
    with pytest.raises(UsageError, match="no recording of small"):
        what_if([predicted], pick, "engine.max_num_seqs=8")
