"""Policies on SGLang's endpoint: what is sent is what SGLang 0.5.23 takes, and no more."""

import json
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest

from profiler.engines.interface import SampleRequest
from profiler.engines.server import server
from profiler.engines.server.server import ServerEngine
from profiler.runs.record import record
from profiler.workload.problems import load_workload
from tests.loopback import serving
from traces.errors import EngineError
from traces.schema.tts.policy import Policy

CARD = {"id": "m", "owned_by": "sglang", "root": "m", "max_model_len": 64}
PAGES = {
    "/v1/models": {"data": [CARD]},
    "/server_info": {"version": "0.5.23", "tp_size": 2, "max_running_requests": 32},
}
# Of SGLang 0.5.23's entrypoints/openai/protocol.py, as far as they are sent.
KNOWN = {
    *("model", "n", "temperature", "top_p", "stream", "stream_options", "max_tokens", "rid"),
    *("stop", "no_stop_trim", "min_tokens", "ignore_eos", "logprobs"),
}
OF_CHAT = KNOWN | {"messages", "top_logprobs", "reasoning_effort"}
OF_CHAT |= {"return_input_ids_in_sglext", "return_output_ids_in_sglext"}
OF_TEXT = KNOWN | {"prompt", "return_token_ids"}


@contextmanager
def sglang(tokenize=lambda: (200, '{"tokens": [7], "count": 1}')):
    """Serve as SGLang does; gives the URL and the bodies that were asked for.

    `tokenize` gives what `/tokenize` answers, None for a connection that breaks.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            told = PAGES.get(self.path)
            self.answer(404 if told is None else 200, json.dumps(told))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                mark = "think>" in body["prompt"]
                told = (200, '{"tokens": [7]}') if mark else tokenize()
                if told is not None:
                    self.answer(*told)
                return
            asked.append((self.path, body))
            chat = "chat" in self.path
            if chat and body.get("return_token_ids"):
                self.answer(400, '{"message": "not supported with streaming"}')
                return
            piece = {"delta": {"content": "12 END"}} if chat else {"text": "12 END"}
            piece |= {"finish_reason": "stop", "matched_stop": "END"}
            if body.get("return_token_ids"):
                piece["token_ids"] = [5, 6]
            event = {"choices": [piece], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
            events = [event]
            if body.get("return_output_ids_in_sglext"):
                ids = {"input_ids": [1, 2, 3], "output_ids": [[8, 7, 9]]}
                events.append({"choices": [], "sglext": ids})
            data = "".join(f"data: {json.dumps(each)}\n\n" for each in events)
            self.answer(200, f"{data}data: [DONE]\n\n")

        def answer(self, status, text):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with serving(Handler) as url:
        yield url, asked


def answered(engine, **changes):
    return all_answered(engine, [changes])[0]


def all_answered(engine, requests):
    for number, changes in enumerate(requests):
        request = {"prompt": "what", "temperature": 0.8, "top_p": 1.0, "chat": True}
        request |= {"request_id": f"run.p.{number}", "max_tokens": 9}
        engine.submit(SampleRequest(**request | changes))
    results, deadline = [], time.monotonic() + 20
    while len(results) < len(requests):
        assert time.monotonic() < deadline
        results += engine.poll()
    return results


@contextmanager
def counting(tokenize):
    """Give an engine whose `/tokenize` answers so, and what it was asked for."""
    counted = []

    def count():
        counted.append(1)
        return tokenize()

    with sglang(count) as (url, asked), closing(ServerEngine(url)) as engine:
        yield engine, asked, counted


def raw(*prompts):
    return [{"chat": False, "prompt": prompt, "max_tokens": None} for prompt in prompts]


def test_requests_have_what_sglang_knows():
    with (
        sglang() as (url, asked),
        closing(ServerEngine(url, declared={"tensor_parallel_size": None})) as engine,
    ):
        chat = answered(engine, stop=("END",), top_logprobs=3, want_token_ids=True)
        text = answered(engine, chat=False, fixed_length=True, want_token_ids=True)
    (_, of_chat), (_, of_text) = asked
    assert set(of_chat) <= OF_CHAT and set(of_text) <= OF_TEXT
    assert of_chat["no_stop_trim"] and of_chat["rid"] == "run.p.0"
    assert chat.error is None and chat.stopped and chat.text == "12 END"
    assert (chat.token_ids, chat.prompt_token_ids, chat.think_tokens) == ((8, 7, 9), (1, 2, 3), 1)
    assert (text.error, text.token_ids, text.output_tokens) == (None, (5, 6), 2)
    assert dict(engine.config.other)["engine_name"] == "SGLang 0.5.23"
    assert (engine.config.tensor_parallel_size, engine.config.max_num_seqs) == (2, 32)
    assert engine.config.vllm_version is None
    assert engine.think_end_ids == (7,)


NO_TOKENS = '{"tokens": []}'  # as a server answers that knows another body
BROKEN = '{"tokens": [7'


def test_the_room_behind_a_prompt_is_counted_in_its_tokens():
    with counting(lambda: (200, '{"tokens": [7], "count": 1}')) as (engine, asked, counted):
        results = all_answered(engine, raw(*["what " * 20] * 8))
    assert {each.error for each in results} == {None}
    assert {body["max_tokens"] for _, body in asked} == {63}  # of 64
    assert len(counted) == 1  # for the samples of one prompt


@pytest.mark.parametrize("told", [(404, ""), (501, ""), (200, NO_TOKENS), (200, BROKEN)])
def test_a_server_that_does_not_tell_lengths_is_asked_once(told):
    with counting(lambda: told) as (engine, asked, counted):
        first = all_answered(engine, raw(*["why?"] * 8))
        other = all_answered(engine, raw("who?", "what " * 21))
        assert len(counted) == 1
        engine._untold_until = 0.0  # a minute later: a gateway may have had no engine
        answered(engine, **raw("why?")[0])
        assert len(counted) == 2
    assert {each.error for each in first} == {None}
    assert {body["max_tokens"] for _, body in asked} == {60}
    (long,) = (each.error for each in other if each.error is not None)
    assert long.startswith("max_tokens is needed")


def test_a_server_that_fails_at_a_count_is_no_server_that_does_not_tell():
    told = [(503, ""), (200, '{"tokens": [7]}')]
    with counting(lambda: told.pop(0)) as (engine, asked, _):
        assert answered(engine, **raw("what " * 21)[0]).error == "HTTP 503"
        assert answered(engine, **raw("what " * 21)[0]).error is None
    assert [body["max_tokens"] for _, body in asked] == [63]


def test_prompts_are_counted_before_a_run_so_that_no_sample_waits(tmp_path):
    events = []
    rows = [{"id": n, "prompt": f"{n}", "answer": "12"} for n in range(3)]
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workload = replace(load_workload(str(tmp_path / "w.jsonl")), chat=False)
    with counting(lambda: (200, '{"tokens": [7]}')) as (engine, asked, counted):

        def begun(done, total):
            events.append(len(counted))

        record(workload, Policy(), engine, tmp_path / "r", progress=begun)
        assert len(counted) == 3 and set(events) == {3}
    assert [body["max_tokens"] for _, body in asked] == [63] * 3


def test_a_run_gives_up_on_a_server_that_dies_at_a_count():
    with (
        counting(lambda: None) as (engine, _, _),
        pytest.raises(EngineError, match="The server seems to be gone"),
    ):
        all_answered(engine, raw(*(f"{number} what " * 21 for number in range(8))))


def test_a_count_that_hangs_holds_no_sample_for_long(monkeypatch):
    monkeypatch.setattr(server, "ANSWER_S", 0.1)
    go_on = threading.Event()
    with counting(lambda: go_on.wait(20) and None) as (engine, _, counted):
        results = all_answered(engine, raw(*["what " * 21] * 4))
        assert [each.error for each in results] == ["TimeoutError"] * 4
        assert len(counted) == 1
        go_on.set()


def test_a_count_that_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(server, "MOST_ANSWER_BYTES", 1 << 10)
    large = json.dumps({"tokens": [7] * 1000})
    with counting(lambda: (200, large)) as (engine, _, _):
        error = answered(engine, **raw("what " * 21)[0]).error
    assert error == "HTTP 200, an answer that is too large"


def test_a_sample_that_is_cancelled_takes_no_count_from_the_others():
    go_on, begun = threading.Event(), threading.Event()

    def tokenize():
        begun.set()
        go_on.wait(20)
        return 200, '{"tokens": [7]}'

    with counting(tokenize) as (engine, asked, counted):
        made = {"temperature": 0.8, "top_p": 1.0} | raw("what " * 21)[0]
        engine.submit(SampleRequest(request_id="run.p.9", **made))
        assert begun.wait(20)
        engine.submit(SampleRequest(request_id="run.p.8", **made))
        assert len(engine.cancel(["run.p.9"])) == 1
        go_on.set()
        deadline = time.monotonic() + 20
        while not (results := engine.poll()):
            assert time.monotonic() < deadline
    assert [(each.request_id, each.error) for each in results] == [("run.p.8", None)]
    assert len(counted) == 1 and [body["max_tokens"] for _, body in asked] == [63]


def test_what_only_vllm_does_is_refused():
    with sglang() as (url, _):
        engine = ServerEngine(url)
        assert not engine.thinking_budget
        engine.close()
        with pytest.raises(EngineError, match="refuses --chat-template"):
            ServerEngine(url, chat_template="{{ messages }}")
