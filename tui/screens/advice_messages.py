"""What the workers of the Advice screen tell it."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message

from traces.schema import Recommendation

Question = tuple[object, ...]  # the budget, the recordings by key, and what runs today


@dataclass
class Advised(Message):
    """The worker's answer to a question: a recommendation, or why there is none."""

    question: Question
    advice: Recommendation | None
    error: str | None
    recordings: int
    seconds: float


@dataclass
class WhatIf(Message):
    """What a change makes of a pick, or why that cannot be said."""

    lines: list[str]
    error: str | None = None
