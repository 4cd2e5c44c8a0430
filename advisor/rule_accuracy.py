"""How often rules that stop early are right, expected over random orders of a problem's samples.

A few replays of a rule leave its accuracy to the luck of their orders, of which a choice among many
candidates takes the best. Agreement of more than half decides as the vote of all does, whatever the
order; of other rules many orders are drawn here, for an engine that a problem has to itself:
samples end by their length, as many at a time as are in flight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from advisor.evidence import Sample
from advisor.finish_order import lead_is_safe
from traces.schema import Policy

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

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
    numbers: dict[str, int] = {}
    for sample in samples:
        if sample.answer is not None:
            numbers.setdefault(sample.answer, len(numbers))
    classes = np.array([-1 if s.answer is None else numbers[s.answer] for s in samples])
    if not numbers:
        return 0.0, 0.0
    count = np.bincount(classes[classes >= 0], minlength=len(numbers))
    right = np.zeros(len(numbers))
    judged = [bool(s.correct) for s in samples if s.answer is not None]
    np.add.at(right, classes[classes >= 0], judged)
    right /= np.maximum(count, 1)
    every = np.tile(np.arange(len(samples)), (ORDERS, 1))
    orders: Ints = rng.permuted(every, axis=1)[:, : policy.n]
    rule = dict(policy.rule)
    if policy.method == "early_stopping":
        found = _windows(classes[orders], right, int(rule["window"]))
        return found, found
    lengths = np.array([s.output_tokens for s in samples], dtype=float)[orders]
    ended = np.argsort(_ends(lengths, int(rule.get("in_flight", policy.n))), kind="stable")
    seen = np.take_along_axis(orders, ended, axis=1)
    return _as_they_end(classes[seen], right, policy.method, rule), _as_they_end(
        classes[orders], right, policy.method, rule
    )


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


def _as_they_end(seen: Ints, right: Floats, method: str, rule: Mapping[str, Any]) -> float:
    """Return the mean right of a rule that looks whenever a sample ends; `seen` [orders, n]."""
    orders, n = seen.shape
    rows = np.arange(orders)
    tally = np.zeros((orders, max(len(right), 2)), dtype=np.int64)
    won, going = np.zeros(orders), np.ones(orders, dtype=bool)
    safe = _safe(n)
    for place in range(n):
        answered = seen[:, place] >= 0
        tally[rows[answered], seen[answered, place]] += 1
        if method == "adaptive":
            two = np.sort(tally, axis=1)[:, -2:]
            stops = safe[two[:, 1], two[:, 0]] >= rule["threshold"]
        elif method == "first_finish":
            stops = tally.sum(axis=1) >= rule["first"]
        else:
            stops = tally.max(axis=1) >= rule["agree"]
        stops = going & (stops | (place == n - 1))
        won[stops] = _led(tally[stops, : len(right)], right)
        going &= ~stops
    return float(won.mean())


def _windows(seen: Ints, right: Floats, window: int) -> float:
    """Return the mean right of the vote that ends with the first window that agrees (ESC)."""
    orders, n = seen.shape
    rows = np.arange(orders)
    tally = np.zeros((orders, len(right)), dtype=np.int64)
    won, going = np.zeros(orders), np.ones(orders, dtype=bool)
    for start in range(0, n, window):
        piece = seen[:, start : start + window]
        for place in range(piece.shape[1]):
            answered = piece[:, place] >= 0
            tally[rows[answered], piece[answered, place]] += 1
        agree = (piece == piece[:, :1]).all(axis=1) & (piece[:, 0] >= 0)
        stops = going & (agree | (start + window >= n))
        won[stops] = _led(tally[stops], right)
        going &= ~stops
    return float(won.mean())


def _led(tally: Ints, right: Floats) -> Floats:
    """Return the right share of the answers that lead, 0 where there is none."""
    leads = (tally == tally.max(axis=1, keepdims=True)) & (tally > 0)
    return np.asarray((leads @ right) / np.maximum(leads.sum(axis=1), 1))


def _safe(n: int) -> Floats:
    """Return the posterior that a lead of v1 to v2 lasts, [v1, v2]."""
    return np.array([[lead_is_safe(a, b) if b <= a else 0.0 for b in range(n + 1)]
                     for a in range(n + 1)])  # fmt: skip
