"""The files of a pick: the command runs as it is, the policy is the pick's, promises add up."""

import dataclasses
import math
import os
import subprocess

import pytest

from advisor.advice.advisor import Advisor
from advisor.advice.promise import expectations, served_factor, write_config
from advisor.evidence.measured import RunsMade, runs_in
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.deployment.checks import against_promises
from traces.deployment.documents import read_expectations, read_policy
from traces.schema.advice import Budget
from traces.schema.estimate import Estimate
from traces.summary.problems import voting_samples
from traces.summary.run import summarise


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = record(folder / "one", engine_of(), VOTE16, problems=30)
    advisor = Advisor.fit([made])
    return made, advisor, advisor.recommend(Budget(optimise="latency", min_accuracy=0.3))


def test_the_files_say_what_was_recommended(advised, tmp_path):
    _, advisor, answer = advised
    folder = tmp_path / "it's here"
    write_config(folder, answer, advisor)
    pick = answer.system_optimal
    assert read_policy(folder / "policy.json").policy == pick.policy
    expected = read_expectations(folder / "expect.json")
    assert (expected.engine, expected.policy) == (pick.engine, pick.policy)
    known = {name: each for name, each in pick.estimates.items() if each is not None}
    assert expected.promised == known and len(known) < len(pick.estimates)
    assert expected.concurrency == 4


@pytest.mark.slow
def test_costs_are_promised_with_the_price_that_was_recorded(advised):
    _, advisor, _ = advised
    evidence = dataclasses.replace(advisor.evidence, price_usd_per_device_hour=2.5)
    priced = Advisor.of(evidence, model=advisor.model)
    told = [
        expectations(priced.recommend(budget), priced).budget
        for budget in (Budget(optimise="latency"), Budget(optimise="latency", prices=(("CPU", 3),)))
    ]
    assert [each.price_usd_per_device_hour for each in told] == [2.5, None]


def test_the_script_runs_the_command_with_options_of_its_own(advised, tmp_path):
    _, advisor, answer = advised
    write_config(tmp_path, answer, advisor)
    fake = tmp_path / "bin"
    fake.mkdir()
    for name in ("vllm", "python"):
        (fake / name).write_text('#!/bin/sh\nfor each in "$@"; do echo "$each"; done\n')
        (fake / name).chmod(0o755)
    ran = subprocess.run(
        [str(tmp_path / "serve.sh"), "--port", "8001"],
        env={"PATH": f"{fake}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split()[-2:] == ["--port", "8001"]
    assert "--max-num-seqs" in ran.stdout.split()


def promise(recordings):
    advisor = Advisor.fit(recordings)
    answer = advisor.recommend(Budget(optimise="latency", min_accuracy=0.3))
    return answer.system_optimal, expectations(answer, advisor)


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [4, 8])
def test_latencies_are_promised_through_a_server_where_one_was_recorded(
    advised, tmp_path, concurrency
):
    """It is taken from problem to problem, and is less sure for another policy or load."""
    alone, _, _ = advised
    served = record(
        tmp_path / "one", engine_of(mode="server"), VOTE16, problems=30, drift=math.log(1.5),
        concurrency=concurrency,
    )  # fmt: skip
    pick, expected = promise([alone, served])
    assert pick.engine.mode == "in_process"
    factor, estimate = expected.served, pick.estimates["latency_s"]
    assert factor.value == pytest.approx(1.5, rel=0.05)
    assert factor.low < 1.5 < factor.high
    sure = pick.policy == VOTE16 and concurrency == expected.concurrency
    assert sure or factor.high - factor.value > 0.5 * 0.5 * 0.9
    promised = expected.promised["latency_s"]
    assert promised.value == pytest.approx(estimate.value * factor.value)
    assert promised.low < promised.value < promised.high
    assert promised.high / promised.value > estimate.high / estimate.value
    for name in ("accuracy", "tokens", "device_s"):
        assert expected.promised[name] == pick.estimates[name]
    judged = gated(expected, served)["mean latency"].verdict != "absent"
    assert judged == (concurrency == expected.concurrency)  # else it is another load


@pytest.mark.slow
def test_without_a_run_of_a_server_no_latency_is_judged_of_one(advised, tmp_path):
    alone, advisor, answer = advised
    expected = expectations(answer, advisor)
    assert expected.served is None
    assert expected.promised == dict(answer.system_optimal.estimates)
    served = record(tmp_path / "one", engine_of(mode="server"), VOTE16, problems=30)
    check = gated(expected, served)["mean latency"]
    assert (check.verdict, "engine alone" in check.why) == ("absent", True)
    assert gated(expected, alone)["mean latency"].verdict != "absent"
    through = dataclasses.replace(expected, served=Estimate(value=1.5, unit="1"))
    assert "one process" in gated(through, alone)["mean latency"].why


@pytest.mark.parametrize(
    ("in_flight", "drift", "verdict", "why"),
    [
        (2, -3.0, "absent", "ran with 2 in flight, and was promised for 4"),
        (2, 3.0, "broken", "it lies above"),
        (8, 3.0, "absent", "ran with 8 in flight"),
    ],
)
def test_a_lighter_load_breaks_a_latency_and_keeps_none(
    advised, tmp_path, in_flight, drift, verdict, why
):
    _, advisor, answer = advised
    expected = expectations(answer, advisor)
    run = record(
        tmp_path / "one", engine_of(), VOTE16, problems=30, drift=drift, concurrency=in_flight
    )
    check = gated(expected, run)["mean latency"]
    assert (check.verdict, check.why[: len(why)]) == (verdict, why)


def test_a_run_at_a_rate_had_so_many_in_flight_on_average(advised):
    made, advisor, answer = advised
    (run,) = summarise(made)
    span_s = (run.rows["arrival"].max() - run.rows["arrival"].min()) / 1e9
    manifest = dataclasses.replace(
        made.manifest, concurrency=None, rate_per_s=(run.problems - 1) / span_s
    )
    served = dataclasses.replace(made, manifest=manifest)
    expected = dataclasses.replace(expectations(answer, advisor), concurrency=4)
    check = gated(expected, served)["mean latency"]
    assert check.verdict == "broken"  # sixteen samples, where fewer were promised for
    fewer = dataclasses.replace(expected, concurrency=3)
    assert "in flight, and was promised for 3" in gated(fewer, served)["mean latency"].why


def gated(expected, recording):
    (run,) = summarise(recording)
    gate = against_promises(expected, run, "expect.json")
    return {each.name: each for each in gate.checks if each.kind == "promise"}


def test_what_traffic_is_assumed_to_be_like_is_what_was_recorded(advised):
    made, advisor, answer = advised
    assumed = expectations(answer, advisor).assumed
    samples = voting_samples(made.samples.with_columns(problem="problem_id"))
    assert assumed["output_tokens"].value == pytest.approx(samples["output_tokens"].mean())
    assert assumed["prompt_tokens"].value == pytest.approx(samples["prompt_tokens"].mean())
    assert assumed["acceptance_length"] is None
    if answer.system_optimal.policy.n > 1:
        assert 1 / 16 < assumed["agreement"].value <= 1


@pytest.mark.slow
def test_a_server_is_held_against_a_replay_under_its_own_limits(advised, tmp_path):
    """Eight samples at once wait for one another, which HTTP does not add."""
    _, advisor, answer = advised
    for limits, expected in (({"max_num_seqs": 8}, 1.5), ({"tensor_parallel_size": 2}, None)):
        folder = tmp_path / next(iter(limits)) / "one"
        engine = engine_of(mode="server", **limits)
        served = record(folder, engine, VOTE16, problems=30, drift=math.log(1.5))
        evidence = dataclasses.replace(advisor.evidence, made=RunsMade(runs_in(served)))
        asked = Advisor.of(evidence, model=advisor.model)
        factor = served_factor(asked, answer.system_optimal, (4, None))
        if expected is None:
            assert factor is None
        else:
            assert factor.value == pytest.approx(expected, rel=0.1)
            assert factor.low < expected < factor.high


def test_the_probability_is_that_of_the_latency_through_the_server(advised, monkeypatch):
    """A limit between the engine's latency and the server's is met by the engine alone."""
    _, advisor, answer = advised
    latency = answer.system_optimal.estimates["latency_s"]
    budget = Budget(optimise="latency", max_latency_s=1.2 * latency.high)
    limited = advisor.recommend(budget)
    assert limited.system_optimal.probability_within_budget > 0.9
    told = []
    for value in (None, 1.01, 3.0):
        served = value and Estimate(value=value, low=value - 0.005, high=value + 0.005, unit="1")
        monkeypatch.setattr(
            "advisor.advice.promise.served_factor", lambda *_, served=served: served
        )
        told.append(expectations(limited, advisor).probability_within_budget)
    assert told[0] == limited.system_optimal.probability_within_budget
    assert told[1] == pytest.approx(told[0], abs=0.05)
    assert told[2] < 0.05


def test_a_problem_of_several_runs_is_assumed_once(advised):
    _, advisor, answer = advised
    runs = advisor.evidence.runs
    again = Advisor.of(
        dataclasses.replace(advisor.evidence, runs=runs * 4), model=advisor.model, quick=True
    )
    assert expectations(answer, again).assumed == expectations(answer, advisor).assumed
