"""Merging the parts of a table into ranges, a piece at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from traces import checksums
from traces.parts import (
    FAN_IN,
    Part,
    damaged,
    list_parts,
    part_path,
    part_rows,
    scan_part,
    whole_part,
)
from traces.tables import KEYS, TABLES

MERGE_ALL_BYTES = 64 << 20
ROWS = 200_000  # of a row group, at most
_BYTES = 32 << 20  # of the rows in memory at a time, about
_FIRST_ROWS = 1_000  # of a part, from which the size of its rows is known

Kept = list[NDArray[np.bool_]]


def merge_full_levels(folder: Path, table: str, fan_in: int = FAN_IN) -> None:
    """Merge every complete run of `fan_in` neighbouring parts of one level, lowest level first."""
    while True:
        group = _full_group(list_parts(folder, table), fan_in)
        if group is None:
            return
        _merge(folder, table, group)
        checksums.compact(folder)


def merge_all(folder: Path, table: str) -> None:
    """Merge a table that will not grow any more into one file, without superseded rows.

    A table of more than `MERGE_ALL_BYTES` keeps its ranges, so that closing takes seconds.
    """
    parts = list_parts(folder, table)
    if len(parts) > 1 and sum(part.path.stat().st_size for part in parts) <= MERGE_ALL_BYTES:
        _merge(folder, table, parts, last_only=True)


def _merge(folder: Path, table: str, parts: Sequence[Part], *, last_only: bool = False) -> None:
    sums = checksums.read_checksums(folder)
    for part in parts:  # what was damaged on disk gets no new checksum
        checksums.check(part.path, sums)
    target = part_path(folder, table, parts[0].first, parts[-1].last)
    merge([part.path for part in parts], target, table, last_only=last_only)
    for part in parts:
        part.path.unlink(missing_ok=True)


def _full_group(parts: list[Part], fan_in: int) -> list[Part] | None:
    for level in (0, 1, 2, 3):
        width = fan_in**level
        row: list[Part] = []
        for part in parts:
            same = part.last - part.first + 1 == width
            joins = not row or part.first == row[-1].last + 1
            row = [*row, part] if same and joins else ([part] if same else [])
            if len(row) == fan_in:
                return row
    return None


def merge(paths: Sequence[Path], target: Path, table: str, *, last_only: bool = False) -> None:
    """Write the rows of the parts at `paths`, in their order, to `target`, whole or not at all.

    A column that a part lacks is null. With `last_only` rows that a later row of the same key
    supersedes are left out; that takes some 20 bytes a row. Row groups hold at most `ROWS` rows,
    and about `_BYTES` as far as rows are alike. Raises RecordingError naming the file when a part
    is corrupt, OSError when the disk fails.
    """
    kept = _last_of_keys(paths, table) if last_only and table in KEYS else None
    with whole_part(target) as file:
        _source(paths, table, kept).sink_parquet(
            file,
            compression="zstd",
            compression_level=3,
            statistics=False,
            row_group_size=_group_rows(paths, table),
            engine="streaming",
        )


def _source(paths: Sequence[Path], table: str, kept: Kept | None) -> pl.LazyFrame:
    def read(
        columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        for number, path in enumerate(paths):
            first = 0
            for rows in _pieces(path, table):
                chosen = rows
                if kept is not None:
                    chosen = rows.filter(pl.Series(kept[number][first : first + rows.height]))
                first += rows.height
                yield chosen

    return register_io_source(read, schema=TABLES[table])


def _pieces(path: Path, table: str, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """Give the rows of a part, about `_BYTES` at a time."""
    count, first, size = part_rows(path, {}), 0, _FIRST_ROWS
    try:
        lazy = scan_part(path, table, columns or list(TABLES[table]))
        while first < count:
            rows = lazy.slice(first, size).collect()
            first += rows.height
            size = _fitting(rows)
            yield rows
    except FileNotFoundError:
        raise
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise damaged(path) from error


def _fitting(rows: pl.DataFrame) -> int:
    """Return how many rows such as these fit into `_BYTES`."""
    each = rows.estimated_size() / max(rows.height, 1)
    return int(min(max(_BYTES / max(each, 1), 1), ROWS))


def _group_rows(paths: Sequence[Path], table: str) -> int:
    """Return how many rows a row group may have: as fit of the first rows of each part."""
    firsts = (next(_pieces(path, table), None) for path in paths)
    return min((_fitting(rows) for rows in firsts if rows is not None), default=ROWS)


def _last_of_keys(paths: Sequence[Path], table: str) -> Kept:
    """Tell of each row of each part whether it is the last of its key."""
    key, none = pl.struct(KEYS[table]), pl.DataFrame(schema={"one": pl.UInt64, "two": pl.UInt64})
    parts = []
    for path in paths:
        hashed = [  # 128 bits of each key: no two keys of a recording share them
            rows.select(key.hash(seed=1).alias("one"), key.hash(seed=2).alias("two"))
            for rows in _pieces(path, table, KEYS[table])
        ]
        parts.append(pl.concat([none, *hashed]))
    every = pl.concat([none, *parts]).with_row_index("row")
    last = np.zeros(every.height, dtype=bool)
    last[every.unique(["one", "two"], keep="last")["row"].to_numpy()] = True
    return np.split(last, np.cumsum([part.height for part in parts])[:-1])
