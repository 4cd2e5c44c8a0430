"""Problems that a timeout or an error cut off, and samples that gave no answer.

What remains of cut problems is no fair draw of all.

A timeout cuts the long ones, so that what is left is short, and as a rule easier.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

MOST_UNTOLD = 0.05  # share of the problems without a number at which a mean is still given


@dataclass(frozen=True, kw_only=True)
class Lost:
    """How many of the problems that a run posed were cut off by its timeout, or failed."""

    timed_out: int
    failed: int
    problems: int

    @property
    def count(self) -> int:
        """How many there are of both."""
        return self.timed_out + self.failed

    @property
    def too_many(self) -> bool:
        """Whether those that remain say nothing of all."""
        return self.count > MOST_UNTOLD * self.problems

    @property
    def text(self) -> str:
        """How many problems are lost, and to what."""
        kinds = ((self.timed_out, "cut off by the timeout"), (self.failed, "failed"))
        parts = ", ".join(f"{count:,} {what}" for count, what in kinds if count)
        return f"of {self.problems:,} problems {parts}"

    @property
    def why_not(self) -> str:
        """Why nothing is said from those that remain, and what to do, where they are too few."""
        if not self.timed_out:
            return f"{self.text}, and the others may be unlike them; record again"
        return (
            f"{self.text}, and those that remain are the short ones; record without --timeout, or "
            "with a longer one"
        )


def lost_problems(problems: pl.DataFrame) -> Lost:
    """Return what was lost of the problems of one run, one row each."""
    timed_out = pl.col("timed_out").fill_null(False)
    failed = pl.col("error").is_not_null() & ~timed_out
    found = problems.select(timed_out.sum().alias("timed_out"), failed.sum().alias("failed"))
    counts = found.row(0, named=True)
    return Lost(timed_out=counts["timed_out"], failed=counts["failed"], problems=problems.height)


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """How many samples ended by themselves or at a limit without an answer, of so many."""

    count: int
    cut: int  # of them, at max_tokens or the model's length
    samples: int

    @property
    def text(self) -> str | None:
        """What a reader must know; None where nearly all have an answer."""
        if self.count <= MOST_UNTOLD * self.samples:
            return None
        ended = self.count - self.cut
        parts = [f"{self.cut:,} were cut at max_tokens or the model's length"] if self.cut else []
        parts += [f"{ended:,} ended by themselves"] if ended else []
        advice = "" if not ended else "; check the verifier, and a server's --reasoning-parser"
        told = f"{self.count:,} of {self.samples:,} samples have no answer"
        return f"{told}: {' and '.join(parts)}{advice}"


def unanswered(samples: pl.DataFrame) -> Unanswered:
    """Return how many of a run's own samples have no answer.

    Left out are those that failed, were cancelled, or were given their length.
    """
    cut = pl.col("finish_reason") == "length"
    ended = samples.filter(
        pl.col("role").fill_null("sample") == "sample",
        pl.col("finish_reason").is_not_null(),
        pl.col("error").is_null() & pl.col("cancelled_by").is_null(),
        ~(cut & ~pl.col("censored").fill_null(False)),
    )
    none = ended.filter(pl.col("answer").is_null())
    return Unanswered(count=none.height, cut=none.filter(cut).height, samples=ended.height)
