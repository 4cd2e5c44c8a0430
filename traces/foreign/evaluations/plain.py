"""Plain outcomes: a line of JSON per sample.

    {"problem_id": "p1", "sample_index": 0, "output_tokens": 812, "answer": "42", "correct": true}

Needed are problem_id, sample_index and correct (null where it was not judged). May be there:
answer, expected, output_tokens, prompt_tokens, think_tokens, latency_s, logprob_mean, score (of a
reward model), scores (of each step), group, finish_reason, model, error (of a sample that failed,
which is no draw). Other names are not read, and a note names them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import msgspec

from traces.errors import OutcomesError, UsageError
from traces.foreign.evaluations.reader import (
    FAILED,
    Choices,
    Outcome,
    OutcomeReader,
    ended_by,
)
from traces.foreign.source import head_of, objects_in, text_lines
from traces.foreign.values import LARGEST, NUMBER, TEXT, WHOLE, Field, Skipped, finite, truth
from traces.plain_text import flag_word
from traces.recording.tables import MOST_TOKENS
from traces.schema.formats import counted, listed

_KEYS = re.compile(rb'"(?:sample_index|correct)"\s*:')
_SAMPLE = re.compile(rb'"sample_index"\s*:')
_TOKENS = ("output_tokens", "prompt_tokens", "think_tokens")

Lines = Iterable[tuple[int, bytes | None]]
_USUAL_BYTES = 1 << 16
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]
_LONGEST_S = 1e9  # in nanoseconds it is within 64 bits
Seconds = Annotated[float, msgspec.Meta(ge=0, le=_LONGEST_S)]
Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]


class _Line(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A line as nearly all are: each value of its type. Others are looked at one by one."""

    problem_id: str
    sample_index: Count
    correct: bool | None
    answer: str | None = None
    expected: str | None = None
    output_tokens: Tokens | None = None
    prompt_tokens: Tokens | None = None
    think_tokens: Tokens | None = None
    latency_s: Seconds | None = None
    logprob_mean: Number | None = None
    score: Number | None = None
    scores: list[Number] | None = None
    group: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    error: str | None = None


def _problem(value: Any) -> str | int | None:
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _seconds(value: Any) -> float | None:
    seconds = finite(value)
    return seconds if seconds is not None and 0 <= seconds <= _LONGEST_S else None


def _numbers(value: Any) -> list[float] | None:
    steps = [finite(each) for each in value] if isinstance(value, list) else []
    known = [each for each in steps if each is not None]
    return known if known and len(known) == len(steps) else None


STEP_SCORES: dict[str, Callable[[list[float]], float]] = {  # how they become one
    "last": lambda scores: scores[-1],
    "min": min,
    "mean": fmean,
    "prod": prod,
}
_READ = frozenset(_Line.__struct_fields__)
_NAMES = _READ - {"group", "model", "error"}
_NEEDED = {
    "problem_id": Field(_problem, "neither text nor whole number"),
    "sample_index": WHOLE,
    "correct": Field(truth, "neither true, false nor null"),
}
_OPTIONAL = {
    **dict.fromkeys(("answer", "expected"), TEXT),
    **dict.fromkeys(_TOKENS, WHOLE),
    "latency_s": Field(_seconds, "no time"),
    **dict.fromkeys(("logprob_mean", "score"), NUMBER),
    "scores": Field(_numbers, "no list of numbers"),
    **dict.fromkeys(("group", "finish_reason"), TEXT),
}
_MOST_UNREAD = 100  # names that are counted
_MISSPELT = 0.8  # how like a name is to one that is read, from which that one is meant
_TOKENS_OF = ("tokens", "num_tokens", "completion_tokens", "generated_tokens")  # of the output


class _OfModel(msgspec.Struct, gc=False):
    """What a line says of its model."""

    model: Any = None


class PlainOutcomes(OutcomeReader):
    """Reads plain outcomes, of several models the lines of the one chosen."""

    name = "outcomes JSONL"
    completions = False
    shape = "Plain outcomes are one JSON object a line (see docs/import.md)"

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        has_keys = _KEYS.search(head) is not None
        cut = b"\n" not in head and b'"ph"' not in head  # a first line that is longer
        return b'"problem_id"' in head and (has_keys or cut) and not_lines(head) is None

    def __init__(self, path: Path, choices: Choices) -> None:
        super().__init__(path, choices)
        self._limit = choices.limit_bytes
        self._prompt_column = choices.prompt_column
        self._chosen, self._only = choices.model, False
        self._unread = Skipped(unit="line")  # names that are not read
        self._step_scores, self._has_steps = choices.step_scores or "last", False

    def __iter__(self) -> Iterator[Outcome]:
        self._only = self._chosen is not None and self._is_one_of_several(self._chosen)
        self.facts.model = self._chosen if self._only else None
        lines = text_lines(self._path, self._limit, self.facts.notes)
        yield from self._of_rows(lines) if self._prompt_column else self._of_lines(lines)
        if self._unread.counts:
            self.facts.notes.append(self._not_read())
        if self._has_steps:
            self.facts.notes.append(
                f"scores of steps: the {self._step_scores} is the sample's score. --step-scores "
                f"chooses among {', '.join(STEP_SCORES)}"
            )

    def _is_one_of_several(self, model: str) -> bool:
        """Whether the file has lines of a model, and of others."""
        if b'"model"' not in head_of(self._path):
            return False
        decode, seen = msgspec.json.Decoder(_OfModel).decode, {model: False}
        for _, line in text_lines(self._path, self._limit, []):
            if line is None or b'"model"' not in line:
                continue
            try:
                name = decode(line).model
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if isinstance(name, str):
                seen[name] = True
                if len(seen) > 1 and seen[model]:
                    return True
        return False

    def _is_read(self, model: str | None, number: int) -> bool:
        """Whether a line is of the model that is read.

        Raises OutcomesError for the line of a second one where none is chosen.
        """
        if model == self.facts.model:
            return True
        if self._only:
            self.skipped.add("lines of other models" if model else "lines without model", number)
            return False
        if model is not None and self.facts.model is not None:
            one, other = self.facts.model, model
            raise OutcomesError(
                f"{self._path}: line {number:,} is of the model {other[:60]}, those before are of "
                f"{one[:60]}. Import each by itself: {flag_word('model', one)} takes the lines of "
                "that one alone"
            )
        self.facts.model = model or self.facts.model
        return True

    def _not_read(self) -> str:
        """Say which names the lines have that are not read, and what may be meant by them."""
        unread = []
        for name, count in sorted(self._unread.counts.items(), key=lambda item: -item[1]):
            meant = _meant(name)
            asked = "" if meant is None else f", is {meant} meant?"
            many = counted(count, "line")
            unread.append(
                f"{name[:40]} (in {many}, first: line {self._unread.first[name]:,}{asked})"
            )
        return (
            f"names that are not read: {listed(unread, 6)}. Rename what is meant. "
            "docs/import.md has the names that are read"
        )

    def _of_lines(self, lines: Lines) -> Iterator[Outcome]:
        """Yield the samples: of usual lines at once, which is twice as fast, of others by rows."""
        decode = msgspec.json.Decoder(_Line).decode
        for number, line in lines:
            try:
                each = decode(line) if line is not None and len(line) <= _USUAL_BYTES else None
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                each = None
            if each is None or each.error or each.scores == [] or _thinks_more(each):
                yield from self._of_rows([(number, line)])
            elif self._is_read(each.model, number):
                yield self._outcome(each, number)

    def _of_rows(self, lines: Lines) -> Iterator[Outcome]:
        asked, column_seen = self._prompt_column, False
        for number, row in objects_in(lines, self.skipped):
            for name in row:
                if name in _READ or name == asked:
                    continue
                if name in self._unread.counts or len(self._unread.counts) < _MOST_UNREAD:
                    self._unread.add(name, number)
            if row.get("error"):  # whatever it says of the answer
                row |= {"error": FAILED, "answer": None, "correct": None}
            if (reason := _fault(row)) is not None:
                self.skipped.add(f"lines {reason}", number)
            elif self._is_read(TEXT.optional(row, "model", self.skipped, number), number):
                if asked is not None:
                    column_seen = column_seen or asked in row
                    row["prompt_tokens"] = row.get(asked)
                yield self._outcome(self._mended(row, number), number)
        if asked is not None and not column_seen:
            raise UsageError(
                f"--prompt-tokens {asked}: no line of {self._path.name} has it. Give a number of "
                "tokens, or the name that has it in a line"
            )

    def _mended(self, row: dict[str, Any], number: int) -> _Line:
        """Return a line without the values that are wrong, which are counted."""
        line = _Line(
            problem_id=str(row["problem_id"]),
            sample_index=int(row["sample_index"]),
            correct=truth(row["correct"]),
            error=row.get("error") or None,
            **{
                name: each.optional(row, name, self.skipped, number)
                for name, each in _OPTIONAL.items()
            },
        )
        for name in _TOKENS:
            if (getattr(line, name) or 0) > MOST_TOKENS:
                setattr(line, name, None)
                self.skipped.add(f"values of {name} above {MOST_TOKENS:,}", number)
        if _thinks_more(line):
            line.think_tokens = None
            self.skipped.add("values of think_tokens that are above output_tokens", number)
        return line

    def _outcome(self, line: _Line, number: int) -> Outcome:
        return Outcome(
            problem_id=line.problem_id,
            sample_index=line.sample_index,
            place=number,
            answer=line.answer,
            expected=line.expected,
            correct=line.correct,
            prompt_tokens=line.prompt_tokens,
            output_tokens=line.output_tokens,
            think_tokens=line.think_tokens,
            latency_s=line.latency_s,
            logprob_mean=line.logprob_mean,
            score=self._score(line.score, line.scores),
            group=line.group,
            finish_reason=ended_by(line.finish_reason or ""),
            error=line.error or None,
        )

    def _score(self, score: float | None, steps: list[float] | None) -> float | None:
        """Return a sample's score, of its steps where it has none by itself."""
        if score is not None or not steps:
            return score
        self._has_steps = True
        return STEP_SCORES[self._step_scores](steps)


def _thinks_more(line: _Line) -> bool:
    """Whether a thought has more tokens than the output that it is part of."""
    thought, made = line.think_tokens, line.output_tokens
    return thought is not None and made is not None and thought > made


def _fault(row: dict[str, Any]) -> str | None:
    """Return why a line is no sample, None when it is one."""
    for name in _NEEDED:
        if name not in row:
            instead = next(
                (each for each in row if each not in _READ and _meant(each) == name), None
            )
            return f"without {name}" + ("" if instead is None else f", but with {instead}")
    for name, each in _NEEDED.items():
        if each.read(row[name]) is None and not (name == "correct" and row[name] is None):
            return f"whose {name} is {each.wrong}"
    return None


def _meant(name: str) -> str | None:
    """Return the name that is read for which another one may stand, None where none is like it."""
    if name.lower() in _TOKENS_OF:
        return "output_tokens"
    return next(iter(get_close_matches(name.lower(), sorted(_READ), 1, _MISSPELT)), None)


_MOST_COLUMNS = 8
_REQUESTS = "TIMESTAMP,ContextTokens,GeneratedTokens"
_LINES = PlainOutcomes.shape


def not_lines(head: bytes) -> str | None:
    """Return why a file that is meant as plain outcomes is none, by its first bytes."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return f"is UTF-16 text. Write it as UTF-8. {_LINES}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"[") and b'"ph"' not in head:
        return f"is a JSON array. {_LINES}"
    first = text.partition(b"\n")[0].decode("utf-8", "replace")
    cells = [cell.strip(' "\r').lower() for cell in re.split(r"[,;\t]", first)]
    if len(cells) > 1 and not text.startswith(b"{") and _NAMES & set(cells):
        return f"is a table with columns, such as CSV. Requests have {_REQUESTS} there. {_LINES}"
    if (columns := _columns(text)) is not None:
        return f"is a table with the columns {columns}. Requests have {_REQUESTS} there. {_LINES}"
    if text.startswith(b"{") and b'"problem_id"' not in text and _SAMPLE.search(text):
        return f"has no problem_id. {_LINES}"
    return _lacking(text)


def _columns(text: bytes) -> str | None:
    """Return the names of a table's columns: a line of words, and one of as many cells below."""
    lines = text.decode("utf-8", "replace").splitlines()[:2]
    names = [cell.strip(' "') for cell in lines[0].split(",")] if len(lines) > 1 else []
    named = len(names) > 1 and all(re.fullmatch(r"[^\W\d][\w .-]*", name) for name in names)
    if not named or lines[1].count(",") != len(names) - 1:
        return None
    return listed(names, _MOST_COLUMNS)


def _lacking(text: bytes) -> str | None:
    """Return which needed names JSON Lines lack that nothing else recognised, None for others."""
    first, _, rest = text.partition(b"\n")
    try:
        row = msgspec.json.decode(first)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(row, dict) or not (rest.lstrip().startswith(b"{") or row.keys() & _NAMES):
        return None
    lacking = [name for name in _NEEDED if name not in row]
    if "problem_id" not in lacking and len(lacking) < 2:  # so that the others are read and counted
        return None
    if len(lacking) == len(_NEEDED):
        return (
            f"has lines of JSON without {', '.join(lacking)}, so no samples, and without "
            "timestamp, input_length, output_length, so no requests (see docs/import.md)"
        )
    return f"has lines of JSON without {', '.join(lacking)}, so no samples. {_LINES}"
