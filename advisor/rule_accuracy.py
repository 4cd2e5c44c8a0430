"""How often rules that stop early are right, expected over random orders of a problem's samples.

A few replays of a rule leave its accuracy to the luck of their orders, of which a choice among many
candidates takes the best. Agreement of more than half decides as the vote of all does, whatever the
order; of other rules many orders are drawn here, for an engine that a problem has to itself:
samples end by their length, as many at a time as are in flight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from advisor.evidence import Sample
from advisor.samples import ProblemSamples
from advisor.subsets import RandomOrders
from traces.schema import Policy

ORDERS = 128  # of each problem's samples


def decides_as_vote(policy: Policy) -> bool:
    """Return whether a policy answers as the vote of all n samples does, in every order."""
    return policy.method == "agreement" and 2 * int(dict(policy.rule)["agree"]) > policy.n


def orders_of(samples: Sequence[Sample], rng: np.random.Generator) -> RandomOrders:
    """Return random orders of all that were recorded of a problem."""
    unknown = np.full(len(samples), np.nan)
    problem = ProblemSamples(
        problem_id="",
        indices=tuple(range(len(samples))),
        answers=tuple(each.answer for each in samples),
        correct=tuple(bool(each.correct) for each in samples),
        tokens=np.array([each.output_tokens for each in samples], dtype=float),
        think_tokens=unknown,
        censored=np.zeros(len(samples), dtype=bool),
        logprob_mean=unknown,
        confidence=unknown,
        first_token_s=unknown,
        finish_s=unknown,
    )
    return RandomOrders(problem, rng, ORDERS)


def expected_right(orders: RandomOrders, policy: Policy) -> tuple[float, float]:
    """Return how often a rule is right about a problem, and with its samples one after the other.

    The rule sees n samples at random: the first of each order.
    """
    one = orders.ending(policy, 1).right
    in_flight = int(dict(policy.rule).get("in_flight", policy.n))
    if policy.method == "early_stopping" or in_flight == 1:  # windows go by the order of launch
        return one, one
    return orders.ending(policy, in_flight).right, one
