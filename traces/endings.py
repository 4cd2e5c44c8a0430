"""Signals by which others end a verb: what it records is closed as after Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import termios
from typing import Any, NoReturn


def ending_signals() -> list[signal.Signals]:
    """Return SIGTERM, and SIGHUP of a terminal that is closed, unless `nohup` has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, *(() if ignored else (signal.SIGHUP,))]


def interrupt(number: int, frame: Any) -> NoReturn:
    """Interrupt as Ctrl-C does: a handler of these signals."""
    leave_terminal()
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
