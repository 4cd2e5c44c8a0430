"""Recordings as they are named on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from traces.errors import RecordingError
from traces.recording.reader import Recording, distinct, find_recordings, measured, told_apart
from tui.terminal import tell


def open_all(paths: Sequence[Path]) -> list[Recording]:
    """Open recordings, and all recordings in folders; one given twice, or a copy, only once.

    Those of one name are told apart by their paths. What is left out is said on stderr. Raises
    RecordingError when a path is neither, or a recording cannot be read.
    """
    opened = [Recording.open(each) for path in paths for each in find_recordings(path) or [path]]
    unique, copies = distinct(opened)
    for copy, first in copies:
        tell(f"{copy.path}: the same recording as {first.path}, read once")
    return told_apart(unique)


def open_measured(paths: Sequence[Path]) -> list[Recording]:
    """Open recordings as `open_all`, without predictions and incomplete ones.

    Raises RecordingError where none is left.
    """
    opened = open_all(paths)
    predicted = [each.name for each in opened if each.replay_of is not None]
    recordings = [each for each in measured(opened) if each.complete]
    if predicted:
        tell(f"left out, being predictions: {', '.join(predicted)}")
    if not recordings:
        raise RecordingError("none of the recordings is complete. Run ttscope record to the end")
    return recordings
