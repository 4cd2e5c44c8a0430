"""The endpoint: requests in, answers of a policy out, and a recording of it as it goes."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from aiohttp import web
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client import Counter as Count
from yarl import URL

from profiler.doors.guard import BODY_S, bears, connections_of, give_large_blocks_back
from profiler.doors.site import SiteGuard, error_body, guarded, listen
from profiler.engines.interface import NO_ROOM
from profiler.engines.server.server import OWN_ERRORS, what_it_said
from profiler.policies.registry import effort_for
from profiler.runs.flight import Flight, Sent
from profiler.runs.telemetry import Telemetry
from profiler.serve.live_run import CLIENT, ENDED, SCORES_S, LiveRun
from profiler.serve.question import (
    BadRequest,
    ServedAnswer,
    ServedQuestion,
    memory_of,
    read_body,
    read_question,
    streamed_answer,
    whole_answer,
    why_passed,
)
from profiler.serve.upstream import KEYS, Upstream, goes_on
from profiler.workload.problems import Problem, Workload
from profiler.workload.scorers import ScoringThreads, scorer_of
from profiler.workload.verifiers import Verifier
from traces.clock import now_ns
from traces.errors import UsageError
from traces.recording.spans import RecordingSpanProcessor
from traces.recording.writer import RecordingWriter
from traces.schema.tts.parameters import complete, lowered, needs_of
from traces.schema.tts.policy import Policy
from traces.schema.tts.routes import EFFORTS

HEADER = "X-Ttscope"
MOST_RUNS = 256  # policies that differ in what requests ask for. Others are one run together
_JSON = {"Content-Type": "application/json"}
_EVENTS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
_WAIT_S = 10.0  # until a streamed answer begins with comments that keep the connection
_MOST_CONNECTIONS = 1_024
_MOST_HELD_BYTES = 64 << 20  # of all bodies that come or are answered
_IDLE_S = 75.0
_AT_ONCE = 64  # events of a streamed answer that are written at once
_PIECE = 64 << 10  # bytes of another
_HOP = {
    *("connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "trailer"),
    *("upgrade", "proxy-authorization", "cookie", "expect", "http2-settings"),
}
_ASKED = _HOP | {"accept-encoding", "content-encoding"}  # a body is decoded before it goes on
_WITH = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}
_TRACE = TraceContextTextMapPropagator()
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_NO_ROOM = "no room now. Ask again later"
_ENDING = "ttscope is ending. Ask another server"
_BETWEEN = re.compile(r"[/\\;]")  # the segments of a path, as some server may read it
_FIELDS = re.compile(r"[\w, -]{1,1024}", re.ASCII)  # names of headers that a browser asks for
LEAVE = "100-continue"  # for which a client may wait before it sends a body


async def _expected(request: web.Request) -> None:
    """Let a client send its body that waits for leave. What else one expects `_checked` refuses."""
    if request.headers.get("Expect", "").lower() == LEAVE:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # so that the answer still has a head


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the endpoint serves.

    So many questions are worked on at a time, so many more wait, and others are refused with 503.
    A question is answered after `timeout_s` by the votes that there are. At the end what runs has
    `drain_s`.
    """

    host: str = "127.0.0.1"
    port: int = 8100
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    key: str | None = field(default=None, repr=False)  # that clients give, None: they need none
    in_flight: int = 64
    waiting: int = 256
    timeout_s: float = 600.0
    drain_s: float = 30.0
    most_body_bytes: int = 4 << 20


class ServiceNumbers:
    """What /metrics says."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self.registry}
        self.questions = Count(
            "ttscope_questions", "Questions that ended, by outcome.", ["outcome"], **named
        )
        self.passed = Count("ttscope_passed", "Requests passed on, by reason.", ["why"], **named)
        self.refused = Count("ttscope_refused", "Requests refused, by status.", ["status"], **named)
        self.samples = Count(
            "ttscope_samples", "Samples of questions that ended, by outcome.", ["outcome"], **named
        )
        self.tokens = Count(
            "ttscope_generated_tokens", "Tokens of all samples, as the engine counts them.", **named
        )
        self.efforts = Count(
            "ttscope_effort_questions",
            "Questions that ended, by the reasoning effort that they were answered at.",
            ["effort"],
            **named,
        )
        self.latency = Histogram(
            "ttscope_question_seconds",
            "From a question's arrival to its answer.",
            buckets=[0.01 * 2**each for each in range(18)],
            **named,
        )
        self.agreement = Histogram(
            "ttscope_agreement",
            "Share of a question's answers that are the one given.",
            buckets=[each / 10 for each in range(1, 11)],
            **named,
        )
        self.in_flight = Gauge("ttscope_in_flight", "Questions that are worked on.", **named)
        self.waiting = Gauge("ttscope_waiting", "Questions that wait for their turn.", **named)


@dataclass
class _Waiting:
    """A question that is being answered."""

    question: ServedQuestion
    run: LiveRun
    arrival: int
    done: asyncio.Future[ServedAnswer | None]
    timer: asyncio.TimerHandle | None = None
    failure: tuple[int, bytes] = 502, b""  # status and body, where there is no answer


@dataclass
class Service:
    """Answers questions through `upstream` by `policy`, into the recording of `writer`."""

    policy: Policy
    most_n: int
    verifier: Verifier
    upstream: Upstream
    writer: RecordingWriter
    telemetry: Telemetry
    recorder: RecordingSpanProcessor
    settings: Settings
    numbers: ServiceNumbers = field(default_factory=ServiceNumbers)
    runs: dict[tuple[Policy, bool], LiveRun] = field(default_factory=dict)
    draining: bool = False
    closed: bool = False
    hurried: bool = False  # a second signal: what runs is not waited for

    def __post_init__(self) -> None:
        self._by_id: dict[str, LiveRun] = {}
        self._waiting: dict[str, _Waiting] = {}  # by problem
        self._places = asyncio.Semaphore(self.settings.in_flight)
        self._held = 0  # requests that are read, wait or are worked on
        self._passing = 0
        self._writing = 0  # answers that are written
        slow = self.verifier.name == "math"
        self._checks = ThreadPoolExecutor(1, "ttscope-check") if slow else None
        scorer = scorer_of(self.policy, None)
        self._scoring = None if scorer is None else ScoringThreads(scorer)
        budget = self.policy.thinking_token_budget is not None
        continued = needs_of(self.policy).token_ids or (
            budget and not self.upstream.thinking_budget
        )
        self._no_chats = continued and not self.upstream.continues_chats
        self.upstream.on_result = self._on_result
        self.guard = SiteGuard(
            connections=connections_of(_MOST_CONNECTIONS),
            held_bytes=max(_MOST_HELD_BYTES, self.settings.most_body_bytes),
            idle_s=_IDLE_S,
        )

    async def open(self) -> None:
        """Connect, and begin the run of the policy as it stands."""
        await self.upstream.open(self.settings.timeout_s)
        self._run_of(self.policy, chat=True)
        self._looks = None
        if self._scoring is not None:
            self._looks = asyncio.create_task(self._look_at_scores())

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._checked])
        app.on_response_prepare.append(self._allow)
        known: dict[str, Any] = {"expect_handler": _expected}
        app.router.add_get("/health", self._health, **known)
        app.router.add_get("/metrics", self._metrics, **known)
        app.router.add_post("/v1/chat/completions", self._ask, **known)
        app.router.add_post("/v1/completions", self._ask, **known)
        app.router.add_route("*", "/v1/{rest:.*}", self._other, **known)
        return app

    async def drain(self) -> None:
        """Take no more questions, and wait for those that run."""
        self.draining = True
        until = time.monotonic() + self.settings.drain_s
        while self._busy() and time.monotonic() < until and not self.hurried:
            await asyncio.sleep(0.02)

    def _busy(self) -> bool:
        checking = any(run.checking for run in self.runs.values())
        return self._held + self._passing + self._writing > 0 or checking

    async def close(self) -> None:
        """End what still runs, and the spans. What waits for its turn is refused then."""
        self.draining = self.closed = True
        for name, waiting in list(self._waiting.items()):
            waiting.run.abandon(name, ENDED)
        if self._looks is not None:
            self._looks.cancel()
        await self.upstream.shut()
        for run in self.runs.values():
            run.end_checks()
            run.spans.end()
        if self._scoring is not None:
            self._scoring.close()
        if self._checks is not None:
            self._checks.shutdown(wait=False, cancel_futures=True)

    def rate_per_s(self) -> float | None:
        """Return how many questions arrived a second, None where they are too few to say."""
        if self._asked < 2 or self._last == self._first:
            return None
        return (self._asked - 1) / ((self._last - self._first) / 1e9)

    _asked, _first, _last = 0, 0, 0

    # Requests.

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Refuse strangers, web pages of others and rebound names; tell an error in one line."""
        try:
            self._check_sender(request)
            if request.method == "OPTIONS" and "Origin" in request.headers:
                return web.Response(status=204)  # what a browser asks before it asks
            self._check_key(request)
            if request.headers.get("Expect", LEAVE).lower() != LEAVE:
                raise BadRequest(f"Expect: only {LEAVE} is known", 417)
            answer: web.StreamResponse = await handler(request)
            return answer
        except BadRequest as error:
            status, message = error.status, str(error)
        except web.HTTPException as error:
            status, message = error.status, error.reason
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            status, message = 500, f"a defect of ttscope ({type(error).__name__})"
        self.numbers.refused.labels(str(status)).inc()
        more = _WITH.get(status, {})
        return web.Response(
            status=status, body=error_body(message, status), headers={**_JSON, **more}
        )

    def _check_sender(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if origin is not None and origin not in self.settings.origins:
            raise BadRequest("not for web pages. Allow one with --allow-origin", 403)
        if self.settings.host not in _LOCAL and not self.settings.hosts:
            return  # others on the network may ask, by whatever name
        try:
            name = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
        except ValueError:
            name = ""
        if name not in _LOCAL | self.settings.hosts | {self.settings.host}:
            raise BadRequest("Host is not this endpoint. Allow it with --allow-host", 403)

    def _check_key(self, request: web.Request) -> None:
        """Refuse who asks without the key that clients need, for all but health and numbers."""
        key = self.settings.key
        if key is None or not request.path.startswith("/v1/"):
            return
        if not bears(request.headers.get("Authorization"), key):
            raise BadRequest("needs the key of this endpoint: Authorization: Bearer KEY", 401)

    async def _allow(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let the web pages of an allowed origin read an answer."""
        origin = request.headers.get("Origin")
        if origin in self.settings.origins and origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            asked = request.headers.get("Access-Control-Request-Headers", "")
            fields = asked if _FIELDS.fullmatch(asked) else "authorization, content-type"
            response.headers["Access-Control-Allow-Headers"] = fields
            response.headers["Access-Control-Expose-Headers"] = HEADER
            response.headers["Vary"] = "Origin"

    async def _health(self, _: web.Request) -> web.Response:
        status = "draining" if self.draining else "ok"
        body = f'{{"status":"{status}","in_flight":{len(self._waiting)}}}'
        return web.Response(text=body, status=503 if self.draining else 200, headers=_JSON)

    async def _metrics(self, _: web.Request) -> web.Response:
        self.numbers.in_flight.set(len(self._waiting))
        self.numbers.waiting.set(max(self._held - len(self._waiting), 0))
        text = generate_latest(self.numbers.registry)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        arrival = now_ns()
        raw = await self._body_of(request)
        if self.draining:
            raise BadRequest(_ENDING, 503)
        if self._held >= self.settings.in_flight + self.settings.waiting:
            raise BadRequest("too many questions wait. Ask again later", 503)
        self._held += 1
        try:
            body = read_body(raw)
            # Beside it stays about as much as came, encoded for the samples.
            wider = max(memory_of(body) - len(raw), 0) // 2
            if not self.guard.hold(self.guard.of(request), wider):
                raise BadRequest(_NO_ROOM, 503)
            del raw
            chat = request.path.endswith("/chat/completions")
            why = why_passed(body, chat=chat, model=self.upstream.served)
            if why is None:
                question = read_question(body, chat=chat, most_n=self.most_n)
                question.headers = self._keys_of(request)
                if "traceparent" in request.headers:
                    question.context = _TRACE.extract(dict(request.headers), Context())
                response, waiting = await self._answered(request, question, arrival)
        finally:
            self._held -= 1
        if why is None:  # who does not read takes no place
            return await self._written(request, response, waiting)
        body.pop("ttscope", None)
        with self._passes():
            return await self._pass(request, body, why)

    def _keys_of(self, request: web.Request) -> dict[str, str]:
        """Return the keys that go to the engine: the client's, or our own where it gives ours."""
        given = goes_on(request.headers)
        if self.settings.key is None:
            return given
        others = {name: key for name, key in given.items() if name.lower() != "authorization"}
        return {**others, **self.upstream.keys}

    async def _answered(
        self, request: web.Request, question: ServedQuestion, arrival: int
    ) -> tuple[web.StreamResponse, _Waiting]:
        """Return what a question came to, and the response that it is to be written to."""
        policy = self._policy_of(question)
        left = self.settings.timeout_s - (now_ns() - arrival) / 1e9
        try:
            async with asyncio.timeout(left):
                await self._places.acquire()
        except TimeoutError:
            raise BadRequest("no turn came in time. Ask again later", 503) from None
        try:
            if self.closed:
                raise BadRequest(_ENDING, 503)
            name, waiting = self._begin(question, policy, arrival)
            kind = _EVENTS if question.stream else _JSON
            label = {HEADER: f"answered: {waiting.run.label}"}
            response = web.StreamResponse(headers={**kind, **label})
            try:
                await asyncio.wait([waiting.done], timeout=_WAIT_S if question.stream else None)
                while not waiting.done.done():
                    await response.prepare(request)
                    await self.guard.write(request, response, b": the votes are not in yet\n\n")
                    await asyncio.wait([waiting.done], timeout=_WAIT_S)
            finally:
                if self._waiting.get(name) is waiting:  # the client has gone
                    waiting.run.abandon(name, CLIENT)
        finally:
            self._places.release()
        return response, waiting

    async def _written(
        self, request: web.Request, response: web.StreamResponse, waiting: _Waiting
    ) -> web.StreamResponse:
        """Write what a question came to, as its client takes it."""
        question, answer = waiting.question, waiting.done.result()
        if answer is None and not response.prepared:
            return self._refused(waiting)
        pieces: Iterator[bytes]
        if answer is None:
            body = b"data: " + waiting.failure[1].replace(b"\n", b" ") + b"\n\n"
            pieces, held = iter((body,)), len(body)
        elif question.stream:
            events = streamed_answer(question, answer)
            pieces = iter(lambda: b"".join(islice(events, _AT_ONCE)), b"")
            held = 2 * sys.getsizeof(answer.text)  # with its parts
        else:
            body = whole_answer(question, answer)
            waiting.done = asyncio.Future()  # the text is not needed any more
            held = response.content_length = len(body)
            pieces = (body[at : at + _PIECE] for at in range(0, held, _PIECE))
        del answer
        self._writing += 1
        try:
            if await self.guard.write_held(request, response, pieces, held):
                return response
        finally:
            self._writing -= 1
        if response.prepared:
            raise ConnectionResetError
        raise BadRequest(_NO_ROOM, 503)

    def _refused(self, waiting: _Waiting) -> web.Response:
        status, body = waiting.failure
        self.numbers.refused.labels(str(status)).inc()
        return web.Response(status=status, body=body, headers=_JSON)

    @staticmethod
    def _failure(question: ServedQuestion, ended: Sequence[Sent], why: str) -> tuple[int, bytes]:
        """Return why no sample ended: what the engine said, else what its samples ended with."""
        if why == ENDED:
            return 503, error_body(_ENDING, 503)
        if question.refusal is not None:
            status, body = question.refusal
            if 400 <= status < 500:
                return status, body or error_body("the engine refused it", status)
            said = what_it_said(body)
            how = "ended with an error" if status == 200 else f"answered HTTP {status}"
            return 502, error_body(f"the engine {how}{f': {said}' if said else ''}", 502)
        errors = {each.result.error for each in ended if each.result and each.result.error}
        named = f" ({', '.join(sorted(errors))})" if errors else ""
        message = "no sample ended in time" if why == "timeout" else "no sample ended"
        if not all(each.startswith((*OWN_ERRORS, NO_ROOM)) for each in errors):
            message += ": the engine is gone, too slow, or sends no answers"
        return 502, error_body(message + named, 502)

    def _policy_of(self, question: ServedQuestion) -> Policy:
        """Return the policy with what a request changes: n, tokens, and how samples are drawn.

        Questions that are drawn in another way are a run of their own.
        """
        policy = self.policy
        wanted = question.override.n
        if wanted is not None and wanted != policy.n:
            try:
                rule = tuple(lowered(policy, wanted).items())
                method = "majority" if policy.method == "greedy" and wanted > 1 else policy.method
                policy = complete(replace(policy, method=method, n=wanted, rule=rule))
            except UsageError as error:
                raise BadRequest(f"ttscope.n = {wanted}: {error}") from None
        if not question.chat and effort_for(policy, question.override.group) is not None:
            raise BadRequest(
                "the policy sets a reasoning effort, which acts through the chat template. Ask "
                "/v1/chat/completions"
            )
        if question.chat and self._no_chats:
            raise BadRequest(
                "the policy goes on from thoughts by their token ids, which this engine does not "
                "return for a chat. Ask /v1/completions"
            )
        asked, most, effort = policy, question.max_tokens, question.reasoning_effort
        if most is not None and (policy.max_tokens is None or most < policy.max_tokens):
            asked = replace(asked, max_tokens=most)
        unset = policy.reasoning_effort is None and policy.efforts is None
        if question.chat and unset and effort in EFFORTS:
            asked = replace(asked, reasoning_effort=effort)
        drawn = {name: getattr(question, name) for name in ("temperature", "top_p")}
        drawn = {name: value for name, value in drawn.items() if value is not None}
        try:
            asked = replace(asked, **drawn, sampling=question.sampling)
        except UsageError as error:
            raise BadRequest(str(error).removeprefix("policy: ")) from None
        if asked == policy or (asked, question.chat) in self.runs or len(self.runs) < MOST_RUNS:
            return asked
        return replace(policy, sampling=(("others", f"beyond {MOST_RUNS} settings"),))

    def _run_of(self, policy: Policy, *, chat: bool) -> LiveRun:
        if (policy, chat) not in self.runs:
            engine = self.upstream
            run = LiveRun(
                workload=Workload(name="served", problems=(), verifier=self.verifier, chat=chat),
                policy=policy,
                engine=engine,
                telemetry=self.telemetry,
                recorder=self.recorder,
                needs=needs_of(policy),
                keep_text=False,
                scoring=self._scoring,
                on_end=self._on_end,
                checked_in=self._checks,
            )
            run.open_spans()
            self.runs[policy, chat] = self._by_id[run.run_id] = run
            if policy.key() not in self.writer.manifest.policies:
                policies = {**self.writer.manifest.policies, policy.key(): policy}
                self.writer.update(policies=policies)
        return self.runs[policy, chat]

    # A question's way.

    def _begin(
        self, question: ServedQuestion, policy: Policy, arrival: int
    ) -> tuple[str, _Waiting]:
        run = self._run_of(policy, chat=question.chat)
        name = question.override.id or uuid.uuid4().hex
        if name in self._waiting:
            raise BadRequest("ttscope.id names a question that is being answered", 409)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(question, run, arrival, loop.create_future())
        self._waiting[name] = waiting
        self.upstream.questions[f"{run.run_id}.{name}"] = question
        left = self.settings.timeout_s - (now_ns() - arrival) / 1e9
        waiting.timer = loop.call_later(max(left, 0.0), run.time_out, name)
        problem = Problem(
            problem_id=name,
            prompt=question.prompt,
            expected=question.override.answer,
            group=question.override.group,
        )
        self._asked += 1
        self._first, self._last = self._first or arrival, arrival
        try:
            run.ask(problem, arrival, question.context)
        except BaseException:
            self._waiting.pop(name, None)
            raise
        return name, waiting

    def _on_result(self, result: Any) -> None:
        self._by_id[result.request_id.partition(".")[0]].take(result)

    async def _look_at_scores(self) -> None:
        while True:
            await asyncio.sleep(SCORES_S)
            for run in list(self.runs.values()):
                run.look_at_scores()

    def _on_end(self, flight: Flight, why: str) -> None:
        """Hand the answer over, and forget the question."""
        name = flight.problem.problem_id
        waiting = self._waiting.pop(name)
        run = waiting.run
        if waiting.timer is not None:
            waiting.timer.cancel()
        answer = None if why in (CLIENT, ENDED) else self._made(flight, run, why)
        ended = run.ended.pop(name)
        if answer is None:
            waiting.failure = self._failure(waiting.question, ended, why)
        self.upstream.questions.pop(f"{run.run_id}.{name}", None)
        if not waiting.done.done():
            waiting.done.set_result(answer)
        took_s = (now_ns() - waiting.arrival) / 1e9
        # The answer goes out first: its task is woken before this is called.
        asyncio.get_running_loop().call_soon(self._count, flight, answer, ended, why, took_s)

    def _count(
        self,
        flight: Flight,
        answer: ServedAnswer | None,
        ended: Sequence[Sent],
        why: str,
        took_s: float,
    ) -> None:
        """Have /metrics say how a question and its samples ended."""
        outcome = {CLIENT: "gone", "timeout": "timeout"}.get(why, "answered")
        if answer is None and outcome != "gone":
            outcome = "failed"
        self.numbers.questions.labels(outcome).inc()
        if flight.effort is not None:
            self.numbers.efforts.labels(flight.effort).inc()
        self.numbers.tokens.inc(flight.told_tokens)
        if answer is not None:
            self.numbers.latency.observe(took_s)
            if answer.told["agreement"] is not None:
                self.numbers.agreement.observe(answer.told["agreement"])
        for each in ended:
            failed = each.result is None or each.result.error is not None
            self.numbers.samples.labels("failed" if failed else "ended").inc()

    def _made(self, flight: Flight, run: LiveRun, why: str) -> ServedAnswer | None:
        """Return what goes back to the client, None where no sample ended."""
        sent = run.chosen(flight)
        if sent is None or sent.chain is None or sent.result is None:
            return None
        answers = [each.chain.answer for each in run.voters(flight) if each.chain]
        given = flight.decision.answer if flight.decision is not None else None
        votes = sum(each == given for each in answers)
        return ServedAnswer(
            request_id=flight.problem.problem_id,
            model=self.upstream.served,
            text=sent.chain.text,
            opened=sent.chain.opened,
            finish_reason=sent.result.finish_reason or "stop",
            prompt_tokens=flight.prompt_tokens,
            output_tokens=flight.output_tokens,
            told={
                "policy": run.label,
                "reasoning_effort": flight.effort,
                "decided_by": why,
                "votes": votes if given is not None else 0,
                "answers": len(answers),
                "agreement": votes / len(answers) if answers and given is not None else None,
                "requests": flight.requests,
                "cancelled": flight.cancelled,
                "trace_id": f"{flight.span.get_span_context().trace_id:032x}",
            },
        )

    async def _body_of(self, request: web.Request) -> bytes:
        """Return the bytes of a body. Raises BadRequest where it is none, or does not come.

        Until then it waits for no place but its connection's.
        """
        place, most = self.guard.of(request), self.settings.most_body_bytes
        if self.draining:
            raise BadRequest(_ENDING, 503)
        if (request.content_length or 0) > most:
            raise BadRequest(f"more than {most:,} bytes (--max-body)", 413)
        place.send_body()
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S) as limit:
                place.refuse = partial(limit.reschedule, 0.0)
                async for piece in request.content.iter_any():
                    if len(body) + len(piece) > most:
                        raise BadRequest(f"more than {most:,} bytes (--max-body)", 413)
                    if not self.guard.hold(place, len(piece)):
                        raise BadRequest(_NO_ROOM, 503)
                    body += piece
        except TimeoutError:
            if place.refused:
                raise BadRequest(_NO_ROOM, 503) from None
            raise BadRequest("the body did not come in time", 408) from None
        except web.RequestPayloadError:
            raise BadRequest("the body is cut off, or is not compressed as it says") from None
        finally:
            place.refuse = None
        place.work()
        place.served = True
        return bytes(body)

    # What is no question goes on as it came.

    async def _other(self, request: web.Request) -> web.StreamResponse:
        raw = await self._body_of(request)
        with self._passes():
            return await self._pass(request, raw, "path")

    @contextlib.contextmanager
    def _passes(self) -> Iterator[None]:
        """Count a request that is passed on while it is answered."""
        if self._passing >= self.settings.in_flight + self.settings.waiting:
            raise BadRequest("too many requests are passed on. Ask again later", 503)
        self._passing += 1
        try:
            yield
        finally:
            self._passing -= 1

    async def _pass(
        self, request: web.Request, body: dict[str, Any] | bytes, why: str
    ) -> web.StreamResponse:
        if self.closed:
            raise BadRequest(_ENDING, 503)
        if _leads_out(request.rel_url.raw_path):
            raise BadRequest("no such path", 404)
        self.numbers.passed.labels(why).inc()
        named = ",".join(request.headers.getall("Connection", [])).split(",")
        dropped = _ASKED | {each.strip().lower() for each in named}
        headers = {k: v for k, v in request.headers.items() if k.lower() not in dropped | KEYS}
        headers |= self._keys_of(request)
        headers["X-Request-Id"] = uuid.uuid4().hex
        sent: dict[str, Any] = {"json": body} if isinstance(body, dict) else {"data": body or None}
        response = None
        try:
            async with (
                asyncio.timeout(self.settings.timeout_s),  # of a client that does not read too
                self.upstream.session.request(
                    request.method,
                    URL(f"{self.upstream.url}{request.rel_url.raw_path_qs}", encoded=True),
                    headers=headers,
                    allow_redirects=False,
                    **sent,
                ) as answer,
            ):
                back = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
                response = web.StreamResponse(
                    status=answer.status, headers={**back, HEADER: f"passed: {why}"}
                )
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await self.guard.write(request, response, piece)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, TimeoutError) as error:
            if response is not None:
                raise ConnectionResetError from error  # the answer was cut off
            if self.closed:
                raise BadRequest(_ENDING, 503) from None
            raise BadRequest("the engine is gone, or too slow", 502) from None


def _leads_out(path: str) -> bool:
    """Tell whether some server may read a path as one outside /v1, or it is no path of HTTP."""
    if not path.isascii():
        return True
    for _ in range(4):  # it may be encoded more than once
        path = unquote(path)
    return any(each in (".", "..") for each in _BETWEEN.split(path))


@contextlib.asynccontextmanager
async def listening(service: Service) -> AsyncIterator[str]:
    """Serve while the block runs; gives the URL. Raises UsageError where the port is taken."""
    settings = service.settings
    give_large_blocks_back()
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        raise UsageError(
            f"--host {settings.host} --port {settings.port}: cannot listen "
            f"({error.strerror or error}). Name another port"
        ) from None
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        await service.open()
        async with guarded(service.app(), listener, service.guard, shutdown_s=1.0, cancels=True):
            try:
                yield f"http://{host}:{listener.getsockname()[1]}"
                await service.drain()
            finally:
                await service.close()
    finally:
        listener.close()
