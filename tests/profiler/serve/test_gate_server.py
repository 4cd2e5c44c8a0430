"""`ttscope gate --endpoint`: a server recorded as its baseline was, and judged."""

import json

import pytest
from aiohttp import web

from benchmarks.servers.fake_engine import FakeEngine, running
from tests.tui.conftest import run  # noqa: F401

pytestmark = pytest.mark.slow


class Halting(FakeEngine):
    """An engine that answers 500 to each problem of an odd number, once it is `broken`."""

    broken = False

    async def complete(self, request):
        number = int((await request.json())["messages"][-1]["content"].rstrip("?"))
        if self.fault is None and self.broken and number % 2:
            return web.json_response({"error": {}}, status=500)
        return await super().complete(request)


def test_a_server_that_fails_on_half_of_the_problems_fails(run, tmp_path):  # noqa: F811
    rows = [{"id": i, "prompt": f"{i}?", "answer": "12"} for i in range(24)]
    (tmp_path / "w.jsonl").write_text("\n".join(map(json.dumps, rows)))
    engine = Halting(token_s=0.002)
    with running(engine) as url:
        asked = ("--endpoint", url, "--workload", "w.jsonl", "--verifier", "numeric")
        assert run("record", *asked, "-o", "base")[0] == 0
        engine.broken = True
        code, out, err = run("gate", "base", *asked, "-o", "new", "--fail-on", "accuracy<-.4")
        assert code == 3, out + err
        assert "FAIL  problems that failed: +50.0 points" in out
        assert "problems that failed 0 of 24 -> 12 of 24" in out
        engine.fault = 500
        code, out, err = run("gate", "base", *asked, "-o", "none")
        assert code == 3, out + err
        assert "FAIL  problems that failed: +100.0 points" in out


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
