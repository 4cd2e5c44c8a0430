"""OpenTelemetry spans of a run become rows of its recording.

The processor sees a span when it starts and when it ends, so that a run that dies leaves what
was in flight with its start and a null end. Answers and token ids never become attributes, which
travel to any OTLP endpoint: whoever measures hands them to the processor beside the span.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id

from traces.recording.tables import TABLES

# Names of spans, attributes and metrics, pinned here.
#
# The GenAI names follow the OpenTelemetry semantic conventions (development status, as of 1.38);
# the rest is ours under `tts.`.


SPAN_RUN = "tts.run"
SPAN_PROBLEM = "tts.problem"
SPAN_SAMPLE = "tts.sample"

RUN_ID = "tts.run.id"
WORKLOAD_NAME = "tts.workload.name"
WORKLOAD_HASH = "tts.workload.hash"
POLICY_METHOD = "tts.policy.method"
POLICY_N = "tts.policy.n"
POLICY_BUDGET = "tts.policy.thinking_token_budget"
POLICY_EFFORT = "tts.policy.reasoning_effort"
ENGINE_KEY = "tts.engine.key"
POLICY_KEY = "tts.policy.key"

GEN_AI_OPERATION = "gen_ai.operation.name"
GEN_AI_PROVIDER = "gen_ai.provider.name"
GEN_AI_MODEL = "gen_ai.request.model"
GEN_AI_TEMPERATURE = "gen_ai.request.temperature"
GEN_AI_TOP_P = "gen_ai.request.top_p"
GEN_AI_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_RESPONSE_ID = "gen_ai.response.id"
ERROR_TYPE = "error.type"


# Span attribute -> column of the recording's table; a column's own name otherwise, as
# `tts.problem.<column>` and `tts.sample.<column>`.
PROBLEM_COLUMNS = {
    ERROR_TYPE: "error",
    ENGINE_KEY: "engine",
    POLICY_KEY: "policy",
    "tts.problem.id": "problem_id",
}
SAMPLE_COLUMNS = {
    GEN_AI_INPUT_TOKENS: "prompt_tokens",
    GEN_AI_OUTPUT_TOKENS: "output_tokens",
    GEN_AI_RESPONSE_ID: "request_id",
    **PROBLEM_COLUMNS,
}

Append = Callable[[str, Mapping[str, Any]], None]


def _columns(table: str, prefix: str, renamed: Mapping[str, str]) -> dict[str, str]:
    """Return the column of each attribute that has one."""
    prefixed = {f"{prefix}{column}": column for column in TABLES[table]}
    return prefixed | {name: column for name, column in renamed.items() if column in TABLES[table]}


_TABLES = {
    SPAN_PROBLEM: ("problems", _columns("problems", "tts.problem.", PROBLEM_COLUMNS)),
    SPAN_SAMPLE: ("samples", _columns("samples", "tts.sample.", SAMPLE_COLUMNS)),
}


class SpanFacts(Protocol):
    """What the recording reads of a span, of the SDK or another."""

    @property
    def name(self) -> str:
        """One of the names above."""

    @property
    def context(self) -> SpanContext | None:
        """Its ids."""

    @property
    def attributes(self) -> Mapping[str, Any] | None:
        """What it has so far."""

    @property
    def start_time(self) -> int | None:
        """Unix nanoseconds."""

    @property
    def end_time(self) -> int | None:
        """Unix nanoseconds."""


class RecordingSpanProcessor(SpanProcessor):
    """Turns `tts.problem` and `tts.sample` spans into rows through `append(table, row)`.

    Its start is the row's `arrival`, its end the row's `end`, null in the row written at the start.
    """

    def __init__(self, append: Append) -> None:
        self._append = append
        self._private: dict[int, dict[str, Any]] = {}

    def attach(self, span: Any, **columns: Any) -> None:
        """Give columns of the span's row that must not become attributes, before it ends."""
        self._private.setdefault(span.get_span_context().span_id, {}).update(columns)

    def on_start(self, span: SpanFacts, parent_context: Context | None = None) -> None:
        if span.name in _TABLES:
            self._append(*self._row(span))

    def on_end(self, span: SpanFacts) -> None:
        if span.name not in _TABLES or span.context is None:
            return
        table, row = self._row(span)
        private = self._private.pop(span.context.span_id, {})
        self._append(table, row | private | {"end": span.end_time})

    def _row(self, span: SpanFacts) -> tuple[str, dict[str, Any]]:
        table, columns = _TABLES[span.name]
        row: dict[str, Any] = {"arrival": span.start_time}
        for name, value in dict(span.attributes or {}).items():
            column = columns.get(name)
            if column is not None:
                row[column] = list(value) if isinstance(value, tuple) else value
        if span.context is not None:
            row["span_id"] = format_span_id(span.context.span_id)
            if "trace_id" in TABLES[table]:
                row["trace_id"] = format_trace_id(span.context.trace_id)
        return table, row
