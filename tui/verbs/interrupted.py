"""Ctrl-C and SIGTERM: what was measured until then is kept, and said."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from traces.errors import Interrupted
from traces.recording.manifest import NAME
from traces.recording.reader import Recording
from traces.schema.formats import counted


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Have SIGTERM, by which a service or a job is ended, interrupt as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def says_what_is_kept(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into `Interrupted`, once something of the recording is there."""
    try:
        with sigterm_as_ctrl_c():
            yield
    except KeyboardInterrupt:
        if not (folder / NAME).exists():
            raise
        ended = Recording.open(folder).problems["end"].count()
        kept = counted(ended, "whole problem")
        raise Interrupted(
            f"interrupted: {folder} keeps {kept}, as an incomplete recording"
        ) from None
