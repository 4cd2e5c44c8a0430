"""The samples of imported files, in columns: kept small, then counted into classes and votes.

Several files may hold samples of the same problems: `likeness` tells, and `count` joins those
that it is told to. The answers' texts are dropped as they come, unless they are to be recorded: a
hash of 64 bits tells them apart within their problem.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import polars as pl

from traces.foreign.evaluations.alike import copied
from traces.foreign.evaluations.reader import Outcome
from traces.recording.manifest import IDENTITY_BYTES
from traces.schema.tts.logprobs import with_means
from traces.summary.problems import MOST_UNTOLD

_CHUNK_ROWS = 100_000
NONE_KIN = (  # what evaluations write where no answer was found
    "", "NO_ANSWER", "no_answer", "NO ANSWER", "No answer", "no answer", "[no answer]", "N/A",
    "n/a",
    "NA", "None", "none", "NONE", "null", "NULL", "nan", "NaN", "unknown", "Unknown", "UNKNOWN",
    "invalid", "INVALID", "[invalid]", "[INVALID]", "error", "ERROR", "-",
)  # fmt: skip
_FEWEST_COMMON = 4  # problems that have an answer in common
_COMMON = 0.1  # of the problems
_PROSE = 100  # characters, above which an answer is taken for a whole completion
_NEARLY = 0.9  # of the answers
_DIFFERENT = 0.7  # of them
_FEWEST_PROSE = 8  # answers
_RIGHT = 0  # the class of right answers: they all equal the expected one
_COLUMNS: dict[str, pl.DataType] = {
    "problem": pl.UInt32(),
    "sample_index": pl.Int64(),
    "place": pl.Int64(),
    "key": pl.UInt64(),
    "prose": pl.Boolean(),
    "text": pl.Utf8(),
    "correct": pl.Boolean(),
    "prompt_tokens": pl.Int64(),
    "output_tokens": pl.Int64(),
    "think_tokens": pl.Int64(),
    "latency_ns": pl.Int64(),
    "logprob_mean": pl.Float64(),
    "score": pl.Float64(),
    "finish_reason": pl.Utf8(),
    "error": pl.Utf8(),
    "uuid": pl.UInt64(),
    "characters": pl.Int64(),
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


@dataclass(kw_only=True)
class Counted:
    """What the samples come to, as rows of a recording's tables without engine and policy.

    `doubled` counts samples that were there before, the first at `doubled_place`; `identity` is
    the same for the same problems.
    """

    problems: pl.DataFrame = field(default_factory=pl.DataFrame)
    samples: pl.DataFrame = field(default_factory=pl.DataFrame)
    identity: str = ""
    identities: bytes = b""  # IDENTITY_BYTES of each problem, in the order of names
    doubled: int = 0
    doubled_place: int | None = None
    most: int = 1  # samples of a problem, n: nearly all problems have so many
    largest: int = 0  # samples that any problem came with
    fewer: int = 0  # problems with less than n
    beyond: int = 0  # samples left out, as their problems have n others
    short: Sequence[tuple[str, int]] = ()  # the few problems, with their samples, that make n small
    short_of: int = 0  # samples that the others have
    sets_differ: bool = False  # the sets of problems, each by itself, would have other n
    failed: int = 0  # samples, of all that came
    failed_problems: int = 0  # that have one of these
    copies: int = 0  # samples that another file of the same problems has too, or has drawn again
    copied: tuple[int, int] | None = None  # files of which one has the samples of the other
    repeated: Sequence[tuple[int, int, int]] = ()  # file, its problems, and its fewer prompts
    answers_told: bool = False
    prose: bool = False  # they are whole completions, and so none
    contradicted: int = 0  # answers that one problem has as right and as wrong
    prompts_filled: int = 0  # samples that have the prompt's length that was given
    expected_differs: int = 0  # problems whose samples have different expected answers
    suspects: Sequence[Suspect] = ()
    untimed: int = 0  # samples without a latency where others have one
    logprobs: str | None = None  # why some are left out
    logprobs_place: int | None = None  # of the first of them


@dataclass(frozen=True)
class Joined:
    """Files that hold samples of the same problems, and what is before the names of these."""

    files: tuple[int, ...]
    label: str = ""


class Likeness(NamedTuple):
    """What tells whether two files that have names of problems in common are of the same ones.

    `same` is true where all is told and the same, false where most differs, None else. `told` is
    whether each file tells its problems apart by more than their names, `names` whether both have
    the same names, `prompts` whether what was asked is the same, None where a file does not tell.
    """

    same: bool | None
    told: bool
    names: bool
    prompts: bool | None


@dataclass
class OutcomeTable:
    """Takes outcomes one by one, then `count`s them. Files are known by their numbers, from 0."""

    keep_text: bool = False
    prompt_tokens: int | None = None  # of prompts whose length a file does not tell
    no_answer: frozenset[str] = frozenset()  # texts that stand for none
    _prompts_filled: int = 0
    _first_expected: list[str | None] = field(default_factory=list)
    _expected_differs: set[int] = field(default_factory=set)
    _rows: list[tuple[Any, ...]] = field(default_factory=list)
    _chunks: list[pl.DataFrame] = field(default_factory=list)
    _of_file: list[dict[str, int]] = field(default_factory=list)
    _groups: list[str | None] = field(default_factory=list)
    _expected: list[str | None] = field(default_factory=list)
    _identities: list[bytes] = field(default_factory=list)
    _prompts: list[int | None] = field(default_factory=list)
    _set: list[int] = field(default_factory=list)  # of joined problems
    _told: list[bool] = field(default_factory=list)  # of problems: their prompt or expected answer

    def add(self, outcome: Outcome, *, file: int = 0) -> None:
        """Take a sample of a file. Those of one file come after those of the one before."""
        while len(self._of_file) <= file:
            self._of_file.append({})
        problem = self._of_file[file].setdefault(outcome.problem_id, len(self._groups))
        if problem == len(self._groups):
            self._groups.append(outcome.group)
            self._told.append(bool(outcome.identity or outcome.expected))
            self._expected.append(outcome.expected if self.keep_text else None)
            identity = (outcome.identity or b"") + b"\0" + (outcome.expected or "").encode()
            self._identities.append(hashlib.blake2b(identity, digest_size=8).digest())
            self._first_expected.append(outcome.expected)
            self._prompts.append(None if outcome.prompt is None else _hash_of(outcome.prompt))
        elif outcome.expected != self._first_expected[problem]:
            self._expected_differs.add(problem)
        answer = None if outcome.answer is None else outcome.answer.strip()
        answer = None if answer in self.no_answer else answer
        latency, prompt_tokens = outcome.latency_s, outcome.prompt_tokens or None
        if prompt_tokens is None and self.prompt_tokens is not None:
            prompt_tokens = self.prompt_tokens
            self._prompts_filled += 1
        self._rows.append(
            (
                problem,
                outcome.sample_index,
                outcome.place,
                None if answer is None else _hash(answer),
                None if answer is None else outcome.whole or len(answer) > _PROSE,
                answer if self.keep_text else None,
                outcome.correct,
                prompt_tokens,
                outcome.output_tokens,
                outcome.think_tokens,
                None if latency is None else round(latency * 1e9),
                outcome.logprob_mean,
                outcome.score,
                outcome.finish_reason,
                outcome.error,
                None if outcome.uuid is None else _hash_of(outcome.uuid.encode("utf-8", "replace")),
                outcome.characters,
            )
        )
        if len(self._rows) >= _CHUNK_ROWS:
            self._close_chunk()

    def _close_chunk(self) -> None:
        chunk = pl.DataFrame(self._rows, schema=_COLUMNS, orient="row")
        columns = [name for name in chunk.columns if name in _USED or chunk[name].count()]
        self._chunks.append(chunk.select(columns))  # a column of nulls takes 8 to 16 bytes a row
        self._rows = []

    def likeness(self, one: int, other: int) -> Likeness | None:
        """Return what tells whether two files are of the same problems; None: no name is in both.

        An expected answer that all problems of a file share, such as pass, tells nothing.
        """
        first, second = self._of_file[one], self._of_file[other]
        common = [(first[name], second[name]) for name in first.keys() & second.keys()]
        if not common:
            return None
        equal = sum(self._identities[a] == self._identities[b] for a, b in common)
        identified = all(self._told[a] and self._told[b] for a, b in common)
        identified = identified and not any(
            len(each) > 1 and len({self._identities[place] for place in each.values()}) == 1
            for each in (first, second)
        )
        asked = [(self._prompts[a], self._prompts[b]) for a, b in common]
        prompts = None if any(None in pair for pair in asked) else True
        if any(a != b for a, b in asked if None not in (a, b)):
            prompts = False
        same = None
        if identified and equal == len(common) and 2 * equal >= min(len(first), len(second)):
            same = True
        elif identified and 2 * equal < len(common):
            same = False
        return Likeness(same, identified, first.keys() == second.keys(), prompts)

    def _repeated(self) -> Iterator[tuple[int, int, int]]:
        """Yield the files that pose many questions under several names."""
        for file, problems in enumerate(self._of_file):
            prompts = [self._prompts[place] for place in problems.values()]
            different = len({*prompts})
            if None not in prompts and len(prompts) - different > MOST_UNTOLD * len(prompts):
                yield file, len(prompts), different

    def count(self, joined: Sequence[Joined] = (), max_tokens: int | None = None) -> Counted:
        """Return the tables. The outcomes are given up; call it once.

        A sample of `max_tokens` of which no file says why it ended was cut there.
        """
        self._close_chunk()
        frame = pl.concat(self._chunks, how="diagonal")
        self._chunks.clear()
        found = Counted(repeated=[*self._repeated()], prompts_filled=self._prompts_filled)
        frame, found.doubled, found.doubled_place = _without_doubles(frame)
        found.copies = frame.height
        frame, problems, found.copied = self._join(frame, joined or [Joined((0,))])
        found.copies -= frame.height
        found.largest = int(frame.group_by("problem").len()["len"].max() or 0)  # type: ignore[arg-type]
        suspects = [*_suspects(frame, len(problems))]
        failed = frame.drop_nulls("error")
        found.failed, found.failed_problems = failed.height, failed["problem"].n_unique()
        sizes = frame.filter(_sound(frame)).group_by("problem").len("count")
        found.sets_differ = self._sets_differ(sizes)
        frame, found.most, found.beyond = _evened(frame, sizes["count"].sort())
        short, found.short_of = _short(sizes, found.most)
        frame = _cut_at(frame, max_tokens)
        found.prose = _is_prose(frame)
        if found.prose:
            frame = frame.with_columns(key=pl.lit(None, pl.UInt64), text=pl.lit(None, pl.Utf8))
        else:
            found.suspects = suspects
        frame, found.logprobs, found.logprobs_place = _with_means(frame)
        found.answers_told = bool(frame["key"].count())
        found.contradicted = _contradicted(frame)
        found.expected_differs = len(self._expected_differs)
        if "latency_ns" in frame.columns:
            found.untimed = frame["latency_ns"].null_count()
        if found.answers_told:
            frame = _with_right(frame, self._expected_differs)
        classes = _classes(frame)
        answers = classes.select("problem", "key", "answer")
        frame = frame.join(answers, on=["problem", "key"], how="left", maintain_order="left")
        columns = {"problem_id": list(problems), "group": self._groups, "expected": self._expected}
        texts = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Utf8))
        names = texts.with_row_index("problem")
        found.short = [(names["problem_id"][at], count) for at, count in short]
        complete = frame.group_by("problem").agg(n=_sound(frame).sum())["n"] >= found.most
        found.fewer = len(complete) - int(complete.sum())
        found.problems = _problem_rows(frame, classes, names, found.answers_told)
        found.samples = frame.select(
            names["problem_id"].gather(frame["problem"]),
            pl.exclude("problem", "place", "key", "text", "prose", "uuid", "characters"),
        )
        found.identity = self._identity(problems)
        found.identities = b"".join(
            self._identities[place][:IDENTITY_BYTES] for _, place in sorted(problems.items())
        )
        return found

    def _join(
        self, frame: pl.DataFrame, joined: Sequence[Joined]
    ) -> tuple[pl.DataFrame, dict[str, int], tuple[int, int] | None]:
        """Return the samples by the numbers of joined problems, and these numbers by names.

        Samples of several files that have the same numbers are numbered anew, file by file. Those
        that an earlier file has too, and failed ones that a retry drew again, are left out where
        their uuid tells; else two such files are returned.
        """
        problems: dict[str, int] = {}
        places: list[int] = []  # of each number the problem in its file
        numbers = [0] * len(self._groups)
        several, again = False, None
        file_of = [0] * len(self._groups)
        for at, each in enumerate(joined):
            for file in each.files:
                for name, place in self._of_file[file].items():
                    number = problems.setdefault(
                        f"{each.label}/{name}" if each.label else name, len(places)
                    )
                    if number == len(places):
                        places.append(place)
                        self._set.append(at)
                        if self._groups[place] is None:
                            self._groups[place] = each.label or None
                    numbers[place], file_of[place] = number, file
                    if place != (first := places[number]):
                        several = True
                        if self._first_expected[place] != self._first_expected[first]:
                            self._expected_differs.add(place)
        for name in ("_groups", "_expected", "_identities"):
            column = getattr(self, name)
            setattr(self, name, [column[place] for place in places])
        self._expected_differs = {numbers[place] for place in self._expected_differs}
        self._of_file.clear()
        if numbers == list(range(len(numbers))):
            return frame, problems, None
        renumbered = frame.with_columns(file_problem="problem").with_columns(
            problem=pl.Series(numbers, dtype=pl.UInt32).gather(frame["problem"])
        )
        if several:
            keys = ["problem", "file_problem", "sample_index"]
            renumbered = renumbered.sort(keys, maintain_order=True)
            if "uuid" in renumbered.columns:
                renumbered = _without_copies(renumbered)
            files = pl.Series(file_of, dtype=pl.UInt32).gather(renumbered["file_problem"])
            again = copied(renumbered.with_columns(file=files))
            if renumbered.select(pl.struct("problem", "sample_index").is_duplicated().any()).item():
                renumbered = renumbered.with_columns(
                    sample_index=pl.int_range(pl.len(), dtype=pl.Int64).over("problem")
                )
        return renumbered.drop("file_problem").sort("problem", "sample_index"), problems, again

    def _sets_differ(self, sizes: pl.DataFrame) -> bool:
        sets = pl.Series(self._set, dtype=pl.UInt32).gather(sizes["problem"])
        counts = sizes.group_by(sets.alias("set")).agg(pl.col("count").sort())["count"]
        return len({_most(each) for each in counts}) > 1

    def _identity(self, problems: dict[str, int]) -> str:
        digest = hashlib.sha256()
        for name, problem in sorted(problems.items()):
            digest.update(name.encode("utf-8", "surrogatepass") + b"\0" + self._identities[problem])
        return digest.hexdigest()[:16]


@lru_cache(maxsize=1 << 14)
def _hash(answer: str) -> int:
    return _hash_of(answer.encode("utf-8", "surrogatepass"))


def _hash_of(raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little") or 1


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


def _without_copies(frame: pl.DataFrame) -> pl.DataFrame:
    """Leave out samples that an earlier file has too, and those that a retry drew again."""
    once = pl.struct("problem", "sample_index", "uuid").is_first_distinct()
    kept = frame.filter(once | pl.col("uuid").is_null())
    if kept.height == frame.height:
        return frame
    sound = pl.col("error").is_null()
    return kept.filter(sound | ~sound.any().over("problem", "sample_index"))


def _most(sizes: pl.Series) -> int:
    """Return n of problems with so many samples each, sorted."""
    return int(sizes[int(MOST_UNTOLD * len(sizes))]) if len(sizes) else 1


def _short(sizes: pl.DataFrame, n: int) -> tuple[list[tuple[int, int]], int]:
    """Return the few problems without which n would be twice as large, and what others have."""
    rows = sizes.sort("count", "problem")
    usual = int(rows["count"][rows.height // 2]) if rows.height else 0
    fewer = rows.filter(pl.col("count") < usual)
    if 2 * n > usual or fewer.height > max(1, 2 * MOST_UNTOLD * rows.height):
        return [], usual
    return fewer.select("problem", "count").rows(), usual


def _evened(frame: pl.DataFrame, sizes: pl.Series) -> tuple[pl.DataFrame, int, int]:
    """Return samples of which no problem has more than n, that n, and how many were left out.

    `sizes` are the sorted numbers of sound samples.

    n is the most that all problems have but 1 in 20: the same vote is then known of nearly all.
    Samples that failed are no draws, and the others come before them.
    """
    sound = _sound(frame)
    n = _most(sizes)
    if not len(sizes) or (sizes[-1] == n and sizes.sum() == frame.height):
        return frame, n, 0
    kept = frame.with_columns(_sound=sound).with_columns(
        _place=pl.col("_sound").cast(pl.Int64).cum_sum().over("problem"),
        _all=pl.col("_sound").sum().over("problem"),
    )
    wanted = pl.when("_sound").then(pl.col("_place") <= n).otherwise(pl.col("_all") < n)
    kept = kept.filter(wanted)
    beyond = int(sizes.sum()) - int(kept["_sound"].sum())
    return kept.drop("_sound", "_place", "_all"), n, beyond


def _sound(frame: pl.DataFrame) -> pl.Expr:
    """Return whether a sample did not fail."""
    failed = pl.col("error") if "error" in frame.columns else pl.lit(None, pl.Utf8)
    return failed.is_null() & pl.col("problem").is_not_null()


def _cut_at(frame: pl.DataFrame, max_tokens: int | None) -> pl.DataFrame:
    if max_tokens is None or "output_tokens" not in frame.columns:
        return frame
    reason = pl.col("finish_reason") if "finish_reason" in frame.columns else pl.lit(None, pl.Utf8)
    at_limit = pl.when(pl.col("output_tokens") >= max_tokens).then(pl.lit("length"))
    return frame.with_columns(finish_reason=pl.coalesce(reason, at_limit))


def _is_prose(frame: pl.DataFrame) -> bool:
    """Whether nearly all answers are whole completions: each is its own, and none is an answer."""
    several = frame.filter(pl.col("key").is_not_null(), pl.len().over("problem") > 1)
    if several.height < _FEWEST_PROSE or several["prose"].mean() < _NEARLY:  # type: ignore[operator]
        return False
    return several.select("problem", "key").n_unique() >= _DIFFERENT * several.height


def _with_right(frame: pl.DataFrame, differing: set[int]) -> pl.DataFrame:
    """Return samples whose right answers are one class in each problem.

    A text is right, with all its samples, where more than half of its judged ones are. In problems
    of `differing` expected answers, such as letters of choices that each sample has in another
    order, a text says nothing of another sample, so that each right sample counts by itself.
    """
    right = pl.col("correct").fill_null(False)
    mostly = (pl.col("correct").mean().over("problem", "key") > 0.5).fill_null(False)
    alone = pl.col("key").is_null()
    if differing:
        alone |= pl.col("problem").is_in(sorted(differing))
    one = pl.when(alone).then(right).otherwise(mostly)
    return frame.with_columns(key=pl.when(one).then(pl.lit(_RIGHT, pl.UInt64)).otherwise("key"))


def _with_means(frame: pl.DataFrame) -> tuple[pl.DataFrame, str | None, int | None]:
    """Leave out log-probabilities that are no means; say why, and of which place the first is."""
    if "logprob_mean" not in frame.columns:
        return frame, None, None
    kept, means = with_means(frame)
    return kept, means.why, None if means.first is None else int(frame["place"][means.first])


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
    suspects = (
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
    for row in suspects.iter_rows(named=True):
        yield Suspect(
            text=named.get(row["key"]),
            samples=row["samples"],
            problems=row["problems"],
            place=row["place"],
        )


def _classes(frame: pl.DataFrame) -> pl.DataFrame:
    """Return each problem's classes of answers with `answer` (its number, or text) and votes.

    They are numbered in the order of their first sample; the text is that of the first. A problem
    has numbers where two classes would be named alike, as a right answer may have the text of a
    wrong one.
    """
    alike = pl.col("answer").is_duplicated().any().over("problem")
    return (
        frame.drop_nulls("key")
        .group_by("problem", "key")
        .agg(
            first=pl.col("sample_index").min(),
            votes=pl.len(),
            right=pl.col("correct").mean() > 0.5,
            judged=pl.col("correct").is_not_null().any(),
            text=pl.col("text").drop_nulls().first(),
        )
        .sort("problem", "first")
        .with_columns(number=pl.int_range(pl.len()).over("problem").cast(pl.Utf8))
        .with_columns(answer=pl.coalesce("text", "number"))
        .with_columns(answer=pl.when(alike).then("number").otherwise("answer"))
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
