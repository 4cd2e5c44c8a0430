"""Policies that draw samples of the same prompt, all at once or until a rule says enough."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from profiler.policies.choices import Choice, most_votes
from profiler.policies.interface import Decision, Move, Vote, fresh
from traces.schema.tts import stop_rules
from traces.schema.tts.stop_rules import Stop, Votes


@dataclass
class ParallelVote:
    """Draw at most n samples and choose among those that ended when the rule decides.

    The rules are in traces/schema/tts/stop_rules.py. What runs at the decision is cancelled. With
    several samples in flight, the short ones vote first.
    """

    n: int
    stop: Stop
    choose: Choice = most_votes
    ended: dict[int, Vote] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)  # of the answers, for the rule
    tallies: Counter[int] = field(default_factory=Counter)
    votes: Votes = field(init=False)

    def __post_init__(self) -> None:
        self.votes = Votes(samples=self.n)
        stop_rules.begin(self.votes, self.stop.drawn_first)

    def begin(self) -> Move:
        return fresh(range(self.votes.wanted))

    def on_sample(self, vote: Vote) -> Move:
        """Decide, draw more or wait, as the rule says."""
        self.ended[vote.sample_index] = vote
        answer, drawn = stop_rules.NO_ANSWER, self.votes.wanted
        if vote.answer is not None:
            answer = self.numbers.setdefault(vote.answer, len(self.numbers))
            self.tallies[answer] += 1
        verdict = stop_rules.take(
            self.votes,
            self.stop.rule,
            self.stop.value,
            vote.sample_index,
            answer,
            self.tallies[answer],
        )
        if verdict == stop_rules.DECIDE:
            return Move(decision=Decision(answer=self.answer_now(), by_sample=vote.sample_index))
        return fresh(range(drawn, self.votes.wanted))

    def answer_now(self) -> str | None:
        return self.choose(self.ended)
