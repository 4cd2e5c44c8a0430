"""`attach --expect`: what moved is said, what is not told is said, and the exit code is 3."""

import dataclasses
import json

import pytest

from benchmarks.servers.metrics_server import metrics_server
from profiler.attach.scraper import Scraper
from tests.advisor.evidence.live.test_pages import of_ranks
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
        assert "moved samples that run or wait: assumed at most 8" in out
        assert "- share of a problem's answers" in " ".join(out.split())
        assert all(len(line) <= 80 for line in out.splitlines())
        expected()
        code, out, err = watch(run, server.url, "-o", "again", "--json")
        assert code == 0, err
        (load,) = json.loads(out)["drift"]
        assert (load["verdict"], load["measured"]["value"]) == ("ok", 40.0 + _waiting(server))


@pytest.mark.slow
@pytest.mark.parametrize("software", ["vLLM", "SGLang"])
@pytest.mark.parametrize("started", [True, False])
def test_the_ranks_of_a_server_are_held_to_its_load_together(
    run, expected, monkeypatch, software, started
):
    with metrics_server() as server:
        if software == "SGLang":
            server.as_sglang({"tp_size": 1, "pp_size": 1, "dp_size": 2})
            server.lines = of_ranks(server.lines)
        else:
            server.engines = ("0", "1")
        if not started:  # as of a page of several processes
            page = server.page
            monkeypatch.setattr(server, "page", lambda: page().partition("\n")[2])
        server.gauges |= {"vllm:num_requests_running": 6.0, "vllm:num_requests_waiting": 0.0}
        server.gauges |= {"sglang:num_running_reqs": 6.0, "sglang:num_queue_reqs": 0.0}
        expected(concurrency=2)  # 8 requests at most
        code, out, err = watch(run, server.url, "-o", "live", "--json")
    assert code == 3, err
    (load,) = json.loads(out)["drift"]
    assert (load["name"], load["measured"]["value"]) == ("samples that run or wait", 12.0)


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


def test_a_watch_without_one_poll_fails_in_a_line(tmp_path, monkeypatch, run):
    monkeypatch.setattr(Scraper, "_work", lambda self: None)
    with metrics_server() as server:
        url, folder = server.url, tmp_path / "r"
        told = run.refused("attach", url, "--duration", "100ms", "-o", folder, code=1)
    assert "/metrics did not answer once" in told and len(told.strip().splitlines()) == 1
