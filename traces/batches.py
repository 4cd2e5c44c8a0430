"""A table of a recording a piece at a time, for what does not fit in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from traces.errors import RecordingError
from traces.parts import damaged, part_rows, scan_part
from traces.recording import Recording
from traces.tables import TABLES

ROWS = 200_000  # at a time

Found = TypeVar("Found")


class Merged(Exception):
    """A writer that is still at work merged the parts while they were read: begin again."""


def batches(
    recording: Recording,
    table: str,
    columns: Sequence[str] | None = None,
    where: pl.Expr | None = None,
) -> Iterator[pl.DataFrame]:
    """Give the rows of a table in their order, `ROWS` at a time before `where` chooses among them.

    A column that a file lacks is null. Tables whose rows supersede others are not for this. Raises
    RecordingError naming the file when a part is corrupt, `Merged` when the parts change meanwhile.
    """
    schema = {name: TABLES[table][name] for name in columns or TABLES[table]}
    needed = sorted(set(schema).union(() if where is None else where.meta.root_names()))
    for part in recording.paths(table):
        for lazy in _of_part(part, table, needed):
            chosen = lazy if where is None else lazy.filter(where)
            yield _collected(chosen.select(list(schema)), part)


def begin_again(recording: Recording, read: Callable[[], Found]) -> Found:
    """Return what `read` makes of batches, from the start where parts were merged meanwhile.

    Raises RecordingError where that happens over and over.
    """
    for _ in range(5):
        try:
            return read()
        except Merged:
            continue
    raise RecordingError(f"{recording.path}: its files change faster than they can be read")


def _of_part(path: Path, table: str, columns: Sequence[str]) -> Iterator[pl.LazyFrame]:
    try:
        count, lazy = part_rows(path, {}), scan_part(path, table, columns)
    except FileNotFoundError:
        raise Merged from None
    for first in range(0, count, ROWS):
        yield lazy.slice(first, ROWS)


def _collected(lazy: pl.LazyFrame, path: Path) -> pl.DataFrame:
    try:
        return lazy.collect()
    except FileNotFoundError:
        raise Merged from None
    except (Exception, pl.exceptions.PanicException) as error:
        raise damaged(path) from error
