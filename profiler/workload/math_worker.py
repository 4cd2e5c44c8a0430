"""The child process of `profiler.workload.math_check`: mathematics that may take forever.

Questions come as JSON lines on stdin, {"canonical": answer} or {"equal": [answer, expected]};
answers go to stdout, one JSON value a line. An alarm stops what takes too long while Python code
runs; the parent kills what the alarm cannot reach. Memory is limited, as an answer may be 9^(9^9).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import signal
import sys
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from profiler.workload.verifiers import rounded, unmarked

_MEMORY_BYTES = 2 << 30
_REPEATING = re.compile(r"([0-9]{0,30})\.([0-9]{0,30})\\(?:overline|bar)\{([0-9]{1,30})\}")
# What stands before an answer. In a formula its letters would be factors.
_SAYS = re.compile(
    r"\A[\s*_#]*(?:(?:so|thus|hence|therefore|the|my|our|final|correct|and)\b[\s,]*)*"
    r"(?:answer|ans|result|solution|value)\b[.\s*_]*(?:is|are|equals)?[\s*_:=]*(?=\S)",
    re.IGNORECASE,
)
_WORD = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sqrt|arc(?:sin|cos|tan)|(?:sin|cos|tan)h|infty)\b)[A-Za-z]{4,}"
)
# Short words that no formula has between two of its own, as names of its variables are.
_SHORT = r"is|are|so|we|to|of|in|at|it|be|as|by|on|an|the|and|get|has|was|for|its|out|all"
_BETWEEN = re.compile(
    rf"(?<![\\A-Za-z])(?:{_SHORT})(?![A-Za-z])|{_WORD.pattern}|[\n;?]|[.:](?=\s|\Z)", re.IGNORECASE
)
_MARKS = re.compile(r"(?<!\\)\$|\\\(|\\\[|boxed")
_TORN = re.compile(  # a part of a formula
    r"\A(?:[+*/×·^)]|\\(?:times|cdot|pm|div)(?![a-zA-Z]))"
    r"|(?:[-+*/×·^(=]|\\(?:times|cdot|pm|div|frac|sqrt))\Z"
)
_IN_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s?\{[^{}]*\}")
_MOST_CHARACTERS = 500  # of a canonical form; longer ones do not come from answers


class _TooLong(BaseException):
    """The alarm; no `except Exception` of a library may stop it."""


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _repeating(match: re.Match[str]) -> str:
    r"""Return a repeating decimal as a fraction: math-verify reads 0.\overline{3} as 0."""
    whole, fixed, period = match.groups()
    value = Fraction(int(fixed or 0)) + Fraction(int(period), 10 ** len(period) - 1)
    value = int(whole or 0) + value / 10 ** len(fixed)
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _bare(text: str) -> str:
    """Return an answer without what marks it, where it is one line without formulas marked."""
    text = _REPEATING.sub(_repeating, unmarked(text))
    return _SAYS.sub("", text) if _is_line(text) else text


def _is_line(text: str) -> bool:
    return not _MARKS.search(text) and "\n" not in text and len(text) < _MOST_CHARACTERS


def _parsed(text: str) -> list[Any]:
    r"""Return what math-verify reads of a text.

    Without words that is all of it, as one formula. Of words without a formula that is marked it is
    the last formula between them. math-verify itself takes the last number there, which may be a
    part of a formula: 5 of 3 \times 5.
    """
    from math_verify import parse

    if _MARKS.search(text):
        return list(parse(text, parsing_timeout=None))
    text = text.strip().rstrip(".")
    if _is_line(text) and not _BETWEEN.search(_IN_TEXT.sub("", text)):
        return list(parse(f"\\boxed{{{_worked_out(text)}}}", parsing_timeout=None))
    formula = _last_formula(text)
    if formula is None:
        words = " ".join(text.split())
        return [] if re.search(r"[0-9\\]", words) or len(words) >= _MOST_CHARACTERS else [words]
    return list(parse(f"\\boxed{{{_worked_out(formula)}}}", parsing_timeout=None))


def _worked_out(formula: str) -> str:
    """Return what follows the last = where numbers alone stand before it."""
    before, _, after = formula.rpartition("=")
    alone = re.sub(r"\\[a-zA-Z]+", "", before)
    return (
        after if re.search(r"[0-9)}]\s*\Z", alone) and not re.search("[a-zA-Z]", alone) else formula
    )


def _last_formula(text: str) -> str | None:
    """Return the last stretch between words that has a digit; None where a word tears it apart."""
    parts = [each.strip(" \t,.*_=") for each in _BETWEEN.split(_IN_TEXT.sub("", text))]
    numbers = [each for each in parts if re.search(r"[0-9]", each)]
    return None if not numbers or _TORN.search(numbers[-1]) else numbers[-1]


def _equal(expected: list[Any], answer: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(expected, answer, timeout_seconds=None))


def canonical(text: str) -> str | None:
    """Return the name of an answer's class; None where mathematics cannot be read from it."""
    from sympy import FiniteSet, Tuple

    text = _bare(text)
    parsed = _parsed(text)
    if not parsed:
        return None
    first = parsed[0]
    if isinstance(first, str):
        return " ".join(first.split()) or None
    if isinstance(first, FiniteSet | Tuple):
        parts = [_number(each) for each in first.args]
        if all(part is not None for part in parts):
            members = [str(part) for part in parts]
            if isinstance(first, Tuple):
                return f"({', '.join(members)})"
            return f"{{{', '.join(sorted(set(members), key=Fraction))}}}"
    number = _number(first)
    return number if number is not None else _form(text, parsed)


def _number(expression: Any) -> str | None:
    """Return a real number rounded as the numeric verifier does, None for anything else."""
    from math_verify.grader import is_assignment_relation, take_last_relation
    from sympy import Rational

    with contextlib.suppress(Exception):
        if is_assignment_relation(expression):
            expression = take_last_relation(expression).rhs
        expression = expression.doit()
        if expression.free_symbols or not expression.is_real:
            return None
        exact = expression if expression.is_Rational else Rational(str(expression.evalf(40)))
        return rounded(Fraction(int(exact.p), int(exact.q)))
    return None


def _form(text: str, found: list[Any]) -> str:
    """Return a simplified form that reads as the same; the answer as written where none does."""
    from sympy import expand, latex, simplify

    written = " ".join(text.split())
    try:
        form = str(latex(expand(simplify(found[0]))))
        if len(form) <= _MOST_CHARACTERS and _equal(_parsed(f"${form}$"), found):
            return form
    except Exception:
        return written
    return written


def equal(answer: str, expected: str) -> bool:
    """Return whether math-verify takes an answer for the expected one."""
    return _equal(_parsed(_bare(expected)), _parsed(_bare(answer)))


def main(seconds: float) -> None:
    """Answer questions until stdin ends; null is a question that could not be answered in time."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    sys.setrecursionlimit(4000)
    canonical("1")  # the imports
    out.write("true\n")
    for line in sys.stdin:
        question = json.loads(line)
        reply: Any = None
        try:
            with _limit(seconds):
                if "canonical" in question:
                    reply = [canonical(question["canonical"])]
                else:
                    reply = [equal(*question["equal"])]
        except (_TooLong, Exception):
            reply = None
        out.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main(float(sys.argv[1]))
