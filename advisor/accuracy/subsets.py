"""Votes that weigh, filter or stop early, over subsets or random orders of the recorded samples.

The expectation is exact where the best score wins, and where a vote has few subsets. Elsewhere it
is the mean over random orders, which are the same for all rules, with its standard error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from advisor.accuracy.samples import ProblemSamples
from advisor.evidence.runs import Sample
from traces.schema.tts.policy import Policy
from traces.schema.tts.routes import Table, first_of, packed
from traces.schema.tts.stop_rules import (
    AGREE,
    ALL,
    FIELDS,
    ROUTED,
    SAFE,
    WINDOWS,
    Stop,
    lead_is_safe,
)
from traces.statistics import Floats, Ints
from traces.summary.votes import majority_curve

FEWEST_ORDERS, MOST_ORDERS, ALL_ORDERS = 64, 512, 20_000
MOST_SUBSETS = 512  # of a vote that is summed over all of them
_VOTES = np.dtype(FIELDS)


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


def has_few_subsets(n: int, k: int) -> bool:
    """Whether a vote of k of n samples is summed over all subsets."""
    return comb(n, k) <= MOST_SUBSETS


@lru_cache(maxsize=64)
def _subsets(n: int, k: int) -> Ints:
    """Return [subsets, k], all places that k of n samples may have."""
    return np.array(list(combinations(range(n), k)), dtype=np.int64)


class RandomOrders:
    """One problem's samples in random orders; `answers` are numbers, -1 where none parsed."""

    def __init__(self, problem: ProblemSamples, rng: np.random.Generator, orders: int) -> None:
        numbers, self.right = problem.rights()
        self.n = len(problem.answers)
        self.count = orders
        self.draw(rng)
        classes = [-1 if answer is None else numbers[answer] for answer in problem.answers]
        self.answers: Ints = np.array(classes, dtype=np.int64)
        self.parsed = self.answers >= 0
        self.tokens = problem.tokens

    def draw(self, rng: np.random.Generator) -> None:
        every = np.broadcast_to(np.arange(self.n), (self.count, self.n))
        self.orders: Ints = rng.permuted(every, axis=1)

    def weighted(self, k: int, logs: Floats) -> Expectation:
        """Return the vote of k, each weighing by the exponential of its `logs`; a nan has none.

        Where no sample with an answer has one, the plurality decides.
        """
        able = np.isfinite(logs) & self.parsed
        chosen = self._chosen(k)
        tally = self._weighed(chosen, np.where(able, logs, -np.inf)[chosen])
        return self._fixed(self._or_plain(tally, chosen, able), k)

    def confident(self, k: int, confidence: Floats, logs: Floats, keep: float) -> Expectation:
        """Return the weighted vote of the `keep` most confident of k (DeepConf).

        Of those that parsed and whose confidence is known, the share `keep` rounded up.
        """
        able = np.isfinite(confidence) & self.parsed
        chosen = self._chosen(k)
        ranked = np.where(able, confidence, -np.inf)[chosen]
        order = np.argsort(-ranked, axis=1, kind="stable")
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.arange(k)[None, :], axis=1)
        count = able[chosen].sum(axis=1)
        kept = place < np.ceil(keep * count - 1e-9)[:, None]
        held = np.where(kept & able[chosen], logs[chosen], -np.inf)
        return self._fixed(self._or_plain(self._weighed(chosen, held), chosen, able), k)

    def _chosen(self, k: int) -> Ints:
        """Return [draws, k], the samples of each vote: all subsets where these are few."""
        return _subsets(self.n, k) if has_few_subsets(self.n, k) else self.orders[:, :k]

    def until(self, n: int, stop: Stop) -> Expectation:
        """Return the vote of n that a rule ends, its samples drawn one after the other."""
        return _over_orders(*self.ended(n, 1, stop))

    def ended(self, n: int, in_flight: int, stop: Stop) -> Floats:
        """Return [2, orders]: right and tokens of the vote of n that a rule ends.

        `in_flight` samples run at a time and end by their length. Tokens are those by then.
        """
        from advisor.accuracy.orders import vote_in_orders  # numba takes a third of a second

        states = np.zeros(1, _VOTES)
        states["samples"] = n
        return vote_in_orders(
            self.orders, self.answers, self.right, self.tokens, states, in_flight, stop.rule,
            float(stop.value), stop.drawn_first,
        )  # fmt: skip

    def tables(
        self, firsts: Sequence[int], counts: Sequence[int], asked: npt.NDArray[np.bool_]
    ) -> tuple[Floats, Ints]:
        """Return `tables_in_orders` of these orders; `counts` fall."""
        from advisor.accuracy.orders import tables_in_orders  # numba takes a third of a second

        sooner = np.searchsorted(np.sort(self.tokens), self.tokens)
        return tables_in_orders(
            self.orders, self.answers, self.right, self.tokens, sooner,
            np.array(firsts, dtype=np.int64), np.array(counts, dtype=np.int64), asked,
        )  # fmt: skip

    def _tally(self, chosen: Ints, weights: Floats | None = None) -> Floats:
        """Return the votes [draws, answers] of `chosen` samples, of `weights` [draws, k]."""
        classes = max(len(self.right), 1) + 1  # the last for those without an answer
        places = self.answers[chosen] % classes
        places += classes * np.arange(len(chosen))[:, None]
        each = None if weights is None else weights.ravel()
        tally = np.bincount(places.ravel(), each, minlength=len(chosen) * classes)
        return np.asarray(tally.reshape(len(chosen), classes)[:, :-1], dtype=float)

    def _weighed(self, chosen: Ints, logs: Floats) -> Floats:
        """Return the votes [draws, answers] of the samples' `logs` [draws, k], of any size.

        Weights are relative to the largest of a draw, so that they cannot all vanish.
        """
        most = logs.max(axis=1, keepdims=True)
        held = np.exp(logs - np.where(np.isfinite(most), most, 0.0))
        return self._tally(chosen, held)

    def _or_plain(self, tally: Floats, chosen: Ints, able: npt.NDArray[np.bool_]) -> Floats:
        some = np.asarray(able[chosen].any(axis=1))
        plain = tally if some.all() else self._tally(chosen)
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
        """Return the mean over draws, which is exact over all subsets."""
        mean = _over_orders(self._won(tally), np.zeros(len(tally)))
        variance = 0.0 if has_few_subsets(self.n, k) else mean.variance
        return Expectation(mean.right, float(self.tokens.mean()) * k, variance)


def _over_orders(right: Floats, tokens: Floats) -> Expectation:
    return Expectation(
        float(right.mean()), float(tokens.mean()), float(right.var() / max(len(right) - 1, 1))
    )


# How often rules that stop early are right, expected over random orders of a problem's samples.
#
# With a few replays a rule's accuracy depends on luck, and a choice among many candidates takes the
# luckiest. So many orders are drawn here, for a problem that has the engine to itself.


ORDERS = 128  # of each problem's samples


def decides_as_vote(stop: Stop | None, n: int) -> bool:
    """Return whether a rule decides as the vote of all n samples does, in every order of ends.

    So it is where no answer that half of the samples or fewer gave can end it.
    """
    if stop is None or stop.rule == ALL:
        return stop is not None
    too_few = n // 2
    if stop.rule == AGREE:
        return stop.value > too_few
    return stop.rule == SAFE and lead_is_safe(too_few, 0) < stop.value


def by_launch(stop: Stop) -> bool:
    """Return whether a rule looks at samples in the order of drawing, whichever ends first."""
    return stop.rule in (WINDOWS, ROUTED) or stop.drawn_first == 1


def routed(table: Table) -> Stop:
    """Return the rule that goes by a table."""
    return Stop(rule=ROUTED, value=packed(table), drawn_first=first_of(table))


def expected_right(
    problems: Sequence[Sequence[Sample]],
    policies: Sequence[Policy],
    seed: Sequence[int],
    tables: Mapping[Policy, Sequence[Table]] | None = None,
) -> Mapping[Policy, tuple[Floats, Floats]]:
    """Return how often each rule is right [problems], and with samples one after the other.

    `problems` have all recorded samples. A rule sees n of them at random. Rules of the same n see
    the same ones. A policy of `tables` goes by that of each problem.
    """
    from advisor.replay.replay import stop_of  # numba takes a third of a second to load

    right = {policy: np.empty((2, len(problems))) for policy in policies}
    stops = {policy: stop_of(policy) for policy in policies}
    numbers = {policy.n: np.random.default_rng([*seed, policy.n]) for policy in policies}
    for place, samples in enumerate(problems):
        orders: RandomOrders | None = None
        for n, rng in numbers.items():
            if orders is None:
                orders = RandomOrders(samples_of(samples), rng, ORDERS)
            else:
                orders.draw(rng)
            for policy in policies:
                if policy.n == n:
                    stop, most = stops[policy], n
                    if tables is not None and policy in tables:
                        table = tables[policy][place]
                        stop, most = routed(table), max(table)
                    many = one = orders.ended(most, 1, stop)[0].mean()
                    if not by_launch(stop):
                        many = orders.ended(n, stop.drawn_first or n, stop)[0].mean()
                    right[policy][:, place] = many, one
    return {policy: (many, one) for policy, (many, one) in right.items()}


def samples_of(samples: Sequence[Sample]) -> ProblemSamples:
    """Return a problem's samples for rules that look at lengths and votes alone."""
    unknown = np.full(len(samples), np.nan)
    return ProblemSamples(
        problem_id="",
        indices=tuple(range(len(samples))),
        answers=tuple([each.answer for each in samples]),
        correct=tuple([bool(each.correct) for each in samples]),
        tokens=np.array([each.output_tokens for each in samples], dtype=float),
        think_tokens=unknown,
        censored=np.zeros(len(samples), dtype=bool),
        logprob_mean=unknown,
        confidence=unknown,
        score=unknown,
        first_token_s=unknown,
        finish_s=unknown,
    )
