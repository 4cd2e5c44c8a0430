"""Signals by which others end a verb: what it records is closed as after Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import termios
import time
from typing import Any


def ending_signals() -> list[signal.Signals]:
    """Return SIGTERM, and SIGHUP of a terminal that is closed, unless `nohup` has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, *(() if ignored else (signal.SIGHUP,))]


CLOSING_S = 10.0  # in which a recording is closed: more signals change nothing until then


class Interrupting:
    """A handler of these signals that interrupts as Ctrl-C does, once in `CLOSING_S`.

    `heard` says that one came, just now where it is given.
    """

    def __init__(self, *, heard: bool = False) -> None:
        self.heard = heard
        self._until = time.monotonic() + CLOSING_S if heard else 0.0

    def __call__(self, number: int, frame: Any) -> None:
        leave_terminal()
        now, self.heard = time.monotonic(), True
        if now >= self._until:
            self._until = now + CLOSING_S
            raise KeyboardInterrupt


def leave_terminal() -> None:
    """Have stdout and stderr lead nowhere where their terminal is gone: no word to it fails."""
    for number in (1, 2):
        try:
            termios.tcgetattr(number)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                with contextlib.suppress(OSError):
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, number)
                    os.close(nowhere)
