"""Single values of foreign files, checked, and a count of what was skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from traces.schema.engine import EngineConfig, ModelFacts

Row = TypeVar("Row")
Made = TypeVar("Made")
LIMIT_BYTES = 16 << 30
LARGEST = 2**53


def models_named(facts: ModelFacts | None, engine: EngineConfig) -> dict[str, ModelFacts]:
    """Return the facts of the engine's model by its name, none where they are not given."""
    return {} if facts is None else {engine.model: replace(facts, name=engine.model)}


@dataclass(kw_only=True)
class Skipped:
    """What could not be read, counted by reason, with the first place of each."""

    unit: str
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # of the first places, where several are

    def add(self, reason: str, place: int, count: int = 1) -> None:
        """Count `count` things of a kind at a place."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first[reason] = min(self.first.get(reason, place), place)

    def join(self, other: Skipped, file: str) -> None:
        """Count what was skipped in a file too; `file` is what its places begin with."""
        for reason, count in other.counts.items():
            if reason not in self.counts:
                self.files[reason], self.first[reason] = file, other.first[reason]
            self.counts[reason] = self.counts.get(reason, 0) + count

    def kept(
        self, rows: Iterable[tuple[int, Row]], read: Callable[[int, Row], Made], what: str
    ) -> Iterator[Made]:
        """Yield what `read` makes of numbered rows, counting those for which it raises ValueError.

        Their reason is `what` they are called and the error's words.
        """
        for place, row in rows:
            try:
                made = read(place, row)
            except ValueError as error:
                self.add(f"{what} {error}", place)
            else:
                yield made

    def text(self) -> str:
        """Return it in one line, the most frequent reason first; empty when nothing was."""
        most = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(
            f"{count:,} {_one(reason) if count == 1 else reason} "
            f"(first: {self.files.get(reason, '')}{self.unit} {self.first[reason]:,})"
            for reason, count in most
        )


def _one(reason: str) -> str:
    """Return a reason for one: `lines that are not JSON` as `line that is not JSON`."""
    what, _, rest = reason.partition(" ")
    what = "entry" if what == "entries" else what.removesuffix("s")
    for many, one in ((" that are ", " that is "), (" that have ", " that has ")):
        rest = f" {rest}".replace(many, one)[1:]
    return f"{what} {rest}"


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


def text(value: Any) -> str | None:
    """Return a text, a number as one (2.0 as 2), None for anything else."""
    if isinstance(value, str):
        return value
    if not isinstance(value, int | float):
        return None
    is_whole = isinstance(value, float) and abs(value) < LARGEST and value == int(value)
    return str(int(value)) if is_whole else str(value)


class Field(NamedTuple):
    """How a value is read, None where it is wrong, and what it is then: `no whole number`."""

    read: Callable[[Any], Any]
    wrong: str

    def sound(self, row: Mapping[str, Any], name: str) -> Any:
        """Return a row's value. Raises ValueError with why it is wrong."""
        if (value := self.read(row.get(name))) is None:
            raise ValueError(f"whose {name} is {self.wrong}")
        return value

    def optional(self, row: Mapping[str, Any], name: str, skipped: Skipped, place: int) -> Any:
        """Return a row's value, None where it lacks or is wrong, which is counted."""
        if (told := row.get(name)) is None:
            return None
        if (value := self.read(told)) is None:
            skipped.add(f"values of {name} that are {self.wrong}", place)
        return value


def needed(row: Mapping[str, Any], fields: Mapping[str, Field]) -> Iterator[Any]:
    """Yield a row's values of all the fields. Raises ValueError with why one is absent or wrong."""
    for name in fields:
        if row.get(name) is None:
            raise ValueError(f"without {name}")
    for name, each in fields.items():
        yield each.sound(row, name)


WHOLE = Field(whole_number, "no whole number")
NUMBER = Field(finite, "no number")
TEXT = Field(text, "neither text nor number")


UNKNOWN_MODEL = "imported"
BLOCK_TOKENS = 512
