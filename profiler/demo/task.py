"""The task of the bundled reasoners: multiply tagged terms modulo 97.

A problem is a row of terms, each a tag letter and two digits. The models write every number with
its units digit first, so 24 is written ``42``. The last character of a prompt is the effort mark:
``.`` asks for one walk along the row, ``!`` for a second look.

    prompt      a42b36c51.              24 * 63 * 15 modulo 97, low effort
    completion  b36c51=27a42=97.</think>97

Only the standard library is imported here, so that asking for a problem costs nothing.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MODULUS = 97
TERMS = tuple(sorted({a * b for a in range(2, 10) for b in range(2, 10)} - {81}))
LEVELS = tuple(range(3, 11))
EFFORT_MARKS = {"low": ".", "high": "!"}

MODELS: dict[str, dict[str, int]] = {
    "s": {"parameters": 302_208, "layers": 3, "hidden": 96},
    "m": {"parameters": 796_800, "layers": 4, "hidden": 128},
    "l": {"parameters": 1_588_160, "layers": 4, "hidden": 192},
}

PREAMBLE = (
    "you-are-given-a-row-of-terms;each-term-is-a-letter-and-two-digits;"
    "the-units-digit-comes-first;multiply-all-the-terms-and-keep-the-remainder-modulo-97;"
    "start-with-any-term-and-walk-either-way;write-every-step-in-full;"
    "then-give-the-remainder;here-is-your-row;"
)

_ANSWER = re.compile(r"[0-9]{2}")
_THINK_END = "</think>"
_TEXT_END = "<eos>"


@dataclass(frozen=True, kw_only=True)
class DemoProblem:
    """One problem: what to send, and the answer text that is right.

    ``level`` is the number of terms. ``prompt`` is the content of the user message, to which the
    chat template adds ``<bos>`` in front and ``<think>`` behind. ``expected`` is the remainder as
    the models write it, two digits, units first.
    """

    problem_id: str
    level: int
    prompt: str
    expected: str


def model_path(size: str) -> Path:
    """Return the folder with the weights of one size ("s", "m" or "l"), in Hugging Face format."""
    if size not in MODELS:
        raise ValueError(f"unknown size {size!r}; the sizes are {', '.join(MODELS)}")
    return Path(__file__).parent / "models" / size


def written(number: int) -> str:
    """Write a number from 0 to 99 as the models write it: two digits, units first."""
    return f"{number % 10}{number // 10}"


def problems(
    count: int,
    *,
    seed: int,
    levels: Sequence[int] | None = None,
    effort: str = "low",
    preamble: bool = False,
) -> list[DemoProblem]:
    """Make ``count`` problems from a seed, the levels taken in turn.

    The same arguments always give the same problems. Effort and preamble change the prompt only:
    the terms drawn and the answers stay the same, so that runs can be compared in pairs.
    """
    if effort not in EFFORT_MARKS:
        raise ValueError(f"unknown effort {effort!r}; it is one of {', '.join(EFFORT_MARKS)}")
    chosen = LEVELS if levels is None else tuple(levels)
    if not chosen or any(level not in LEVELS for level in chosen):
        raise ValueError(f"levels run from {LEVELS[0]} to {LEVELS[-1]}, got {chosen}")
    draw = random.Random(seed)
    made = []
    for index in range(count):
        level = chosen[index % len(chosen)]
        terms = [TERMS[draw.randrange(len(TERMS))] for _ in range(level)]
        product = 1
        for term in terms:
            product = product * term % MODULUS
        row = "".join(chr(ord("a") + place) + written(term) for place, term in enumerate(terms))
        made.append(
            DemoProblem(
                problem_id=f"{seed}-{index:05d}",
                level=level,
                prompt=(PREAMBLE if preamble else "") + row + EFFORT_MARKS[effort],
                expected=written(product),
            )
        )
    return made


def answer_of(text: str) -> str | None:
    """Read the answer of a completion: the two digits after the last ``</think>``, else None."""
    _, mark, tail = text.rpartition(_THINK_END)
    tail = tail.removesuffix(_TEXT_END)
    return tail if mark and _ANSWER.fullmatch(tail) else None
