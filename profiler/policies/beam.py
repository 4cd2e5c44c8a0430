"""Beam search over steps of thought."""

from __future__ import annotations

from dataclasses import dataclass, field

from profiler.policies.interface import Decision, Draw, GoOn, Move, Vote


@dataclass(frozen=True)
class _Beam:
    """A thought so far: its last vote, its score, and the sums that a mean over it needs."""

    vote: Vote
    score: float | None
    logprob_sum: float | None
    tokens: int

    @property
    def rank(self) -> tuple[bool, float, int]:
        """Sort key, best first: scored ones, by score, then by index."""
        return self.score is None, -(self.score or 0.0), self.vote.sample_index


@dataclass
class BeamSearch:
    """Keep the best thoughts, step by step (as the beam search of Snell et al. 2024, 2408.03314).

    A depth has at most n candidates, each one step of thought longer: up to the string
    `step_stop` or `step_tokens` tokens. Of the candidates and the thoughts that have ended the
    `width` with the highest scores are kept, and those of them that have not ended get the next n
    candidates in equal parts. At the last depth they run to their end. The kept thought of the
    highest score that parsed answers; if none parsed, the best of any that did.
    The score is the scorer's of the whole thought, or the mean log-probability of its tokens. A
    candidate without a score ranks last, one that failed is dropped.
    """

    n: int
    width: int
    depth: int
    step_stop: str
    step_tokens: int
    log_probabilities: bool
    level: int = 0
    running: set[int] = field(default_factory=set)
    parents: dict[int, int] = field(default_factory=dict)
    beams: dict[int, _Beam] = field(default_factory=dict)  # all that ended, by index
    pool: list[_Beam] = field(default_factory=list)  # kept from before, and this depth's

    def begin(self) -> Move:
        return self._expand([])

    def on_sample(self, vote: Vote) -> Move:
        """Take a candidate; when its depth is complete keep the best and expand them."""
        self.running.discard(vote.sample_index)
        if not vote.failed:
            self.pool.append(self._beam(vote))
            self.beams[vote.sample_index] = self.pool[-1]
        if self.running:
            return Move()
        kept = sorted(self.pool, key=lambda beam: beam.rank)[: self.width]
        alive = [beam for beam in kept if beam.vote.paused and beam.vote.has_room(1)]
        self.level += 1
        if not alive or self.level == self.depth:
            self.pool = kept
            return Move(decision=Decision(answer=self.answer_now(), by_sample=vote.sample_index))
        self.pool = [beam for beam in kept if beam not in alive]
        return self._expand(alive)

    def _expand(self, alive: list[_Beam]) -> Move:
        first = self.level * self.n
        last = self.level == self.depth - 1
        parents = [beam.vote.sample_index for beam in alive]
        count = self.n // len(parents) * len(parents) if parents else self.n
        self.running = set(range(first, first + count))
        if parents:
            self.parents |= {i: parents[i % len(parents)] for i in self.running}
        return Move(
            draw=[
                Draw(
                    index=index,
                    how=GoOn() if parents else None,
                    parent=self.parents.get(index),
                    depth=self.level,
                    stop=() if last else (self.step_stop,),
                    max_tokens=None if last else self.step_tokens,
                )
                for index in sorted(self.running)
            ]
        )

    def _beam(self, vote: Vote) -> _Beam:
        before = self.beams.get(self.parents.get(vote.sample_index, -1))
        tokens = (vote.tokens or 0) + (before.tokens if before else 0)
        total = None if vote.logprob_mean is None else vote.logprob_mean * (vote.tokens or 0)
        if total is not None and before is not None:
            total = None if before.logprob_sum is None else total + before.logprob_sum
        score = vote.score
        if self.log_probabilities:
            score = total / tokens if total is not None and tokens else None
        return _Beam(vote, score, total, tokens)

    def answer_now(self) -> str | None:
        """Return the answer of the best thought that ended and parsed, kept ones first."""
        for beams in (self.pool, list(self.beams.values())):
            for beam in sorted(beams, key=lambda beam: beam.rank):
                if beam.vote.answer is not None and not beam.vote.paused:
                    return beam.vote.answer
        return None
