"""What is asked: problems, their expected answers, and how an answer is read and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.demo import task
from profiler.engines.interface import Prompt
from profiler.workload.lengths import Lengths, read_lengths
from profiler.workload.verifiers import NAMES, ByText, Verifier, is_right, read_answer, verifier
from traces.errors import UsageError
from traces.foreign.evaluations.reader import took_too_long
from traces.recording.manifest import WorkloadFacts

_MAX_LINE_BYTES = 4 << 20
_ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question; `expected` is None where no answer is known.

    `prompt` is a text, or the messages of a chat. `verifier` reads and judges its answers, None
    for that of the workload. `output_tokens` are the lengths that its samples are made to have
    (profiler/workload/lengths.py), None for those that the model gives them.
    """

    problem_id: str
    prompt: Prompt
    expected: str | None = None
    group: str | None = None
    verifier: Verifier | None = None
    output_tokens: Lengths | None = None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Problems with the rule that reads and judges their answers.

    `generated` says that ttscope made the problems itself, so that texts and token ids may be
    kept in a recording. `chat` applies the model's chat template to each prompt.
    """

    name: str
    problems: Sequence[Problem]
    verifier: Verifier
    seed: int | None = None
    generated: bool = False
    chat: bool = True

    def answer_to(self, problem: Problem, text: str) -> str | None:
        """Return the class of the answer that a completion gives, None where it gives none.

        It is what votes count: the same text for every way to write the same answer. See
        `profiler.workload.verifiers`.
        """
        chosen = problem.verifier or self.verifier
        answer = read_answer(chosen, text, problem.prompt)
        return None if answer is None else chosen.canonical(answer)

    def is_correct(self, problem: Problem, answer: str | None) -> bool | None:
        """Return whether a class of answers is the expected one; None where none is known.

        None too where the verifier cannot read the expected answer in time, and where samples were
        given their length: the model did not end them.
        """
        if problem.output_tokens is not None:
            return None
        return is_right(problem.verifier or self.verifier, answer, problem.expected)

    def facts(self, template: str | None) -> WorkloadFacts:
        """Return what a recording says of it.

        The hash covers ids, prompts, answers, how these are judged where not exactly, and lengths
        where they are given.
        """
        digest = hashlib.sha256()
        for problem in self.problems:
            row: list[Any] = [problem.problem_id, problem.prompt, problem.expected]
            judged = (problem.verifier or self.verifier).name
            row += [] if judged in _PLAIN else [judged]
            row += [] if problem.output_tokens is None else [{"tokens": problem.output_tokens}]
            digest.update(json.dumps(row).encode())
        used = {(problem.verifier or self.verifier).name for problem in self.problems}
        return WorkloadFacts(
            name=self.name,
            hash=digest.hexdigest()[:16],
            problems=len(self.problems),
            seed=self.seed,
            template_hash=template and hashlib.sha256(template.encode()).hexdigest()[:16],
            verifier=None if self.generated else "+".join(sorted(used)),
        )

    def given_lengths(self) -> list[tuple[str, Lengths]]:
        """Return the lengths that the workload gives, by problem id."""
        return [
            (problem.problem_id, problem.output_tokens)
            for problem in self.problems
            if problem.output_tokens is not None
        ]

    def notes(self) -> list[str]:
        """Return what a reader of the results must know: lengths, and how answers were judged."""
        used = {id(v): v for p in self.problems if (v := p.verifier or self.verifier)}
        late = sum(each.too_long for each in used.values())
        seconds = sum(each.seconds for each in used.values())
        fixed = len(self.given_lengths())
        told = []
        if fixed:
            told.append(
                f"the workload gave the output lengths of {fixed:,} of {len(self.problems):,} "
                "problems: the model did not end their samples, so they are not judged"
            )
        if late:
            told.append(took_too_long(late))
        if seconds:
            told.append(f"checking answers took {seconds:.1f} s, in which the policy waited")
        return told


_PLAIN = ("exact", "demo")


def load_workload(
    source: str,
    *,
    problems: int | None = None,
    seed: int = 0,
    chat: bool = True,
    verifier: str | None = None,
    system_prompt: str | None = None,
) -> Workload:
    """Load `demo`, `demo:preamble` or a JSONL file.

    A line of the file is {"id", "prompt" or "messages", "answer"?, "group"?, "verifier"?,
    "output_tokens"?}. `problems` keeps the first so many; the demo makes 100 unless told otherwise.
    `verifier` judges lines that name none, exactly unless told otherwise; `system_prompt` goes
    before every chat. Raises UsageError naming the line at fault.
    """
    if problems is not None and problems < 1:
        raise UsageError(f"--problems must be at least 1, not {problems}")
    if system_prompt is not None and not chat:
        raise UsageError("--system-prompt needs a chat template. Leave out --raw-prompts")
    name, _, options = source.partition(":")
    if name == "demo":
        for option, value in (("--verifier", verifier), ("--system-prompt", system_prompt)):
            if value is not None:
                raise UsageError(f"{option} is for JSONL workloads. The demo brings its own")
        return _demo(options, problems or 100, seed)
    return _jsonl(Path(source), problems, _Lines(chat, verifier or "exact", system_prompt))


def _demo(options: str, count: int, seed: int) -> Workload:
    if options not in ("", "preamble"):
        raise UsageError(
            f"--workload demo:{options}: no option {options!r}. Use demo or demo:preamble"
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
        verifier=verifier_of("demo"),
        seed=seed,
        generated=True,
    )


def verifier_of(name: str) -> Verifier:
    """Return the verifier of a name, the demo's included (see `verifier`)."""
    if name == "demo":
        return ByText(answer_of=task.answer_of, name="demo")
    return verifier(name)


class _Lines:
    """How the lines of a file become problems; each verifier is made once, when it is named."""

    def __init__(self, chat: bool, verifier_name: str, system_prompt: str | None) -> None:
        self.chat = chat
        self.system = system_prompt
        self._made: dict[str, Verifier] = {}
        self.default = self.judge(verifier_name, "--verifier")

    def judge(self, name: Any, where: str) -> Verifier:
        if name not in NAMES:
            raise UsageError(f"{where}: no verifier {name!r}. Choose one of {', '.join(NAMES)}")
        if name not in self._made:
            self._made[name] = verifier(name)
        return self._made[name]

    def problem(self, line: bytes, where: str) -> Problem:
        """Read one line. Raises UsageError that begins with `where`."""
        if len(line) > _MAX_LINE_BYTES:
            raise UsageError(f"{where}: longer than {_MAX_LINE_BYTES >> 20} MiB")
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get("id"), str | int):
            raise UsageError(f'{where}: needs "id" and a "prompt" text or "messages"')
        answer, group, judged = row.get("answer"), row.get("group"), row.get("verifier")
        if isinstance(answer, dict | list):
            raise UsageError(f'{where}: "answer" must be a text or a number')
        return Problem(
            problem_id=str(row["id"]),
            prompt=self._prompt(row, where),
            expected=None if answer is None else str(answer).strip(),
            group=None if group is None else str(group),
            verifier=None if judged is None else self.judge(judged, where),
            output_tokens=read_lengths(row.get("output_tokens"), where),
        )

    def _prompt(self, row: Mapping[str, Any], where: str) -> Prompt:
        text, messages = row.get("prompt"), row.get("messages")
        if (text is None) == (messages is None) or not isinstance(text, str | None):
            raise UsageError(
                f'{where}: needs either a "prompt" text or "messages", and "answer" where known'
            )
        if messages is None:
            assert text is not None
            if self.system is None:
                return text
            return ({"role": "system", "content": self.system}, {"role": "user", "content": text})
        if not self.chat:
            raise UsageError(f'{where}: "messages" need a chat template. Leave out --raw-prompts')
        chat = _messages(messages, where)
        if self.system is None or chat[0]["role"] == "system":
            return chat
        return ({"role": "system", "content": self.system}, *chat)


def _messages(messages: Any, where: str) -> tuple[Mapping[str, str], ...]:
    shape = '"messages" must be a list of {"role", "content"} texts'
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{where}: {shape}")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise UsageError(f"{where}: {shape}")
        if message.get("role") not in _ROLES:
            raise UsageError(f"{where}: a message's role is one of {', '.join(_ROLES)}")
    return tuple({"role": each["role"], "content": each["content"]} for each in messages)


def _jsonl(path: Path, limit: int | None, lines: _Lines) -> Workload:
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            lines_of_it = iter(lambda: file.readline(_MAX_LINE_BYTES + 1), b"")
            for number, line in enumerate(lines_of_it, 1):
                if not line.strip():
                    continue
                problem = lines.problem(line, f"{path}, line {number}")
                if problem.problem_id in seen:
                    raise UsageError(
                        f"{path}, line {number}: id {problem.problem_id!r} is also on line "
                        f"{seen[problem.problem_id]}. Ids must differ"
                    )
                seen[problem.problem_id] = number
                problems.append(problem)
                if limit is not None and len(problems) == limit:
                    break
    except OSError as error:
        raise UsageError(
            f"--workload {path}: cannot be read ({error.strerror}). "
            'Give demo, or a JSONL file of {"id", "prompt", "answer"}'
        ) from None
    if not problems:
        raise UsageError(f"--workload {path}: holds no problems")
    return Workload(name=path.name, problems=problems, verifier=lines.default, chat=lines.chat)
