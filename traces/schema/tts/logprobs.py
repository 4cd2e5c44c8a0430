"""Which numbers can be mean log-probabilities of a sample's tokens.

A mean log-probability is at most 0. It is not far below that of a draw without any knowledge,
which is -13.8 for a vocabulary of a million tokens. A sum over the tokens is proportional to their
number, a mean hardly depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]

ROUNDING: Final = 1e-4  # above 0, which is 0
LOWEST: Final = -20.0  # a token in 500 million
SEVERAL: Final = 0.01  # of all: then the others are no means either
FEWEST: Final = 20  # samples of which growth with the length is judged
UNSURE: Final = -1.5  # a mean below it is rare: the model would waver between four tokens
ADVICE: Final = "Give the sum of the log-probabilities divided by output_tokens"


@dataclass(frozen=True, kw_only=True)
class Means:
    """The values that can be means, nan elsewhere; `why` others are left out, the `first` one."""

    values: Floats
    why: str | None = None
    first: int | None = None


def means_among(values: Floats, tokens: Floats) -> Means:
    """Return which values [samples] can be means of so many tokens; nan is not known."""
    finite = np.isfinite(values)
    high, low = finite & (values > ROUNDING), finite & (values < LOWEST)
    wrong = high | low
    count, total = int(wrong.sum()), int(finite.sum())
    clipped = np.where(finite & ~wrong, np.minimum(values, 0.0), np.nan)
    if not count and not _grows(clipped, tokens):
        return Means(values=clipped)
    first = int(np.flatnonzero(wrong if count else finite)[0])
    if not count:
        why = f"logprob_mean grows with output_tokens, as a sum does: left out. {ADVICE}"
        return Means(values=np.full_like(values, np.nan), why=why, first=first)
    where = " or ".join(
        text for some, text in ((high, "above 0"), (low, f"below {LOWEST:g}")) if some.any()
    )
    what = f"{count:,} of {total:,} values of logprob_mean are {where}, which no mean is"
    if count <= SEVERAL * total:
        return Means(values=clipped, why=f"{what}: these are left out", first=first)
    why = f"{what}: all are left out. {ADVICE}"
    return Means(values=np.full_like(values, np.nan), why=why, first=first)


def with_means(rows: pl.DataFrame) -> tuple[pl.DataFrame, Means]:
    """Return samples without each `logprob_mean` that is no mean. They may lack `output_tokens`."""
    has_tokens = "output_tokens" in rows.columns
    tokens = pl.col("output_tokens") if has_tokens else pl.lit(None).alias("output_tokens")
    numbers = rows.select(pl.col("logprob_mean").cast(pl.Float64), tokens.cast(pl.Float64))
    means = means_among(*(column.to_numpy() for column in numbers.fill_null(np.nan)))
    return rows.with_columns(logprob_mean=pl.Series(means.values).fill_nan(None)), means


def _grows(values: Floats, tokens: Floats) -> bool:
    """Whether values are large and grow with the tokens: in logarithms by half, beyond doubt."""
    use = np.isfinite(values) & (values < 0) & np.isfinite(tokens) & (tokens > 1)
    if use.sum() < FEWEST or np.median(values[use]) > UNSURE:
        return False
    x, y = np.log(tokens[use]), np.log(-values[use])
    x, y = x - x.mean(), y - y.mean()
    spread = float(x @ x)
    if spread < FEWEST * 0.01:  # lengths that are all alike
        return False
    slope = float(x @ y) / spread
    error = float(np.sqrt(np.square(y - slope * x).sum() / (len(x) - 2) / spread))
    return slope - 3 * error > 0.5
