"""What is asked: problems, their expected answers, and how an answer is read and checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.demo import task
from traces.errors import UsageError
from traces.manifest import WorkloadFacts

_MAX_LINE_BYTES = 4 << 20
_BOXED = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_THINK_END = "</think>"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question; `expected` is None where no answer is known."""

    problem_id: str
    prompt: str
    expected: str | None = None
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Problems with the rule that reads an answer out of a completion.

    `generated` says that ttscope made the problems itself, so that texts and token ids may be
    kept in a recording. `chat` applies the model's chat template to each prompt.
    """

    name: str
    problems: Sequence[Problem]
    answer_of: Callable[[str], str | None]
    seed: int | None = None
    generated: bool = False
    chat: bool = True

    def facts(self, template: str | None) -> WorkloadFacts:
        """Return what a recording says of it; the hash covers ids, prompts and answers."""
        digest = hashlib.sha256()
        for problem in self.problems:
            row = [problem.problem_id, problem.prompt, problem.expected]
            digest.update(json.dumps(row).encode())
        return WorkloadFacts(
            name=self.name,
            hash=digest.hexdigest()[:16],
            problems=len(self.problems),
            seed=self.seed,
            template_hash=template and hashlib.sha256(template.encode()).hexdigest()[:16],
        )


def is_correct(answer: str | None, expected: str | None) -> bool | None:
    """Return whether an answer equals the expected one exactly; None where none is known."""
    if expected is None:
        return None
    return answer is not None and answer == expected


def final_answer(text: str) -> str | None:
    r"""Return the answer in a reasoning model's completion, None when there is none.

    It is the last `\boxed{...}` after the last `</think>`, else the whole text after it. A text
    that opens `<think>` and never closes it has no answer.
    """
    _, closed, tail = text.rpartition(_THINK_END)
    if not closed and "<think>" in text:
        return None
    boxed = _BOXED.findall(tail)
    answer = boxed[-1] if boxed else tail
    return answer.strip() or None


def load_workload(
    source: str, *, problems: int | None = None, seed: int = 0, chat: bool = True
) -> Workload:
    """Load `demo`, `demo:preamble` or a JSONL file.

    A line of the file is {"id", "prompt", "answer"?, "group"?}. `problems` keeps the first so
    many; the demo makes 100 unless told otherwise. Raises UsageError naming the line at fault.
    """
    if problems is not None and problems < 1:
        raise UsageError(f"--problems must be at least 1, not {problems}")
    name, _, options = source.partition(":")
    if name == "demo":
        return _demo(options, problems or 100, seed)
    return _jsonl(Path(source), problems, chat)


def _demo(options: str, count: int, seed: int) -> Workload:
    if options not in ("", "preamble"):
        raise UsageError(
            f"--workload demo:{options}: no option {options!r}; use demo or demo:preamble"
        )
    made = task.problems(count, seed=seed, preamble=options == "preamble")
    return Workload(
        name="demo" + (f":{options}" if options else ""),
        problems=[
            Problem(
                problem_id=item.problem_id,
                prompt=item.prompt,
                expected=item.expected,
                group=f"level {item.level}",
            )
            for item in made
        ],
        answer_of=task.answer_of,
        seed=seed,
        generated=True,
    )


def _jsonl(path: Path, limit: int | None, chat: bool) -> Workload:
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                problem = _problem(line, f"{path}, line {number}")
                if problem.problem_id in seen:
                    raise UsageError(
                        f"{path}, line {number}: id {problem.problem_id!r} is also on line "
                        f"{seen[problem.problem_id]}; ids must differ"
                    )
                seen[problem.problem_id] = number
                problems.append(problem)
                if limit is not None and len(problems) == limit:
                    break
    except OSError as error:
        raise UsageError(
            f"--workload {path}: cannot be read ({error.strerror}); "
            'give demo, or a JSONL file of {"id", "prompt", "answer"}'
        ) from None
    if not problems:
        raise UsageError(f"--workload {path}: holds no problems")
    return Workload(name=path.name, problems=problems, answer_of=final_answer, chat=chat)


def _problem(line: bytes, where: str) -> Problem:
    if len(line) > _MAX_LINE_BYTES:
        raise UsageError(f"{where}: longer than {_MAX_LINE_BYTES >> 20} MiB")
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("prompt"), str):
        raise UsageError(f'{where}: needs "id" and a "prompt" text, and "answer" where known')
    answer, group = row.get("answer"), row.get("group")
    return Problem(
        problem_id=str(row["id"]),
        prompt=row["prompt"],
        expected=None if answer is None else str(answer).strip(),
        group=None if group is None else str(group),
    )
