"""Signals by which others end a verb: what it records is closed as after Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import termios
import time
from collections.abc import Iterator
from typing import Any, NoReturn


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


@contextlib.contextmanager
def leaving_at_ctrl_c() -> Iterator[None]:
    """Have Ctrl-C end the process at once while the block imports.

    Some of what an import runs takes an exception for another one, or loses it.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as a shell's `&` has it
        signal.signal(signal.SIGINT, leave_interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave_interrupted(*_: Any) -> NoReturn:
    """Say so and leave, without what Python does at its end."""
    try:
        os.write(2, b"ttscope: interrupted\n")
    finally:
        os._exit(130)
