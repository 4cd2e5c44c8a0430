"""When a vote is decided: the one definition of each stopping rule.

Live runs and recorded orders call these functions as they are. The replay and the votes in random
orders call them compiled (`advisor.compiled.shared`), with records of numpy that have the fields of
`Votes`. So they are written in the Python that numba compiles.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from traces.schema.tts.routes import FIRST_BITS

ALL: Final = 0  # when all samples have ended
FIRST: Final = 1  # when `value` samples ended with an answer
AGREE: Final = 2  # when `value` samples gave the same answer
SETTLED: Final = 3  # when the leader cannot be caught, a vote weighing at most `value`
SAFE: Final = 4  # when the posterior that the lead lasts reaches `value` (ASC)
WINDOWS: Final = 5  # when all of a window of `value` samples agree (ESC)
ROUTED: Final = 6  # when as many ended as the table `value` gives for the first (routes.py)

GO_ON: Final = 0
DRAW: Final = 1
DECIDE: Final = 2

NO_ANSWER: Final = -1
BROKEN: Final = -2  # the answer of a window that cannot agree any more
_LARGE: Final = 2.0**512


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A stopping rule and its value.

    `drawn_first` samples are drawn at once, and more when the rule says so. 0 draws all at once.
    """

    rule: int = ALL
    value: float = 0.0
    drawn_first: int = 0


@dataclass
class Votes:
    """The votes on one problem so far; answers are numbers."""

    samples: int  # at most
    wanted: int = 0  # samples to be drawn by now
    ended: int = 0
    answered: int = 0
    leader: int = NO_ANSWER  # the answer with the most votes
    first: float = 0.0  # its votes
    second: float = 0.0  # the most votes of any other answer
    window_ended: int = 0  # of the last window
    window_answer: int = NO_ANSWER  # that all of them gave
    route: float = 0.0  # its own table, 0 where it has that of the policy


FIELDS: Final = [(each.name, "f8" if each.type == "float" else "i4") for each in fields(Votes)]


def begin(votes: Votes, drawn_first: int) -> None:
    """Start a vote before any sample has ended."""
    if votes.route > 0:
        drawn_first = int(votes.route) % FIRST_BITS
    votes.wanted = min(drawn_first or votes.samples, votes.samples)
    votes.ended, votes.answered, votes.leader = 0, 0, NO_ANSWER
    votes.first, votes.second = 0.0, 0.0
    votes.window_ended, votes.window_answer = 0, NO_ANSWER


def take(votes: Votes, rule: int, value: float, place: int, answer: int, tally: float) -> int:
    """Count a sample that ended. Return DECIDE, DRAW (up to `wanted` samples) or GO_ON.

    It was the `place`-th to be drawn, from 0. `tally` is the weight of all votes for its answer,
    its own included.
    """
    votes.ended += 1
    if answer != NO_ANSWER:
        votes.answered += 1
        if answer == votes.leader:
            votes.first = tally
        elif tally > votes.first:
            votes.second, votes.first, votes.leader = votes.first, tally, answer
        else:
            votes.second = max(votes.second, tally)
    led = answer == votes.leader != NO_ANSWER  # no other vote makes a lead safer
    if rule == WINDOWS:
        return take_in_window(votes, int(value), place, answer)
    if rule == ROUTED:
        return take_routed(votes, votes.route if votes.route > 0 else value)
    left = votes.samples - votes.ended
    if (
        left == 0
        or (rule == FIRST and votes.answered >= value)
        or (rule == AGREE and votes.first >= value)
        or (rule == SETTLED and votes.first - votes.second > left * value)
        or (rule == SAFE and led and lead_is_safe(int(votes.first), int(votes.second)) >= value)
    ):
        return DECIDE
    if votes.wanted == votes.samples:
        return GO_ON
    votes.wanted += 1
    return DRAW


def take_in_window(votes: Votes, window: int, place: int, answer: int) -> int:
    """Do what `take` does for windows, which go by the order of drawing.

    The next window is drawn as soon as the last one cannot agree any more. This changes when
    samples are drawn, never how many or the answer.
    """
    last = votes.wanted - 1
    if place // window == last // window:
        same = votes.window_answer == NO_ANSWER or votes.window_answer == answer  # noqa: PLR1714
        votes.window_answer = answer if same and answer != NO_ANSWER else BROKEN
        votes.window_ended += 1
    agreed = votes.window_answer >= 0 and votes.window_ended == last % window + 1
    if agreed or votes.wanted == votes.samples:
        return DECIDE if votes.ended == votes.wanted else GO_ON
    if votes.window_answer != BROKEN:
        return GO_ON
    votes.wanted = min(votes.wanted + window, votes.samples)
    votes.window_ended, votes.window_answer = 0, NO_ANSWER
    return DRAW


def take_routed(votes: Votes, route: float) -> int:
    """Do what `take` does for a table: all of the first end, then those that it gives.

    Which samples end first decides nothing. It ends early only where the others cannot change the
    answer.
    """
    first = int(route) % FIRST_BITS
    table = int(route) // FIRST_BITS
    left = votes.wanted - votes.ended
    if votes.ended > first or table == 0:  # the number of samples is settled
        settled = left == 0 or votes.first - votes.second > left
        return DECIDE if settled else GO_ON
    if left > 0:
        return GO_ON
    votes.wanted = min(first << (table >> 3 * int(votes.first)) % 8, votes.samples)
    return DRAW if votes.wanted > first else DECIDE


def lead_is_safe(first: int, second: int) -> float:
    """Return P(p > 1/2) for p ~ Beta(first + 1, second + 1) (Aggarwal et al. 2023, 2305.11860).

    One minus a binomial tail: sum over j = 0 .. second of C(m, j) / 2^m, m = first + second + 1.
    """
    trials = first + second + 1
    halvings = trials
    ways = total = 1.0
    for j in range(1, second + 1):
        ways *= trials - j + 1
        ways /= j
        total += ways
        if total > _LARGE:  # else it overflows at a thousand votes
            ways, total, halvings = ways / _LARGE, total / _LARGE, halvings - 512
    return float(1.0 - total * 0.5**halvings)


SHARED: Final = (begin, take, take_in_window, take_routed, lead_is_safe)
