"""What the workers of the Recordings screen tell it."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message

from traces.comparison import Difference
from tui.library import ImportMade


@dataclass
class ImportDone(Message):
    """Files of others are a recording now."""

    made: ImportMade


@dataclass
class Failed(Message):
    """Something that was asked for cannot be done."""

    text: str


@dataclass
class Compared(Message):
    """Two marked runs were compared."""

    pair: tuple[str, str]
    found: Difference
