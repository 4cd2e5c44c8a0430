"""How often rules that stop early are right, expected over random orders of a problem's samples.

A few replays of a rule leave its accuracy to the luck of their orders, of which a choice among many
candidates takes the best. Agreement of more than half decides as the vote of all does, whatever the
order; of other rules many orders are drawn here, for an engine that a problem has to itself:
samples end by their length, as many at a time as are in flight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from advisor.evidence import Sample
from advisor.samples import ProblemSamples
from advisor.subsets import RandomOrders
from traces.schema import Policy

Floats = npt.NDArray[np.float64]

ORDERS = 128  # of each problem's samples


def decides_as_vote(policy: Policy) -> bool:
    """Return whether a policy answers as the vote of all n samples does, in every order."""
    return policy.method == "agreement" and 2 * int(dict(policy.rule)["agree"]) > policy.n


def expected_right(
    problems: Sequence[Sequence[Sample]], policies: Sequence[Policy], seed: Sequence[int]
) -> Mapping[Policy, tuple[Floats, Floats]]:
    """Return how often each rule is right [problems], and with samples one after the other.

    `problems` have all samples that were recorded; a rule sees n of them at random, those of as
    many the same ones.
    """
    from advisor.replays import stop_of  # numba takes a third of a second to load

    rules = [(policy, stop_of(policy)) for policy in policies]
    numbers = {policy.n: np.random.default_rng([*seed, policy.n]) for policy in policies}
    found = {policy: np.empty((2, len(problems))) for policy in policies}
    for place, samples in enumerate(problems):
        orders: RandomOrders | None = None
        for n, rng in numbers.items():
            if orders is None:
                orders = RandomOrders(_problem(samples), rng, ORDERS)
            else:
                orders.draw(rng)
            for policy, stop in rules:
                if policy.n != n:
                    continue
                in_flight = stop.drawn_first or n
                if policy.method == "early_stopping":  # windows go by the order of launch
                    in_flight = 1
                one = orders.ended(n, 1, stop.rule, stop.value)[0].mean()
                many = one
                if in_flight > 1:
                    many = orders.ended(n, in_flight, stop.rule, stop.value)[0].mean()
                found[policy][:, place] = many, one
    return {policy: (many, one) for policy, (many, one) in found.items()}


def _problem(samples: Sequence[Sample]) -> ProblemSamples:
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
        first_token_s=unknown,
        finish_s=unknown,
    )
