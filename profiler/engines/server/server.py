"""An OpenAI-compatible server over HTTP: streaming completions, one request of n = 1 per sample.

Requests run on an asyncio loop in a thread of its own, so that a policy drives a server as it
drives an engine in this process. Nothing of a response body but its tokens, usage and finish
reason is kept, and no error repeats what the server said, which may hold a prompt.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import itertools
import json
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import httpx
import msgspec

from profiler.doors.clients import (
    ANSWER_S,
    MOST_ANSWER_BYTES,
    MOST_STREAM_BYTES,
    Client,
    StreamingClient,
)
from profiler.engines.interface import (
    THINK_END,
    THINK_START,
    Engine,
    SampleRequest,
    SampleResult,
)
from profiler.engines.server.access import Access
from profiler.engines.server.identity import identify
from profiler.engines.server.served import (
    PLAIN,
    ask_model,
    asked,
    cache_settings,
    check_plain,
    describe,
)
from profiler.engines.server.stream import BadAnswer, Stream, whole_characters
from traces.clock import now_ns
from traces.errors import EngineError
from traces.live.engine_names import SGLANG, VLLM
from traces.live.metrics_page import PageReader
from traces.schema.engine import EngineConfig, ModelFacts
from traces.schema.formats import counted

NO_LENGTH = "max_tokens is needed: the engine does not say how long a prompt is"
_POLL_S = 0.05
IDLE_S = 2.0  # well below the 5 s after which vLLM closes an idle connection
_LONGEST_LINE = 8 << 20  # of a stream
_REST_S, _MOST_REST = 1.0, 64 << 10  # for what comes behind the end of an answer
NO_IDS = "no token ids"  # a chat cannot be continued without them
_MOST_SAID, _MOST_LINE = 16 << 10, 200  # bytes of an error's body, characters of its message
_MOST_LENGTHS = 256  # of prompts, kept while their samples are drawn
# What `/tokenize` answers where there is none: no such route, one that takes another body, or a
# gateway or a key that lets only /v1 through.
_UNTOLD = {401, 403, 404, 405, 422, 501}
_UNTOLD_S = 60.0  # until a server that does not tell lengths is asked again
_LITTLE = 16  # a prompt of so small a part of the model's length may be counted by characters
OWN_ERRORS = ("HTTP", NO_IDS, NO_LENGTH)  # begin the errors of a server that is there
_GIVE_UP_AFTER = 8  # requests in a row that found no server
# What an engine knows of a request beyond OpenAI's API: how a stop string stays in the text, and
# how a chat's token ids are asked for, which tell where a thought ends. SGLang 0.5.23 answers 400
# to `return_token_ids` in a chat that is streamed, and ignores a chat template.
_STOP_KEPT = {VLLM: "include_stop_str_in_output", SGLANG: "no_stop_trim"}
_CHAT_IDS = {
    VLLM: ("return_token_ids",),
    SGLANG: ("return_input_ids_in_sglext", "return_output_ids_in_sglext"),
}
_IMPOSSIBLE = "the server reported numbers of tokens that cannot be"


class ServerEngine(Engine):
    """An OpenAI-compatible server (see `Engine`).

    `url` is its base, with or without `/v1`; `model` names one of those it serves, by default
    its first. `declared` are engine settings that the server does not tell, such as its
    tensor_parallel_size; `chat_template` goes with every chat instead of the server's own;
    `headers`, such as a key, go with every request. Raises EngineError when nothing answers there,
    or it takes no such template, UsageError for a URL that is none or holds a password.
    """

    provider = "vllm"

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        name: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        declared: dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.url = Access.of(url).url  # it stands in messages and recordings
        self._headers = dict(headers or {})
        self._timeout_s = timeout_s
        self._results: queue.Queue[SampleResult] = queue.Queue()
        self._live: dict[str, tuple[Future[None], Stream]] = {}
        self._encoded: dict[str, list[int]] = {}
        self._lengths: dict[str, int] = {}
        self._counting: dict[str, asyncio.Task[int | None]] = {}  # prompts, being counted
        self._untold_until = 0.0  # on the monotonic clock, in seconds
        self._emptying: set[asyncio.Future[None]] = set()
        self._unreachable = 0
        self._impossible = 0  # samples with an impossible number of tokens
        self.traces: set[str] = set()  # ids of the traces that requests were sent in
        self.chat_template = chat_template  # the server's own is not told
        self._served, self.config, self.model = self._look(model, name, declared or {})
        self._connect()

    def _connect(self) -> None:
        """Start the loop and the client that requests go through."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="ttscope-http", daemon=True
        )
        self._thread.start()
        self._client = StreamingClient(
            base_url=self.url,
            headers=self._headers,
            timeout=httpx.Timeout(self._timeout_s, connect=10.0),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=256, keepalive_expiry=IDLE_S
            ),
        )

    def _look(
        self, model: str | None, name: str | None, declared: dict[str, Any]
    ) -> tuple[str, EngineConfig, ModelFacts | None]:
        with Client(base_url=self.url, headers=self._headers) as client:
            card = ask_model(client, self.url, model)
            identity = identify(client, card)
            self.engine = identity.engine
            tokenizes = self.engine in _STOP_KEPT
            cache = self._cache_config(client) if self.engine == VLLM else identity.settings
            if self.chat_template is not None:
                self._try_template(client, str(card["id"]))
            self._think_start_ids, self.think_end_ids = (
                self._mark_ids(client, str(card["id"]), mark) if tokenizes else None
                for mark in (THINK_START, THINK_END)
            )
        other = (*identity.other, *cache.get("other", ()))
        said = {"other": tuple(sorted(other))} if other else {}
        config, facts = describe(
            card, identity.vllm_version, name=name, told={**cache, **said}, declared=declared
        )
        return str(card["id"]), config, facts

    def _try_template(self, client: httpx.Client, model: str) -> None:
        """Raise EngineError where the server takes no template with a request, as by default."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "?"}],
            "chat_template": self.chat_template,
        }
        with contextlib.suppress(httpx.HTTPError):
            # Others take any field, and leave out what they do not know.
            if self.engine == VLLM and client.post("/tokenize", json=body).status_code == 200:
                return
        raise EngineError(
            f"{self.url}: refuses --chat-template. Start vLLM with --chat-template FILE instead, "
            "or with --trust-request-chat-template"
        )

    @staticmethod
    def _mark_ids(client: httpx.Client, served: str, mark: str) -> tuple[int, ...] | None:
        body = {"model": served, "prompt": mark, "add_special_tokens": False}
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            return tuple(client.post("/tokenize", json=body).json()["tokens"])
        return None

    @property
    def continues_chats(self) -> bool:
        """Whether a chat can be gone on from, for which the server is asked for token ids."""
        return self.engine in _STOP_KEPT

    @cached_property
    def thinking_budget(self) -> bool:
        """Whether the server keeps thinking budgets; a request of one token finds out."""
        if self.engine != VLLM:
            return False
        body = {"model": self._served, "prompt": [0], "max_tokens": 1, "thinking_token_budget": 1}
        with (
            contextlib.suppress(httpx.HTTPError),
            Client(base_url=self.url, headers=self._headers, seconds=60.0) as client,
        ):
            return client.post("/v1/completions", json=body).status_code == 200
        return False

    def prepare(self, *, top_logprobs: int | None, thinking_budget: bool) -> None:
        if thinking_budget:
            _ = self.thinking_budget

    def foresee(self, prompts: Iterable[str]) -> None:
        """Count the first of them, as many as are kept, until the server fails or is too slow."""
        longest = self.config.max_model_len

        async def count() -> None:
            with contextlib.suppress(Exception):  # a sample of it tells
                async with asyncio.timeout(ANSWER_S):
                    for prompt in itertools.islice(prompts, _MOST_LENGTHS):
                        await self._length(prompt, longest or 0)

        if longest is not None:
            asyncio.run_coroutine_threadsafe(count(), self._loop).result()

    @staticmethod
    def _cache_config(client: httpx.Client) -> dict[str, Any]:
        """Read block size, blocks, prefix caching and replicas from vLLM's metrics."""
        reader = PageReader()
        with contextlib.suppress(httpx.HTTPError, ValueError):
            reader.read(asked(client, "/metrics").decode("utf-8", "replace"))
        return cache_settings(reader.cache_config)

    def submit(self, request: SampleRequest) -> None:
        if request.traceparent is not None:
            self.traces.add(request.traceparent.split("-")[1])
        stream = self._stream_of(request)
        future = asyncio.run_coroutine_threadsafe(self._run(request, stream), self._loop)
        self._live[request.request_id] = (future, stream)

    def _stream_of(self, request: SampleRequest) -> Stream:
        return Stream(
            window=request.confidence_window,
            top=request.top_logprobs,
            think_start_ids=self._think_start_ids,
            think_end_ids=self.think_end_ids,
            want_ids=request.want_token_ids,
            most_tokens=request.max_tokens,
            pauses=request.stop,
        )

    def cancel(self, request_ids: Sequence[str]) -> list[SampleResult]:
        """Close the streams, at which the server aborts them (see `Engine`).

        One that has ended meanwhile is not cancelled: `poll` returns it.
        """
        results = []
        for request_id in request_ids:
            future, stream = self._live.get(request_id, (None, None))
            if future is not None and stream is not None and future.cancel():
                del self._live[request_id]
                stream.finish_reason = "abort"
                if not stream.chunks:
                    stream.usage = {"completion_tokens": 0} | stream.usage
                results.append(stream.result(request_id, None))
        return results

    def poll(self, wait_s: float | None = None) -> list[SampleResult]:
        """Wait a moment for samples to end (see `Engine`).

        Raises EngineError when the server has not been reached many times in a row.
        """
        if not self._live:
            return []
        ended = []
        with contextlib.suppress(queue.Empty):
            wait_s = _POLL_S if wait_s is None else min(wait_s, _POLL_S)
            ended.append(self._results.get(block=wait_s > 0, timeout=wait_s or None))
            while True:
                ended.append(self._results.get_nowait())
        kept = [result for result in ended if self._live.pop(result.request_id, None)]
        for result in kept:
            lost = result.error is not None and not result.error.startswith(OWN_ERRORS)
            self._unreachable = self._unreachable + 1 if lost else 0
        if self._unreachable >= _GIVE_UP_AFTER:
            raise EngineError(
                f"{self.url}: {self._unreachable} requests in a row failed ({kept[-1].error}). "
                "The server seems to be gone"
            )
        return kept

    async def _run(self, request: SampleRequest, stream: Stream) -> None:
        pieces = self._pieces(request)
        try:
            result = await self._result(request, stream, pieces)
        finally:
            if not stream.done:
                with contextlib.suppress(Exception):
                    await pieces.aclose()
        if stream.done:  # what is left is taken, so that the connection can go on
            rest = asyncio.ensure_future(_emptied(pieces))
            self._emptying.add(rest)
            rest.add_done_callback(self._emptying.discard)
        self._ended(result)

    def _ended(self, result: SampleResult) -> None:
        """Take a result, on the loop's thread."""
        self._results.put(result)

    async def _result(
        self, request: SampleRequest, stream: Stream, pieces: AsyncGenerator[bytes, None]
    ) -> SampleResult:
        """Return what a request came to, whatever its server answers."""
        error, earlier = None, request.continues
        if earlier is not None and earlier.token_ids is None and request.chat:
            return stream.result(request.request_id, NO_IDS)
        try:
            await _take(pieces, stream, self._timeout_s)
        except httpx.HTTPStatusError as failure:
            error = f"HTTP {failure.response.status_code}"
        except Refused as failure:
            error = f"HTTP {failure.status}"
        except BadAnswer as failure:
            error = f"HTTP 200, {failure}"
            self._was_told(request, 200, failure.said)
        except NoLength:
            error = NO_LENGTH
        except Exception as failure:  # whatever a server answers, the sample ends
            error = type(failure).__name__
        try:
            result = stream.result(request.request_id, error)
            if stream.impossible:
                self._impossible += 1
                of = counted(self._impossible, "sample")
                self.notes = (f"{_IMPOSSIBLE}, of {of}: they are not known",)
            return result
        except Exception as failure:  # what it kept cannot be summed up
            kept = whole_characters("".join(e for e in stream.text if isinstance(e, str)))
            return SampleResult(
                request_id=request.request_id,
                text=kept,
                finish_reason=None,
                end=now_ns(),
                error=error or type(failure).__name__,
            )

    def _was_told(self, request: SampleRequest, status: int, body: bytes) -> None:
        """Keep the first error that the server said of a request."""
        self.refusal = self.refusal or what_it_said(body)

    async def _pieces(self, request: SampleRequest) -> AsyncGenerator[bytes, None]:
        """Send a request, and give what comes of its answer as it comes."""
        headers = PLAIN | {"X-Request-Id": request.request_id}
        if request.traceparent is not None:
            headers["traceparent"] = request.traceparent
        chat = request.chat and request.continues is None
        body = await self._body(request, chat)
        path = "/v1/chat/completions" if chat else "/v1/completions"
        async with self._client.stream("POST", path, json=body, headers=headers) as response:
            if response.status_code >= 400 and self.refusal is None:
                self._was_told(request, response.status_code, await _beginning(response))
            response.raise_for_status()
            check_plain(response)
            async for piece in response.aiter_raw():
                yield piece

    async def _prompt(self, request: SampleRequest) -> str | list[int]:
        """Return what goes into the request: the prompt, or what it continues."""
        earlier = request.continues
        if earlier is None:
            return request.prompt if isinstance(request.prompt, str) else ""  # a chat: messages
        if earlier.token_ids is not None:
            return [*earlier.token_ids, *await self._token_ids(earlier.append)]
        assert isinstance(request.prompt, str)  # chats without ids are refused before
        return request.prompt + earlier.text + earlier.append

    async def _token_ids(self, text: str) -> list[int]:
        """Return the server's token ids of a text, which is asked for once."""
        if text and text not in self._encoded:
            self._encoded[text] = await self._tokenized(text, special=False)
        return self._encoded.get(text, [])

    async def _length(self, text: str, longest: int) -> int:
        """Return the tokens of a prompt as the server counts them.

        Where it does not tell them a short prompt has as many as characters, which are more. Raises
        NoLength for another, and what a request raises where the server fails. The samples of a
        problem have one prompt, which is asked for once.
        """
        length = self._lengths.get(text)
        if length is None and time.monotonic() >= self._untold_until:
            if text not in self._counting:
                self._counting[text] = asyncio.ensure_future(self._count(text))
            length = await asyncio.shield(self._counting[text])
        if length is not None:
            return length
        if len(text) * _LITTLE > longest:
            raise NoLength
        return len(text)

    async def _count(self, text: str) -> int | None:
        """Ask for the length of a prompt, None where the server tells none."""
        token_ids: list[int] = []
        try:
            token_ids = await self._tokenized(text, special=True)
        except Refused as failure:
            if failure.status not in _UNTOLD:
                raise
        except _NoTokens:
            pass
        finally:
            self._counting.pop(text, None)
        if text and not token_ids:  # some answer so to a body that they do not know
            self._untold_until = time.monotonic() + _UNTOLD_S
            return None
        self._lengths[text] = len(token_ids)
        if len(self._lengths) > _MOST_LENGTHS:
            del self._lengths[next(iter(self._lengths))]
        return len(token_ids)

    async def _tokenized(self, text: str, *, special: bool) -> list[int]:
        """Ask the server for the token ids of a text, with those that begin a prompt or without.

        Raises Refused, BadAnswer where the answer has none or is too large, TimeoutError where it
        takes longer than `ANSWER_S`, and what the connection raises.
        """
        body = {"model": self._served, "prompt": text, "add_special_tokens": special}
        async with asyncio.timeout(ANSWER_S):
            status, answer = await self._answered("/tokenize", body)
        if status != 200:
            raise Refused(status)
        try:
            return msgspec.json.decode(answer, type=_Tokens).tokens
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _NoTokens("no tokens") from None

    async def _answered(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Return the status and the body of a POST. Raises BadAnswer where it is too large."""
        async with self._client.stream("POST", path, json=body, headers=PLAIN) as answer:
            return answer.status_code, await whole(answer.aiter_raw())

    async def _body(self, request: SampleRequest, chat: bool) -> dict[str, Any]:
        prompt = await self._prompt(request)
        body: dict[str, Any] = {
            "model": self._served,
            "n": 1,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if chat:
            body["messages"] = request.messages()
            if self.chat_template is not None:
                body["chat_template"] = self.chat_template
            if request.reasoning_effort is not None:
                body["reasoning_effort"] = request.reasoning_effort
        else:
            body["prompt"] = prompt
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        elif not chat and self.config.max_model_len is not None:
            # completions stop at 16 tokens unless told otherwise, and not all cap what does not fit
            longest = self.config.max_model_len
            length = await self._length(prompt, longest) if isinstance(prompt, str) else len(prompt)
            body["max_tokens"] = max(1, longest - length)
        if request.top_logprobs is not None and chat:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        elif request.top_logprobs is not None:
            body["logprobs"] = request.top_logprobs
        body |= _ends(request, _STOP_KEPT.get(self.engine or "", _STOP_KEPT[VLLM]))
        if request.thinking_token_budget is not None:
            body["thinking_token_budget"] = request.thinking_token_budget
        if self.engine in _STOP_KEPT:
            body["stream_options"]["continuous_usage_stats"] = True
            body |= self._ids_asked(request, chat)
        return body

    def _ids_asked(self, request: SampleRequest, chat: bool) -> dict[str, Any]:
        """Return what asks for token ids, and for the request's own id where no header is read."""
        wanted = _CHAT_IDS[str(self.engine)] if chat else ("return_token_ids",)
        asked: dict[str, Any] = dict.fromkeys(
            wanted if chat or request.want_token_ids else (), True
        )
        return asked | ({"rid": request.request_id} if self.engine == SGLANG else {})

    def close(self) -> None:
        if not self._loop.is_running():
            return
        for future, _ in self._live.values():
            future.cancel()
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    async def _finish(self) -> None:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _NoTokens(BadAnswer):
    """An answer of `/tokenize` that has no tokens."""


class NoLength(Exception):
    """A server does not tell how many tokens a prompt has."""


class Refused(Exception):
    """A server answered a request with an HTTP status of 400 or above."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


async def _beginning(response: httpx.Response) -> bytes:
    """Return the first bytes of an error's body, none where they do not come."""
    body = b""
    with contextlib.suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(_REST_S):
            async for piece in response.aiter_raw():
                body += piece
                if len(body) >= _MOST_SAID:
                    break
    return body[:_MOST_SAID]


def what_it_said(body: bytes) -> str | None:
    """Return the message of an error as OpenAI's API has it, or a plain body, in one short line."""
    text: Any = body.decode("utf-8", "replace")
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = msgspec.json.decode(body)
    for name in ("error", "message", "detail"):
        text = text.get(name, text) if isinstance(text, dict) else text
    line = " ".join(str(text).split())
    line = "".join(each for each in line if each.isprintable())
    return (line if len(line) <= _MOST_LINE else f"{line[:_MOST_LINE]}..") or None


async def _take(pieces: AsyncGenerator[bytes, None], stream: Stream, silent_s: float) -> None:
    """Take the events of an answer up to its end.

    Raises BadAnswer for what is no answer, TimeoutError where no token comes for so long, whatever
    else does.
    """
    events, loop, came, chunks = Events(), asyncio.get_running_loop(), 0, 0
    try:
        async with asyncio.timeout(silent_s) as silence:
            async for piece in _up_to_a_loss(pieces, stream):
                came += len(piece)
                if came > MOST_STREAM_BYTES:
                    raise BadAnswer("an answer that is too long")
                for event in events.of(piece):
                    stream.take(event, now_ns())
                if events.done:
                    break
                if stream.finish_reason is not None:  # what follows is short
                    silence.reschedule(min(silence.when() or 0.0, loop.time() + ANSWER_S))
                elif stream.chunks > chunks:
                    chunks = stream.chunks
                    silence.reschedule(loop.time() + silent_s)
    except TimeoutError:
        if stream.finish_reason is None:
            raise
    for event in events.of(b"\n"):
        stream.take(event, now_ns())
    stream.done = events.done
    if stream.finish_reason is None and not stream.chunks:
        raise BadAnswer("no answer")
    if stream.finish_reason is None and not stream.done:
        raise BadAnswer("an answer that was cut off")


async def _up_to_a_loss(
    pieces: AsyncGenerator[bytes, None], stream: Stream
) -> AsyncGenerator[bytes, None]:
    """Give what comes until the connection is lost, which costs a sample that ended nothing.

    Behind its finish_reason its usage may be missing (OpenAI, stream_options.include_usage).
    """
    try:
        async for piece in pieces:
            yield piece
    except Exception:
        if stream.finish_reason is None:
            raise


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    """Return an answer from its pieces. Raises BadAnswer where it is too large."""
    answer = bytearray()
    async for piece in pieces:
        answer += piece
        if len(answer) > MOST_ANSWER_BYTES:
            raise BadAnswer("an answer that is too large")
    return bytes(answer)


class Events:
    """Cuts the pieces of a streamed answer into its events, until it says that it is `done`."""

    def __init__(self) -> None:
        self.done = False
        self._rest = bytearray()

    def of(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """Give the events that a piece completes. Raises BadAnswer for what is none."""
        self._rest += piece
        lines = []
        if b"\n" in piece:  # else a long line would be copied for each of its pieces
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
        for line in lines:
            name, _, told = line.partition(b":")
            if self.done or name.removeprefix(codecs.BOM_UTF8) != b"data":  # a stream may have one
                continue
            data = told.strip()
            if data == b"[DONE]":
                self.done = True
                return
            event = _decoded(data)
            if not isinstance(event, dict):
                raise BadAnswer("an event that is no object")
            if event.get("error"):
                raise BadAnswer("an error in the stream", data)
            yield event
        if len(self._rest) > _LONGEST_LINE:
            raise BadAnswer("a line that is too long")


def _decoded(data: bytes) -> Any:
    """Read JSON, with the NaN and the very large numbers that Python's own writers leave in it."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return json.loads(data)


async def _emptied(pieces: AsyncGenerator[bytes, None]) -> None:
    """Take what is left of an answer, a moment and a little at most."""
    left = _MOST_REST
    try:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_REST_S):
                async for piece in pieces:
                    left -= len(piece)
                    if left < 0:
                        return
    finally:
        await pieces.aclose()


def _ends(request: SampleRequest, stop_kept: str) -> dict[str, Any]:
    """Return where a generation ends, apart from max_tokens; stop strings stay in the text."""
    ends: dict[str, Any] = {}
    if request.fixed_length:
        ends |= {"min_tokens": request.max_tokens, "ignore_eos": True}
    if request.stop:
        ends |= {"stop": list(request.stop), stop_kept: True}
    return ends
