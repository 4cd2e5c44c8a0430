"""A file beside recordings by which the terminal app lists them before it has read them.

It holds the cells of the table and what they sort by, nothing else, and nothing but the list is
taken from it. A recording whose files hold something else than noted is not in it for us, nor is
anything where the file is damaged, foreign, too large or of other code. The files are read for that
only where their times are others. Where the folder cannot be written the app works without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from traces.errors import RecordingError
from traces.files import code_version
from traces.recording import checksums
from traces.recording.reader import content_of

NAME = ".ttscope-index.json"
MOST_BYTES = 16 << 20
MOST_RECORDINGS = 10_000
FEWEST = 50  # recordings in a folder: fewer are read soon enough
_LONGEST = 1_000  # characters of a cell


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table: cells and what they sort by, by header."""

    title: str
    cells: dict[str, str]
    values: dict[str, float | str | None]
    problems: int
    complete: bool


class Noted(msgspec.Struct, frozen=True):
    """The rows of a recording: the state in which its files held `content`."""

    state: str
    content: str
    rows: list[Listed]


class _Index(msgspec.Struct):
    code: str
    recordings: dict[str, Noted]


def state_of(folder: Path) -> str:
    """Return what changes whenever a file of a recording is written. Raises OSError."""
    with os.scandir(folder) as entries:
        files = sorted((e.name, *checksums.state(e.stat(follow_symlinks=False))) for e in entries)
    return hashlib.blake2b(repr(files).encode(), digest_size=16).hexdigest()


def read_index(folder: Path) -> dict[str, Noted]:
    """Return what is noted of the recordings in a folder, by their names."""
    try:
        # A link or a pipe of that name is none of ours.
        opened = os.open(folder / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(opened, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
                return {}
            index = msgspec.json.decode(file.read(MOST_BYTES), type=_Index)
    except (OSError, ValueError, RecursionError):
        return {}
    if index.code != code_version() or len(index.recordings) > MOST_RECORDINGS:
        return {}
    return {name: noted for name, noted in index.recordings.items() if _sound(noted)}


def write_index(folder: Path, noted: Mapping[str, Noted]) -> bool:
    """Write the index of a folder whole or not at all; return whether that could be done."""
    kept = dict(list(noted.items())[-MOST_RECORDINGS:])
    data = msgspec.json.encode(_Index(code_version(), kept))
    if len(data) > MOST_BYTES:
        return False
    partial: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{NAME}.", delete=False) as file:
            partial = Path(file.name)
            file.write(data)
        partial.replace(folder / NAME)
    except OSError:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink()
        return False
    return True


def _sound(noted: Noted) -> bool:
    texts: list[str] = []
    for row in noted.rows:
        texts += [row.title, *row.cells.values()]
        texts += [value for value in row.values.values() if isinstance(value, str)]
    return all(text.isprintable() and len(text) <= _LONGEST for text in texts)


class Indexes:
    """The indexes of the folders that recordings lie in, read when first asked and kept."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, Noted]] = {}
        self._changed: set[Path] = set()

    def _of(self, folder: Path) -> dict[str, Noted]:
        if folder not in self._known:
            self._known[folder] = read_index(folder)
        return self._known[folder]

    def rows(self, path: Path) -> Sequence[Listed] | None:
        """Return the rows of a recording whose files hold what is noted, else None.

        Raises OSError, or RecordingError where its files cannot be read.
        """
        noted = self._of(path.parent).get(path.name)
        if noted is None:
            return None
        state = state_of(path)
        if noted.state != state:
            if noted.content != content_of(path):
                return None
            self._take(path, Noted(state, noted.content, noted.rows))
        return noted.rows

    def note(self, path: Path, state: str, rows: Sequence[Listed]) -> None:
        """Note the rows of a recording that was read in a state, if it is in that state still."""
        with contextlib.suppress(OSError, RecordingError):
            content = content_of(path)
            if state_of(path) == state:
                self._take(path, Noted(state, content, list(rows)))

    def _take(self, path: Path, noted: Noted) -> None:
        if self._of(path.parent).get(path.name) != noted:
            self._known[path.parent][path.name] = noted
            self._changed.add(path.parent)

    def write(self) -> None:
        """Write what was noted, without recordings that are gone."""
        changed, self._changed = self._changed, set()
        for folder in changed:
            there = {n: each for n, each in self._known[folder].items() if (folder / n).is_dir()}
            if len(there) >= FEWEST:
                write_index(folder, there)
