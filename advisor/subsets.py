"""Votes that weigh, filter or stop by windows, over the subsets of the recorded samples.

Samples of a fixed number, or of whole windows, are a fair draw: which of them end first decides
nothing. The expectation is exact where the best score wins; elsewhere it is the mean over random
orders of the samples, the same for all rules, with its standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advisor.samples import ProblemSamples
from traces.votes import majority_curve

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FEWEST_ORDERS, MOST_ORDERS, ALL_ORDERS = 64, 512, 20_000


@dataclass(frozen=True)
class Expectation:
    """Over random orders: the mean of right and of tokens, and the variance of the mean right."""

    right: float
    tokens: float
    variance: float = 0.0


def best_of_curve(problem: ProblemSamples, scores: Floats) -> Floats:
    """Return the chance that the best scored of k samples is right, for k = 1 .. n, exactly.

    Only samples with an answer and a finite score can win, equal scores share, and where none can
    the plurality decides. With h eligible samples above a group of equals and s in it, the best of
    k is of the group with chance (C(n - h, k) - C(n - h - s, k)) / C(n, k).
    """
    n = len(problem.answers)
    parsed = np.array([answer is not None for answer in problem.answers])
    able = parsed & np.isfinite(scores)
    right = np.array(problem.correct, dtype=float)
    curve, higher = np.zeros(n), 0
    for score in sorted(set(scores[able].tolist()), reverse=True):
        group = able & (scores == score)
        size = int(group.sum())
        chance = _none_of(n, higher) - _none_of(n, higher + size)
        curve += chance * right[group].mean()
        higher += size
    left = n - higher
    if left and (parsed & ~able).any():
        rest = [i for i in range(n) if not able[i]]
        votes = majority_curve([problem.answers[i] for i in rest], [bool(right[i]) for i in rest])
        curve[:left] += _none_of(n, higher)[:left] * votes
    return curve


def _none_of(n: int, marked: int) -> Floats:
    """Return C(n - marked, k) / C(n, k), the chance that k of n have no marked one, k = 1 .. n."""
    drawn = np.arange(n)
    return np.asarray(np.cumprod(np.maximum(n - marked - drawn, 0) / (n - drawn)))


def order_count(problems: int) -> int:
    """Return how many random orders each problem gets: more where there are few problems."""
    return min(max(ALL_ORDERS // problems, FEWEST_ORDERS), MOST_ORDERS)


class RandomOrders:
    """One problem's samples in random orders; `classes` [orders, n], -1 without an answer."""

    def __init__(self, problem: ProblemSamples, rng: np.random.Generator, orders: int) -> None:
        numbers, self.right = problem.rights()
        self.problem = problem
        self.n = len(problem.answers)
        every = np.arange(self.n)
        self.orders: Ints = rng.permuted(np.tile(every, (orders, 1)), axis=1)
        classes = np.array([-1 if a is None else numbers[a] for a in problem.answers])
        self.parsed = classes >= 0
        self.classes: Ints = classes[self.orders]
        self.marks: Floats = np.zeros((self.n, max(len(numbers), 1)))
        self.marks[every[self.parsed], classes[self.parsed]] = 1.0
        self.tokens = problem.tokens

    def majority(self, k: int) -> Expectation:
        """Return the vote of k."""
        return self._fixed(self._tally(k, np.ones(self.n)), k)

    def weighted(self, k: int, weights: Floats) -> Expectation:
        """Return the vote of k with one weight per sample; a nan has none.

        Where no sample with an answer has one, the plurality decides.
        """
        known = np.isfinite(weights)
        tally = self._tally(k, np.where(known, weights, 0.0))
        return self._fixed(self._or_plain(tally, k, known & self.parsed), k)

    def confident(self, k: int, confidence: Floats, weights: Floats, keep: float) -> Expectation:
        """Return the weighted vote of the `keep` most confident of k (DeepConf).

        Of those that parsed and whose confidence is known, the share `keep` rounded up.
        """
        able = np.isfinite(confidence) & self.parsed
        chosen = self.orders[:, :k]
        ranked = np.where(able, confidence, -np.inf)[chosen]
        order = np.argsort(-ranked, axis=1, kind="stable")
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.arange(k)[None, :], axis=1)
        count = able[chosen].sum(axis=1)
        kept = place < np.ceil(keep * count - 1e-9)[:, None]
        held = np.where(able, weights, 0.0)[chosen] * kept
        tally = np.einsum("ok,okc->oc", held, self.marks[chosen])
        return self._fixed(self._or_plain(tally, k, able), k)

    def windows(self, n: int, window: int) -> Expectation:
        """Return the vote that stops at the first window whose samples all agree (ESC).

        The plurality of all up to it decides, or of n. Tokens are of the windows drawn.
        """
        ends = [min(start + window, n) for start in range(0, n, window)]
        tally = np.zeros((len(self.orders), self.marks.shape[1]))
        right, tokens = np.zeros(len(self.orders)), np.zeros(len(self.orders))
        going = np.ones(len(self.orders), dtype=bool)
        begin = 0
        for end in ends:
            piece = self.classes[:, begin:end]
            tally += self.marks[self.orders[:, begin:end]].sum(axis=1)
            tokens += np.where(going, self.tokens[self.orders[:, begin:end]].sum(axis=1), 0.0)
            agree = (piece == piece[:, :1]).all(axis=1) & (piece[:, 0] >= 0)
            stop = going & (agree | (end == n))
            right[stop] = self._won(tally[stop])
            going &= ~stop
            begin = end
        return _over_orders(right, tokens)

    def one_by_one(self, n: int, safe: Floats, threshold: float) -> Expectation:
        """Return the adaptive vote with one sample in flight at a time (ASC).

        `safe` is `finish_order.safe_leads`.
        """
        return self.ending(n, lambda tally: lasting(tally, safe) >= threshold)

    def ending(
        self, n: int, stops: Callable[[Floats], npt.NDArray[np.bool_]], seen: Ints | None = None
    ) -> Expectation:
        """Return the vote of n that ends when `stops` says so of the votes [orders, answers].

        Samples end in the order `seen` [orders, n], by default that of the draw, which the tokens
        are reckoned for.
        """
        seen = self.orders[:, :n] if seen is None else seen
        width = self.marks.shape[1]
        tally = np.zeros((len(self.orders), max(width, 2)))
        right, tokens = np.zeros(len(self.orders)), np.zeros(len(self.orders))
        going = np.ones(len(self.orders), dtype=bool)
        for place in range(n):
            drawn = seen[:, place]
            tally[:, :width] += self.marks[drawn]
            tokens += np.where(going, self.tokens[drawn], 0.0)
            stop = going & (stops(tally) | (place == n - 1))
            right[stop] = self._won(tally[stop][:, :width])
            going &= ~stop
            if not going.any():
                break
        return _over_orders(right, tokens)

    def _tally(self, k: int, weights: Floats) -> Floats:
        found = (self.marks * weights[:, None])[self.orders[:, :k]].sum(axis=1)
        return np.asarray(found)

    def _or_plain(self, tally: Floats, k: int, able: npt.NDArray[np.bool_]) -> Floats:
        some = np.asarray(able[self.orders[:, :k]].any(axis=1))
        plain = tally if some.all() else self._tally(k, np.ones(self.n))
        return np.where(some[:, None], tally, plain)

    def _won(self, tally: Floats) -> Floats:
        """Return the right share of the answers that lead; sums that differ by rounding tie."""
        most = tally.max(axis=1, keepdims=True)
        leads = (tally >= most * (1 - 1e-12)) & (most > 0)
        if not self.right.size:
            return np.zeros(len(tally))
        won = (leads * self.right).sum(axis=1)
        leading = leads.sum(axis=1)
        share = np.divide(won, leading, out=np.zeros(len(tally)), where=leading > 0)
        return np.asarray(share, dtype=float)

    def _fixed(self, tally: Floats, k: int) -> Expectation:
        """Return the mean over orders; all of the samples have but one subset."""
        found = _over_orders(self._won(tally), np.zeros(len(tally)))
        whole = k == self.n
        return Expectation(
            found.right, float(self.tokens.mean()) * k, 0.0 if whole else found.variance
        )


def lasting(tally: Floats, safe: Floats) -> Floats:
    """Return the posterior that the lead lasts of votes [orders, answers], from `safe_leads`."""
    two = np.sort(tally, axis=1)[:, -2:].astype(int)
    return np.asarray(safe[two[:, 1], two[:, 0]])


def _over_orders(right: Floats, tokens: Floats) -> Expectation:
    return Expectation(
        float(right.mean()), float(tokens.mean()), float(right.var() / max(len(right) - 1, 1))
    )
