"""OTLP trace requests in protobuf's wire format, read a field at a time.

A parser makes an object of everything that a body has, and two bytes are enough for one: a few MB
became gigabytes. Here what nobody reads is stepped over, so that memory is that of the body and of
what is kept. Fields: opentelemetry/proto/trace/v1/trace.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST_FIELDS = 700_000  # and messages, of one body
MOST_FIELDS_OF_ONE = 20_000  # in one of its messages, so spans in one scope
_LONGEST_KEY = 64
_DOUBLE = struct.Struct("<d")
_FIXED = struct.Struct("<Q")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # kinds of fields

# A field: eight times its number and its kind; where its bytes begin and end, or its value and 0.
Field = tuple[int, int, int]


class OddValue:
    """An attribute's value that is neither a number nor a text that can be kept."""


ODD = OddValue()
Value = float | str | OddValue | None


@dataclass(slots=True)
class RawSpan:
    """A span as it was sent; `attributes` has those that were asked for."""

    trace_id: bytes = b""
    span_id: bytes = b""
    parent_id: bytes = b""
    name: str = ""
    start: int = 0
    end: int = 0
    failed: bool = False
    attributes: list[tuple[str, Value]] = field(default_factory=list)


class TraceRequest:
    """Reads the spans of an ExportTraceServiceRequest.

    `names` are the attributes that are read, `longest` the bytes of a text. Iterating gives the
    attributes of a resource and its spans, a span at a time. Raises ValueError where `body` is no
    such request, or has more fields than `MOST_FIELDS`.
    """

    def __init__(self, body: bytes | bytearray, names: frozenset[str], longest: int) -> None:
        self._body, self._longest = body, longest
        self._names = {name.encode(): name for name in names}
        self._left = MOST_FIELDS

    def __iter__(self) -> Iterator[tuple[list[tuple[str, Value]], Iterator[RawSpan]]]:
        for begin, end in self._inside(1, 0, len(self._body)):
            resource: list[tuple[str, Value]] = []  # which may come last
            for at, stop in self._inside(1, begin, end):
                for first, last in self._inside(1, at, stop):
                    self._attribute(resource, first, last)
            yield resource, self._spans(begin, end)

    def _spans(self, begin: int, end: int) -> Iterator[RawSpan]:
        for at, stop in self._inside(2, begin, end):
            for first, last in self._inside(2, at, stop):
                yield self._span(first, last)

    def _span(self, begin: int, end: int) -> RawSpan:
        body, span = self._body, RawSpan()
        for tag, first, last in self._fields(begin, end):
            if tag == 9 << 3 | _BYTES:
                self._attribute(span.attributes, first, last)
            elif tag == 1 << 3 | _BYTES:
                span.trace_id = bytes(body[first : min(last, first + 17)])
            elif tag == 2 << 3 | _BYTES:
                span.span_id = bytes(body[first : min(last, first + 9)])
            elif tag == 4 << 3 | _BYTES:
                span.parent_id = bytes(body[first : min(last, first + 9)])
            elif tag == 5 << 3 | _BYTES:
                span.name = body[first : min(last, first + 64)].decode(errors="replace")
            elif tag == 7 << 3 | _FIXED64:
                span.start = first
            elif tag == 8 << 3 | _FIXED64:
                span.end = first
            elif tag == 15 << 3 | _BYTES:
                for inner, code, _ in self._fields(first, last):
                    if inner == 3 << 3 | _VARINT:
                        span.failed = code == 2
        return span

    def _attribute(self, found: list[tuple[str, Value]], begin: int, end: int) -> None:
        body = self._body
        if end - begin > 2 and body[begin] == 1 << 3 | _BYTES and body[begin + 1] <= _LONGEST_KEY:
            key = bytes(body[begin + 2 : begin + 2 + body[begin + 1]])  # it comes first, as a rule
            if key not in self._names:
                return
        name, value = None, (0, 0)
        for tag, first, last in self._fields(begin, end):
            if tag == 1 << 3 | _BYTES:
                if last - first > _LONGEST_KEY:
                    return
                name = self._names.get(bytes(body[first:last]))
                if name is None:
                    return
            elif tag == 2 << 3 | _BYTES:
                value = first, last
        if name is not None:
            found.append((name, self._value(*value)))

    def _value(self, begin: int, end: int) -> Value:
        value: Value = None
        for tag, first, last in self._fields(begin, end):
            if tag == 1 << 3 | _BYTES:
                value = self._text(first, last)
            elif tag == 3 << 3 | _VARINT:
                value = first - (1 << 64) if first >> 63 else first
            elif tag == 4 << 3 | _FIXED64:
                value = float(_DOUBLE.unpack(_FIXED.pack(first))[0])
            else:
                value = ODD
        return value

    def _text(self, begin: int, end: int) -> Value:
        if end - begin > self._longest:
            return ODD
        try:
            return self._body[begin:end].decode()
        except UnicodeDecodeError:
            return ODD

    def _inside(self, number: int, begin: int, end: int) -> list[tuple[int, int]]:
        """Return where the messages of this number lie."""
        wanted = number << 3 | _BYTES
        return [(first, last) for tag, first, last in self._fields(begin, end) if tag == wanted]

    def _fields(self, at: int, end: int) -> list[Field]:
        """Return the fields of a message. Raises ValueError where it is none."""
        data, fields = self._body, list[Field]()
        most = min(self._left, MOST_FIELDS_OF_ONE)
        while at < end:
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = _varint(data, at - 1, end)
            kind, first, last = tag & 7, 0, 0
            if kind == _BYTES and at < end:
                size = data[at]
                at += 1
                if size > 127:
                    size, at = _varint(data, at - 1, end)
                first = at
                last = at = at + size
            elif kind == _VARINT:
                first, at = _varint(data, at, end)
            elif kind == _FIXED64 and at + 8 <= end:
                first = _FIXED.unpack_from(data, at)[0]
                at += 8
            elif kind == _FIXED32:
                at += 4
            else:
                raise ValueError("a field of no known kind, or one that ends early")
            if at > end or tag < 8:
                raise ValueError("a field that ends early, or without a number")
            fields.append((tag, first, last))
            if len(fields) > most:
                raise ValueError("more fields than are read")
        self._left -= len(fields) + 1
        return fields


def _varint(data: bytes | bytearray, at: int, end: int) -> tuple[int, int]:
    """Return a number and where it ends. Raises ValueError where it does not by `end`."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & ((1 << 64) - 1), at
        shift += 7
    raise ValueError("a number without an end")
