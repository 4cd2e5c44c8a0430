"""`record`: what is said while it runs."""

import dataclasses
import json
from http.server import BaseHTTPRequestHandler

import pytest

from benchmarks.made.stub import StubEngine
from benchmarks.servers.fake_engine import FakeEngine, running
from profiler.engines import start
from profiler.engines.server.server import what_it_said
from profiler.sweep import plan
from tests.loopback import serving
from traces.recording.reader import Recording

NO_OTHERS = "demo/s knows the demo's sums alone. Its accuracy on other questions is about 0"


@pytest.mark.parametrize(("workload", "said"), [("own.jsonl", True), ("demo", False)])
def test_a_bundled_reasoner_that_is_asked_something_else(
    run, tmp_path, monkeypatch, workload, said
):
    """Its accuracy of zero is no fault of the questions or of the verifier."""
    (tmp_path / "own.jsonl").write_text('{"id": 1, "prompt": "2 + 3?", "answer": "5"}\n')
    engine = StubEngine(answers=lambda name: "so</think>12")
    engine.config = dataclasses.replace(engine.config, model="demo/s")
    monkeypatch.setattr(start, "start_engine", lambda *_, **__: engine)
    monkeypatch.chdir(tmp_path)
    code, _, err = run(
        "record", "--model", "demo/s", "--workload", workload, "--problems", "1", "-o", "made"
    )
    assert (code, NO_OTHERS in err) == (0, said), err


@pytest.mark.parametrize(("workload", "said"), [("own.jsonl", 1), ("demo", 0)])
def test_a_sweep_of_bundled_reasoners_says_so_too(run, tmp_path, monkeypatch, workload, said):
    (tmp_path / "own.jsonl").write_text('{"id": 1, "prompt": "2 + 3?", "answer": "5"}\n')
    engine = {"model": "demo/s", "policies": [{"method": "greedy"}, {"method": "majority", "n": 2}]}
    document = {"workload": workload, "problems": 1, "engines": [engine]}
    (tmp_path / "plan.yaml").write_text(json.dumps(document))
    monkeypatch.setattr(plan, "run_plan", lambda *_, **__: [])
    monkeypatch.chdir(tmp_path)
    _, _, err = run("sweep", "plan.yaml")
    assert err.count(NO_OTHERS) == said, err


@pytest.fixture
def refusing():
    """A server that has the model and answers every question with an error."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path == "/v1/models"
            self._answer(200 if known else 404, b'{"data": [{"id": "m", "max_model_len": 1024}]}')

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(400, b'{"error": {"message": "no adapter\\n of that name", "code": 400}}')

        def _answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as url:
        yield url


def test_a_run_whose_every_sample_failed_is_an_error_and_is_kept(run, refusing, tmp_path):
    asked = ("--endpoint", refusing, "--problems", "3", "--n", "2", "-o")
    for more in ((), ("--json",)):
        folder = tmp_path / f"kept{len(more)}"
        code, out, err = run("record", *asked, folder, *more)
        assert (code, out) == (1, "")
        told = "all 6 samples failed (HTTP 400, no adapter of that name)."
        assert err.splitlines()[-1].endswith(f"{told} {folder} keeps what was recorded")
        kept = Recording.open(folder)
        assert kept.complete and kept.samples["error"].to_list() == ["HTTP 400"] * 6


@pytest.mark.parametrize(
    "asked", [("replay",), ("advise", "--min-accuracy", "0.5")], ids=["replay", "advise"]
)
def test_what_a_server_answered_says_how_its_steps_are_had(run, tmp_path, asked):
    """A client sees no step, and `record --model` is no way out for a model that is served."""
    with running(FakeEngine()) as url:
        sent = ("--problems", "2", "--n", "2", "--concurrency", "2", "-o", tmp_path / "made")
        run.ok("record", "--endpoint", url, *sent)
    verb, *options = asked
    message = run.refused(verb, tmp_path / "made", *options, code=1)
    assert "attach URL --workload FILE --listen 4318" in message and "plugin" in message
    assert "record --model" not in message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no model x"}}', "no model x"),
        (b'{"error": "busy"}', "busy"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"message": "out of room"}', "out of room"),
        (b"<h1>\x1b[31mBad\n gateway</h1>", "<h1>[31mBad gateway</h1>"),
        (b"", None),
        (b"x" * 900, "x" * 200 + ".."),
    ],
)
def test_what_a_server_said_is_a_line(body, said):
    assert what_it_said(body) == said
