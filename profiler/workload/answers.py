"""The answer in a text: what follows the thinking, and the last box."""

from __future__ import annotations

import re

from profiler.engines.interface import THINK_END, THINK_START

_BOXED = re.compile(r"\\f?boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def after_thinking(text: str) -> str | None:
    """Return what follows the last `</think>`, None where thinking was opened and never closed."""
    tail = text.rpartition(THINK_END)[2]
    return None if THINK_START in tail else tail


def last_boxed(text: str) -> str | None:
    r"""Return the inside of the last closed `\boxed{...}`, braces within it balanced."""
    for start in reversed([match.end() for match in _BOXED.finditer(text)][-16:]):
        depth = 1
        for mark in _BRACE.finditer(text, start):
            depth += {"{": 1, "}": -1}.get(mark[0], 0)
            if not depth:
                return text[start : mark.start()]
    return None


def final_answer(text: str) -> str | None:
    r"""Return the answer in a reasoning model's completion, None when there is none.

    It is the last `\boxed{...}` after the last `</think>`, else the whole text after it. A text
    that opens `<think>` and never closes it has no answer.
    """
    tail = after_thinking(text)
    if tail is None:
        return None
    boxed = last_boxed(tail)
    return (tail if boxed is None else boxed).strip() or None
