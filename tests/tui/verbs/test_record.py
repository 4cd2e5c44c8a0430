"""`record`: what is said while it runs."""

import dataclasses
import json

import pytest

from benchmarks.made.stub import StubEngine
from profiler.engines import start
from profiler.sweep import plan

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
