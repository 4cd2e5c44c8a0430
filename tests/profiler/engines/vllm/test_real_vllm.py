"""Real vLLM on this machine: in process, as a server, and killed."""

import json
import os
import time
from contextlib import closing
from itertools import pairwise

import pytest

from benchmarks.servers.vllm_server import free_port, vllm_server
from benchmarks.servers.warm import Warm
from profiler.engines.interface import SampleRequest
from profiler.engines.options import EngineOptions
from profiler.engines.server.server import ServerEngine
from profiler.engines.vllm.environment import prepare_environment
from profiler.engines.vllm.in_process import InProcessEngine
from profiler.runs.record import record
from profiler.workload.problems import load_workload
from tests.profiler.command import ROOT, warm_ttscope
from traces.errors import EngineError
from traces.recording.reader import Recording
from traces.schema.tts.policy import Policy

pytestmark = pytest.mark.vllm

GREEDY = Policy(max_tokens=300)


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    """A greedy and a voting recording with a thinking budget, made by `ttscope record`."""
    folder = tmp_path_factory.mktemp("in-process")
    common = ("record", "--model", "demo/s", "--problems", "24", "--seed", "5", "--json")
    done = warm_ttscope(*common, "--max-tokens", "300", "-o", folder / "greedy")
    assert done.returncode == 0, done.stderr[-3000:]
    vote = warm_ttscope(
        *common, "--n", "4", "--thinking-budget", "12", "--max-num-seqs", "8", "--dtype",
        "float32", "-o", folder / "vote",
    )  # fmt: skip
    assert vote.returncode == 0, vote.stderr[-3000:]
    return folder, json.loads(done.stdout), json.loads(vote.stdout)


def test_record_prints_the_run_and_keeps_it(in_process):
    folder, greedy, _ = in_process
    (run,) = greedy["runs"]
    recording = Recording.open(folder / "greedy")
    assert recording.complete and run["complete"]
    assert run["problems"] == recording.problems.height == 24
    assert run["config"]["engine"]["model"] == "demo/s"
    assert run["accuracy"]["low"] <= run["accuracy"]["value"] <= run["accuracy"]["high"]
    for name, size in (("greedy", 2), ("vote", 4)):
        facts = Recording.open(folder / name).manifest.models["demo/s"]
        assert facts.total_parameters == 302_208
        assert facts.weight_bytes == 302_208 * size
    assert recording.manifest.probe_cost_us < 1000


def test_steps_account_for_every_token(in_process):
    for name in ("greedy", "vote"):
        recording = Recording.open(in_process[0] / name)
        steps, samples = recording.steps, recording.samples
        assert steps["step"].to_list() == list(range(steps.height))
        # the last token of a sample is never fed back, the first comes out of its prefill
        assert steps["decode_tokens"].sum() == (samples["output_tokens"] - 1).sum()
        computed = samples["prompt_tokens"] - samples["cached_tokens"]
        assert steps["prefill_tokens"].sum() == computed.sum()
        assert steps["finished"].sum() == samples.height
        assert steps["aborted"].sum() == 0
        assert (steps["gap_ns"].drop_nulls() >= 0).all()
        assert (samples["last_step"] - samples["first_step"] + 1 == samples["output_tokens"]).all()
        assert (steps["running"] <= (8 if name == "vote" else 256)).all()


@pytest.mark.filterwarnings("ignore")  # of vLLM
def test_context_sums_are_those_of_the_requests(monkeypatch):
    """The probe keeps contexts of some steps only; here every step is summed beside it."""
    engine = InProcessEngine(EngineOptions(model="demo/s", dtype="float32", max_num_seqs=6))
    try:
        scheduler, truth = engine._scheduler(), []
        engine.probe.remove()
        schedule = scheduler.schedule

        def spied(*arguments):
            output = schedule(*arguments)
            if output.total_num_scheduled_tokens:
                cached = output.scheduled_cached_reqs
                ends = [
                    context + output.num_scheduled_tokens[name]
                    for name, context, produced in zip(
                        cached.req_ids,
                        cached.num_computed_tokens,
                        cached.num_output_tokens,
                        strict=True,
                    )
                    if produced
                ]
                truth.append((len(ends), sum(ends)))
            return output

        monkeypatch.setattr(scheduler, "schedule", spied)
        engine.probe.install()
        engine.probe.reset("e")
        for index in range(20):
            request = SampleRequest(
                request_id=f"r{index}", prompt=f"What is {index} + 7?", chat=True, temperature=1.0,
                top_p=1.0, max_tokens=5 + 17 * index % 90,
            )  # fmt: skip
            engine.submit(request)
        polls = 0
        while engine._live:
            engine.poll()
            polls += 1
            if polls in (20, 40):
                engine.cancel([next(iter(engine._live))])
        steps = engine.probe.drain()
    finally:
        engine.close()
    assert steps.height == len(truth) > 50
    assert steps.select("decode_requests", "decode_kv_tokens").rows() == truth


def test_times_are_in_order(in_process):
    samples = Recording.open(in_process[0] / "vote").samples
    order = ["arrival", "queued", "scheduled", "first_token", "think_end", "end"]
    for earlier, later in pairwise(order):
        assert (samples[earlier] <= samples[later]).all(), (earlier, later)


def test_thinking_budget_is_kept(in_process):
    samples = Recording.open(in_process[0] / "vote").samples
    assert samples["think_tokens"].max() == 12
    assert samples["answer"].null_count() < samples.height / 2


def test_jsonl_of_prompts_and_chats_under_a_verifier(tmp_path):
    rows = []
    made = load_workload("demo", problems=80, seed=3).problems
    numbers = [problem for problem in made if problem.expected.isdigit()][:8]  # most are letters
    for index, problem in enumerate(numbers):
        chat = {"messages": [{"role": "user", "content": problem.prompt}]}
        asked = chat if index % 2 else {"prompt": problem.prompt}
        rows.append({"id": problem.problem_id, "answer": f" {problem.expected}.0", **asked})
    path = tmp_path / "w.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    asked = ("record", "--model", "demo/s", "--workload", path, "--max-tokens", "300")
    done = warm_ttscope(*asked, "--verifier", "numeric", "--n", "4", "--json", "-o", tmp_path / "r")
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = json.loads(done.stdout)["runs"]
    assert run["problems"] == 8
    recording = Recording.open(tmp_path / "r")
    assert recording.manifest.workload.verifier == "numeric"
    assert recording.manifest.workload.template_hash
    assert recording.samples["correct"].sum() > 0
    assert not recording.manifest.text_recorded


@pytest.mark.filterwarnings("ignore")  # of vLLM
def test_a_prompt_without_room_fails_alone(tmp_path):
    lines = [{"id": str(i), "prompt": "1 + 2 " * (200 if i == 1 else 1)} for i in range(3)]
    (tmp_path / "w.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = EngineOptions(model="demo/s", dtype="float32", max_model_len=64)
    with closing(InProcessEngine(options)) as engine:
        path = record(load_workload(str(tmp_path / "w.jsonl")), GREEDY, engine, tmp_path / "r")
    recording = Recording.open(path)
    assert recording.complete
    samples = recording.samples.sort("problem_id")
    assert samples["error"].to_list() == [None, "no room", None]
    assert samples["prompt_tokens"][1] > 64 and samples["output_tokens"][1] == 0


def test_impossible_engine_is_one_line(tmp_path):
    done = warm_ttscope("record", "--model", tmp_path / "absent", "-o", tmp_path / "r")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ttscope: vLLM cannot start")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


def test_real_record_killed(tmp_path):
    options = ("--problems", "5000", "--n", "8", "--concurrency", "4", "-o", tmp_path / "r")
    said = tmp_path / "said"
    child = Warm(("record", "--model", "demo/s", *options), stdout=said, stderr=said, cwd=ROOT)
    deadline = time.monotonic() + 180
    while len([*tmp_path.glob("r/steps-*.parquet")]) < 3:  # one is written every second
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    child.kill()
    child.wait()
    recording = Recording.open(tmp_path / "r")
    assert not recording.complete
    steps = recording.steps
    assert steps["step"].to_list() == list(range(steps.height))
    problems = recording.problems
    assert problems["problem_id"].is_unique().all()
    assert 1 <= problems["end"].null_count() <= 8
    shown = warm_ttscope("show", tmp_path / "r")
    assert shown.returncode == 0 and "incomplete" in shown.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real `vllm serve` of the small reasoner on loopback."""
    with vllm_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.mark.parametrize("chat", [True, False])
def test_server_gives_the_same_answers_as_in_process(server, in_process, tmp_path, chat):
    workload = load_workload("demo", problems=24, seed=5)
    if not chat:
        from dataclasses import replace

        problems = [replace(p, prompt=f"<bos>{p.prompt}.<think>") for p in workload.problems]
        workload = replace(workload, problems=problems, chat=False)
    declared = {"tensor_parallel_size": 1}
    with closing(ServerEngine(server, name="demo/s", declared=declared)) as engine:
        record(workload, GREEDY, engine, tmp_path / "r", concurrency=6)
    mine = Recording.open(in_process[0] / "greedy").samples.sort("problem_id")
    theirs = Recording.open(tmp_path / "r").samples.sort("problem_id")
    assert theirs["error"].null_count() == theirs.height
    assert theirs["answer"].to_list() == mine["answer"].to_list()
    for column in ("output_tokens", "prompt_tokens"):
        assert theirs[column].to_list() == mine[column].to_list(), column
    think = (theirs["think_tokens"] == mine["think_tokens"]).drop_nulls()
    assert think.all() and len(think) > 0
    assert (theirs["first_token"] <= theirs["think_end"]).all()


def test_a_server_keeps_given_lengths(server, tmp_path):
    lengths = [[5, 90], [300, 1], [40, 41]]
    rows = [{"id": i, "prompt": "aCb6", "output_tokens": each} for i, each in enumerate(lengths)]
    file = tmp_path / "w.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = Policy(method="majority", n=2, temperature=0.8)
    with closing(ServerEngine(server)) as engine:
        record(load_workload(str(file)), policy, engine, tmp_path / "r")
    samples = Recording.open(tmp_path / "r").samples.sort("problem_id", "sample_index")
    assert samples["output_tokens"].to_list() == [tokens for each in lengths for tokens in each]
    assert samples["finish_reason"].to_list() == ["length"] * 6
    assert not samples["censored"].any()


def test_a_recorded_run_is_sent_to_a_server(server, in_process, tmp_path):
    """Its prompts, its lengths and its load; predicted from its own steps, and measured."""
    recorded = in_process[0] / "vote"
    done = warm_ttscope(
        *("replay", recorded, "--against", server, "--json", "-o", tmp_path / "m"),
        *("--set", "engine.max_num_seqs=16", "--set", "engine.max_num_batched_tokens=2048"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, first = json.loads(done.stdout), Recording.open(recorded)
    measured = Recording.open(tmp_path / "m")
    assert measured.samples["error"].null_count() == measured.samples.height == 96
    whole = first.samples["output_tokens"].sum()  # thoughts and forced answers
    assert measured.samples["output_tokens"].sum() == whole
    prompts = [each.problems.sort("problem_id")["prompt_tokens"] for each in (first, measured)]
    assert prompts[0].to_list() == prompts[1].to_list()
    latency = found["changes"]["latency_s.mean"]
    assert latency["predicted"]["low"] < latency["predicted"]["value"]
    assert latency["measured"]["value"] > 0.5 * latency["predicted"]["value"]
    assert not any("another number of tokens" in note for note in found["notes"])
    # What a server of its own does more is told, not hidden.
    assert any("front end" in note for note in found["notes"])


def test_server_settings_are_read(server):
    engine = ServerEngine(server)
    engine.close()
    assert engine.config.mode == "server"
    assert engine.config.max_model_len == 1024
    assert engine.config.block_size and engine.config.num_gpu_blocks
    assert engine.config.vllm_version
    assert engine.model.total_parameters == 302_208


def test_sweep_like_record_over_the_endpoint(server, tmp_path):
    done = warm_ttscope(
        "record", "--endpoint", server, "--n", "3", "--problems", "6", "-o", tmp_path / "r"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tensor_parallel_size, which is taken as 1" in done.stderr
    assert Recording.open(tmp_path / "r").problems.height == 6


def test_cancel_closes_the_stream(server):
    engine = ServerEngine(server)
    names = [f"c.{index}.0" for index in range(12)]
    for name in names:
        engine.submit(
            SampleRequest(
                request_id=name, prompt="0" * 40, chat=False, temperature=1.5, top_p=1.0,
                max_tokens=900,
            )
        )  # fmt: skip
    time.sleep(0.02)
    results = engine.cancel(names)
    assert results and {result.finish_reason for result in results} == {"abort"}
    assert engine.cancel(names) == []
    engine.close()


def test_nobody_there():
    with pytest.raises(EngineError, match="no server answers"):
        ServerEngine(f"http://127.0.0.1:{free_port()}")


def test_environment_of_the_user_stands(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    prepare_environment()
    assert os.environ["OMP_NUM_THREADS"] == "2"
