"""The events of a PyTorch profiler trace, in batches, in bounded memory.

The file is inflated a piece at a time, cut between two events, and the events before the cut are
decoded together. A wrong cut cannot pass: what it leaves is not JSON, and the decoder says so.
Where a batch does not decode, its events are decoded one by one and those that cannot be read
are counted, so that a damaged or unfinished file gives everything that is sound in it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from traces.errors import TraceError
from traces.files import LINE_VALUES, Inflated, check_values

BATCH_BYTES = 3 << 16  # small enough for the batch and its events to stay in the cache
LIMIT_BYTES = 16 << 30
_HEAD_BYTES = 32 << 20  # of metadata before or after the events, or of a single event
_BETWEEN = re.compile(rb"\}\s*,\s*(?=\{)")
_ARRAY = re.compile(rb'"traceEvents"\s*:\s*\[')
_AFTER_ARRAY = re.compile(rb'\s*(,\s*"|\}|$)')
_ARRAY_END = re.compile(rb'[\s,]*\](?=\s*(?:,\s*"|\}|$))')
_TO_NEXT = re.compile(rb"([^{]*)")
_TRAILING = re.compile(r"trailing characters \(byte (\d+)\)")
_OPEN_BYTES = 1 << 20  # of an event whose end has not come yet
_PARTS = 12  # pieces to join before an event counts as unreadable


class Arguments(msgspec.Struct, gc=False):
    """What is used of an event's `args`, as it is written: any JSON value, None when absent."""

    correlation: Any = None
    stream: Any = None
    device: Any = None
    bytes: Any = None
    dtype: Any = None
    external: Any = msgspec.field(default=None, name="External id")
    collective: Any = msgspec.field(default=None, name="Collective name")
    elements_in: Any = msgspec.field(default=None, name="In msg nelems")
    elements_out: Any = msgspec.field(default=None, name="Out msg nelems")
    group_size: Any = msgspec.field(default=None, name="Group size")
    shapes: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input Dims")
    types: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input type")


class Event(msgspec.Struct, gc=False):
    """One event of the trace; `ts` and `dur` in microseconds."""

    ph: str = ""
    cat: str | None = None
    name: str = ""
    pid: int | str | None = None
    tid: int | str | None = None
    ts: float | None = None
    dur: float | None = None
    args: Arguments | None = None


class ExactEvent(Event, gc=False):
    """The same with `ts` as it is written: a float holds nanoseconds only up to 2**43 us."""

    ts: msgspec.Raw = msgspec.Raw(b"")  # type: ignore[assignment]


_EXACT_FROM_US = float(2**43)
_MANY = {kind: msgspec.json.Decoder(list[kind]) for kind in (Event, ExactEvent)}  # type: ignore[valid-type]
_ONE = {kind: msgspec.json.Decoder(kind) for kind in (Event, ExactEvent)}


class TraceStream:
    """Iterate once over the batches of a trace's events.

    Batches are lists of `Event`, or of `ExactEvent` where the time stamps are too large for a
    float. Afterwards `metadata` has the keys of the document beside its events, `skipped` counts
    what could not be read by reason, `bytes_read` the bytes of JSON, and `cut` says in a few
    words why the file ended early, None when it did not.

    Raises TraceError while iterating when the file cannot be opened, is empty, is no trace, or
    holds more than `limit_bytes` of JSON.
    """

    def __init__(self, path: str | Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.path = Path(path)
        self.limit_bytes = limit_bytes
        self.metadata: dict[str, Any] = {}
        self.skipped: Counter[str] = Counter()
        self.bytes_read = 0
        self.cut: str | None = None
        self._kind: type[Event] | type[ExactEvent] = Event

    def __iter__(self) -> Iterator[list[Event] | list[ExactEvent]]:
        pieces = self._inflated()
        buffer = self._find_array(pieces)
        searched = 0  # no event ends before here
        for piece in pieces:
            buffer += piece
            if len(buffer) < BATCH_BYTES:
                continue
            end = _last_boundary(buffer, max(searched - 100, 0))
            if end is None:
                searched = len(buffer)
                self._check_head(searched)
                continue
            events, rest, used = self._decode(buffer[:end])
            if events:
                yield events
            if rest is not None:
                self._read_tail(rest + buffer[end:], pieces)
                return
            start = buffer.index(b"{", end) if used == end else used
            buffer, searched = buffer[start:], 0
        yield from self._finish(buffer)

    def _inflated(self) -> Iterator[bytes]:
        """Yield the JSON a piece at a time; stop where the file is damaged."""
        pieces = Inflated(
            self.path,
            limit_bytes=self.limit_bytes,
            piece_bytes=BATCH_BYTES,
            refuse=TraceError,
            what="JSON",
            remedy="Profile fewer steps, or raise the limit",
        )
        for piece in pieces:
            self.bytes_read = pieces.bytes_read
            yield piece
        self.cut = pieces.cut

    def _find_array(self, pieces: Iterator[bytes]) -> bytes:
        """Return what was read behind the array's bracket; keep the metadata before it."""
        head = bytearray()
        for piece in pieces:
            if not head.strip():
                head.clear()
            searched = max(len(head) - 100, 0)
            head += piece
            start = head.lstrip()[:1] if searched == 0 else b"{"
            if start == b"[":
                return bytes(head.lstrip()[1:])
            if start not in (b"{", b""):
                break
            if match := _ARRAY.search(head, searched):
                self._keep_metadata(bytes(head[: match.start()]).rstrip().rstrip(b",") + b"}")
                return bytes(head[match.end() :])
            self._check_head(len(head))
        reason = self.cut or "it has no traceEvents"
        raise TraceError(
            f"{self.path}: not a PyTorch profiler trace ({reason}), nor samples or requests in a "
            "format that ttscope knows. docs/import.md lists them, and what each must hold"
        )

    def _check_head(self, size: int) -> None:
        if size > _HEAD_BYTES:
            raise TraceError(
                f"{self.path}: no event in {_HEAD_BYTES:,} bytes. It is not a profiler trace, "
                "or damaged"
            )

    def _keep_metadata(self, text: bytes) -> None:
        try:
            check_values(text, LINE_VALUES)
            metadata = msgspec.json.decode(text)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return
        if isinstance(metadata, dict):
            self.metadata.update(metadata)

    def _read_tail(self, rest: bytes, pieces: Iterator[bytes]) -> None:
        """Keep the metadata behind the events; what follows the document is left."""
        tail = [rest]
        size = len(rest)
        for piece in pieces:
            size += len(piece)
            if size <= _HEAD_BYTES:
                tail.append(piece)
        self._keep_metadata(b"{" + b"".join(tail).strip().removeprefix(b","))

    def _finish(self, buffer: bytes) -> Iterator[list[Event] | list[ExactEvent]]:
        """Decode what is left at the end of the file: the last events and the metadata."""
        events, rest, _ = self._decode(buffer, last=True)
        if events:
            yield events
        if rest is not None:
            self._read_tail(rest, iter(()))
        elif self.cut is None:
            self.cut = "its JSON ends early"

    def _decode(self, text: bytes, *, last: bool = False) -> tuple[Any, bytes | None, int]:
        """Return the events of `text`, what follows the array where it ends, and how much is read.

        The end of `text` may only seem a boundary, inside a string. What is left is not read then.
        """
        rest, used = None, len(text)
        try:
            check_values(text, LINE_VALUES)  # of a single event that is larger than a batch
        except ValueError as error:
            self.skipped[f"event of {error}"] += 1
            return [], None, used
        try:
            events: Any = _MANY[self._kind].decode(b"[%b]" % text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            array_end = self._to_array_end(text, str(error))
            if array_end is None:
                return self._decode_each(text, last=last)
            events, rest = array_end
        if self._kind is Event and _too_large(events):
            self._kind = ExactEvent
            return self._decode(text, last=last)
        return events, rest, used

    def _to_array_end(self, text: bytes, message: str) -> tuple[Any, bytes] | None:
        """Decode up to the array's end, when that is what stopped the decoder."""
        trailing = _TRAILING.search(message)
        if trailing is None:
            return None
        end = int(trailing[1]) - 1  # behind the closing bracket, without the one put before
        while end > 0 and text[end - 1 : end] != b"]":
            end -= 1
        if not _AFTER_ARRAY.match(text, end):
            return None
        try:
            return _MANY[self._kind].decode(b"[" + text[:end]), text[end:]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _decode_each(self, text: bytes, *, last: bool) -> tuple[Any, bytes | None, int]:
        """Decode a batch event by event; count those that cannot be read."""
        ends = [*(match.start() + 1 for match in _BETWEEN.finditer(text)), len(text)]
        events: list[Any] = []
        place = 0
        while match := _TO_NEXT.match(text, place):
            if end := _ARRAY_END.match(text, place):
                return events, text[end.end() :], len(text)
            if match[1].strip(b", \r\n\t"):
                self.skipped["damaged text between events"] += 1
            start = match.end(1)
            if start == len(text):
                break
            first, open_end = bisect_right(ends, start), len(text) - start < _OPEN_BYTES
            used = 0
            for end_at in ends[first : first + _PARTS]:
                event, used = self._decode_one(text[start:end_at])
                if used:
                    break
            if used and event is not None:
                events.append(event)
            elif not (used or last) and open_end and first + _PARTS >= len(ends):
                return events, None, start
            elif not used and last and first == len(ends) - 1:
                self.skipped["event cut off at the end"] += 1
            else:
                self.skipped["damaged event"] += 1
            place = start + used if used else ends[first]
        return events, None, len(text)

    def _decode_one(self, piece: bytes) -> tuple[Any, int]:
        """Return the event that begins `piece`, None if unusable, and its end, 0 if no value."""
        end = _value_end(piece)
        if not end:
            return None, 0
        try:
            return _ONE[self._kind].decode(piece[:end]), end
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._convert(piece[:end]), end

    def _convert(self, piece: bytes) -> Any:
        """Read an event whose values have other types than expected, or that is not UTF-8."""
        try:
            decoded = msgspec.json.decode(piece.decode("utf-8", "replace"))
            args = decoded.pop("args", None)
            decoded["name"] = str(decoded.get("name", ""))
            event = msgspec.convert(decoded, Event, strict=False)
        except (msgspec.DecodeError, AttributeError, TypeError, RecursionError, ValueError):
            return None
        if isinstance(args, dict):
            for name in ("Input Dims", "Input type"):
                args[name] = msgspec.Raw(msgspec.json.encode(args.get(name)))
            event.args = msgspec.convert(args, Arguments)
        if self._kind is Event:
            return event
        values = {name: getattr(event, name) for name in event.__struct_fields__}
        stamp = b"" if event.ts is None else repr(event.ts).encode()
        return ExactEvent(**values | {"ts": msgspec.Raw(stamp)})


def _value_end(text: bytes) -> int:
    """Return where the JSON value at the start of `text` ends, 0 where there is none."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        trailing = _TRAILING.search(str(error))
        return len(text[: int(trailing[1]) - 1].rstrip()) if trailing else 0
    return len(text)


def _too_large(events: list[Event]) -> bool:
    """Tell whether the time stamps need more than a float; the first and last tell for all."""
    stamps = [event.ts for event in (*events[:1], *events[-1:]) if event.ts is not None]
    return any(abs(stamp) >= _EXACT_FROM_US for stamp in stamps)


def _last_boundary(text: bytes, start: int) -> int | None:
    """Return where the last whole event of `text` ends, behind its brace; none before `start`."""
    brace = len(text)
    for _ in range(1000):  # from the end, where one is near as a rule
        brace = text.rfind(b"{", start, brace)
        near = max(brace - 100, start)
        before = text[near:brace].rstrip()
        if before.endswith(b",") and (tail := before[:-1].rstrip()).endswith(b"}"):
            return near + len(tail)
        if brace <= start:
            return None
    every = [match.start() + 1 for match in _BETWEEN.finditer(text, start)]
    return every[-1] if every else None
