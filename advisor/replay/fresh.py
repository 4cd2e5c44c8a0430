"""One more run of the same problems: its samples drawn again, and how far such runs lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from advisor.evidence.runs import RecordedProblem
from traces.statistics import Floats, Ints, student_95

RUNS: Final = 8  # that are replayed


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
