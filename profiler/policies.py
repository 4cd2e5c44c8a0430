"""Test-time-scaling policies: which samples to draw, when to stop, which answer to give.

A policy sees samples as they end and says what to do next; it knows nothing of engines. Rules:
a sample whose answer does not parse has no vote; a tie goes to the answer whose first supporter
has the lowest sample index; a problem without any parsed answer is answered with None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from traces.errors import UsageError
from traces.schema import Policy


@dataclass(frozen=True, kw_only=True)
class Vote:
    """A sample that ended, as a policy sees it."""

    sample_index: int
    answer: str | None
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The answer to a problem, and the last sample that it needed."""

    answer: str | None
    by_sample: int


@dataclass(frozen=True, kw_only=True)
class Move:
    """What a policy wants next: samples to draw, samples to cancel, and its decision."""

    draw: Sequence[int] = ()
    cancel: Sequence[int] = ()
    decision: Decision | None = None


class PolicyRun(Protocol):
    """One problem under one policy."""

    def begin(self) -> Move:
        """Return the samples to draw at once."""

    def on_sample(self, vote: Vote) -> Move:
        """Take a sample that ended; a decision ends the problem."""


def plurality(answers: Mapping[int, str | None]) -> str | None:
    """Return the most frequent answer; a tie goes to the one with the lowest sample index."""
    parsed = [answer for _, answer in sorted(answers.items()) if answer is not None]
    if not parsed:
        return None
    counts = Counter(parsed)
    return max(parsed, key=lambda answer: counts[answer])


@dataclass
class FixedVote:
    """Draw n samples in parallel and take the plurality when all have ended (n = 1: greedy)."""

    policy: Policy
    answers: dict[int, str | None] = field(default_factory=dict)

    def begin(self) -> Move:
        """Draw all samples."""
        return Move(draw=range(self.policy.n))

    def on_sample(self, vote: Vote) -> Move:
        """Decide when the last sample has ended."""
        self.answers[vote.sample_index] = vote.answer
        if len(self.answers) < self.policy.n:
            return Move()
        return Move(decision=Decision(answer=plurality(self.answers), by_sample=vote.sample_index))


_RUNS: dict[str, Callable[[Policy], PolicyRun]] = {"greedy": FixedVote, "majority": FixedVote}


def start(policy: Policy) -> PolicyRun:
    """Return the policy's state for one problem. Raises UsageError for a method not built yet."""
    try:
        return _RUNS[policy.method](policy)
    except KeyError:
        raise UsageError(
            f"policy {policy.method!r} cannot be run yet; one of {', '.join(_RUNS)}"
        ) from None
