"""Writing a recording: one thread that owns the files.

Whoever measures appends a row, which costs an append to a list; the thread turns rows into one
part per table and second. What does not fit the buffer is dropped and counted, and a disk that
fails never stops the run: rows wait in the buffer for the next second, and `close` says what
was lost.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import polars as pl

from traces.errors import RecordingError
from traces.manifest import NAME, ClockReading, Manifest
from traces.parts import list_parts, merge_all, merge_full_levels, remove_leftovers, write_part
from traces.tables import TABLES

Row = Mapping[str, Any]
Drained = Sequence[Row] | pl.DataFrame
log = logging.getLogger("ttscope.writer")


def read_clocks() -> ClockReading:
    """Read the monotonic and the unix clock together."""
    return ClockReading(monotonic_ns=time.monotonic_ns(), unix_ns=time.time_ns())


class RecordingWriter:
    """Creates a recording and appends to it until `close`.

    Parameters
    ----------
    folder: where the recording is made; created when absent.
    manifest: what is known at the start; `update` changes it.
    capacity: rows per table that may wait for the writer thread.
    period_s: seconds between parts.

    Raises RecordingError when the folder already holds a recording or cannot be written.

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
        self._dropped = dict.fromkeys(TABLES, 0)
        self._sources: list[tuple[str, Callable[[], Drained]]] = []
        self._lock = threading.Lock()
        self._asked: dict[str, Callable[[], Any]] = {}
        self._closing = threading.Event()
        self._failure: str | None = None
        self._manifest_kept = True
        self._create()
        self._next = {
            table: max((part.last + 1 for part in list_parts(self.path, table)), default=0)
            for table in TABLES
        }
        self._thread = threading.Thread(target=self._work, name="ttscope-writer", daemon=True)
        self._thread.start()

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / NAME).exists():
                raise RecordingError(
                    f"{self.path}: already holds a recording; name another folder with -o, "
                    "or delete it"
                )
            for table in TABLES:
                remove_leftovers(self.path, table)
            self.manifest.write(self.path)
        except OSError as error:
            raise RecordingError(f"{self.path}: cannot be written ({error.strerror})") from None

    def append(self, table: str, row: Row) -> None:
        """Add a row: column name to value, absent columns are null. Cheap; never blocks on disk.

        Raises KeyError when a name is not a column of the table.
        """
        unknown = row.keys() - TABLES[table].keys()
        if unknown:
            raise KeyError(f"{table}: no column {', '.join(sorted(unknown))}")
        with self._lock:
            if len(self._rows[table]) >= self._capacity:
                self._dropped[table] += 1
            else:
                self._rows[table].append(row)

    def event(self, kind: str, detail: str, *, engine: str | None = None) -> None:
        """Add a row of `events`, of now."""
        row = {"time": time.time_ns(), "engine": engine, "kind": kind, "detail": detail}
        self.append("events", row)

    def add_source(self, table: str, drain: Callable[[], Drained]) -> None:
        """Have the writer thread call `drain` each period, and once when closing.

        It gives rows, or a frame of some of the table's columns, which is several times cheaper.
        """
        self._sources.append((table, drain))

    def update(self, **changes: Any) -> None:
        """Change fields of the manifest and write it."""
        self.manifest = dataclasses.replace(self.manifest, **changes)
        try:
            self.manifest.write(self.path)
            self._manifest_kept = True
        except OSError as error:
            self._failure, self._manifest_kept = str(error), False

    def at_close(self, **changes: Callable[[], Any]) -> None:
        """Have `close` ask for fields of the manifest that are known when all is drained."""
        self._asked |= changes

    def dropped(self, table: str, count: int) -> None:
        """Count rows that a probe had to drop before they reached the writer."""
        with self._lock:
            self._dropped[table] += count

    def close(self, *, complete: bool) -> None:
        """Write what waits and stop; `complete` says that the run ended by itself.

        Raises RecordingError when the disk failed and rows, or the manifest's end, were lost.
        """
        if not self._closing.is_set():
            self._closing.set()
            self._thread.join()
        lost = {table: count for table, count in self._dropped.items() if count}
        unwritten = {table: count for table in TABLES if (count := self._waiting(table))}
        for table, count in unwritten.items():
            lost[table] = lost.get(table, 0) + count
        self.update(
            complete=complete and not unwritten,
            clock_end=read_clocks(),
            dropped=lost,
            **{name: ask() for name, ask in self._asked.items()},
        )
        if self._failure is not None and (unwritten or not self._manifest_kept):
            rows = (
                f"{sum(unwritten.values())} rows were lost" if unwritten else "its end is missing"
            )
            raise RecordingError(
                f"{self.path}: the disk failed ({self._failure}); {rows}, free some space"
            )

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
                self._flush(table)
            if closing:
                self._compact()
                return

    def _waiting(self, table: str) -> int:
        return len(self._rows[table]) + sum(frame.height for frame in self._frames[table])

    def _drain(self, table: str, drain: Callable[[], Drained]) -> None:
        try:
            drained = drain()
            if not isinstance(drained, pl.DataFrame):
                for row in drained:
                    self.append(table, row)
            elif drained.height:
                room = max(self._capacity - self._waiting(table), 0)
                self._dropped[table] += max(drained.height - room, 0)
                self._frames[table].append(drained.head(room))
        except Exception as error:  # a probe's fault must not cost the other tables
            log.warning("rows of %s were lost (%s: %s)", table, type(error).__name__, error)
            self.dropped(table, 1)

    def _flush(self, table: str) -> None:
        with self._lock:
            count = len(self._rows[table])
            rows = self._rows[table][:count]
        frames = self._frames[table]
        if not count and not frames:
            return
        schema = dict(TABLES[table])
        try:
            made = pl.from_dicts(rows, schema=schema) if rows else pl.DataFrame(schema=schema)
            frame = pl.concat([made, *frames], how="diagonal")
            number = self._next[table]
            write_part(self.path, table, frame, number, number)
            self._next[table] = number + 1
            self._forget(table, count)
            merge_full_levels(self.path, table)
        except (OSError, RecordingError) as error:  # the rows wait for the next second
            self._failure = str(error)
        except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
            log.warning("rows of %s do not fit their columns (%s)", table, error)
            self.dropped(table, self._waiting(table))
            self._forget(table, count)

    def _compact(self) -> None:
        """Leave one file per table; a part that cannot be read stays as it is."""
        try:
            for table in TABLES:
                merge_all(self.path, table)
        except (OSError, RecordingError) as error:
            log.warning("%s: its parts were not merged (%s)", self.path, error)

    def _forget(self, table: str, count: int) -> None:
        self._frames[table].clear()
        with self._lock:
            del self._rows[table][:count]
