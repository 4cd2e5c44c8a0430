"""Metrics of an engine over OTLP: step time, batch, queue, KV cache, drafts, requests, joules.

What is observed is summed here, a bisection and an addition each, and a thread of our own sends the
sums through OpenTelemetry's exporter. So a collector that is slow or dead holds up nobody, and
nothing waits to be sent. The SDK's own instruments take ten times as long for each value, which the
plugin's server would pay. Where to send is said by OpenTelemetry's own variables
(OTEL_EXPORTER_OTLP_ENDPOINT and the others of opentelemetry.io/docs/specs/otel/protocol/exporter).
Names are of the GenAI and hardware conventions where these have one (semantic conventions 1.39).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from traces.errors import UsageError, install_command
from traces.recording.spans import ENGINE_KEY, GEN_AI_MODEL, GEN_AI_PROVIDER
from traces.recording.tables import STEP_TOOK
from traces.recording.writer import RecordingWriter
from traces.schema.engine import EngineConfig

_EXPORT_MS = 10_000  # between exports, unless OTEL_METRIC_EXPORT_INTERVAL says
_LAST_S, _HURRY_S = 10.0, 1.0
_MOST_SERIES = 4_096  # more are not told apart

# Upper bounds of buckets, such that a quantile read from them is at most a fifth off. The GenAI
# conventions prescribe none for these metrics. Steps take from 0.1 ms to 105 s; each bound is
# 2^(1/4) times the one before.
STEP_BOUNDS_S = tuple(float(f"{1e-4 * 2 ** (each / 4):.3g}") for each in range(81))
# Batches are whole numbers: up to 10 each has a bucket of its own, which begins a tenth below it.
BATCH_BOUNDS = (
    *(0.0, 0.9, 1.0, 1.8, 2.0, 2.7, 3.0, 3.6, 4.0, 4.5, 5.0, 5.4, 6.0, 6.3, 7.0, 7.2, 8.0, 8.1),
    *(9.0, 10.0, *(float(round(10 * 2 ** (each / 4))) for each in range(1, 41))),
)


@dataclass(frozen=True, eq=False)  # each is itself: comparing all bounds would take longest
class Instrument:
    """A metric: its name, unit, what it is, and the bounds of its buckets."""

    name: str
    unit: str
    kind: Literal["histogram", "gauge", "counter"]
    bounds: tuple[float, ...] = ()


STEP_TIME = Instrument("tts.engine.step.duration", "s", "histogram", STEP_BOUNDS_S)
STEP_BATCH = Instrument("tts.engine.step.batch_size", "{request}", "histogram", BATCH_BOUNDS)
RUNNING = Instrument("tts.engine.requests.running", "{request}", "gauge")
WAITING = Instrument("tts.engine.requests.waiting", "{request}", "gauge")
KV_BLOCKS = Instrument("tts.engine.kv.blocks", "{block}", "gauge")
KV_USAGE = Instrument("tts.engine.kv.usage", "1", "gauge")
DRAFTED = Instrument("tts.engine.speculative.drafted_tokens", "{token}", "counter")
ACCEPTED = Instrument("tts.engine.speculative.accepted_tokens", "{token}", "counter")
# Bounds of the GenAI conventions.
TTFT = Instrument(
    "gen_ai.server.time_to_first_token",
    "s",
    "histogram",
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
TPOT = Instrument(
    "gen_ai.server.time_per_output_token",
    "s",
    "histogram",
    (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
REQUEST = Instrument(
    "gen_ai.server.request.duration",
    "s",
    "histogram",
    tuple(round(0.01 * 2**each, 2) for each in range(14)),
)
ENERGY = Instrument("hw.energy", "J", "counter")
INSTRUMENTS = (
    *(STEP_TIME, STEP_BATCH, RUNNING, WAITING, KV_BLOCKS, KV_USAGE, DRAFTED, ACCEPTED),
    *(TTFT, TPOT, REQUEST, ENERGY),
)
Attributes = tuple[tuple[str, Any], ...]


def endpoint(signal: str) -> str | None:
    """Return what the standard OTEL_EXPORTER_OTLP_* variables name for `TRACES` or `METRICS`."""
    return os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )


def exporter_arguments(url: str | None, signal: str) -> dict[str, Any] | None:
    """Return what to construct an exporter with; None when nobody asked for one."""
    path = f"/v1/{signal.lower()}"
    if url is not None:
        return {"endpoint": url if url.endswith(path) else url.rstrip("/") + path}
    named = (os.environ.get(f"OTEL_{signal}_EXPORTER") or "otlp").replace(" ", "").split(",")
    return {} if endpoint(signal) and "otlp" in named else None


def by_grpc(url: str | None, signal: str) -> bool:
    """Return whether the environment asks for gRPC. Raises UsageError for a protocol of neither."""
    protocol = (
        os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    )
    if url is None and protocol not in ("grpc", "http/protobuf"):
        raise UsageError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: http/protobuf or grpc")
    return url is None and protocol == "grpc"


def grpc_exporters(module: str) -> Any:
    """Return a module of OpenTelemetry's exporters by gRPC. Raises UsageError without them."""
    try:
        return importlib.import_module(f"opentelemetry.exporter.otlp.proto.grpc.{module}")
    except ImportError:
        raise UsageError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL=grpc: {install_command('grpc')}, or say http/protobuf"
        ) from None


def exporter_of(url: str | None = None) -> MetricExporter | None:
    """Return the exporter that is asked for, by a base URL or by the environment; None: nobody.

    Raises UsageError where it asks for what is not there.
    """
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    arguments = exporter_arguments(url, "METRICS")
    if arguments is None or (disabled and url is None):
        return None
    if by_grpc(url, "METRICS"):
        exporter: MetricExporter = grpc_exporters("metric_exporter").OTLPMetricExporter()
    else:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        from profiler.doors.clients import export_session

        exporter = OTLPMetricExporter(**arguments, session=export_session())
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("opentelemetry.exporter"):
            logging.getLogger(name).addFilter(once_a_message)
    return exporter


def once_a_message(record: logging.LogRecord) -> bool:
    """Let each kind of exporter warning through once, so that a dead endpoint does not spam."""
    seen = once_a_message.__dict__.setdefault("seen", set())
    new = record.msg not in seen
    seen.add(record.msg)
    return new


class _Buckets:
    """Counts of a histogram, with their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.least, self.most = float("inf"), float("-inf")


class OtlpMetrics:
    """Sums what is observed, and sends it every 10 s, or as OTEL_METRIC_EXPORT_INTERVAL says.

    `resource` describes who sends. Observing takes a lock for an addition and never waits for the
    network. `close` sends what is left.
    """

    def __init__(self, exporter: MetricExporter, resource: Mapping[str, str]) -> None:
        self._exporter = exporter
        self._resource = Resource.create({"service.name": "ttscope", **resource})
        self._series: dict[tuple[Instrument, Attributes], Any] = {}
        self._lock = threading.Lock()
        self._began = time.time_ns()
        self._stopping = threading.Event()
        self._taken = True  # the last time
        given = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "")
        self._period_s = (int(given) if given.isdecimal() and int(given) else _EXPORT_MS) / 1e3
        self._thread = threading.Thread(target=self._work, name="ttscope-otlp", daemon=True)
        self._thread.start()

    def record(self, instrument: Instrument, value: float, attributes: Attributes = ()) -> None:
        """Add a value to a histogram."""
        place = bisect_left(instrument.bounds, value)
        with self._lock:
            buckets = self._of(instrument, attributes, lambda: _Buckets(instrument.bounds))
            buckets.counts[place] += 1
            buckets.sum += value
            buckets.least = min(buckets.least, value)
            buckets.most = max(buckets.most, value)

    def record_all(
        self, instrument: Instrument, values: pl.Series, attributes: Attributes = ()
    ) -> None:
        """Add values to a histogram, without those that are null."""
        finite = values.drop_nulls().cast(pl.Float64).to_numpy()
        finite = finite[np.isfinite(finite)]
        if not finite.size:
            return
        places = np.searchsorted(instrument.bounds, finite)
        counts = np.bincount(places, minlength=len(instrument.bounds) + 1).tolist()
        with self._lock:
            buckets = self._of(instrument, attributes, lambda: _Buckets(instrument.bounds))
            buckets.counts = [a + b for a, b in zip(buckets.counts, counts, strict=True)]
            buckets.sum += float(finite.sum())
            buckets.least = min(buckets.least, float(finite.min()))
            buckets.most = max(buckets.most, float(finite.max()))

    def set(self, instrument: Instrument, value: float | None, attributes: Attributes = ()) -> None:
        """Set a gauge; None leaves it."""
        if value is not None:
            with self._lock:
                self._of(instrument, attributes, lambda: [0.0])[0] = float(value)

    def add(self, instrument: Instrument, value: float, attributes: Attributes = ()) -> None:
        with self._lock:
            self._of(instrument, attributes, lambda: [0])[0] += value

    def _of(self, instrument: Instrument, attributes: Attributes, new: Callable[[], Any]) -> Any:
        key = instrument, attributes
        if key not in self._series:
            if len(self._series) >= _MOST_SERIES:
                key = instrument, ()
            self._series.setdefault(key, new())
        return self._series[key]

    def _work(self) -> None:
        while not self._stopping.wait(self._period_s):
            self._export()
        self._export()

    def _export(self) -> None:
        data = self.data()
        if data is not None:
            with contextlib.suppress(Exception):  # a collector's fault is nobody's here
                self._taken = self._exporter.export(data) is MetricExportResult.SUCCESS

    def data(self) -> MetricsData | None:
        """Return all sums until now; None where nothing was observed."""
        now = time.time_ns()
        with self._lock:
            points: dict[Instrument, list[Any]] = {}
            for (instrument, attributes), value in self._series.items():
                made = self._point(instrument, dict(attributes), value, now)
                points.setdefault(instrument, []).append(made)
        if not points:
            return None
        metrics = [_metric(instrument, found) for instrument, found in points.items()]
        scope = ScopeMetrics(InstrumentationScope("ttscope"), metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def _point(
        self, instrument: Instrument, attributes: dict[str, Any], value: Any, now: int
    ) -> HistogramDataPoint | NumberDataPoint:
        if instrument.kind != "histogram":
            return NumberDataPoint(attributes, self._began, now, value[0])
        return HistogramDataPoint(
            attributes,
            self._began,
            now,
            sum(value.counts),
            value.sum,
            list(value.counts),
            list(instrument.bounds),
            value.least,
            value.most,
        )

    def close(self, *, hurry: bool = False) -> None:
        """Send what is left, within 10 s, or 1 s in a hurry or where nobody took anything."""
        self._stopping.set()
        self._thread.join(_LAST_S if self._taken and not hurry else _HURRY_S)
        # A dead endpoint is tried again for seconds, and the exporter waits for that.
        threading.Thread(target=self._exporter.shutdown, daemon=True).start()


def _metric(instrument: Instrument, points: list[Any]) -> Metric:
    cumulative = AggregationTemporality.CUMULATIVE
    if instrument.kind == "histogram":
        data: Any = HistogramData(points, cumulative)
    elif instrument.kind == "counter":
        data = Sum(points, cumulative, is_monotonic=True)
    else:
        data = Gauge(points)
    return Metric(instrument.name, "", instrument.unit, data)


class TableMetrics:
    """Observes the rows of a recording while they are written.

    `described` gives the configuration of an engine by its key and who made it, such as vllm.
    """

    def __init__(
        self, metrics: OtlpMetrics, described: Callable[[str], tuple[str, str] | None]
    ) -> None:
        self._metrics, self._described = metrics, described
        self._stepped: set[str] = set()
        self._last: dict[tuple[str, ...], float] = {}  # readings of counters

    @contextmanager
    def watched(self, writer: RecordingWriter) -> Iterator[None]:
        """Observe all that comes to a recording from now on, until it is closed; a probe."""
        writer.add_listener(self.observe)
        yield

    def close(self, *, hurry: bool = False) -> None:
        self._metrics.close(hurry=hurry)

    def observe(self, table: str, rows: pl.DataFrame) -> None:
        """Observe rows of a table; called on the writer's thread."""
        if table == "steps":
            self.observe_steps(rows)
        elif table == "samples":
            self._observe_samples(rows)
        elif table == "scrapes":
            self._observe_scrapes(rows)
        elif table == "power":
            self._observe_power(rows)

    def observe_steps(self, rows: pl.DataFrame) -> None:
        """Observe rows of `steps`: the time of a step, or else since the one before."""
        for (key,), of_engine in rows.group_by("engine", maintain_order=True):
            engine = self._attributes(str(key))
            self._stepped.add(str(key))
            batch = pl.coalesce(pl.col("prefill_requests") + pl.col("decode_requests"), "running")
            steps = of_engine.select(batch=batch, seconds=STEP_TOOK / 1e9)
            self._metrics.record_all(STEP_TIME, steps["seconds"], engine)
            self._metrics.record_all(STEP_BATCH, steps["batch"], engine)
            newest = of_engine.row(-1, named=True)
            for instrument, column in ((KV_BLOCKS, "kv_blocks"), (WAITING, "waiting")):
                self._metrics.set(instrument, newest[column], engine)
            for instrument, column in ((DRAFTED, "drafted"), (ACCEPTED, "accepted")):
                self._add_positions(instrument, of_engine[column], engine)

    def _add_positions(self, instrument: Instrument, counts: pl.Series, engine: Attributes) -> None:
        counted = counts.drop_nulls()
        sums: list[int] = []
        for each in counted:
            sums += [0] * (len(each) - len(sums))
            for place, count in enumerate(each):
                sums[place] += count
        for place, count in enumerate(sums):
            self._metrics.add(instrument, count, (*engine, ("position", place)))

    def _observe_samples(self, rows: pl.DataFrame) -> None:
        """Observe requests that ended, of spans or of a workload's client."""
        ended = rows.filter(
            pl.col("end").is_not_null(),
            pl.col("arrival").is_not_null(),
            pl.col("role").fill_null("sample") == "sample",
        )
        more = pl.when(pl.col("output_tokens") > 1).then(pl.col("output_tokens") - 1)
        times = ended.select(
            "engine",
            ttft=(pl.col("first_token") - pl.col("arrival")) / 1e9,
            tpot=(pl.col("end") - pl.col("first_token")) / 1e9 / more,
            request=(pl.col("end") - pl.col("arrival")) / 1e9,
        )
        for (key,), of_engine in times.group_by("engine"):
            engine = self._attributes(str(key))
            for instrument, name in ((TTFT, "ttft"), (TPOT, "tpot"), (REQUEST, "request")):
                self._metrics.record_all(instrument, of_engine[name], engine)

    def _observe_scrapes(self, rows: pl.DataFrame) -> None:
        from traces.live import numbers

        gauges = {numbers.RUNNING: RUNNING, numbers.WAITING: WAITING, numbers.KV: KV_USAGE}
        counters = {numbers.DRAFTED: DRAFTED, numbers.ACCEPTED_AT: ACCEPTED}
        shown = rows.filter(
            pl.col("name").is_in([*gauges, *counters]),
            pl.col("le").is_null(),
            pl.col("value").is_not_null(),  # else the series is gone
        )
        newest = shown.group_by("engine", "name", "labels", maintain_order=True).last()
        sums: dict[tuple[str, str], float] = {}
        for row in newest.iter_rows(named=True):
            key, name, value = str(row["engine"]), row["name"], row["value"]
            if name in gauges:
                sums[key, name] = sums.get((key, name), 0.0) + value
                continue
            place = (key, name, str(row["labels"]))
            before = self._last.get(place)
            self._last[place] = value
            if before is not None and value > before and key not in self._stepped:
                self._metrics.add(counters[name], value - before, self._attributes(key))
        for (key, name), value in sums.items():
            self._metrics.set(gauges[name], value, self._attributes(key))

    def _observe_power(self, rows: pl.DataFrame) -> None:
        """Observe the joules that devices count themselves."""
        measured = rows.drop_nulls("energy_j")
        newest = measured.group_by("host", "device", "kind", maintain_order=True).last()
        for row in newest.iter_rows(named=True):
            place = ("power", str(row["host"]), str(row["device"]))
            before = self._last.get(place)
            self._last[place] = row["energy_j"]
            if before is not None and row["energy_j"] > before:
                kind = "gpu" if row["kind"] == "nvml" else "cpu"
                named = (("hw.id", row["device"]), ("hw.type", kind), ("host.name", row["host"]))
                self._metrics.add(ENERGY, row["energy_j"] - before, named)

    def _attributes(self, key: str) -> Attributes:
        described = self._described(key)
        named = (
            ()
            if described is None
            else ((GEN_AI_MODEL, described[0]), (GEN_AI_PROVIDER, described[1]))
        )
        return ((ENGINE_KEY, key), *named)


def table_metrics(
    exporter: MetricExporter,
    resource: Mapping[str, str],
    engines: Callable[[], Mapping[str, EngineConfig]],
) -> TableMetrics:
    """Return what observes a recording; `engines` gives its configurations by key."""

    def described(key: str) -> tuple[str, str] | None:
        from traces.live.engine_names import software_of

        engine = engines().get(key)
        return None if engine is None else (engine.model, software_of(engine).lower())

    return TableMetrics(OtlpMetrics(exporter, resource), described)
