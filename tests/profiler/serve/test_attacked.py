"""The endpoint beside clients and engines that mean it harm, and its key."""

import asyncio
import gzip
import json
import socket
import time
from contextlib import ExitStack, suppress
from functools import partial
from types import SimpleNamespace

import httpx
import msgspec
import pytest
from aiohttp import web

from benchmarks.servers.fake_engine import running
from benchmarks.servers.hostile_server import hostile
from profiler.engines.interface import SampleRequest
from profiler.serve import service
from profiler.serve.question import read_question
from profiler.serve.upstream import Upstream
from tests.profiler.serve.conftest import serving
from traces.recording.reader import Recording

KEY = "key-of-clients-0123456789"
MESSAGES = [{"role": "user", "content": "What is 3 x 4?"}]
CHAT = "/v1/chat/completions"


def ask(url, headers=None, path=CHAT, **body):
    body = {"model": "fake", "messages": MESSAGES} | body
    return httpx.post(f"{url}{path}", json=body, headers=headers, timeout=60)


def message(answer):
    return answer.json()["error"]["message"]


def test_without_the_key_of_clients_nothing_is_answered_or_passed_on(engine, upstream, tmp_path):
    folder = tmp_path / "kept"
    with serving(folder, upstream, settings={"key": KEY}, method="majority", n=2) as url:
        for given in (None, "Bearer wrong", KEY, f"Basic {KEY}", "Bearer \xfc"):
            headers = {} if given is None else {"Authorization": given.encode("latin-1")}
            for path in (CHAT, "/v1/embeddings"):
                answer = ask(url, headers, path)
                assert answer.status_code == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "needs the key" in message(answer)
                assert "\n" not in message(answer)
        assert engine.asked == []
        good = {"Authorization": f"Bearer {KEY}", "X-Api-Key": "mine"}
        assert ask(url, good).status_code == 200
        assert ask(url, good, model="another").status_code == 200
        for path in ("/health", "/metrics"):
            assert httpx.get(f"{url}{path}").status_code == 200
    assert len(engine.headers) == 3
    for sent in engine.headers:
        assert KEY not in str(sent)  # it is for us alone
        assert sent["X-Api-Key"] == "mine"
    kept = b"".join(each.read_bytes() for each in folder.rglob("*") if each.is_file())
    assert KEY.encode() not in kept


def test_the_engines_key_goes_with_samples_where_clients_give_ours(
    engine, upstream, tmp_path, monkeypatch
):
    from profiler.serve import serve as module

    monkeypatch.setattr(module, "read_key", lambda *_: "key-of-the-engine")
    good = {"Authorization": f"Bearer {KEY}"}
    with serving(tmp_path / "a", upstream, settings={"key": KEY}, method="majority", n=2) as url:
        assert ask(url, good).status_code == 200
        assert ask(url, good, model="another").status_code == 200
    assert {sent["Authorization"] for sent in engine.headers} == {"Bearer key-of-the-engine"}


def test_bytes_of_an_answer_keep_their_encoding(engine, tmp_path, monkeypatch):
    async def embed(request):
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        return web.Response(body=gzip.compress(b'{"embedded": 1}'), headers=headers)

    monkeypatch.setattr(engine, "embed", embed)
    with (
        running(engine) as there,
        serving(tmp_path / "kept", there, method="majority", n=2) as url,
    ):
        answer = httpx.post(f"{url}/v1/embeddings", json={}, timeout=60)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.json() == {"embedded": 1}


def test_half_a_character_in_a_question_is_said(engine, upstream, tmp_path):
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        for half in ("\\ud800", "a\\udc00b", "\\ud83d\\ud83d"):
            body = '{"messages":[{"role":"user","content":"HALF"}]}'.replace("HALF", half)
            answer = httpx.post(f"{url}{CHAT}", content=body.encode(), timeout=60)
            assert answer.status_code == 400
            assert "lone surrogate" in message(answer)
        whole = '{"model":"fake","messages":[{"role":"user","content":"\\ud83d\\ude00"}]}'
        assert httpx.post(f"{url}{CHAT}", content=whole.encode(), timeout=60).status_code == 200
    assert engine.asked[-1]["messages"][0]["content"] == "\U0001f600"


@pytest.mark.parametrize(
    ("sent", "told"), [("\ud83d|\ude00", "\U0001f600"), ("\ud800", "\ufffd"), ("é", "é")]
)
def test_half_a_character_in_an_answer_is_answered(engine, upstream, tmp_path, sent, told):
    engine.answers = lambda body, number: f"{sent.replace('|', '')}</think>12"
    engine.tokens = 20  # a delta for each character
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        for stream in (False, True):
            answer = ask(url, stream=stream)
            assert answer.status_code == 200
        assert ask(url).json()["choices"][0]["message"]["content"].startswith(told)
    assert Recording.open(tmp_path / "kept").complete


def test_what_the_engine_says_of_its_failure_is_said(engine, upstream, tmp_path, monkeypatch):
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        engine.fault = 500
        assert message(ask(url)) == "the engine answered HTTP 500: told"
        engine.fault = None

        async def fail(response, event):
            await response.write(b'data: {"error": {"message": "out of blocks"}}\n\n')

        monkeypatch.setattr(engine, "_send", fail)
        answer = ask(url)
        assert answer.status_code == 502
        assert message(answer) == "the engine ended with an error: out of blocks"
    assert b"out of blocks" not in (tmp_path / "kept" / "recording.json").read_bytes()


def opened(url, sent):
    made = socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=30)
    made.sendall(sent)
    return made


def head(path, length=4_000_000):
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


@pytest.mark.parametrize("sent", [b"", head(CHAT) + b"{", head("/v1/embeddings") + b"{"])
def test_who_sends_nothing_or_half_a_body_keeps_nobody_waiting(
    engine, upstream, tmp_path, monkeypatch, sent
):
    monkeypatch.setattr(service, "_MOST_CONNECTIONS", 16)
    settings = {"in_flight": 1, "waiting": 0}
    with (
        serving(tmp_path / "kept", upstream, settings=settings, method="majority", n=2) as url,
        ExitStack() as stack,
    ):
        for _ in range(60):
            stack.enter_context(opened(url, sent))
        for _ in range(3):
            assert ask(url).status_code == 200
    assert Recording.open(tmp_path / "kept").complete


def test_bodies_that_are_answered_are_limited_together(engine, upstream, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_MOST_HELD_BYTES", 100_000)
    settings = {"most_body_bytes": 80_000, "drain_s": 10.0}
    large = partial(ask, messages=[{"role": "user", "content": "x" * 60_000}])
    engine.held.set()  # nothing is sent
    with (
        serving(tmp_path / "kept", upstream, settings=settings, method="majority", n=2) as url,
        opened(url, b"") as first,
    ):
        body = json.dumps(
            {"model": "fake", "messages": [{"role": "user", "content": "x" * 60_000}]}
        ).encode()
        first.sendall(head(CHAT, len(body)) + body)
        until = time.monotonic() + 60
        while len(engine.asked) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        refused = large(url)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        engine.held.clear()
        assert first.recv(100).startswith(b"HTTP/1.1 200")
        assert large(url).status_code == 200


@pytest.mark.parametrize(
    "content", ["\U0001f600" + "x" * 60_000, [{"type": "text", "text": ""}] * 1_500]
)
def test_a_body_that_is_larger_in_memory_counts_as_such(
    engine, upstream, tmp_path, monkeypatch, content
):
    monkeypatch.setattr(service, "_MOST_HELD_BYTES", 100_000)
    settings = {"most_body_bytes": 80_000}
    with serving(tmp_path / "kept", upstream, settings=settings, method="majority", n=2) as url:
        assert ask(url, messages=[{"role": "user", "content": content}]).status_code == 503
        assert ask(url, messages=[{"role": "user", "content": "x" * 60_000}]).status_code == 200
        assert ask(url).status_code == 200
    assert len(engine.asked) == 4


def asked(stream):
    body = json.dumps({"model": "fake", "messages": MESSAGES, "stream": stream}).encode()
    return head(CHAT, len(body)).replace(b"Host", b"Connection: close\r\nHost") + body


def taken(connection):
    """Return how many bytes come until a connection ends."""
    count = 0
    with suppress(ConnectionError):
        while piece := connection.recv(1 << 20):
            count += len(piece)
    return count


@pytest.mark.parametrize("stream", [False, True])
def test_who_does_not_take_an_answer_is_closed_and_takes_no_turn_meanwhile(
    engine, upstream, tmp_path, monkeypatch, stream
):
    monkeypatch.setattr("profiler.doors.site.TAKE_S", 2.0)
    engine.answers = lambda body, number: "x" * (8_000_000 if number < 2 else 8) + "</think>12"
    settings = {"in_flight": 1, "waiting": 0}
    with (
        serving(tmp_path / "kept", upstream, settings=settings, method="majority", n=2) as url,
        opened(url, asked(stream)) as first,
    ):
        assert first.recv(12) == b"HTTP/1.1 200"
        begun = time.monotonic()
        assert ask(url).status_code == 200
        assert time.monotonic() - begun < 2.0  # its turn is over
        time.sleep(4)
        assert taken(first) < 8_000_000
    assert Recording.open(tmp_path / "kept").complete


@pytest.mark.parametrize("stream", [False, True])
def test_answers_that_nobody_takes_are_limited_together(
    engine, upstream, tmp_path, monkeypatch, stream
):
    monkeypatch.setattr(service, "_MOST_HELD_BYTES", 40_000_000)
    engine.answers = lambda body, number: "x" * 8_000_000 + "</think>12"
    with (
        serving(tmp_path / "kept", upstream, method="majority", n=2) as url,
        ExitStack() as stack,
    ):
        waiting = [stack.enter_context(opened(url, asked(stream))) for _ in range(6)]
        for each in waiting:
            assert each.recv(12) == b"HTTP/1.1 200"
        gave_way = sum(taken(each) < 8_000_000 for each in waiting)
        assert 0 < gave_way < len(waiting)
        assert ask(url).status_code == 200


def test_the_samples_of_a_question_share_its_bytes():
    body = {
        "model": "fake",
        "messages": [{"role": "user", "content": "x" * 1000}],
        "stop": ["."],
        "top_k": 5,
    }
    question = read_question(body, chat=True, most_n=8)
    asked = {"model": "fake", "messages": body["messages"], "seed": 0, "n": 1}
    first = question.encoded(asked, True)
    second = question.encoded(asked | {"seed": 1}, True)
    assert first[-1] is second[-1]
    assert len(first[0]) < 100
    for seed, parts in enumerate((first, second)):
        want = {**question.extra, **asked, "seed": seed}
        assert msgspec.json.decode(b"".join(parts)) == want
    cut = question.encoded(asked | {"stop": ["a", "."], "messages": "other"}, False)
    want = {**question.extra, **asked, "stop": ["a", "."], "messages": "other"}
    assert msgspec.json.decode(b"".join(cut)) == want
    assert b"".join(cut).count(b'"stop"') == 1
    plain = read_question({"prompt": "p"}, chat=False, most_n=1)
    assert msgspec.json.decode(b"".join(plain.encoded({"n": 1}, False))) == {"n": 1}


def test_long_answers_of_the_engine_take_turns_on_the_loop(upstream):
    """A round of the loop takes one full piece, however many answers have some that wait."""
    held = read_question({"prompt": "p"}, chat=False, most_n=1)
    rounds = taken = 0

    async def read_all(made, number):
        nonlocal taken
        made.questions[f"r{number}"] = held
        drawn = {"chat": False, "temperature": 1.0, "top_p": 1.0, "max_tokens": 1}
        request = SampleRequest(request_id=f"r{number}.0", prompt="p", **drawn)
        async for _ in made._pieces(request):
            taken += 1

    async def run():
        nonlocal rounds
        made = Upstream(upstream)
        await made.open(60.0)
        await made.session.close()
        made.session = SimpleNamespace(post=lambda *_, **__: _Answer(10))
        reading = asyncio.gather(*(read_all(made, number) for number in range(8)))
        while not reading.done():
            rounds += 1
            before = taken
            await asyncio.sleep(0)
            assert taken - before <= 1
        await reading

    asyncio.run(run())
    assert taken == 80 <= rounds


class _Answer:
    """An answer that has come up to so many full pieces."""

    status, headers = 200, {}

    def __init__(self, pieces):
        self.content, self.left = self, pieces

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def read(self, most):
        self.left -= 1
        return b"x" * most if self.left >= 0 else b""


@pytest.mark.parametrize("kind", ["continue", "drip", "long line"])
def test_an_engine_that_never_ends_its_head_fails_its_question(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("profiler.doors.clients.ANSWER_S", 0.2)
    with (
        hostile(kind) as there,
        serving(
            tmp_path / "kept", there, settings={"timeout_s": 1.0}, method="majority", n=2
        ) as url,
    ):
        begun = time.monotonic()
        answer = ask(url)
        assert answer.status_code == 502
        assert time.monotonic() - begun < 20
    assert Recording.open(tmp_path / "kept").complete


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01canary\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\ncanary\r\n\r\n",
        b"GET /" + b"canary" * 4000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\ncanary\r\n",
    ],
)
def test_what_is_no_request_gets_an_error_in_the_shape_of_openais(sent, upstream, tmp_path):
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(sent)
            answer = b"".join(iter(lambda: client.recv(65536), b""))  # it closes
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 400 " in head and b"Content-Type: application/json" in head
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", 400)
    assert b"canary" not in answer


@pytest.mark.parametrize("expected", ["100-continue", "200-maybe"])
def test_what_a_client_expects_is_known_or_an_error_in_json(upstream, tmp_path, expected):
    body = json.dumps({"model": "fake", "messages": MESSAGES}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\nExpect: {expected}\r\n\r\n"
    with serving(tmp_path / "kept", upstream, method="majority", n=2) as url:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port), timeout=60) as sent:
            sent.sendall(head.encode())
            first = sent.recv(1 << 16)
            if expected == "100-continue":
                assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
                first = b""
                sent.sendall(body)
            while piece := sent.recv(1 << 16):
                first += piece
    status, _, answer = first.partition(b"\r\n\r\n")
    if expected == "100-continue":
        assert status.startswith(b"HTTP/1.1 200 ") and json.loads(answer)["choices"]
        return
    assert status.startswith(b"HTTP/1.1 417 ") and b"application/json" in status
    assert json.loads(answer)["error"]["message"] == "Expect: only 100-continue is known"
