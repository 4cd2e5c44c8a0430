"""The contract of policies on real vLLM: in this process, and a server without thinking budgets."""

import dataclasses
import json
import re
import time

import httpx
import numpy as np
import polars as pl
import pytest

from benchmarks.servers.vllm_server import vllm_server
from profiler.engines.options import EngineOptions
from profiler.engines.server.server import ServerEngine
from profiler.engines.start import start_engine
from profiler.runs.record import record
from profiler.workload.problems import load_workload
from tests.profiler.policies.policy_contract import ON_ENGINES, check, policy_of
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.tts.parameters import make_policy
from traces.schema.tts.policy import Policy

# An engine in this process brings its libraries' warnings.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

WORKLOAD = load_workload("demo", problems=6, seed=7)


@pytest.fixture(scope="module")
def in_process():
    engine = start_engine(EngineOptions(model="demo/s", max_num_seqs=64), thinking_budget=True)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with vllm_server(tmp_path_factory.mktemp("server")) as url:
        engine = ServerEngine(url, name="demo/s")
        yield engine
        engine.close()


def decoded(recording):
    """Tokens that the engine's own steps say were generated."""
    started = recording.samples.filter(pl.col("output_tokens") > 0).height
    return recording.steps["decode_tokens"].sum() + started


@pytest.mark.parametrize("name", ON_ENGINES)
def test_contract_in_process(in_process, name, tmp_path):
    recording = check(
        name,
        WORKLOAD,
        in_process,
        tmp_path / "r",
        tokens_made=decoded,
        idle=lambda: not in_process._engine.has_unfinished_requests(),
    )
    samples = recording.samples
    assert samples["error"].null_count() == samples.height
    steps, ended = recording.steps, samples["cancelled_by"].null_count()
    if name != "beam":  # whose steps vLLM's front end stops, which the engine sees as aborts
        assert steps["finished"].sum() == ended
    if policy_of(name).thinking_token_budget is not None and name == "thinking budget":
        assert samples.filter(role="sample")["think_tokens"].max() <= 5
        assert set(samples["role"]) == {"sample"}


def metric(url, name):
    page = httpx.get(f"{url}/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (.*)$", page, re.M))


@pytest.mark.parametrize("name", ON_ENGINES)
def test_contract_on_a_server(server, name, tmp_path):
    def made():
        return metric(server.url, "vllm:generation_tokens_total")

    def idle():
        deadline = time.monotonic() + 60
        running = True
        while running and time.monotonic() < deadline:
            running = metric(server.url, "vllm:num_requests_running")
            time.sleep(0.1)
        return not running and not server._live

    assert not server.thinking_budget
    before = made()
    recording = check(
        name,
        WORKLOAD,
        server,
        tmp_path / "r",
        tokens_made=lambda recording: made() - before,
        idle=idle,
        slack=40,
    )
    assert recording.samples["error"].null_count() == recording.samples.height


def test_a_forced_budget_is_the_engines_own(in_process, server, tmp_path):
    """Greedy thoughts cut at a budget end in the same answers either way."""
    policy = Policy(thinking_token_budget=9, max_tokens=200)
    answers = []
    for name, engine in (("native", in_process), ("forced", server)):
        recording = Recording.open(record(WORKLOAD, policy, engine, tmp_path / name))
        own = recording.samples.filter(role="sample").sort("problem_id")
        answers.append(own["answer"].to_list())
        assert (set(recording.samples["role"]) == {"sample"}) == (name == "native")
    assert answers[0] == answers[1]


@pytest.mark.parametrize("where", ["in_process", "server"])
def test_checkpoints_are_what_a_budget_would_have_answered(where, tmp_path, request):
    """Greedy: each forced answer equals that of a run with this thinking budget."""
    engine, budgets = request.getfixturevalue(where), (6, 12)
    plain = Policy(max_tokens=200)
    path = record(WORKLOAD, plain, engine, tmp_path / "plain", budget_checkpoints=budgets)
    recording = Recording.open(path)
    rows = recording.frame("answers")
    assert rows.height == 12 and rows["forced"].any()
    assert recording.manifest.checkpoints.output_tokens > 0
    for budget in budgets:
        policy = dataclasses.replace(plain, thinking_token_budget=budget)
        real = Recording.open(record(WORKLOAD, policy, engine, tmp_path / f"{budget}"))
        wanted = real.problems.sort("problem_id")["answer"].to_list()
        got = rows.filter(budget_tokens=budget).sort("problem_id")["answer"].to_list()
        assert got == wanted


def test_both_engines_measure_the_same_log_probabilities(in_process, server, tmp_path):
    tables = []
    for name, engine in (("a", in_process), ("b", server)):
        path = record(WORKLOAD, Policy(max_tokens=200), engine, tmp_path / name, logprobs=True)
        tables.append(Recording.open(path).samples.sort("problem_id"))
    for column in ("logprob_mean", "confidence_min_window"):
        mine, theirs = (table[column] for table in tables)
        assert mine.null_count() == theirs.null_count() == 0
        assert mine.to_list() == pytest.approx(theirs.to_list(), rel=0.05, abs=0.02)


def test_a_table_of_efforts_thinks_as_each_effort_does(in_process, tmp_path):
    """At temperature 0, where a sample is the same in every run."""
    workload, tokens = load_workload("demo", problems=24), {}
    route = "level 3=1@high | level 9=1@high | *=1@low"
    table = make_policy({"method": "routed", "n": 1, "route": route, "max_tokens": 400})
    for name, policy in {
        "low": Policy(reasoning_effort="low", max_tokens=400),
        "high": Policy(reasoning_effort="high", max_tokens=400),
        "table": dataclasses.replace(table, temperature=0.0),
    }.items():
        rows = Recording.open(record(workload, policy, in_process, tmp_path / name)).samples
        tokens[name] = dict(rows.select("problem_id", "think_tokens").iter_rows())
    assert np.mean([*tokens["high"].values()]) > 1.5 * np.mean([*tokens["low"].values()])
    hard = {each.problem_id: each.group in {"level 3", "level 9"} for each in workload.problems}
    assert set(hard.values()) == {True, False}
    same = [tokens["table"][name] == tokens["high" if hard[name] else "low"][name] for name in hard]
    assert sum(same) >= 0.9 * len(same)  # the batch may tip a token


def test_a_length_that_does_not_fit_behind_its_prompt_is_refused(in_process, tmp_path):
    row = {"id": 0, "prompt": "a" * 600, "answer": "12", "output_tokens": 500}
    (tmp_path / "w.jsonl").write_text(json.dumps(row))
    workload = load_workload(str(tmp_path / "w.jsonl"))
    told = "500 output_tokens behind a prompt of 603 exceed max_model_len 1,024"
    with pytest.raises(UsageError, match=told):
        record(workload, Policy(), in_process, tmp_path / "r")
