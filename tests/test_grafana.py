"""The dashboard asks for the metrics that ttscope sends, under their names in Prometheus.

What its panels show of them is what was measured.
"""

import gzip
import http.server
import json
import re
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from profiler.runs.telemetry import Telemetry
from traces.recording import spans as attributes
from traces.recording.spans import RecordingSpanProcessor
from traces.recording.tables import TABLES

DASHBOARD = Path(__file__).parent.parent / "docs" / "grafana" / "ttscope.json"


def prometheus_names():
    """Name in Prometheus -> our metric, by the rules of OpenTelemetry's specification.

    Dots become underscores, a unit in words is appended (annotations in braces are not), a
    monotonic sum ends in `_total`, a histogram has `_bucket`.
    """
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    telemetry = Telemetry.__new__(Telemetry)
    telemetry._make_instruments(provider)
    telemetry._step_time.record(1.0)
    telemetry._batch.record(1)
    telemetry._kv.set(1)
    telemetry._accepted.add(1)
    found = {}
    (resource,) = reader.get_metrics_data().resource_metrics
    for metric in resource.scope_metrics[0].metrics:
        kind = type(metric.data).__name__
        unit = {"s": "_seconds"}.get(metric.unit, "")
        end = {"Histogram": "_bucket", "Sum": "_total", "Gauge": ""}[kind]
        found[metric.name.replace(".", "_") + unit + end] = metric.name
    provider.shutdown()
    return found


def test_every_panel_asks_for_a_metric_of_ours_and_every_metric_has_a_panel():
    names = prometheus_names()
    dashboard = json.loads(DASHBOARD.read_text())
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            (name,) = re.findall(r"tts_engine_(?!key)\w+", target["expr"])
            asked.add(name)
    assert asked == set(names)
    ours = {value for key, value in vars(attributes).items() if key.startswith("METRIC_")}
    assert ours == set(names.values())
    label = attributes.ENGINE_KEY.replace(".", "_")
    assert label in json.dumps(dashboard)


@pytest.fixture
def collector():
    """A place that takes OTLP/HTTP; gives its URL and the bodies of metrics that came."""
    bodies = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/metrics":
                bodies.append(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def shown_in_grafana(bodies, panel):
    """Quantile -> what the panel of that title shows, from the histogram that came over OTLP.

    As Prometheus' histogram_quantile does: linear within a bucket, whose lower bound is 0 where
    it is the first and its upper bound is above 0; the last finite bound above that.
    """
    dashboard = json.loads(DASHBOARD.read_text())
    (found,) = (each for each in dashboard["panels"] if each["title"] == panel)
    request = ExportMetricsServiceRequest.FromString(bodies[-1])
    metrics = {m.name: m for m in request.resource_metrics[0].scope_metrics[0].metrics}
    shown = {}
    for target in found["targets"]:
        q, name = re.match(
            r"histogram_quantile\((.*?),.*?(tts_\w+_bucket)", target["expr"]
        ).groups()
        (point,) = metrics[prometheus_names()[name]].histogram.data_points
        bounds, counts = list(point.explicit_bounds), np.cumsum(point.bucket_counts)
        rank = float(q) * counts[-1]
        place = int(np.searchsorted(counts, rank))
        if place == len(bounds):
            shown[float(q)] = bounds[-1]
            continue
        low = bounds[place - 1] if place else min(0.0, bounds[0])
        before = counts[place - 1] if place else 0
        share = (rank - before) / (counts[place] - before)
        shown[float(q)] = low + share * (bounds[place] - low)
    assert set(shown) == {0.5, 0.95}
    return shown


RNG = np.random.default_rng(0)
STEPS = {  # seconds of steps, and requests in them
    "all alike": (np.full(1248, 0.078), np.full(1248, 8)),
    "one request on a small model": (RNG.gamma(40, 0.0004 / 40, 500), np.full(500, 1)),
    "none": (np.full(100, 0.003), np.zeros(100)),
    "a GPU": (RNG.lognormal(np.log(0.012), 0.4, 5000), RNG.integers(1, 257, 5000)),
    "few": (RNG.lognormal(np.log(0.03), 1.0, 1000), RNG.integers(1, 12, 1000)),
    "long prefills": (RNG.lognormal(np.log(6), 0.5, 200), RNG.integers(500, 4000, 200)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_panel_shows_what_was_measured(collector, name):
    """A quantile from the histogram that is exported is at most a fifth from the true one."""
    url, bodies = collector
    seconds, batch = STEPS[name]
    steps = pl.DataFrame(
        {
            "engine": "e",
            "wall_ns": (seconds * 1e9).astype(np.int64),
            "running": batch.astype(np.int64),
            "kv_blocks": 3,
        }
    )
    empty = pl.DataFrame(schema=TABLES["steps"])
    telemetry = Telemetry(RecordingSpanProcessor(lambda *_: None), resource={}, otlp=url)
    telemetry.observe_steps(pl.concat([empty, steps], how="diagonal_relaxed"))
    telemetry.close()
    for panel, measured in (("Step time", seconds), ("Requests running in a step", batch)):
        for q, shown in shown_in_grafana(bodies, panel).items():
            true = np.quantile(measured, q, method="inverted_cdf")
            assert shown == pytest.approx(true, rel=0.2), (panel, q)


def test_units_of_the_panels_are_those_of_the_metrics():
    dashboard = json.loads(DASHBOARD.read_text())
    units = {p["title"]: p["fieldConfig"]["defaults"]["unit"] for p in dashboard["panels"]}
    names = {p["title"]: p["targets"][0]["expr"] for p in dashboard["panels"]}
    for title, asked in names.items():
        assert (units[title] == "s") == ("_seconds_" in asked)
