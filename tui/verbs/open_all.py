"""Recordings as they are named on the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from traces.recording.reader import Recording, distinct, find_recordings
from tui.text.terminal import say


def open_all(paths: Sequence[Path]) -> list[Recording]:
    """Open recordings, and all recordings in folders; one given twice, or a copy, only once.

    What is left out is said on stderr. Raises RecordingError when a path is neither, or a recording
    cannot be read.
    """
    opened = [Recording.open(each) for path in paths for each in find_recordings(path) or [path]]
    unique, copies = distinct(opened)
    for copy, first in copies:
        say(f"{copy.path}: the same recording as {first.path}; read once", file=sys.stderr)
    return unique
