"""The OpenTelemetry providers of one run: spans to the recording and, if asked, to OTLP."""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
from collections.abc import Mapping
from typing import Any

import polars as pl
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from profiler.engines.server.access import without_secrets
from traces.errors import UsageError
from traces.recording import spans as names
from traces.recording.spans import RecordingSpanProcessor

_FLUSH_MS = 5_000
_LAST_S, _HURRY_S = 15.0, 1.0
_NS_PER_S = 1e9
_EXPORT_MS = 10_000  # between exports of metrics, unless OTEL_METRIC_EXPORT_INTERVAL says

# Upper bounds of buckets, such that a quantile read from them is at most a fifth off. The GenAI
# conventions prescribe none for these metrics. Steps take from 0.1 ms to 105 s; each bound is
# 2^(1/4) times the one before.
STEP_BOUNDS_S = tuple(float(f"{1e-4 * 2 ** (each / 4):.3g}") for each in range(81))
# Batches are whole numbers: up to 10 each has a bucket of its own, which begins a tenth below it.
BATCH_BOUNDS = (
    *(0.0, 0.9, 1.0, 1.8, 2.0, 2.7, 3.0, 3.6, 4.0, 4.5, 5.0, 5.4, 6.0, 6.3, 7.0, 7.2, 8.0, 8.1),
    *(9.0, 10.0, *(float(round(10 * 2 ** (each / 4))) for each in range(1, 41))),
)


class _UnseededIds(IdGenerator):
    """Ids from the system's entropy.

    An engine may seed `random`, from which the SDK's own generator draws: every run would have the
    same ids.
    """

    def generate_span_id(self) -> int:
        return secrets.randbelow(2**64 - 1) + 1

    def generate_trace_id(self) -> int:
        return secrets.randbelow(2**128 - 1) + 1


def _standard_endpoint(signal: str) -> str | None:
    """What the standard OTEL_EXPORTER_OTLP_* variables name for `TRACES` or `METRICS`."""
    return os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )


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
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        raise UsageError(
            "OTEL_SDK_DISABLED=true: recordings are kept through the OpenTelemetry SDK. "
            "Unset it (nothing is exported unless --otlp or OTEL_EXPORTER_OTLP_* ask for it)"
        )


def _exporter_arguments(url: str | None, signal: str) -> dict[str, Any] | None:
    """Return what to construct an exporter with; None when nobody asked for one."""
    path = f"/v1/{signal.lower()}"
    if url is not None:
        return {"endpoint": url if url.endswith(path) else url.rstrip("/") + path}
    return {} if _standard_endpoint(signal) else None


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
        described = Resource.create({"service.name": "ttscope", **resource})
        self._traces = TracerProvider(
            sampler=ALWAYS_ON,
            id_generator=_UnseededIds(),
            resource=described,
            span_limits=SpanLimits(max_span_attributes=SpanLimits.UNSET),
            shutdown_on_exit=False,
        )
        self._traces.add_span_processor(recorder)
        spans = _exporter_arguments(otlp, "TRACES")
        if spans is not None:
            self._traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(**spans)))
        metrics = _exporter_arguments(otlp, "METRICS")
        self._metrics: MeterProvider | None = None
        if metrics is not None:
            given = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL")
            reader = PeriodicExportingMetricReader(
                OTLPMetricExporter(**metrics),
                export_interval_millis=None if given else _EXPORT_MS,
            )
            self._metrics = MeterProvider(
                metric_readers=[reader], resource=described, shutdown_on_exit=False
            )
            self._make_instruments(self._metrics)
        if spans is not None or metrics is not None:
            logging.getLogger("opentelemetry").addFilter(_once_a_message)
        self.tracer = self._traces.get_tracer("ttscope")

    def _make_instruments(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("ttscope")
        self._step_time = meter.create_histogram(
            names.METRIC_STEP_TIME, unit="s", explicit_bucket_boundaries_advisory=STEP_BOUNDS_S
        )
        self._batch = meter.create_histogram(
            names.METRIC_STEP_BATCH,
            unit="{request}",
            explicit_bucket_boundaries_advisory=BATCH_BOUNDS,
        )
        self._kv = meter.create_gauge(names.METRIC_KV_BLOCKS, unit="{block}")
        self._accepted = meter.create_counter(names.METRIC_ACCEPTED, unit="{token}")

    def observe_steps(self, steps: pl.DataFrame) -> None:
        """Feed rows of the `steps` table to the metrics; called on the writer's thread."""
        if self._metrics is None or not steps.height:
            return
        batch = pl.coalesce(pl.col("prefill_requests") + pl.col("decode_requests"), "running")
        columns = ("engine", "wall_ns", "kv_blocks", "accepted")
        for row in steps.select(*columns, batch=batch).iter_rows(named=True):
            engine = {names.ENGINE_KEY: row["engine"]}
            self._step_time.record(row["wall_ns"] / _NS_PER_S, engine)
            self._batch.record(row["batch"], engine)
            self._kv.set(row["kv_blocks"], engine)
            for position, count in enumerate(row["accepted"] or ()):
                self._accepted.add(count, engine | {"position": position})

    def close(self, *, hurry: bool = False) -> None:
        """Export what is left, within 15 s, or 1 s in a hurry.

        The exporter does not keep to times itself while its endpoint does not answer.
        """
        last = threading.Thread(target=self._export_rest, name="ttscope-otlp", daemon=True)
        last.start()
        last.join(_HURRY_S if hurry else _LAST_S)

    def _export_rest(self) -> None:
        self._traces.force_flush(_FLUSH_MS)
        self._traces.shutdown()
        if self._metrics is not None:
            self._metrics.shutdown(_FLUSH_MS)


def _once_a_message(record: logging.LogRecord) -> bool:
    """Let each kind of exporter warning through once, so that a dead endpoint does not spam."""
    seen = _once_a_message.__dict__.setdefault("seen", set())
    new = record.msg not in seen
    seen.add(record.msg)
    return new
