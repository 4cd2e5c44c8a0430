"""Plans: grids, resuming, failures; engines are replaced by a child that needs none."""

import json
import sys

import pytest

from profiler.sweep import plan as sweep
from profiler.workload.problems import load_workload
from traces.errors import UsageError
from traces.recording.manifest import CheckpointCost, Manifest
from traces.recording.writer import RecordingWriter, read_clocks

PLAN = """
workload: demo
problems: 4
engines:
  - model: [demo/s, demo/l]
    max_num_seqs: [8, 16]
    policies:
      - {method: majority, n: [2, 4], temperature: 0.8}
      - {method: greedy}
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return sweep.load_plan(path)


def test_grid(plan):
    assert len(plan) == 4
    assert all(len(group.jobs) == 3 for group in plan)
    names = [job.name for group in plan for job in group.jobs]
    assert len(set(names)) == 12
    assert sweep.EngineJobs.from_json(json.loads(json.dumps(plan[0].to_json()))) == plan[0]


def test_a_grid_of_policy_parameters(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "budget_checkpoints: [8, 16]\nengines: [{model: a, policies: "
        "[{method: early_stopping, n: 16, window: [2, 4], temperature: 0.8}]}]"
    )
    (group,) = sweep.load_plan(path)
    assert [job.policy.label() for job in group.jobs] == ["esc 2/16", "esc 4/16"]
    assert all(job.budget_checkpoints == (8, 16) for job in group.jobs)
    assert sweep.EngineJobs.from_json(json.loads(json.dumps(group.to_json()))) == group


def test_the_demo_plan_loads():
    from tui.verbs.demo import DEMO

    assert len(sweep.load_plan(DEMO / "plan.yaml")) <= 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engines: [", "not YAML"),
        ("engines: " + "[" * 5_000, "not YAML"),
        ("engines: 2026-13-01", "not YAML"),
        (f"engines: {'9' * 5_000}", "not YAML"),
        ("engines: \udcff", "not YAML"),
        (f"repeats: {10**9}\nengines: [{{model: a, policies: [{{}}]}}]", "repeats must be at most"),
        ("problems: 3", "list named engines"),
        ("engines: [{model: demo/s}]", "needs policies"),
        ("engines: [{policies: [{}]}]", "needs a model"),
        ("engines: 3", "engines must be a list of settings"),
        ("engines: [{model: a, policies: {n: 2}}]", "engine 1: policies must be a list"),
        ("repeats: two\nengines: [{model: a, policies: [{}]}]", "repeats must be a whole number"),
        ("repeats: 0\nengines: [{model: a, policies: [{}]}]", "repeats must be at least 1, not 0"),
        ("seed: -1\nengines: [{model: a, policies: [{}]}]", "seed must be at least 0, not -1"),
        (f"seed: {1 << 63}\nengines: [{{model: a, policies: [{{}}]}}]", "seed must be below 2"),
        ("timeout_s: 0\nengines: [{model: a, policies: [{}]}]", "timeout_s must be above 0, not 0"),
        ("logprobs: si\nengines: [{model: a, policies: [{}]}]", "logprobs must be true or false"),
        ("workload: 5\nengines: [{model: a, policies: [{}]}]", "workload must be a text .*, not 5"),
        ('engines: [{model: "a\\0b", policies: [{}]}]', "model must be a text of one line"),
        ("engines: [{model: a\x00b, policies: [{}]}]", "not YAML"),
        (f"engines: [{{model: {'n' * 5_000}, policies: [{{}}]}}]", "must be a text of one line"),
        (f"workload: {'n' * 5_000}\nengines: [{{model: a, policies: [{{}}]}}]", "text of one line"),
        ("engines: [{model: 5, policies: [{}]}]", "engine 1: model must be a text .*, not 5"),
        ("engines: [{model: a, max_num_seqs: 4.5, policies: [{}]}]", "must be a whole number"),
        ("engines: [{model: a, max_num_seqs: [4, x], policies: [{}]}]", "whole number, not x"),
        ("engines: [{model: a, gpu_memory_utilization: 7, policies: [{}]}]", "at most 1, not 7"),
        ("engines: [{model: a, speculative: ngram, policies: [{}]}]", "method and num_speculative"),
        ("engines: [{model: a, policies: [{n: two}]}]", "engine 1: n must be a whole number"),
        ("nonsense: 1\nengines: [{model: a, policies: [{}]}]", "no field 'nonsense'"),
        ("engines: [{model: a, seqs: 3, policies: [{}]}]", "no EngineOptions field 'seqs'"),
        ("engines: [{model: a, policies: [{n: 0}]}]", "n must be at least 1"),
        ("engines: [{model: a, max_num_seqs: 0, policies: [{}]}]", "at least 1"),
        ("engines: [{model: a, policies: [{}, {}]}]", "twice"),
        ("engines: [{model: a, policies: [{}]}, {model: a, policies: [{}]}]", "twice"),
        ("engines: [{model: a, policies: [{method: adaptive, n: 4, window: 2}]}]",
         "window is for early_stopping"),
        ("engines: [{model: a, policies: [{rounds: 2}]}]", "no Policy field 'rounds'"),
        ("budget_checkpoints: 8\nengines: [{model: a, policies: [{}]}]", "list of token counts"),
        ("verifier: guess\nengines: [{model: a, policies: [{}]}]", "no verifier 'guess'"),
    ],
)  # fmt: skip
def test_bad_plans_are_told(tmp_path, text, message):
    path = tmp_path / "plan.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=message):
        sweep.load_plan(path)


def test_a_long_name_of_a_model_gives_a_name_of_a_folder(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps({"engines": [{"model": "模" * 900, "policies": [{}]}]}))
    (group,) = sweep.load_plan(path)
    (tmp_path / group.jobs[0].name).mkdir()


def test_a_workload_that_cannot_be_read_starts_no_engine(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(f"workload: {tmp_path}/none.jsonl\nengines: [{{model: a, policies: [{{}}]}}]")
    with pytest.raises(UsageError, match=r"none.jsonl"):
        sweep.run_plan(sweep.load_plan(path), tmp_path / "runs", runner=pytest.fail)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        sweep.run_plan([], tmp_path / "file" / "runs")


def test_how_often_power_is_read(tmp_path):
    path = tmp_path / "plan.yaml"
    text = "engines: [{model: demo/s}]\npolicies: [{method: greedy}]\n"

    def rates(**options):
        return {job.power_hz for group in sweep.load_plan(path, **options) for job in group.jobs}

    path.write_text(text)
    assert rates() == {20.0}
    path.write_text(text + "power_hz: 50\n")
    assert rates() == {50} and rates(power_hz=10.0) == {10.0}
    (job,) = sweep.load_plan(path)[0].jobs
    assert sweep.Job.from_json(job.to_json()) == job
    path.write_text(text + "power_hz: often\n")
    with pytest.raises(UsageError, match="power_hz must be a number, not often"):
        sweep.load_plan(path)


def keep(path, *, problems=4, samples=(), **facts):
    workload = load_workload("demo", problems=problems).facts("a template")
    facts = {"workload": workload, "concurrency": 8} | facts
    with RecordingWriter(path, Manifest(clock_start=read_clocks(), **facts)) as writer:
        for number, sample in enumerate(samples):
            row = {"problem_id": "p", "sample_index": number, "finish_reason": "stop"}
            writer.append("samples", row | sample)


FORCED = CheckpointCost(
    budgets=(8, 16), samples=2, requests=1, failed=0, seconds=1, prompt_tokens=1, output_tokens=1
)


@pytest.mark.parametrize(
    ("asked", "kept", "other"),
    [
        ("", {}, None),
        ("budget_checkpoints: [16, 8]", {"checkpoints": FORCED}, None),
        ("", {"checkpoints": FORCED}, None),  # more than is asked for
        ("logprobs: true", {"samples": [{"logprob_mean": -1.0}, {}]}, None),
        ("seed: 7", {}, "of another workload"),
        ("", {"problems": 3}, "of another workload"),
        ("", {"workload": None}, "of another workload"),
        ("workload: sums.jsonl\nverifier: math", {}, "of another workload"),
        ("concurrency: 64\nseed: 7", {}, "of another workload and with another concurrency"),
        ("budget_checkpoints: [8]", {"checkpoints": FORCED}, "without these budget_checkpoints"),
        ("budget_checkpoints: [8]", {}, "without these budget_checkpoints"),
        ("logprobs: true", {"samples": [{}]}, "without logprobs"),
        ("record_text: true", {}, "without record_text"),
    ],
)
def test_another_plans_recordings_are_not_taken(tmp_path, monkeypatch, asked, kept, other):
    monkeypatch.chdir(tmp_path)
    lines = [{"id": str(i), "prompt": "1 + 1", "answer": "2"} for i in range(4)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"{asked}\nproblems: 4\nengines: [{{model: a, policies: [{{n: 2, temperature: 0.8, "
        "method: majority}]}]\n"
    )
    loaded = sweep.load_plan(plan)
    (job,) = loaded[0].jobs
    keep(tmp_path / "runs" / job.name, **kept)
    if other is None:
        assert [outcome.skipped for outcome in sweep.run_plan(loaded, tmp_path / "runs")] == [True]
    else:
        with pytest.raises(UsageError, match=f"{job.name}: was recorded {other}"):
            sweep.run_plan(loaded, tmp_path / "runs")


def test_finished_jobs_are_skipped_and_failures_recorded(plan, tmp_path, monkeypatch):
    folder = tmp_path / "runs"
    group = plan[0]
    done, half, bad = group.jobs
    keep(folder / done.name)
    RecordingWriter(folder / half.name, Manifest(clock_start=read_clocks())).close(complete=False)
    child = tmp_path / "child.py"
    child.write_text(
        "import json, sys\n"
        "order = json.load(sys.stdin)\n"
        "for job in order['jobs']:\n"
        f"    error = 'broken' if job['name'] == {bad.name!r} else None\n"
        "    print(json.dumps({'finished': job['name'], 'error': error}))\n"
    )
    real = sweep.subprocess.Popen
    monkeypatch.setattr(
        sweep.subprocess, "Popen", lambda _, **rest: real([sys.executable, str(child)], **rest)
    )
    outcomes = {o.name: o for o in sweep.run_plan([group], folder)}
    assert outcomes[done.name].skipped
    assert outcomes[half.name].error is None
    assert outcomes[bad.name].error == "broken"
    assert "broken" in (folder / "failures.jsonl").read_text()
    aside = [path.name for path in folder.iterdir() if ".incomplete-" in path.name]
    assert len(aside) == 1


def test_a_child_that_dies_fails_its_jobs(plan, tmp_path, monkeypatch):
    real = sweep.subprocess.Popen
    monkeypatch.setattr(
        sweep.subprocess,
        "Popen",
        lambda _, **rest: real([sys.executable, "-c", "import sys; sys.exit(9)"], **rest),
    )
    outcomes = sweep.run_plan(plan[:1], tmp_path / "runs")
    assert all("exit code 9" in outcome.error for outcome in outcomes)
