"""The accuracy of voting over any number of the recorded samples.

A vote is a plurality. Answers that do not parse have no vote, so they win only when nothing else
was answered, and then the problem is wrong. A tie is shared equally among the tied answers, which
is what the rule "the tied answer of the lowest sample index wins" comes to over samples in random
order.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class VoteAccuracy:
    """Expected correctness of each problem for every number of samples.

    `fit` takes, per problem, the answers of its samples (None where none was parsed) and whether
    each is right. Numbers of samples run from 1 to the fewest that any problem has.

    Attributes
    ----------
    n_: the largest number of samples.
    majority_: [problems, n_], expected correctness of a vote over k = 1 .. n_ samples.
    any_: [problems, n_], the chance that any of k samples is right (pass@k).

    Notes
    -----
    Both are exact expectations over the subsets of k of the n recorded samples, drawn without
    replacement. pass@k = 1 - C(n - c, k) / C(n, k) with c right samples (Chen et al. 2021). For a
    vote, with v votes for the right answer the other answers' votes are counted by a
    multivariate hypergeometric recursion, together with how many of them also have v.

    """

    def fit(
        self, answers: Sequence[Sequence[Hashable]], correct: Sequence[Sequence[bool]]
    ) -> VoteAccuracy:
        """Compute both for each problem."""
        self.n_ = min((len(row) for row in answers), default=0)
        majority, passing = [], []
        for row, right in zip(answers, correct, strict=True):
            if len(row) != len(right):
                raise ValueError("answers and correct differ in length")
            unparsed = sum(answer is None for answer in row)
            votes: dict[Hashable, list[bool]] = {}
            for answer, flag in zip(row, right, strict=True):
                if answer is not None:
                    votes.setdefault(answer, []).append(flag)
            curve = np.zeros(len(row))
            for answer, flags in votes.items():
                share = sum(flags) / len(flags)
                if share:
                    others = sorted(len(v) for name, v in votes.items() if name != answer)
                    curve = curve + share * np.asarray(
                        win_probability(len(flags), tuple(others), unparsed)
                    )
            majority.append(curve[: self.n_])
            passing.append(pass_at_k(len(row), sum(right))[: self.n_])
        self.majority_: Floats = np.array(majority).reshape(len(answers), self.n_)
        self.any_: Floats = np.array(passing).reshape(len(answers), self.n_)
        return self


def pass_at_k(n: int, right: int) -> Floats:
    """Return the chance that any of k of n samples is right, for k = 1 .. n."""
    miss = np.ones(n)
    for k in range(1, n + 1):
        before = miss[k - 2] if k > 1 else 1.0
        miss[k - 1] = before * max(n - right - k + 1, 0) / (n - k + 1)
    return np.asarray(1.0 - miss)


@cache
def _binomials(n: int) -> Floats:
    """Return C(n, 0 .. n) as floats, exact to rounding up to n = 1000."""
    row = np.ones(n + 1)
    for k in range(1, n + 1):
        row[k] = row[k - 1] * (n - k + 1) / k
    return row


@cache
def win_probability(own: int, others: tuple[int, ...], unparsed: int) -> tuple[float, ...]:
    """Return the share of wins of an answer in votes over k of all samples, for k = 1 .. all.

    The answer has `own` of the samples, the other answers have `others`, and `unparsed` have no
    vote. A tie among t answers counts 1 / t.
    """
    total = own + sum(others) + unparsed
    wins = np.zeros(total + 1)
    own_ways = _binomials(own)
    for votes in range(1, own + 1):
        ways = _ways_not_above(votes, others, unparsed, total)
        shared = ways @ (1.0 / np.arange(1, ways.shape[1] + 1))
        wins[votes:] += own_ways[votes] * shared[: total + 1 - votes]
    return tuple((np.minimum(wins[1:] / _binomials(total)[1:], 1.0)).tolist())


def _ways_not_above(votes: int, others: tuple[int, ...], unparsed: int, total: int) -> Floats:
    """Return [samples, ties]: ways to draw so many samples with no other answer above `votes`.

    `ties` is how many of the other answers have exactly `votes`.
    """
    able = sum(size >= votes for size in others)
    ways = np.zeros((total + 1, able + 1))
    free = _binomials(unparsed)
    ways[: unparsed + 1, 0] = free
    reach = unparsed
    for size in others:
        choose = _binomials(size)
        grown = np.zeros_like(ways)
        for drawn in range(min(size, votes) + 1):
            span = slice(drawn, drawn + reach + 1)
            if drawn < votes:
                grown[span] += choose[drawn] * ways[: reach + 1]
            else:
                grown[span, 1:] += choose[drawn] * ways[: reach + 1, :-1]
        reach += min(size, votes)
        ways = grown
    return ways
