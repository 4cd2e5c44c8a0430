"""The OpenTelemetry providers of one run: spans to the recording and, if asked, to OTLP.

Where no exporter is asked for, spans are made without the SDK, which nobody would hear of.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
from collections.abc import Mapping
from typing import Any

import polars as pl
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    TraceFlags,
    Tracer,
    get_current_span,
)

from profiler.doors.clients import export_session
from profiler.engines.server.access import without_secrets
from profiler.probes.otlp_metrics import (
    OtlpMetrics,
    TableMetrics,
    by_grpc,
    exporter_arguments,
    exporter_of,
    grpc_exporters,
    once_a_message,
)
from traces.clock import now_ns
from traces.errors import UsageError
from traces.recording.spans import RecordingSpanProcessor

_FLUSH_MS = 5_000
_LAST_S, _HURRY_S = 15.0, 1.0
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class _UnseededIds(IdGenerator):
    """Ids from the system's entropy.

    An engine may seed `random`, from which the SDK's own generator draws: every run would have the
    same ids.
    """

    def generate_span_id(self) -> int:
        return secrets.randbelow(2**64 - 1) + 1

    def generate_trace_id(self) -> int:
        return secrets.randbelow(2**128 - 1) + 1


def check_settings(otlp: str | None) -> None:
    """Raise UsageError for telemetry settings under which no run can be kept."""
    if otlp is not None and not otlp.startswith(("http://", "https://")):
        shown = without_secrets(otlp)
        raise UsageError(f"--otlp {shown}: give an OTLP/HTTP URL such as http://localhost:4318")
    if otlp is not None and re.search("[@?#]", otlp):
        raise UsageError(
            f"--otlp {without_secrets(otlp)}: give no password and no query in it. "
            "OTEL_EXPORTER_OTLP_HEADERS is for keys"
        )
    asked = exporter_arguments(otlp, "TRACES") is not None
    if asked and os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        raise UsageError(
            "OTEL_SDK_DISABLED=true: what --otlp or OTEL_EXPORTER_OTLP_* ask for is sent through "
            "the OpenTelemetry SDK. Unset it"
        )


class KeptSpan(NonRecordingSpan):
    """A span that nobody but the recording hears of, at half the cost of one of the SDK."""

    def __init__(
        self,
        name: str,
        context: SpanContext,
        attributes: Mapping[str, Any],
        start_time: int,
        recorder: RecordingSpanProcessor,
    ) -> None:
        super().__init__(context)
        self.name, self.context, self.attributes = name, context, dict(attributes)
        self.start_time, self.end_time, self._recorder = start_time, 0, recorder
        recorder.on_start(self)

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self.attributes.update(attributes)

    def end(self, end_time: int | None = None) -> None:
        if not self.end_time:
            self.end_time = now_ns() if end_time is None else end_time
            self._recorder.on_end(self)


class KeptTracer:
    """Opens spans for the recording, where no exporter wants them."""

    def __init__(self, recorder: RecordingSpanProcessor) -> None:
        self._recorder, self._ids = recorder, _UnseededIds()

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        *,
        attributes: Mapping[str, Any],
        start_time: int,
    ) -> Span:
        """Open a span in the context's trace, or in a new one."""
        parent = get_current_span(context).get_span_context()
        context_of = SpanContext(
            parent.trace_id if parent.is_valid else self._ids.generate_trace_id(),
            self._ids.generate_span_id(),
            is_remote=False,
            trace_flags=_SAMPLED,
            trace_state=parent.trace_state,
        )
        return KeptSpan(name, context_of, attributes, start_time, self._recorder)


def _span_exporter(otlp: str | None) -> SpanExporter | None:
    """Return the exporter of spans that is asked for, as `exporter_of` does for metrics."""
    arguments = exporter_arguments(otlp, "TRACES")
    if arguments is None:
        return None
    if by_grpc(otlp, "TRACES"):
        exporter: SpanExporter = grpc_exporters("trace_exporter").OTLPSpanExporter()
        return exporter
    return OTLPSpanExporter(**arguments, session=export_session())


class Telemetry:
    """A tracer whose spans the recording keeps, and the metrics of its steps.

    Nothing global is set, so a host's own OpenTelemetry is left alone. `otlp` is the base URL of
    an OTLP/HTTP endpoint; without it the standard OTEL_EXPORTER_OTLP_* variables count. An
    endpoint that does not answer costs the run nothing but a warning.
    """

    def __init__(
        self, recorder: RecordingSpanProcessor, *, resource: Mapping[str, str], otlp: str | None
    ) -> None:
        check_settings(otlp)
        spans, exporter = _span_exporter(otlp), exporter_of(otlp)
        self.tracer: KeptTracer | Tracer = KeptTracer(recorder)
        self._traces: TracerProvider | None = None
        if spans is not None:
            self._traces = TracerProvider(
                sampler=ALWAYS_ON,
                id_generator=_UnseededIds(),
                resource=Resource.create({"service.name": "ttscope", **resource}),
                span_limits=SpanLimits(max_span_attributes=SpanLimits.UNSET),
                shutdown_on_exit=False,
            )
            self._traces.add_span_processor(recorder)
            self._traces.add_span_processor(BatchSpanProcessor(spans))
            logging.getLogger("opentelemetry").addFilter(once_a_message)
            self.tracer = self._traces.get_tracer("ttscope")
        self._metrics: TableMetrics | None = None
        if exporter is not None:
            self._metrics = TableMetrics(OtlpMetrics(exporter, resource), lambda _: None)

    def observe_steps(self, steps: pl.DataFrame) -> None:
        """Feed rows of the `steps` table to the metrics; called on the writer's thread."""
        if self._metrics is not None:
            self._metrics.observe_steps(steps)

    def close(self, *, hurry: bool = False) -> None:
        """Export what is left, within 15 s, or 1 s in a hurry.

        The exporter does not keep to times itself while its endpoint does not answer.
        """
        last = threading.Thread(target=self._export_rest, name="ttscope-otlp", daemon=True)
        last.start()
        last.join(_HURRY_S if hurry else _LAST_S)

    def _export_rest(self) -> None:
        if self._traces is not None:
            self._traces.force_flush(_FLUSH_MS)
            self._traces.shutdown()
        if self._metrics is not None:
            self._metrics.close()
