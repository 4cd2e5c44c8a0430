"""How votes become an answer: plurality, best score, weights, the most confident share.

Each takes votes by sample index and returns an answer, None when no sample parsed. A tie goes to
the answer (or the sample) with the lowest index; a score that is missing or not finite does not
count, and where none counts the plurality decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from math import ceil, exp, isfinite

from profiler.policies.interface import Vote

Choice = Callable[[Mapping[int, Vote]], str | None]


def plurality(answers: Mapping[int, str | None]) -> str | None:
    """Return the most frequent of the answers by sample index."""
    return _heaviest((answer, 1.0) for _, answer in sorted(answers.items()))


def most_votes(votes: Mapping[int, Vote]) -> str | None:
    """Return the most frequent answer."""
    return plurality({index: vote.answer for index, vote in votes.items()})


def best_scored(votes: Mapping[int, Vote]) -> str | None:
    """Return the answer of the sample with the highest score (best-of-n)."""
    scored = [(vote.score, vote) for vote in _parsed(votes) if _finite(vote.score)]
    if not scored:
        return most_votes(votes)
    return max(scored, key=lambda pair: pair[0] or 0.0)[1].answer  # max keeps the first of equals


def weighted(*, log_probabilities: bool) -> Choice:
    """Return the vote weighted by score.

    A mean log-probability weighs as its exponential (the geometric mean of the tokens'
    probabilities), a scorer's score as it is, negative ones as 0.
    """

    def choose(votes: Mapping[int, Vote]) -> str | None:
        scored = [
            (vote.answer, vote.score)
            for vote in _parsed(votes)
            if vote.score is not None and isfinite(vote.score)
        ]
        if not scored:
            return most_votes(votes)
        most = max(score for _, score in scored)  # relative to it, weights cannot all vanish
        return _heaviest(
            (answer, exp(score - most) if log_probabilities else max(score, 0.0))
            for answer, score in scored
        )

    return choose


def most_confident(keep: float) -> Choice:
    """Return DeepConf's offline vote (Fu et al. 2025, arXiv 2508.15260, section 3.2).

    Of the samples that parsed the share `keep` (rounded up) with the highest confidence stays,
    and votes with its confidence as weight. The confidence is the paper's lowest group confidence
    (profiler/engines/confidence.py).
    """

    def choose(votes: Mapping[int, Vote]) -> str | None:
        confident = [vote for vote in _parsed(votes) if _finite(vote.confidence)]
        ranked = sorted(confident, key=lambda vote: -(vote.confidence or 0.0))
        kept = ranked[: ceil(keep * len(ranked) - 1e-9)]
        kept.sort(key=lambda vote: vote.sample_index)
        if not kept:
            return most_votes(votes)
        return _heaviest((vote.answer, vote.confidence or 0.0) for vote in kept)

    return choose


def _finite(number: float | None) -> bool:
    return number is not None and isfinite(number)


def _parsed(votes: Mapping[int, Vote]) -> list[Vote]:
    return [vote for _, vote in sorted(votes.items()) if vote.answer is not None]


def _heaviest(weighted_answers: Iterable[tuple[str | None, float]]) -> str | None:
    """Return the answer of the largest total weight; of equals the one that came first."""
    totals: dict[str, float] = defaultdict(float)
    for answer, weight in weighted_answers:
        if answer is not None:
            totals[answer] += weight
    return max(totals, key=lambda answer: totals[answer]) if totals else None
