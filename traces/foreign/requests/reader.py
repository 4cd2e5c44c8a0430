"""What every reader of requests gives: arrivals and lengths, and times that a client measured.

A format is a class. Requests come in frames of bounded size, so that a trace of millions is never
held whole.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import polars as pl

from traces.errors import UsageError
from traces.files import LINE_VALUES
from traces.foreign.source import Reader, decode, objects, text_lines
from traces.foreign.values import (
    BLOCK_TOKENS,
    LIMIT_BYTES,
    Field,
    finite,
    whole_number,
)
from traces.recording.tables import LATEST_NS, MOST_TOKENS

Line = TypeVar("Line")
FAILED = "the request failed"
_FRAME_ROWS = 50_000

REQUESTS: dict[str, pl.DataType] = {
    "place": pl.Int64(),
    "prompt_tokens": pl.Int64(),
    "output_tokens": pl.Int64(),
    "arrival": pl.Int64(),
    "first_token": pl.Int64(),
    "end": pl.Int64(),
    "cached_tokens": pl.Int64(),
    "error": pl.Utf8(),
    "prompt_blocks": pl.List(pl.Int64),
    "session": pl.Utf8(),
}


class Request(NamedTuple):
    """A row of a frame of requests; times are nanoseconds, None is what the file does not tell.

    `place` is the number of its line, or of its place in a list. Equal `prompt_blocks` are equal
    stretches of prompt. With an `error` it has neither end nor, perhaps, output. Requests of equal
    `session` are turns of it.
    """

    place: int
    prompt_tokens: int | None
    output_tokens: int | None
    arrival: int
    first_token: int | None = None
    end: int | None = None
    cached_tokens: int | None = None
    error: str | None = None
    prompt_blocks: list[int] | None = None
    session: str | None = None


@dataclass(kw_only=True)
class RequestFacts:
    """What a file says of all its requests; `notes` is what a reader must know.

    `concurrency` is given where a request was sent when another had ended, else they were sent at
    their arrivals. `block_tokens` is how much of a prompt each of its blocks names. `session` is
    that of a file that has one alone. With `own_names` equal blocks of another file are others.
    `models` counts requests by the model that each names.
    """

    model: str | None = None
    models: Counter[str] = field(default_factory=Counter)
    session: str | None = None
    own_names: bool = False
    concurrency: int | None = None
    rate_per_s: float | None = None
    block_tokens: int | None = None
    itl_s: dict[str, float] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RequestChoices:
    """What the user chose: which of a file's benchmarks, counted from 1, and its limit.

    `block_tokens` is how many tokens of prompt a hash id of a Mooncake trace stands for. The
    `temperature` and `top_p` of the samples are None where the user does not say them.
    """

    run: int | None = None
    block_tokens: int = BLOCK_TOKENS
    limit_bytes: int = LIMIT_BYTES
    temperature: float | None = None
    top_p: float | None = None


class RequestReader(Reader[RequestChoices]):
    """Requests; `facts` are whole once they are read.

    `measured` says that a client measured them, else only their arrivals are known. Of a format
    with `several`, many files may be one load. `unshared` has names for blocks that no other file
    has: below 0, where no file has names of its own.
    """

    measured: ClassVar[bool] = True
    several: ClassVar[bool] = False

    def __init__(
        self, path: Path, choices: RequestChoices, unshared: Iterator[int] | None = None
    ) -> None:
        super().__init__(path, choices)
        self.facts = RequestFacts()
        self._unshared = count(-1, -1) if unshared is None else unshared

    @abstractmethod
    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Yield frames with the columns of `REQUESTS`, in the file's order."""


class RowReader(RequestReader):
    """A format whose requests are read one by one, and given in frames of at most 50,000."""

    def __iter__(self) -> Iterator[pl.DataFrame]:
        requests = self.requests()
        while rows := list(islice(requests, _FRAME_ROWS)):
            yield pl.DataFrame(rows, schema=REQUESTS, orient="row")

    @abstractmethod
    def requests(self) -> Iterator[Request]:
        """Yield the requests in the file's order."""

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the file's lines of JSON with their numbers."""
        return objects(self._path, self._choices.limit_bytes, self.skipped, self.facts.notes)

    def _ahead(self, kind: type[Line]) -> Iterator[tuple[int, Line]]:
        """Yield the fields of `kind` of all lines that have them, before these are read."""
        for number, line in text_lines(self._path, self._choices.limit_bytes, []):
            try:
                yield number, decode(line or b"", kind, LINE_VALUES)
            except ValueError:
                continue

    def _full_blocks(
        self, row: dict[str, Any], length: str, prompt_tokens: int, place: int
    ) -> list[int] | None:
        """Return the names of a prompt's full blocks with one for its rest, None where not told."""
        size = self.facts.block_tokens or 1
        ids: list[int] | None = _HASHES.optional(row, "hash_ids", self.skipped, place)
        if ids is None:
            return None
        full, whole = prompt_tokens // size, -(-prompt_tokens // size)
        if len(ids) not in (full, whole):
            why = f"values of hash_ids that are not one per {size} tokens of {length}"
            self.skipped.add(why, place)
            return None
        return ids if len(ids) == whole else [*ids, next(self._unshared)]


def check_run(path: Path, run: int | None, count: int, what: str) -> None:
    """Raise UsageError where a file has several benchmarks, or not the one that is chosen."""
    if run is None and count > 1:
        raise UsageError(f"{path}: holds {count} {what}. Choose one with --run N")
    if run is not None and not 1 <= run <= count:
        raise UsageError(f"--run {run}: {path} holds {count} {what}")


def token_count(value: Any, *, least: int = 1) -> int | None:
    """Return a whole number of tokens from `least` to 100 million, None where it is none."""
    count = whole_number(value)
    return count if count is not None and least <= count <= MOST_TOKENS else None


tokens = Field(token_count, f"no whole number from 1 to {MOST_TOKENS:,}")


def nanoseconds(value: Any, unit_ns: int) -> int | None:
    """Return a time of 0 or more in units of `unit_ns`, None where it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value * unit_ns if 0 <= value * unit_ns < LATEST_NS else None
    number = finite(value)
    if number is None or number < 0 or number * unit_ns >= LATEST_NS:
        return None
    whole = math.floor(number)
    return whole * unit_ns + round((number - whole) * unit_ns)


def hashes(least: int, below: int) -> Field:
    """Return how the names of a prompt's blocks are read, each from `least` and under `below`."""

    def read(ids: Any) -> list[int] | None:
        whole = isinstance(ids, list) and {*map(type, ids)} <= {int}  # thousands to a prompt
        return ids if whole and (not ids or (least <= min(ids) and max(ids) < below)) else None

    return Field(read, "no list of whole numbers")


_HASHES = hashes(0, 1 << 63)


def ascend(*times: int | None) -> bool:
    """Return whether the known times do not run backwards."""
    known = [time for time in times if time is not None]
    return known == sorted(known)
