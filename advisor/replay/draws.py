"""Which of the recorded samples a replay takes, and how far one more run of the problems lies off.

`replay` and `advise` both draw here, so that a configuration has one value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from advisor.evidence.runs import RecordedProblem
from traces.statistics import Floats, Ints, student_95

MOST: Final = 8  # draws that are replayed
_FEWEST: Final = 4


def places_drawn(
    counts: Sequence[int], n: int, seed: int, *, ordered: bool, draws: int | None = None
) -> list[list[Ints]]:
    """Return draws of n of the recorded samples, [draws][problems], by their places in a problem.

    `counts` [problems] are how many each has. All samples of a problem are drawn as often as one
    another, but for one time, which leaves less to chance than independent draws. Without `draws`
    there are as many as take each sample once, at least 4 and at most 8. A rule that stops early
    looks at samples in the order of the draw. Without one that is the order of the recording.
    """
    if draws is None:
        draws = min(max(math.ceil(min(counts, default=1) / n), _FEWEST), MOST)
    rng = np.random.default_rng([seed, 2, n])
    by_problem = [_of_problem(count, min(n, count), draws, rng) for count in counts]
    if not ordered:
        by_problem = [np.sort(each, axis=1) for each in by_problem]
    return [[each[number] for each in by_problem] for number in range(draws)]


def with_drawn(
    sources: Sequence[Sequence[RecordedProblem]], n: int, seed: int, *, ordered: bool
) -> list[list[RecordedProblem]]:
    """Return draws of n of the recorded samples, [draws][problems] (`places_drawn`).

    Of several `sources` [sources][problems], where samples are known as a distribution, the draws
    take one in turn. All samples that there are, in their order, are drawn once.
    """
    if not ordered and all(len(problem.samples) == n for problem in sources[0]):
        return [list(problems) for problems in sources]
    counts = [len(problem.samples) for problem in sources[0]]
    draws = None if len(sources) == 1 else MOST
    return [
        [
            replace(problem, samples=tuple(problem.samples[place] for place in places))
            for problem, places in zip(sources[number % len(sources)], drawn, strict=True)
        ]
        for number, drawn in enumerate(places_drawn(counts, n, seed, ordered=ordered, draws=draws))
    ]


def part_drawn(counts: Sequence[int], drawn: int | Sequence[int]) -> tuple[float, float]:
    """Return the share of recorded samples that is drawn, and N / (N - 1), means over problems.

    `counts` [problems] are how many each has, and `drawn` how many of each a run has at most.
    """
    have = np.array(counts)
    return float(np.mean(drawn / have)), float(np.mean(have / np.maximum(have - 1, 1)))


def _of_problem(count: int, n: int, draws: int, rng: np.random.Generator) -> Ints:
    """Return [draws, n]: each order of all samples is gone through until all were drawn."""
    rows: list[Ints] = []
    while len(rows) < draws:
        order = rng.permutation(count)
        starts = range(0, count, n)
        rows += [np.take(order, range(start, start + n), mode="wrap") for start in starts]
    return np.array(rows[:draws])


def drawn_among(problems: Sequence[RecordedProblem]) -> list[Ints]:
    """Return among which samples, by their places in all problems', those of each are drawn.

    What one sample would vary by is not known: those of other problems stand for it, which vary by
    more. One that is longer behind this prompt than the longest request was is none of them.
    """
    counts = [len(problem.samples) for problem in problems]
    begins = np.cumsum([0, *counts[:-1]])
    if min(counts) > 1:
        return [np.arange(first, first + n) for first, n in zip(begins, counts, strict=True)]
    owners = np.repeat(np.arange(len(problems)), counts)
    tokens = np.array([each.output_tokens for problem in problems for each in problem.samples])
    prompts = np.array([problem.prompt_tokens for problem in problems])
    rooms = (prompts[owners] + tokens).max() - prompts
    return [np.flatnonzero((tokens <= room) | (owners == own)) for own, room in enumerate(rooms)]


def drawn_again(among: Sequence[Ints], counts: Sequence[int], seed: int) -> list[list[Ints]]:
    """Return the samples of fresh runs, [runs][problems]: so many for each, with replacement."""
    rng = np.random.default_rng([seed, 11])
    return [
        [rng.choice(own, count) for own, count in zip(among, counts, strict=True)]
        for _ in range(MOST)
    ]


def with_drawn_again(
    problems: Sequence[RecordedProblem], counts: Sequence[int], seed: int
) -> list[list[RecordedProblem]]:
    """Return the problems of fresh runs, [runs][problems], each with so many samples of its own."""
    samples = [sample for problem in problems for sample in problem.samples]
    return [
        [
            replace(problem, samples=[samples[place] for place in places])
            for problem, places in zip(problems, run, strict=True)
        ]
        for run in drawn_again(drawn_among(problems), counts, seed)
    ]


def half_width(behind: int, fresh: Floats, *, share: float = 0.0, too_little: float = 1.0) -> float:
    """Return the half-width, in logs, of the 90 % interval of a fresh run around a mean.

    t s sqrt(1 + share + 1/k), with t the 95 % quantile of Student's law, k how many runs are
    `behind` that mean (one that is exact has 1), and s the spread of the `fresh` runs. The recorded
    samples are a draw themselves: n of N more where the `share` n / N is replayed. Drawn with
    replacement, N samples vary by (N - 1) / N too little, by the factor `too_little`. 0
    where fewer than two fresh runs have the number.
    """
    fresh = fresh[np.isfinite(fresh) & (fresh > 0)]
    if fresh.size < 2:
        return 0.0
    variance = too_little * float(np.log(fresh).var(ddof=1))
    factor = 1 + share + (1 / behind if behind > 1 else 0.0)
    return float(student_95(fresh.size - 1) * np.sqrt(factor * variance))


def exact_half_width(value: float, samples: Sequence[Floats], drawn: int | Ints) -> float:
    """Return what `half_width` does of a problem's mean that needs no replay, without a replay.

    `value` is the mean over problems of what `drawn` samples (of all, or [problems]) have together,
    as tokens where all samples end, and `samples` [problems] what each recorded one has. The sum of
    n of a problem varies by n s^2 (1 + n / N), s^2 being the variance of its N samples. That of one
    sample is the mean over the problems that have more, or that of all samples together. Where all
    samples of a problem are equal, by Jeffreys' rule a new one is another with the chance 1/2 in as
    many as were seen to repeat, and then it is one of all samples.
    """
    counts = np.array([each.size for each in samples])
    several = counts > 1
    freedom = int(counts.sum() - counts.size) if several.any() else counts.size - 1
    if value <= 0 or freedom < 1:
        return 0.0
    spreads = np.empty(counts.size)
    spreads[several] = [each.var(ddof=1) for each in samples if each.size > 1]
    unseen = spreads[several].mean() if several.any() else np.concatenate(samples).var(ddof=1)
    spreads[~several] = unseen
    alike = several & (spreads == 0)
    if alike.any():
        every, own = np.concatenate(samples), np.array([each[0] for each in samples])[alike]
        chance = 0.5 / (counts[alike].sum() - alike.sum() + 1)
        spreads[alike] = chance * (every.var() + (every.mean() - own) ** 2)
    variance = float((drawn * spreads * (1 + drawn / counts)).sum()) / counts.size**2
    return float(student_95(freedom) * np.sqrt(variance) / value)


def of_other_draws(half: float, share: float) -> float:
    """Return what samples add to how far a run of other problems lies off, in logs.

    `half` is the `exact_half_width` of the same problems. What samples leave open of the recorded
    means is in how far these lie apart already, of n / N as the `share` of the recorded ones.
    """
    return half * math.sqrt(max(1 - share, 0.0) / (1 + share))
