"""Spans for the recording alone are as those of OpenTelemetry's SDK."""

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from profiler.runs.telemetry import KeptTracer
from traces.recording.spans import RecordingSpanProcessor

CLIENT = SpanContext(0xA, 0xB, is_remote=True, trace_flags=TraceFlags(1))


def rows(tracer_of, parent):
    kept = []
    recorder = RecordingSpanProcessor(lambda table, row: kept.append((table, dict(row))))
    tracer = tracer_of(recorder)
    context = Context() if parent is None else set_span_in_context(NonRecordingSpan(parent))
    given = {"tts.problem.id": "p", "tts.problem.start": 5, "else": 1}
    problem = tracer.start_span("tts.problem", context=context, attributes=given, start_time=5)
    sample = tracer.start_span(
        "tts.sample",
        context=set_span_in_context(problem),
        attributes={"tts.problem.id": "p", "gen_ai.response.id": "r"},
        start_time=6,
    )
    sample.set_attributes({"gen_ai.usage.output_tokens": 3, "tts.sample.accepted_per_step": (1, 2)})
    recorder.attach(sample, answer="0")
    for end in (8, 9):  # the second changes nothing
        sample.end(end)
    problem.end(10)
    ids = [row["span_id"] for _, row in kept]
    traces = {row["trace_id"] for _, row in kept if "trace_id" in row}
    assert ids == [ids[0], ids[1], ids[1], ids[0]] and ids[0] != ids[1] and len(traces) == 1
    assert parent is None or traces == {f"{parent.trace_id:032x}"}
    assert sample.get_span_context().trace_id == problem.get_span_context().trace_id
    return [(table, row | {"span_id": "", "trace_id": ""}) for table, row in kept]


@pytest.mark.parametrize("parent", [None, CLIENT])
def test_rows_are_those_of_the_sdk(parent):
    def of_sdk(recorder):
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(recorder)
        return provider.get_tracer("t")

    kept = rows(KeptTracer, parent)
    assert kept == rows(of_sdk, parent)
    assert kept[2][1]["accepted_per_step"] == [1, 2] and kept[2][1]["end"] == 8
