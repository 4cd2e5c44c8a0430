"""What every reader of outcomes gives: samples with their answers, and what it had to leave out.

A format is a name, a look at the first bytes, and a reader. `tests/traces/importer_contract.py`
is the battery that each must pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

LIMIT_BYTES = 16 << 30
LARGEST = 2**53


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One sample of one problem; what a file does not tell is None.

    `answer` is a text that is the same for the same answer, `identity` any bytes that tell one
    problem from another of the same name (its prompt); neither is kept unless text is recorded.
    `place` is where the sample stands: the number of its line or entry.
    """

    problem_id: str
    sample_index: int
    place: int
    identity: bytes | None = None
    group: str | None = None
    answer: str | None = None
    expected: str | None = None
    correct: bool | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    think_tokens: int | None = None
    latency_s: float | None = None
    logprob_mean: float | None = None
    finish_reason: str | None = None
    error: str | None = None


@dataclass(kw_only=True)
class FileFacts:
    """What a file says of the whole evaluation; `notes` is what a reader of results must know."""

    task: str | None = None
    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Skipped:
    """What could not be read, counted by reason, with the first place of each."""

    unit: str
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, place: int, count: int = 1) -> None:
        """Count `count` things of a kind at a place."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first[reason] = min(self.first.get(reason, place), place)

    def text(self) -> str:
        """Return it in one line, the most frequent reason first; empty when nothing was."""
        most = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(
            f"{count:,} {_one(reason) if count == 1 else reason} "
            f"(first: {self.unit} {self.first[reason]:,})"
            for reason, count in most
        )


def _one(reason: str) -> str:
    """Return a reason for one: `lines that are not JSON` as `line that is not JSON`."""
    what, _, rest = reason.partition(" ")
    what = "entry" if what == "entries" else what.removesuffix("s")
    for many, one in ((" that are ", " that is "), (" that have ", " that has ")):
        rest = f" {rest}".replace(many, one)[1:]
    return f"{what} {rest}"


Judge = Callable[[str, str | None], tuple[str | None, bool | None]]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user chose: `score` names a metric, filter or scorer, None the file's first.

    `judge` reads a completion itself, given the expected answer, and returns the class of its
    answer and whether it is right (`verifier` names it); None takes the file's own answers and
    scores.
    """

    score: str | None = None
    judge: Judge | None = None
    verifier: str | None = None
    limit_bytes: int = LIMIT_BYTES


class OutcomeReader(Protocol):
    """One file, iterated once; `facts` and `skipped` are whole afterwards.

    Raises OutcomesError while iterating when the file cannot be read as its format,
    UsageError for a choice that it does not have.
    """

    facts: FileFacts
    skipped: Skipped

    def __iter__(self) -> Iterator[Outcome]:
        """Yield the samples in the file's order."""


@dataclass(frozen=True, kw_only=True)
class OutcomeFormat:
    """A foreign format: `recognises` looks at the first bytes of a file, inflated.

    `completions` says whether it holds the texts that a verifier reads answers from.
    """

    name: str
    recognises: Callable[[bytes], bool]
    open: Callable[[Path, Choices], OutcomeReader]
    completions: bool = True


def some(names: Iterable[str]) -> str:
    """Return names of a file in a line, however many and long they are."""
    known = list(names)
    told = ", ".join(name if len(name) <= 60 else f"{name[:59]}…" for name in known[:12])
    return told if len(known) <= 12 else f"{told} and {len(known) - 12:,} more"


def whole_number(value: Any) -> int | None:
    """Return a value that is a whole number from 0 to 2^53, None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value <= LARGEST or value != int(value):  # NaN too is outside
        return None
    return int(value)


def finite(value: Any) -> float | None:
    """Return a value that is a finite number, None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
        return None
    return float(value) if math.isfinite(value) else None


def truth(value: Any) -> bool | None:
    """Return whether true, 1, false or 0 stand there, None for anything else."""
    if isinstance(value, bool):
        return value
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None
