"""What the workers of the Run screen tell it."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message

from advisor.stopping import Savings
from tui.replay_beside import Beside
from tui.run_data import RunData
from tui.run_model import RunModel


@dataclass
class Read(Message):
    """The recording's steps, kernels and power were read."""

    model: RunModel
    data: RunData


@dataclass
class Judged(Message):
    """A stopping rule was judged on all problems; a text says why it cannot be."""

    model: RunModel
    rule: str
    found: Savings | str


@dataclass
class Replayed(Message):
    """The run was replayed."""

    model: RunModel
    beside: Beside


@dataclass
class Told(Message):
    """Policies that were not run, as lines."""

    model: RunModel
    lines: list[str]


@dataclass
class Failed(Message):
    """Something that was asked for of a run cannot be done; `unread`: its steps cannot be read."""

    model: RunModel
    text: str
    unread: bool = False


class PageRead(Message):
    """Whole rows of more steps are there."""
