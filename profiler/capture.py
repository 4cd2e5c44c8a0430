"""Run a workload under a policy on an engine, watched, and keep what happened as a recording.

`record` drives the run: it keeps so many problems in flight, hands each sample to its policy as
it ends, opens and closes the OpenTelemetry spans run > problem > sample that the recording is
made of, and drains the engine's step probe into it.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

from profiler import policies
from profiler.engines.protocol import Engine, SampleRequest, SampleResult
from profiler.power import HZ, check_hz, watch_power
from profiler.provenance import provenance
from profiler.telemetry import Telemetry
from profiler.what_if import NgramWhatIf
from profiler.workload import Problem, Workload, is_correct
from traces import attributes as names
from traces.errors import UsageError
from traces.manifest import Manifest
from traces.schema import Policy
from traces.spans import RecordingSpanProcessor
from traces.writer import RecordingWriter, read_clocks

Progress = Callable[[int, int], None]


@dataclass
class _InFlight:
    """A problem that is being worked on."""

    problem: Problem
    run: policies.PolicyRun
    span: Span
    open_samples: dict[int, Span] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    decision: policies.Decision | None = None
    failures: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


def record(
    workload: Workload,
    policy: Policy,
    engine: Engine,
    folder: str | Path,
    *,
    concurrency: int = 8,
    otlp: str | None = None,
    record_text: bool = False,
    price_usd_per_device_hour: float | None = None,
    power_hz: float = HZ,
    progress: Progress | None = None,
) -> Path:
    """Run all problems, `concurrency` at a time, and return the recording's folder.

    Texts and token ids are kept for generated workloads or with `record_text`. When the engine
    fails or the user interrupts, the recording is closed as incomplete and the error goes on.
    `power_hz` is how often the devices' power is read a second, 10 to 50.
    Raises UsageError for a policy that cannot be run, RecordingError when `folder` is taken.
    """
    if concurrency < 1:
        raise UsageError(f"--concurrency must be at least 1, not {concurrency}")
    check_hz(power_hz)
    policies.start(policy)  # refuse before anything is written
    keep_text = record_text or workload.generated
    models = {engine.config.model: engine.model} if engine.model is not None else {}
    manifest = Manifest(
        provenance=provenance(engine.config),
        clock_start=read_clocks(),
        engines={engine.config.key(): engine.config},
        policies={policy.key(): policy},
        models=models,
        workload=workload.facts(engine.chat_template if workload.chat else None),
        concurrency=concurrency,
        text_recorded=keep_text,
        price_usd_per_device_hour=price_usd_per_device_hour,
    )
    with (
        RecordingWriter(folder, manifest) as writer,
        watch_power(engine.config, writer, hz=power_hz),
    ):
        recorder = RecordingSpanProcessor(writer.append)
        resource = {"tts.model": engine.config.model}
        telemetry = Telemetry(recorder, resource=resource, otlp=otlp)
        what_if = NgramWhatIf(engine.config, policy.key())
        writer.add_source("drafts", what_if.drain)
        try:
            _watch_steps(engine, writer, telemetry)
            _watch_kernels(engine, writer)
            _Run(workload, policy, engine, telemetry, recorder, what_if, keep_text).go(
                concurrency, progress or (lambda done, total: None)
            )
        finally:
            telemetry.close()
            what_if.finish()
            _note_probe(engine, writer)
            _note_kernels(engine, writer)
            _note_engine(engine, writer)
        return writer.path


def _watch_steps(engine: Engine, writer: RecordingWriter, telemetry: Telemetry) -> None:
    """Drain the engine's step probe, if it has one, into the recording and the metrics."""
    probe = getattr(engine, "probe", None)
    if probe is None:
        return
    probe.reset(engine.config.key())

    def drain() -> pl.DataFrame:
        steps: pl.DataFrame = probe.drain()
        telemetry.observe_steps(steps)
        return steps

    writer.add_source("steps", drain)


def _note_probe(engine: Engine, writer: RecordingWriter) -> None:
    probe = getattr(engine, "probe", None)
    if probe is None:
        return
    writer.update(probe_cost_us=probe.cost_us)
    if probe.dropped:
        writer.dropped("steps", probe.dropped)
    if probe.failure:
        writer.event("drop", probe.failure)


def _note_engine(engine: Engine, writer: RecordingWriter) -> None:
    """Keep what a reader must know of the engine, such as a fault of it that was mended."""
    for note in getattr(engine, "notes", ()):
        writer.event("note", note, engine=engine.config.key())


def _watch_kernels(engine: Engine, writer: RecordingWriter) -> None:
    """Have profiler windows, if the engine was started for them, read into the recording."""
    windows = getattr(engine, "windows", None)
    if windows is not None:
        windows.reset()
        writer.add_source("kernels", windows.drain)
        writer.add_source("events", windows.events)


def _note_kernels(engine: Engine, writer: RecordingWriter) -> None:
    windows = getattr(engine, "windows", None)
    if windows is None:
        return
    windows.finish()
    writer.update(kernel_windows_cost=windows.cost_share)
    if windows.failure:
        writer.event("drop", windows.failure)


class _Run:
    """The loop of one run."""

    def __init__(
        self,
        workload: Workload,
        policy: Policy,
        engine: Engine,
        telemetry: Telemetry,
        recorder: RecordingSpanProcessor,
        what_if: NgramWhatIf,
        keep_text: bool,
    ) -> None:
        self.workload, self.policy, self.engine = workload, policy, engine
        self.tracer, self.recorder, self.keep_text = telemetry.tracer, recorder, keep_text
        self.what_if = what_if
        self.run_id = uuid.uuid4().hex[:8]
        self.keys = {
            names.ENGINE_KEY: engine.config.key(),
            names.POLICY_KEY: policy.key(),
        }
        self.open: dict[str, tuple[_InFlight, int]] = {}  # request id -> problem, sample
        self.in_flight = 0

    def go(self, concurrency: int, progress: Progress) -> None:
        """Work through the problems."""
        waiting = deque(self.workload.problems)
        total, done = len(waiting), 0
        self.root = self.tracer.start_span(names.SPAN_RUN, attributes=self._run_attributes())
        ended = False
        try:
            progress(0, total)
            while waiting or self.in_flight:
                while waiting and self.in_flight < concurrency:
                    self._begin(waiting.popleft())
                for result in self.engine.poll():
                    self._take(result)
                if (finished := total - len(waiting) - self.in_flight) != done:
                    done = finished
                    progress(done, total)
            ended = True
        finally:
            if not ended:  # what is in flight keeps its null end
                self.engine.cancel(list(self.open))
            self.root.end()

    def _run_attributes(self) -> dict[str, Any]:
        facts = self.workload.facts(None)
        attributes: dict[str, Any] = {
            names.RUN_ID: self.run_id,
            names.WORKLOAD_NAME: facts.name,
            names.WORKLOAD_HASH: facts.hash,
            names.POLICY_METHOD: self.policy.method,
            names.POLICY_N: self.policy.n,
            **self.keys,
        }
        if self.policy.thinking_token_budget is not None:
            attributes[names.POLICY_BUDGET] = self.policy.thinking_token_budget
        return attributes

    def _begin(self, problem: Problem) -> None:
        attributes = {**self.keys, "tts.problem.id": problem.problem_id}
        if problem.group is not None:
            attributes["tts.problem.group"] = problem.group
        now = time.time_ns()
        span = self.tracer.start_span(
            names.SPAN_PROBLEM,
            context=set_span_in_context(self.root),
            attributes=attributes | {"tts.problem.start": now},
            start_time=now,
        )
        flight = _InFlight(problem, policies.start(self.policy), span)
        self.in_flight += 1
        self._follow(flight, flight.run.begin())

    def _follow(self, flight: _InFlight, move: policies.Move) -> None:
        for index in move.draw:
            self._draw(flight, index)
        if move.cancel:
            wanted = {self._request_id(flight, index) for index in move.cancel}
            for result in self.engine.cancel([name for name in wanted if name in self.open]):
                self._close_sample(result, cancelled_by="policy")
        if move.decision is not None:
            flight.decision = move.decision
            self._close_problem(flight)

    def _request_id(self, flight: _InFlight, index: int) -> str:
        return f"{self.run_id}.{flight.problem.problem_id}.{index}"

    def _draw(self, flight: _InFlight, index: int) -> None:
        policy, problem = self.policy, flight.problem
        request_id = self._request_id(flight, index)
        attributes: dict[str, Any] = {
            **self.keys,
            names.GEN_AI_OPERATION: "chat" if self.workload.chat else "text_completion",
            names.GEN_AI_PROVIDER: "vllm",
            names.GEN_AI_MODEL: self.engine.config.model,
            names.GEN_AI_TEMPERATURE: policy.temperature,
            names.GEN_AI_TOP_P: policy.top_p,
            names.GEN_AI_RESPONSE_ID: request_id,
            "tts.problem.id": problem.problem_id,
            "tts.sample.sample_index": index,
            "tts.sample.role": "sample",
        }
        if policy.max_tokens is not None:
            attributes[names.GEN_AI_MAX_TOKENS] = policy.max_tokens
        span = self.tracer.start_span(
            names.SPAN_SAMPLE, context=set_span_in_context(flight.span), attributes=attributes
        )
        flight.open_samples[index] = span
        self.open[request_id] = (flight, index)
        context = span.get_span_context()
        self.engine.submit(
            SampleRequest(
                request_id=request_id,
                prompt=problem.prompt,
                chat=self.workload.chat,
                temperature=policy.temperature,
                top_p=policy.top_p,
                max_tokens=policy.max_tokens,
                thinking_token_budget=policy.thinking_token_budget,
                traceparent=f"00-{context.trace_id:032x}-{context.span_id:016x}-01",
            )
        )

    def _take(self, result: SampleResult) -> None:
        if result.request_id not in self.open:
            return
        flight, index = self.open[result.request_id]
        answer = self._close_sample(result, cancelled_by=None)
        failed = result.error is not None
        vote = policies.Vote(sample_index=index, answer=answer, failed=failed)
        self._follow(flight, flight.run.on_sample(vote))

    def _close_sample(self, result: SampleResult, *, cancelled_by: str | None) -> str | None:
        flight, index = self.open.pop(result.request_id)
        span = flight.open_samples.pop(index)
        ended = result.error is None and cancelled_by is None
        answer = self.workload.answer_of(result.text) if ended else None
        correct = is_correct(answer, flight.problem.expected) if ended else None
        flight.failures += result.error is not None
        flight.prompt_tokens = flight.prompt_tokens or result.prompt_tokens
        if result.cached_tokens is not None:
            flight.cached_tokens = (flight.cached_tokens or 0) + result.cached_tokens
        _set(span, names.GEN_AI_INPUT_TOKENS, result.prompt_tokens)
        _set(span, names.GEN_AI_OUTPUT_TOKENS, result.output_tokens)
        _set(span, names.ERROR_TYPE, result.error)
        for column, value in _sample_columns(result, cancelled_by, correct):
            _set(span, f"tts.sample.{column}", value)
        if result.error is not None:
            span.set_status(Status(StatusCode.ERROR))
        private: dict[str, Any] = {"answer": self._shown(flight, answer)}
        if self.keep_text and result.token_ids is not None:
            private["token_ids"] = list(result.token_ids)
        self.recorder.attach(span, **private)
        self.what_if.add(flight.problem.problem_id, index, result)
        span.end(result.end)
        return answer

    def _shown(self, flight: _InFlight, answer: str | None) -> str | None:
        """What a recording says of an answer: its text, or its class within the problem."""
        if answer is None or self.keep_text:
            return answer
        return str(flight.classes.setdefault(answer, len(flight.classes)))

    def _close_problem(self, flight: _InFlight) -> None:
        decision, problem, span = flight.decision, flight.problem, flight.span
        left = [self._request_id(flight, index) for index in flight.open_samples]
        for result in self.engine.cancel(left):
            self._close_sample(result, cancelled_by="decision")
        now = time.time_ns()
        if decision is not None:
            _set(span, "tts.problem.decided_at", now)
            _set(span, "tts.problem.decided_by_sample", decision.by_sample)
            answered = decision.answer is not None or not flight.failures
            correct = is_correct(decision.answer, problem.expected) if answered else None
            _set(span, "tts.problem.correct", correct)
            self.recorder.attach(
                span,
                answer=self._shown(flight, decision.answer),
                expected=problem.expected if self.keep_text else None,
            )
        _set(span, "tts.problem.prompt_tokens", flight.prompt_tokens)
        _set(span, "tts.problem.cached_prompt_tokens", flight.cached_tokens)
        if flight.failures:
            _set(span, names.ERROR_TYPE, f"{flight.failures} samples failed")
        span.end(now)
        self.in_flight -= 1


def _sample_columns(
    result: SampleResult, cancelled_by: str | None, correct: bool | None
) -> Iterable[tuple[str, Any]]:
    think, output = result.think_tokens, result.output_tokens
    yield "answer_tokens", None if think is None or output is None else output - think
    yield "censored", None if result.finish_reason is None else result.finish_reason == "length"
    yield "cancelled_by", cancelled_by
    yield "correct", correct
    for column in (
        "cached_tokens",
        "think_tokens",
        "queued",
        "scheduled",
        "first_token",
        "think_end",
        "first_step",
        "last_step",
        "preemptions",
        "finish_reason",
        "logprob_mean",
        "drafted_per_step",
        "accepted_per_step",
    ):
        yield column, getattr(result, column)


def _set(span: Span, name: str, value: Any) -> None:
    """Set an attribute unless the value is absent: OpenTelemetry knows no null."""
    if value is not None:
        span.set_attribute(name, value)
