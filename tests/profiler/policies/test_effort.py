"""`reasoning_effort` goes to the chat template, and is refused where it would change nothing."""

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.made.stub import StubEngine
from profiler.runs.record import record
from profiler.workload.problems import load_workload
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.tts.parameters import make_policy
from traces.schema.tts.policy import Policy

HIGH = Policy(reasoning_effort="high", max_tokens=200)


def test_effort_reaches_the_engine_and_the_recording(tmp_path):
    engine = StubEngine()
    engine.chat_template = "{{ reasoning_effort }}"
    path = record(load_workload("demo", problems=2), HIGH, engine, tmp_path / "r")
    assert {request.reasoning_effort for request in engine.submitted} == {"high"}
    (kept,) = Recording.open(path).manifest.policies.values()
    assert kept.reasoning_effort == "high" and kept.label() == "greedy high"


EASY = make_policy(
    {"method": "routed", "n": 4, "route": "level 3=1@low | *=4@high", "temperature": 0.8}
)


@pytest.mark.parametrize(
    ("template", "policy", "chat", "message"),
    [
        ("{{ content }}", HIGH, True, "has no reasoning_effort"),
        ("{{ enable_thinking }}", replace(HIGH, reasoning_effort="low"), True,
         "has no reasoning_effort"),
        ("{{ content }}", replace(HIGH, reasoning_effort="none"), True,
         "no reasoning_effort or enable_thinking"),
        ("{{ reasoning_effort }}", HIGH, False, "Leave out --raw-prompts"),
        ("{{ content }}", EASY, True, "reasoning_effort low would change nothing"),  # of a class
    ],
)  # fmt: skip
def test_an_effort_that_would_change_nothing_is_refused(tmp_path, template, policy, chat, message):
    engine = StubEngine()
    engine.chat_template = template
    workload = replace(load_workload("demo", problems=2), chat=chat)
    with pytest.raises(UsageError, match=message):
        record(workload, policy, engine, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_each_class_is_drawn_at_its_own_effort(tmp_path):
    engine = StubEngine()
    engine.chat_template = "{{ reasoning_effort }}"
    workload = load_workload("demo", problems=12)
    groups = {problem.problem_id: problem.group for problem in workload.problems}
    assert {"level 3"} < set(groups.values())
    path = record(workload, EASY, engine, tmp_path / "r")
    for request in engine.submitted:
        group = groups[request.request_id.split(".")[1]]
        assert request.reasoning_effort == ("low" if group == "level 3" else "high")
    recording = Recording.open(path)
    assert list(recording.manifest.policies.values()) == [EASY]
    drawn = Counter(recording.samples["problem_id"])
    assert drawn == {name: 1 if group == "level 3" else 4 for name, group in groups.items()}


def test_an_unknown_effort_is_refused():
    with pytest.raises(UsageError, match="no reasoning_effort 'huge'"):
        Policy(reasoning_effort="huge")
