"""The spans of a run: run > problem > sample, of which the recording is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

from profiler.engines.interface import THINK_END, Engine, SampleResult
from profiler.policies.interface import Draw
from profiler.runs.flight import Flight, Sent
from profiler.runs.telemetry import Telemetry
from profiler.workload.problems import Problem, Workload
from traces.clock import now_ns
from traces.recording import spans as names
from traces.recording.spans import RecordingSpanProcessor
from traces.schema.tts.policy import Policy

_MEASURED = {
    f"tts.sample.{column}": column
    for column in (
        "cached_tokens",
        "queued",
        "scheduled",
        "first_token",
        "think_end",
        "first_step",
        "last_step",
        "preemptions",
        "finish_reason",
        "logprob_mean",
        "confidence_min_window",
        "drafted_per_step",
        "accepted_per_step",
    )
}


class RunSpans:
    """Opens and ends the spans; answers and token ids go beside them to the recorder alone."""

    def __init__(
        self,
        telemetry: Telemetry,
        recorder: RecordingSpanProcessor,
        *,
        workload: Workload,
        policy: Policy,
        engine: Engine,
        run_id: str,
        keep_text: bool,
    ) -> None:
        self._tracer, self._recorder, self._keep_text = telemetry.tracer, recorder, keep_text
        self._workload = workload
        self._engine_key, self._policy_key = engine.config.key(), policy.key()
        self._keys = {names.ENGINE_KEY: self._engine_key, names.POLICY_KEY: self._policy_key}
        self._request: dict[str, Any] = self._keys | {
            names.GEN_AI_OPERATION: "chat" if workload.chat else "text_completion",
            names.GEN_AI_PROVIDER: engine.provider,
            names.GEN_AI_MODEL: engine.config.model,
            names.GEN_AI_TEMPERATURE: policy.temperature,
            names.GEN_AI_TOP_P: policy.top_p,
            names.GEN_AI_MAX_TOKENS: policy.max_tokens,
        }
        facts = workload.facts(None)
        attributes = {
            names.RUN_ID: run_id,
            names.WORKLOAD_NAME: facts.name,
            names.WORKLOAD_HASH: facts.hash,
            names.POLICY_METHOD: policy.method,
            names.POLICY_N: policy.n,
            names.POLICY_BUDGET: policy.thinking_token_budget,
            names.POLICY_EFFORT: policy.reasoning_effort,
            **self._keys,
        }
        self._root = self._tracer.start_span(
            names.SPAN_RUN, attributes=_known(attributes), start_time=now_ns()
        )

    def end(self) -> None:
        self._root.end(now_ns())

    def begin_problem(
        self,
        problem: Problem,
        begun: int,
        arrival: int | None = None,
        context: Context | None = None,
        *,
        effort: str | None = None,
    ) -> Span:
        """Open the span of a problem that begins at `begun`, unix nanoseconds.

        It may have arrived before, and waited. It is in the run's trace, or in the `context`.
        `effort` is the reasoning effort of its class.
        """
        attributes = {
            **self._keys,
            "tts.problem.id": problem.problem_id,
            "tts.problem.start": begun,
            "tts.problem.group": problem.group,
            names.POLICY_EFFORT: effort,
        }
        return self._tracer.start_span(
            names.SPAN_PROBLEM,
            context=set_span_in_context(self._root) if context is None else context,
            attributes=_known(attributes),
            start_time=begun if arrival is None else arrival,
        )

    def begin_sample(self, flight: Flight, draw: Draw, request_id: str) -> Span:
        """Open the span of a request; a scorer's is not of the run's engine."""
        scorer = draw.role == "scorer"
        attributes: dict[str, Any] = {
            **({names.POLICY_KEY: self._policy_key} if scorer else self._request),
            names.GEN_AI_RESPONSE_ID: request_id,
            names.POLICY_EFFORT: None if scorer else flight.effort,
            "tts.problem.id": flight.problem.problem_id,
            "tts.sample.sample_index": draw.index,
            "tts.sample.role": draw.role,
            "tts.sample.parent_sample": draw.parent,
            "tts.sample.round": draw.round,
            "tts.sample.depth": draw.depth,
        }
        return self._tracer.start_span(
            names.SPAN_SAMPLE,
            context=set_span_in_context(flight.span),
            attributes=_known(attributes),
            start_time=now_ns(),
        )

    def end_sample(self, sent: Sent, *, cancelled_by: str | None = None) -> bool | None:
        """Write the row of a request that ended or was cancelled; returns whether it is right."""
        flight, result, span = sent.flight, sent.result, sent.span
        assert result is not None
        is_answered = result.error is None and cancelled_by is None
        answer = sent.chain.answer if is_answered and sent.chain is not None else None
        correct = self._workload.is_correct(flight.problem, answer) if is_answered else None
        flight.count(sent, cancelled=cancelled_by is not None)
        think, output = _think_tokens(sent, result), result.output_tokens
        attributes = {
            names.GEN_AI_INPUT_TOKENS: result.prompt_tokens,
            names.GEN_AI_OUTPUT_TOKENS: output,
            names.ERROR_TYPE: result.error,
            "tts.sample.think_tokens": think,
            "tts.sample.answer_tokens": None if think is None or output is None else output - think,
            "tts.sample.censored": _censored(sent, result),
            "tts.sample.cancelled_by": cancelled_by,
            "tts.sample.correct": correct,
            "tts.sample.score": sent.score,
        }
        measured = {name: getattr(result, column) for name, column in _MEASURED.items()}
        span.set_attributes(_known(attributes | measured))
        if result.error is not None:
            span.set_status(Status(StatusCode.ERROR))
        private: dict[str, Any] = {"answer": flight.shown(answer, keep_text=self._keep_text)}
        if self._keep_text and result.token_ids is not None:
            private["token_ids"] = list(result.token_ids)
        self._recorder.attach(span, **private)
        span.end(result.end)
        return correct

    def abandon_problem(self, flight: Flight, why: str) -> None:
        """Write the row of a problem that nobody waits for any more, and that has no decision."""
        flight.span.set_attribute(names.ERROR_TYPE, why)
        flight.span.end(now_ns())

    def end_problem(self, flight: Flight, *, timed_out: bool) -> None:
        decision, problem, span = flight.decision, flight.problem, flight.span
        assert decision is not None
        now = now_ns()
        answered = decision.answer is not None or timed_out or not flight.failures
        right = self._workload.is_correct(problem, decision.answer) if answered else None
        failed = f"{flight.failures} samples failed" if flight.failures else None
        attributes = {
            "tts.problem.decided_at": now,
            "tts.problem.decided_by_sample": decision.by_sample,
            "tts.problem.timed_out": timed_out or None,
            "tts.problem.correct": right,
            "tts.problem.prompt_tokens": flight.prompt_tokens,
            "tts.problem.cached_prompt_tokens": flight.cached_tokens,
            names.ERROR_TYPE: failed,
        }
        span.set_attributes(_known(attributes))
        self._recorder.attach(
            span,
            answer=flight.shown(decision.answer, keep_text=self._keep_text),
            expected=problem.expected if self._keep_text else None,
        )
        span.end(now)

    @staticmethod
    def end_scorer(
        span: Span,
        *,
        prompt_tokens: int | None = None,
        output_tokens: int | None = None,
        error: str | None = None,
        cancelled_by: str | None = None,
    ) -> None:
        attributes = {
            names.GEN_AI_INPUT_TOKENS: prompt_tokens,
            names.GEN_AI_OUTPUT_TOKENS: output_tokens,
            names.ERROR_TYPE: error,
            "tts.sample.cancelled_by": cancelled_by,
        }
        span.set_attributes(_known(attributes))
        span.end(now_ns())


def _think_tokens(sent: Sent, result: SampleResult) -> int | None:
    """Tokens of thought that a request generated; 0 where its thought was closed before."""
    closed = sent.base.thought_ended or THINK_END in sent.append
    return 0 if result.think_tokens is None and closed else result.think_tokens


def _censored(sent: Sent, result: SampleResult) -> bool | None:
    """Whether max_tokens cut a sample; one that was given its length was not."""
    if result.finish_reason is None:
        return None
    return result.finish_reason == "length" and sent.fixed_tokens is None


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return those attributes that have a value: OpenTelemetry knows no null."""
    return {name: value for name, value in attributes.items() if value is not None}
