"""What a client of the endpoint sees, what the engine gets, and what is recorded."""

import asyncio
import http.client
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import polars as pl
import pytest

from benchmarks.servers.fake_engine import running
from benchmarks.servers.vllm_server import free_port
from profiler.serve import service
from profiler.serve.live_run import LiveRun
from profiler.serve.question import CARRIED, DRAWN
from profiler.workload.verifiers import Numeric
from tests.profiler.serve.conftest import serving
from traces.recording.manifest import NAME
from traces.recording.reader import Recording
from traces.summary.run import summarise

MESSAGES = [{"role": "user", "content": "What is 3 x 4?"}]
SECRET = "sk-very-secret"


def client(url, **more):
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key=SECRET, max_retries=0, **more)


def ask(url, **body):
    body = {"model": "fake", "messages": MESSAGES} | body
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)


async def until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def wait_for(holds):
    asyncio.run(until(holds))


def votes(*answers):
    return lambda body, number: f"why</think>{answers[number % len(answers)]}"


def test_the_openai_client_gets_the_answer_of_the_vote(engine, upstream, tmp_path):
    engine.answers = votes("5", "12", "12.0", "7")
    with serving(tmp_path / "kept", upstream, method="majority", n=4) as url:
        answer = client(url).chat.completions.create(model="fake", messages=MESSAGES)
        assert answer.choices[0].message.content == "why</think>12"
        assert answer.usage.completion_tokens == sum(
            len(range(0, len(t), max(len(t) // 4, 1)))
            for t in ("why</think>5", "why</think>12", "why</think>12.0", "why</think>7")
        )
        assert (answer.ttscope["votes"], answer.ttscope["answers"]) == (2, 4)
        streamed = client(url).chat.completions.create(
            model="fake", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        text, usage = "", None
        for chunk in streamed:
            text += "".join(c.delta.content or "" for c in chunk.choices)
            usage = chunk.usage or usage
        assert text == "why</think>12"
        assert usage.total_tokens == answer.usage.total_tokens
        done = client(url).completions.create(model="fake", prompt="3 x 4 =")
        assert done.choices[0].text == "why</think>12"
    assert [body["n"] for body in engine.asked] == [1] * 12
    assert {body["temperature"] for body in engine.asked} == {0.8}
    assert all(head["Authorization"] == f"Bearer {SECRET}" for head in engine.headers)
    (run, *_) = summarise(Recording.open(tmp_path / "kept"))
    assert (run.complete, run.problems, run.policy.n) == (True, 3, 4)
    for path in (tmp_path / "kept").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
    problems = Recording.open(tmp_path / "kept").problems
    assert problems["answer"].to_list() == ["1", "1", "1"]  # the number of its class
    assert problems["expected"].is_null().all()


def test_what_is_not_needed_any_more_is_cancelled(engine, upstream, tmp_path):
    engine.tokens, engine.token_s = 4000, 0.02  # a letter each
    engine.answers = lambda body, number: "a" * (2 if number < 3 else 4000) + "</think>12"
    with serving(tmp_path / "kept", upstream, method="agreement", n=8, agree=3) as url:
        begun = time.monotonic()
        told = ask(url).json()["ttscope"]
        assert time.monotonic() - begun < 30
        assert (told["requests"], told["answers"], told["agreement"]) == (8, told["votes"], 1.0)
    samples = Recording.open(tmp_path / "kept").samples
    assert samples.filter(pl.col("cancelled_by") == "decision").height == told["cancelled"]
    assert engine.finished + engine.aborted + told["cancelled"] >= 8


def test_a_connection_to_the_engine_serves_one_question_after_another(engine, upstream, tmp_path):
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        for _ in range(10):
            assert ask(url).status_code == 200
            time.sleep(0.01)  # the end of an answer comes behind the answer
    assert len(engine.connections) < 10


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("greedy", {"temperature": 0.0}), ("majority", {"n": 3}), ("early_stopping", {"n": 8}),
        ("adaptive", {"n": 8, "in_flight": 2}), ("first_finish", {"n": 4}), ("routed", {"n": 4}),
        ("sequential", {"n": 4}), ("best_of_n", {"n": 2}), ("confidence", {"n": 2}),
    ],
)  # fmt: skip
def test_every_kind_of_policy_answers(engine, upstream, tmp_path, method, more):
    with serving(tmp_path / "kept", upstream, method=method, **more) as url:
        answer = ask(url).json()
        assert answer["choices"][0]["message"]["content"].endswith("12"), answer
    (run,) = summarise(Recording.open(tmp_path / "kept"))
    assert (run.problems, run.policy.method) == (1, method)


def test_a_question_gets_as_many_samples_as_its_class_or_its_first_ones_say(
    engine, upstream, tmp_path
):
    route = "easy=1 | level 3=2 | *=6,6,6,3"
    with serving(tmp_path / "kept", upstream, method="routed", n=6, route=route) as url:
        asked = []
        for told in ({"group": "easy"}, {"group": "level 3"}, {"group": "new"}):
            asked.append(ask(url, ttscope=told).json()["ttscope"]["requests"])
        engine.answers = votes("12", "13", "14", "15", "16", "17")
        asked.append(ask(url).json()["ttscope"]["requests"])
        assert asked == [1, 2, 3, 6]
        assert ask(url, ttscope={"n": 2}).status_code == 400
    (run,) = summarise(Recording.open(tmp_path / "kept"))
    assert (run.problems, run.policy.method) == (4, "routed")


def test_a_question_is_answered_at_the_effort_of_its_class(engine, upstream, tmp_path):
    route = "easy=1@low | plain=1 | *=2@high"
    with serving(tmp_path / "kept", upstream, method="routed", n=2, route=route) as url:
        told = [ask(url, ttscope={"group": each}) for each in ("easy", "plain", "new")]
        told.append(ask(url, ttscope={"group": "plain"}, reasoning_effort="minimal"))
        told = [each.json()["ttscope"] for each in told]
        assert [each["reasoning_effort"] for each in told] == ["low", None, "high", None]
        assert {each["policy"] for each in told} == {"route@2 unset/low/high"}
        prompt = {"model": "fake", "prompt": "3 x 4 ="}
        refused = httpx.post(f"{url}/v1/completions", json=prompt)
        assert refused.status_code == 400 and "acts through the chat template" in refused.text
        plain = prompt | {"ttscope": {"group": "plain"}}
        assert httpx.post(f"{url}/v1/completions", json=plain).status_code == 200
        page = httpx.get(f"{url}/metrics").text
    efforts = [body.get("reasoning_effort") for body in engine.asked]
    assert efforts == ["low", None, "high", "high", "minimal", None]
    for effort in ("low", "high"):
        assert f'ttscope_effort_questions_total{{effort="{effort}"}} 1.0' in page
    recording = Recording.open(tmp_path / "kept")
    assert recording.problems["group"].to_list() == ["easy", "plain", "new", "plain", "plain"]


def test_questions_at_a_clients_effort_are_a_run_of_their_own(engine, upstream, tmp_path):
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        told = [
            ask(url, **({} if effort is None else {"reasoning_effort": effort})).json()["ttscope"]
            for effort in (None, "high", "high", "of my own")
        ]
    assert [each["reasoning_effort"] for each in told] == [None, "high", "high", None]
    asked = [body.get("reasoning_effort") for body in engine.asked[::2]]
    assert asked == [None, "high", "high", "of my own"]  # the engine knows best
    runs = summarise(Recording.open(tmp_path / "kept"))
    efforts = sorted((run.policy.label(), run.problems) for run in runs)
    assert efforts == [
        ("maj@2", 1), ("maj@2 high", 2), ("maj@2 reasoning_effort=#a6fc255a", 1)
    ]  # fmt: skip


def test_questions_drawn_in_another_way_are_a_run_of_their_own(engine, upstream, tmp_path):
    told = (
        {}, {"top_p": 1.0, "temperature": 0.8}, {"user": "me", "metadata": {"a": "b"}},
        {"top_p": 0.5}, {"top_p": 0.5}, {"temperature": 0.2}, {"top_k": 20}, {"top_k": 20.0},
        {"min_p": 0.1, "top_k": 20}, {"stop": "a secret"}, {"stop": ["another"]}, {"seed": 3},
        {"seed": 9}, {"max_tokens": 50}, {"response_format": {"type": "json_object"}},
    )  # fmt: skip
    with serving(tmp_path / "kept", upstream, method="majority", n=2, max_tokens=100) as url:
        heads = []
        for each in told:
            answer = ask(url, **each)
            assert answer.status_code == 200, answer.text
            heads.append(answer.headers["X-Ttscope"])
            for name, value in each.items():
                if name not in ("seed", "stop"):
                    assert engine.asked[-1][name] == value, each
    assert heads[6] == "answered: maj@2 top_k=20.0"
    recording = Recording.open(tmp_path / "kept")
    runs = [run.problems for run in summarise(recording)]
    assert sorted(runs) == [1, 1, 1, 1, 1, 1, 2, 2, 2, 3]
    used = {(p.temperature, p.top_p, p.max_tokens) for p in recording.manifest.policies.values()}
    assert used == {(0.8, 1.0, 100), (0.8, 0.5, 100), (0.2, 1.0, 100), (0.8, 1.0, 50)}
    assert "secret" not in (tmp_path / "kept" / NAME).read_text()


def test_more_settings_than_are_kept_are_one_run_and_not_the_policys(
    engine, upstream, tmp_path, monkeypatch
):
    monkeypatch.setattr(service, "MOST_RUNS", 3)
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 1.0):
            assert ask(url, top_p=share).status_code == 200
            assert engine.asked[-1]["top_p"] == share
    runs = summarise(Recording.open(tmp_path / "kept"))
    assert sorted((run.policy.label(), run.policy.top_p, run.problems) for run in runs) == [
        ("maj@2", 0.8, 1), ("maj@2", 0.9, 1), ("maj@2", 1.0, 2),
        ("maj@2 others=beyond 3 settings", 1.0, 3),
    ]  # fmt: skip


def test_the_page_names_the_fields_that_go_on():
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text()
    table = page.partition("## Fields")[2].partition("## What is recorded")[0]
    rows = {row.split("|")[1].strip(): row.split("|")[2] for row in table.splitlines()[4:9]}
    named = {what: set(re.sub(r"\(.*?\)", "", row).replace(",", " ").split())
             for what, row in rows.items()}  # fmt: skip
    assert named.pop("no sample") == CARRIED
    beyond = {"temperature", "top_p", "seed", "reasoning_effort", "max_tokens"}
    assert set().union(*named.values()) == DRAWN | beyond


def test_a_field_that_does_not_go_to_the_engine_is_named(engine, upstream, tmp_path):
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        for field in ({"top_q": 1}, {"thinking_token_budget": 9}, {"<b>": 1, "top_q": 2}):
            refused = ask(url, **field)
            assert refused.status_code == 400
            told = refused.json()["error"]["message"]
            assert told.startswith("top_q:" if "top_q" in field else "thinking_token_budget:")
        for field in ({"temperature": "hot"}, {"temperature": -1}, {"top_p": 0}, {"top_p": True}):
            assert ask(url, **field).status_code == 400
        for seed in ((1 << 63) - 1, -(1 << 63)):
            told = ask(url, seed=seed).json()["error"]["message"]
            assert told == f"seed must be a whole number from {-(1 << 62)} to {1 << 62}"
        assert ask(url, top_q=None, presence_penalty=None).status_code == 200
    assert len(engine.asked) == 2


def test_a_question_is_a_trace_of_its_own_or_its_clients(engine, upstream, tmp_path):
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        body = {"model": "fake", "messages": MESSAGES}
        httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers)
        told = [ask(url).json()["ttscope"]["trace_id"] for _ in range(2)]
    traces = ["a" * 32, *told]
    assert len(set(traces)) == 3
    assert Recording.open(tmp_path / "kept").problems["trace_id"].to_list() == traces
    assert [head["traceparent"][3:35] for head in engine.headers[::2]] == traces


def test_a_request_may_ask_for_less_and_says_what_it_is(engine, upstream, tmp_path):
    with serving(tmp_path / "kept", upstream, method="majority", n=4, max_tokens=100) as url:
        told = {"n": 2, "id": "q-1", "group": "sums", "answer": "12"}
        answer = ask(url, ttscope=told, max_tokens=50, seed=7)
        assert answer.status_code == 200
        assert answer.headers["X-Ttscope"] == "answered: maj@2 seed=given"
        for wrong in ({"n": 5}, {"n": 0}, {"n": "2"}, {"m": 1}, {"id": "a b"}, "yes"):
            refused = ask(url, ttscope=wrong)
            assert refused.status_code == 400, wrong
            assert "ttscope" in refused.json()["error"]["message"]
        assert sorted((b["seed"], b["max_tokens"]) for b in engine.asked) == [(7, 50), (8, 50)]
        for seed, seeds in ((-1, {None}), (-9, {-9, -8, -7, -6}), (-3, {-3, -2, 0, 1})):
            assert ask(url, seed=seed).status_code == 200
            assert {body.get("seed") for body in engine.asked[-4:]} == seeds
    recording = Recording.open(tmp_path / "kept")
    row = recording.problems.row(0, named=True)
    assert (row["problem_id"], row["group"], row["correct"]) == ("q-1", "sums", True)
    policy = recording.manifest.policies[row["policy"]]
    assert (policy.n, policy.max_tokens) == (2, 50)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"n": 3}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"model": "another"}, "model"),
        ({"ttscope": {"pass": True}}, "asked"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "images"),
        ({"messages": [*MESSAGES, {"role": "function", "name": "f", "content": "3"}]}, "tools"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "tools"),
    ],
)
def test_what_is_no_question_is_passed_on_and_said(engine, upstream, tmp_path, body, why):
    with serving(tmp_path / "kept", upstream, method="majority", n=4) as url:
        answer = ask(url, **body)
        assert answer.headers["X-Ttscope"] == f"passed: {why}"
        assert answer.json()["object"] == "whole"
        assert ask(url).headers["X-Ttscope"] == "answered: maj@4"
        assert "fake" in httpx.get(f"{url}/v1/models").text
        more = httpx.post(f"{url}/v1/embeddings", json={"input": "x"})
        assert more.json() == {"embedded": {"input": "x"}}
    assert "ttscope" not in engine.asked[0]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../tokenize", "/v1/%2e%2e/tokenize", "/v1/.%2E/tokenize", "/v1/%252e%252e/tokenize",
        "/v1/x/..%2f../tokenize", "/v1/..\\tokenize", "/v1/..;/tokenize", "/v1/./../tokenize",
    ],
)  # fmt: skip
def test_a_path_that_leads_out_of_v1_is_not_passed_on(engine, upstream, tmp_path, path):
    engine.tokenizes = 418
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        asking = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        asking.request("POST", path, b'{"prompt":"a b c"}', {"Content-Type": "application/json"})
        assert asking.getresponse().status == 404
        asking.close()


def test_thought_and_answer_come_back_apart_as_they_came(engine, upstream, tmp_path, monkeypatch):
    async def send(response, event):
        for choice in event["choices"]:
            content = (choice.get("delta") or {}).pop("content", None)
            if content:
                thought, mark, answer = content.partition("|")
                choice["delta"] = {"reasoning": thought, "content": answer} if mark else {}
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    engine.answers, engine.tokens = lambda body, number: "three fours|12", 1
    monkeypatch.setattr(engine, "_send", send)
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        message = ask(url).json()["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("three fours", "12")


@pytest.mark.parametrize(
    ("fault", "status"), [(500, 502), (503, 502), (401, 401), (429, 429), ("cut", 502)]
)
def test_an_engine_that_fails_is_told_and_forgiven(engine, upstream, tmp_path, fault, status):
    with serving(tmp_path / "kept", upstream, method="majority", n=3) as url:
        engine.fault = fault
        for stream in (False, True):
            failed = ask(url, stream=stream)
            assert failed.status_code == status
            assert "X-Ttscope" not in failed.headers
            assert failed.json()["error"]["message"]
        engine.fault = None
        assert ask(url).status_code == 200
        page = httpx.get(f"{url}/metrics").text
        assert 'ttscope_questions_total{outcome="failed"} 2.0' in page
        assert 'ttscope_questions_total{outcome="answered"} 1.0' in page
    (run,) = summarise(Recording.open(tmp_path / "kept"))
    assert (run.problems, run.problems_failed) == (1, 2)


def test_an_engine_that_was_killed_and_comes_back(engine, tmp_path):
    port = free_port()
    with ExitStack() as stack:
        first = stack.enter_context(running(engine, port))
        with serving(tmp_path / "kept", first, method="majority", n=2) as url:
            assert ask(url).status_code == 200
            stack.close()
            gone = ask(url)
            assert gone.status_code == 502
            assert "the engine is gone" in gone.json()["error"]["message"]
            assert httpx.get(f"{url}/v1/models").status_code == 502
            with running(engine, port):
                assert ask(url).status_code == 200
    (run,) = summarise(Recording.open(tmp_path / "kept"))
    assert (run.problems, run.problems_failed, run.complete) == (2, 1, True)


def test_a_slow_engine_is_answered_by_the_votes_there_are(engine, upstream, tmp_path):
    engine.tokens, engine.token_s = 10_000, 0.01  # a letter each
    engine.answers = lambda body, number: "12" if number < 2 else "a" * 10_000 + "</think>5"
    settings = {"timeout_s": 1.0}
    with serving(tmp_path / "kept", upstream, settings=settings, method="majority", n=3) as url:
        answer = ask(url).json()
        assert answer["ttscope"]["decided_by"] == "timeout"
        assert answer["choices"][0]["message"]["content"] == "12"
        engine.fault = "hang"
        late = ask(url)
        assert (late.status_code, "no sample ended in time" in late.text) == (502, True)
        # Two letters each of two samples. What the others generated is not told.
        assert "ttscope_generated_tokens_total 4.0" in httpx.get(f"{url}/metrics").text
    recording = Recording.open(tmp_path / "kept")
    assert recording.problems["timed_out"].to_list() == [True, True]
    (run,) = summarise(recording)
    assert run.accuracy is None  # nobody knows the right answers


@pytest.mark.parametrize("stream", [False, True])
async def test_the_samples_of_a_client_that_vanishes_are_cancelled(
    engine, upstream, tmp_path, stream
):
    engine.tokens, engine.token_s = 1000, 0.05
    engine.answers = lambda body, number: "a" * 1000
    with serving(tmp_path / "kept", upstream, method="majority", n=4) as url:
        async with httpx.AsyncClient(timeout=None) as asking:
            body = {"model": "fake", "messages": MESSAGES, "stream": stream}
            asked = asyncio.create_task(asking.post(f"{url}/v1/chat/completions", json=body))
            await until(lambda: len(engine.asked) == 4)
            asked.cancel()
        await until(lambda: engine.aborted == 4)
        await until(lambda: 'outcome="gone"} 1.0' in httpx.get(f"{url}/metrics").text)
        idle = {"status": "ok", "in_flight": 0}
        await until(lambda: httpx.get(f"{url}/health").json() == idle)
    recording = Recording.open(tmp_path / "kept")
    assert recording.problems["error"].to_list() == ["client gone"]
    assert set(recording.samples["cancelled_by"]) == {"client gone"}
    (run,) = summarise(recording)
    assert (run.problems, run.problems_failed) == (0, 1)


async def test_more_questions_than_places_wait_and_then_are_refused(engine, upstream, tmp_path):
    engine.held.set()
    settings = {"in_flight": 1, "waiting": 2}
    with serving(tmp_path / "kept", upstream, settings=settings, method="majority", n=2) as url:
        async with httpx.AsyncClient(timeout=60) as asking:
            where, body = f"{url}/v1/chat/completions", {"model": "fake", "messages": MESSAGES}
            asked = [asyncio.create_task(asking.post(where, json=body)) for _ in range(6)]
            await until(lambda: sum(each.done() for each in asked) == 3)
            refused = [each.result().status_code for each in asked if each.done()]
            engine.held.clear()
            codes = sorted(each.status_code for each in await asyncio.gather(*asked))
    assert refused == [503, 503, 503]
    assert codes == [200, 200, 200, 503, 503, 503]


def test_a_question_waits_for_its_turn_no_longer_than_it_may_take(engine, upstream, tmp_path):
    settings = {"in_flight": 0, "timeout_s": 0.2}  # its turn never comes
    with serving(tmp_path / "kept", upstream, settings=settings, method="majority", n=2) as url:
        answer = ask(url)
    assert (answer.status_code, engine.asked) == (503, [])


BAD = [
    b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"messages":', b"[" * 50_000,
    b'{"model":"fake"}', b'{"model":"fake","messages":[]}', b'{"model":"fake","messages":[1]}',
    b'{"model":"fake","messages":[{"role":1,"content":"x"}]}',
    b'{"model":"fake","messages":[{"role":"user"}]}',
    b'{"model":"fake","messages":[{"role":"user","content":[{"type":"text","text":5}]}]}',
    b'{"model":"fake","messages":[{"role":"user","content":"x"}],"max_tokens":-1}',
    b'{"model":"fake","messages":[{"role":"user","content":"x"}],"max_tokens":1e3}',
    b'{"model":"fake","messages":[{"role":"user","content":"x"}],"stream":"yes"}',
    b'{"model":"fake","messages":[{"role":"user","content":"x"}],"seed":"a"}',
    b'{"model":"fake","messages":[{"role":"user","content":"x"}],"stop":["a",5]}',
    b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
]  # fmt: skip


def test_malformed_bodies_are_refused_and_forgotten(engine, upstream, tmp_path):
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        with httpx.Client() as asking:
            for body in BAD:
                answer = asking.post(f"{url}/v1/chat/completions", content=body)
                assert answer.status_code == 400, body[:60]
                assert "message" in answer.json()["error"]
        big = b'{"model":"' + b"x" * (5 << 20) + b'"}'
        assert httpx.post(f"{url}/v1/chat/completions", content=big).status_code == 413
        assert ask(url).status_code == 200
    assert len(engine.asked) == 2


def test_a_body_that_is_not_compressed_as_it_says_is_refused(engine, upstream, tmp_path):
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        for path in ("chat/completions", "embeddings"):
            headers = {"Content-Encoding": "gzip"}
            answer = httpx.post(f"{url}/v1/{path}", content=b"no gzip", headers=headers)
            assert (answer.status_code, "message" in answer.json()["error"]) == (400, True)


async def test_headers_of_one_hop_end_there(engine, upstream, tmp_path):
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        headers = {
            "Connection": "X-One, X-Two",
            "X-One": "1",
            "X-Three": "3",
            "Expect": "100-continue",
        }
        body = {"model": "another", "messages": MESSAGES}
        httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=20)
    sent = {name.lower() for name in engine.headers[-1]}
    assert "x-three" in sent
    assert not sent & {"x-one", "expect"}


def test_web_pages_and_rebound_names_are_refused(engine, upstream, tmp_path):
    settings = {"hosts": frozenset({"gpu7"}), "origins": frozenset({"https://ours"})}
    with serving(tmp_path / "kept", upstream, settings=settings, method="majority", n=2) as url:
        for headers, status in (
            ({"Origin": "https://evil.example"}, 403),
            ({"Host": "evil.example"}, 403),
            ({"Host": "gpu7:8100"}, 200),
            ({"Origin": "https://ours"}, 200),
        ):
            body = {"model": "fake", "messages": MESSAGES}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == status, headers
        for origin, status in (("https://ours", 204), ("https://evil.example", 403)):
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            answer = httpx.options(f"{url}/v1/chat/completions", headers=headers)
            allowed = answer.headers.get("Access-Control-Allow-Origin")
            assert (answer.status_code, allowed == origin) == (status, status == 204)
        wanted = "authorization,content-type,x-stainless-lang"  # by OpenAI's client in a browser
        for fields, allowed in ((wanted, wanted), ("a\tb", "authorization, content-type")):
            headers = {"Origin": "https://ours", "Access-Control-Request-Headers": fields}
            answer = httpx.options(f"{url}/v1/chat/completions", headers=headers)
            assert answer.headers["Access-Control-Allow-Headers"] == allowed
            assert answer.headers["Access-Control-Expose-Headers"] == "X-Ttscope"


def test_what_runs_is_answered_before_it_ends(engine, upstream, tmp_path):
    engine.tokens, engine.token_s = 4, 0.1
    with httpx.Client(timeout=20) as asking:
        with serving(
            tmp_path / "kept", upstream, settings={"drain_s": 10.0}, method="majority", n=2
        ) as url:
            told = []
            body = {"model": "fake", "messages": MESSAGES}
            thread = threading.Thread(
                target=lambda: told.append(
                    asking.post(f"{url}/v1/chat/completions", json=body).status_code
                )
            )
            thread.start()
            while not engine.asked:
                time.sleep(0.01)
        thread.join()
    assert told == [200]
    assert Recording.open(tmp_path / "kept").complete


@pytest.mark.parametrize("stream", [False, True])
def test_what_has_not_ended_or_begun_by_then_is_refused(engine, upstream, tmp_path, stream):
    engine.fault = "hang"
    settings = {"in_flight": 1, "waiting": 5, "drain_s": 0.1}
    with ThreadPoolExecutor() as asking, ExitStack() as stack:
        url = stack.enter_context(
            serving(tmp_path / "kept", upstream, settings=settings, method="majority", n=2)
        )
        asked = [asking.submit(ask, url, stream=stream)]
        wait_for(lambda: len(engine.asked) == 2)
        asked += [asking.submit(ask, url, stream=stream) for _ in range(2)]
        wait_for(lambda: "ttscope_waiting 2.0" in httpx.get(f"{url}/metrics").text)
        stack.close()
        for each in asked:
            answer = each.result()
            assert (answer.status_code, "is ending" in answer.text) == (503, True)
    assert len(engine.asked) == 2
    recording = Recording.open(tmp_path / "kept")
    assert recording.problems["error"].to_list() == ["server ended"]
    assert recording.samples["cancelled_by"].to_list() == ["server ended"] * 2


def test_a_name_is_free_again_before_its_answer_has_been_read(engine, upstream, tmp_path):
    # The first answer is longer than what the connection holds.
    engine.answers = lambda body, number: ("" if number else "x" * (8 << 20)) + "</think>12"
    body = {"model": "fake", "messages": MESSAGES, "stream": True, "ttscope": {"id": "q"}}
    with (
        ThreadPoolExecutor() as asking,
        serving(tmp_path / "kept", upstream, method="majority", n=1) as url,
    ):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as first:
            pieces = first.iter_raw()
            next(pieces)
            engine.held.set()
            second = asking.submit(ask, url, ttscope={"id": "q"})
            wait_for(lambda: len(engine.asked) == 2)
            for _ in pieces:
                pass
        engine.held.clear()
        assert second.result().status_code == 200
    assert Recording.open(tmp_path / "kept").problems["error"].to_list() == [None, None]


def test_a_client_that_gives_no_max_tokens_has_the_room_behind_its_prompt(
    engine, upstream, tmp_path
):
    with serving(tmp_path / "kept", upstream, method="majority", n=1) as url:
        body = {"model": "fake", "prompt": "word " * 1000}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=20).status_code == 200
        engine.tokenizes = 503
        body["prompt"] += "and "
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=20)
        assert (answer.status_code, "HTTP 503" in answer.text) == (502, True)
        engine.tokenizes = 404
        body["prompt"] += "more"
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=20)
        assert answer.status_code == 400
        assert "max_tokens is needed" in answer.json()["error"]["message"]
    assert [each["max_tokens"] for each in engine.asked] == [3096]


def complete(url, **body):
    body = {"model": "fake", "prompt": "3 x 4 ="} | body
    return httpx.post(f"{url}/v1/completions", json=body, timeout=20).json()


def by_index(*answers):
    """Answers by the index of a sample, for a question of seed 0."""
    return lambda body, number: answers[min(body["seed"], len(answers) - 1)]


def test_a_step_of_a_beam_is_no_answer(engine, upstream, tmp_path):
    engine.answers = by_index(
        "It is \\boxed{12}.", "Is it \\boxed{12}?\n\nIt is not.", " \\boxed{7}"
    )
    with serving(tmp_path / "kept", upstream, method="beam", n=2, width=2, depth=2) as url:
        answer = complete(url, seed=0)
        assert answer["choices"][0]["text"] == "It is \\boxed{12}."
        assert (answer["ttscope"]["votes"], answer["ttscope"]["answers"]) == (1, 3)
        assert 'samples_total{outcome="ended"} 4.0' in httpx.get(f"{url}/metrics").text


@pytest.mark.parametrize(
    ("stop", "text"),
    [("END", "why</think>12 "), (["x", "END"], "why</think>12 "), ("\n\n", "why</think>12 END")],
)
def test_a_stop_string_of_a_client_ends_the_thoughts_of_a_beam(
    engine, upstream, tmp_path, stop, text
):
    engine.answers = by_index("why</think>12 END\n\n", "why</think>7 \n\n", " more</think>7")
    with serving(tmp_path / "kept", upstream, method="beam", n=2, width=2, depth=2) as url:
        assert complete(url, seed=0, stop=None)["ttscope"]["requests"] == 4
        assert [body["stop"] for body in engine.asked[:2]] == [["\n\n"]] * 2
        answer = complete(url, seed=0, stop=stop)
    assert (answer["choices"][0]["text"], answer["ttscope"]["votes"]) == (text, 1)


def test_log_probabilities_of_a_completions_own_tokens_are_passed_on(engine, upstream, tmp_path):
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        assert complete(url, logprobs=0)["object"] == "whole"
        assert complete(url, logprobs=None)["object"] == "text_completion"


def test_a_chat_in_which_the_model_refused_is_a_question(engine, upstream, tmp_path):
    refused = {"role": "assistant", "content": None, "refusal": "no"}
    with serving(tmp_path / "kept", upstream, method="majority", n=1) as url:
        assert ask(url, messages=[*MESSAGES, refused, *MESSAGES]).status_code == 200
    assert engine.asked[0]["messages"][1] == {**refused, "content": ""}


def test_a_chain_of_rounds_has_one_vote(engine, upstream, tmp_path):
    engine.answers = by_index("why</think>5", "why</think>12", "more</think>12", "more</think>none")
    with serving(tmp_path / "kept", upstream, method="budget_forcing", n=2, extend=1) as url:
        told = complete(url, seed=0)["ttscope"]
    assert (told["votes"], told["answers"], told["requests"]) == (2, 2, 4)


def test_rounds_that_revise_an_answer_have_one_vote(engine, upstream, tmp_path):
    engine.answers = by_index("a</think>5", "b</think>7", "c</think>12", "d</think>none")
    with serving(tmp_path / "kept", upstream, method="sequential", n=4) as url:
        answer = complete(url, seed=0)
    told = answer["ttscope"]
    assert answer["choices"][0]["text"] == "c</think>12"
    assert (told["votes"], told["answers"], told["agreement"], told["requests"]) == (1, 1, 1.0, 4)


def test_a_known_answer_does_not_change_which_one_is_given(engine, upstream, tmp_path):
    told = "</think>After elimination only ({}) remains, since all others contradict the premises."
    engine.answers = lambda body, number: told.format("GGB"[body["seed"]])
    with serving(tmp_path / "kept", upstream, verifier="choice", method="majority", n=3) as url:
        answers = [
            complete(url, seed=0, ttscope=known)["choices"][0]["text"]
            for known in ({}, {"answer": "G"}, {"answer": "B"})
        ]
        listed = "".join(f"\n{letter}. it" for letter in "ABCDEFG")
        answer = complete(url, seed=0, prompt=listed, ttscope={"answer": "G"})
    assert answers == [told.format("B")] * 3
    assert answer["choices"][0]["text"] == told.format("G")
    right = Recording.open(tmp_path / "kept").problems["correct"].to_list()
    assert right == [None, False, True, True]


def test_a_chat_that_cannot_go_on_is_refused(engine, upstream, tmp_path):
    policy = {"method": "majority", "n": 2, "thinking_token_budget": 4}
    with serving(tmp_path / "kept", upstream, **policy) as url:
        refused = ask(url)
        assert (refused.status_code, "token ids" in refused.text) == (400, True)
        assert complete(url)["ttscope"]["answers"] == 2


def test_a_client_learns_what_its_samples_ended_with(engine, upstream, tmp_path, monkeypatch):
    async def send(response, event):
        await response.write(b"data: 5\n\n")

    monkeypatch.setattr(engine, "_send", send)
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        failed = ask(url).json()["error"]
    assert failed["message"] == "no sample ended (HTTP 200, an event that is no object)"


@pytest.fixture
def slow_check(engine, monkeypatch):
    """Of three answers the last is checked until this is set, and has voted for no answer yet."""
    from profiler.workload import math_check

    taken, all_taken, released = [], threading.Event(), threading.Event()
    take, send = LiveRun.take, engine._send

    def taking(run, result):
        take(run, result)
        taken.append(result)
        if len(taken) == 3:
            all_taken.set()

    class Slow(Numeric):
        name = "math"  # whose checks have a thread of their own

        def canonical(self, answer):
            assert all_taken.wait(60)
            assert answer == "12" or released.wait(60)
            return super().canonical(answer)

    async def send_last(response, event):
        if "99" in json.dumps(event):
            await until(lambda: len(taken) >= 2)
        await send(response, event)

    monkeypatch.setattr(LiveRun, "take", taking)
    monkeypatch.setattr(math_check, "MathVerifier", Slow)
    monkeypatch.setattr(engine, "_send", send_last)
    engine.answers = lambda body, number: "</think>99" if number == 2 else "</think>12"
    yield released
    released.set()


AGREEMENT = {"verifier": "math", "method": "agreement", "n": 3, "agree": 2}


def test_an_answer_that_is_still_being_checked_counts(engine, upstream, tmp_path, slow_check):
    with ThreadPoolExecutor() as asking, serving(tmp_path / "kept", upstream, **AGREEMENT) as url:
        first = ask(url, ttscope={"id": "q"}).json()
        assert 'samples_total{outcome="ended"} 3.0' in httpx.get(f"{url}/metrics").text
        second = asking.submit(ask, url, ttscope={"id": "q"})  # of the same name
        wait_for(lambda: len(engine.asked) == 6)
        slow_check.set()
        told = [first["ttscope"], second.result().json()["ttscope"]]
    assert (told[0]["requests"], told[0]["cancelled"], told[0]["answers"]) == (3, 0, 2)
    assert (told[1]["votes"], told[1]["answers"]) == (2, 2)  # none of the first question
    assert first["usage"]["completion_tokens"] == 3 * 5  # pieces of 2 of 10 letters
    samples = Recording.open(tmp_path / "kept").samples
    assert samples["answer"].to_list().count("1") == 1  # the one that came last


def test_a_sample_that_is_never_checked_keeps_its_tokens(engine, upstream, tmp_path, slow_check):
    settings = {"drain_s": 0.1}
    with serving(tmp_path / "kept", upstream, settings=settings, **AGREEMENT) as url:
        assert ask(url, ttscope={"answer": "12"}).json()["usage"]["completion_tokens"] == 3 * 5
    samples = Recording.open(tmp_path / "kept").samples.sort("end")
    assert samples["output_tokens"].to_list() == [5, 5, 5]
    assert samples["correct"].to_list() == [True, True, None]
    assert samples["cancelled_by"].to_list() == [None, None, "server ended"]


@pytest.mark.slow
def test_answers_are_the_same_by_mathematics(engine, upstream, tmp_path, monkeypatch):
    pytest.importorskip("math_verify")
    from profiler.workload.math_check import MathVerifier

    threads, own = set(), MathVerifier._ask

    def asked(*told):
        threads.add(threading.current_thread().name)
        return own(*told)

    monkeypatch.setattr(MathVerifier, "_ask", asked)
    engine.answers = votes("\\boxed{7}", "\\boxed{\\frac{1}{2}}", "\\boxed{0.5}")
    with serving(tmp_path / "kept", upstream, verifier="math", method="majority", n=3) as url:
        told = ask(url, ttscope={"answer": "\\sqrt{2}"}).json()
    assert (told["ttscope"]["votes"], told["ttscope"]["answers"]) == (2, 3)
    assert "7" not in told["choices"][0]["message"]["content"]
    assert all(name.startswith("ttscope-check") for name in threads)  # none waits but these
