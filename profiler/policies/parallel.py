"""Policies that draw samples of the same prompt, all at once or until a rule says enough."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import comb

from profiler.policies.choices import Choice, most_votes
from profiler.policies.interface import Decision, Move, Vote, fresh


@dataclass
class FixedVote:
    """Draw n samples in parallel and choose when all have ended (n = 1: greedy)."""

    n: int
    choose: Choice = most_votes
    votes: dict[int, Vote] = field(default_factory=dict)

    def begin(self) -> Move:
        """Draw all samples."""
        return fresh(range(self.n))

    def on_sample(self, vote: Vote) -> Move:
        """Decide when the last sample has ended."""
        self.votes[vote.sample_index] = vote
        if len(self.votes) < self.n:
            return Move()
        return Move(decision=Decision(answer=self.answer_now(), by_sample=vote.sample_index))

    def answer_now(self) -> str | None:
        """Choose among the samples that have ended."""
        return self.choose(self.votes)


@dataclass
class EarlyStopping:
    """Draw windows of samples until one agrees entirely (ESC, Li et al. 2024, arXiv 2401.10480).

    A window agrees when all its samples parsed to one answer; then the plurality of all samples up
    to it decides, as it does after n samples. The next window is drawn as soon as this one cannot
    agree any more, which changes when samples are drawn, never how many or the answer.
    """

    n: int
    window: int
    votes: dict[int, Vote] = field(default_factory=dict)
    drawn: int = 0

    def begin(self) -> Move:
        """Draw the first window."""
        return _draw(self, self.window)

    def on_sample(self, vote: Vote) -> Move:
        """Decide when a window agrees, go on when it cannot."""
        self.votes[vote.sample_index] = vote
        for start in range(0, self.drawn, self.window):
            indices = range(start, min(start + self.window, self.drawn))
            seen = [self.votes[index].answer for index in indices if index in self.votes]
            if len(set(seen)) <= 1 and None not in seen:  # it agrees, or still may
                return self._decided(vote) if len(seen) == len(indices) else Move()
        return _draw(self, self.window) if self.drawn < self.n else self._decided(vote)

    def _decided(self, vote: Vote) -> Move:
        if len(self.votes) < self.drawn:  # those of an earlier window still count
            return Move()
        return Move(decision=Decision(answer=self.answer_now(), by_sample=vote.sample_index))

    def answer_now(self) -> str | None:
        """Return the plurality of the samples that have ended."""
        return most_votes(self.votes)


@dataclass
class Adaptive:
    """Draw until the majority will hardly change (ASC, Aggarwal et al. 2023, arXiv 2305.11860).

    With v1 and v2 the votes of the two leading answers, stop when the posterior probability that
    the first is the more frequent one, P(p1 > p2) under Beta(v1 + 1, v2 + 1), reaches `threshold`,
    or after n samples; the plurality decides. At most `in_flight` samples run at a time, and what
    runs at the decision is cancelled. With more than one in flight short samples vote first.
    """

    n: int
    threshold: float
    in_flight: int
    votes: dict[int, Vote] = field(default_factory=dict)
    drawn: int = 0

    def begin(self) -> Move:
        """Draw as many as may run at a time."""
        return _draw(self, self.in_flight)

    def on_sample(self, vote: Vote) -> Move:
        """Decide, or replace the sample that ended."""
        self.votes[vote.sample_index] = vote
        counts = Counter(v.answer for v in self.votes.values() if v.answer is not None)
        (_, first), (_, second) = [*counts.most_common(2), (None, 0), (None, 0)][:2]
        if len(self.votes) == self.n or lead_is_safe(first, second) >= self.threshold:
            return Move(decision=Decision(answer=self.answer_now(), by_sample=vote.sample_index))
        return _draw(self, 1)

    def answer_now(self) -> str | None:
        """Return the plurality of the samples that have ended."""
        return most_votes(self.votes)


def _draw(policy: EarlyStopping | Adaptive | Agreement, count: int) -> Move:
    """Draw so many samples more, n in all at the most."""
    start, policy.drawn = policy.drawn, min(policy.drawn + count, policy.n)
    return fresh(range(start, policy.drawn))


def lead_is_safe(first: int, second: int) -> float:
    """Return P(p > 1/2) for p ~ Beta(first + 1, second + 1), exactly.

    The regularised incomplete beta function at 1/2 with whole arguments is a binomial tail:
    P = sum over j = 0..first of C(first + second + 1, j) / 2^(first + second + 1).
    """
    trials = first + second + 1
    return float(sum(comb(trials, j) for j in range(first + 1)) / 2**trials)


@dataclass
class Agreement:
    """Draw until `agree` samples gave the same answer, and cancel the rest.

    That answer is returned; the plurality of all n where none gets so many. More than half of n
    decide as the majority vote of n would, whatever the others say. At most `in_flight` samples
    run at a time. With more than one in flight short samples vote first.
    """

    n: int
    agree: int
    in_flight: int
    votes: dict[int, Vote] = field(default_factory=dict)
    drawn: int = 0

    def begin(self) -> Move:
        """Draw as many as may run at a time."""
        return _draw(self, self.in_flight)

    def on_sample(self, vote: Vote) -> Move:
        """Decide, or replace the sample that ended."""
        self.votes[vote.sample_index] = vote
        same = sum(each.answer == vote.answer for each in self.votes.values())
        agreed = vote.answer is not None and same == self.agree
        if agreed or len(self.votes) == self.n:
            answer = vote.answer if agreed else self.answer_now()
            return Move(decision=Decision(answer=answer, by_sample=vote.sample_index))
        return _draw(self, 1)

    def answer_now(self) -> str | None:
        """Return the plurality of the samples that have ended."""
        return most_votes(self.votes)


@dataclass
class FirstFinish:
    """Draw n samples and let the first k that end with an answer decide; cancel the rest.

    The plurality of those k decides, of all n when fewer than k parse. Samples that end without an
    answer do not count towards k.
    """

    n: int
    k: int
    votes: dict[int, Vote] = field(default_factory=dict)

    def begin(self) -> Move:
        """Draw all samples."""
        return fresh(range(self.n))

    def on_sample(self, vote: Vote) -> Move:
        """Decide at the k-th answer."""
        self.votes[vote.sample_index] = vote
        answered = sum(each.answer is not None for each in self.votes.values())
        if answered < self.k and len(self.votes) < self.n:
            return Move()
        return Move(decision=Decision(answer=self.answer_now(), by_sample=vote.sample_index))

    def answer_now(self) -> str | None:
        """Return the plurality of the samples that have ended."""
        return most_votes(self.votes)
