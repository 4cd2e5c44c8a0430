"""Votes that weigh, filter or stop by windows, over the subsets of the recorded samples.

Samples of a fixed number, or of whole windows, are a fair draw: which of them end first decides
nothing. The expectation is exact where the best score wins; elsewhere it is the mean over random
orders of the samples, the same for all rules, with its standard error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from advisor.finish_order import safe_leads
from advisor.samples import ProblemSamples
from traces.schema import Policy
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
    """One problem's samples in random orders; `answers` are numbers, -1 where none parsed."""

    def __init__(self, problem: ProblemSamples, rng: np.random.Generator, orders: int) -> None:
        numbers, self.right = problem.rights()
        self.n = len(problem.answers)
        self.orders: Ints = rng.permuted(np.tile(np.arange(self.n), (orders, 1)), axis=1)
        self.answers: Ints = np.array([numbers.get(a, -1) for a in problem.answers], np.int64)
        self.parsed = self.answers >= 0
        self.tokens = problem.tokens

    @cached_property
    def marks(self) -> Floats:
        """[samples, answers]: 1 where a sample gave the answer."""
        return (self.answers[:, None] == np.arange(max(len(self.right), 1))).astype(float)

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
        return self.ending(Policy(method="early_stopping", n=n, rule=(("window", window),)), 1)

    def one_by_one(self, n: int, threshold: float) -> Expectation:
        """Return the adaptive vote with one sample in flight at a time (ASC)."""
        rule = (("in_flight", 1), ("threshold", threshold))
        return self.ending(Policy(method="adaptive", n=n, rule=rule), 1)

    def ending(self, policy: Policy, in_flight: int) -> Expectation:
        """Return the vote that a policy ends early, with so many samples running at a time.

        Samples end by their length; the tokens are of those that did.
        """
        # numba takes a third of a second to load
        from advisor.replays import stop_of
        from advisor.simulation.orders import vote_in_orders

        stop = stop_of(policy)
        safe = safe_leads(policy.n if policy.method == "adaptive" else 0)
        right, tokens = vote_in_orders(
            self.orders, self.answers, self.right, self.tokens, policy.n, in_flight, stop.rule,
            float(stop.value), safe,
        )  # fmt: skip
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


def _over_orders(right: Floats, tokens: Floats) -> Expectation:
    return Expectation(
        float(right.mean()), float(tokens.mean()), float(right.var() / max(len(right) - 1, 1))
    )
