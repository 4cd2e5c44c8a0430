"""The recording that an importer writes: parts of its tables, then notes and manifest."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from traces.errors import RecordingError
from traces.foreign.values import Skipped, models_named
from traces.recording import checksums
from traces.recording.manifest import Manifest, check_free, make_folder
from traces.recording.parts import list_parts, whole_part, write_part
from traces.recording.tables import in_table
from traces.recording.writer import read_clocks
from traces.schema.engine import EngineConfig, ModelFacts
from traces.schema.tts.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import found: a line, `rows` of cells, notes, and `facts`, the numbers by name.

    `files` is what was read of each file, `skipped` what was left out of a single one.
    """

    head: str
    rows: Sequence[tuple[str, ...]] = ()
    facts: Mapping[str, Any]
    files: Sequence[Any] = ()
    skipped: Skipped = field(default_factory=lambda: Skipped(unit="line"))
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**self.facts, "notes": list(self.notes)}


@dataclass
class Written:
    """The parts written so far, `private` ones into a folder that is this user's alone."""

    folder: Path
    private: bool = False
    _files: list[Path] = field(default_factory=list)
    _parts: Counter[str] = field(default_factory=Counter)

    def add(self, table: str, rows: pl.DataFrame, **same: str) -> None:
        """Write a part of a table; `same` are columns that have one value. Raises OSError."""
        rows = rows.with_columns(**{name: pl.lit(value) for name, value in same.items()})
        self._write(table, in_table(table, rows))

    def add_whole(self, table: str, rows: pl.DataFrame, slice_rows: int, **same: str) -> None:
        """Write rows in parts, without empty columns; `same` have one value. Raises OSError."""
        held = {*same, *(name for name in rows.columns if rows[name].null_count() < rows.height)}
        for part in rows.iter_slices(slice_rows):
            padded = in_table(table, part.with_columns(**{k: pl.lit(v) for k, v in same.items()}))
            self._write(table, padded.select(name for name in padded.columns if name in held))

    def copy(self, table: str, parts: Sequence[Path]) -> None:
        """Take the parts of a table of another recording as they are. Raises OSError."""
        make_folder(self.folder, private=self.private)
        for path in parts:
            target = self.folder / path.name
            self._files.append(target)
            with path.open("rb") as source, whole_part(target) as file:
                shutil.copyfileobj(source, file)
        self._parts[table] = max(
            (part.last + 1 for part in list_parts(self.folder, table)), default=0
        )

    def _write(self, table: str, rows: pl.DataFrame) -> None:
        make_folder(self.folder, private=self.private)
        number = self._parts[table]
        self._files.append(write_part(self.folder, table, rows, number, number))
        self._parts[table] += 1

    def finish(
        self, imported: Mapping[str, Any], notes: Iterable[tuple[str, str]], **facts: Any
    ) -> None:
        """Write notes (an engine's key, the text) and the manifest, which makes it a recording.

        `imported` is what its provenance says, `facts` are its other fields. Raises OSError.
        """
        rows = [{"engine": engine, "detail": text} for engine, text in notes]
        self.add("events", pl.DataFrame(rows), kind="note")
        clock = read_clocks()
        Manifest(
            clock_start=clock,
            clock_end=clock,
            provenance={"imported": dict(imported)},
            complete=True,
            **facts,
        ).write(self.folder)

    def finish_one(
        self,
        imported: Mapping[str, Any],
        notes: Iterable[str],
        engine: EngineConfig,
        policy: Policy | None = None,
        model: ModelFacts | None = None,
        **facts: Any,
    ) -> None:
        """Do as `finish` does for one engine and its model, and one policy or none."""
        self.finish(
            imported,
            [(engine.key(), note) for note in notes],
            engines={engine.key(): engine},
            policies={} if policy is None else {policy.key(): policy},
            models=models_named(model, engine),
            **facts,
        )

    def undo(self) -> None:
        """Remove what was written, so that the folder holds no half of a recording."""
        for path in (*self._files, self.folder / checksums.NAME):
            path.unlink(missing_ok=True)


@contextmanager
def written_into(folder: Path, *, private: bool = False) -> Iterator[Written]:
    """Give what writes a recording; where the block fails, nothing of it is left.

    Raises UsageError where the folder holds one, RecordingError where it cannot be written.
    """
    check_free(folder)
    written = Written(folder, private)
    try:
        yield written
    except OSError as error:
        written.undo()
        raise RecordingError(f"{folder}: cannot be written ({error.strerror})") from None
    except BaseException:
        written.undo()
        raise
