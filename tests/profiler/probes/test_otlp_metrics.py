"""Metrics over OTLP, against receivers that speak it: HTTP and gRPC."""

import socket
import time
from contextlib import ExitStack, contextmanager

import polars as pl
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from benchmarks.servers.clients import until
from benchmarks.servers.metrics_server import metrics_server
from profiler.attach.attachment import Attachment, attach_to
from profiler.engines.server.access import Access
from profiler.probes.otlp_metrics import (
    ACCEPTED,
    DRAFTED,
    ENERGY,
    KV_USAGE,
    REQUEST,
    RUNNING,
    STEP_BATCH,
    STEP_TIME,
    TPOT,
    TTFT,
    WAITING,
    OtlpMetrics,
    TableMetrics,
    exporter_of,
)
from tests.loopback import collecting, taking
from tests.profiler.watching import watch_while
from traces.errors import UsageError
from traces.live import numbers
from traces.recording.tables import TABLES

MS, S = 10**6, 10**9


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("ENDPOINT", "METRICS_ENDPOINT", "PROTOCOL", "METRICS_PROTOCOL", "HEADERS"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("OTEL_SDK_DISABLED", "OTEL_METRICS_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")


class Received(list):
    """The requests that came."""

    def points(self):
        """Metric -> attributes -> the newest point."""
        found = {}
        for request in self:
            for resource in request.resource_metrics:
                for metric in resource.scope_metrics[0].metrics:
                    kind = metric.WhichOneof("data")
                    for point in getattr(metric, kind).data_points:
                        own = {
                            each.key: getattr(each.value, each.value.WhichOneof("value"))
                            for each in point.attributes
                        }
                        found.setdefault(metric.name, {})[tuple(sorted(own.items()))] = point
        return found

    def only(self, instrument):
        (point,) = self.points()[instrument.name].values()
        return point


@contextmanager
def over_http(monkeypatch):
    received = Received()

    def accept(body, headers):
        assert headers["x-team"] == "a"
        received.append(ExportMetricsServiceRequest.FromString(body))

    with taking("/v1/metrics", accept) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=a")
        yield received


@contextmanager
def over_grpc(monkeypatch):
    received = Received()

    def export(request, metadata):
        assert ("x-team", "a") in metadata
        received.append(request)

    kinds = ExportMetricsServiceRequest, ExportMetricsServiceResponse
    with collecting("metrics", export, *kinds) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=a")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        yield received


def frame(table, *rows):
    return pl.DataFrame([dict.fromkeys(TABLES[table]) | row for row in rows], schema=TABLES[table])


STEPS = frame(
    "steps",
    {"engine": "e", "wall_ns": 10 * MS, "prefill_requests": 1, "decode_requests": 3},
    {"engine": "e", "interval_ns": 30 * MS, "running": 8, "drafted": [4, 4], "accepted": [3, 1]},
    {"engine": "e", "waiting": 5, "drafted": [4], "accepted": [2], "kv_blocks": 7},
)


@pytest.mark.parametrize("collector", [over_http, over_grpc])
def test_what_is_written_arrives(collector, monkeypatch):
    with collector(monkeypatch) as received:
        out = TableMetrics(OtlpMetrics(exporter_of(), {}), lambda key: ("m", "vllm"))
        out.observe("steps", STEPS)
        begun = 1_700_000_000 * S
        row = {"engine": "e", "arrival": begun, "first_token": begun + S // 2}
        row |= {"end": begun + 2 * S, "output_tokens": 16}
        forced = row | {"role": "forced"}
        out.observe("samples", frame("samples", row, row | {"end": None}, forced))
        for joules in (100.0, 130.0, 145.0):
            reading = {"host": "h", "device": "GPU-1", "kind": "nvml", "energy_j": joules}
            out.observe("power", frame("power", reading, reading | {"energy_j": None}))
        for value in (7.0, None, 9.0):  # null: the series is gone
            scrape = {"engine": "e", "labels": "", "value": value}
            names = ("vllm:num_requests_running", numbers.DRAFTED)
            out.observe("scrapes", frame("scrapes", *(scrape | {"name": name} for name in names)))
        out.close()
    time_, batch = received.only(STEP_TIME), received.only(STEP_BATCH)
    assert (time_.count, time_.sum) == (2, pytest.approx(0.04))
    assert sum(time_.bucket_counts) == 2
    for low, high, count in zip(
        [0, *time_.explicit_bounds], [*time_.explicit_bounds, 1e9], time_.bucket_counts, strict=True
    ):
        assert count == (low < 0.01 <= high) + (low < 0.03 <= high)
    assert (batch.count, batch.sum, batch.min, batch.max) == (2, 12, 4, 8)
    attributes = next(iter(received.points()[STEP_TIME.name]))
    assert attributes == (
        ("gen_ai.provider.name", "vllm"),
        ("gen_ai.request.model", "m"),
        ("tts.engine.key", "e"),
    )
    assert received.only(WAITING).as_double == 5
    places = {
        name: {dict(key)["position"]: point.as_int for key, point in points.items()}
        for name, points in received.points().items()
        if "speculative" in name
    }
    assert places == {DRAFTED.name: {0: 8, 1: 4}, ACCEPTED.name: {0: 5, 1: 1}}
    assert received.only(TTFT).sum == pytest.approx(0.5)
    assert (received.only(REQUEST).count, received.only(REQUEST).sum) == (1, pytest.approx(2))
    assert received.only(TPOT).sum == pytest.approx(0.1)
    assert received.only(ENERGY).as_double == 45
    assert received.only(RUNNING).as_double == 9


def test_attach_sends_what_it_reads_and_the_recording_is_as_without(monkeypatch, tmp_path):
    with over_http(monkeypatch) as received, metrics_server() as server:
        server.gauges = {"vllm:num_requests_running": 3, "vllm:num_requests_waiting": 2}
        with ExitStack() as stack:
            wanted = Attachment(accesses=(Access.of(server.url),), period_s=0.1)
            attached = attach_to(stack, wanted, may_open=lambda _: False, say=print)
            asked = len(server.asked)

            def polled():
                until(lambda: len(server.asked) > asked + 3)

            watch_while(polled, attached.deployment, tmp_path / "r", probes=attached.probes)
        (key,) = attached.deployment.engines
    assert received.only(RUNNING).as_double == 3
    assert received.only(WAITING).as_double == 2
    assert dict(next(iter(received.points()[RUNNING.name])))["tts.engine.key"] == key
    assert KV_USAGE.name in received.points()


@pytest.mark.parametrize("how", ["nobody listens", "never answers"])
def test_a_dead_collector_costs_nothing(how, monkeypatch, caplog):
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if how == "never answers":
            dead.listen(8)
        url = f"http://127.0.0.1:{dead.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        out = OtlpMetrics(exporter_of(), {})
        begun = time.thread_time()
        for _ in range(5_000):
            out.record(STEP_TIME, 0.01)
        took = (time.thread_time() - begun) / 5_000
        time.sleep(0.3)  # some tries
        ended = time.monotonic()
        out.close(hurry=True)
        assert time.monotonic() - ended < 20
    assert took < 200e-6  # a bisection and additions, on a busy machine
    assert len(out._series) == 1
    assert sum(len(each.message) > 0 for each in caplog.records) < 5


def test_series_are_bounded(monkeypatch):
    monkeypatch.setattr("profiler.probes.otlp_metrics._MOST_SERIES", 10)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    out = OtlpMetrics(exporter_of(), {})
    for number in range(100):
        out.add(DRAFTED, 1, (("position", number),))
    assert len(out._series) == 11
    assert out._series[DRAFTED, ()] == [90]
    out.close(hurry=True)


def test_what_the_environment_asks_for(monkeypatch):
    assert exporter_of() is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://127.0.0.1:9/v1/metrics")
    assert exporter_of() is not None
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    assert exporter_of() is None
    monkeypatch.delenv("OTEL_METRICS_EXPORTER")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert exporter_of() is None
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(UsageError, match="http/protobuf or grpc"):
        exporter_of()
