"""What the Recordings screen does to files: open others, import, delete. No Textual here."""

from __future__ import annotations

import contextlib
import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from traces.errors import RecordingError, TtscopeError, UsageError
from traces.foreign.kinds import files_in, kind_of
from traces.foreign.written import Imported
from traces.recording import checksums
from traces.recording.manifest import NAME
from traces.recording.reader import find_recordings
from traces.recording.tables import TABLES

HIGHEST_PRICE = 1_000_000  # USD per device-hour

_PARTS = rf"(?:{'|'.join(TABLES)})-\d{{6,}}(?:-\d{{6,}})?\.(?:parquet|partial)"
_OURS = re.compile(rf"{_PARTS}|(?:{NAME}|{checksums.NAME})(?:\.partial|\.spare)?")


@dataclass(frozen=True, kw_only=True)
class ImportMade:
    """A new recording of other tools' files, and what a reader must know of it."""

    folder: Path
    told: str
    notes: tuple[str, ...]


def words_of(text: str) -> list[str]:
    """Return what was typed as words, as a shell does. Raises UsageError for an open quote."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text}: {error}. Close it, or put a backslash before it") from None


def paths_of(text: str) -> list[Path]:
    """Return the paths that were typed, with `~` and wildcards.

    Raises UsageError for quotes that are not closed, and for a path that is not there.
    """
    words = words_of(text)
    paths: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        wild = any(mark in word for mark in "*?[") and not path.exists()
        matches = sorted(path.parent.glob(path.name)) if wild else [path]
        missing = not matches or not matches[0].exists()
        if missing:
            raise UsageError(f"{word}: there is no such file or folder{_near(path)}")
        paths += matches
    return paths


def _near(path: Path) -> str:
    """Return which name beside a path that is not there may be meant, in words."""
    with contextlib.suppress(OSError):
        names = [each.name for each in path.parent.iterdir()]
        near = difflib.get_close_matches(path.name, names, n=1)
        if near:
            return f". Did you mean {path.parent / near[0]}?"
    return ""


def recordings_at(text: str) -> list[Path]:
    """Return the recordings in the paths that were typed. Raises UsageError where there is none."""
    recordings: list[Path] = []
    for path in paths_of(text):
        inside = find_recordings(path)
        if not inside:
            raise UsageError(f"{path}: holds no recording (a recording is a folder with {NAME})")
        recordings += inside
    return recordings


def price_of(text: str) -> float | None:
    """Return USD per device-hour, None for `-`. Raises UsageError for anything else."""
    plain = text.strip().removeprefix("$")
    if plain == "-":
        return None
    if "=" in plain or "," in plain:
        raise UsageError(
            f"price {text}: one price for all devices is wanted here, such as 2.5. Prices by type "
            "go into $/h on screen 4"
        )
    try:
        price = float(plain)
    except ValueError:
        price = float("nan")
    if not 0 < price <= HIGHEST_PRICE:
        raise UsageError(
            f"price {text}: give USD per device-hour, such as 2.5 and at most {HIGHEST_PRICE:,}. "
            "Or - for none"
        )
    return price


def import_into(text: str, folder: Path) -> ImportMade:
    """Import the files that were typed into a new recording in `folder`, named after the first.

    Raises UsageError, and what the importers of traces/foreign raise.
    """
    from traces.foreign.evaluations.importer import import_outcomes
    from traces.foreign.profiler_traces import import_traces
    from traces.foreign.requests.importer import import_requests
    from traces.foreign.source import own_name
    from traces.foreign.steps.bench_forward import import_forwards
    from traces.foreign.steps.forward_passes import import_passes

    paths = files_in(paths_of(text))
    if not paths:
        raise UsageError(
            "name the files to import: profiler traces, samples of evaluations, requests, or "
            "forward passes"
        )
    kind = kind_of(paths)
    name = own_name(paths[0])
    target, count = folder / name, 2
    while target.exists():
        target, count = folder / f"{name}-{count}", count + 1
    importers: dict[str, Callable[..., Imported]] = {
        "samples": import_outcomes,
        "traces": import_traces,
        "passes": import_passes,
        "requests": import_requests,
        "forwards": import_forwards,
    }
    given = paths[0] if kind == "forwards" else paths
    made = importers[kind](given, target)
    return ImportMade(folder=target, told=made.head, notes=tuple(made.notes[1:]))


def size_bytes(folder: Path) -> int:
    """Return the bytes of a recording's own files. Raises RecordingError where it is gone."""
    total = 0
    for path in _own_files(folder):
        with contextlib.suppress(FileNotFoundError):  # merged by a writer that is still at work
            total += path.stat().st_size
    return total


def delete_recording(folder: Path) -> Sequence[Path]:
    """Delete a recording's own files, then the folder when it is empty; return what stays in it.

    Raises RecordingError when it is no recording, or cannot be deleted.
    """
    if not (folder / NAME).exists():
        raise RecordingError(f"{folder}: not a recording. Nothing was deleted")
    try:
        for path in sorted(_own_files(folder), key=lambda path: path.name == NAME):
            path.unlink()
        left = sorted(folder.iterdir())
        if not left:
            folder.rmdir()
    except OSError as error:
        raise RecordingError(f"{folder}: cannot be deleted ({error.strerror})") from None
    return left


def _own_files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if _OURS.fullmatch(path.name)]
    except OSError as error:
        raise RecordingError(f"{folder}: cannot be read ({error.strerror})") from None


def failure(error: Exception) -> str:
    """Return an error as one line: our own as they are, others by their type."""
    if isinstance(error, TtscopeError):
        return str(error)
    return f"{type(error).__name__}: {error}"
