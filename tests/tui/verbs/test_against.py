"""`ttscope replay --against`, with a stub in place of the server."""

import json

import pytest

from benchmarks.made.stub import StubEngine
from profiler.engines.server import server
from profiler.runs.record import record
from profiler.workload.problems import load_workload
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy
from tui.verbs import against
from tui.verbs.demo import SHIPPED

VOTE = Policy(method="majority", n=2, temperature=0.8, max_tokens=50)
URL = "http://127.0.0.1:9"
GREEDY = SHIPPED / "demo-s-tp1-seqs64-greedy-t0-a1b97ae0"


class StubServer(StubEngine):
    """Stands where `ServerEngine` does; keeps what it was asked for."""

    asked: dict = {}  # noqa: RUF012

    def __init__(self, url, **options):
        type(self).asked = {"url": url, **options}
        super().__init__(step_s=0.001)
        self.url = url


@pytest.fixture
def recording(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "ServerEngine", StubServer)
    workload = load_workload("demo", problems=5)
    return record(workload, VOTE, StubEngine(step_s=0.001), tmp_path / "rec", concurrency=2)


@pytest.mark.slow
def test_a_run_is_sent_as_it_was_recorded(run, recording, tmp_path):
    out = run.ok("replay", recording, "--against", URL, "-o", tmp_path / "m")
    lines = out.splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    assert "5 problems, 2 problems in flight, every sample as long as recorded" in out
    assert any(line.startswith("latency mean") for line in lines)
    assert "off by: measured against" in out
    assert "are not judged" in out
    measured = Recording.open(tmp_path / "m")
    first = Recording.open(recording)
    for table in (measured, first):
        rows = table.samples.sort("problem_id", "sample_index")["output_tokens"].to_list()
        assert rows == first.samples.sort("problem_id", "sample_index")["output_tokens"].to_list()
    assert StubServer.asked["url"] == URL


@pytest.mark.slow
def test_the_document_has_all_three(run, recording, tmp_path):
    out = run.ok(
        "replay", recording, "--against", URL, "-o", tmp_path / "m", "--json",
        "--set", "engine.max_num_seqs=8", "--rate", "200/s",
    )  # fmt: skip
    found = json.loads(out)
    assert set(found) == {
        "recorded", "predicted", "measured", "changes", "recording", "notes"
    }  # fmt: skip
    change = found["changes"]["latency_s.mean"]
    assert set(change) == {"recorded", "predicted", "measured", "relative", "inside"}
    assert change["measured"]["value"] > 0
    assert StubServer.asked["declared"]["max_num_seqs"] == 8
    assert Recording.open(tmp_path / "m").manifest.concurrency is None


@pytest.mark.slow
def test_a_model_that_the_server_names_otherwise_is_predicted_all_the_same(
    run, monkeypatch, tmp_path
):
    monkeypatch.setattr(server, "ServerEngine", StubServer)
    out = run.ok(
        "replay", GREEDY, "--against", URL, "-o", tmp_path / "m", "--json",
        "--set", "engine.model=my-reasoner",
    )  # fmt: skip
    assert StubServer.asked["model"] == "my-reasoner"
    found = json.loads(out)
    assert found["predicted"]["config"]["engine"]["model"] == "demo/s"
    change = found["changes"]["latency_s.mean"]
    low, value, high = (change["predicted"][name] for name in ("low", "value", "high"))
    assert low < value < high
    measured = change["measured"]["value"]
    assert change["relative"] == pytest.approx(measured / value - 1)
    assert change["inside"] == (low <= measured <= high)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workload", "x.jsonl"), "go with --against URL"),
        (("--raw-prompts",), "go with --against URL"),
        (("--against", URL, "--set", "policy.method=early_stopping"), "decides by answers"),
        (("--against", URL, "--workload", "nowhere.jsonl"), "cannot be read"),
        (("--against", URL, "--api-key-env", "NO_SUCH_KEY"), "not set"),
        (("--against", URL, "-o", "rec"), "already holds a recording"),
    ],
)
def test_what_cannot_be_sent_is_one_line(run, recording, arguments, message):
    assert message in run.refused("replay", recording, *arguments)


def test_what_the_server_says_of_itself_counts_but_for_what_was_asked_for():
    asked = EngineConfig(model="m", max_model_len=512, num_gpu_blocks=100)
    served = EngineConfig(model="m", max_model_len=4096, num_gpu_blocks=9000)
    found = against._as_served(asked, served, frozenset({"engine.max_model_len"}))
    assert (found.max_model_len, found.num_gpu_blocks) == (512, 9000)
    assert against._as_served(asked, EngineConfig(model="m"), frozenset()) == asked
