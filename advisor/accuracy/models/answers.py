"""Which answers a problem gets when it is asked more often than it was, or once more.

Each problem has a chance of being answered right and a distribution over wrong answers, neither of
which its few samples show. Both come from laws that all problems share and that are learnt from
them (success.py, mistakes.py), so that problems which are never or always solved, easy ones with
scattered mistakes and hard ones with one popular mistake can stand side by side.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from advisor.accuracy.models.mistakes import STICKS, draw_laws, draw_mistakes
from advisor.accuracy.models.success import SuccessLaw
from traces.statistics import Floats, Ints

_CELLS = 2_000_000  # of answer distributions held at once
_TRIES = 24  # chances to be right that are proposed for each draw and problem


@dataclass(frozen=True, kw_only=True)
class AnswerCounts:
    """How often each answer of one problem was given; `right` and `wrong` one number per class."""

    right: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()
    unparsed: int = 0


def count_answers(answers: Sequence[Hashable], correct: Sequence[bool | None]) -> AnswerCounts:
    """Return the counts of one problem; an answer judged both ways counts as most often judged."""
    classes: dict[Hashable, list[bool]] = {}
    for answer, flag in zip(answers, correct, strict=True):
        if answer is not None:
            classes.setdefault(answer, []).append(bool(flag))
    judged = [(2 * sum(flags) > len(flags), len(flags)) for flags in classes.values()]
    return AnswerCounts(
        right=tuple(sorted((size for right, size in judged if right), reverse=True)),
        wrong=tuple(sorted((size for right, size in judged if not right), reverse=True)),
        unparsed=sum(answer is None for answer in answers),
    )


@dataclass(frozen=True, kw_only=True)
class VoteRuns:
    """Runs of all problems: [repeats, draws, problems].

    `majority` is the right share of the answers that lead the vote, `any_right` 1 where a sample
    is right.
    """

    majority: Floats
    any_right: Floats


class AnswerModel:
    """Joint draws of the laws that problems share and of every problem's answer distribution.

    Given its kind, a problem's chance to be right has a beta posterior, and its wrong answers the
    posterior of its Pitman-Yor law: a Dirichlet law over those seen and the mass not seen, which is
    broken into sticks. How many of the answers that are not right do not parse has a law of the
    same form as the chance to be right. Right answers in several forms keep the proportions seen,
    by a Dirichlet law.

    `importance_` [draws, problems] are weights that sum to 1, by which a draw stands for other
    problems (the Bayesian bootstrap, Rubin 1981).
    """

    def __init__(self, *, draws: int = 200, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed

    def fit(self, problems: Sequence[AnswerCounts]) -> AnswerModel:
        rng = np.random.default_rng([self.seed, 0])
        self._rights = max(1, *(len(problem.right) for problem in problems))
        self._wrongs = max(len(problem.wrong) for problem in problems)
        self._seen = self._tally(problems)
        self._right = self._seen[:, : self._rights].sum(axis=1)
        self._unparsed = self._seen[:, -1]
        self._wrong = self._seen[:, self._rights : -1].sum(axis=1)
        self.importance_ = rng.dirichlet(np.ones(len(problems)), self.draws)
        missed = self._wrong + self._unparsed
        law = SuccessLaw(draws=self.draws, seed=self.seed).fit(self._right, missed)
        wrong = [problem.wrong for problem in problems]

        def propose(draw: int) -> Floats:
            return law.chances(self._right, missed, rng, draw=draw, tries=_TRIES)

        self._hit, self._laws = draw_laws(wrong, propose, self.draws, rng)
        self._lost = np.zeros_like(self._hit)
        if self._unparsed.any():
            silence = SuccessLaw(draws=self.draws, seed=self.seed + 1)
            silence.fit(self._unparsed, self._wrong)
            self._lost = silence.chances(self._unparsed, self._wrong, rng)
        return self

    def simulate(
        self, counts: Sequence[int], *, keep: bool = False, repeats: int = 1, seed: int = 0
    ) -> dict[int, VoteRuns]:
        """Return what votes of so many samples give, by their number.

        With `keep` the samples seen are the first of them and only the others are drawn; without,
        all are fresh. `repeats` runs share the answer distributions of a draw. Raises ValueError
        when more samples are kept than the smallest number.
        """
        levels = sorted(set(counts))
        problems, columns = self._seen.shape
        shape = (len(levels), repeats, self.draws, problems)
        majority, any_right = np.empty(shape), np.empty(shape)
        start = self._seen if keep else np.zeros_like(self._seen)
        if levels and start.sum(axis=1).max() > levels[0]:
            raise ValueError(f"some problems have more than {levels[0]} samples already")
        rng = np.random.default_rng([self.seed, 1, seed])
        at_once = max(1, _CELLS // (problems * columns))
        for first in range(0, self.draws, at_once):
            draws = np.arange(first, min(first + at_once, self.draws))
            chances = self._chances(draws, rng)
            for repeat in range(repeats):
                tally = np.tile(start, (len(draws), 1))
                for place, level in enumerate(levels):
                    tally = tally + rng.multinomial(level - tally.sum(axis=1), chances)
                    cells = place, repeat, draws
                    majority[cells] = self._vote(tally).reshape(len(draws), problems)
                    hits = tally[:, : self._rights].any(axis=1)
                    any_right[cells] = hits.reshape(len(draws), problems)
        return {
            level: VoteRuns(majority=majority[place], any_right=any_right[place])
            for place, level in enumerate(levels)
        }

    # Columns of a tally: right classes, wrong classes seen, STICKS not seen, all others, unparsed.

    def _tally(self, problems: Sequence[AnswerCounts]) -> Ints:
        tally = np.zeros((len(problems), self._rights + self._wrongs + STICKS + 2), dtype=np.int64)
        for row, problem in zip(tally, problems, strict=True):
            row[: len(problem.right)] = problem.right
            row[self._rights : self._rights + len(problem.wrong)] = problem.wrong
            row[-1] = problem.unparsed
        return tally

    def _chances(self, draws: Ints, rng: np.random.Generator) -> Floats:
        """Return [draws x problems, columns], an answer distribution for every problem."""
        seen = np.tile(self._seen, (len(draws), 1))
        hit, lost = self._hit[draws].ravel(), self._lost[draws].ravel()
        # Where no right answer was seen yet there will be one form of it.
        rights = seen[:, : self._rights]
        none_yet = (rights == 0).all(axis=1, keepdims=True)
        forms = rights + none_yet * np.eye(1, self._rights)
        among = rng.gamma(forms)
        classes = seen[:, self._rights : self._rights + self._wrongs]
        mistakes = draw_mistakes(classes, self._laws[draws].ravel(), rng)
        chances = np.concatenate(
            [
                hit[:, None] * among / among.sum(axis=1, keepdims=True),
                ((1 - hit) * (1 - lost))[:, None] * mistakes,
                ((1 - hit) * lost)[:, None],
            ],
            axis=1,
        )
        return np.asarray(chances / chances.sum(axis=1, keepdims=True))

    def _vote(self, tally: Ints) -> Floats:
        """Return the right share of the leaders; the other mistakes have one vote each."""
        votes, alone = tally[:, :-2], tally[:, -2]
        most = np.maximum(votes.max(axis=1), alone > 0)
        leads = (votes == most[:, None]) & (most > 0)[:, None]
        leading = leads.sum(axis=1) + np.where(most == 1, alone, 0)
        won = leads[:, : self._rights].sum(axis=1)
        share = np.divide(won, leading, out=np.zeros(len(tally)), where=leading > 0)
        return np.asarray(share, dtype=float)


@lru_cache(maxsize=16)
def fitted(problems: tuple[AnswerCounts, ...], *, draws: int = 200, seed: int = 0) -> AnswerModel:
    """Return the model of these problems, which is learned once."""
    return AnswerModel(draws=draws, seed=seed).fit(problems)
