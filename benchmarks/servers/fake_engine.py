"""An OpenAI-compatible engine without a model, on aiohttp, in a thread or a process of its own.

It counts what it is asked and what is aborted. `answers(body, number)` gives the text of a sample.
"""

import argparse
import asyncio
import json
import logging
import random
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from aiohttp import web

MODEL = "fake"
SILENT = logging.getLogger("tests.fake_engine")
SILENT.disabled = True


def right(body, number):
    """Return the right answer, behind as many characters as the field `user` may say."""
    told = str(body.get("user"))
    return "thought " * (int(told) // 8 if told.isdecimal() else 0) + "thought</think>12"


def _stopped(text, body):
    """Return a text cut at the first of the request's stop strings, and which that was."""
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    place, stop = min(
        ((text.find(each), each) for each in stops if each in text), default=(0, None)
    )
    if stop is None:
        return text, None
    return text[: place + (len(stop) if body.get("include_stop_str_in_output") else 0)], stop


@dataclass
class FakeEngine:
    """What it does: tokens of an answer, seconds between them, and what goes wrong.

    `fault` is None, an HTTP status, "cut" (the stream ends early) or "hang" (nothing comes).
    """

    answers: object = right
    tokens: int = 4
    token_s: float = 0.0
    spread: float = 0.5
    fault: object = None
    tokenizes: int = 200  # the status of /tokenize
    asked: list = field(default_factory=list)  # bodies
    headers: list = field(default_factory=list)
    connections: set = field(default_factory=set)  # ports that completions were asked from
    held: threading.Event = field(default_factory=threading.Event)  # while set, nothing is sent
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    aborted: int = 0
    finished: int = 0

    def app(self):
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/embeddings", self.embed)
        app.router.add_post("/tokenize", self.tokenize)
        return app

    async def models(self, request):
        card = {"id": MODEL, "object": "model", "owned_by": "fake", "max_model_len": 4096}
        return web.json_response({"data": [card]})

    async def embed(self, request):
        return web.json_response({"embedded": await request.json()})

    async def tokenize(self, request):
        if self.tokenizes != 200:
            return web.Response(status=self.tokenizes)
        words = (await request.json())["prompt"].split()
        return web.json_response({"tokens": list(range(len(words))), "count": len(words)})

    async def complete(self, request):
        if (request.content_length or 0) > 1 << 20:  # read by nobody, as it would take a core
            async for _ in request.content.iter_any():
                pass
            body = {"stream": True}
        else:
            body = await request.json()
        number = len(self.asked)
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        self.connections.add(request.transport.get_extra_info("peername")[1])
        if isinstance(self.fault, int):
            return web.json_response({"error": {"message": "told"}}, status=self.fault)
        chat = "chat" in request.path
        if not body.get("stream"):
            return web.json_response({"object": "whole", "asked": body})
        try:
            return await self._stream(request, body, number, chat)
        except (ConnectionError, asyncio.CancelledError):
            self.aborted += 1
            return web.Response()

    async def _stream(self, request, body, number, chat):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        text, stop = _stopped(self.answers(body, number), body)
        size = max(len(text) // self.tokens, 1)
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        for place, piece in enumerate(pieces):
            if self.fault == "hang":
                await asyncio.sleep(3600)
            if self.fault == "cut" and place == 1:
                request.transport.close()
                return response
            if self.token_s:
                share = self.draw.uniform(1 - self.spread, 1 + self.spread)
                await asyncio.sleep(self.token_s * share)
            part = {"delta": {"content": piece}} if chat else {"text": piece}
            await self._send(response, {"choices": [{"index": 0, **part, "finish_reason": None}]})
        part = {"delta": {}} if chat else {"text": ""}
        part |= {"finish_reason": "stop", "stop_reason": stop}
        await self._send(response, {"choices": [{"index": 0, **part}]})
        usage = {"prompt_tokens": 7, "completion_tokens": len(pieces)}
        await self._send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        self.finished += 1
        return response

    async def _send(self, response, event):
        while self.held.is_set():
            await asyncio.sleep(0.01)
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@contextmanager
def running(engine, port=0):
    """Serve in a thread; gives the URL."""
    loop, ready, told = asyncio.new_event_loop(), threading.Event(), {}

    async def begin():
        runner = web.AppRunner(
            engine.app(),
            access_log=None,
            logger=SILENT,
            handler_cancellation=True,
            shutdown_timeout=0.1,
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        told.update(runner=runner, port=runner.addresses[0][1])
        ready.set()

    def work():
        asyncio.set_event_loop(loop)
        loop.create_task(begin())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield f"http://127.0.0.1:{told['port']}"
    finally:
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(told["runner"].cleanup(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--token-s", type=float, default=0.0)
    parser.add_argument("--spread", type=float, default=0.5)
    asked = parser.parse_args()
    engine = FakeEngine(tokens=asked.tokens, token_s=asked.token_s, spread=asked.spread)
    logging.getLogger("aiohttp").disabled = logging.getLogger("aiohttp.server").disabled = True
    web.run_app(engine.app(), host="127.0.0.1", port=asked.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
