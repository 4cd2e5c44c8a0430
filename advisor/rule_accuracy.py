"""How often rules that stop early are right, expected over random orders of a problem's samples.

A few replays of a rule leave its accuracy to the luck of their orders, of which a choice among many
candidates takes the best. Agreement of more than half decides as the vote of all does, whatever the
order; of other rules many orders are drawn here, for an engine that a problem has to itself:
samples end by their length, as many at a time as are in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from advisor.evidence import Sample
from advisor.finish_order import safe_leads
from advisor.samples import ProblemSamples
from advisor.subsets import RandomOrders, lasting
from traces.schema import Policy

Floats = npt.NDArray[np.float64]

ORDERS = 128  # of each problem's samples


def decides_as_vote(policy: Policy) -> bool:
    """Return whether a policy answers as the vote of all n samples does, in every order."""
    return policy.method == "agreement" and 2 * int(dict(policy.rule)["agree"]) > policy.n


def expected_right(
    samples: Sequence[Sample], policy: Policy, rng: np.random.Generator
) -> tuple[float, float]:
    """Return how often a rule is right about a problem, and with its samples one after the other.

    `samples` are all that were recorded of the problem; the rule sees n of them at random.
    """
    drawn, n, rule = RandomOrders(_problem(samples), rng, ORDERS), policy.n, dict(policy.rule)
    if policy.method == "early_stopping":
        found = drawn.windows(n, int(rule["window"])).right
        return found, found
    launched = drawn.orders[:, :n]
    ends = _ends(drawn.tokens[launched], int(rule.get("in_flight", n)))
    seen = np.take_along_axis(launched, np.argsort(ends, kind="stable"), axis=1)
    stops = _stops(policy.method, rule, n)
    return drawn.ending(n, stops, seen).right, drawn.ending(n, stops).right


def _problem(samples: Sequence[Sample]) -> ProblemSamples:
    unknown = np.full(len(samples), np.nan)
    return ProblemSamples(
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


def _stops(
    method: str, rule: Mapping[str, Any], n: int
) -> Callable[[Floats], npt.NDArray[np.bool_]]:
    """Return whether a rule stops at votes [orders, answers]."""
    if method == "adaptive":
        safe = safe_leads(n)
        return lambda tally: lasting(tally, safe) >= rule["threshold"]
    if method == "first_finish":
        return lambda tally: tally.sum(axis=1) >= rule["first"]
    return lambda tally: tally.max(axis=1) >= rule["agree"]


def _ends(lengths: Floats, in_flight: int) -> Floats:
    """Return when samples [orders, n] end that take so long, the next as soon as one has ended."""
    if in_flight >= lengths.shape[1]:
        return lengths
    free = np.zeros((len(lengths), in_flight))
    ends = np.empty_like(lengths)
    rows = np.arange(len(lengths))
    for place in range(lengths.shape[1]):
        slot = free.argmin(axis=1)
        free[rows, slot] += lengths[:, place]
        ends[:, place] = free[rows, slot]
    return ends
