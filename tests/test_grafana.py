"""The dashboard asks for the metrics that ttscope sends, under their names in Prometheus."""

import json
import re
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from profiler.telemetry import Telemetry
from traces import attributes

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
