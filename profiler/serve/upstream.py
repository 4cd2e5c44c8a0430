"""The engine behind the endpoint: samples as requests on the endpoint's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import aiohttp

from profiler.doors.guard import connections_of
from profiler.doors.loop_client import session
from profiler.doors.site import error_body
from profiler.engines.interface import SampleRequest, SampleResult
from profiler.engines.server.server import IDLE_S, NO_LENGTH, NoLength, Refused, ServerEngine, whole
from profiler.engines.server.stream import BadAnswer
from profiler.serve.question import NO_SEED, ServedQuestion

_REFUSAL_S = 10.0
_PIECE = 16 << 10  # bytes of an answer that are read at a time
_MOST_CONNECTIONS = 16_384
_MOST_REFUSAL = 64 << 10  # bytes of an error's body that go on to the client
_JSON = "application/json"
KEYS = frozenset(("authorization", "api-key", "x-api-key", "openai-organization"))


class Upstream(ServerEngine):
    """A server whose samples run on this thread's event loop, and end by a call of `on_result`.

    A sample takes what its question says beyond the policy: headers, further fields, a lower limit
    of tokens. Keys are those of its client, and are forgotten with the question. `open` must be
    called on the loop. `timeout_s` bounds how long a request may take.
    """

    on_result: Callable[[SampleResult], None]

    def _connect(self) -> None:
        self.questions: dict[str, ServedQuestion] = {}  # by run and problem
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, timeout_s: float) -> None:
        self._asyncio, self._timeout_s = asyncio.get_running_loop(), timeout_s
        self._turn = asyncio.Lock()
        self.session = session(
            timeout_s, connections=connections_of(_MOST_CONNECTIONS, 0.4), idle_s=IDLE_S
        )

    def submit(self, request: SampleRequest) -> None:
        stream = self._stream_of(request)
        if request.stop:  # the engine keeps stop strings in the text
            stream.cuts = self.questions[request.request_id.rpartition(".")[0]].stop
            stream.pauses = [each for each in request.stop if each not in stream.cuts]
        task = self._asyncio.create_task(self._run(request, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._live[request.request_id] = (task, stream)  # type: ignore[assignment]

    def _ended(self, result: SampleResult) -> None:
        _, stream = self._live.pop(result.request_id, (None, None))
        if stream is not None:
            question = self.questions.get(result.request_id.rpartition(".")[0])
            if question is not None:
                question.parsed = question.parsed or stream.parsed
            self.on_result(result)

    def poll(self, wait_s: float | None = None) -> list[SampleResult]:
        """Return nothing: samples end by `on_result`."""
        return []

    async def _pieces(self, request: SampleRequest) -> AsyncGenerator[bytes, None]:
        question = self.questions[request.request_id.rpartition(".")[0]]
        headers = {"Content-Type": _JSON, "X-Request-Id": request.request_id, **question.headers}
        if request.traceparent is not None:
            headers["traceparent"] = request.traceparent
        chat = request.chat and request.continues is None
        try:
            fields = await self._body(request, chat)
        except NoLength:
            question.refusal = 400, error_body(NO_LENGTH, 400)
            raise
        except Refused as failure:
            question.refusal = failure.status, b""
            raise
        is_own = request.continues is None and request.prompt is question.prompt
        body = question.encoded(self._asked(question, request, fields), is_own)
        path = "/v1/chat/completions" if chat else "/v1/completions"
        async with self.session.post(
            self.url + path, data=_Parts(body), headers=headers, allow_redirects=False
        ) as response:
            if response.status != 200:
                self._was_told(request, response.status, await _start_of(response))
                raise Refused(response.status)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise BadAnswer("a compressed answer")
            while piece := await response.content.read(_PIECE):
                if len(piece) == _PIECE:  # more waits: one such piece in a round of the loop
                    async with self._turn:
                        await asyncio.sleep(0)
                yield piece

    def _was_told(self, request: SampleRequest, status: int, body: bytes) -> None:
        question = self.questions.get(request.request_id.rpartition(".")[0])
        if question is not None and (body or status != 200):
            question.refusal = status, body

    def _asked(
        self, question: ServedQuestion, request: SampleRequest, body: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what is sent, with what the question says beyond the policy."""
        for name in ("temperature", "top_p"):
            if (value := getattr(question, name)) is not None:
                body[name] = value
        if question.max_tokens is not None:
            body["max_tokens"] = min(question.max_tokens, body.get("max_tokens") or MOST_TOKENS)
        if question.seed is not None:  # one for each sample, or all would be the same
            seed = question.seed + int(request.request_id.rpartition(".")[2])
            body["seed"] = seed + (question.seed < NO_SEED <= seed)
        if request.reasoning_effort is None and question.reasoning_effort is not None:
            body["reasoning_effort"] = question.reasoning_effort
        if request.stop:
            body["stop"] += question.stop
        return body

    async def _answered(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        async with self.session.post(
            self.url + path, json=body, headers=self._headers, allow_redirects=False
        ) as answer:
            return answer.status, await whole(answer.content.iter_any())

    @property
    def keys(self) -> Mapping[str, str]:
        """The key that was given for the engine."""
        return self._headers

    @property
    def served(self) -> str:
        return self._served

    def close(self) -> None:
        """Do nothing: `shut` closes it, on the loop."""

    async def shut(self) -> None:
        """End what runs and close the connections."""
        left: list[asyncio.Future[Any]] = [*self._tasks, *self._emptying]
        left += self._counting.values()
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.session.close()


MOST_TOKENS = 1 << 30


class _Parts(aiohttp.payload.Payload):
    """A body in parts, sent as they are: the samples of a question share the large one."""

    def __init__(self, parts: tuple[bytes, ...]) -> None:
        super().__init__(parts, content_type=_JSON)
        self._size = sum(map(len, parts))

    async def write(self, writer: Any) -> None:
        for part in self._value:
            await writer.write(part)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._value).decode(encoding, errors)


async def _start_of(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of an error, cut off where it is long."""
    try:
        async with asyncio.timeout(_REFUSAL_S):
            return await response.content.read(_MOST_REFUSAL)
    except (TimeoutError, aiohttp.ClientError):
        return b""


def goes_on(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a client's request that go on to the engine: its keys."""
    return {name: value for name, value in headers.items() if name.lower() in KEYS}
