"""`ttscope advise`: what it refuses before it learns, and predicted beside measured."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.traces.synthetic import engine_config, simulate, write_recording
from tests.tui.fake_advisor import LARGE, SMALL, FakeAdvisor, estimate
from traces.deployment.documents import Expectations
from traces.errors import UsageError
from traces.recording.manifest import Manifest, WorkloadFacts
from traces.recording.writer import RecordingWriter, read_clocks
from traces.schema.advice import Budget
from traces.schema.tts.policy import AS_SENT, Policy
from tui.text.advice import comparison_lines
from tui.verbs.advise import _what_times_hold, configuration_of, verify_picks
from tui.verbs.demo import SHIPPED

GIVEN = ("--min-accuracy", "0.75")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "there.yaml"], "is there already. Name another file"),
        (["-o", "kept"], "-o kept: already holds policy.json"),
        (["--price", "H100"], "wants USD per device-hour above 0"),
        (["--price", "2", "--price", "3"], "another price for all devices"),
        (["--percentile", "100"], "50 to 99"),
    ],
)
def test_wrong_use_is_one_line_before_anything_is_learned(run, tmp_path, arguments, message):
    (tmp_path / "there.yaml").write_text("")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "policy.json").write_text("")
    assert message in run.refused("advise", SHIPPED, *GIVEN, *arguments, code=2)


def test_a_present_folder_that_is_no_recording_is_refused(run, tmp_path):
    assert "absent" in run.refused(
        "advise", SHIPPED, *GIVEN, "--present", tmp_path / "absent", code=1
    )


def test_a_prediction_that_is_present_stands_for_its_source(run, tmp_path):
    source = write_recording(tmp_path / "runs" / "source", simulate(problems=4, n=2))
    guess = write_recording(
        tmp_path / "guess",
        simulate(problems=4, n=2),
        engine=engine_config(max_num_seqs=9),
        provenance={"replayed": {"recording": "source"}},
    )
    (engine,) = source.manifest.engines.values()
    for among in (tmp_path / "runs", source.path):
        assert configuration_of(guess.path, [SHIPPED, among])[0] == engine
    told = run.refused("advise", SHIPPED, *GIVEN, "--present", guess.path, code=1)
    assert "guess is a prediction. Give the recording" in told and "(source)" in told


def test_a_watched_server_that_is_present_has_its_traffic_as_sent(run, tmp_path):
    engines, greedy = {"one": engine_config(mode="server")}, Policy(method="greedy", n=1)
    kinds = {"live": {}, "two": {"a": greedy, "b": AS_SENT}}
    for name, policies in kinds.items():
        manifest = Manifest(clock_start=read_clocks(), engines=engines, policies=policies)
        RecordingWriter(tmp_path / name, manifest).close(complete=True)
    assert configuration_of(tmp_path / "live", [])[1] == AS_SENT
    told = run.refused("advise", SHIPPED, *GIVEN, "--present", tmp_path / "two", code=2)
    assert "holds 1 engines and 2 policies" in told


EVIDENCE = SimpleNamespace(workload=None, load=(2, None))


@pytest.mark.parametrize(
    ("changes", "evidence", "message"),
    [
        ({"mode": "server"}, EVIDENCE, "record it with --endpoint"),
        ({"data_parallel_size": 2}, EVIDENCE, "has 2 replicas"),
        (
            {"data_parallel_size": 4, "other": (("ranks", "2"),)},
            EVIDENCE,
            "has 2 servers of 2 data-parallel ranks, which are not run here. "
            "Serve it and run ttscope attach URL1 URL2 --listen 4318 --workload FILE",
        ),
        ({}, SimpleNamespace(workload=None, load=(None, 3.0)), "sends none at a --rate"),
    ],
)
def test_what_cannot_be_run_here_is_not_verified(tmp_path, changes, evidence, message):
    engine = dataclasses.replace(LARGE.engine, mode="in_process")
    pick = dataclasses.replace(LARGE, engine=dataclasses.replace(engine, **changes))
    other = dataclasses.replace(SMALL, engine=dataclasses.replace(SMALL.engine, mode="in_process"))
    answer = dataclasses.replace(
        FakeAdvisor([]).recommend(Budget()), system_optimal=pick, compute_optimal=other
    )
    with pytest.raises(UsageError, match=message):
        verify_picks(answer, evidence, tmp_path, as_json=True)
    assert not list(tmp_path.iterdir())


def test_measured_stands_beside_predicted():
    measured = {
        "accuracy": estimate(0.9, "1"), "latency_s": estimate(9.0, "s"), "latency_p95_s": None,
        "device_s": estimate(0.8, "device-s"), "energy_j": None, "tokens": None,
    }  # fmt: skip
    lines = comparison_lines("system-optimal", LARGE, measured)
    told = {line.split("  ")[0]: line.split()[-1] for line in lines if line}
    told = {name: word for name, word in told.items() if word in ("yes", "no", "-")}
    assert told == {
        "accuracy": "yes", "mean latency": "no", "p95 latency": "-", "device time": "yes",
        "tokens": "-",
    }  # fmt: skip
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("workload", "told", "command"),
    [
        ("qwen3-8b", "problems.jsonl stands for the file of the problems", "problems.jsonl"),
        ("sums.jsonl", None, "sums.jsonl"),
        ("demo:preamble", None, "demo:preamble"),
    ],
)
def test_a_name_that_is_no_file_is_not_printed_as_one(
    tmp_path, monkeypatch, workload, told, command
):
    monkeypatch.chdir(tmp_path)
    Path("sums.jsonl").touch()
    facts = WorkloadFacts(name=workload, hash="0", problems=3)
    expected = Expectations(engine=SMALL.engine, policy=SMALL.policy, promised={}, workload=facts)
    lines = " ".join(_what_times_hold(expected, "cfg", "ttscope"))
    assert f"--workload {command} " in lines
    assert ("stands for" in lines) == (told is not None) and (told or "") in lines


@pytest.mark.parametrize(("limit", "sure", "is_told"), [(1.0, 0.3, True), (1.0, 0.95, False),
                                                        (None, 0.3, False)])  # fmt: skip
def test_a_limit_that_breaks_through_a_server_is_told(limit, sure, is_told):
    expected = Expectations(
        engine=SMALL.engine, policy=SMALL.policy, promised={}, probability_within_budget=sure,
        budget=Budget(max_latency_s=limit), served=estimate(4.149, "1"),
    )  # fmt: skip
    told = " ".join(_what_times_hold(expected, "cfg", "ttscope"))
    assert "through a server: 4.15 [" in told
    assert ("all limits hold with a probability of 30 % alone" in told) == is_told
