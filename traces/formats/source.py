"""Reading foreign files in bounded memory: lines of JSON, entries of a zip."""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from traces.errors import OutcomesError
from traces.formats.outcome import Skipped
from traces.inflate import Inflated, swells, swollen
from traces.json_values import DOCUMENT_VALUES, LINE_VALUES, check_values

HEAD_BYTES = 1 << 16
LINE_BYTES = 64 << 20
ENTRY_BYTES = 512 << 20
_NO_NUMBER = re.compile(rb"(?<=[:\[,\s])-?(?:NaN|Infinity)(?=\s*[,}\]])")
_NUMBER = re.compile(rb"(?<=[:\[,\s])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?=\s*[,}\]])")
_ZSTANDARD = 93
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)
T = TypeVar("T")


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
        path, limit_bytes=limit_bytes, refuse=OutcomesError, what="text", mend="raise --limit"
    )


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
    told = zip(names, msgspec.structs.astuple(kept), strict=True)
    body = b",".join(b'"%b":%b' % (name.encode(), bytes(raw)) for name, raw in told if raw)
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
    pieces = open_pieces(path, limit_bytes)
    for number, line in _lines(pieces):
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
    if pieces.cut is not None:
        notes.append(f"the file is cut off ({pieces.cut})")


def _left_out(skipped: Skipped) -> int:
    """Return how many whole lines were skipped, values apart."""
    return sum(n for reason, n in skipped.counts.items() if not reason.startswith("values"))


def _lines(pieces: Inflated) -> Iterator[tuple[int, bytes | None]]:
    """Yield numbered lines, None for one that is too long to be held."""
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
    if size:
        yield number, b"".join(parts) if size <= LINE_BYTES else None


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
                f"{path}: its zip directory cannot be read ({error}); the file is cut off or "
                "still being written, export it again"
            ) from None

    def close(self) -> None:
        """Close the file."""
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
                            f"{self.path}: holds more than {self._limit:,} bytes of text; "
                            "raise --limit"
                        )
                    pieces.append(piece)
        except _DAMAGE:
            raise ValueError("entries with damaged data") from None
        if size > ENTRY_BYTES:
            raise ValueError(f"entries of more than {ENTRY_BYTES >> 20} MiB")
        whole = b"".join(pieces)
        if zlib.crc32(whole) != info.CRC:
            raise ValueError("entries with damaged data")
        return whole

    def _open(self, info: zipfile.ZipInfo) -> IO[bytes]:
        if info.compress_type != _ZSTANDARD:
            return self._zip.open(info)
        import zstandard

        self._file.seek(info.header_offset)
        header = self._file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise ValueError("no entry")
        names = sum(struct.unpack("<HH", header[26:30]))
        self._file.seek(info.header_offset + 30 + names)
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            _Window(self._file, info.compress_size),  # type: ignore[arg-type]
            read_across_frames=True,
        )
        return _Zstandard(reader)  # type: ignore[return-value]


class _Window:
    """The next so many bytes of a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none behind the window."""
        piece = self._file.read(max(min(size, self._left), 0))
        self._left -= len(piece)
        return piece


class _Zstandard:
    """A stream whose damage is a ValueError, as that of the other methods."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __enter__(self) -> _Zstandard:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes."""
        import zstandard

        try:
            piece: bytes = self._reader.read(size)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None
        return piece
