"""Votes that end early, in many orders of one problem's samples, compiled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from advisor.compiled import compiled
from traces.schema.tts.stop_rules import DECIDE, begin, take

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@compiled
def vote_in_orders(
    orders: Ints,
    answers: Ints,
    rights: Floats,
    tokens: Floats,
    states: npt.NDArray[np.void],
    in_flight: int,
    rule: int,
    value: float,
    drawn_first: int,
) -> Floats:
    """Return [2, orders]: the right share of the answers that led at the end, and the tokens.

    `states` [1] has the fields of `Votes`, and says how many samples of each order are drawn at
    most. At most `in_flight` run at once. A sample ends after as many steps as it has `tokens`.
    `answers` are -1 where none parsed. `rights` is the share of each answer's samples that are
    right. Samples that run at the end have the tokens counted that they had by then.
    """
    found = np.empty((2, len(orders)))
    tallies = np.empty(len(rights), np.int64)
    places, ends = np.empty(in_flight, np.int64), np.empty(in_flight)
    votes = states[0]
    for o in range(len(orders)):
        tallies[:] = 0
        begin(votes, drawn_first)
        running = launched = 0
        now = spent = 0.0
        while True:
            while running < in_flight and launched < votes.wanted:
                places[running], ends[running] = launched, now + tokens[orders[o, launched]]
                launched += 1
                running += 1
            slot = 0
            for other in range(1, running):
                sooner = ends[other] < ends[slot]
                if sooner or (ends[other] == ends[slot] and places[other] < places[slot]):
                    slot = other
            place, now = places[slot], ends[slot]
            running -= 1
            places[slot], ends[slot] = places[running], ends[running]
            sample = orders[o, place]
            spent += tokens[sample]
            answer, tally = answers[sample], 0
            if answer >= 0:
                tallies[answer] += 1
                tally = tallies[answer]
            if take(votes, rule, value, place, answer, tally) == DECIDE:
                break
        for slot in range(running):
            spent += now - (ends[slot] - tokens[orders[o, places[slot]]])
        right, leaders = 0.0, 0
        for answer in range(len(tallies)):
            if tallies[answer] == votes.first > 0:
                right += rights[answer]
                leaders += 1
        found[0, o] = right / leaders if leaders else 0.0
        found[1, o] = spent
    return found
