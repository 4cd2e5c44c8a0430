"""OpenTelemetry spans of a run become rows of its recording.

The processor sees a span when it starts and when it ends, so that a run that dies leaves what
was in flight with its start and a null end. Answers and token ids never become attributes, which
travel to any OTLP endpoint: whoever measures hands them to the processor beside the span.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import format_span_id, format_trace_id

from traces.attributes import (
    PROBLEM_COLUMNS,
    SAMPLE_COLUMNS,
    SPAN_PROBLEM,
    SPAN_SAMPLE,
)
from traces.tables import TABLES

Append = Callable[[str, Mapping[str, Any]], None]

_TABLES = {
    SPAN_PROBLEM: ("problems", "tts.problem.", PROBLEM_COLUMNS),
    SPAN_SAMPLE: ("samples", "tts.sample.", SAMPLE_COLUMNS),
}


class RecordingSpanProcessor(SpanProcessor):
    """Turns `tts.problem` and `tts.sample` spans into rows through `append(table, row)`.

    A span's start is its row's `arrival`; its end is the row's `end`, null in the row that is
    written at the start.
    """

    def __init__(self, append: Append) -> None:
        self._append = append
        self._private: dict[int, dict[str, Any]] = {}

    def attach(self, span: Any, **columns: Any) -> None:
        """Give columns of the span's row that must not become attributes, before it ends."""
        self._private.setdefault(span.get_span_context().span_id, {}).update(columns)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Write the row of a span in flight."""
        if span.name in _TABLES:
            self._append(*self._row(span))

    def on_end(self, span: ReadableSpan) -> None:
        """Write the row again, with its end and all that is known of it."""
        if span.name not in _TABLES or span.context is None:
            return
        table, row = self._row(span)
        private = self._private.pop(span.context.span_id, {})
        self._append(table, row | private | {"end": span.end_time})

    def _row(self, span: ReadableSpan) -> tuple[str, dict[str, Any]]:
        table, prefix, renamed = _TABLES[span.name]
        columns = TABLES[table]
        row: dict[str, Any] = {"arrival": span.start_time}
        for name, value in (span.attributes or {}).items():
            column = renamed.get(name, name.removeprefix(prefix))
            if column in columns:
                row[column] = list(value) if isinstance(value, tuple) else value
        if span.context is not None:
            row["span_id"] = format_span_id(span.context.span_id)
            if "trace_id" in columns:
                row["trace_id"] = format_trace_id(span.context.trace_id)
        return table, row
