"""`ttscope gate --endpoint`: a server recorded as its baseline was, and judged."""

import json

import pytest

from benchmarks.servers.fake_engine import FakeEngine, running
from tests.tui.conftest import run  # noqa: F401

pytestmark = pytest.mark.slow


def test_a_server_that_got_worse_fails(run, tmp_path):  # noqa: F811
    rows = [{"id": i, "prompt": f"{i}?", "answer": "12"} for i in range(40)]
    (tmp_path / "w.jsonl").write_text("\n".join(map(json.dumps, rows)))
    engine = FakeEngine(token_s=0.002)
    options = ("--workload", "w.jsonl", "--verifier", "numeric")
    with running(engine) as url:
        asked = ("--endpoint", url, *options)
        assert run("record", *asked, "--n", 3, "-o", "base")[0] == 0
        code, _, err = run("gate", "base", "--endpoint", url)
        assert code == 2 and "--workload FILE (w.jsonl)" in err
        code, out, err = run("gate", "base", *asked, "-o", "same", "--fail-on", "accuracy<-.2")
        assert code == 0, out + err
        assert len(engine.asked) == 240  # under the baseline's policy
        engine.answers = lambda body, number: "thought</think>13"
        code, out, err = run("gate", "base", *asked, "-o", "new")
        assert code == 3, out + err
        assert "FAIL  accuracy<-.02: -100.0 points" in out
