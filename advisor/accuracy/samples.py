"""The samples of one run, problem by problem, as other policies would have seen them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from traces.errors import RecordingError, UsageError
from traces.schema.tts.logprobs import with_means
from traces.statistics import Floats
from traces.summary.problems import (
    MOST_UNTOLD,
    all_judged,
    answers_told,
    lost_problems,
    voting_samples,
    without_timed_out,
)
from traces.summary.run import Run
from traces.summary.votes import PolicyOutcome

_USED = (
    "engine", "policy", "role", "parent_sample", "problem", "problem_id", "sample_index", "arrival",
    "first_token", "end", "latency_ns", "output_tokens", "think_tokens", "censored",
    "finish_reason", "error", "cancelled_by", "answer", "correct", "logprob_mean",
    "confidence_min_window", "score",
)  # fmt: skip
_CENSORED = pl.coalesce("censored", pl.col("finish_reason").fill_null("") == "length")
FEWEST = 4  # samples from which rules that stop early are judged


@dataclass(frozen=True, kw_only=True)
class ProblemSamples:
    """One problem's samples in order of their index; numbers that were not recorded are nan.

    `answers` are None where none parsed. `tokens` have those of an answer forced at a budget.
    `finish_s` runs from the problem's arrival, or the sample's own, to its end, `first_token_s` to
    its first token; of imported samples it is their latency, as if all had begun together.
    `censored` ones were cut by max_tokens. `score` is a reward model's.
    """

    problem_id: str
    indices: tuple[int, ...]
    answers: tuple[str | None, ...]
    correct: tuple[bool, ...]
    tokens: Floats
    think_tokens: Floats
    censored: npt.NDArray[np.bool_]
    logprob_mean: Floats
    confidence: Floats
    score: Floats
    first_token_s: Floats
    finish_s: Floats

    def take(self, places: Sequence[int]) -> ProblemSamples:
        def part(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple([value[place] for place in places])
            return value[np.array(places)] if isinstance(value, np.ndarray) else value

        return ProblemSamples(**{name: part(value) for name, value in vars(self).items()})

    def limited(self, most: int) -> ProblemSamples:
        """Return the samples as a smaller max_tokens would have cut them: these have no vote.

        A cut sample ends earlier by its own pace.
        """
        cut = self.tokens > most
        share = np.where(cut, most / np.maximum(self.tokens, 1), 1.0)
        begun = np.where(np.isfinite(self.first_token_s), self.first_token_s, 0.0)
        return replace(
            self,
            answers=tuple(None if c else a for a, c in zip(self.answers, cut, strict=True)),
            correct=tuple(bool(r and not c) for r, c in zip(self.correct, cut, strict=True)),
            tokens=np.minimum(self.tokens, most),
            think_tokens=np.where(cut, np.nan, self.think_tokens),
            censored=self.censored | cut,
            logprob_mean=np.where(cut, np.nan, self.logprob_mean),
            confidence=np.where(cut, np.nan, self.confidence),
            score=np.where(cut, np.nan, self.score),
            finish_s=begun + share * (self.finish_s - begun),
        )

    def rights(self) -> tuple[dict[str, int], Floats]:
        """Return each answer's number, and the share of its samples that were judged right."""
        numbers: dict[str, int] = {}
        total, right = list[int](), list[int]()
        for answer, flag in zip(self.answers, self.correct, strict=True):
            if answer is None:
                continue
            number = numbers.setdefault(answer, len(total))
            if number == len(total):
                total.append(0)
                right.append(0)
            total[number] += 1
            right[number] += flag
        return numbers, np.array(right, dtype=float) / np.array(total, dtype=float)


@dataclass(frozen=True, kw_only=True)
class SampledRun:
    """The problems of a run that have all their `n` samples; `notes` say what was left out.

    `answers_told` is False where samples are marked right whose answers nobody told (some imports),
    so that no vote of several samples is known. An answer that did not parse is a known one.
    `problems` are all of those in `rows`, which has one sample a row, or some at random.
    """

    name: str
    n: int
    problems: tuple[ProblemSamples, ...]
    notes: tuple[str, ...]
    answers_told: bool
    rows: pl.DataFrame = field(repr=False, compare=False)

    @property
    def of(self) -> int:
        """How many problems there are."""
        return self.rows.height // max(self.n, 1)


@dataclass(frozen=True)
class PolicyColumn:
    """A policy with its right share and tokens per problem: [problems] each."""

    outcome: PolicyOutcome
    right: Floats
    tokens: Floats


def limited(samples: SampledRun, most: int, recorded: int | None) -> SampledRun:
    """Return a run's samples under another max_tokens; what it cuts has no vote.

    Raises UsageError where lengths are not known, or samples were cut at less.
    """
    lengths, cut = samples.rows["output_tokens"], pl.col("output_tokens") > most
    if most < 1:
        raise UsageError(f"--max-tokens {most}: must be at least 1")
    if lengths.null_count():
        raise UsageError(
            f"--max-tokens {most:,}: {samples.name} lacks the output_tokens of samples"
        )
    longest = int(lengths.max() or 0)  # type: ignore[arg-type]
    if samples.rows.select(_CENSORED.any()).item() and most > (recorded or longest):
        raise UsageError(
            f"--max-tokens {most:,}: samples of {samples.name} were cut at "
            f"{recorded or longest:,}, and how they would have gone on is not known"
        )
    count = int((lengths > most).sum())
    note = f"max_tokens {most:,}: {count:,} of {len(lengths):,} samples are cut and have no vote"
    return replace(
        samples,
        problems=tuple(problem.limited(most) for problem in samples.problems),
        rows=samples.rows.with_columns(
            answer=pl.when(~cut).then("answer"),
            correct=pl.col("correct") & ~cut,
            output_tokens=pl.col("output_tokens").clip(upper_bound=most),
        ),
        notes=(*samples.notes, note),
    )


def read_samples(run: Run, most: int | None = None) -> SampledRun:
    """Return the samples that votes may be taken of; of more than `most` problems some at random.

    Raises RecordingError when they cannot say what another policy would have done: a rule
    cancelled or never drew some, samples stand twice, none was judged or none parsed.
    """
    name, policy, rows = run.recording, run.policy, run.sample_rows
    if policy is None or rows is None or run.rows is None:
        raise RecordingError(f"{name}: holds no samples. Policies are judged from samples")
    if not policy.all_samples_end:
        raise RecordingError(
            f"{name}: was run as {policy.label()}, which stops at what it saw, so its samples are "
            "no fair draw for another policy. Record with majority and judge that"
        )
    samples = voting_samples(rows.select(_USED))
    lost = lost_problems(run.rows)
    if lost.timed_out and lost.too_many:
        raise RecordingError(f"{name}: {lost.why_not}")
    every, samples = samples, without_timed_out(samples, run.rows)
    _check(name, samples, run.rows)
    problem_of = dict(run.rows.select("problem", "problem_id").iter_rows())
    # Imported outcomes have no times at all; what was in flight at a kill has an arrival.
    over = pl.col("end").is_not_null() | pl.col("arrival").is_null()
    ended = samples.filter(over, pl.col("error").is_null())
    sizes = ended.group_by("problem").len()["len"]
    n = policy.n if (sizes >= policy.n).any() else max(sizes.mode().to_list(), default=0)
    whole = (
        ended.filter(all_judged(ended).over("problem"))
        .sort("problem", "sample_index")
        .filter(pl.len().over("problem") >= n)
        .filter(pl.int_range(pl.len()).over("problem") < n)
    )
    _check_failed(run, every, whole)
    judged = whole["problem"].n_unique()
    whole = _with_tokens(whole)
    rows, notes = whole, tuple[str, ...]()
    count = whole["problem"].n_unique()
    if count < judged:
        notes = (f"problems with samples of unknown length, left out: {judged - count:,}",)
    if most is not None and count > most:
        some = whole["problem"].unique().sort().sample(most, seed=0)
        whole = whole.filter(pl.col("problem").is_in(some.implode()))
        notes = (
            *notes,
            f"policies but for maj@k and pass@k without a smaller limit: of {most:,} of the "
            f"{count:,} problems, drawn at random",
        )
    if run.imported is not None:
        whole, means = with_means(whole)
        notes = notes if means.why is None else (*notes, means.why)
    problems = _problems(whole, n, problem_of)
    notes = (*_left_out(run, every, problems, n, judged), *notes)
    return SampledRun(
        name=name,
        n=n,
        problems=problems,
        notes=notes,
        answers_told=answers_told(rows),
        rows=rows,
    )


def _check(name: str, samples: pl.DataFrame, problems: pl.DataFrame) -> None:
    if not samples.height:
        raise RecordingError(f"{name}: its {problems.height:,} problems have no samples")
    cancelled = samples.height - samples["cancelled_by"].null_count()
    if cancelled:
        raise RecordingError(
            f"{name}: {cancelled:,} samples were cancelled before their end, and those that "
            "remain are the short ones. Record with majority, which lets every sample end"
        )
    keys = samples.select("problem", "sample_index")
    if keys.n_unique() < samples.height:
        twice = samples.filter(pl.struct("problem", "sample_index").is_duplicated())
        row = twice.row(0, named=True)
        raise RecordingError(
            f"{name}: sample {row['sample_index']} of problem {row['problem_id']} is there "
            f"more than once ({twice.height:,} such rows). Keep one of each"
        )
    if not samples["correct"].is_not_null().any():
        raise RecordingError(f"{name}: no sample is marked right or wrong. Record with answers")
    if not (samples["answer"].is_not_null().any() or samples["correct"].any()):
        raise RecordingError(
            f"{name}: no answer of {samples.height:,} samples could be parsed, so nothing can be "
            "voted on. Check how the workload's answers are read"
        )


def _check_failed(run: Run, every: pl.DataFrame, whole: pl.DataFrame) -> None:
    """Raise RecordingError where errors left too few problems to stand for all."""
    assert run.rows is not None
    failed = every.filter(pl.col("error").is_not_null())["problem"].unique()
    kept = pl.col("problem").is_in(whole["problem"].unique().implode())
    error = pl.when(pl.col("problem").is_in(failed.implode())).then(pl.lit("samples failed"))
    rows = run.rows.with_columns(error=pl.when(~kept).then(pl.coalesce("error", error)))
    lost = lost_problems(rows, imported=run.imported is not None)
    if run.failed_problems > lost.failed:  # an import keeps the samples that did not
        lost = replace(lost, failed=run.failed_problems)
    if lost.failed and lost.too_many:
        raise RecordingError(f"{run.recording}: {lost.why_not}")


def _with_tokens(whole: pl.DataFrame) -> pl.DataFrame:
    """Return the samples without the problems that lack a length, where these are few."""
    lacks = whole.group_by("problem").agg(lacks=pl.col("output_tokens").is_null().any())
    if not 0 < lacks["lacks"].sum() <= MOST_UNTOLD * lacks.height:
        return whole
    return whole.join(lacks.filter(~pl.col("lacks")), on="problem", how="semi").sort(
        "problem", "sample_index"
    )


def _left_out(
    run: Run, samples: pl.DataFrame, problems: tuple[ProblemSamples, ...], n: int, count: int
) -> tuple[str, ...]:
    assert run.rows is not None
    every = run.rows.height
    empty = every - samples["problem"].n_unique()
    fewer = every - empty - count
    notes = []
    if empty:
        notes.append(f"problems without samples, left out: {empty:,} of {every:,}")
    if fewer:
        notes.append(f"problems without {n:,} judged samples, left out: {fewer:,} of {every:,}")
    if samples["end"].is_null().all() and samples["latency_ns"].is_not_null().all():
        notes.append(
            "the order in which samples ended is that of their own latencies, as if all samples of "
            "a problem had begun together"
        )
    cut = sum(int(problem.censored.sum()) for problem in problems)
    if cut:
        notes.append(
            f"samples cut by max_tokens: {cut:,}. They count as they ended, and no more is known "
            "of them at a larger budget"
        )
    return tuple(notes)


_NUMBERS = {
    "tokens": pl.col("output_tokens"),
    "think_tokens": pl.col("think_tokens"),
    "logprob_mean": pl.col("logprob_mean"),
    "confidence": pl.col("confidence_min_window"),
    "score": pl.col("score"),
    "first_token_s": (pl.col("first_token") - pl.col("arrival").min().over("problem")) / 1e9,
    "finish_s": pl.coalesce(
        (pl.col("end") - pl.col("arrival").min().over("problem")) / 1e9, pl.col("latency_ns") / 1e9
    ),
}


def _problems(
    rows: pl.DataFrame, n: int, problem_of: Mapping[int, str]
) -> tuple[ProblemSamples, ...]:
    """Return problems of rows that are sorted by problem, `n` of each."""
    numbers = {
        name: found.to_numpy()
        for name, found in rows.select(
            **{name: column.cast(pl.Float64).fill_null(np.nan) for name, column in _NUMBERS.items()}
        )
        .to_dict()
        .items()
    }
    table = rows.select(
        "problem", "sample_index", "answer", pl.col("correct").fill_null(False), censored=_CENSORED
    )
    names, indices, answers, correct = (tuple(table[name]) for name in table.columns[:4])
    censored = table["censored"].to_numpy()
    return tuple(
        ProblemSamples(
            problem_id=problem_of[names[at]],
            indices=indices[at : at + n],
            answers=answers[at : at + n],
            correct=correct[at : at + n],
            censored=censored[at : at + n],
            **{name: column[at : at + n] for name, column in numbers.items()},
        )
        for at in range(0, rows.height, max(n, 1))
    )
