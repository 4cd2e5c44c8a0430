"""The wire format read by hand says what protobuf's own parser says, and makes no more of it."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.made.spans import T0, as_protobuf, request, span
from traces.live import otlp_wire
from traces.live.otlp import read_json, read_protobuf
from traces.live.otlp_wire import MOST_FIELDS, MOST_FIELDS_OF_ONE, ODD, TraceRequest

NAMES = frozenset({"a", "gen_ai.usage.prompt_tokens"})
KINDS = {
    "string_value": st.text(max_size=30),
    "int_value": st.integers(-(2**63), 2**63 - 1),
    "double_value": st.floats(allow_nan=False),
    "bool_value": st.booleans(),
    "bytes_value": st.binary(max_size=5),
}
VALUES = st.one_of(*(st.tuples(st.just(kind), what) for kind, what in KINDS.items()), st.none())
ATTRIBUTES = st.lists(
    st.tuples(st.sampled_from([*sorted(NAMES), "b", "c" * 70, ""]), VALUES), max_size=4
)
SPANS = st.lists(
    st.tuples(
        st.binary(min_size=16, max_size=16),
        st.binary(min_size=8, max_size=8),
        st.sampled_from(["", "llm_request", "n\u00e4me"]),
        st.integers(0, 2**64 - 1),
        ATTRIBUTES,
        st.integers(0, 2),
    ),
    max_size=4,
)


def fill(target, attributes):
    for key, value in attributes:
        made = target.add(key=key)
        if value is not None:
            setattr(made.value, *value)


def kept(attributes):
    told = []
    for each in attributes:
        if each.key in NAMES:
            kind = each.value.WhichOneof("value")
            odd = kind is not None and kind not in {"string_value", "int_value", "double_value"}
            told.append((each.key, ODD if odd else kind and getattr(each.value, kind)))
    return told


@pytest.mark.slow
@given(ATTRIBUTES, SPANS)
def test_it_reads_what_protobuf_reads(resource, spans):
    message = ExportTraceServiceRequest()
    part = message.resource_spans.add(schema_url="x")
    fill(part.resource.attributes, resource)
    scope = part.scope_spans.add()
    scope.scope.name = "s"
    for trace, own, name, start, attributes, status in spans:
        made = scope.spans.add(
            trace_id=trace, span_id=own, parent_span_id=own, name=name, kind=3, trace_state="t"
        )
        made.start_time_unix_nano, made.end_time_unix_nano, made.flags = start, start // 2, 7
        made.status.code, made.status.message = status, "m"
        made.events.add(name="e")
        made.links.add(trace_id=trace)
        fill(made.attributes, attributes)
    ((found, raw),) = TraceRequest(message.SerializeToString(), NAMES, 1024)
    assert found == kept(part.resource.attributes)
    for mine, theirs in zip(raw, scope.spans, strict=True):
        assert (mine.trace_id, mine.span_id, mine.parent_id) == (
            theirs.trace_id,
            theirs.span_id,
            theirs.parent_span_id,
        )
        assert (mine.name, mine.failed) == (theirs.name, theirs.status.code == 2)
        assert (mine.start, mine.end) == (theirs.start_time_unix_nano, theirs.end_time_unix_nano)
        assert mine.attributes == kept(theirs.attributes)


@given(st.binary(max_size=80), st.integers(0, 300))
def test_a_damaged_body_is_read_or_refused(more, at):
    body = bytearray(as_protobuf(request(span(1), span(2))))
    body[at : at + len(more)] = more
    try:
        read_protobuf(body)
    except ValueError:
        return


def field(number, body):
    size, length = bytearray(), len(body)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2]) + bytes(size) + bytes([length]) + body


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        b"\x0a\x00" * 200_000,
        field(1, field(2, b"\x12\x00" * 200_000)),
        field(1, field(2, field(2, b"\x4a\x00" * 200_000))),
        field(1, field(2, field(2, b"\x4a\x00" * 900) * 200)),
        field(1, field(2, field(2, field(9, field(1, b"error.type") + b"\x12\x00") * 900) * 20)),
        b"\x0a" + b"\xff" * 4_000_000,
    ],
)
def test_many_small_things_in_a_body_are_refused_before_they_take_memory(monkeypatch, body):
    monkeypatch.setattr(otlp_wire, "MOST_FIELDS", MOST_FIELDS // 10)  # tracing memory is slow
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"more fields|without"):
            read_protobuf(body)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_many_small_things_in_json_are_refused_before_they_take_memory():
    start = b'{"resourceSpans":[{"scopeSpans":[{"spans":['
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more objects"):
            read_json(start + b"{}," * 2_000_000 + b"{}]}]}]}")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000  # of which the body has 12
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_as_many_spans_as_a_collector_sends_at_a_time_are_read():
    body = as_protobuf(request(*[span(n) for n in range(1, 8_193)]))
    assert len(read_protobuf(body).spans) == 8_192 < MOST_FIELDS_OF_ONE


def told(**changes):
    """One span with attributes or fields changed, in both encodings' words."""
    made = span(1)
    for name, item in changes.items():
        if name in made:
            made[name] = item
        else:
            key = name.replace("__", ".")
            made["attributes"] = [each for each in made["attributes"] if each["key"] != key]
            made["attributes"].append({"key": key, "value": item})
    return made


BAD = [
    {"gen_ai__latency__e2e": {"doubleValue": "NaN"}},
    {"gen_ai__latency__e2e": {"doubleValue": "-Infinity"}},
    {"gen_ai__latency__e2e": {"doubleValue": 1e30}},
    {"gen_ai__latency__e2e": {"doubleValue": -1.0}},
    {"gen_ai__latency__e2e": {"stringValue": "2"}},
    {"gen_ai__usage__prompt_tokens": {"intValue": "-1"}},
    {"gen_ai__usage__prompt_tokens": {"intValue": str(2**63 - 1)}},
    {"gen_ai__usage__prompt_tokens": {"intValue": "1_0"}},
    {"gen_ai__usage__prompt_tokens": {"boolValue": True}},
    {"gen_ai__usage__prompt_tokens": {"doubleValue": float(2**63)}},
    {"gen_ai__request__model": {"kvlistValue": {"values": []}}},
    {"gen_ai__request__model": {"intValue": "5"}},
    {"gen_ai__request__model": {"stringValue": "m" * 257}},
    {"gen_ai__request__model": {"stringValue": "a\x1b[2Jb"}},
    {"gen_ai__request__id": {"stringValue": "line\nline"}},
    {"error__type": {"stringValue": "a\u202eb"}},
    {"startTimeUnixNano": "-1"},
    {"startTimeUnixNano": "0"},
    {"startTimeUnixNano": "99999999999999999999999999"},
    {"endTimeUnixNano": str(4_102_444_800_000_000_001)},
    {"endTimeUnixNano": str(T0 - 1)},
    {"spanId": "0" * 16},
    {"spanId": "ab"},
    {"traceId": "z" * 32},
    {"traceId": "a" * 10_000},
    {"parentSpanId": "abcd"},
]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_span_is_counted_and_the_good_beside_it_are_kept(bad):
    found = read_json(json.dumps(request(span(7), told(**bad), span(8))).encode())
    assert [each.span_id for each in found.spans] == [f"{7:016x}", f"{8:016x}"]
    assert (found.bad, found.others) == (1, 0)


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("gen_ai__latency__e2e", float("nan")),
        ("gen_ai__latency__e2e", float("inf")),
        ("gen_ai__latency__time_to_first_token", 1e30),
        ("gen_ai__usage__completion_tokens", -1),
        ("gen_ai__usage__completion_tokens", float(2**63)),
        ("gen_ai__request__model", "\x07"),
        ("gen_ai__request__model", "m" * 100_000),
        ("gen_ai__request__model", 5),
    ],
)
def test_a_bad_span_of_protobuf_too(name, item):
    found = read_protobuf(as_protobuf(request(span(7), span(1, **{name: item}))))
    assert ([each.span_id for each in found.spans], found.bad) == ([f"{7:016x}"], 1)


def test_an_odd_resource_spoils_its_own_spans_only():
    document = request(span(1), service="\x1b[31m")
    document["resourceSpans"] += request(span(2))["resourceSpans"]
    for found in (read_json(json.dumps(document).encode()), read_protobuf(as_protobuf(document))):
        assert ([each.span_id for each in found.spans], found.bad) == ([f"{2:016x}"], 1)


def test_an_attribute_without_a_value_is_absent():
    made = told(gen_ai__request__model={})
    (found,) = read_json(json.dumps(request(made)).encode()).spans
    assert "gen_ai.request.model" not in found.values
