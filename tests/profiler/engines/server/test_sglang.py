"""Policies on SGLang's endpoint: what is sent is what SGLang 0.5.23 takes, and no more."""

import json
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from profiler.engines.interface import SampleRequest
from profiler.engines.server.server import ServerEngine
from tests.loopback import serving
from traces.errors import EngineError

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
def sglang():
    """Serve as SGLang does; gives the URL and the bodies that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            told = PAGES.get(self.path)
            self.answer(404 if told is None else 200, json.dumps(told))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path in PAGES:
                self.answer(404, "")
                return
            if self.path == "/tokenize":
                self.answer(200, json.dumps({"tokens": [7], "count": 1}))
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
    request = {"request_id": "run.p.0", "prompt": "what", "temperature": 0.8, "top_p": 1.0}
    engine.submit(SampleRequest(**request | {"chat": True, "max_tokens": 9} | changes))
    deadline = time.monotonic() + 20
    while not (results := engine.poll()):
        assert time.monotonic() < deadline
    return results[0]


def test_requests_have_what_sglang_knows():
    with sglang() as (url, asked):
        engine = ServerEngine(url, declared={"tensor_parallel_size": None})
        try:
            chat = answered(engine, stop=("END",), top_logprobs=3, want_token_ids=True)
            text = answered(engine, chat=False, fixed_length=True, want_token_ids=True)
        finally:
            engine.close()
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


def test_the_room_behind_a_prompt_is_counted_in_its_tokens():
    with sglang() as (url, asked):
        engine = ServerEngine(url)
        try:
            long = answered(engine, chat=False, prompt="what " * 20, max_tokens=None)
            PAGES["/tokenize"] = None
            short = answered(engine, chat=False, prompt="why?", max_tokens=None)
            other = answered(engine, chat=False, prompt="what " * 21, max_tokens=None)
        finally:
            PAGES.pop("/tokenize", None)
            engine.close()
    assert (long.error, short.error) == (None, None)
    assert [body["max_tokens"] for _, body in asked] == [63, 60]  # of 64
    assert other.error.startswith("max_tokens is needed")


def test_what_only_vllm_does_is_refused():
    with sglang() as (url, _):
        engine = ServerEngine(url)
        assert not engine.thinking_budget
        engine.close()
        with pytest.raises(EngineError, match="refuses --chat-template"):
            ServerEngine(url, chat_template="{{ messages }}")
