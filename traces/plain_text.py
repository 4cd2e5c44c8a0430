"""Text on its way to people: names and answers of others command no terminal, page or shell."""

from __future__ import annotations

import re
import shlex

# Control characters of C0 and C1 and DEL, marks that turn the direction of text, separators of
# lines and paragraphs, and halves of a character, which cannot be written.
COMMANDS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ud800-\\udfff]"
)


def clean(text: str) -> str:
    r"""Return a line with such characters shown as they are written in code: \x1b, \u202e."""
    return COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)


def clean_lines(text: str) -> str:
    """Return lines so, with their ends and tabs as they are."""
    return COMMANDS.sub(lambda found: found[0] if found[0] in "\n\t" else clean(found[0]), text)


def quoted(value: object) -> str:
    """Return a text as a word of a command."""
    return shlex.quote(clean(str(value)))


def name_word(value: object) -> str:
    """Return a name or a path as a word of a command, which is no option whatever it begins with.

    A folder that begins with a dash is `./-x`, and so is vLLM's model in one.
    """
    text = str(value)
    return quoted(f"./{text}" if text.startswith("-") else text)


def flag_word(name: str, value: object) -> str:
    """Return an option of a command with its value, which is no other option."""
    return f"--{name}{'=' if str(value).startswith('-') else ' '}{quoted(value)}"
