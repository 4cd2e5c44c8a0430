"""What every reader of outcomes gives: samples with their answers, and what it had to leave out.

A format is a class. Each must pass the tests of tests/traces/foreign.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec

from traces.foreign.source import Reader
from traces.foreign.values import LIMIT_BYTES, UNKNOWN_MODEL, Skipped, finite, whole_number
from traces.schema.engine import ModelFacts
from traces.schema.formats import listed

FAILED: Final = "the sample failed"


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One sample of one problem; what a file does not tell is None.

    `answer` is a text that is the same for the same answer, `identity` any bytes that tell one
    problem from another of the same name (its prompt); neither is kept unless text is recorded.
    `prompt` are bytes that are the same for what a model is asked in the same words and by the same
    task. `uuid` names one sample wherever it is written again. `characters` is how long the
    completion is. `score` is what a reward model gave it, the higher the better. `place` is where
    the sample stands: the number of its line or entry. `whole` says that the answer is the whole
    completion, and no short one. With an `error` the sample failed, and is no draw.
    """

    problem_id: str
    sample_index: int
    place: int
    identity: bytes | None = None
    prompt: bytes | None = None
    uuid: str | None = None
    characters: int | None = None
    group: str | None = None
    answer: str | None = None
    expected: str | None = None
    correct: bool | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    think_tokens: int | None = None
    latency_s: float | None = None
    logprob_mean: float | None = None
    score: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    whole: bool = False


@dataclass(kw_only=True)
class FileFacts:
    """What a file says of the whole evaluation; `notes` is what a reader of results must know.

    `folder` is the one that lm-eval names after the model. Where a verifier judges, `own` has what
    the file says itself of each sample or document, from 0 to 1, by the metric `own_metric`.
    """

    task: str | None = None
    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    effort: str | None = None
    folder: str | None = None
    own_metric: str | None = None
    own: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def draw(self, temperature: Any, top_p: Any, max_tokens: Any) -> None:
        """Keep how samples were drawn, as far as it can be so."""
        heat, share = finite(temperature), finite(top_p)
        if heat is not None and heat >= 0:
            self.temperature = heat
        if share is not None and 0 < share <= 1:
            self.top_p = share
        self.max_tokens = whole_number(max_tokens) or self.max_tokens


Judge = Callable[[str, str | None, str], tuple[str | None, bool | None]]


def judged(
    judge: Judge, text: str, expected: str | None, prompt: str, skipped: Skipped, place: int
) -> tuple[str | None, bool | None]:
    """Return the verifier's verdict, and count what it cannot judge. The prompt may be JSON."""
    answer, right = judge(text, expected, prompt)
    if right is None and expected is not None:
        skipped.add("samples whose expected answer the verifier cannot read, unjudged", place)
    return answer, right


_CUT = {"max_tokens", "model_length", "max_output_tokens", "max_new_tokens", "max_length"}


_UNTOLD = {"", "unknown", "none", "null"}


def ended_by(reason: str) -> str | None:
    """Return why a sample ended in vLLM's words (`length`: cut), None where nothing is told."""
    word = reason.strip().lower()
    if word in _UNTOLD:
        return None
    return "length" if word in _CUT | {"length"} else reason[:40]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user chose: `score` names a metric, filter or scorer, None the file's first.

    `judge` reads a completion itself, given the expected answer and the prompt, and returns the
    class of its answer and whether it is right (`verifier` names it); None takes the file's own
    answers and scores. `too_long` counts the answers that it gave up to check. `prompt_column` has
    the tokens of a prompt in plain outcomes, None for `prompt_tokens`. `same_problems` says whether
    several files are of the same problems, None to find out. `model` is whose lines are read of a
    file of plain outcomes that has several. With `temperature` no file need tell it. `step_scores`
    is how the scores of a sample's steps become one, None for the last.
    """

    score: str | None = None
    judge: Judge | None = None
    verifier: str | None = None
    too_long: Callable[[], int] = lambda: 0
    prompt_column: str | None = None
    same_problems: bool | None = None
    model: str | None = None
    temperature: float | None = None
    step_scores: str | None = None
    limit_bytes: int = LIMIT_BYTES


def took_too_long(answers: int) -> str:
    """Return the note on answers that a verifier gave up to check."""
    return (
        f"answers that took too long to check: {answers:,}. They count as wrong, and where the "
        "expected answer did, samples are unjudged"
    )


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user says where files do not. `no_answer` are answers that stand for none."""

    model: str | None = None
    facts: ModelFacts | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    prompt_tokens: int | None = None
    no_answer: tuple[str, ...] = ()

    def model_name(self, told: str | None = None) -> str:
        """Return the model's name as it is given, as files have it, or as its config has it."""
        of_config = None if self.facts is None else self.facts.name
        return self.model or told or of_config or UNKNOWN_MODEL

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if v not in (None, ()) and k != "facts"}


class OutcomeReader(Reader[Choices]):
    """Samples; `facts` are whole once they are read.

    `completions` says whether the format holds the texts that a verifier reads answers from,
    `shape` in a sentence how a file of it must look.
    """

    completions: ClassVar[bool] = True
    shape: ClassVar[str] = ""

    def __init__(self, path: Path, choices: Choices) -> None:
        super().__init__(path, choices)
        self.facts = FileFacts()

    @abstractmethod
    def __iter__(self) -> Iterator[Outcome]:
        """Yield the samples in the file's order."""


def some(names: Iterable[str]) -> str:
    """Return names of a file in a line, however many and long they are."""
    return listed([name if len(name) <= 60 else f"{name[:59]}…" for name in names], 12)
