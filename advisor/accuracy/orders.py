"""Votes that end early, in many orders of one problem's samples, compiled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from advisor.compiled import compiled, inner
from traces.schema.tts.stop_rules import DECIDE, begin, take
from traces.statistics import Floats, Ints


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
    outcomes = np.empty((2, len(orders)))
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
        outcomes[0, o], outcomes[1, o] = _share_right(tallies, int(votes.first), rights), spent
    return outcomes


@inner
def _voted(tally: Ints, answer: int, first: int, second: int, leader: int) -> tuple[int, int, int]:
    """Count an answer. Return the most votes of any, the most of any other, and whose they are."""
    if answer < 0:
        return first, second, leader
    tally[answer] += 1
    votes = tally[answer]
    if answer == leader:
        return votes, second, leader
    if votes > first:
        return votes, first, answer
    return first, max(second, votes), leader


@inner
def _by_end(order: Ints, sooner: Ints, same: Ints, line: Ints) -> None:
    """Put the places of an order into `line`, by tokens and then by place."""
    same[:] = 0
    for place in range(len(order)):
        begun = sooner[order[place]]
        line[begun + same[begun]] = place
        same[begun] += 1


@inner
def _keep_below(line: Ints, length: int, most: int) -> int:
    """Keep the places below `most`, and return how many they are."""
    kept = 0
    for number in range(length):  # without a branch, which no processor could foresee
        place = line[number]
        line[kept] = place
        kept += int(place < most)
    return kept


@inner
def _share_right(tally: Ints, most: int, rights: Floats) -> float:
    """Return the right share of the answers with the most votes."""
    right, leaders = 0.0, 0
    for answer in range(len(tally)):
        if tally[answer] == most > 0:
            right += rights[answer]
            leaders += 1
    return right / leaders if leaders else 0.0


@compiled
def tables_in_orders(
    orders: Ints,
    answers: Ints,
    rights: Floats,
    tokens: Floats,
    sooner: Ints,
    firsts: Ints,
    counts: Ints,
    asked: npt.NDArray[np.bool_],
) -> tuple[Floats, Ints]:
    """Return what votes give that go on to a count of samples, whatever the first of them say.

    [firsts, counts, 2, orders]: right and tokens as `vote_in_orders` has them, for every first
    and count that is `asked` [firsts, counts]. All of the first end, or where they are 0 none is
    waited for. Then the others run at once until they cannot change the answer. And [firsts,
    orders]: how many of the first agree.

    `counts` fall. `sooner` says how many samples have fewer tokens than each.
    """
    most, kinds = orders.shape[1], len(rights)
    outcomes = np.zeros((len(firsts), len(counts), 2, len(orders)))
    agree = np.zeros((len(firsts), len(orders)), np.int64)
    tallies, tally = np.zeros((len(firsts), kinds), np.int64), np.zeros(kinds, np.int64)
    others, leaders = np.zeros(len(firsts), np.int64), np.zeros(len(firsts), np.int64)
    spents, line, same = np.zeros(len(firsts)), np.zeros(most, np.int64), np.zeros(most, np.int64)
    for o in range(len(orders)):
        order = orders[o]
        for f in range(len(firsts)):
            tallies[f] = 0
            first, second, leader, spent = 0, 0, -1, 0.0
            for place in range(firsts[f]):
                spent += tokens[order[place]]
                answer = answers[order[place]]
                first, second, leader = _voted(tallies[f], answer, first, second, leader)
            agree[f, o], others[f], leaders[f], spents[f] = first, second, leader, spent
        _by_end(order, sooner, same, line)
        length = most
        for c in range(len(counts)):
            length = _keep_below(line, length, counts[c])
            for f in range(len(firsts)):
                if not asked[f, c]:
                    continue
                for answer in range(kinds):  # numba takes seconds to compile a slice
                    tally[answer] = tallies[f, answer]
                first, second, leader = agree[f, o], others[f], leaders[f]
                left, spent, last = counts[c] - firsts[f], spents[f], 0.0
                for number in range(length):
                    if line[number] >= firsts[f]:
                        sample = order[line[number]]
                        last = tokens[sample]
                        spent += last
                        left -= 1
                        first, second, leader = _voted(
                            tally, answers[sample], first, second, leader
                        )
                        if left == 0 or first - second > left:
                            break
                outcomes[f, c, 0, o] = _share_right(tally, first, rights)
                outcomes[f, c, 1, o] = spent + left * last
    return outcomes, agree
