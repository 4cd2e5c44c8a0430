"""Ctrl-C, SIGTERM and SIGHUP: what was measured until then is kept, and said."""

from __future__ import annotations

import atexit
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from traces.endings import Interrupting, ending_signals
from traces.errors import Interrupted
from traces.recording.manifest import NAME
from traces.recording.reader import Recording
from traces.schema.formats import counted


@contextlib.contextmanager
def signals_as_ctrl_c() -> Iterator[None]:
    """Have the signals by which a job or a terminal is ended interrupt as Ctrl-C does, once.

    After one they stay so, as the verb ends: another one is no error of it, and no other exit code.
    """
    interrupt, ending = Interrupting(), ending_signals()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell's `&` has it
        ending.append(signal.SIGINT)
    before = {number: signal.signal(number, interrupt) for number in ending}
    try:
        yield
    finally:
        if interrupt.heard:  # Python's own end sets them back, so that another one would kill it
            for number in before:
                atexit.register(signal.signal, number, signal.SIG_IGN)
        for number, handler in before.items():
            if not interrupt.heard and signal.getsignal(number) is interrupt:
                signal.signal(number, handler)


@contextlib.contextmanager
def says_what_is_kept(folder: Path) -> Iterator[None]:
    """Turn these signals into `Interrupted`, once something of the recording is there."""
    try:
        with signals_as_ctrl_c():
            yield
    except KeyboardInterrupt:
        if not (folder / NAME).exists():
            raise
        ended = Recording.open(folder).problems["end"].count()
        kept = counted(ended, "whole problem")
        raise Interrupted(
            f"interrupted: {folder} keeps {kept}, as an incomplete recording"
        ) from None
