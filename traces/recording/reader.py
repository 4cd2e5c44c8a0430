"""Reading a recording: a folder with `recording.json` and the tables' Parquet parts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Self, TypeVar

import polars as pl

from traces.errors import RecordingError
from traces.recording import checksums
from traces.recording.checksums import Checksums, read_checksums
from traces.recording.manifest import NAME, Manifest, read_manifest, recordings_in
from traces.recording.parts import (
    Part,
    check_part,
    check_values,
    checked_part,
    damaged,
    last_rows,
    list_parts,
    missing_parts,
    own_parts,
    part_rows,
    read_part,
    scan_part,
)
from traces.recording.tables import STEP_TIMES, TABLES
from traces.recording.window_cost import WindowCost
from traces.schema.engine import EngineConfig

CHECKPOINT = "checkpoint"  # the role of requests that are no part of the timed run
TOKENS = ("token_ids", "token_logprobs")  # of samples, where text is recorded: most of their bytes

Found = TypeVar("Found")


@dataclass(frozen=True)
class Recording:
    """A recording on disk; `open` it, then read its tables as polars frames.

    Its properties stay in memory once read. `samples` lack the columns `unread`.
    """

    path: Path
    manifest: Manifest
    unread: tuple[str, ...] = ()
    named: str | None = None  # where its folder's name is that of another's too

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the recording in `path`. Raises RecordingError, or NewerSchemaError."""
        folder = Path(path)
        recording = cls(folder, read_manifest(folder))
        for table in TABLES:
            for part in list_parts(folder, table):
                try:
                    check_part(part.path)
                except FileNotFoundError:  # merged by a writer that is still at work
                    continue
        return recording

    @cached_property
    def _missing(self) -> list[str]:
        """The files of a complete recording that are gone."""
        if not self.manifest.complete:
            return []
        sums = read_checksums(self.path)
        return [name for table in TABLES for name in missing_parts(self._parts(table), table, sums)]

    @property
    def losses(self) -> list[str]:
        """What is missing from the tables, one line a table or file."""
        gone = [f"{name} is missing: its rows are lost" for name in self._missing]
        return [*self.manifest.losses, *gone]

    def afresh(self) -> Recording:
        """Return the same with nothing in memory, its samples without tokens, for many."""
        return replace(self, unread=TOKENS)

    @property
    def in_memory(self) -> bool:
        """Whether its samples are in memory already."""
        return "samples" in vars(self)

    @property
    def name(self) -> str:
        """The folder's name, which the user chose; more of its path beside one of that name."""
        return self.named or self.path.name

    @property
    def complete(self) -> bool:
        """Whether the run ended by itself (not killed, nothing lost) and no file is missing."""
        return self.manifest.complete and not self._missing

    @property
    def cut(self) -> str | None:
        """Why it is not complete, None where it is."""
        if self.complete:
            return None
        if self.manifest.clock_end is None:
            return "the run was cut off or is still going"
        if self.manifest.failure is not None:
            return f"writing failed with {self.manifest.failure}"
        return "rows or files are missing" if self.losses else "ended early"

    @property
    def replay_of(self) -> str | None:
        """The recording that a replay predicted this one from; None for what was measured."""
        replayed = self.manifest.provenance.get("replayed")
        return str(replayed.get("recording")) if isinstance(replayed, dict) else None

    def engine_key(self, engine: EngineConfig) -> str:
        """Return the key that an engine's rows have.

        A live engine whose plugin told of it late keeps the key that it began with.
        """
        engines = self.manifest.engines.items()
        return next((key for key, each in engines if each == engine), engine.key())

    def frame(self, table: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return a table in memory, with all columns or some, each span's last row.

        Raises RecordingError naming the file when a part is corrupt.
        """
        frames = self._of_parts(table, lambda path, sums: read_part(path, table, columns, sums))
        schema = {name: TABLES[table][name] for name in columns or TABLES[table]}
        rows = pl.concat([pl.DataFrame(schema=schema), *frames])
        if "imported" in self.manifest.provenance:  # written once
            return rows
        return last_rows(rows.lazy(), table).collect()

    def rows(self, table: str) -> int:
        """Return how many rows a table's footers tell, superseded too. Raises RecordingError."""
        return sum(self._of_parts(table, part_rows))

    def _of_parts(self, table: str, read: Callable[[Path, Checksums], Found]) -> list[Found]:
        """Read every part, again where a writer merged some meanwhile."""

        def once() -> list[Found]:
            parts, sums = self._parts(table), read_checksums(self.path)
            own = own_parts(parts, sums, closed=self.manifest.complete)
            return [read(part.path, sums) for part in own]

        return begin_again(self, once)

    def _parts(self, table: str) -> list[Part]:
        try:
            return list_parts(self.path, table)
        except FileNotFoundError:
            raise RecordingError(
                f"{self.path}: its folder is gone. Give the path that it has now"
            ) from None

    def paths(self, table: str) -> list[Path]:
        """Return the table's files in order, as they were written. Raises RecordingError."""
        return self._of_parts(table, lambda path, sums: checked_part(path, table, sums))

    def table(self, table: str) -> pl.LazyFrame:
        """Return a table as a lazy frame, for recordings that do not fit in memory.

        Raises RecordingError as `frame` does, but for rows that turn out damaged when collected.
        """
        paths = self.paths(table)
        if not paths:
            return pl.LazyFrame(schema=TABLES[table])
        lazy = pl.scan_parquet(
            paths, missing_columns="insert", schema=dict(TABLES[table]), glob=False
        )
        return last_rows(lazy, table)

    @cached_property
    def window_costs(self) -> dict[str, WindowCost]:
        """What windows cost by engine, as far as that was asked for (`problems.engine_windows`)."""
        return {}

    @cached_property
    def problems(self) -> pl.DataFrame:
        return self.frame("problems")

    @cached_property
    def samples(self) -> pl.DataFrame:
        """The requests of the timed run, one row each, in every role but "checkpoint"."""
        columns = [name for name in TABLES["samples"] if name not in self.unread]
        samples = self.frame("samples", columns)
        kept = samples["role"].fill_null("sample") != CHECKPOINT
        return samples if kept.all() else samples.filter(kept)

    @cached_property
    def checkpoints(self) -> pl.DataFrame:
        """The requests that forced answers at budgets, after the timed run."""
        return self.frame("samples").filter(pl.col("role") == CHECKPOINT)

    @cached_property
    def steps(self) -> pl.DataFrame:
        return self.frame("steps")

    @cached_property
    def step_times(self) -> pl.DataFrame:
        """The columns `STEP_TIMES` of the steps: what a summary and a timeline need.

        Texts are categorical, and read before the others: of a million steps they take 32 MB.
        """
        texts = ("engine", "source")
        others = [name for name in STEP_TIMES if name not in texts]

        def read(path: Path, sums: Checksums) -> pl.DataFrame:
            few = read_part(path, "steps", texts, sums)
            few = few.with_columns(pl.all().cast(pl.Categorical))
            return few.hstack(read_part(path, "steps", others, sums)).select(STEP_TIMES)

        schema = {name: TABLES["steps"][name] for name in STEP_TIMES}
        schema |= dict.fromkeys(texts, pl.Categorical())
        return pl.concat([pl.DataFrame(schema=schema), *self._of_parts("steps", read)])


@dataclass(frozen=True)
class Held(Recording):
    """A complete recording that is on no disk: its `tables` are in memory."""

    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict, repr=False, compare=False)

    @property
    def complete(self) -> bool:
        return True

    @property
    def losses(self) -> list[str]:
        return self.manifest.losses

    def frame(self, table: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        rows = self.tables.get(table)
        rows = pl.DataFrame(schema=TABLES[table]) if rows is None else rows
        return rows if columns is None else rows.select(*dict.fromkeys(columns))

    def rows(self, table: str) -> int:
        return self.frame(table).height

    @cached_property
    def step_times(self) -> pl.DataFrame:
        texts = pl.col("engine", "source").cast(pl.Categorical)
        return self.frame("steps", STEP_TIMES).with_columns(texts)


def measured(recordings: Sequence[Recording]) -> list[Recording]:
    """Return what no replay predicted. Raises RecordingError where only predictions are given."""
    recorded = [each for each in recordings if each.replay_of is None]
    if recordings and not recorded:
        first = recordings[0]
        raise RecordingError(
            f"{first.name} is a prediction. Give the recording that it was replayed from "
            f"({first.replay_of})"
        )
    return recorded


def content_of(folder: Path) -> str:
    """Return a hash of what a recording's files hold, whatever their times are.

    Raises OSError, or RecordingError for a link or a special file.
    """
    own = (NAME, checksums.NAME)
    names = sorted(each for each in os.listdir(folder) if each in own or each.endswith(".parquet"))
    for name in names:
        checksums.check_regular(folder / name)
    files = [(name, checksums.file_digest(folder / name)) for name in names]
    return checksums.digest(repr(files).encode())


def find_recordings(folder: Path) -> list[Path]:
    """Return the recordings in a folder, or the folder itself when it is one, by name."""
    if (folder / NAME).exists():
        return [folder]
    if not folder.is_dir():
        return []
    return recordings_in(folder)


# A table of a recording a piece at a time, for what does not fit in memory at once.


ROWS = 200_000  # at a time


def batches(
    recording: Recording,
    table: str,
    columns: Sequence[str] | None = None,
    where: pl.Expr | None = None,
) -> Iterator[pl.DataFrame]:
    """Give the rows of a table in their order, `ROWS` at a time before `where` chooses among them.

    A column that a file lacks is null. Tables whose rows supersede others are not for this. Raises
    RecordingError naming the file when a part is corrupt, FileNotFoundError where a writer that is
    still at work merged it meanwhile (`begin_again`).
    """
    schema = {name: TABLES[table][name] for name in columns or TABLES[table]}
    needed = sorted(set(schema).union(() if where is None else where.meta.root_names()))
    for part in recording.paths(table):
        count, lazy = part_rows(part, {}), scan_part(part, table, needed)
        for first in range(0, count, ROWS):
            piece = lazy.slice(first, ROWS)
            chosen = piece if where is None else piece.filter(where)
            try:
                rows = chosen.select(list(schema)).collect()
            except FileNotFoundError:
                raise
            except (Exception, pl.exceptions.PanicException) as error:
                raise damaged(part) from error
            check_values(part, table, rows)
            yield rows


def begin_again(recording: Recording, read: Callable[[], Found]) -> Found:
    """Return what `read` gives, again where parts were merged meanwhile. Raises RecordingError."""
    for _ in range(5):
        with suppress(FileNotFoundError):
            return read()
    raise RecordingError(f"{recording.path}: its files change faster than they can be read")


def distinct(
    recordings: Sequence[Recording],
) -> tuple[list[Recording], list[tuple[Recording, Recording]]]:
    """Return the recordings without copies of one, and each copy with what it is one of."""
    first: dict[Hashable, Recording] = {}
    copies = []
    for each in recordings:
        original = first.setdefault(_identity(each), each)
        if original is not each:
            copies.append((each, original))
    return list(first.values()), copies


def told_apart(recordings: Sequence[Recording]) -> list[Recording]:
    """Return the recordings, those of one name with as much of their paths as tells them apart."""
    alike: dict[str, set[Path]] = {}
    for each in recordings:
        alike.setdefault(each.name, set()).add(each.path.absolute())
    return [_among(each, alike[each.name]) for each in recordings]


def both_told_apart(
    recordings: Sequence[Recording], others: Sequence[Recording]
) -> tuple[list[Recording], list[Recording]]:
    """Return both, told apart from one another."""
    named = told_apart([*recordings, *others])
    return named[: len(recordings)], named[len(recordings) :]


def _among(recording: Recording, paths: Iterable[Path]) -> Recording:
    own = recording.path.absolute().parts
    others = [path.parts for path in paths if path.parts != own]
    if not others:
        return recording
    common = max(_same_ends(own, other) for other in others)
    return replace(recording, named=str(Path(*own[-common - 1 :])))


def _same_ends(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many parts of two paths are the same, from their ends."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _identity(recording: Recording) -> Hashable:
    """Return what two copies of a recording share, and no two runs: clocks, contents and sizes."""
    files = sorted((each.name, each.stat().st_size) for each in recording.path.iterdir())
    return json.dumps(recording.manifest.to_json(), sort_keys=True), tuple(files)
