"""Policies that go on from an earlier attempt: budget forcing and revision."""

from __future__ import annotations

from dataclasses import dataclass, field

from profiler.policies.choices import most_votes
from profiler.policies.interface import Decision, Draw, GoOn, Move, Revise, Vote, fresh

_LEAST_ROOM = 8  # tokens; below that a thought is not reopened


@dataclass
class BudgetForcing:
    """Reopen a thought that has ended, `extend` times (s1, Muennighoff et al. 2025, 2501.19393).

    The end of the thought and the answer are cut, `word` is appended and generation goes on. n
    such chains run in parallel. The answer of a chain is that of its last round that parsed, and
    the plurality of the chains decides. A chain ends early where its thought did not end, a round
    failed, or max_tokens or the thinking budget leave fewer than 8 tokens.
    """

    n: int
    extend: int
    word: str
    votes: dict[int, Vote] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def begin(self) -> Move:
        return fresh(range(self.n))

    def on_sample(self, vote: Vote) -> Move:
        done_rounds, chain = divmod(vote.sample_index, self.n)
        if vote.answer is not None or chain not in self.votes:
            self.votes[chain] = vote
        further = done_rounds < self.extend and vote.thought_ended and not vote.failed
        if further and vote.has_room(_LEAST_ROOM):
            return Move(
                draw=[
                    Draw(
                        index=vote.sample_index + self.n,
                        role="forced",
                        how=GoOn(append=self.word, reopen=True),
                        parent=vote.sample_index,
                        round=done_rounds + 1,
                    )
                ]
            )
        self.done.add(chain)
        if len(self.done) < self.n:
            return Move()
        return Move(decision=Decision(answer=self.answer_now(), by_sample=vote.sample_index))

    def answer_now(self) -> str | None:
        return most_votes(self.votes)


@dataclass
class Revision:
    """Ask again, showing the attempt before, for at most n rounds (Snell et al. 2024, 2408.03314).

    The answer is that of the last round that parsed. It ends early when the last `stable` answers
    are the same (0: never). A round that failed is asked again as the next round, and the
    round after an unparsed one shows it with an empty answer.
    """

    n: int
    stable: int
    template: str
    answers: list[str] = field(default_factory=list)
    shown: int | None = None  # the attempt that the next round revises

    def begin(self) -> Move:
        return fresh([0])

    def on_sample(self, vote: Vote) -> Move:
        if vote.answer is not None:
            self.answers.append(vote.answer)
        if not vote.failed:
            self.shown = vote.sample_index
        last = self.answers[-self.stable :] if self.stable else []
        settled = len(last) == self.stable > 0 and len(set(last)) == 1
        following = vote.sample_index + 1
        if settled or following == self.n:
            return Move(decision=Decision(answer=self.answer_now(), by_sample=vote.sample_index))
        if self.shown is None:
            return Move(draw=[Draw(index=following, round=following)])
        return Move(
            draw=[
                Draw(
                    index=following,
                    role="revision",
                    how=Revise(template=self.template),
                    parent=self.shown,
                    round=following,
                )
            ]
        )

    def answer_now(self) -> str | None:
        return self.answers[-1] if self.answers else None
