"""OTLP trace requests, protobuf or JSON, as the few numbers that are kept of a GenAI span.

Attributes are read by name from a fixed list. Everything else, prompts and completions of other
instrumentations among them, is dropped while reading. What is kept is checked here, so that
nothing later meets a number out of range or a name that a terminal should not see. Protocol:
opentelemetry.io/docs/specs/otlp.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from traces.live.otlp_wire import ODD, RawSpan, TraceRequest, Value
from traces.recording.tables import LATEST_NS, MOST_TOKENS

VLLM_SPAN = "llm_request"
LONGEST_TEXT = 256
MOST_SECONDS = 1e7  # of a request: four months
MOST_JSON_OBJECTS = 200_000  # in one body
_TOKENS = frozenset(
    {
        *(f"gen_ai.usage.{kind}_tokens" for kind in ("prompt", "completion", "input", "output")),
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cached_tokens",  # SGLang's name of it
    }
)
_SECONDS = frozenset(
    f"gen_ai.latency.{name}"
    for name in ("time_to_first_token", "e2e", "time_in_model_prefill", "time_in_queue")
)
_TEXTS = frozenset(
    {
        "gen_ai.request.id",
        "gen_ai.response.id",
        "gen_ai.request.model",
        "gen_ai.response.model",
        "gen_ai.operation.name",
        "gen_ai.conversation.id",
        "error.type",
    }
)
RESOURCE = frozenset({"service.name", "service.instance.id", "vllm.process_id"})
_NAMES = _TOKENS | _SECONDS | _TEXTS | RESOURCE
_OPERATIONS = frozenset({"chat", "text_completion", "generate_content"})
_STATUS_ERROR = (2, "STATUS_CODE_ERROR")


@dataclass(frozen=True, slots=True)
class GenSpan:
    """A request to a model: `values` has the attributes that are kept; times in unix ns.

    `from_engine` says that vLLM or SGLang itself made it. `parent_id` is empty for a root.
    """

    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    from_engine: bool
    values: Mapping[str, float | str]
    resource: tuple[tuple[str, str], ...]
    failed: bool = False


@dataclass
class Received:
    """Spans of requests, how many there were of `others`, and how many of requests were `bad`."""

    spans: list[GenSpan] = field(default_factory=list)
    others: int = 0
    bad: int = 0


def read_protobuf(body: bytes | bytearray) -> Received:
    """Read an ExportTraceServiceRequest. Raises ValueError where it is none."""
    received = Received()
    for attributes, spans in TraceRequest(body, _NAMES, 4 * LONGEST_TEXT):
        resource = _resource(attributes)
        for span in spans:
            _take(received, span, resource)
    return received


_ABSENT = msgspec.Raw()


class _Value(msgspec.Struct, rename="camel", gc=False):
    string_value: str | None = None
    int_value: str | int | None = None
    double_value: float | str | None = None
    bool_value: msgspec.Raw = _ABSENT
    array_value: msgspec.Raw = _ABSENT
    kvlist_value: msgspec.Raw = _ABSENT
    bytes_value: msgspec.Raw = _ABSENT


class _Attribute(msgspec.Struct, gc=False):
    key: str = ""
    value: _Value | None = None


class _Status(msgspec.Struct, gc=False):
    code: int | str = 0


class _Span(msgspec.Struct, rename="camel", gc=False):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    name: str = ""
    start_time_unix_nano: str | int = 0
    end_time_unix_nano: str | int = 0
    attributes: list[_Attribute] | None = None
    status: _Status | None = None


class _Scope(msgspec.Struct, gc=False):
    spans: list[_Span] | None = None


class _Resource(msgspec.Struct, gc=False):
    attributes: list[_Attribute] | None = None


class _ResourceSpans(msgspec.Struct, rename="camel", gc=False):
    resource: _Resource | None = None
    scope_spans: list[_Scope] | None = None


class _Request(msgspec.Struct, rename="camel", gc=False):
    resource_spans: list[_ResourceSpans] | None = None


_DECODER = msgspec.json.Decoder(_Request)


def read_json(body: bytes | bytearray) -> Received:
    """Read the JSON form: ids in hex, as OTLP has them, or base64, as protobuf's own JSON has.

    Raises ValueError where it is none, or has more than `MOST_JSON_OBJECTS` objects.
    """
    if body.count(b"{") > MOST_JSON_OBJECTS:
        raise ValueError("more objects than are read")
    try:
        request = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("not an ExportTraceServiceRequest in JSON") from None
    received = Received()
    for part in request.resource_spans or ():
        attributes = None if part.resource is None else part.resource.attributes
        resource = _resource(_json_values(attributes))
        for scope in part.scope_spans or ():
            for span in scope.spans or ():
                raw = RawSpan(
                    trace_id=_id(span.trace_id, 16),
                    span_id=_id(span.span_id, 8),
                    parent_id=_id(span.parent_span_id, 8),
                    name=span.name,
                    start=_int(span.start_time_unix_nano) or 0,
                    end=_int(span.end_time_unix_nano) or 0,
                    failed=span.status is not None and span.status.code in _STATUS_ERROR,
                    attributes=list(_json_values(span.attributes)),
                )
                _take(received, raw, resource)
    return received


def _json_values(attributes: Iterable[_Attribute] | None) -> Iterator[tuple[str, Value]]:
    for each in attributes or ():
        if each.key in _NAMES and each.value is not None:
            yield each.key, _json_value(each.value)


def _json_value(value: _Value) -> Value:
    if value.string_value is not None:
        return value.string_value
    if value.int_value is not None:
        number = _int(value.int_value)
        return ODD if number is None else number
    if isinstance(value.double_value, str):
        try:
            return float(value.double_value)
        except ValueError:
            return ODD
    if value.double_value is not None:
        return value.double_value
    others = (value.bool_value, value.array_value, value.kvlist_value, value.bytes_value)
    return None if all(bytes(each) in {b"", b"null"} for each in others) else ODD


def _int(value: str | int) -> int | None:
    if isinstance(value, int):
        return value
    digits = value.removeprefix("-")
    return int(value) if len(digits) < 20 and digits.isascii() and digits.isdecimal() else None


def _id(text: str, size: int) -> bytes:
    """Return an id, empty where it is absent or none."""
    if len(text) > 4 * size:
        return b"odd"
    try:
        if len(text) == 2 * size:
            return bytes.fromhex(text)
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b"odd"


class _Bad(Exception):
    """A span of a request to a model that cannot be kept."""


def _resource(attributes: Iterable[tuple[str, Value]]) -> tuple[tuple[str, str], ...] | None:
    """Return what is kept of a resource; None where a name in it is odd."""
    kept = {}
    try:
        for key, value in attributes:
            if key in RESOURCE and value is not None:
                kept[key] = _text(str(value) if isinstance(value, int) else value)
    except _Bad:
        return None
    return tuple(sorted(kept.items()))


def _text(value: Value) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or not value.isprintable():
        raise _Bad
    return value


def _number(value: Value, most: float) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= most:  # nor is NaN between
        raise _Bad
    return value


def _values(attributes: Iterable[tuple[str, Value]]) -> dict[str, float | str]:
    values: dict[str, float | str] = {}
    for key, value in attributes:
        if value is None:
            continue
        if key in _TOKENS:
            values[key] = _number(value, MOST_TOKENS)
        elif key in _SECONDS:
            values[key] = _number(value, MOST_SECONDS)
        elif key in _TEXTS:
            values[key] = _text(value)
    return values


def _is_request(span: RawSpan) -> bool:
    """Whether a span is of a request to a model."""
    operations = (value for key, value in span.attributes if key == "gen_ai.operation.name")
    return _is_engines(span) or any(value in _OPERATIONS for value in operations)


def _is_engines(span: RawSpan) -> bool:
    """Whether an engine made a span: vLLM's by its name, SGLang's by what no client tells.

    SGLang's root span is called after its request, and has this at its end; the slices below it
    (tokenize, prefill, decode) have no tokens and are left out.
    """
    return span.name == VLLM_SPAN or any(key == "gen_ai.latency.e2e" for key, _ in span.attributes)


def _take(found: Received, span: RawSpan, resource: tuple[tuple[str, str], ...] | None) -> None:
    if not _is_request(span):
        found.others += 1
        return
    try:
        values = _values(span.attributes)
        if span.name != VLLM_SPAN:  # SGLang's begins before the queue
            values.pop("gen_ai.latency.time_in_model_prefill", None)
    except _Bad:
        found.bad += 1
        return
    sizes = len(span.trace_id) == 16 and len(span.span_id) == 8 and len(span.parent_id) in {0, 8}
    named = sizes and any(span.trace_id) and any(span.span_id)
    timed = 0 < span.start <= span.end <= LATEST_NS
    if not named or not timed or resource is None:
        found.bad += 1
        return
    found.spans.append(
        GenSpan(
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_id.hex() if any(span.parent_id) else "",
            start=span.start,
            end=span.end,
            from_engine=_is_engines(span),
            values=values,
            resource=resource,
            failed=span.failed,
        )
    )


def protobuf_answer(found: Received) -> bytes:
    """Return an ExportTraceServiceResponse: how many spans were refused, empty where none were."""
    if not found.bad:
        return b""
    count, rejected = found.bad, bytearray(b"\x08")  # partial_success.rejected_spans
    while count > 127:
        rejected.append(count & 127 | 128)
        count >>= 7
    rejected.append(count)
    return b"\x0a" + bytes([len(rejected)]) + bytes(rejected)


def json_answer(found: Received) -> bytes:
    """Return the same in JSON."""
    return b'{"partialSuccess":{"rejectedSpans":"%d"}}' % found.bad if found.bad else b"{}"
