"""Text on its way to a terminal: what names, answers and servers say cannot command it.

All that verbs print goes through `say` and `say_json`; what the app draws through
`tui.app.app`.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, TextIO

# Control characters of C0 and C1 and DEL, marks that turn the direction of text, separators of
# lines and paragraphs, and halves of a character, which cannot be written.
COMMANDS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ud800-\\udfff]"
)


def clean(text: str) -> str:
    r"""Return a line with such characters shown as they are written in code: \x1b, \u202e."""
    return COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)


def say(line: str = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print one line."""
    print(clean(line), file=file or sys.stdout, flush=flush)


def say_json(document: Any, *, file: TextIO | None = None) -> None:
    """Print a JSON document in ASCII, exact, and without a control character but the newline."""
    text = json.dumps(document, indent=1, allow_nan=False)
    print(text.replace("\x7f", "\\u007f"), file=file or sys.stdout)
