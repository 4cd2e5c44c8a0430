"""Votes that end early, in many orders of one problem's samples, compiled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from advisor.compiled import compiled
from advisor.replay.simulation.stop_rules import AGREE, FIRST, SAFE, WINDOWS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@compiled
def vote_in_orders(  # noqa: PLR0912 - one loop, compiled once
    orders: Ints,
    answers: Ints,
    rights: Floats,
    tokens: Floats,
    n: int,
    in_flight: int,
    stop: int,
    value: float,
    safe: Floats,
) -> Floats:
    """Return [2, orders]: the right share of the answers that led at the end, and the tokens.

    Of each order the first `n` samples are launched, `in_flight` at a time and the next as soon as
    one has ended, which is after as many steps as it has `tokens`. `answers` are -1 where none
    parsed, `rights` the share of each answer's samples that are right. `stop` is a rule of
    `stop_rules` with its `value`, `safe` what `finish_order.safe_leads` says of leads.
    """
    found = np.empty((2, len(orders)))
    votes = np.empty(len(rights), np.int64)
    places, ends = np.empty(in_flight, np.int64), np.empty(in_flight)
    for o in range(len(orders)):
        votes[:] = 0
        first = second = total = 0
        leader = alike = -1
        spent = 0.0
        running = launched = min(in_flight, n)
        for place in range(launched):
            places[place], ends[place] = place, tokens[orders[o, place]]
        for ended in range(1, n + 1):
            slot = 0
            for other in range(1, running):
                sooner = ends[other] < ends[slot]
                if sooner or (ends[other] == ends[slot] and places[other] < places[slot]):
                    slot = other
            sample = orders[o, places[slot]]
            if launched < n:
                places[slot], ends[slot] = launched, ends[slot] + tokens[orders[o, launched]]
                launched += 1
            else:
                running -= 1
                places[slot], ends[slot] = places[running], ends[running]
            spent += tokens[sample]
            answer = answers[sample]
            if stop == WINDOWS and (ended - 1) % int(value) == 0:
                alike = answer
            elif answer != alike:
                alike = -1
            if answer >= 0:
                total += 1
                votes[answer] += 1
                if answer == leader:
                    first += 1
                elif votes[answer] > first:
                    first, second, leader = votes[answer], first, answer
                else:
                    second = max(second, votes[answer])
            if (
                (stop == FIRST and total >= value)
                or (stop == AGREE and first >= value)
                or (stop == SAFE and safe[first, second] >= value)
                or (stop == WINDOWS and alike >= 0 and ended % int(value) == 0)
            ):
                break
        right, leaders = 0.0, 0
        for answer in range(len(votes)):
            if first > 0 and votes[answer] == first:
                right += rights[answer]
                leaders += 1
        found[0, o] = right / leaders if leaders else 0.0
        found[1, o] = spent
    return found
