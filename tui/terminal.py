"""Text on its way to a terminal: what names, answers and servers say cannot command it.

All that verbs print goes through `say` and `say_json`; what the app draws through
`tui.app.app`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Any, Final, TextIO

from traces.plain_text import clean

BOLD, RED, GREEN, YELLOW, CYAN = "1", "31", "32", "33", "36"  # SGR codes
LOOKS: Final = (  # what is coloured at the beginning of a line, where it goes to a terminal
    (re.compile(r"(?:Run|Nothing fits|No limit was given)\b.*"), BOLD),
    (re.compile(r"(?:Why|Changes|Next|More|next|NEXT|VERDICT)(?= )|90 % intervals.*"), BOLD),
    (re.compile(r"(?:yes|ok)(?= )|passed(?=:)"), GREEN),
    (re.compile(r"(?:no|FAIL)(?=  )|FAILED(?=:)"), RED),
    (re.compile(r"(?:note|moved|[!?])(?= )"), YELLOW),
)
COMMAND = re.compile(
    r"(?:(?:next|NEXT) +| +)?(?P<command>(?:[A-Z_]+=\S+ )*"
    r"(?:\S*ttscope|vllm|\S*python[\d.]*|sh|curl) (?=[-/\w\\]).*)"
)


def say(line: str = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print one line."""
    print(clean(line), file=file or sys.stdout, flush=flush)


def say_all(lines: Iterable[str], *, file: TextIO | None = None) -> None:
    """Print lines, on a terminal with commands, verdicts and labels in colour."""
    file = file or sys.stdout
    goes_on = False  # a command, as its last line ended in a backslash
    for line in map(clean, lines):
        shown, match = line, COMMAND.fullmatch(line)
        begins = None if match is None else match.start("command")
        begins = len(line) - len(line.lstrip()) if goes_on else begins
        if has_colours(file):
            shown = _coloured(line, begins)
        goes_on = begins is not None and line.endswith("\\")
        print(shown, file=file)


def _coloured(line: str, command: int | None) -> str:
    head, rest = (line, "") if command is None else (line[:command], line[command:])
    for pattern, code in LOOKS:
        if match := pattern.match(head):
            head = f"\x1b[{code}m{match[0]}\x1b[0m{head[match.end() :]}"
            break
    return head + (f"\x1b[{CYAN}m{rest}\x1b[0m" if rest else "")


def has_colours(file: TextIO) -> bool:
    """Whether a file is a terminal that shows colours, and its user wants them."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "dumb")
    return wanted and file.isatty()


def tell(message: str) -> None:
    """Say `ttscope: message` on stderr: one line, which wraps at words on a terminal."""
    lines = [clean(f"ttscope: {message}")]
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = textwrap.wrap(lines[0], width, break_on_hyphens=False, break_long_words=False)
    for line in lines:
        print(line, file=sys.stderr)


def say_json(document: Any, *, file: TextIO | None = None) -> None:
    """Print a JSON document in ASCII, exact, and without a control character but the newline."""
    text = json.dumps(document, indent=1, allow_nan=False)
    print(text.replace("\x7f", "\\u007f"), file=file or sys.stdout)
