"""lm-evaluation-harness: the samples_TASK_DATE.jsonl that `--log_samples` writes.

A line is a document under one filter: its responses (`resps`, as many as the task's `repeats`),
what the filter made of them (`filtered_resps`), and a value for each metric.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from traces.errors import OutcomesError, UsageError
from traces.foreign.evaluations.reader import (
    Choices,
    Outcome,
    OutcomeReader,
    judged,
    some,
)
from traces.foreign.source import objects
from traces.foreign.values import WHOLE, Skipped, finite, truth

_PREFERRED = ("exact_match", "acc", "math_verify", "pass@1")
_OWN_KEYS = {
    "doc_id",
    "doc",
    "target",
    "arguments",
    "resps",
    "filtered_resps",
    "filter",
    "metrics",
    "doc_hash",
    "prompt_hash",
    "target_hash",
}
_NAME = re.compile(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl(?:\.gz)?\Z")
_Found = tuple[str | None, bool | None]


def _argument(arguments: Any, place: int) -> Any:
    """Return the prompt (0) or the settings (1) of the first request, None where not known."""
    try:
        listed = isinstance(arguments, list)  # as versions before 0.4.3 wrote them
        return arguments[0][place] if listed else arguments["gen_args_0"][f"arg_{place}"]
    except (TypeError, KeyError, IndexError):
        return None


class LmEvalSamples(OutcomeReader):
    """Reads a samples file.

    The answers are those of one filter and judged by one metric, chosen as lm-eval names them:
    "metric", or "metric,filter".
    """

    name = "lm-evaluation-harness samples"

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        has_keys = b'"resps"' in head or b'"arguments"' in head
        cut = b"\n" not in head and b'"doc"' in head  # a first line that is longer
        return b'"doc_id"' in head and (has_keys or cut)

    def __init__(self, path: Path, choices: Choices) -> None:
        super().__init__(path, choices)
        match = _NAME.fullmatch(path.name)
        folder = path.resolve().parent.name
        self.facts.task = match[1] if match else None
        self.facts.folder = folder if "__" in folder else None
        self._metric, _, chosen = (choices.score or "").partition(",")
        self._filter: str | None = chosen or None
        self._others: dict[str, None] = {}
        self._metrics: dict[str, None] = {}
        self._documents = 0
        self._settings_read = False

    def __iter__(self) -> Iterator[Outcome]:
        for samples in self.skipped.kept(self._documents_of(), self._document, "documents"):
            yield from samples
        self._told()

    def _documents_of(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the documents of one filter, the first that kept all responses."""
        limit, notes = self._choices.limit_bytes, self.facts.notes
        for number, row in objects(self._path, limit, self.skipped, notes):
            name = str(row.get("filter") or "none")
            if self._filter is None:
                self._filter = name if _keeps_all(row) else self._keeping() or name
            if name == self._filter:
                yield number, row
            else:
                self._others[name] = None

    def _keeping(self) -> str | None:
        """Return the first filter of the file that kept all responses, None where none did."""
        rows = objects(self._path, self._choices.limit_bytes, Skipped(unit="line"), [])
        return next((str(row.get("filter") or "none") for _, row in rows if _keeps_all(row)), None)

    def _document(self, number: int, row: Mapping[str, Any]) -> list[Outcome]:
        """Return a document's samples. Raises ValueError with why there are none."""
        self._documents += 1
        document = WHOLE.sound(row, "doc_id")
        self._choose_metric(row)
        target = row.get("target")
        expected = None if target is None else str(target).strip()
        self._keep_arguments(row.get("arguments"))
        answers = self._answers(row, expected, number)
        asked = row.get("prompt_hash")
        name = row.get("doc_hash") or asked or expected or ""
        return [
            Outcome(
                problem_id=str(document),
                sample_index=index,
                place=number,
                identity=str(name).encode("utf-8", "replace"),
                prompt=asked.encode("utf-8", "replace") if isinstance(asked, str) else None,
                characters=_length(row, index),
                answer=answer,
                expected=expected,
                correct=correct,
            )
            for index, (answer, correct) in enumerate(answers)
        ]

    def _choose_metric(self, row: Mapping[str, Any]) -> None:
        """Settle the metric at the first document that has one. ValueError where this has none."""
        listed = row.get("metrics")
        names = listed if isinstance(listed, list) else [n for n in row if n not in _OWN_KEYS]
        here = [str(name) for name in names if str(name) in row]
        self._metrics |= dict.fromkeys(here)
        if not self._metric:
            judged = [name for name in here if _is_judgement(row[name])]
            judged.sort(key=lambda name: isinstance(row[name], list))  # of parts of an answer, too
            first = [name for name in _PREFERRED if name in judged]
            self._metric = next(iter([*first, *judged]), "")
        if self._choices.judge is not None:
            if (own := _mean(row.get(self._metric))) is not None:
                self.facts.own.append(own)
        elif not self._metric or self._metric not in row:
            raise ValueError(f"without {self._metric or 'a metric'}")

    def _answers(
        self, row: Mapping[str, Any], expected: str | None, number: int
    ) -> Sequence[_Found]:
        raw, kept = row.get("resps"), row.get("filtered_resps")
        texts = raw[0] if isinstance(raw, list) and raw and isinstance(raw[0], list) else []
        value = row.get(self._metric)
        if self._choices.judge is not None:
            if not texts or not all(isinstance(text, str) for text in texts):
                raise ValueError("without texts to judge")
            asked = _argument(row.get("arguments"), 0)
            prompt = asked if isinstance(asked, str) else ""
            return [
                judged(self._choices.judge, text, expected, prompt, self.skipped, number)
                for text in texts
            ]
        if not isinstance(kept, list) or not kept:
            raise ValueError("without filtered_resps")
        if all(_is_likelihood(each) for each in kept):
            return [(self._likeliest(kept), self._judged(value, number))]
        if isinstance(kept[0], list):
            return self._each(kept[0], value, expected, number)
        if len(kept) > 1:
            raise ValueError("of several requests")
        if len(texts) > 1:
            raise UsageError(
                f"{self._path}, line {number}: the filter {self._filter!r} made one answer of "
                f"{len(texts)} responses. Give --verifier numeric (exact, choice, math) to read "
                "each response"
            )
        answer = kept[0] if isinstance(kept[0], str) else None
        return [(_unless_invalid(answer), self._judged(value, number))]

    def _likeliest(self, kept: list[Any]) -> str | None:
        """Return the number of the choice by which `acc` judges; other metrics weigh otherwise."""
        if self._metric != "acc" or len(kept) < 2:
            return None
        chances = [float(each[0]) for each in kept]
        return str(chances.index(max(chances)))

    def _judged(self, value: Any, number: int) -> bool | None:
        right = truth(value)
        if right is None:
            self.skipped.add(f"values of {self._metric} that are neither 0 nor 1", number)
        return right

    def _each(
        self, kept: list[Any], value: Any, expected: str | None, number: int
    ) -> Sequence[_Found]:
        """Return several answers, each right or wrong where the metric tells it.

        lm-eval gives one number for all of them, as a rule their mean: it is explained where
        comparing each with the target gives the same number.
        """
        answers = [answer if isinstance(answer, str) else None for answer in kept]
        if isinstance(value, list) and len(value) == len(answers):
            judged = [truth(each) for each in value]
        else:
            judged = [answer is not None and answer.strip() == expected for answer in answers]
            mean = finite(value)
            if (all_alike := self._alike(mean)) is not None:
                judged = [all_alike] * len(answers)
            elif mean is None or abs(sum(map(bool, judged)) / len(judged or [0]) - mean) > 1e-6:
                judged = [None] * len(answers)
        if None in judged:
            self.skipped.add(
                f"documents whose {self._metric} is not there for each response", number
            )
        return [(_unless_invalid(a), right) for a, right in zip(answers, judged, strict=True)]

    def _alike(self, value: float | None) -> bool | None:
        """Return what all responses are where pass@k says so: none right at 0, all at pass@1 1."""
        if not self._metric.startswith("pass@") or value not in (0, 1):
            return None
        return None if value and self._metric != "pass@1" else bool(value)

    def _keep_arguments(self, arguments: Any) -> None:
        """Take the sampling settings from the first document that tells them."""
        settings = _argument(arguments, 1)
        if not isinstance(settings, dict) or not settings or self._settings_read:
            return
        self._settings_read = True
        temperature = finite(settings.get("temperature"))
        if settings.get("do_sample") is False:
            if temperature and self._choices.temperature is None:
                self.facts.notes.append(
                    f"do_sample false and temperature {temperature:g}: with vLLM lm-eval draws at "
                    "this temperature, with Transformers at 0. Say which with --temperature"
                )
            temperature = None if temperature else 0.0
        self.facts.draw(temperature, settings.get("top_p"), settings.get("max_gen_toks"))

    def _told(self) -> None:
        """Say what was chosen, once the file is read."""
        metric, _, chosen = (self._choices.score or "").partition(",")
        if chosen and not self._documents and self._others:
            raise self._no_such("filter", chosen, self._others)
        self.facts.own_metric = f"{self._metric},{self._filter}"
        if self._choices.judge is not None:
            return
        if metric and metric not in self._metrics and self._metrics:
            raise self._no_such("metric", metric, self._metrics)
        if not self._metric and self._metrics:
            raise OutcomesError(
                f"{self._path}: no metric of right or wrong ({some(self._metrics)}). Give "
                "--verifier to judge its responses"
            )
        if self._metric and self._documents:
            others = some(self._others)
            more = f" (other filters, left out: {others})" if others else ""
            self.facts.notes.append(f"judged by {self._metric},{self._filter}{more}")

    def _no_such(self, what: str, name: str, others: Mapping[str, None]) -> UsageError:
        return UsageError(
            f"--score: {self._path} has no {what} {name!r}. Choose one of {some(others)}"
        )


def _length(row: Mapping[str, Any], index: int) -> int | None:
    """Return how long a response is, None where there is no text of it."""
    try:
        text = row["resps"][0][index]
    except (TypeError, KeyError, IndexError):
        return None
    return len(text) if isinstance(text, str) else None


def _keeps_all(row: Mapping[str, Any]) -> bool:
    """Whether a document's filter kept every response, where there are several."""
    try:
        given, kept = len(row["resps"][0]), row["filtered_resps"]
        return given < 2 or (isinstance(kept[0], list) and len(kept[0]) == given)
    except (TypeError, KeyError, IndexError):
        return True  # of one request, as choices are


def _mean(value: Any) -> float | None:
    """Return a metric of a document as a share, of several judgements their mean."""
    parts = value if isinstance(value, list) and value else [value]
    numbers = [float(each) if isinstance(each, bool) else finite(each) for each in parts]
    known = [each for each in numbers if each is not None and 0 <= each <= 1]
    return sum(known) / len(known) if len(known) == len(parts) else None


def _is_judgement(value: Any) -> bool:
    number = finite(value)
    return isinstance(value, list | bool) or (number is not None and 0 <= number <= 1)


def _is_likelihood(value: Any) -> bool:
    """Tell a [log-probability, greedy] pair, whose parts lm-eval writes as texts."""
    if not isinstance(value, list) or len(value) != 2 or str(value[1]) not in ("True", "False"):
        return False
    try:
        float(value[0])
    except (TypeError, ValueError):
        return False
    return True


def _unless_invalid(answer: str | None) -> str | None:
    """Return the answer; lm-eval's filters write [invalid] where they found none."""
    return None if answer is None or answer.strip() in ("", "[invalid]") else answer.strip()
