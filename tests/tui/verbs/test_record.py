"""`record`: what is said while it runs."""

import dataclasses

import pytest

from benchmarks.made.stub import StubEngine
from profiler.engines import start

NO_OTHERS = "demo/s answers the demo's problems alone, and no others"


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
