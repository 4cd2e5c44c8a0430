"""What fewer samples would have answered: maj@k and pass@k from the samples of a recording.

Only recordings whose samples all ran to their end say this without bias: where a rule cancelled
samples, the ones that remain are the short ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.schema import Estimate, Record
from traces.statistics import Floats, mean, proportion

SUBSETS = 256
WHOLE = ("majority", "best_of_n", "weighted", "confidence")  # policies that let every sample end


@dataclass(frozen=True, kw_only=True)
class PolicyOutcome(Record):
    """What a policy that this recording contains would have given; `bound` is None if exact."""

    method: str
    n: int
    budget_tokens: int | None
    accuracy: Estimate | None
    tokens_per_problem: Estimate | None
    bound: str | None = None


def sample_counts(n: int) -> list[int]:
    """Return 1, 2, 4, ... and n itself."""
    counts = [1]
    while counts[-1] * 2 <= n:
        counts.append(counts[-1] * 2)
    return counts if counts[-1] == n else [*counts, n]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the chance that k of n samples hold a right one, without bias.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021).
    """
    return 1.0 - comb(n - correct, k) / comb(n, k)


def majority_at(
    answers: Sequence[str | None],
    correct: Sequence[bool | None],
    counts: Sequence[int],
    rng: np.random.Generator,
) -> list[float]:
    """Return the chance that a vote of k samples is right, for each k of `counts`.

    The mean over random subsets; exact for k = 1 and k = n. Samples without an answer do not
    vote, a tie is shared equally among the answers that lead, and no vote at all is wrong.
    """
    classes = {answer: index for index, answer in enumerate(dict.fromkeys(answers))}
    classes.pop(None, None)
    if not classes:
        return [0.0] * len(counts)
    columns = {answer: column for column, answer in enumerate(classes)}
    votes = np.zeros((len(answers), len(columns)), dtype=np.int16)
    right = np.zeros(len(columns), dtype=bool)
    for row, (answer, is_right) in enumerate(zip(answers, correct, strict=True)):
        if answer is not None:
            votes[row, columns[answer]] = 1
            right[columns[answer]] |= bool(is_right)
    orders = rng.permuted(np.tile(np.arange(len(answers)), (SUBSETS, 1)), axis=1)
    tallies = np.cumsum(votes[orders], axis=1)
    chances = []
    for k in counts:
        if k == 1:
            chances.append(float((votes @ right).mean()))
        elif k == len(answers):
            chances.append(float(_share_right(votes.sum(axis=0)[None, :], right)[0]))
        else:
            chances.append(float(_share_right(tallies[:, k - 1, :], right).mean()))
    return chances


def _share_right(tally: NDArray[np.integer], right: NDArray[np.bool_]) -> Floats:
    most = tally.max(axis=1, keepdims=True)
    leads = (tally == most) & (most > 0)
    leading = leads.sum(axis=1)
    won = (leads & right).sum(axis=1)
    share = np.divide(won, leading, out=np.zeros(leading.size), where=leading > 0)
    return np.asarray(share, dtype=float)


def policies_within(samples: pl.DataFrame, n: int) -> tuple[PolicyOutcome, ...]:
    """Return maj@k and pass@k for k = 1, 2, 4, ..., n from samples with `problem` numbers.

    Only problems with n ended samples whose answers were judged count. The tokens are k/n of
    the problem's, which is what a random subset takes on average.
    """
    whole = (
        samples.sort("problem", "sample_index")
        .group_by("problem", maintain_order=True)
        .agg("answer", "correct", "end", tokens=pl.col("output_tokens").sum(), rows=pl.len())
        .filter(
            pl.col("rows") == n,
            pl.col("end").list.eval(pl.element().is_not_null()).list.all(),
            pl.col("correct").list.eval(pl.element().is_not_null()).list.any(),
        )
    )
    if not whole.height:
        return ()
    counts = sample_counts(n)
    rng = np.random.default_rng(0)
    voted = np.array(
        [
            majority_at(row["answer"], row["correct"], counts, rng)
            for row in whole.iter_rows(named=True)
        ]
    )
    hits = whole["correct"].list.eval(pl.element().fill_null(False)).list.sum().to_list()
    passed = np.array([[pass_at_k(n, right, k) for k in counts] for right in hits])
    tokens = whole["tokens"].to_numpy().astype(float)
    return tuple(
        outcome
        for method, table in (("majority", voted), ("pass_at_k", passed))
        for outcome in _outcomes(method, counts, table, tokens / n)
    )


def _outcomes(
    method: str, counts: Sequence[int], table: Floats, tokens_per_sample: Floats
) -> list[PolicyOutcome]:
    return [
        PolicyOutcome(
            method=method,
            n=k,
            budget_tokens=None,
            accuracy=proportion(table[:, column]),
            tokens_per_problem=mean(tokens_per_sample * k, "tokens"),
        )
        for column, k in enumerate(counts)
    ]
