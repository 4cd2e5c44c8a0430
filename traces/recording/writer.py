"""Writing a recording: one thread that owns the files.

Whoever measures appends a row, which costs an append to a list. The thread turns rows into one
part per table and second. A disk that fails never stops the run: rows wait in a bounded buffer
and are written when there is room. Rows that do not fit the buffer are dropped and counted by
table, and `close` says so. The room of `recording.json` is reserved, so that it can be finished
on a full disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from traces.clock import now_ns
from traces.errors import RecordingError
from traces.recording import checksums
from traces.recording.manifest import (
    NAME,
    PARTIAL,
    SPARE,
    ClockReading,
    Manifest,
    reserve,
    take_folder,
)
from traces.recording.parts import (
    FAN_IN,
    Part,
    damaged,
    list_parts,
    part_path,
    part_rows,
    remove_leftovers,
    scan_part,
    sound_rows,
    whole_part,
    write_part,
)
from traces.recording.tables import KEYS, TABLES

# Merging the parts of a table into ranges, a piece at a time, so that memory stays bounded.


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
    """Merge a table that grows no more into one file without superseded rows, if not large."""
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


T = TypeVar("T")
Row = Mapping[str, Any]
Drained = Sequence[Row] | pl.DataFrame
log = logging.getLogger("ttscope.writer")
_CTRL_C = 10  # pressed during one write
_FAULTS = (Exception, pl.exceptions.PanicException)  # a panic of polars is no Exception
_OF_OTHERS = (*_FAULTS, KeyboardInterrupt)  # of what is called in the thread: see `unbroken`


def unbroken(work: Callable[[], T]) -> T:
    """Return what polars does in a thread that Ctrl-C does not concern.

    It raises KeyboardInterrupt in the thread in which it works, whichever that is.
    """
    for _ in range(_CTRL_C):
        try:
            return work()
        except KeyboardInterrupt:
            continue
    raise OSError(errno.EINTR, "interrupted again and again")


def read_clocks() -> ClockReading:
    """Read the monotonic and the unix clock together."""
    return ClockReading(monotonic_ns=time.monotonic_ns(), unix_ns=now_ns())


class RecordingWriter:
    """Creates a recording in `folder`, of what `manifest` knows, and appends to it until `close`.

    `capacity` rows per table may wait for the thread, which makes parts every `period_s`. Raises
    RecordingError when the folder already holds a recording or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Manifest,
        *,
        capacity: int = 200_000,
        period_s: float = 1.0,
    ) -> None:
        self.path = Path(folder)
        self.manifest = manifest
        self._capacity = capacity
        self._period_s = period_s
        self._rows: dict[str, list[Row]] = {table: [] for table in TABLES}
        self._frames: dict[str, list[pl.DataFrame]] = {table: [] for table in TABLES}
        self._framed = dict.fromkeys(TABLES, 0)  # rows of `_frames`
        self._dropped = dict.fromkeys(TABLES, 0)  # by probes and by this writer
        self._lost = dict.fromkeys(TABLES, 0)  # by this writer alone
        self._unfit = 0  # rows of any table that were no rows of it
        self._gone: list[str] = []  # tables of which others deleted parts
        self._sources: list[tuple[str, Callable[[], Drained]]] = []
        self._lock = threading.Lock()
        self._updating = threading.Lock()  # several threads tell of engines
        self._asked: dict[str, Callable[[], Any]] = {}
        self._listeners: list[Callable[[str, pl.DataFrame], None]] = []
        self._heard = dict.fromkeys(TABLES, 0)  # rows that wait and were listened to
        self._closing = threading.Event()
        self._failure: str | None = None
        self._manifest_kept = True
        self._create()
        self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)  # the folder that we made
        weakref.finalize(self, os.close, self._handle)
        self._next = {
            table: max((part.last + 1 for part in list_parts(self.path, table)), default=0)
            for table in TABLES
        }
        self._first = dict(self._next)
        self._thread = threading.Thread(target=self._work, name="ttscope-writer", daemon=True)
        self._thread.start()

    def _create(self) -> None:
        self.manifest.check()
        take_folder(self.path, private=self.manifest.text_recorded)
        try:
            for table in TABLES:
                remove_leftovers(self.path, table)
            self._write_manifest(last=False)
        except OSError as error:
            with contextlib.suppress(OSError):  # the folder can be taken again
                (self.path / PARTIAL).unlink(missing_ok=True)
                (self.path / SPARE).unlink(missing_ok=True)
                (self.path / NAME).unlink()
            raise RecordingError(f"{self.path}: cannot be written ({error.strerror})") from None

    def append(self, table: str, row: Row) -> None:
        """Add a row; absent columns are null. Never blocks on disk. KeyError for no column."""
        unknown = row.keys() - TABLES[table].keys()
        if unknown:
            raise KeyError(f"{table}: no column {', '.join(sorted(unknown))}")
        with self._lock:
            if self._waiting(table) >= self._capacity:
                self._lost[table] += 1
            else:
                self._rows[table].append(row)

    def event(self, kind: str, detail: str, *, engine: str | None = None) -> None:
        """Add a row of `events`, of now."""
        row = {"time": now_ns(), "engine": engine, "kind": kind, "detail": detail}
        self.append("events", row)

    def add_source(self, table: str, drain: Callable[[], Drained]) -> None:
        """Have the writer thread call `drain` each period, and once when closing.

        It gives rows, or a frame of some of the table's columns, which is several times cheaper.
        """
        self._sources.append((table, drain))

    def add_listener(self, listener: Callable[[str, pl.DataFrame], None]) -> None:
        """Have the writer thread call this with a table's name and its new rows, each once."""
        self._listeners.append(listener)

    def update(self, **changes: Any) -> None:
        """Change fields of the manifest and write it."""
        self._update(changes, last=False)

    def _update(self, changes: Mapping[str, Any], *, last: bool) -> None:
        with self._updating:
            self.manifest = dataclasses.replace(self.manifest, **changes)
            try:
                self._check_folder()
                self._write_manifest(last=last)
                self._manifest_kept = True
            except OSError as error:
                self._fail(error)
                self._manifest_kept = False

    def _write_manifest(self, *, last: bool) -> None:
        """Write `recording.json` into its room; but for the `last` one, other room is had first."""
        spare = None if last else reserve(self.path, self.manifest)
        self.manifest.write(self.path)
        if spare is not None:
            spare.replace(self.path / PARTIAL)

    def at_close(self, **changes: Callable[[], Any]) -> None:
        """Have `close` ask for fields of the manifest that are known when all is drained."""
        self._asked |= changes

    def dropped(self, table: str, count: int) -> None:
        """Count rows that a probe had to drop before they reached the writer."""
        with self._lock:
            self._dropped[table] += count

    def close(self, *, complete: bool) -> None:
        """Write what waits and stop. `complete` says that the run ended by itself.

        Raises RecordingError when rows were lost, or `recording.json` could not be ended.
        """
        if not self._closing.is_set():
            self._closing.set()
            self._thread.join()
        for table in TABLES:
            self._lost[table] += self._waiting(table)
        lost = sum(self._lost.values())
        dropped = {table: self._dropped[table] + self._lost[table] for table in TABLES}
        end = {
            "complete": complete and not lost and not self._unfit and not self._gone,
            "clock_end": read_clocks(),
            "dropped": {table: count for table, count in dropped.items() if count},
            "failure": self._failure if lost else None,
        }
        self._update(end | {name: ask() for name, ask in self._asked.items()}, last=True)
        if lost or not self._manifest_kept:
            raise RecordingError(f"{self.path}: {self._what_was_lost()}")
        if self._gone:
            raise RecordingError(
                f"{self.path}: parts of {', '.join(self._gone)} were deleted while it was written. "
                "Their rows are lost"
            )

    def _what_was_lost(self) -> str:
        tables = ", ".join(f"{count:,} of {table}" for table, count in self._lost.items() if count)
        rows = f"{sum(self._lost.values()):,} rows were lost ({tables})"
        if not self._manifest_kept:
            rows = f"{rows if tables else 'every row was kept'}, and {NAME} has no end"
        if self._failure is None:
            return f"{rows}. They came faster than they could be written"
        if not self._is_own():
            return f"{rows}. The folder was deleted or moved while it was written"
        return f"{rows}. Writing failed ({self._failure}). Free some space or check permissions"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(complete=kind is None)

    def _work(self) -> None:
        while True:
            closing = self._closing.wait(self._period_s)
            for table, drain in self._sources:
                self._drain(table, drain)
            for table in TABLES:
                try:
                    self._flush(table)
                except _OF_OTHERS as error:  # the other tables are written all the same
                    self._fail(error)
            if closing:
                self._compact()
                return

    def _waiting(self, table: str) -> int:
        return len(self._rows[table]) + self._framed[table]

    def _drain(self, table: str, drain: Callable[[], Drained]) -> None:
        count = 1  # of rows that a fault may cost
        try:
            drained = drain()
            count = max(len(drained), 1)
            if isinstance(drained, pl.DataFrame):
                self._keep(table, drained)
            else:
                for row in drained:
                    self.append(table, row)
                    count -= 1
        except _OF_OTHERS as error:  # a probe's fault must not cost the other tables
            log.warning("rows of %s were lost (%s: %s)", table, type(error).__name__, error)
            self.dropped(table, count)
            self._unfit += count

    def _keep(self, table: str, frame: pl.DataFrame) -> None:
        """Have a frame of some of the table's columns wait, as far as there is room."""
        fitting = unbroken(lambda: frame.cast({n: TABLES[table][n] for n in frame.columns}))
        with self._lock:
            room = max(self._capacity - self._waiting(table), 0)
            self._lost[table] += max(frame.height - room, 0)
            self._frames[table].append(fitting.head(room))
            self._framed[table] += min(frame.height, room)

    def _flush(self, table: str) -> None:
        """Write what waits as one part. Rows stay in memory until their part is on disk."""
        with self._lock:
            rows, self._rows[table] = self._rows[table], []
            self._framed[table] += len(rows)
        if not self._framed[table]:
            return

        def sound() -> pl.DataFrame:
            waiting = [_frame(table, ()), *self._frames[table], _frame(table, rows)]
            return sound_rows(table, pl.concat(waiting, how="diagonal"))

        frame = unbroken(sound)
        unfit = self._framed[table] - frame.height  # the columns or their ranges
        self.dropped(table, unfit)
        self._unfit += unfit
        self._frames[table], self._framed[table] = [frame], frame.height
        self._tell(table, frame[self._heard[table] :])
        self._heard[table] = frame.height
        try:
            self._check_folder()
            number = self._next[table]
            unbroken(lambda: write_part(self.path, table, frame, number, number))
        except _FAULTS as error:
            self._fail(error)  # the rows wait for the next second
            return
        self._frames[table], self._framed[table], self._heard[table] = [], 0, 0
        self._next[table] = number + 1
        try:
            unbroken(lambda: merge_full_levels(self.path, table))
        except _FAULTS as error:
            self._fail(error)  # its sources stay as they are

    def _tell(self, table: str, rows: pl.DataFrame) -> None:
        for listener in list(self._listeners) if rows.height else ():
            try:
                listener(table, rows)
            except _OF_OTHERS as error:  # which must cost no recording
                log.warning("a listener failed (%s: %s)", type(error).__name__, error)
                self._listeners.remove(listener)

    def _fail(self, error: BaseException) -> None:
        """Keep why a write failed, and warn the first time."""
        why = str(getattr(error, "strerror", None) or error).splitlines()[0]
        if self._failure is None:
            log.warning("%s: writing failed (%s). Rows wait in memory", self.path, why)
        self._failure = why

    def _is_own(self) -> bool:
        """Whether our folder is still where it was made, and no other one in its place."""
        try:
            return os.path.samestat(os.fstat(self._handle), self.path.stat())
        except OSError:
            return False

    def _check_folder(self) -> None:
        """Raise OSError where our folder is gone, so that nothing is written into another."""
        self.path.stat()
        if not self._is_own():
            raise OSError(errno.ESTALE, "another folder is in its place")

    def _compact(self) -> None:
        """Leave one file per table; a part that cannot be read stays as it is."""
        try:
            self._check_folder()
            for table in TABLES:
                held = sum(part.last + 1 - part.first for part in list_parts(self.path, table))
                if held < self._next[table] - self._first[table]:
                    self._gone.append(table)
                unbroken(partial(merge_all, self.path, table))
        except _FAULTS as error:
            log.warning("%s: its parts were not merged (%s)", self.path, error)


def _frame(table: str, rows: Sequence[Row]) -> pl.DataFrame:
    """Return rows as a frame of the table, without those that do not fit its columns."""
    schema = dict(TABLES[table])
    if not rows:
        return pl.DataFrame(schema=schema)
    try:
        return pl.from_dicts(rows, schema=schema)
    except _FAULTS as error:
        if len(rows) == 1:
            why = str(error).splitlines()[0]
            log.warning("a row of %s does not fit its columns (%s)", table, why)
            return pl.DataFrame(schema=schema)
        half = len(rows) // 2
        return pl.concat([_frame(table, rows[:half]), _frame(table, rows[half:])])
