"""What the workers of the Recordings screen tell it."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from textual.message import Message

from traces.comparison import Difference
from traces.summary import Run
from tui.library import ImportMade


@dataclass
class ImportDone(Message):
    """Files of others are a recording now."""

    made: ImportMade


@dataclass
class Failed(Message):
    """Something that was asked for cannot be done."""

    text: str


class Pair:
    """Two runs by the rows of their problems, which stay the same until they are read again."""

    def __init__(self, first: Run, second: Run) -> None:
        self.runs = (first, second)
        self._rows = (first.rows, second.rows)  # kept, so that their ids stay theirs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pair) and all(map(operator.is_, self._rows, other._rows))

    def __hash__(self) -> int:
        return hash(tuple(map(id, self._rows)))


@dataclass
class Compared(Message):
    """Two marked runs were compared."""

    pair: Pair
    found: Difference
