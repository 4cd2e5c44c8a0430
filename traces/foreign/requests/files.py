"""The files of one load, read one after the other: mostly one, of agents one a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl

from traces.errors import OutcomesError, UsageError
from traces.foreign.requests.reader import RequestChoices, RequestFacts, RequestReader
from traces.foreign.source import format_of, head_of, own_name
from traces.foreign.values import Skipped

_MOST_NAMED = 3  # of many files with the same note
_MOST_FAULTS = 5


class RequestFiles:
    """Requests of files of one format, iterated once.

    `facts`, `skipped` and `read` are whole afterwards: what the files say together, what was left
    out of them, and what was read of each. A file that cannot be read is left out of several.
    Raises OutcomesError where nothing can be read, UsageError for files that are no one load.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        choices: RequestChoices,
        formats: Sequence[type[RequestReader]],
    ) -> None:
        self.format = _format(paths, formats)
        self.paths = paths
        if len(paths) > 1 and not self.format.several:
            raise UsageError("give one file of requests at a time. Each is a load of its own")
        self.facts = RequestFacts()
        self.skipped = Skipped(unit=self.format.unit)
        self.read: list[dict[str, Any]] = []
        self._choices, self._unshared = choices, count(-1, -1)
        self._sessions: dict[str, Path] = {}
        self._told: dict[str, list[str]] = {}  # notes, with the files that have each
        self._faults: dict[str, list[str]] = {}  # why files are left out, and which are
        self._own_names = 0

    @property
    def alone(self) -> bool:
        """Whether one file is the whole load."""
        return len(self.paths) == 1

    @property
    def name(self) -> str:
        """What to call the load: the file, or how many there are."""
        return self.paths[0].name if self.alone else f"{len(self.paths):,} files"

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Yield frames with the columns of `REQUESTS`, and a problem_id that no other file has."""
        for path in self.paths:
            reader = self.format(path, self._choices, self._unshared)
            try:
                yield from self._frames(path, reader)
            except OutcomesError as error:
                if self.alone:
                    raise
                why = str(error).removeprefix(f"{path}: ")
                self._faults.setdefault(why, []).append(path.name)
        if not self.read:
            raise OutcomesError(f"none of {self.name} can be read. {self._left_out()[0]}")

    def notes(self) -> list[str]:
        """Return what a reader must know of the files."""
        notes = _by_file(self._told)
        if self.skipped.counts:
            notes.append(f"{self.name}: skipped: {self.skipped.text()}")
        if self._faults:
            count = sum(map(len, self._faults.values()))
            notes.append(f"files that are left out: {count:,}. {'. '.join(self._left_out())}")
        if len(self.facts.models) > 1:
            models = ", ".join(f"{name} {uses:,}" for name, uses in self.facts.models.items())
            notes.append(f"requests of several models: {models}. They are taken for those of one")
        if not self.alone:
            notes.append(
                "each file begins at 0. How its session lay in time to the others is not known"
            )
        if not self.alone and self._own_names:
            notes.append(
                "prompts share blocks within their session alone, as hash ids hold in their file "
                "alone. What sessions have in common, such as tools, is not known"
            )
        return notes

    def each(self) -> list[dict[str, Any]]:
        """Return what to keep of each file, of those that are left out why."""
        faults = self._faults.items()
        return self.read + [_file(name, 0, {}, [why]) for why, names in faults for name in names]

    def _left_out(self) -> list[str]:
        """Return why files are left out, for the first reasons."""
        more = len(self._faults) - _MOST_FAULTS
        rest = [f"There are {more:,} more reasons"] if more > 0 else []
        return _by_file(self._faults)[:_MOST_FAULTS] + rest

    def _frames(self, path: Path, reader: RequestReader) -> Iterator[pl.DataFrame]:
        """Yield a file's frames. Raises OutcomesError and UsageError as a reader does."""
        if not self.format.recognises(head_of(path)):
            raise OutcomesError(f"{path}: no {self.format.name}")
        requests = 0
        try:
            for frame in reader:
                if not requests:
                    self._check(path, reader.facts)
                requests += frame.height
                begin = "" if self.alone else f"{reader.facts.session}/"
                yield frame.with_columns(problem_id=pl.lit(begin) + pl.col("place").cast(pl.Utf8))
        finally:
            if requests:
                self._close(path, reader, requests)
        if not requests:
            why = reader.skipped.text()
            raise OutcomesError(
                f"{path}: no request in it can be read as {self.format.name} "
                f"({why or 'it has none'}). See docs/import.md for what must be there"
            )

    def _check(self, path: Path, facts: RequestFacts) -> None:
        """Take a file into the load. Raises OutcomesError for one that is there already."""
        first = next(iter(self._sessions.values()), path)
        if not self._sessions:
            self.facts = facts
        if facts.block_tokens != self.facts.block_tokens:
            raise UsageError(
                f"{path}: has blocks of {facts.block_tokens} tokens, and {first} of "
                f"{self.facts.block_tokens}. Import them by themselves"
            )
        session = facts.session or own_name(path)
        if session in self._sessions:
            raise OutcomesError(f"{path}: has the id of an earlier file")
        self._sessions[session] = path

    def _close(self, path: Path, reader: RequestReader, requests: int) -> None:
        """Keep what a file says of itself."""
        facts = reader.facts
        self.skipped.join(reader.skipped, "" if self.alone else f"{path.name} ")
        self._own_names += facts.own_names
        if facts is not self.facts:
            self.facts.models += facts.models
        for note in facts.notes:
            self._told.setdefault(note, []).append(path.name)
        self.read.append(_file(path.name, requests, reader.skipped.counts, facts.notes))


def _format(paths: Sequence[Path], formats: Sequence[type[RequestReader]]) -> type[RequestReader]:
    """Return the format of the first file that has one. Raises OutcomesError where none has."""
    faults = []
    for path in paths:
        try:
            if (found := format_of(path, formats)) is not None:
                return found
        except OutcomesError as error:
            faults.append(error)
    raise (
        faults[0]
        if faults
        else OutcomesError(f"{paths[0]}: holds no requests that can be read (see docs/import.md)")
    )


def _file(
    name: str, requests: int, skipped: Mapping[str, int], notes: Sequence[str]
) -> dict[str, Any]:
    return {"name": name, "requests": requests, "skipped": skipped, "notes": notes}


def _by_file(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each note behind the names of the first files that have it."""
    lines = []
    for note, files in notes.items():
        more = len(files) - _MOST_NAMED
        names = ", ".join(files[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
        lines.append(f"{names}: {note}")
    return lines
