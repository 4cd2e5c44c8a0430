"""What a policy sees and says; the run (profiler/runs/loop.py) carries it out.

Rules that hold for every policy: a sample whose answer does not parse has no vote; one that
failed neither; a tie goes to the answer whose first supporter has the lowest sample index; a
problem without any vote is answered with None, which is wrong. When a problem times out, its
policy answers by the votes that there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Vote:
    """A request that ended, as a policy sees it; what was not measured is None.

    `score` comes from the scorer, or is the mean log-probability where there is none. `paused`
    says that the end of a step of thought stopped it, not the model; `thought_ended` whether its
    thought is closed; `room` how many tokens of thought may follow, None for no known limit.
    """

    sample_index: int
    answer: str | None
    failed: bool = False
    tokens: int | None = None
    score: float | None = None
    logprob_mean: float | None = None
    confidence: float | None = None
    thought_ended: bool = True
    paused: bool = False
    room: int | None = None

    def has_room(self, tokens: int) -> bool:
        """Whether so many tokens of thought may follow."""
        return self.room is None or self.room >= tokens


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The answer to a problem, and the last sample that it needed (None: it timed out)."""

    answer: str | None
    by_sample: int | None


@dataclass(frozen=True, kw_only=True)
class GoOn:
    """Continue a request's tokens; `reopen` cuts them where the thought ends, then `append`."""

    append: str = ""
    reopen: bool = False


@dataclass(frozen=True, kw_only=True)
class Revise:
    """A new prompt that shows an earlier attempt: `{prompt}`, `{answer}` and `{thought}` of it."""

    template: str


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A request that a policy wants; a fresh sample of the problem's prompt unless `how` says.

    `index` names it within its problem, `parent` the request that it goes on from or revises.
    Generation pauses at a `stop` string or after `max_tokens`.
    """

    index: int
    role: str = "sample"
    how: GoOn | Revise | None = None
    parent: int | None = None
    round: int | None = None
    depth: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Move:
    """What a policy wants next. With its decision all that still runs is cancelled."""

    draw: Sequence[Draw] = ()
    decision: Decision | None = None


class PolicyRun(Protocol):
    """One problem under one policy."""

    def begin(self) -> Move:
        """Return the samples to draw at once."""

    def on_sample(self, vote: Vote) -> Move:
        """Take a request that ended; a decision ends the problem."""

    def answer_now(self) -> str | None:
        """Return the answer by the votes there are, for a problem that timed out."""


def fresh(indices: Sequence[int]) -> Move:
    """Return the move that draws fresh samples of these indices."""
    return Move(draw=[Draw(index=index) for index in indices])
