"""A command in a pseudo-terminal, as a person runs it, and what then stands on the screen.

`python -m benchmarks.made.terminal COMMAND ..` runs one and writes what is left on its screen.
"""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers.warm import VERBS, Warm

ROOT = Path(__file__).parents[2]
TTSCOPE = (sys.executable, "-c", "from tui.start import main; main()")
CTRL_C = "\x03"
NOT_INHERITED = {  # of what decides how a terminal is written to
    "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES", "COLORTERM",
    "TTY_COMPATIBLE", "TTY_INTERACTIVE", "GITHUB_ACTIONS", "PYTHONIOENCODING", "PY_COLORS",
    "TERMINAL_WIDTH", "TYPER_USE_RICH",
}  # fmt: skip
OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
PART = re.compile(
    r"\x1b\[(?P<parameters>[0-?]*)[ -/]*(?P<final>[@-~])"
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\)|\x1b[()#%].|\x1b[^\[\]PX^_()#%]"
    r"|(?P<control>[\x00-\x1a\x1c-\x1f\x7f])|(?P<text>[^\x00-\x1f\x7f]+)",
    re.DOTALL,
)
COLOUR = re.compile(rb"\x1b\[(?:[0-9;:]*[;:])?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:[;:][0-9;:]*)?m")


class Screen:
    """What a terminal of that size shows; lines that have scrolled away are kept."""

    def __init__(self, columns, rows):
        self.columns, self.height = columns, rows
        self.lines, self.row, self.column = [""], 0, 0
        self.wrapped, self._goes_on = [], None  # lines that were too long; the last one's end
        self.app = None  # the lines of the last full-screen program
        self._main = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data):
        text = self._rest + self._decoder.decode(data)
        end = 0
        while found := PART.match(text, end):
            end = found.end()
            if found["text"]:
                self._write(found["text"])
            elif found["control"]:
                self._control(found["control"])
            elif found["final"]:
                self._order(found["parameters"], found["final"])
        self._rest = text[end:]

    def shown(self):
        """Return the lines that are on the screen now."""
        return [line.rstrip() for line in self.lines[-self.height :]]

    def _write(self, text):
        for letter in text:
            if self.column >= self.columns:
                if self.row == self._goes_on:
                    self.wrapped[-1] += self.lines[self.row]
                else:
                    self.wrapped.append(self.lines[self.row])
                self._control("\n")
                self.column, self._goes_on = 0, self.row
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += 1

    def _control(self, letter):
        if letter == "\r":
            self.column = 0
        elif letter == "\b":
            self.column = max(0, self.column - 1)
        elif letter == "\t":
            self.column = min(self.columns - 1, self.column // 8 * 8 + 8)
        elif letter == "\n":
            self._down(1)

    def _down(self, count):
        self.row += count
        self.lines += [""] * (self.row + 1 - len(self.lines))

    def _order(self, parameters, final):
        numbers = [int(each) if each.isdigit() else 0 for each in parameters.split(";")]
        first = numbers[0]
        top = max(0, len(self.lines) - self.height)
        line = self.lines[self.row]
        if final == "A":
            self.row = max(top, self.row - max(1, first))
        elif final == "B":
            self._down(max(1, first))
        elif final == "C":
            self.column = min(self.columns - 1, self.column + max(1, first))
        elif final == "D":
            self.column = max(0, self.column - max(1, first))
        elif final == "G":
            self.column = max(1, first) - 1
        elif final in "Hf":
            self.row, self.column = top, max(1, numbers[1] if len(numbers) > 1 else 1) - 1
            self._down(max(1, first) - 1)
        elif final == "K":
            left = " " * self.column if first else line[: self.column]
            self.lines[self.row] = left + ("" if first in (0, 2) else line[self.column :])
        elif final == "J" and first == 2:
            self.lines[top:] = [""] * (len(self.lines) - top)
        elif final == "J" and first == 0:
            self.lines[self.row :] = [line[: self.column]]
        elif final in "hl" and parameters == "?1049":
            self._full_screen(final == "h")

    def _full_screen(self, begins):
        if begins:
            self._main = self.lines, self.row, self.column
            self.lines, self.row, self.column = [""] * self.height, 0, 0
        elif self._main is not None:
            self.app = self.shown()
            (self.lines, self.row, self.column), self._main = self._main, None


@dataclass(frozen=True)
class Seen:
    """What came of a command: `lines` stand on the screen, `stdout` is what was redirected.

    `app` are the lines of a full-screen program when it ended, `wrapped` those that were too long.
    `ending_s` is how long it went on after the last of its keys.
    """

    code: int
    raw: bytes
    lines: list
    wrapped: list
    app: list | None
    stdout: str
    ending_s: float

    @property
    def text(self):
        return "\n".join(self.lines)

    @property
    def coloured(self):
        return COLOUR.search(self.raw) is not None


def in_terminal(
    *command, columns=80, rows=40, keys=(), env=None, cwd=None, redirected=False, timeout_s=180,
    forked=False,
):  # fmt: skip
    """Run a command with a terminal of its own as stdin, stdout and stderr.

    `keys` are pairs: when the first, a text or a pattern, stands on the screen, the second is
    typed. CTRL_C interrupts as in any terminal, a signal is sent to it alone. With `redirected`,
    stdout is a file. What an inherited environment says of terminals is left out, `env` goes on
    top. With `forked` the command are the arguments of ttscope, whose modules are imported already.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    inherited = {name: text for name, text in os.environ.items() if name not in NOT_INHERITED}
    variables = inherited | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | (env or {})
    with tempfile.NamedTemporaryFile() as file:
        if forked:
            line = os.ttyname(theirs)
            process = Warm(
                command, imported=VERBS, stdin=line, stdout=file.name if redirected else line,
                stderr=line, env=variables, cwd=cwd,
            )  # fmt: skip
        else:
            process = subprocess.Popen(
                [sys.executable, "-ISc", OWN_TERMINAL, *map(str, command)],
                stdin=theirs,
                stdout=file if redirected else theirs,
                stderr=theirs,
                env=variables,
                cwd=cwd,
                start_new_session=True,
            )
        os.close(theirs)
        screen = Screen(columns, rows)
        try:
            waited = [(_pattern(wanted), key) for wanted, key in keys]
            raw, ending_s = _watch(process, ours, screen, waited, time.monotonic() + timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(ours)
        file.seek(0)
        stdout = file.read().decode()
    lines = [line.rstrip() for line in screen.lines]
    while lines and not lines[-1]:
        lines.pop()
    return Seen(process.returncode, raw, lines, screen.wrapped, screen.app, stdout, ending_s)


def _pattern(wanted):
    return wanted if isinstance(wanted, re.Pattern) else re.compile(re.escape(wanted))


def _watch(process, ours, screen, keys, deadline):
    """Return all that the command wrote, once it has ended, and how long after the last key."""
    parts, pressed = [], time.monotonic()
    while True:
        ended = process.poll() is not None
        ready, _, _ = select.select([ours], [], [], 0.2)
        if ready:
            try:
                data = os.read(ours, 65536)
            except OSError:  # nobody holds the terminal any more
                process.wait(timeout=10)
                return b"".join(parts), time.monotonic() - pressed
            parts.append(data)
            screen.feed(data)
        elif ended:
            return b"".join(parts), time.monotonic() - pressed
        shown = "\n".join(screen.shown())
        if keys and keys[0][0].search(shown):
            key, pressed = keys.pop(0)[1], time.monotonic()
            if isinstance(key, signal.Signals):
                process.send_signal(key)
            else:
                os.write(ours, key.encode())
        waits = f"; waits for {keys[0][0].pattern!r}" if keys else ""
        assert time.monotonic() < deadline, f"it goes on{waits}:\n{shown}"


def ttscope(*arguments, fresh=False, **options):
    """Run ttscope in a terminal: its modules are imported already, unless it is to be fresh."""
    command = (*TTSCOPE, *arguments) if fresh else arguments
    return in_terminal(*command, forked=not fresh, **options)


if __name__ == "__main__":
    seen = in_terminal(*sys.argv[1:], timeout_s=3600)
    print(seen.text)
    sys.exit(seen.code)
