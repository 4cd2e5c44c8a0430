"""The dashboard asks for the metrics that ttscope sends, under their names in Prometheus.

What its panels show of them is what was measured.
"""

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from profiler.probes.otlp_metrics import INSTRUMENTS
from profiler.runs.telemetry import Telemetry
from tests.loopback import taking
from traces.recording.spans import ENGINE_KEY, RecordingSpanProcessor
from traces.recording.tables import TABLES

DASHBOARD = Path(__file__).parent.parent / "docs" / "grafana" / "ttscope.json"


def prometheus_names():
    """Name in Prometheus -> our metric, by the rules of OpenTelemetry's specification.

    Dots become underscores, a unit in words is appended (annotations in braces are not), `1` of a
    gauge is a ratio, a monotonic sum ends in `_total`, a histogram has `_bucket`.
    """
    found = {}
    for each in INSTRUMENTS:
        unit = {"s": "_seconds", "J": "_joules", "1": "_ratio"}.get(each.unit, "")
        end = {"histogram": "_bucket", "counter": "_total", "gauge": ""}[each.kind]
        found[each.name.replace(".", "_") + unit + end] = each.name
    return found


def test_every_panel_asks_for_a_metric_of_ours_and_every_metric_has_a_panel():
    names = prometheus_names()
    dashboard = json.loads(DASHBOARD.read_text())
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            found = re.findall(
                r"(?<!by \()\b(?:tts_engine_(?!key)|gen_ai_server_|hw_(?!id))\w+", target["expr"]
            )
            assert found
            asked |= set(found)
    assert asked == set(names)
    assert ENGINE_KEY.replace(".", "_") in json.dumps(dashboard)


def test_panels_ask_vllms_own_page_where_nothing_comes_over_otlp():
    asked = set(re.findall(r"vllm:\w+", DASHBOARD.read_text()))
    page = (Path(__file__).parent / "data" / "live" / "metrics.txt").read_text()
    assert asked >= {"vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"}
    assert all(name in page or "spec_decode" in name for name in asked)


@pytest.fixture
def collector():
    """A place that takes OTLP/HTTP; gives its URL and the bodies of metrics that came."""
    bodies = []

    with taking("/v1/metrics", lambda body, _: bodies.append(body)) as url:
        yield url, bodies


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
