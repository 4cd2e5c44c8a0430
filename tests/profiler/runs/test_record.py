"""A run from workload to recording, on an engine without a model."""

import json
from dataclasses import replace

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from benchmarks.made.stub import StubEngine
from profiler.runs.record import record
from profiler.workload.problems import Problem, Workload, load_workload
from profiler.workload.verifiers import ByText, verifier
from tests.loopback import collecting, taking
from traces.errors import EngineError, UsageError
from traces.recording.reader import Recording
from traces.schema.tts.policy import Policy

CANARY = "canary-7f3a"


def private_workload(count=3):
    problems = [
        Problem(problem_id=f"p{i}", prompt=f"{CANARY} prompt {i}", expected=f"{CANARY}-right")
        for i in range(count)
    ]
    return Workload(
        name="private",
        problems=problems,
        verifier=ByText(answer_of=lambda text: text.rpartition("</think>")[2] or None),
    )


def voting(*answers):
    """An answer function: sample i of each problem answers answers[i]; None does not parse."""

    def text(request_id):
        answer = answers[int(request_id.rpartition(".")[2])]
        return f"{CANARY} thought</think>{answer or ''}"

    return text


def everything_in(folder):
    """All bytes of a recording's files, Parquet values as text."""
    recording = Recording.open(folder)
    tables = [
        json.dumps(recording.frame(t).to_dicts(), default=str)
        for t in ("problems", "samples", "steps", "events", "answers")
    ]
    raw = b"".join(path.read_bytes() for path in folder.iterdir())
    return "".join(tables) + raw.decode("latin-1")


def test_majority_vote_is_recorded(tmp_path):
    right, wrong = f"{CANARY}-right", f"{CANARY}-wrong"
    engine = StubEngine(answers=voting(wrong, right, right, None))
    policy = Policy(method="majority", n=4, temperature=0.8, max_tokens=50)
    path = record(private_workload(), policy, engine, tmp_path / "r", concurrency=2)
    recording = Recording.open(path)
    assert recording.complete
    problems, samples = recording.problems, recording.samples
    assert problems["correct"].to_list() == [True] * 3
    assert problems["end"].null_count() == problems["decided_at"].null_count() == 0
    assert (problems["decided_at"] >= problems["arrival"]).all()
    assert samples.height == 12
    assert samples["correct"].to_list().count(True) == 6
    for _, group in samples.group_by("problem_id"):
        ordered = group.sort("sample_index")
        assert ordered["sample_index"].to_list() == [0, 1, 2, 3]
        first, second, third, fourth = ordered["answer"].to_list()
        assert second == third != first
        assert fourth is None
    assert problems["expected"].null_count() == 3
    assert recording.steps["step"].to_list() == list(range(recording.steps.height))
    assert recording.manifest.probe_cost_us == 0.5
    assert recording.manifest.workload.problems == 3


def test_cached_of_a_prompt_is_what_each_sample_found(tmp_path):
    class Caching(StubEngine):
        def _result(self, made, reason):
            first = made.request.request_id.endswith(".0")
            return replace(super()._result(made, reason), cached_tokens=2 if first else 4)

    policy = Policy(method="majority", n=3, temperature=0.8, max_tokens=50)
    path = record(private_workload(), policy, Caching(lengths=(3, 9)), tmp_path / "r")
    assert Recording.open(path).problems["cached_prompt_tokens"].to_list() == [2] * 3


@pytest.mark.parametrize("keep", [False, True])
def test_text_is_kept_only_when_asked_for(tmp_path, keep):
    engine = StubEngine(answers=voting(f"{CANARY}-right"))
    record(private_workload(), Policy(), engine, tmp_path / "r", record_text=keep)
    assert (CANARY in everything_in(tmp_path / "r")) is keep
    samples = Recording.open(tmp_path / "r").samples
    assert samples["token_ids"].null_count() == (0 if keep else samples.height)


def test_no_answer_at_all_is_wrong_and_failures_are_told(tmp_path):
    engine = StubEngine(answers=voting(None, None), fail={"p0.0", "p0.1", "p1.0"})
    policy = Policy(method="majority", n=2, temperature=0.8)
    record(private_workload(), policy, engine, tmp_path / "r")
    rows = {row["problem_id"]: row for row in Recording.open(tmp_path / "r").problems.to_dicts()}
    assert rows["p0"]["correct"] is None
    assert rows["p0"]["error"] == "2 samples failed"
    assert rows["p2"]["correct"] is False
    samples = Recording.open(tmp_path / "r").samples
    assert samples["error"].drop_nulls().to_list() == ["HTTP 500"] * 3


def test_engine_failure_leaves_an_incomplete_recording(tmp_path):
    engine = StubEngine()
    poll, calls = engine.poll, iter(range(100))

    def failing():
        if next(calls) > 4:
            raise EngineError("gone")
        return poll()

    engine.poll = failing
    workload = load_workload("demo", problems=30)
    with pytest.raises(EngineError, match="gone"):
        record(workload, Policy(), engine, tmp_path / "r", concurrency=3)
    recording = Recording.open(tmp_path / "r")
    assert not recording.complete
    in_flight = recording.problems.filter(recording.problems["end"].is_null())
    assert in_flight.height == 3
    assert in_flight["arrival"].null_count() == 0
    assert len(engine.cancelled) == 3


def test_policies_that_cannot_run_leave_nothing_behind(tmp_path):
    with pytest.raises(UsageError, match="window must be at most n = 4"):
        record(
            load_workload("demo", problems=1),
            Policy(method="early_stopping", n=4, rule=(("window", 9.0),)),
            StubEngine(),
            tmp_path / "r",
        )
    assert not (tmp_path / "r").exists()


def spans_in(request):
    return [
        span
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


@pytest.fixture
def receiver():
    """A collector over HTTP; gives its URL and the spans that came."""
    spans = []

    def accept(body, _):
        spans.extend(spans_in(ExportTraceServiceRequest.FromString(body)))

    with taking("/v1/traces", accept) as url:
        yield url, spans


def test_spans_go_by_grpc_where_that_is_asked_for(tmp_path, monkeypatch):
    spans = []

    def export(request, _):
        spans.extend(spans_in(request))

    kinds = ExportTraceServiceRequest, ExportTraceServiceResponse
    with collecting("trace", export, *kinds) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        record(private_workload(), Policy(), StubEngine(), tmp_path / "r")
        assert [span.name for span in spans].count("tts.problem") == 3
        spans.clear()
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
        record(private_workload(), Policy(), StubEngine(), tmp_path / "none")
        assert not spans
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json")
    with pytest.raises(UsageError, match="http/protobuf or grpc"):
        record(private_workload(), Policy(), StubEngine(), tmp_path / "json")


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_otlp_receiver_sees_parent_links(tmp_path, receiver, monkeypatch, how):
    url, sent = receiver
    if how == "environment":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    policy = Policy(method="majority", n=3, temperature=0.8)
    engine = StubEngine(answers=voting(f"{CANARY}-a", f"{CANARY}-b", f"{CANARY}-a"))
    otlp = url if how == "flag" else None
    record(private_workload(), policy, engine, tmp_path / "r", otlp=otlp)
    spans = {span.span_id: span for span in sent}
    names = [span.name for span in spans.values()]
    assert names.count("tts.run") == 1
    assert names.count("tts.problem") == 3
    assert names.count("tts.sample") == 9
    for span in spans.values():
        parent = spans.get(span.parent_span_id)
        wanted = {"tts.run": None, "tts.problem": "tts.run", "tts.sample": "tts.problem"}
        assert (parent and parent.name) == wanted[span.name]
        assert CANARY not in str(span)
    assert len({span.trace_id for span in spans.values()}) == 1
    recorded = Recording.open(tmp_path / "r").samples["span_id"].to_list()
    sent = [span.span_id.hex() for span in spans.values() if span.name == "tts.sample"]
    assert sorted(recorded) == sorted(sent)


def test_spans_say_the_reasoning_effort_of_their_class(tmp_path, receiver):
    engine, workload = StubEngine(), load_workload("demo", problems=12)
    engine.chat_template = "{{ reasoning_effort }}"
    policy = Policy(method="routed", rule=(("route", "level 3=1@high | *=1"),))
    record(workload, policy, engine, tmp_path / "r", otlp=receiver[0])
    high = {each.problem_id for each in workload.problems if each.group == "level 3"}
    efforts = {"tts.problem": {}, "tts.sample": {}}
    for span in receiver[1]:
        said = {each.key: each.value.string_value for each in span.attributes}
        if span.name in efforts:
            effort = said.get("tts.policy.reasoning_effort")
            efforts[span.name][said["tts.problem.id"]] = effort
    assert len(efforts["tts.sample"]) == 12 > len(high) > 0
    for found in efforts.values():
        assert found == {name: "high" if name in high else None for name in found}


def test_a_dead_otlp_endpoint_costs_the_run_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("profiler.runs.telemetry._LAST_S", 1.0)  # that it is waited for at the end
    policy = Policy()
    record(private_workload(), policy, StubEngine(), tmp_path / "r", otlp="http://127.0.0.1:9")
    assert Recording.open(tmp_path / "r").complete


def test_bad_telemetry_settings_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="OTLP/HTTP URL"):
        record(private_workload(), Policy(), StubEngine(), tmp_path / "a", otlp="nonsense")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with pytest.raises(UsageError, match="Unset it"):
        record(
            private_workload(), Policy(), StubEngine(), tmp_path / "b", otlp="http://127.0.0.1:9"
        )
    record(private_workload(), Policy(), StubEngine(), tmp_path / "c")  # nothing is sent


def test_two_runs_have_different_trace_ids_under_a_seeded_random(tmp_path):
    import random

    ids = []
    for name in ("a", "b"):
        random.seed(0)
        record(private_workload(), Policy(), StubEngine(), tmp_path / name)
        ids.append(Recording.open(tmp_path / name).problems["trace_id"][0])
    assert ids[0] != ids[1]


def test_votes_count_classes_of_the_verifier(tmp_path):
    said = ["0.5", "3", "1/2", "the answer is 50%"]
    engine = StubEngine(answers=lambda name: f"hm</think>{said[int(name.rpartition('.')[2])]}")
    problems = [Problem(problem_id="a", prompt="?", expected="0.50")]
    workload = Workload(name="own", problems=problems, verifier=verifier("numeric"))
    policy = Policy(method="majority", n=4, temperature=0.8)
    record(workload, policy, engine, tmp_path / "r")
    recording = Recording.open(tmp_path / "r")
    by_index = dict(recording.samples.select("sample_index", "answer").iter_rows())
    assert by_index[0] == by_index[2] == by_index[3] != by_index[1]
    right = dict(recording.samples.select("sample_index", "correct").iter_rows())
    assert right == {0: True, 1: False, 2: True, 3: True}
    assert recording.problems["correct"].to_list() == [True]
    assert recording.manifest.workload.verifier == "numeric"


def test_a_policy_of_an_import_cannot_be_run(tmp_path):
    policy = Policy(method="majority", n=2, temperature=None)
    with pytest.raises(UsageError, match="temperature and top_p must be numbers"):
        record(load_workload("demo", problems=1), policy, StubEngine(), tmp_path / "r")
    assert not (tmp_path / "r").exists()
