"""OTLP trace requests, protobuf or JSON, as the few numbers that are kept of a GenAI span.

Attributes are read by name from a fixed list. Everything else, prompts and completions of other
instrumentations among them, is dropped while reading. Protocol: opentelemetry.io/docs/specs/otlp.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

VLLM_SPAN = "llm_request"
LONGEST_TEXT = 256
_NUMBERS = frozenset(
    {
        *(f"gen_ai.request.{name}" for name in ("n", "max_tokens", "temperature", "top_p")),
        *(f"gen_ai.usage.{kind}_tokens" for kind in ("prompt", "completion", "input", "output")),
        "gen_ai.usage.cache_read.input_tokens",
        *(
            f"gen_ai.latency.{name}"
            for name in (
                "time_to_first_token",
                "e2e",
                "time_in_queue",
                "time_in_model_prefill",
                "time_in_model_decode",
                "time_in_model_inference",
            )
        ),
    }
)
_TEXTS = frozenset(
    {
        "gen_ai.request.id",
        "gen_ai.response.id",
        "gen_ai.request.model",
        "gen_ai.operation.name",
        "error.type",
    }
)
_RESOURCE = frozenset({"service.name", "service.instance.id", "vllm.process_id"})
_OPERATIONS = frozenset({"chat", "text_completion", "generate_content"})


@dataclass(frozen=True)
class GenSpan:
    """A request to a model: `values` has the attributes that are kept; times in unix ns.

    `from_engine` says that vLLM itself made it. `parent_id` is empty for a root.
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
    """What a request brought: spans of requests to models, and how many others were left."""

    spans: list[GenSpan] = field(default_factory=list)
    others: int = 0


def read_protobuf(body: bytes) -> Received:
    """Read an ExportTraceServiceRequest. Raises ValueError where it is none."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
    )

    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(body)
    except (DecodeError, UnicodeDecodeError):
        raise ValueError("not an ExportTraceServiceRequest") from None
    found = Received()
    for part in request.resource_spans:
        resource = _resource(_proto_values(part.resource.attributes))
        for scope in part.scope_spans:
            for span in scope.spans:
                _take(
                    found,
                    span.name,
                    ids=(span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()),
                    times=(span.start_time_unix_nano, span.end_time_unix_nano),
                    attributes=_proto_values(span.attributes),
                    resource=resource,
                    failed=span.status.code == 2,
                )
    return found


def _proto_values(attributes: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for each in attributes:
        kind = each.value.WhichOneof("value")
        if kind in {"string_value", "int_value", "double_value"}:
            yield each.key, getattr(each.value, kind)


class _Value(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    int_value: str | int | None = None
    double_value: float | str | None = None


class _Attribute(msgspec.Struct):
    key: str = ""
    value: _Value = msgspec.field(default_factory=_Value)


class _Status(msgspec.Struct):
    code: int | str = 0


class _Span(msgspec.Struct, rename="camel"):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    name: str = ""
    start_time_unix_nano: str | int = 0
    end_time_unix_nano: str | int = 0
    attributes: list[_Attribute] = []
    status: _Status = msgspec.field(default_factory=_Status)


class _Scope(msgspec.Struct):
    spans: list[_Span] = []


class _Resource(msgspec.Struct):
    attributes: list[_Attribute] = []


class _ResourceSpans(msgspec.Struct, rename="camel"):
    resource: _Resource = msgspec.field(default_factory=_Resource)
    scope_spans: list[_Scope] = []


class _Request(msgspec.Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] = []


_DECODER = msgspec.json.Decoder(_Request)


def read_json(body: bytes) -> Received:
    """Read the JSON form: ids in hex, as OTLP has them, or base64, as protobuf's own JSON has.

    Raises ValueError where it is none.
    """
    try:
        request = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("not an ExportTraceServiceRequest in JSON") from None
    found = Received()
    for part in request.resource_spans:
        resource = _resource(_json_values(part.resource.attributes))
        for scope in part.scope_spans:
            for span in scope.spans:
                ids = (_id(span.trace_id, 16), _id(span.span_id, 8), _id(span.parent_span_id, 8))
                _take(
                    found,
                    span.name,
                    ids=ids,
                    times=(_int(span.start_time_unix_nano), _int(span.end_time_unix_nano)),
                    attributes=_json_values(span.attributes),
                    resource=resource,
                    failed=span.status.code in {2, "STATUS_CODE_ERROR"},
                )
    return found


def _json_values(attributes: Iterable[_Attribute]) -> Iterator[tuple[str, Any]]:
    for each in attributes:
        value = each.value
        if value.string_value is not None:
            yield each.key, value.string_value
        elif value.int_value is not None:
            yield each.key, _int(value.int_value)
        elif value.double_value is not None:
            yield each.key, value.double_value


def _int(value: str | int) -> int:
    number = int(value)
    if not 0 <= number < 2**63:
        raise ValueError("a number that is out of range")
    return number


def _id(text: str, size: int) -> str:
    """Return an id in hex; empty when absent."""
    if len(text) == 2 * size:
        return bytes.fromhex(text).hex()
    if not text:
        return ""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("an id is neither hex nor base64") from None
    if len(raw) != size:
        raise ValueError("an id of the wrong length")
    return raw.hex()


def _resource(attributes: Iterable[tuple[str, Any]]) -> tuple[tuple[str, str], ...]:
    kept = ((k, str(v)[:LONGEST_TEXT]) for k, v in attributes if k in _RESOURCE)
    return tuple(sorted(kept))


def _take(
    found: Received,
    name: str,
    *,
    ids: tuple[str, str, str],
    times: tuple[int, int],
    attributes: Iterable[tuple[str, Any]],
    resource: tuple[tuple[str, str], ...],
    failed: bool,
) -> None:
    trace_id, span_id, parent_id = ids
    start, end = times
    values: dict[str, float | str] = {}
    for key, value in attributes:
        if key in _NUMBERS and isinstance(value, int | float):
            values[key] = value
        elif key in _TEXTS and isinstance(value, str):
            values[key] = value[:LONGEST_TEXT]
    engine = name == VLLM_SPAN
    known = engine or values.get("gen_ai.operation.name") in _OPERATIONS
    if not known or not trace_id or not span_id or not 0 < start <= end < 2**63:
        found.others += 1
        return
    found.spans.append(
        GenSpan(trace_id, span_id, parent_id, start, end, engine, values, resource, failed)
    )
