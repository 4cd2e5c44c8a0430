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
from typing import Any, BinaryIO

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
MOST_VALUES_PER_BYTE = 64  # of a list column of over ten million values: ours have few
MOST_FOOTER = 4 << 20  # bytes; a row group takes about 4 KB
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
    if head != _MAGIC or tail[4:] != _MAGIC or not 0 < footer <= min(size - 12, MOST_FOOTER):
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
        _check_claims(path, table, wanted)
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
        held = part_schema(path)
        names = [name for name in TABLES[table] if name in held]
        _check_claims(path, table, names)
        if not sure:
            check_values(path, table, scan_part(path, table, names))
    return path


def _check_claims(path: Path, table: str, names: Sequence[str]) -> None:
    """Raise RecordingError for a small file whose columns would fill the memory."""
    rows, size = _count_rows(path), path.stat().st_size
    if rows > min(max(MOST_ROWS_PER_BYTE * size, 1_000_000), MOST_ROWS):
        raise _claims(path, f"{rows:,} rows")
    listed = [name for name in names if COLUMNS[table][name].listed]
    for name, values in _count_values(path).items() if listed else ():
        if name in listed:
            most = max(MOST_VALUES_PER_BYTE * size, 10_000_000)
            if values > min(rows * COLUMNS[table][name].longest, most):
                raise _claims(path, f"{values:,} values of {name}")


def _claims(path: Path, what: str) -> RecordingError:
    return RecordingError(
        f"{path}: claims {what} in {path.stat().st_size:,} bytes, which ttscope never writes. "
        "Delete it to open the recording without its rows"
    )


def _count_values(path: Path) -> Counter[str]:
    """Return how many values a part's columns hold, those in lists too, from its footer."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        size = int.from_bytes(file.read(4), "little")
        file.seek(-8 - size, os.SEEK_END)
        footer = _Thrift(file.read(size)).value(_Thrift.STRUCT)
    counts = Counter[str]()
    for column in (column for group in footer[4] for column in group[1]):
        counts[column[3][3][0].decode()] += column[3][5]
    return counts


class _Thrift:
    """Reads Thrift's compact protocol; a struct is a dict by the numbers of its fields."""

    STRUCT = 12

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def value(self, kind: int) -> Any:
        if kind <= 2:
            return kind == 1
        if kind in (4, 5, 6):
            number = self._number()
            return (number >> 1) ^ -(number & 1)
        if kind in (3, 7, 8):
            size = {3: 1, 7: 8}.get(kind) or self._number()
            self._at += size
            return self._data[self._at - size : self._at]
        if kind in (9, 10):
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._number()
            if size > len(self._data) - self._at:
                raise ValueError("a list is longer than the footer")
            return [self.value(head & 15) for _ in range(size)]
        if kind != self.STRUCT:
            raise ValueError(f"a footer of Parquet has no type {kind}")
        fields: dict[int, Any] = {}
        name = 0
        while head := self._byte():
            name = name + (head >> 4) if head >> 4 else self.value(4)
            fields[name] = self.value(head & 15)
        return fields

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _number(self) -> int:
        number = 0
        for place in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 127) << place
            if byte < 128:
                return number
        raise ValueError("a number has over 64 bits")


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
        raise RecordingError(
            f"{path}: says {found}. Delete it to open the recording without its rows"
        )


def sound_rows(table: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows without those that have a value outside its column's range."""
    if _outside(table, rows) is None:
        return rows
    sound = [
        each.is_between(low, high).fill_null(True) for _, each, low, high in _ranged(table, rows)
    ]
    sound += [pl.col(name).is_not_null() for name in _nulls(table, rows)]
    return rows.filter(pl.all_horizontal(sound))


def _ranged(
    table: str, rows: pl.DataFrame | pl.LazyFrame
) -> Iterator[tuple[str, pl.Expr, float, float]]:
    """Give what has a range, an expression of it, and its ends."""
    for name in rows.collect_schema():
        column, values = COLUMNS[table][name], pl.col(name)
        if column.listed:
            yield f"the length of {name}", values.list.len(), 0, column.longest
        if isfinite(column.low):
            for each in (values.list.min(), values.list.max()) if column.listed else (values,):
                yield name, each, column.low, column.high


def _nulls(table: str, rows: pl.DataFrame | pl.LazyFrame) -> dict[str, int]:
    """Return how often each column that is always present is missing."""
    names = [name for name in rows.collect_schema() if COLUMNS[table][name].present]
    counts = rows.lazy().select(pl.col(names).null_count()).collect()
    return counts.row(0, named=True) if names else {}


def _outside(table: str, rows: pl.DataFrame | pl.LazyFrame) -> str | None:
    """Return what lies outside its range, in words; None where nothing does."""
    ranged = list(_ranged(table, rows))
    ends = [
        end.alias(f"{place} {number}")
        for place, (_, each, _, _) in enumerate(ranged)
        for number, end in enumerate((each.min(), each.max()))
    ]
    found = rows.lazy().select(pl.lit(0), *ends).collect().row(0)[1:]
    for name, missing in _nulls(table, rows).items():
        if missing:
            return f"None as {name}, which is never missing"
    for place, value in enumerate(found):
        what, _, low, high = ranged[place // 2]
        if value is not None and not low <= value <= high:
            return f"{value} as {what}, which lies between {low} and {high}"
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
