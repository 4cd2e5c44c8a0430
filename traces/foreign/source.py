"""Reading foreign files in bounded memory: lines of JSON, entries of a zip."""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from abc import ABC
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, TypeVar

import msgspec
import zstandard

from traces.errors import OutcomesError
from traces.files import DOCUMENT_VALUES, LINE_VALUES, Inflated, check_values, swells, swollen
from traces.foreign.values import Skipped

HEAD_BYTES = 1 << 16
LINE_BYTES = 64 << 20
ENTRY_BYTES = 512 << 20
_NO_NUMBER = re.compile(rb"(?<=[:\[,\s])-?(?:NaN|Infinity)(?=\s*[,}\]])")
_NUMBER = re.compile(rb"(?<=[:\[,\s])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?=\s*[,}\]])")
_ZSTANDARD = 93
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    zstandard.ZstdError,
    EOFError,
    OSError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)
T = TypeVar("T")
Choices = TypeVar("Choices")


class Reader(ABC, Generic[Choices]):
    """A format, and one file of it, iterated once; `skipped` is whole afterwards.

    `marks` are all in the first bytes of a file, `unit` is what its rows are counted in. Raises
    OutcomesError while iterating when the file cannot be read as its format, UsageError for a
    choice that it does not have.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "line"
    marks: ClassVar[tuple[bytes, ...]] = ()

    def __init__(self, path: Path, choices: Choices) -> None:
        self.skipped = Skipped(unit=self.unit)
        self._path, self._choices = path, choices

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """Whether a file with these first bytes, inflated, is of this format."""
        return all(mark in head for mark in cls.marks)


Format = TypeVar("Format", bound=type[Reader[Any]])


def format_of(path: Path, formats: Sequence[Format]) -> Format | None:
    """Return a file's format by its first bytes, None for none. Raises OutcomesError."""
    head = head_of(path)
    return next((each for each in formats if each.recognises(head)), None)


def head_of(path: Path) -> bytes:
    """Return the first 64 KiB of a file, inflated. Raises OutcomesError when there are none."""
    head = b""
    for piece in open_pieces(path, 1 << 62):
        head += piece
        if len(head) >= HEAD_BYTES:
            break
    return head[:HEAD_BYTES]


def open_pieces(path: Path, limit_bytes: int) -> Inflated:
    """Return the pieces of a file of text, inflated."""
    return Inflated(
        path, limit_bytes=limit_bytes, refuse=OutcomesError, what="text", remedy="Raise --limit"
    )


def whole_text(path: Path, limit_bytes: int, what: str) -> bytes:
    """Return the text of a file, inflated. Raises OutcomesError where it has over 512 MiB."""
    text = bytearray()
    for piece in open_pieces(path, limit_bytes):
        text += piece
        if len(text) > ENTRY_BYTES:
            raise OutcomesError(f"{path}: more than {ENTRY_BYTES >> 20} MiB in one file of {what}")
    return bytes(text)


def decode(text: bytes, kind: type[T], most: int | None = DOCUMENT_VALUES) -> T:
    """Return the JSON of `text`; NaN, Infinity and numbers beyond a float's as null.

    `most` is how many values it may hold, None where `kind` has nothing but raw text.
    Raises ValueError where it is no JSON, not of this kind or holds more.
    """
    return _decoded(text, kind, most)[0]


def decode_read(text: bytes, kind: type[T], most: int) -> T:
    """Return the JSON object of `text` as a struct; only its fields count as values.

    What else it holds may be of any size. Raises ValueError as `decode` does.
    """
    names = [each.encode_name for each in msgspec.structs.fields(kind)]  # type: ignore[arg-type]
    fields = [
        (f"f{at}", msgspec.Raw, msgspec.field(default=msgspec.Raw(b""), name=name))
        for at, name in enumerate(names)
    ]
    kept = decode(text, msgspec.defstruct("Kept", fields), None)
    pairs = zip(names, msgspec.structs.astuple(kept), strict=True)
    body = b",".join(b'"%b":%b' % (name.encode(), bytes(raw)) for name, raw in pairs if raw)
    return decode(b"{%b}" % body, kind, most)


def _decoded(text: bytes, kind: type[T], most: int | None) -> tuple[T, int]:
    """Return what `decode` does, and how many numbers became null."""
    if most is not None:
        check_values(text, most)
    try:
        return msgspec.json.decode(text, type=kind), 0
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        mended, count = _NO_NUMBER.subn(b"null", text)
        beyond = 0

        def within(found: re.Match[bytes]) -> bytes:
            nonlocal beyond
            if math.isfinite(float(found[0])):
                return found[0]
            beyond += 1
            return b"null"

        if "out of range" in str(error) or count:
            mended = _NUMBER.sub(within, mended)
        if not count + beyond:
            raise ValueError(str(error)) from None
        try:
            return msgspec.json.decode(mended, type=kind), count + beyond
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as again:
            raise ValueError(str(again)) from None


def objects(
    path: Path, limit_bytes: int, skipped: Skipped, notes: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON objects of a file's lines with their numbers.

    Other lines, and those above 64 MiB, are counted in `skipped`; `notes` tells of damaged gzip
    data. Raises OutcomesError as `Inflated` does.
    """
    yield from objects_in(text_lines(path, limit_bytes, notes), skipped)


def objects_in(
    lines: Iterable[tuple[int, bytes | None]], skipped: Skipped
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON objects of numbered lines, as `objects` does."""
    for number, line in lines:
        if line is None:
            skipped.add(f"lines of more than {LINE_BYTES >> 20} MiB", number)
        elif line.strip():
            try:
                row, nulled = _decoded(line, dict[str, Any], LINE_VALUES)
            except ValueError as error:
                kind = "no JSON object" if "Expected `object`" in str(error) else "not JSON"
                many = str(error).startswith("more than")
                skipped.add(f"lines of {error}" if many else f"lines that are {kind}", number)
                continue
            before = _left_out(skipped) if nulled else 0
            yield number, row
            if nulled and _left_out(skipped) == before:  # the reader kept the line
                skipped.add("values that are NaN or infinite", number, nulled)


def text_lines(
    path: Path, limit_bytes: int, notes: list[str], *, ended: bool = False
) -> Iterator[tuple[int, bytes | None]]:
    """Yield a file's lines with their numbers, None for one above 64 MiB.

    A last line that damaged gzip data cut is left out, and with `ended` any that has no end: a
    number there may lack digits. `notes` tells of both. Raises OutcomesError as `Inflated` does.
    """
    pieces = open_pieces(path, limit_bytes)
    last = yield from _lines(pieces)
    if last is not None and pieces.cut is None:
        if ended:
            notes.append(f"line {last[0]:,}, the last, has no end and is left out: it may be cut")
        else:
            yield last
    if pieces.cut is not None:
        notes.append(f"the file is cut off ({pieces.cut})")


def _left_out(skipped: Skipped) -> int:
    """Return how many whole lines were skipped, values apart."""
    return sum(n for reason, n in skipped.counts.items() if not reason.startswith("values"))


Line = tuple[int, bytes | None]


def _lines(pieces: Inflated) -> Generator[Line, None, Line | None]:
    """Yield numbered lines, None for one that is too long to be held; return one without an end."""
    number, size = 1, 0
    parts: list[bytes] = []
    for piece in pieces:
        first, *others = piece.split(b"\n")
        size += len(first)
        if size <= LINE_BYTES:
            parts.append(first)
        else:
            parts.clear()
        for other in others:
            yield number, b"".join(parts) if size <= LINE_BYTES else None
            number, parts, size = number + 1, [other], len(other)
    return (number, b"".join(parts) if size <= LINE_BYTES else None) if size else None


class ZipSource:
    """The entries of a zip file, also of those compressed with Zstandard.

    Raises OutcomesError when the file is no zip, or its entries inflate to more than the limit.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path = path
        self._left = self._limit = limit_bytes
        self._size = 0
        try:
            self._file = path.open("rb")
            self._size = path.stat().st_size
        except OSError as error:
            raise OutcomesError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._entries = {info.filename: info for info in self._zip.infolist()}
        except _DAMAGE as error:
            self._file.close()
            raise OutcomesError(
                f"{path}: its zip directory cannot be read ({error}). The file is cut off or "
                "still being written, export it again"
            ) from None

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    @property
    def names(self) -> list[str]:
        """The entries' names in the file's order, each once."""
        return list(self._entries)

    def read(self, name: str) -> bytes:
        """Return an entry. Raises ValueError in a few words where it is damaged or too large."""
        info = self._entries[name]
        pieces: list[bytes] = []
        size = 0
        try:
            with self._open(info) as stream:
                while size <= ENTRY_BYTES and (piece := stream.read(1 << 18)):
                    size += len(piece)
                    self._left -= len(piece)
                    if swells(self._limit - self._left, self._size):
                        raise OutcomesError(swollen(self.path))
                    if self._left < 0:
                        raise OutcomesError(
                            f"{self.path}: holds more than {self._limit:,} bytes of text. "
                            "Raise --limit"
                        )
                    pieces.append(piece)
        except _DAMAGE:
            raise ValueError("entries with damaged data") from None
        if size > ENTRY_BYTES:
            raise ValueError(f"entries of more than {ENTRY_BYTES >> 20} MiB")
        entry = b"".join(pieces)
        if zlib.crc32(entry) != info.CRC:
            raise ValueError("entries with damaged data")
        return entry

    def _open(self, info: zipfile.ZipInfo) -> IO[bytes]:
        if info.compress_type != _ZSTANDARD:
            return self._zip.open(info)
        self._file.seek(info.header_offset)
        header = self._file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise ValueError("no entry")
        names = sum(struct.unpack("<HH", header[26:30]))
        self._file.seek(info.header_offset + 30 + names)
        packed = self._file.read(min(info.compress_size, ENTRY_BYTES))
        return zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            packed, read_across_frames=True
        )


# The elements of one array of a JSON document, one at a time, in bounded memory.


# Text without brackets, whole strings with whatever is in them; the rest of an open string.
_SKIP = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_OUTSIDE_BYTES = 64 << 20  # of the document beside the array
_MOST_BRACKETS = 4_000_000  # of one element, or beside them; each is looked at


class ArrayStream:
    """Iterate once over the raw elements of the array `key` of the document's outermost object.

    An element of more than 512 MiB is None. `outside` has the document without them, as far as it
    was read: at the first element what stands before the array, with its bracket. `cut` says why
    the file ended early. Only brackets and strings are looked at.

    Raises OutcomesError as `Inflated` does, for more than 64 MiB beside the array, and for an
    element of more than 4 million brackets.
    """

    def __init__(self, path: Path, limit_bytes: int, key: bytes) -> None:
        self.outside = bytearray()
        self.cut: str | None = None
        self._path = path
        self._pieces = open_pieces(path, limit_bytes)
        self._key = key.decode()
        self._opens = re.compile(rb'(?<!\\)"' + re.escape(key) + rb'"\s*:\s*\Z')
        self._buffer = bytearray()
        self._kept = 0  # where in the buffer begins what was neither given nor put outside
        self._depth = 0
        self._brackets = 0  # since the last element
        self._inside = False  # the array
        self._too_large = False  # the element that is being read

    def __iter__(self) -> Iterator[bytes | None]:
        place, in_string = 0, False
        for piece in self._pieces:
            self._buffer += piece
            while True:
                if in_string:
                    place = self._match(_STRING, place)
                    if self._buffer[place : place + 1] != b'"':
                        break  # a backslash at the end waits for what it escapes
                    place, in_string = place + 1, False
                place = self._match(_SKIP, place)
                if place == len(self._buffer):
                    break
                if self._buffer[place] == ord('"'):
                    place, in_string = place + 1, True
                    continue
                place += 1
                yield from self._bracket(place)
            place -= self._drop(place)
        self._put_outside(len(self._buffer))
        self.cut = self._pieces.cut
        if self.cut is None and (self._depth or in_string):
            self.cut = "its JSON ends early"

    def _match(self, pattern: re.Pattern[bytes], place: int) -> int:
        match = pattern.match(self._buffer, place)
        return match.end() if match is not None else place

    def _bracket(self, end: int) -> Iterator[bytes | None]:
        """Take the bracket that stands before `end`; yield the element that it completes."""
        opens = self._buffer[end - 1] in b"[{"
        self._brackets += 1
        if self._brackets > _MOST_BRACKETS:
            raise OutcomesError(
                f"{self._path}: more than {_MOST_BRACKETS:,} values in one of its elements. Export "
                "fewer at a time"
            )
        if opens:
            self._depth += 1
            if self._inside:
                if self._depth == 3:  # an element begins
                    yield from self._between(end - 1)
            elif self._depth == 2 and self._buffer[end - 1] == ord("["):
                self._put_outside(end - 1)
                if self._opens.search(self.outside, max(len(self.outside) - 200, 0)):
                    self._put_outside(end)
                    self._inside = True
            return
        self._depth -= 1
        if self._inside and self._depth == 2:
            yield None if self._too_large else bytes(self._buffer[self._kept : end])
            self._kept, self._too_large, self._brackets = end, False, 0
        elif self._inside and self._depth == 1:
            yield from self._between(end - 1)
            self._inside = False

    def _between(self, end: int) -> Iterator[bytes]:
        """Pass over what stands between two elements; yield what is neither blank nor comma."""
        stray = bytes(self._buffer[self._kept : end]).strip(b" \t\r\n,")
        self._kept = end
        if stray:
            yield stray

    def _drop(self, place: int) -> int:
        """Forget what is no longer needed of the buffer up to `place`; return how many bytes."""
        if not self._inside:
            self._put_outside(place)
        elif self._too_large or place - self._kept > ENTRY_BYTES:
            self._too_large, self._kept = True, place
        gone = self._kept
        del self._buffer[:gone]
        self._kept = 0
        return gone

    def _put_outside(self, end: int) -> None:
        if self._inside:
            return
        self.outside += self._buffer[self._kept : end]
        self._kept = end
        if len(self.outside) > _OUTSIDE_BYTES:
            raise OutcomesError(
                f"{self._path}: more than {_OUTSIDE_BYTES >> 20} MiB stand beside its {self._key}. "
                + ("Give the .eval file" if self._key == "samples" else "Export fewer at a time")
            )


_ENDINGS = (".gz", ".jsonl", ".json", ".csv", ".eval", ".txt", ".ndjson")


def own_name(path: Path) -> str:
    """Return a file's name without the endings of its format: `Qwen2.5-7B` of its `.jsonl.gz`."""
    name = path.name
    while name.lower().endswith(_ENDINGS) and name.rpartition(".")[0]:
        name = name.rpartition(".")[0]
    return name
