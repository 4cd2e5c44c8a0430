"""Tries of each client beside servers that keep whoever asks them waiting, over real sockets."""

import asyncio
import socket
import threading
import time

import httpx
import pytest
from opentelemetry.sdk.metrics.export import MetricExportResult

from benchmarks.servers.hostile_server import KINDS, hostile
from profiler.attach.scraper import ScrapeError, Scraper
from profiler.doors import clients, outgoing
from profiler.doors.outgoing import Try
from profiler.engines.server.access import Access
from profiler.probes.otlp_metrics import INSTRUMENTS, OtlpMetrics, exporter_of
from tests.loopback import taking

ENDLESS = [kind for kind in KINDS if kind != "reset"]
SHORT_S, SLACK_S = 0.6, 10.0  # a deadline, and what a busy machine may add


def used(work):
    """Return seconds of the wall clock and of this thread that some work took."""
    begun, spent = time.monotonic(), time.thread_time()
    work()
    return time.monotonic() - begun, time.thread_time() - spent


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_post_is_over_at_its_deadline_and_reads_no_more_than_it_may(kind):
    def post():
        with pytest.raises((OSError, ValueError)):
            address = "127.0.0.1", httpx.URL(url).port
            Try(SHORT_S, 16 << 10).post(address, "/", {}, lambda: b"{}")

    with hostile(kind) as url:
        took, spent = used(post)
    assert took < SHORT_S + SLACK_S
    assert spent < 0.2


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_client_of_httpx_has_as_long_for_its_whole_answer(kind):
    def get():
        with pytest.raises(httpx.HTTPError):
            made.get(url)

    with hostile(kind) as url, clients.Client(seconds=SHORT_S, most_bytes=1 << 20) as made:
        took, spent = used(get)
    assert took < SHORT_S + SLACK_S
    assert spent < 0.5


def test_a_handshake_of_tls_that_is_never_answered_is_over_in_time():
    def get():
        with pytest.raises(httpx.HTTPError):
            made.get(f"https{url[4:]}")

    with hostile("silence") as url, clients.Client(seconds=SHORT_S) as made:
        took, _ = used(get)
    assert took < SHORT_S + SLACK_S


def test_a_connection_that_is_kept_has_a_new_deadline_for_each_request():
    with taking("/", lambda *_: None) as url, clients.Client(seconds=2.0) as made:
        for _ in range(4):
            assert made.post(url, content=b"x").status_code == 200
            time.sleep(0.7)


def test_a_name_that_is_never_resolved_is_given_up(monkeypatch):
    hangs = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hangs.wait(20))
    try:
        begun, before = time.monotonic(), threading.active_count()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                Try(0.2).connect("nowhere.invalid", 80)
        with clients.Client(seconds=0.2) as made, pytest.raises(httpx.ConnectTimeout):
            made.get("http://nowhere.invalid/")
        assert time.monotonic() - begun < 5
        assert threading.active_count() - before <= 2  # one for a host and port
    finally:
        hangs.set()
    assert outgoing.Try(1.0).addresses("127.0.0.1", 80) == ["127.0.0.1"]


def test_an_answer_counts_from_its_end_alone():
    def answering(answer):
        def answer_once():
            made, _ = listening.accept()
            with made:
                made.recv(65_536)
                made.sendall(answer)

        threading.Thread(target=answer_once, daemon=True).start()
        return Try(5.0).post(listening.getsockname(), "/", {}, lambda: b"{}")

    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert answering(head + b"{}") == 200
        assert answering(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + head + b"{}") == 200
        assert answering(b"HTTP/1.0 401 No\r\n\r\n") == 401
        for cut in (b"", b"HTTP/1.1 100 Continue\r\n\r\n", head[:20], head, head + b"{"):
            with pytest.raises(ValueError, match="no whole answer"):
                answering(cut)


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_poll_of_a_page_is_over_in_time(monkeypatch, kind):
    monkeypatch.setattr("profiler.attach.scraper._PAGE_S", SHORT_S)
    with hostile(kind) as url:
        made = Scraper(Access.of(url), lambda label: label, on_event=lambda *_: None)

        def poll():
            with pytest.raises(ScrapeError):
                made.poll()

        took, _ = used(poll)
        made.close()
    assert took < SHORT_S + SLACK_S


@pytest.mark.parametrize("kind", ["continue", "drip", "long body"])
def test_an_export_over_otlp_is_over_in_time(monkeypatch, kind):
    """vLLM's process exports so with TTSCOPE_PLUGIN=otlp."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with hostile(kind) as url:
        exporter = exporter_of(url)
        sums = OtlpMetrics(exporter, {})
        sums.set(next(each for each in INSTRUMENTS if each.kind == "gauge"), 1.0)
        results = []
        took, spent = used(lambda: results.append(exporter.export(sums.data())))
        sums.close(hurry=True)
    assert results == [MetricExportResult.FAILURE]
    assert took < 1 + SLACK_S
    assert spent < 0.8


def test_a_streamed_answer_is_over_where_no_token_comes(monkeypatch):
    from profiler.engines.interface import SampleRequest
    from profiler.engines.server.server import ServerEngine

    monkeypatch.setattr(clients, "ANSWER_S", 0.2)
    for kind in ("continue", "slow continue", "drip", "drip of a body"):
        with hostile(kind) as url:
            engine = ServerEngine(url, timeout_s=SHORT_S)
            begun = time.monotonic()
            engine.submit(
                SampleRequest(
                    request_id="r.p.0",
                    prompt="?",
                    chat=False,
                    temperature=1.0,
                    top_p=1.0,
                    max_tokens=4,
                )
            )
            results = []
            while not results and time.monotonic() < begun + 10:
                results = engine.poll(0.1)
            engine.close()
        assert [bool(each.error) for each in results] == [True], kind
        assert time.monotonic() - begun < SHORT_S + SLACK_S


def test_a_session_of_aiohttp_keeps_no_heads_that_nobody_reads():
    pytest.importorskip("aiohttp")
    import aiohttp

    from profiler.doors.loop_client import session

    async def ask(url, seconds):
        async with session(seconds, connections=4, idle_s=1.0) as made:
            with pytest.raises((aiohttp.ClientError, TimeoutError)):
                async with made.post(url, data=b"{}") as answer:
                    await answer.read()

    for kind, seconds in (("continue", 60.0), ("slow continue", SHORT_S), ("drip", SHORT_S)):
        with hostile(kind) as url:
            begun = time.monotonic()
            asyncio.run(ask(url, seconds))
        assert time.monotonic() - begun < SHORT_S + SLACK_S, kind
