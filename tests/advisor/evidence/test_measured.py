"""What was run is not called never run, and what it measured stands beside what is predicted."""

import dataclasses
import inspect
import re
import shlex

import pytest

from advisor.advice.advisor import Advisor
from advisor.advice.command import record_command
from advisor.evidence.measured import measured_beside, run_key
from tests.advisor.synthetic import GREEDY, NGRAM, VOTE16, engine_of, record
from traces.recording.reader import Recording
from traces.schema.advice import Budget, Load
from traces.schema.tts.policy import Policy
from traces.summary.run import summarise
from tui.report.material import Material
from tui.report.verdict import verdict
from tui.screens.advice.pick import answer_sections
from tui.text.advice import advice_json, advice_lines
from tui.text.fronts import candidates
from tui.verbs.demo import SHIPPED
from tui.verbs.record import record as record_verb

pytestmark = pytest.mark.slow

RULE = Policy(
    method="agreement", n=8, temperature=0.8, rule=(("agree", 5.0), ("in_flight", 8.0))
)  # fmt: skip
NEVER = re.compile("the pick was never run|this one, which was never run")
BUDGETS = [
    Budget(optimise="accuracy"), Budget(min_accuracy=0.75, optimise="cost"),
    Budget(min_accuracy=0.5, rate_per_s=2.0),
]  # fmt: skip


def told(answer):
    return "\n".join([*answer.reasons, *answer.measure_next])


@pytest.mark.parametrize(
    ("engine", "policy"),
    [
        ({"num_gpu_blocks": 77}, {}),  # what was free in the device's memory
        ({"gpu_memory_utilization": 0.8, "max_model_len": 2048}, {}),
        ({"kv_cache_dtype": "auto"}, {}),
        ({"enforce_eager": False, "num_gpus": 1}, {}),
        ({}, {"rule": (("in_flight", 8), ("agree", 5))}),
    ],
)
def test_the_same_configuration_however_it_was_written(engine, policy):
    other = dataclasses.replace(RULE, **policy)
    assert run_key(engine_of(**engine), other) == run_key(engine_of(), RULE)


@pytest.mark.parametrize(
    ("engine", "policy"),
    [
        ({"model": "large"}, {}),
        ({"dtype": "float32"}, {}),
        ({"max_num_seqs": 16}, {}),
        ({"max_num_batched_tokens": 256}, {}),
        ({"tensor_parallel_size": 2}, {}),
        ({"data_parallel_size": 2}, {}),
        ({"speculative": NGRAM}, {}),
        ({"gpu": "NVIDIA H100"}, {}),
        ({"enable_prefix_caching": False}, {}),
        ({"vllm_version": "0.31.0"}, {}),
        ({}, {"n": 4, "rule": (("agree", 3.0), ("in_flight", 4.0))}),
        ({}, {"temperature": 0.7}),
        ({}, {"max_tokens": 100}),
        ({}, {"rule": (("agree", 6.0), ("in_flight", 8.0))}),
        ({}, {"thinking_token_budget": 64}),
    ],
)
def test_another_configuration(engine, policy):
    other = dataclasses.replace(RULE, **policy)
    assert run_key(engine_of(**engine), other) != run_key(engine_of(), RULE)


def test_one_sample_is_one_sample_by_any_name():
    one = dataclasses.replace(VOTE16, n=1)
    assert run_key(engine_of(), one) == run_key(
        engine_of(), dataclasses.replace(one, method="greedy")
    )


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_pick_is_never_run_until_it_was(tmp_path, recordings, fresh, budget):
    """Rules too, whose samples no replay can draw; the blocks of the cache differ from run to run.

    A pick that was never run is named in what to run next, and one that was is not.
    """
    first = fresh.recommend(budget)
    pick = first.system_optimal
    ran = {(each.engine, each.policy) for each in fresh.evidence.runs}
    assert bool(NEVER.search(told(first))) == ((pick.engine, pick.policy) not in ran)
    assert (pick.measured is None) == ((pick.engine, pick.policy) not in ran)
    engine = dataclasses.replace(pick.engine, num_gpu_blocks=1999)
    made = record(tmp_path / "made", engine, pick.policy)
    advisor = Advisor.fit([*recordings, made])
    again = advisor.recommend(budget)
    same = run_key(again.system_optimal.engine, again.system_optimal.policy)
    ran = {run_key(*pair) for pair in ran} | {run_key(engine, pick.policy)}
    assert bool(NEVER.search(told(again))) == (same not in ran)
    if same != run_key(engine, pick.policy):
        return
    measured = again.system_optimal.measured
    assert measured.recording == "made"
    assert measured.problems == 40
    under = budget.rate_per_s is None
    assert measured.at_load == under
    assert ("under another load (4 problems in flight)" in told(again)) == (not under)
    assert "the pick was run" in again.reasons[0]
    document = advice_json(again)["system_optimal"]["measured"]
    assert document["estimates"]["latency_s"]["value"] > 0
    lines = advice_lines(again, explain=True)
    assert any(line.startswith("measured in made, 40 problems") for line in lines) == under
    row = candidates(again)[0]
    sections, _ = answer_sections(again, row, width=80)
    shown = any(line.startswith("measured ") for each in sections for line in each.lines)
    assert shown == under
    assert (
        "measured in made, 40 problems" in str(verdict(Material(runs=(), advice=again)))
    ) == under
    for each in again.experiments:
        assert run_key(each.engine, each.policy) not in ran


def test_what_a_run_cost_is_at_the_prices_of_the_answer():
    made = Recording.open(next(SHIPPED.glob("demo-s-*-greedy-t0-*")))
    assert made.manifest.price_usd_per_device_hour is None
    advisor = Advisor.fit([made], draws=40)
    for given in ({"price_usd_per_device_hour": 3.6}, {"prices": (("cpu", 3.6),)}):
        answer = advisor.recommend(Budget(optimise="cost", **given))
        found = answer.compute_optimal.measured.estimates
        assert found["cost_usd"].value == pytest.approx(found["device_s"].value / 1000)
    answer = advisor.recommend(Budget(optimise="cost"))
    assert answer.compute_optimal.measured.estimates["cost_usd"] is None


def test_a_run_beside_an_answer_is_paid_for_at_its_rate_and_without_times_of_another_load(tmp_path):
    (run,) = summarise(record(tmp_path / "r", engine_of(), GREEDY, problems=12, rate_per_s=2.0))
    found = measured_beside(run, Load(concurrency=None, rate_per_s=2.01), 3.6)
    assert found.at_load
    assert found.estimates["latency_s"] == run.latency_s["mean"]
    assert found.estimates["device_s"].value == pytest.approx(0.5)
    assert found.estimates["cost_usd"].value == pytest.approx(0.0005)
    for load in ((None, 4.0), (4, None)):
        other = measured_beside(run, Load(concurrency=load[0], rate_per_s=load[1]), 3.6)
        assert not other.at_load and other.load.rate_per_s == 2.0
        for name in ("latency_s", "latency_p95_s", "device_s", "cost_usd", "energy_j"):
            assert other.estimates[name] is None
        for name in ("accuracy", "tokens"):
            assert other.estimates[name] == found.estimates[name]
        assert other.estimates["tokens"].value > 0


def test_a_rule_that_was_run_is_run(tmp_path, recordings, fresh):
    """The space knows it among its candidates, and prefers it among equals."""
    engine = engine_of("large")
    row = next(
        row
        for row in fresh.space.rows_with(engine, replicas=engine.data_parallel_size)
        if fresh.space.candidate(row).policy.method == "agreement"
    )
    policy = fresh.space.candidate(row).policy
    assert not fresh.space.candidate(row).recorded
    made = record(tmp_path / "made", engine, policy, problems=40)
    space = Advisor.fit([*recordings, made]).space
    (row,) = space.rows_of(engine, policy)
    assert space.candidate(row).recorded


def test_the_command_that_records_a_pick_says_all_that_record_can():
    """Run as printed it is that configuration: without --dtype it was another."""
    engine = engine_of(
        "large", tensor_parallel_size=2, speculative=NGRAM, dtype="float32",
    )  # fmt: skip
    command = record_command(engine, RULE, workload="sums", problems=9, concurrency=3, seed=4)
    flags = {word for word in shlex.split(command) if word.startswith("--")}
    options = set(inspect.signature(record_verb).parameters)
    for name, value in {**engine.to_json(), **RULE.to_json(), **dict(RULE.rule)}.items():
        default = {"top_p": 1.0, "pipeline_parallel_size": 1}.get(name)
        if name in options and value is not None and value != default:
            assert f"--{name.replace('_', '-')}" in flags, name
