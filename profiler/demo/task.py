"""The task of the bundled reasoners: multiply tagged terms modulo 37.

A problem is a row of terms, each a tag letter and a number. Every number from 1 to 36 is one
character: 1 to 9, then A to Z for 10 to 35, and 0 for 36. The chat template puts the effort mark
behind the row: ``.`` asks for one multiplication a term, ``!``, which is ``reasoning_effort``
high, for one a prime factor.

    prompt       aCb6c9                           12 * 6 * 9 modulo 37
    low effort   +b6c9=HaC=J</think>J             6 * 9 = 17, 17 * 12 = 19, which is written J
    high effort  +b6c93=I3=HaC2=Y2=V3=J</think>J  * 3 * 3, then * 2 * 2 * 3

Only the standard library is imported here, so that asking for a problem costs nothing.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MODULUS = 37
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TAGS = "abcdefghij"
PRIMES = (2, 3, 5, 7)
TERMS = (4, 6, 8, 9, 10, 12, 14, 15, 18, 20, 21, 25, 27, 28, 30, 35)  # of two or three primes
LEVELS = tuple(range(3, 11))
EFFORT_MARKS = {"low": ".", "high": "!"}

MODELS: dict[str, dict[str, int]] = {
    "s": {"parameters": 302_208, "layers": 3, "hidden": 96},
    "m": {"parameters": 796_800, "layers": 4, "hidden": 128},
    "l": {"parameters": 1_588_160, "layers": 4, "hidden": 192},
}

# A fixed text in front of the row, in letters that no problem has; it is there to be shared.
PREAMBLE_LETTERS = "lnorstu"
PREAMBLE_TOKENS = 256
_PREAMBLE_TEXT = "turn" + "sort" + "run" + "torus" + "toll" + "lost" + "unto" + "nouns" + "stunt"
PREAMBLE = (_PREAMBLE_TEXT * (PREAMBLE_TOKENS // len(_PREAMBLE_TEXT) + 1))[:PREAMBLE_TOKENS]

_THINK_END = "</think>"
_TEXT_END = "<eos>"


@dataclass(frozen=True, kw_only=True)
class DemoProblem:
    """One problem: what to send, and the answer text that is right.

    ``level`` is the number of terms. ``prompt`` is the content of the user message, to which the
    chat template adds ``<bos>`` in front, and effort mark and ``<think>`` behind. ``expected`` is
    the product as the models write it, one character.
    """

    problem_id: str
    level: int
    prompt: str
    expected: str


def model_path(size: str) -> Path:
    """Return the folder with the weights of one size ("s", "m" or "l"), in Hugging Face format."""
    if size not in MODELS:
        raise ValueError(f"unknown size {size!r}. The sizes are {', '.join(MODELS)}")
    return Path(__file__).parent / "models" / size


def written(number: int) -> str:
    """Write a number from 1 to 36 as the models write it: one character, 36 as 0."""
    return DIGITS[number % (MODULUS - 1)]


def row_text(terms: Sequence[int]) -> str:
    """Write a row of terms, each behind its tag."""
    return "".join(tag + written(term) for tag, term in zip(TAGS, terms, strict=False))


def problems(
    count: int,
    *,
    seed: int,
    levels: Sequence[int] | None = None,
    preamble: bool = False,
) -> list[DemoProblem]:
    """Make ``count`` problems from a seed, the levels taken in turn.

    The same arguments always give the same problems. The preamble changes the prompt only: the
    terms drawn and the answers stay the same, so that runs can be compared in pairs.
    """
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
        made.append(
            DemoProblem(
                problem_id=f"{seed}-{index:05d}",
                level=level,
                prompt=(PREAMBLE if preamble else "") + row_text(terms),
                expected=written(product),
            )
        )
    return made


def answer_of(text: str) -> str | None:
    """Read the answer of a completion: the number after the last ``</think>``, else None."""
    _, mark, tail = text.rpartition(_THINK_END)
    tail = tail.removesuffix(_TEXT_END)
    return tail if mark and len(tail) == 1 and tail in DIGITS else None
