"""Rules that decide a problem before all its samples have ended, compiled for the replay.

They are those of `profiler.policies`: what is drawn, when it is decided, what is cancelled.
"""

from __future__ import annotations

from typing import Final

from advisor.compiled import inner
from advisor.replay.simulation.state import NONE, World

ALL: Final = 0  # when the last sample has ended
FIRST: Final = 1  # at the value-th answer
AGREE: Final = 2  # when so many samples gave the same answer
SETTLED: Final = 3  # when the leader can no longer be caught
SAFE: Final = 4  # when the posterior that the lead lasts reaches the value (ASC)
WINDOWS: Final = 5  # when a window of so many samples agrees entirely (ESC)
STREAK: Final = 6  # when so many answers in a row are the same (sequential revision)

GO_ON: Final = 0
DRAW: Final = 1
DECIDE: Final = 2

BROKEN: Final = -2  # what a window that cannot agree any more answers


@inner
def lead_is_safe(first: float, second: float) -> float:
    """Return P(p > 1/2) for p ~ Beta(first + 1, second + 1) (Aggarwal et al. 2023)."""
    trials = first + second + 1
    term = 0.5**trials
    total = term
    for j in range(1, int(first) + 1):
        term *= (trials - j + 1) / j
        total += term
    return total


@inner
def count_vote(world: World, p: int, s: int, stop: int, value: float) -> None:
    """Count an ended sample's answer."""
    problem, sample = world.problems[p], world.samples[s]
    problem.ended += 1
    if sample.answer != NONE:
        problem.votes += 1
        world.answers[sample.answer].tally += sample.weight
    if stop == WINDOWS:
        start = (s - problem.sample) // int(value) * int(value)
        if start + int(value) >= problem.wanted:  # of the last window; earlier ones cannot agree
            met = problem.window_answer
            agrees = sample.answer != NONE and (met == NONE or met == sample.answer)  # noqa: PLR1714
            problem.window_answer = sample.answer if agrees else BROKEN
            problem.window_ended += 1
    if stop == STREAK:
        same = sample.answer != NONE and sample.answer == problem.window_answer
        problem.streak = problem.streak + 1 if same else 1
        problem.window_answer = sample.answer


@inner
def verdict(world: World, p: int, stop: int, value: float) -> int:
    """Return DECIDE, DRAW (more samples) or GO_ON after a vote was counted."""
    problem = world.problems[p]
    if stop == WINDOWS:
        return _window_verdict(world, p, int(value))
    first = second = 0.0
    for place in range(problem.answer, problem.answer + problem.answers):
        if world.answers[place].tally > first:
            first, second = world.answers[place].tally, first
        elif world.answers[place].tally > second:
            second = world.answers[place].tally
    left = problem.samples - problem.ended
    if (
        left == 0
        or (stop == FIRST and problem.votes >= value)
        or (stop == AGREE and first >= value)
        or (stop == SETTLED and first - second > left)
        or (stop == SAFE and lead_is_safe(first, second) >= value)
        or (stop == STREAK and problem.streak >= value > 0 and problem.window_answer != NONE)
    ):
        return DECIDE
    return DRAW if problem.wanted < problem.samples else GO_ON


@inner
def _window_verdict(world: World, p: int, window: int) -> int:
    problem = world.problems[p]
    if problem.window_answer >= 0 and problem.window_ended == (problem.wanted - 1) % window + 1:
        problem.agreed = 1
    over = problem.agreed or problem.wanted == problem.samples
    if over:
        return DECIDE if problem.ended == problem.wanted else GO_ON
    if problem.window_answer == BROKEN:
        problem.window_answer, problem.window_ended = NONE, 0
        return DRAW
    return GO_ON


@inner
def right_share(world: World, p: int, stop: int) -> float:
    """Return the share of right answers among those that lead; 0 without any answer.

    Of revisions the last counts.
    """
    problem = world.problems[p]
    if stop == STREAK:
        last = problem.window_answer
        return 1.0 if last != NONE and world.answers[last].right else 0.0
    most = 0.0
    for place in range(problem.answer, problem.answer + problem.answers):
        most = max(most, world.answers[place].tally)
    leaders = right = 0
    for place in range(problem.answer, problem.answer + problem.answers):
        if most > 0 and world.answers[place].tally >= most * (1 - 1e-12):
            leaders += 1
            right += world.answers[place].right
    return right / leaders if leaders else 0.0
