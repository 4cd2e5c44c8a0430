"""The samples of imported files, in columns: kept small, then counted into classes and votes.

The answers' texts are dropped as they come, unless they are to be recorded: a hash of 64 bits
tells them apart within their problem.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from traces.foreign.evaluations.reader import Outcome
from traces.recording.manifest import IDENTITY_BYTES
from traces.schema.tts.logprobs import with_means

_CHUNK_ROWS = 100_000
NONE_KIN = (  # what evaluations write where no answer was found
    "", "NO_ANSWER", "no_answer", "NO ANSWER", "No answer", "no answer", "[no answer]", "N/A",
    "n/a",
    "NA", "None", "none", "NONE", "null", "NULL", "nan", "NaN", "unknown", "Unknown", "UNKNOWN",
    "invalid", "INVALID", "[invalid]", "[INVALID]", "error", "ERROR", "-",
)  # fmt: skip
_FEWEST_COMMON = 4  # problems that have an answer in common
_COMMON = 0.1  # of the problems
_RIGHT = 0  # the class of right answers: they all equal the expected one
_COLUMNS: dict[str, pl.DataType] = {
    "problem": pl.UInt32(),
    "sample_index": pl.Int64(),
    "place": pl.Int64(),
    "key": pl.UInt64(),
    "text": pl.Utf8(),
    "correct": pl.Boolean(),
    "prompt_tokens": pl.Int64(),
    "output_tokens": pl.Int64(),
    "think_tokens": pl.Int64(),
    "latency_ns": pl.Int64(),
    "logprob_mean": pl.Float64(),
    "finish_reason": pl.Utf8(),
    "error": pl.Utf8(),
}
_USED = ("problem", "sample_index", "place", "key", "text", "correct", "prompt_tokens", "error")


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An answer that is never right and may stand for none: by its text, or as it is common.

    `text` is None for the latter, whose text is the model's own; `place` is its first.
    """

    text: str | None
    samples: int
    problems: int
    place: int


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the samples come to, as rows of a recording's tables without engine and policy.

    `doubled` counts samples that were there before, the first at `doubled_place`; `identity` is
    the same for the same problems.
    """

    problems: pl.DataFrame
    samples: pl.DataFrame
    identity: str
    identities: bytes  # IDENTITY_BYTES of each problem, in the order of names
    doubled: int
    doubled_place: int | None
    largest: int  # samples of one problem
    fewer: int  # problems with less
    answers_told: bool
    contradicted: int  # answers that one problem has as right and as wrong
    prompts_filled: int  # samples that have the prompt's length that was given
    expected_differs: int  # problems whose samples have different expected answers
    suspects: tuple[Suspect, ...]
    untimed: int  # samples without a latency where others have one
    logprobs: str | None  # why some are left out
    logprobs_place: int | None  # of the first of them


@dataclass
class OutcomeTable:
    """Takes outcomes one by one, then `count`s them."""

    keep_text: bool = False
    prompt_tokens: int | None = None  # of prompts whose length a file does not tell
    no_answer: frozenset[str] = frozenset()  # texts that stand for none
    _prompts_filled: int = 0
    _first_expected: list[str | None] = field(default_factory=list)
    _expected_differs: set[int] = field(default_factory=set)
    _rows: list[tuple[Any, ...]] = field(default_factory=list)
    _chunks: list[pl.DataFrame] = field(default_factory=list)
    _problems: dict[str, int] = field(default_factory=dict)
    _groups: list[str | None] = field(default_factory=list)
    _expected: list[str | None] = field(default_factory=list)
    _identities: list[bytes] = field(default_factory=list)

    def add(self, outcome: Outcome, *, prefix: str = "", group: str | None = None) -> None:
        """Take a sample; `prefix` sets the problems of a file apart from those of another."""
        name = prefix + outcome.problem_id
        problem = self._problems.setdefault(name, len(self._problems))
        if problem == len(self._groups):
            self._groups.append(group if outcome.group is None else outcome.group)
            self._expected.append(outcome.expected if self.keep_text else None)
            told = (outcome.identity or b"") + b"\0" + (outcome.expected or "").encode()
            self._identities.append(hashlib.blake2b(told, digest_size=8).digest())
            self._first_expected.append(outcome.expected)
        elif outcome.expected != self._first_expected[problem]:
            self._expected_differs.add(problem)
        answer = None if outcome.answer in self.no_answer else outcome.answer
        latency, prompt_tokens = outcome.latency_s, outcome.prompt_tokens
        if prompt_tokens is None and self.prompt_tokens is not None:
            prompt_tokens = self.prompt_tokens
            self._prompts_filled += 1
        self._rows.append(
            (
                problem,
                outcome.sample_index,
                outcome.place,
                None if answer is None else _hash(answer),
                answer if self.keep_text else None,
                outcome.correct,
                prompt_tokens,
                outcome.output_tokens,
                outcome.think_tokens,
                None if latency is None else round(latency * 1e9),
                outcome.logprob_mean,
                outcome.finish_reason,
                outcome.error,
            )
        )
        if len(self._rows) >= _CHUNK_ROWS:
            self._close_chunk()

    def _close_chunk(self) -> None:
        chunk = pl.DataFrame(self._rows, schema=_COLUMNS, orient="row")
        told = [name for name in chunk.columns if name in _USED or chunk[name].count()]
        self._chunks.append(chunk.select(told))  # a column of nulls takes 8 to 16 bytes a row
        self._rows = []

    def count(self) -> Counted:
        """Return the tables. The outcomes are given up; call it once."""
        self._close_chunk()
        frame = pl.concat(self._chunks, how="diagonal")
        self._chunks.clear()
        frame, doubled, place = _without_doubles(frame)
        frame, logprobs, logprobs_place = _with_means(frame)
        told = bool(frame["key"].count())
        contradicted = _contradicted(frame)
        suspects = tuple(_suspects(frame, len(self._problems)))
        times = frame["latency_ns"] if "latency_ns" in frame.columns else None
        if told:
            right = pl.col("correct").fill_null(False)
            key = pl.when(right).then(pl.lit(_RIGHT, pl.UInt64)).otherwise("key")
            frame = frame.with_columns(key=key)
        classes = _classes(frame)
        answers = classes.select("problem", "key", "answer")
        frame = frame.join(answers, on=["problem", "key"], how="left", maintain_order="left")
        names = pl.DataFrame(
            {
                "problem_id": list(self._problems),
                "group": self._groups,
                "expected": self._expected,
            },
            schema={"problem_id": pl.Utf8, "group": pl.Utf8, "expected": pl.Utf8},
        ).with_row_index("problem")
        sizes = frame.group_by("problem").len()["len"]
        largest = int(sizes.max() or 0)  # type: ignore[arg-type]
        return Counted(
            problems=_problem_rows(frame, classes, names, told),
            samples=frame.select(
                names["problem_id"].gather(frame["problem"]),
                pl.exclude("problem", "place", "key", "text"),
            ),
            identity=self._identity(),
            identities=b"".join(
                self._identities[place][:IDENTITY_BYTES]
                for _, place in sorted(self._problems.items())
            ),
            doubled=doubled,
            doubled_place=place,
            largest=largest,
            fewer=int((sizes < largest).sum()),
            answers_told=told,
            contradicted=contradicted,
            prompts_filled=self._prompts_filled,
            expected_differs=len(self._expected_differs),
            suspects=suspects,
            untimed=0 if times is None else times.null_count(),
            logprobs=logprobs,
            logprobs_place=logprobs_place,
        )

    def _identity(self) -> str:
        digest = hashlib.sha256()
        for name, problem in sorted(self._problems.items()):
            digest.update(name.encode("utf-8", "surrogatepass") + b"\0" + self._identities[problem])
        return digest.hexdigest()[:16]


def _hash(answer: str) -> int:
    digest = hashlib.blake2b(answer.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _without_doubles(frame: pl.DataFrame) -> tuple[pl.DataFrame, int, int | None]:
    """Sort by problem and number; of samples of the same keep the first that came."""
    frame = frame.sort("problem", "sample_index", maintain_order=True)
    again = frame.select(
        (pl.col("problem") == pl.col("problem").shift())
        & (pl.col("sample_index") == pl.col("sample_index").shift())
    ).to_series()
    again = again.fill_null(False)
    if not again.any():
        return frame, 0, None
    doubles = frame.filter(again)
    return frame.filter(~again), doubles.height, int(doubles["place"].min())  # type: ignore[arg-type]


def _with_means(frame: pl.DataFrame) -> tuple[pl.DataFrame, str | None, int | None]:
    """Leave out log-probabilities that are no means; say why, and of which place the first is."""
    if "logprob_mean" not in frame.columns:
        return frame, None, None
    kept, found = with_means(frame)
    return kept, found.why, None if found.first is None else int(frame["place"][found.first])


def _contradicted(frame: pl.DataFrame) -> int:
    """Return how many answers a problem has both as right and as wrong."""
    judged = frame.drop_nulls(["key", "correct"]).group_by("problem", "key")
    return judged.agg(pl.col("correct").n_unique()).filter(pl.col("correct") > 1).height


def _suspects(frame: pl.DataFrame, problems: int) -> Iterator[Suspect]:
    """Yield the answers that are never right, and common or named as none is."""
    if not frame["correct"].count():
        return
    named = {_hash(text): text for text in NONE_KIN}
    fewest = max(_FEWEST_COMMON, _COMMON * problems)
    found = (
        frame.drop_nulls("key")
        .group_by("key")
        .agg(
            samples=pl.len(),
            problems=pl.col("problem").n_unique(),
            right=pl.col("correct").any(),
            place=pl.col("place").min(),
        )
        .filter(~pl.col("right"), (pl.col("problems") >= fewest) | pl.col("key").is_in([*named]))
        .sort("samples", "place", descending=[True, False])
    )
    for row in found.iter_rows(named=True):
        yield Suspect(
            text=named.get(row["key"]),
            samples=row["samples"],
            problems=row["problems"],
            place=row["place"],
        )


def _classes(frame: pl.DataFrame) -> pl.DataFrame:
    """Return each problem's classes of answers with `answer` (its number, or text) and votes.

    They are numbered in the order of their first sample; the text is that of the first.
    """
    return (
        frame.drop_nulls("key")
        .group_by("problem", "key")
        .agg(
            first=pl.col("sample_index").min(),
            votes=pl.len(),
            right=pl.col("correct").any(),
            judged=pl.col("correct").is_not_null().any(),
            text=pl.col("text").drop_nulls().first(),
        )
        .sort("problem", "first")
        .with_columns(number=pl.int_range(pl.len()).over("problem").cast(pl.Utf8))
        .with_columns(answer=pl.coalesce("text", "number"))
    )


def _problem_rows(
    frame: pl.DataFrame, classes: pl.DataFrame, names: pl.DataFrame, told: bool
) -> pl.DataFrame:
    """Return the vote of all samples: the most frequent class, a tie to the earlier sample."""
    winners = (
        classes.sort("problem", "votes", "first", descending=[False, True, False])
        .group_by("problem", maintain_order=True)
        .first()
        .select("problem", "answer", voted=pl.when("judged").then("right"))
    )
    totals = frame.group_by("problem").agg(
        pl.len().alias("n"),
        judged=pl.col("correct").is_not_null().any(),
        right=pl.col("correct").any(),
        error=pl.when(pl.col("error").is_not_null().all()).then(pl.lit("all samples failed")),
        prompt_tokens=pl.col("prompt_tokens").first(),
    )
    rows = names.join(totals, on="problem").join(winners, on="problem", how="left")
    # Where no answer was told, samples cannot vote; a single one speaks for itself.
    alone = pl.when(pl.col("n") == 1, pl.col("judged")).then("right")
    unparsed = pl.when("judged").then(pl.lit(False))
    correct = (
        pl.when(pl.col("answer").is_not_null()).then("voted").otherwise(unparsed) if told else alone
    )
    return rows.sort("problem").select(
        "problem_id", "group", "expected", "answer", "prompt_tokens", "error", correct=correct
    )
