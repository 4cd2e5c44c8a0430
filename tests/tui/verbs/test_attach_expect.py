"""`attach --expect`: what moved is said, what is not told is said, and the exit code is 3."""

import dataclasses
import json

import pytest

from benchmarks.servers.metrics_server import metrics_server
from tests.advisor.synthetic import engine_of
from traces.deployment.documents import Expectations, write_document
from traces.schema.estimate import Estimate
from traces.schema.tts.parameters import make_policy

POLICY = make_policy({"method": "majority", "n": 4, "temperature": 0.8})


@pytest.fixture
def expected(tmp_path):
    def write(**changes):
        told = Expectations(engine=engine_of(), policy=POLICY, promised={}, concurrency=1000)
        write_document(tmp_path / "expect.json", dataclasses.replace(told, **changes))

    return write


def watch(run, url, *more):
    return run(
        "attach", url, "--duration", "2s", "--period", "200ms", "--gpus", "none",
        "--expect", "expect.json", *more,
    )  # fmt: skip


@pytest.mark.slow
def test_what_moved_is_said(run, expected, tmp_path):
    with metrics_server() as server:
        server.gauges["vllm:num_requests_running"] = 40.0
        expected(concurrency=2, assumed={"agreement": Estimate(value=0.5, unit="1")})
        code, out, err = watch(run, server.url, "-o", "live")
        assert code == 3, out + err
        assert "moved requests that run or wait: assumed at most 8" in out
        assert "- share of a problem's answers" in " ".join(out.split())
        assert all(len(line) <= 80 for line in out.splitlines())
        expected()
        code, out, err = watch(run, server.url, "-o", "again", "--json")
        assert code == 0, err
        (load,) = json.loads(out)["drift"]
        assert (load["verdict"], load["measured"]["value"]) == ("ok", 40.0 + _waiting(server))


def _waiting(server):
    head = "vllm:num_requests_waiting{"
    return sum(
        float(line.rpartition(" ")[2]) for line in server.page().splitlines() if head in line
    )


def test_a_file_that_is_none_is_refused_before_anything_is_watched(run, tmp_path):
    (tmp_path / "expect.json").write_text("{}")
    code, out, err = watch(run, "http://127.0.0.1:9", "-o", "live")
    assert (code, out) == (2, "")
    assert "expect.json: is not an expect.json" in err
    assert not (tmp_path / "live").exists()
