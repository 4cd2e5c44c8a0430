"""The elements of one array of a JSON document, one at a time, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from traces.errors import OutcomesError
from traces.formats.source import ENTRY_BYTES, open_pieces

# Text without brackets, whole strings with whatever is in them; the rest of an open string.
_SKIP = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_OUTSIDE_BYTES = 64 << 20  # of the document beside the array
_MOST_BRACKETS = 4_000_000  # of one element, or beside them; each is looked at


class ArrayStream:
    """Iterate once over the raw elements of the array `key` of the document's outermost object.

    An element of more than 512 MiB is given as None. `outside` has the document without them, as
    far as it was read: at the first element what stands before the array, its bracket included,
    and afterwards all of it. `cut` says in a few words why the file ended early, None when it did
    not. Brackets and strings alone are looked at; whether what is between them is JSON, a decoder
    says.

    Raises OutcomesError while iterating as `Inflated` does, where more than 64 MiB stand beside
    the array, and where an element has more than 4 million brackets.
    """

    def __init__(self, path: Path, limit_bytes: int, key: bytes) -> None:
        self.outside = bytearray()
        self.cut: str | None = None
        self._path = path
        self._pieces = open_pieces(path, limit_bytes)
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
        found = pattern.match(self._buffer, place)
        return found.end() if found is not None else place

    def _bracket(self, end: int) -> Iterator[bytes | None]:
        """Take the bracket that stands before `end`; yield the element that it completes."""
        opens = self._buffer[end - 1] in b"[{"
        self._brackets += 1
        if self._brackets > _MOST_BRACKETS:
            raise OutcomesError(
                f"{self._path}: more than {_MOST_BRACKETS:,} values in one of its elements; export "
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
                f"{self._path}: more than {_OUTSIDE_BYTES >> 20} MiB stand beside its samples; "
                "give the .eval file"
            )
