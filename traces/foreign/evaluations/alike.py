"""Whether samples are draws of one kind, whatever their number: else no k of them stand for others.

Accuracy, maj@k and pass@k take the samples of a problem as exchangeable. Where sample 0 was drawn
greedily, by another prompt or with another limit, they are not. Two tests see it: Cochran's Q of
right and wrong by sample number (Cochran 1950), and Friedman's test of lengths (Friedman 1937,
with ties as in Conover 1999). Both are chi-squared with k - 1 degrees of freedom, by the cube root
of Wilson and Hilferty (1931).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import erfc, sqrt
from typing import Any, Final

import numpy as np
import polars as pl

RARE: Final = 0.005  # of sets of alike samples are taken for unlike ones, by each of both tests
FEWEST_CELLS: Final = 24  # problems that tell, times samples: else Q is no chi-squared (Tate 1970)
ALIKE: Final = "Accuracy of fewer samples, tokens and times treat all samples alike"
Floats = np.ndarray[Any, np.dtype[np.float64]]


def unlike(samples: pl.DataFrame, largest: int) -> Iterator[str]:
    """Yield in what samples differ by their number.

    `samples` are rows with problem_id, sample_index, correct and output_tokens, as far as there
    are any; problems with fewer than `largest` sound samples are left out, and those whose samples
    have other numbers than most have.
    """
    if largest < 2:
        return
    if "error" in samples.columns:
        samples = samples.filter(pl.col("error").is_null())
    for name, describe in (("correct", _right), ("output_tokens", _lengths)):
        if name not in samples.columns:
            continue
        kept = (
            samples.select("problem_id", "sample_index", name)
            .drop_nulls(name)
            .sort("problem_id", "sample_index")
            .filter(pl.len().over("problem_id") == largest)
        )
        if kept.is_empty():
            continue
        values = kept[name].cast(pl.Float64).to_numpy().reshape(-1, largest)
        names = kept["sample_index"].to_numpy().reshape(-1, largest)
        numberings, of, counts = np.unique(names, axis=0, return_inverse=True, return_counts=True)
        usual = int(counts.argmax())
        yield from describe(values[of.ravel() == usual], [int(each) for each in numberings[usual]])


_LONG = 100  # tokens or characters, from which equal lengths are no chance
_FEWEST_COPIES = 8
_NEARLY_ALL = 0.9
_MANY_FILES = 16  # whose first problems are enough to find which two are the most alike
_FIRST = 50


def copied(samples: pl.DataFrame) -> tuple[int, int] | None:
    """Return two files of which one has samples of the other again, None for none.

    `samples` are rows of joined files with file, problem, sample_index, key, correct, error and, as
    far as they are known, output_tokens or characters. Where these tell, nearly all samples of
    equal number are the same. Else all that one of both files has wrong are, and they are many.
    """
    size_columns = [name for name in ("output_tokens", "characters") if name in samples.columns]
    rows = samples.filter(pl.col("error").is_null()).select(
        "file", "problem", "sample_index", "key", "correct",
        size=pl.coalesce(*size_columns, pl.lit(None, pl.Int64)),
    )  # fmt: skip
    longest = rows["size"].max()
    searched = rows
    if rows["file"].n_unique() > _MANY_FILES:
        searched = rows.filter(pl.col("problem") < _FIRST)
    matches = searched.join(
        searched, on=[name for name in rows.columns if name != "file"], nulls_equal=True
    ).filter(pl.col("file") < pl.col("file_right"))
    pairs = matches.group_by("file", "file_right").len().sort("len", "file", descending=True)
    same = pl.all_horizontal(
        pl.col(name).eq_missing(pl.col(f"{name}_right")) for name in ("key", "correct", "size")
    )
    for one, other, _ in pairs.unique("file_right", keep="first", maintain_order=True).iter_rows():
        both = rows.filter(file=one).join(
            rows.filter(file=other), on=["problem", "sample_index"], nulls_equal=True
        )
        limit = pl.lit(longest, pl.Int64)
        conditions = [
            pl.col(name).is_between(_LONG, limit, closed="none") for name in ("size", "size_right")
        ]
        long = both.filter(*conditions).select(same.alias("same"))["same"]
        if len(long) >= _FEWEST_COPIES:
            if int(long.sum()) >= _NEARLY_ALL * len(long):
                return one, other
            continue
        right = pl.col("correct").fill_null(True) & pl.col("correct_right").fill_null(True)
        answered = pl.col("key").is_not_null() | pl.col("key_right").is_not_null()
        wrong = both.filter(~right, answered).select(same.alias("same"))["same"]
        if len(wrong) >= FEWEST_CELLS and wrong.all():
            return one, other
    return None


def _right(right: Floats, names: list[int]) -> Iterator[str]:
    mixed = right[np.ptp(right, axis=1) > 0]
    if mixed.size >= FEWEST_CELLS and (p := chance_of(cochran(mixed), right.shape[1] - 1)) < RARE:
        odd = _furthest(mixed)
        others = np.delete(right, odd, axis=1).mean()
        yield (
            f"samples are not draws of one kind: number {names[odd]} is right in "
            f"{right[:, odd].mean():.1%} of the problems, the others in {others:.1%} "
            f"({_shown(p)}, Cochran's Q). {ALIKE}"
        )


def _lengths(tokens: Floats, names: list[int]) -> Iterator[str]:
    if (
        tokens.size >= FEWEST_CELLS
        and (p := chance_of(friedman(tokens), tokens.shape[1] - 1)) < RARE
    ):
        odd = _furthest(_ranks(tokens))
        others = np.delete(tokens, odd, axis=1).mean()
        yield (
            f"samples are not draws of one kind: number {names[odd]} has "
            f"{tokens[:, odd].mean():,.0f} tokens on average, the others {others:,.0f} "
            f"({_shown(p)}, Friedman's test). {ALIKE}"
        )


def cochran(right: Floats) -> float:
    """Return Cochran's Q of [problems, samples] of 0 and 1; 0 where no problem has both."""
    count, columns = right.shape[1], right.sum(axis=0)
    below = count * right.sum() - np.square(right.sum(axis=1)).sum()
    above = (count - 1) * (count * np.square(columns).sum() - columns.sum() ** 2)
    return float(above / below) if below > 0 else 0.0


def friedman(values: Floats) -> float:
    """Return Friedman's statistic of [problems, samples], ties shared; 0 where all are tied."""
    problems, count = values.shape
    ranks = _ranks(values)
    off = ranks.sum(axis=0) - problems * (count + 1) / 2
    spread = np.square(ranks).sum() - problems * count * (count + 1) ** 2 / 4
    return float((count - 1) * np.square(off).sum() / spread) if spread > 0 else 0.0


def _ranks(values: Floats) -> Floats:
    """Return the rank of each value within its row, from 1, ties having their mean."""
    problems, count = values.shape
    rows = pl.DataFrame({"row": np.repeat(np.arange(problems), count), "value": values.ravel()})
    ranks = rows.select(pl.col("value").rank("average").over("row"))["value"]
    return ranks.to_numpy().reshape(problems, count)


def _furthest(values: Floats) -> int:
    sums = values.sum(axis=0)
    return int(np.abs(sums - sums.mean()).argmax())


def chance_of(q: float, freedom: int) -> float:
    """Return how likely a chi-squared of so many degrees of freedom is `q` or more."""
    if q <= 0:
        return 1.0
    part = 2 / (9 * freedom)
    return 0.5 * erfc(((q / freedom) ** (1 / 3) - (1 - part)) / sqrt(2 * part))


def _shown(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"
