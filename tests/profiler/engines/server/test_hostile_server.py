"""A server that answers badly, endlessly or not at all: samples fail, recordings can be read."""

import gzip
import itertools
import json
import os
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from profiler.doors import clients
from profiler.engines.server.server import ServerEngine
from profiler.runs.record import record
from profiler.workload.problems import load_workload
from tests.loopback import serving
from traces.errors import EngineError
from traces.recording.reader import Recording
from traces.schema.tts.policy import Policy

CARD = {"id": "m", "object": "model", "max_model_len": 1024}
GOOD = [
    {"choices": [{"index": 0, "text": "12", "finish_reason": None}]},
    {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
]


def events(*told, done=True):
    lines = [each if isinstance(each, str) else json.dumps(each) for each in told]
    return "".join(f"data: {line}\n\n" for line in [*lines, *(["[DONE]"] if done else [])]).encode()


ANSWER = events(*GOOD)


@contextmanager
def server(
    *, card=CARD, stream=ANSWER, version=None, models=None, length=None, stuck=None, page=None
):
    """Serve one model; `models` writes the list of them, `page` is the one of its metrics.

    `stream` is the body of a completion, or gives it by how many there were before. It is said to
    have a `length` in bytes; with `stuck` it does not end before that is set.
    """
    numbers = itertools.count()  # several threads answer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/v1/models" and models is not None:
                models(self)
            elif self.path == "/v1/models":
                self._answer(json.dumps({"data": [card]}).encode(), "application/json")
            elif self.path == "/metrics" and page is not None:
                self._answer(page, "text/plain")
            elif self.path == "/version" and version is not None:
                self._answer(version, "application/json")
            else:
                self.send_error(404)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("completions"):
                body = stream(next(numbers)) if callable(stream) else stream
                self._answer(body, "text/event-stream", length)
                if stuck is not None:
                    self.wfile.flush()
                    stuck.wait(10)
            else:
                self.send_error(404)

        def _answer(self, body, kind, length=None):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as url:
        yield url


def recorded(tmp_path, url, *, problems=2, answer="12", chat=False, policy=None):
    """A recording of a server that is asked so many problems."""
    rows = [{"id": at, "prompt": "6 + 6?", "answer": answer} for at in range(problems)]
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workload = load_workload(str(tmp_path / "w.jsonl"), chat=chat)
    with closing(ServerEngine(url)) as engine:
        return Recording.open(record(workload, policy or Policy(), engine, tmp_path / "r"))


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (events([]), "no object"),
        (events(1), "no object"),
        (events({"choices": [None]}), "AttributeError"),
        (events({"choices": [{"text": 5}]}), "TypeError"),
        (events("[" * 100_000), "RecursionError"),
        (events({"error": {"message": "canary"}}), "an error in the stream"),
        (events(GOOD[0], done=False), "cut off"),
        (events(), "no answer"),
        (events(*GOOD[:1], {"choices": [{"index": 5, "text": "1"}]}), "that was not asked for"),
        (b"<html>canary</html>", "no answer"),
        (json.dumps({"choices": [{"text": "12"}]}).encode(), "no answer"),
        (b"data: " + b"x" * (9 << 20), "a line that is too long"),
    ],
)
def test_an_answer_that_is_none_is_a_failed_sample(tmp_path, stream, error):
    with server(stream=stream) as url:
        recording = recorded(tmp_path, url)
    rows = recording.samples.to_dicts()
    assert [error in row["error"] for row in rows] == [True, True]
    assert {row["correct"] for row in rows} == {None}
    assert recording.problems["error"].null_count() == 0
    assert "canary" not in json.dumps(rows, default=str)


@pytest.mark.parametrize(
    ("bound", "most", "stream"),
    [
        ("server.MOST_STREAM_BYTES", 1 << 20, b": nothing\n\n" * 100_000 + ANSWER),
        ("stream.MOST_TEXT", 1_000, events(*GOOD[:1] * 501, *GOOD[1:])),
        ("stream.MOST_KEPT", 10, events(*[{"choices": [{"token_ids": [1] * 6}]}] * 3)),
    ],
)
def test_an_answer_has_a_number_of_bytes_and_of_tokens(tmp_path, monkeypatch, bound, most, stream):
    monkeypatch.setattr(f"profiler.engines.server.{bound}", most)
    with server(stream=stream) as url:
        recording = recorded(tmp_path, url)
    assert all(each.endswith("an answer that is too long") for each in recording.samples["error"])


def test_a_stream_may_begin_with_a_mark_of_its_bytes(tmp_path):
    told = [{"choices": [{"index": 0, "text": "1"}]}, {"choices": [{"text": "2"}]}, *GOOD[1:]]
    with server(stream=b"\xef\xbb\xbf" + events(*told)) as url:
        recording = recorded(tmp_path, url)
    assert recording.samples["error"].to_list() == [None, None]
    assert recording.samples["correct"].to_list() == [True, True]


@pytest.mark.parametrize("usage", [-5, 10**9, 2**63, 1e300, float("nan"), "a", [1], None, 2.5])
def test_counts_that_are_none_are_not_known(tmp_path, usage):
    told = {"prompt_tokens": usage, "completion_tokens": usage}
    told |= {"prompt_tokens_details": {"cached_tokens": usage}}
    with server(stream=events(*GOOD[:2], {"choices": [], "usage": told})) as url:
        recording = recorded(tmp_path, url)
    assert recording.complete and not recording.manifest.dropped
    for column in ("prompt_tokens", "cached_tokens", "output_tokens"):
        assert recording.samples[column].to_list() == [None, None]
    assert recording.samples["correct"].to_list() == [True, True]
    assert notes_of(recording) == ([] if usage is None else [IMPOSSIBLE.format("2 samples")])


IMPOSSIBLE = "the server reported numbers of tokens that cannot be, of {}: they are not known"


def notes_of(recording):
    return recording.frame("events").filter(kind="note")["detail"].to_list()


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        ({"completion_tokens": 0}, "output_tokens"),  # for a text
        ({"completion_tokens": 65}, "output_tokens"),  # of at most 64
        ({"prompt_tokens_details": {"cached_tokens": 4}}, "cached_tokens"),  # of a prompt of 3
    ],
)
def test_counts_that_contradict_what_came_are_not_known(tmp_path, changes, unknown):
    told = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": None} | changes
    answers = [events(*GOOD), events(*GOOD[:2], {"choices": [], "usage": told})]
    with server(stream=answers.__getitem__) as url:
        recording = recorded(tmp_path, url, policy=Policy(max_tokens=64))
    rows = {"prompt_tokens": [3, 3], "cached_tokens": [None, None], "output_tokens": [2, 2]}
    rows[unknown] = [rows[unknown][0], None]
    for column, values in rows.items():
        assert sorted(recording.samples[column].to_list(), key=str) == sorted(values, key=str)
    assert notes_of(recording) == [IMPOSSIBLE.format("1 sample")]


def test_a_stream_that_is_lost_behind_its_finish_reason_is_whole(tmp_path):
    """Its usage may never come (OpenAI, stream_options), so that its tokens are not known."""
    with server(stream=events(*GOOD[:2], done=False), length=10_000) as url:
        recording = recorded(tmp_path, url)
    assert recording.samples["error"].to_list() == [None, None]
    assert recording.samples["finish_reason"].to_list() == ["stop", "stop"]
    assert recording.samples["output_tokens"].to_list() == [None, None]
    assert recording.samples["correct"].to_list() == [True, True]
    assert notes_of(recording) == []


def test_a_stream_that_is_lost_before_its_finish_reason_is_not(tmp_path):
    with server(stream=events(GOOD[0], done=False), length=10_000) as url:
        recording = recorded(tmp_path, url)
    assert recording.samples["error"].to_list() == ["RemoteProtocolError"] * 2


def test_nobody_waits_long_behind_a_finish_reason(tmp_path, monkeypatch):
    """The server neither goes on nor ends: the sample ended as its finish_reason came."""
    monkeypatch.setattr("profiler.engines.server.server.ANSWER_S", 0.3)
    stuck = threading.Event()
    with server(stream=events(*GOOD[:2], done=False), stuck=stuck) as url:
        recording = recorded(tmp_path, url)
        stuck.set()
    assert recording.samples["error"].to_list() == [None, None]
    took = recording.samples["end"] - recording.samples["first_token"]
    assert took.max() < 0.2e9


@pytest.mark.parametrize("length", [-1.5, 0, 10**9, "xxx", [1], 1e400, 1e300, True])
def test_a_card_with_a_length_that_is_none_is_read(tmp_path, length):
    with server(card=CARD | {"max_model_len": length}) as url:
        recording = recorded(tmp_path, url)
    assert [each.max_model_len for each in recording.manifest.engines.values()] == [None]


@pytest.mark.parametrize("told", ["0", "-5", str(2**21), str(10**30), "x", "1e3"])
def test_a_page_of_settings_that_cannot_be_is_read(tmp_path, told):
    page = f'vllm:cache_config_info{{block_size="{told}",num_gpu_blocks="-{told}"}} 1\n'
    with server(version=b'{"version": "0.32.0"}', page=page.encode()) as url:
        recording = recorded(tmp_path, url)
    (engine,) = recording.manifest.engines.values()
    assert (engine.block_size, engine.num_gpu_blocks or None) == (None, None)


@pytest.mark.parametrize("name", ["", 5, "\ud800", "m" * 300, None])
def test_a_name_that_is_none_is_one_line(name):
    with server(card=CARD | {"id": name}) as url, pytest.raises(EngineError, match="OpenAI-comp"):
        ServerEngine(url)


VERSIONS = [b'"0.32"', b'{"version": 5}', b'{"version": "\\ud800"}', b"[" * 100_000]


@pytest.mark.parametrize("version", [*VERSIONS, b'{"version": "%s"}' % (b"9" * 300)])
def test_a_version_that_is_none_is_not_known(tmp_path, version):
    with server(version=version) as url:
        recording = recorded(tmp_path, url)
    assert [each.vllm_version for each in recording.manifest.engines.values()] == [None]


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    piece = b" " * (1 << 20)
    try:
        while True:
            handler.wfile.write(piece)
    except OSError:
        pass


def bomb(handler):
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    handler.wfile.write(gzip.compress(b" " * (32 << 20)))


def dripping(handler):
    try:
        for _ in range(100):
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if handler.server.socket.fileno() < 0:
                return
            threading.Event().wait(0.05)
    except OSError:
        pass


@pytest.mark.parametrize("models", [endless, bomb, dripping])
def test_an_answer_without_end_is_one_line(monkeypatch, models):
    monkeypatch.setattr(clients, "ANSWER_S", 1.0)
    with server(models=models) as url, pytest.raises(EngineError):
        ServerEngine(url)


def test_a_folder_that_a_server_names_is_read_only_where_it_holds_a_file(tmp_path):
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / "config.json")
    with (
        server(card=CARD | {"root": str(tmp_path / "model")}) as url,
        closing(ServerEngine(url)) as engine,
    ):
        assert engine.model is None
