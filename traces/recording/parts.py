"""The files of one table: numbered Parquet parts that merge into ranges.

A part is written to a temporary name, synced and renamed, so a reader or a kill sees it whole or
not at all, and it survives a power failure. Its checksum is noted before it appears.
`FAN_IN` parts of one level merge into one whose name carries the range of parts it holds
(`steps-000000-000063.parquet`), and these merge again, so that a day of one part per second stays
below 200 files. Sources are deleted after the merged file is in place. Readers ignore a part that a
range covers, so no row is lost or doubled whenever the process is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import BinaryIO

import msgspec
import polars as pl

from traces.errors import RecordingError
from traces.files import as_private, sync_folder
from traces.recording import checksums
from traces.recording.checksums import Checksums, check_regular, file_digest
from traces.recording.tables import COLUMNS, DETAILS, KEYS, TABLES

FAN_IN = 64
MOST_ROWS = 100_000_000  # of a part
MOST_ROWS_PER_BYTE = 8  # of a part of over a million rows: ours have less than one
_NAME = re.compile(r"^(?P<table>[a-z]+)-(?P<first>\d{6,})(?:-(?P<last>\d{6,}))?\.parquet$")
_MAGIC = b"PAR1"


@dataclass(frozen=True, order=True)
class Part:
    """One file holding the parts `first` to `last`."""

    first: int
    last: int
    path: Path


def part_path(folder: Path, table: str, first: int, last: int) -> Path:
    """Return the file name of a part or of a merged range."""
    span = f"{first:06d}" if first == last else f"{first:06d}-{last:06d}"
    return folder / f"{table}-{span}.parquet"


def list_parts(folder: Path, table: str) -> list[Part]:
    """Return the table's parts in order, without those that a range covers."""
    parts = []
    for name in os.listdir(folder):
        match = _NAME.match(name)
        if match is None or match["table"] != table:
            continue
        first = int(match["first"])
        parts.append(Part(first, int(match["last"] or first), folder / name))
    parts.sort(key=lambda part: (part.first, -part.last))
    kept: list[Part] = []
    for part in parts:
        if not kept or part.last > kept[-1].last:
            kept.append(part)
    return kept


def own_parts(parts: Sequence[Part], sums: Checksums, *, closed: bool) -> list[Part]:
    """Leave out copies of parts. Raises RecordingError for one not of a `closed` recording."""
    sizes = Counter(size for part in parts if (size := _size(part.path)) is not None)
    seen: set[str] = set()
    kept = []
    for part in sorted(parts, key=lambda part: part.path.name not in sums):
        if sizes[_size(part.path) or 0] > 1:
            digest = file_digest(part.path)
            if digest in seen:
                continue
            seen.add(digest)
        if closed and sums and part.path.name not in sums:
            raise RecordingError(
                f"{part.path}: is not in {checksums.NAME}. Move it away if it is not of this "
                f"recording, or delete {checksums.NAME} to read it"
            )
        kept.append(part)
    return sorted(kept)


def missing_parts(parts: Sequence[Part], table: str, sums: Checksums) -> list[str]:
    """Return the files of a table that have a checksum, but neither they nor a range is there."""
    gone = []
    for name in sorted(sums):
        match = _NAME.match(name)
        if match is None or match["table"] != table:
            continue
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if not any(part.first <= first and last <= part.last for part in parts):
            gone.append(name)
    return gone


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # merged by a writer that is still at work
        return None


def check_part(path: Path) -> None:
    """Raise RecordingError when the file is a link, or does not begin and end as Parquet does.

    Polars opens no path that the locale cannot read: such a one is refused too.
    """
    check_regular(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RecordingError(
            f"{path.parent}: the locale cannot read its name. Rename the folder, or set "
            "LC_ALL=C.UTF-8"
        ) from None
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(max(size - 8, 0))
        tail = file.read(8)
    footer = int.from_bytes(tail[:4], "little") if len(tail) == 8 else 0
    if head != _MAGIC or tail[4:] != _MAGIC or not 0 < footer <= size - 12:
        raise damaged(path)


def damaged(path: Path) -> RecordingError:
    """Return the error for a part that cannot be read."""
    return RecordingError(
        f"{path}: truncated or corrupt ({path.stat().st_size if path.exists() else 0} bytes). "
        "Restore it from a copy, or delete it to open the recording without its rows"
    )


def write_part(folder: Path, table: str, frame: pl.DataFrame, first: int, last: int) -> Path:
    """Write a part so that it appears whole or not at all; returns its path."""
    target = part_path(folder, table, first, last)
    data = io.BytesIO()
    frame.write_parquet(data, compression="zstd", compression_level=3, statistics=False)
    with whole_part(target) as file:
        file.write(data.getbuffer())
    return target


@contextlib.contextmanager
def whole_part(target: Path) -> Iterator[BinaryIO]:
    """Give a file that becomes the part `target`, with its checksum, or nothing. Raises OSError."""
    partial = target.with_suffix(".partial")
    try:
        with open(partial, "w+b", opener=as_private) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        checksums.add(target.parent, target.name, digest)
        partial.replace(target)
        sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def last_rows(frame: pl.LazyFrame, table: str) -> pl.LazyFrame:
    """Keep the last row of each key: a span's row at its end supersedes that of its start."""
    key = KEYS.get(table)
    if key is None:
        return frame
    return frame.unique(subset=list(key), keep="last", maintain_order=True)


def remove_leftovers(folder: Path, table: str) -> None:
    """Delete what a kill left behind: half-written files, and parts that a range covers."""
    kept = {part.path.name for part in list_parts(folder, table)}
    for name in os.listdir(folder):
        match = _NAME.match(name)
        covered = match is not None and match["table"] == table and name not in kept
        half = name.startswith(f"{table}-") and name.endswith(".partial")
        if covered or half:
            (folder / name).unlink(missing_ok=True)


def part_rows(path: Path, sums: Checksums) -> int:
    """Return how many rows a part holds, from its footer. Raises RecordingError for damage."""
    with _reading(path, sums):
        return _count_rows(path)


def _count_rows(path: Path) -> int:
    scan = pl.scan_parquet(path, hive_partitioning=False, glob=False)
    return int(scan.select(pl.len()).collect().item())


def scan_part(path: Path, table: str, columns: Sequence[str]) -> pl.LazyFrame:
    """Return some of a table's columns of a part, lazily; one that the file lacks is null.

    Nothing is checked (`checked_part`), and nothing but the columns' names is read.
    """
    held = part_schema(path)
    return pl.scan_parquet(path, hive_partitioning=False, glob=False).select(
        (pl.col(name) if name in held else pl.lit(None).alias(name)).cast(TABLES[table][name])
        for name in columns
    )


def part_schema(path: Path) -> Mapping[str, pl.DataType]:
    """Return the columns of a part; its name is no pattern."""
    with path.open("rb") as file:
        return pl.read_parquet_schema(file)


def read_part(
    path: Path, table: str, columns: Sequence[str] | None = None, sums: Checksums | None = None
) -> pl.DataFrame:
    """Read some columns of a part, null where it lacks them. Raises RecordingError for damage."""
    schema = {name: TABLES[table][name] for name in columns or TABLES[table]}
    with _reading(path, sums or {}):
        held = part_schema(path)
        wanted = [name for name in schema if name in held]
        _check_rows(path)
        frame = pl.read_parquet(path, columns=wanted, hive_partitioning=False, glob=False)
        missing = [
            pl.lit(None, dtype).alias(name)
            for name, dtype in schema.items()
            if name not in frame.columns
        ]
        frame = frame.with_columns(missing).select(
            pl.col(name).cast(dtype) for name, dtype in schema.items()
        )
        if frame.schema != schema:  # a struct stays one
            raise damaged(path)
        check_values(path, table, frame)
        return frame


def checked_part(path: Path, table: str, sums: Checksums) -> Path:
    """Return the path of a part that can be scanned. Raises RecordingError as `read_part`."""
    with _reading(path, sums) as sure:
        _check_rows(path)
        if not sure:
            held = part_schema(path)
            names = [name for name in TABLES[table] if name in held]
            check_values(path, table, scan_part(path, table, names))
    return path


def _check_rows(path: Path) -> None:
    """Raise RecordingError for a small file that would fill the memory."""
    rows = _count_rows(path)
    most = max(MOST_ROWS_PER_BYTE * path.stat().st_size, 1_000_000)
    if rows > min(most, MOST_ROWS):
        raise RecordingError(
            f"{path}: claims {rows:,} rows in {path.stat().st_size:,} bytes, which ttscope never "
            "writes. Delete it to open the recording without its rows"
        )


@contextlib.contextmanager
def _reading(path: Path, sums: Checksums) -> Iterator[bool]:
    """Check a part, and say whether its checksum is known. Damage is one kind of error."""
    try:
        check_part(path)
        yield checksums.check(path, sums)
    except (FileNotFoundError, RecordingError):  # merged away between listing and reading
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        raise damaged(path) from error


def check_values(path: Path, table: str, rows: pl.DataFrame | pl.LazyFrame) -> None:
    """Raise RecordingError where a value of a part's rows lies outside its column's range."""
    if {"kind", "detail"} <= rows.collect_schema().keys():
        _check_details(path, rows.lazy().select("kind", "detail"))
    if (found := _outside(table, rows)) is not None:
        name, value = found
        low, high = COLUMNS[table][name].low, COLUMNS[table][name].high
        right = "is never missing" if value is None else f"lies between {low} and {high}"
        raise RecordingError(
            f"{path}: says {value} as {name}, which {right}. Delete it to open the recording "
            "without its rows"
        )


def sound_rows(table: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows without those that have a value outside its column's range."""
    if _outside(table, rows) is None:
        return rows
    sound = [
        each.is_between(COLUMNS[table][name].low, COLUMNS[table][name].high).fill_null(True)
        for name, values in _ranged(table, rows).items()
        for each in (
            (values.list.min(), values.list.max())
            if isinstance(COLUMNS[table][name].type, pl.List)
            else (values,)
        )
    ]
    sound += [pl.col(name).is_not_null() for name in _nulls(table, rows)]
    return rows.filter(pl.all_horizontal(sound))


def _ranged(table: str, rows: pl.DataFrame | pl.LazyFrame) -> dict[str, pl.Expr]:
    return {n: pl.col(n) for n in rows.collect_schema() if isfinite(COLUMNS[table][n].low)}


def _nulls(table: str, rows: pl.DataFrame | pl.LazyFrame) -> dict[str, int]:
    """Return how often each column that is always present is missing."""
    names = [name for name in rows.collect_schema() if COLUMNS[table][name].present]
    counts = rows.lazy().select(pl.col(names).null_count()).collect()
    return counts.row(0, named=True) if names else {}


def _outside(table: str, rows: pl.DataFrame | pl.LazyFrame) -> tuple[str, float | None] | None:
    """Return a column and a value of it that lies outside its range; None where there is none."""
    ends = [pl.lit(0).alias("")]
    for name, values in _ranged(table, rows).items():
        each = values.explode() if isinstance(COLUMNS[table][name].type, pl.List) else values
        ends += [each.min().alias(f"{name} min"), each.max().alias(f"{name} max")]
    found = rows.lazy().select(ends).collect().row(0, named=True)
    for name, missing in _nulls(table, rows).items():
        if missing:
            return name, None
    for end, value in found.items():
        column = COLUMNS[table].get(end.partition(" ")[0])
        if column is not None and value is not None and not column.low <= value <= column.high:
            return end.partition(" ")[0], value
    return None


def _check_details(path: Path, events: pl.LazyFrame) -> None:
    """Raise RecordingError for an event whose detail is not what its kind says."""
    told = events.filter(pl.col("kind").is_in(list(DETAILS))).drop_nulls().collect()
    for kind, detail in told.iter_rows():
        try:
            msgspec.json.decode(detail, type=DETAILS[kind])
        except (ValueError, RecursionError):
            raise RecordingError(
                f"{path}: the detail of an event {kind} is not what ttscope writes. Delete it to "
                "open the recording without its rows"
            ) from None
