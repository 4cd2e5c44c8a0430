"""inspect_ai: evaluation logs, the zip file `.eval` and the document `.json`.

A sample of the log is one epoch of one question; the epochs of a question are its samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import msgspec

from traces.errors import OutcomesError, UsageError
from traces.files import LINE_VALUES
from traces.foreign.evaluations.reader import (
    FAILED,
    Choices,
    Outcome,
    OutcomeReader,
    ended_by,
    judged,
    some,
)
from traces.foreign.source import ENTRY_BYTES, ArrayStream, ZipSource, decode, decode_read
from traces.foreign.values import truth, whole_number

_JSON = re.compile(rb'\A\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:')
_RIGHT, _WRONG = ("C", "CORRECT"), ("I", "INCORRECT", "N")  # N: no answer was given
_SAMPLE = "samples/"
_CHUNK = re.compile(r"_epoch_\d+/(?!sample\.json\Z)")  # events and messages of a sample in parts
_LONG = 40  # characters of more than a few words
_PROVIDER = re.compile(r"\A(?:vllm|hf|sglang|openai-api/[^/]+)/(?=.)")  # which serves any model


class _Usage(msgspec.Struct):
    input_tokens: Any = None
    input_tokens_cache_read: Any = None
    input_tokens_cache_write: Any = None
    output_tokens: Any = None
    total_tokens: Any = None
    reasoning_tokens: Any = None


class _Output(msgspec.Struct):
    choices: Any = None
    usage: _Usage | None = None


class _Sample(msgspec.Struct):
    id: Any = None
    epoch: Any = None
    uuid: Any = None
    input: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    choices: Any = None
    target: Any = None
    scores: Any = None
    score: Any = None  # the only one, of a log of version 1
    output: _Output | None = None
    model_usage: dict[str, _Usage] | None = None
    error: Any = None


class _Dataset(msgspec.Struct):
    sample_ids: Any = None


class _Config(msgspec.Struct):
    temperature: Any = None
    top_p: Any = None
    max_tokens: Any = None
    reasoning_effort: Any = None


class _Evaluation(msgspec.Struct):
    task: Any = None
    model: Any = None
    dataset: _Dataset | None = None
    scorers: Any = None
    model_generate_config: _Config | None = None


class _Plan(msgspec.Struct):
    config: _Config | None = None


class _Header(msgspec.Struct):
    status: Any = None
    eval: _Evaluation | None = None
    plan: _Plan | None = None


class InspectLog(OutcomeReader):
    """Reads a log. The `score` chosen is a scorer's name."""

    name = "inspect_ai log"
    unit = "sample"

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        return head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or _JSON.match(head) is not None

    def __init__(self, path: Path, choices: Choices) -> None:
        super().__init__(path, choices)
        self._scorer = choices.score
        self._others: dict[str, None] = {}
        self._scored = False
        self._ids: Any = None
        self._called: str | None = None  # the model, with the name of what served it
        self._graded = False  # by a model, which is the evaluated one where no other is named

    def __iter__(self) -> Iterator[Outcome]:
        with self._path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        seen: set[str] = set()
        raws = self._zipped() if zipped else self._document()
        for outcome in self.skipped.kept(raws, self._outcome, "samples"):
            seen.add(outcome.problem_id)
            yield outcome
        self._told(seen)

    def _zipped(self) -> Iterator[tuple[int, bytes]]:
        source = ZipSource(self._path, self._choices.limit_bytes)
        try:
            names = source.names
            head = next((n for n in ("header.json", "_journal/start.json") if n in names), None)
            if head is None:
                raise OutcomesError(
                    f"{self._path}: a zip file, but no inspect_ai log: it has no header.json"
                )
            try:
                self._keep_header(decode(source.read(head), _Header))
            except ValueError:
                self.facts.notes.append(f"its {head} cannot be read")
            entries = [n for n in names if n.startswith(_SAMPLE) and n.endswith(".json")]
            inside = [n for n in entries if _CHUNK.search(n) is None]
            for number, name in enumerate(inside, 1):
                try:
                    raw = source.read(name)
                except ValueError as error:
                    self.skipped.add(str(error), number)
                    continue
                yield number, raw
        finally:
            source.close()

    def _document(self) -> Iterator[tuple[int, bytes]]:
        stream = ArrayStream(self._path, self._choices.limit_bytes, b"samples")
        number = 0
        for number, raw in enumerate(stream, 1):
            if number == 1:  # what says how the samples are to be read stands before them
                self._keep_header(self._decoded(bytes(stream.outside) + b"]}", stream))
            if raw is None:
                self.skipped.add(f"samples of more than {ENTRY_BYTES >> 20} MiB", number)
            else:
                yield number, raw
        header = self._decoded(bytes(stream.outside), stream)
        if not number:
            self._keep_header(header)

    def _decoded(self, text: bytes, stream: ArrayStream) -> _Header:
        """Return the log without its samples. Raises OutcomesError where it is cut or no JSON."""
        try:
            if stream.cut is not None:
                raise ValueError(stream.cut)
            return decode(text, _Header)
        except ValueError as error:
            raise OutcomesError(
                f"{self._path}: an inspect_ai log that cannot be read ({error}). Export it again, "
                "or give the .eval file"
            ) from None

    def _keep_header(self, header: _Header) -> None:
        if isinstance(header.status, str) and header.status != "success":
            self.facts.notes.append(f"the evaluation's status is {header.status[:20]!r}")
        evaluation = header.eval or _Evaluation()
        self.facts.task = evaluation.task if isinstance(evaluation.task, str) else None
        self._called = evaluation.model if isinstance(evaluation.model, str) else None
        self.facts.model = self._called and _PROVIDER.sub("", self._called, count=1)
        self._graded = b"model_graded" in msgspec.json.encode(evaluation.scorers)
        self._ids = evaluation.dataset.sample_ids if evaluation.dataset is not None else None
        plan = header.plan.config if header.plan is not None else None
        for config in (evaluation.model_generate_config, plan):  # the plan's settings win
            if config is None:
                continue
            self.facts.draw(config.temperature, config.top_p, config.max_tokens)
            if isinstance(config.reasoning_effort, str):
                self.facts.effort = config.reasoning_effort[:40]

    def _outcome(self, number: int, raw: bytes) -> Outcome:
        """Return a sample. Raises ValueError with why it is none."""
        try:
            sample = decode_read(raw, _Sample, LINE_VALUES)
        except ValueError as error:
            many = str(error).startswith("more than")
            why = f"of {error}" if many else "that are not as inspect_ai writes them"
            raise ValueError(why) from None
        name, epoch = sample.id, whole_number(sample.epoch)
        if isinstance(name, bool) or not isinstance(name, str | int) or not epoch:
            raise ValueError("without id or epoch")
        target = sample.target
        expected = target if isinstance(target, str) else None
        if isinstance(target, list) and len(target) == 1 and isinstance(target[0], str):
            expected = target[0]
        answer, correct = self._judged(sample, expected, number)
        failed = sample.error is not None
        usage = self._usage(sample, number)
        made, thought = whole_number(usage.output_tokens), whole_number(usage.reasoning_tokens)
        if thought is not None and made is not None and thought > made:
            thought = None
            self.skipped.add("values of reasoning_tokens that are above output_tokens", number)
        identity = _asked(sample.input) + msgspec.json.encode(target)
        of_task = msgspec.json.encode([self.facts.task, sample.choices])
        return Outcome(
            problem_id=str(name),
            sample_index=epoch - 1,
            place=number,
            identity=identity,
            prompt=of_task + identity,
            uuid=sample.uuid if isinstance(sample.uuid, str) else None,
            answer=None if failed else answer,
            expected=expected,
            correct=None if failed else correct,
            prompt_tokens=_prompt_tokens(usage),
            output_tokens=made,
            think_tokens=thought,
            finish_reason=_finish_reason(sample.output),
            error=FAILED if failed else None,
            whole=self._choices.judge is None and _is_whole(answer, sample.output),
        )

    def _usage(self, sample: _Sample, number: int) -> _Usage:
        """Return the tokens of the evaluated model over the calls that made the answer.

        The log counts by models, so that a grader which is the same model is in the count. It is
        not in that of the output, which is the whole answer where it is the only message.
        """
        calls = sample.model_usage or {}
        only = next(iter(calls.values())) if len(calls) == 1 else None
        every = calls.get(self._called or "", only)
        last = sample.output.usage if sample.output is not None else None
        made = None if last is None else whole_number(last.output_tokens)
        if every is None or last is None or made in (None, every.output_tokens):
            return every or last or _Usage()
        if _said(sample.messages) - _said(sample.input) == 1:
            self.skipped.add("uses of the model beside the answer, such as for grading", number)
            return last
        if self._graded and only is not None:
            self.skipped.add("counts of tokens that hold a grader's too", number)
            return _Usage()
        return every

    def _judged(
        self, sample: _Sample, expected: str | None, number: int
    ) -> tuple[str | None, bool | None]:
        if self._choices.judge is not None:
            text = _completion(sample.output)
            if text is None:
                self.skipped.add("samples without a completion to judge", number)
                return None, None
            prompt = bytes(sample.input).decode("utf-8", "replace")
            if isinstance(sample.choices, list):  # a solver lists them behind the input
                prompt += "".join(
                    f"\n{letter})" for letter in ascii_uppercase[: len(sample.choices)]
                )
            self._keep_own(sample)
            return judged(self._choices.judge, text, expected, prompt, self.skipped, number)
        scores = {"score": sample.score} if sample.scores is None else sample.scores
        if scores == {"score": None} or not isinstance(scores, dict) or not scores:
            if sample.error is None:
                self.skipped.add("samples without a score, left unjudged", number)
            return None, None
        if self._scorer is None:
            self._scorer = str(next(iter(scores)))
        self._others |= dict.fromkeys(str(each) for each in scores if each != self._scorer)
        score = scores.get(self._scorer)
        if not isinstance(score, dict):
            self.skipped.add(f"samples without a score of {self._scorer}, left unjudged", number)
            return None, None
        self._scored = True
        answer = score.get("answer")
        right = _right(score.get("value"))
        if right is None:
            self.skipped.add("scores that are neither right nor wrong, left unjudged", number)
        return (answer.strip() or None) if isinstance(answer, str) else None, right

    def _keep_own(self, sample: _Sample) -> None:
        """Keep what the log's first scorer says of a sample that a verifier judges."""
        scores = {"score": sample.score} if sample.scores is None else sample.scores
        if not isinstance(scores, dict) or not scores:
            return
        self._scorer = self._scorer or str(next(iter(scores)))
        score = scores.get(self._scorer)
        right = _right(score.get("value")) if isinstance(score, dict) else None
        if right is not None:
            self.facts.own.append(float(right))
            self.facts.own_metric = self._scorer

    def _told(self, seen: set[str]) -> None:
        """Say what was chosen and what is missing, once the file is read."""
        if self._choices.score is not None and self._others and not self._scored:
            raise UsageError(
                f"--score {self._choices.score}: {self._path} has no such scorer. Choose one of "
                f"{some(self._others)}"
            )
        if self._scorer is not None and self._choices.judge is None:
            others = some(self._others)
            more = f" (other scorers, left out: {others})" if others else ""
            self.facts.notes.append(f"judged by {self._scorer}{more}")
        if isinstance(self._ids, list):
            absent = len({str(each) for each in self._ids} - seen)
            if absent:
                self.facts.notes.append(f"problems without any sample: {absent:,}")


def _asked(raw: msgspec.Raw) -> bytes:
    """Return what was asked: of chat messages who says what, as each log gives them other ids."""
    text = bytes(raw)
    if not text.startswith(b"["):
        return text
    try:
        messages = decode(text, list[Any], LINE_VALUES)
    except ValueError:  # more values than one would read
        return text
    said = [
        [each.get("role"), each.get("content")] if isinstance(each, dict) else each
        for each in messages
    ]
    return msgspec.json.encode(said, order="sorted")


def _said(raw: msgspec.Raw) -> int:
    """Return how many of the messages a model said; 0 of a text."""
    try:
        messages = decode(bytes(raw), list[Any], LINE_VALUES)
    except ValueError:
        return 0
    return sum(isinstance(each, dict) and each.get("role") == "assistant" for each in messages)


def _prompt_tokens(usage: _Usage) -> int | None:
    """Return the tokens of the prompt, cached ones too.

    inspect_ai writes `input_tokens` without them. Before, they were in it, and the total shows it.
    """
    tokens = whole_number(usage.input_tokens)
    cached = sum(
        whole_number(each) or 0
        for each in (usage.input_tokens_cache_read, usage.input_tokens_cache_write)
    )
    if tokens is None or not cached:
        return tokens
    total, made = whole_number(usage.total_tokens), whole_number(usage.output_tokens)
    if total is None or made is None:
        return None
    return tokens if cached <= tokens and tokens + made == total else tokens + cached


def _right(value: Any) -> bool | None:
    if isinstance(value, str):
        word = value.strip().upper()
        return True if word in _RIGHT else False if word in _WRONG else None
    return truth(value)


def _completion(output: _Output | None) -> str | None:
    choice = _first_choice(output)
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else None


def _is_whole(answer: str | None, output: _Output | None) -> bool:
    """Whether an answer is the completion itself, and that is more than a few words."""
    if answer is None or len(answer) < _LONG:
        return False
    text = _completion(output)
    return text is not None and text.strip().lower() == answer.strip().lower()


def _finish_reason(output: _Output | None) -> str | None:
    reason = _first_choice(output).get("stop_reason")
    if not isinstance(reason, str):
        return None
    return ended_by(reason)


def _first_choice(output: _Output | None) -> dict[str, Any]:
    choices = output.choices if output is not None else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}
