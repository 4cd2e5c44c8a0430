"""`ttscope gate --endpoint`: a server recorded as its baseline was, and judged."""

import dataclasses
import json

import httpx
import pytest
from aiohttp import web

from advisor.evidence.keys import sampling_of
from advisor.evidence.runs import read_runs
from benchmarks.servers.fake_engine import FakeEngine, running
from tests.profiler.serve.conftest import serving
from tests.tui.conftest import run  # noqa: F401
from traces.deployment.documents import Expectations, write_document
from traces.recording.reader import Recording
from traces.schema.advice import Budget
from traces.summary.run import summarise

pytestmark = pytest.mark.slow


OPTIONS = ("--workload", "w.jsonl", "--verifier", "numeric")


@pytest.fixture
def problems(tmp_path):
    rows = [{"id": i, "prompt": f"{i}?", "answer": "12"} for i in range(24)]
    (tmp_path / "w.jsonl").write_text("\n".join(map(json.dumps, rows)))


class Halting(FakeEngine):
    """An engine that answers 500 to each problem of an odd number, once it is `broken`."""

    broken = False

    async def complete(self, request):
        number = int((await request.json())["messages"][-1]["content"].rstrip("?"))
        if self.fault is None and self.broken and number % 2:
            return web.json_response({"error": {}}, status=500)
        return await super().complete(request)


def test_a_server_that_fails_on_half_of_the_problems_fails(run, problems):  # noqa: F811
    engine = Halting(token_s=0.002)
    with running(engine) as url:
        asked = ("--endpoint", url, *OPTIONS)
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


def test_the_problems_are_those_of_the_baseline_before_any_is_asked(run, problems):  # noqa: F811
    engine = FakeEngine()
    with running(engine) as url:
        asked = ("--endpoint", url, *OPTIONS)
        brief = ("--system-prompt", "Be brief.")
        assert run("record", *asked, "--problems", 10, *brief, "-o", "base")[0] == 0
        other = [each if each != "numeric" else "exact" for each in asked]
        for wrong in (asked, (*asked, *brief, "--problems", 12), (*other, *brief)):
            code, _, err = run("gate", "base", *wrong)
            assert code == 2, err
            assert "these are not the 10 problems of base (w.jsonl)" in " ".join(err.split())
        assert len(engine.asked) == 10
        code, out, err = run(
            "gate", "base", *asked, *brief, "-o", "new", "--fail-on", "latency>+900%"
        )
        assert code == 0, out + err
    assert Recording.open("new").problems.height == 10


def test_a_promise_at_a_rate_is_recorded_at_it(run, problems, tmp_path):  # noqa: F811
    engine = FakeEngine()
    with running(engine) as url:
        asked = ("--endpoint", url, *OPTIONS)
        assert run("record", *asked, "--n", 2, "-o", "base")[0] == 0
        (base,) = summarise(Recording.open("base"))
        expected = Expectations(
            engine=base.engine,
            policy=base.policy,
            workload=base.workload,
            promised={},
            rate_per_s=30.0,
            budget=Budget(max_latency_s=60.0),
        )
        write_document(tmp_path / "rate.json", expected)
        code, out, err = run("gate", "rate.json", *asked, "-o", "new")
        assert code == 0, out + err
        assert "ok    mean latency" in out
        code, out, err = run("gate", "new", *asked, "-o", "again", "--fail-on", "p95>+9000%")
        assert code == 0, out + err
    for name in ("new", "again"):
        manifest = Recording.open(name).manifest
        assert (manifest.concurrency, manifest.rate_per_s) == (None, pytest.approx(30.0))


def test_of_served_runs_the_one_of_the_promised_policy_is_judged(run, tmp_path):  # noqa: F811
    with (
        running(FakeEngine()) as upstream,
        serving(tmp_path / "served", upstream, method="majority", n=2) as url,
    ):
        fields = ({}, {"max_tokens": 50}, {}, {"max_tokens": 60}, {"top_p": 0.5}, {"top_k": 20})
        for own in fields:
            body = {"model": "fake", "messages": [{"role": "user", "content": "2?"}], **own}
            told = {"ttscope": {"answer": "12"}}
            assert httpx.post(f"{url}/v1/chat/completions", json=body | told).status_code == 200
    runs = summarise(Recording.open("served"))
    assert len(runs) == 5
    served = next(each for each in runs if each.problems == 2)
    tokens = dataclasses.replace(served.tokens_per_problem, low=1.0, high=99.0)
    told = Expectations(engine=served.engine, policy=served.policy, promised={"tokens": tokens})
    write_document(tmp_path / "expect.json", told)
    code, out, err = run("gate", "expect.json", "served")
    assert code == 0, out + err
    assert "judged 2 problems of this policy, not 4 of 4 other runs" in " ".join(out.split())
    other = dataclasses.replace(told, policy=dataclasses.replace(served.policy, max_tokens=70))
    write_document(tmp_path / "expect.json", other)
    code, _, err = run("gate", "expect.json", "served")
    assert code == 2 and "5 runs, none of the policy that it is held to" in " ".join(err.split())


def test_no_advice_rests_on_samples_that_clients_drew_in_their_own_way(tmp_path):
    """What top_k does is in no law. Samples of another top_p are a policy of their own."""
    with (
        running(FakeEngine()) as upstream,
        serving(tmp_path / "served", upstream, method="majority", n=2) as url,
    ):
        for own in ({}, {"top_k": 20}, {"top_p": 0.5}, {"top_p": 0.5, "min_p": 0.1}, {}, {}):
            body = {"model": "fake", "messages": [{"role": "user", "content": "2?"}], **own}
            told = {"ttscope": {"answer": "12"}}
            assert httpx.post(f"{url}/v1/chat/completions", json=body | told).status_code == 200
    recording = Recording.open(tmp_path / "served")
    assert len(summarise(recording)) == 4
    kept = read_runs(recording).runs
    learned = {sampling_of(each.policy): len(each.problems) for each in kept}
    assert {(how.top_p, how.sampling): count for how, count in learned.items()} == {
        (1.0, ()): 3, (0.5, ()): 1,
    }  # fmt: skip


def test_a_question_that_its_client_broke_off_is_no_run_beside_the_others(run, tmp_path):  # noqa: F811
    engine = FakeEngine()
    with (
        running(engine) as upstream,
        serving(tmp_path / "served", upstream, method="majority", n=2) as url,
    ):
        body = {"model": "fake", "messages": [{"role": "user", "content": "2?"}]}
        where = f"{url}/v1/chat/completions"
        for _ in range(3):
            assert httpx.post(where, json=body | {"max_tokens": 50}).status_code == 200
        engine.fault = "hang"
        with pytest.raises(httpx.TimeoutException):
            httpx.post(where, json=body | {"max_tokens": 9}, timeout=0.5)
    runs = summarise(Recording.open("served"))
    gone, served = sorted(runs, key=lambda each: each.problems)
    assert (served.problems, gone.problems, gone.problems_failed) == (3, 0, 1)
    tokens = dataclasses.replace(served.tokens_per_problem, low=1.0, high=99.0)
    for policy in (served.policy, dataclasses.replace(served.policy, max_tokens=None)):
        told = Expectations(engine=served.engine, policy=policy, promised={"tokens": tokens})
        write_document(tmp_path / "expect.json", told)
        code, out, err = run("gate", "expect.json", "served")
        assert code == 0, out + err
        assert "judged 3 problems of this policy, not 1 of 1 other runs" in " ".join(out.split())
    code, out, err = run("gate", "served", "served", "--fail-on", "tokens>+90%")
    assert "a gate judges one run" not in err


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
