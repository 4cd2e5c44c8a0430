"""From outcomes that others measured to a recording of problems and samples.

There are no steps, no times and no engine but its model: such a recording is good for accuracy
against tokens, and for times where a prior of GPUs or operator tables have them. Everything else in
it is null. `answer` of a problem is the vote of all its
samples, a tie going to the answer whose first sample has the lowest number. Right answers are one
class, as they all equal the expected one; wrong ones are one where their texts are.

Several files are samples of the same problems where names, prompts and expected answers are the
same, as of seeds, and no setting differs. Else the names of a file's problems have its task's name
before them, or its own.
"""

from __future__ import annotations

import filecmp
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from traces.errors import OutcomesError, UsageError
from traces.foreign.evaluations.alike import unlike
from traces.foreign.evaluations.inspect_log import InspectLog
from traces.foreign.evaluations.lm_eval import LmEvalSamples
from traces.foreign.evaluations.plain import PlainOutcomes
from traces.foreign.evaluations.reader import (
    Choices,
    FileFacts,
    Given,
    OutcomeReader,
    took_too_long,
)
from traces.foreign.evaluations.table import Counted, Joined, OutcomeTable, Suspect
from traces.foreign.source import format_of, own_name
from traces.foreign.values import Skipped
from traces.foreign.written import Imported, written_into
from traces.plain_text import flag_word
from traces.recording.manifest import WorkloadFacts, check_free, identities_text
from traces.schema.engine import EngineConfig
from traces.schema.formats import counted, listed
from traces.schema.tts.policy import Policy
from traces.summary.problems import MOST_UNTOLD

FORMATS: tuple[type[OutcomeReader], ...] = (LmEvalSamples, InspectLog, PlainOutcomes)
_SLICE_ROWS = 200_000


@dataclass(frozen=True, kw_only=True)
class ImportedFile:
    """One file that was read: how many samples it gave, what was left out, what it says."""

    path: Path
    samples: int
    skipped: Skipped
    facts: FileFacts

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "skipped": self.skipped.counts,
            "notes": self.facts.notes,
        }

    def remarks(self) -> list[str]:
        """Return what a reader of the results must know of it."""
        notes = list(self.facts.notes)
        if self.skipped.counts:
            notes.append(f"skipped: {self.skipped.text()}")
        return [f"{self.path.name}: {each}" for each in notes]


def import_outcomes(
    paths: Sequence[Path],
    folder: Path,
    *,
    choices: Choices | None = None,
    given: Given | None = None,
    record_text: bool = False,
    on_file: Callable[[Path], None] | None = None,
) -> Imported:
    """Read files of one format into the recording `folder`; return what was found.

    With several files `choices` says whether they are of the same problems. Answers are kept as
    class numbers unless `record_text`; `given` says what the files do not. Raises OutcomesError for
    a file of which nothing can be read, UsageError for files that do not belong together or that
    contradict what is given, RecordingError when the folder cannot be written.
    """
    check_free(folder)
    chosen = _same_format(paths)
    choices, given = choices or Choices(), given or Given()
    choices = replace(choices, model=given.model, temperature=given.temperature)
    _check_choices(choices, chosen)
    table = OutcomeTable(
        keep_text=record_text,
        prompt_tokens=given.prompt_tokens,
        no_answer=frozenset(each.strip() for each in given.no_answer),
    )
    _check_copies(paths)
    files: list[ImportedFile] = []
    for at, path in enumerate(paths):
        if on_file is not None:
            on_file(path)
        reader = chosen(path, choices)
        count = 0
        for outcome in reader:
            table.add(outcome, file=at)
            count += 1
        if not count:
            why = reader.skipped.text()
            what = chosen.shape or f"See docs/import.md for what {chosen.name} must hold"
            raise OutcomesError(
                f"{path}: no sample in it can be read ({why or 'it has none'}). {what}"
            )
        files.append(
            ImportedFile(path=path, samples=count, skipped=reader.skipped, facts=reader.facts)
        )
    joined, joining_notes = _joined(table, files, choices.same_problems)
    limit = _one(files, "max_tokens", given.max_tokens) or None
    outcomes = table.count(joined, limit)
    _check_copied(outcomes, files)
    _check_longest(outcomes, given)
    differing = list(unlike(outcomes.samples, outcomes.most))
    head, *rest = _notes(chosen, files, outcomes, given)
    by = f"answers read and judged by the verifier {choices.verifier}"
    judging = [] if choices.judge is None else [by]
    notes = [head, *differing, *judging, *_against(outcomes, files, choices), *joining_notes, *rest]
    if limit is None and (note := _at_one_length(outcomes)) is not None:
        notes.append(note)
    if late := choices.too_long():
        notes.append(took_too_long(late))
    policy = _policy(files, given, outcomes.most)
    engine = EngineConfig(model=_model(files, given), mode="server")
    keys = {"engine": engine.key(), "policy": policy.key()}
    with written_into(folder, private=record_text) as tables:
        tables.add_whole("problems", outcomes.problems, _SLICE_ROWS, **keys)
        tables.add_whole("samples", outcomes.samples, _SLICE_ROWS, role="sample", **keys)
        tables.finish_one(
            {
                "format": chosen.name,
                "given": given.to_json(),
                "unlike": differing,
                "identities": identities_text(outcomes.identities),
                "failed_problems": outcomes.failed_problems,
                "files": [{"name": each.path.name, **each.to_json()} for each in files],
            },
            notes,
            engine,
            policy,
            given.facts,
            workload=WorkloadFacts(
                name=_one(files, "task") or own_name(files[0].path),
                hash=outcomes.identity,
                problems=outcomes.problems.height,
                verifier=choices.verifier,
            ),
            text_recorded=record_text,
        )
    samples, problems = outcomes.samples.height, outcomes.problems.height
    answered, judged = (outcomes.samples[name].count() for name in ("answer", "correct"))
    return Imported(
        head=f"{chosen.name}: {counted(samples, 'sample')} of {counted(problems, 'problem')}",
        rows=[("with an answer", f"{answered:,}"), ("right or wrong", f"{judged:,}")],
        facts={
            "format": chosen.name,
            "files": [{"file": each.path.name, **each.to_json()} for each in files],
            "problems": problems,
            "samples": samples,
            "answered": answered,
            "judged": judged,
        },
        files=files,
        notes=tuple(notes),
    )


_OF_COMPLETIONS = {  # choices that are of formats with completions, or (False) of plain outcomes
    "judge": (True, "--verifier reads answers out of completions"),
    "score": (True, "--score chooses a metric or scorer"),
    "step_scores": (False, "--step-scores is for the scores of plain outcomes"),
}


def _check_choices(choices: Choices, chosen: type[OutcomeReader]) -> None:
    """Raise UsageError for a choice that the format does not have."""
    for name, (completions, does) in _OF_COMPLETIONS.items():
        if getattr(choices, name) is not None and chosen.completions is not completions:
            raise UsageError(f"{does}, and {chosen.name} has none. Leave it out")
    if choices.prompt_column is not None and chosen.completions:
        raise UsageError(
            f"--prompt-tokens {choices.prompt_column}: {chosen.name} has no such name. Give a "
            "number of tokens"
        )


def _check_copies(paths: Sequence[Path]) -> None:
    """Raise UsageError where two files hold the same: their samples would count twice."""
    by_size: dict[int, list[Path]] = {}
    for path in paths:
        for other in by_size.setdefault(path.stat().st_size, []):
            if filecmp.cmp(path, other, shallow=False):
                raise UsageError(f"{path} and {other} hold the same. Name one of them")
        by_size[path.stat().st_size].append(path)


def _check_copied(counted: Counted, files: Sequence[ImportedFile]) -> None:
    """Raise UsageError where a file has samples of another one again."""
    if counted.copied is None:
        return
    one, other = (files[at].path for at in counted.copied)
    raise UsageError(
        f"{one} and {other}: nearly all samples of equal number are the same in both, so that they "
        "would count twice. Name one of the files"
    )


def _same_format(paths: Sequence[Path]) -> type[OutcomeReader]:
    formats = {path: format_of(path, FORMATS) for path in paths}
    for path, each in formats.items():
        if each is None:
            raise OutcomesError(
                f"{path}: holds no outcomes that can be read. Give plain outcomes, samples of "
                "lm-evaluation-harness or a log of inspect_ai (see docs/import.md)"
            )
    names = {each.name: each for each in formats.values() if each is not None}
    if len(names) > 1:
        raise UsageError(
            f"the files are of different formats ({', '.join(names)}). Import each by itself"
        )
    return next(iter(names.values()))


def _joined(
    table: OutcomeTable, files: Sequence[ImportedFile], wanted: bool | None
) -> tuple[list[Joined], list[str]]:
    """Return which files are of the same problems, with the names of each set, and what to say.

    `wanted` is what the user says of it. Raises UsageError for sets of the same name.
    """
    sets: list[list[int]] = []
    unsure = list[tuple[int, int, str]]()
    for at in range(len(files)):
        for each in sets:
            alike, why = wanted, ""
            if wanted is None:
                alike, why = _alike(table, files, each, at)
            if alike:
                each.append(at)
                break
            if alike is None:
                unsure.append((each[0], at, why))
        else:
            sets.append([at])
    labels = _labels([files[each[0]] for each in sets], unsure[0][-1] if unsure else None)
    notes, names = [], _names(files)
    if len(sets) < len(files):
        named = " and ".join(
            listed([names[at] for at in each], 4) for each in sets[:3] if len(each) > 1
        )
        notes.append(
            f"files of the same problems, joined as further samples of these: {named}. If they are "
            "of different models or settings, import each by itself. --other-problems keeps them "
            "apart"
        )
    if unsure:
        one, other, why = unsure[0]
        notes.append(
            f"{names[one]} and {names[other]} have problems of the same names, and {why}. They "
            "count as different ones. If they are samples of the same problems under the same "
            "settings, import again with --same-problems. If they are of several runs, import "
            "each by itself"
        )
    return [Joined(tuple(each), label) for each, label in zip(sets, labels, strict=True)], notes


_SETTINGS = {
    "model": "model",
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "effort": "reasoning effort",
    "folder": "the model's folder",
}


def _alike(
    table: OutcomeTable, files: Sequence[ImportedFile], own: Sequence[int], at: int
) -> tuple[bool | None, str]:
    """Whether a file has further samples of a set's problems, None where it may; then why not."""
    likeness = table.likeness(own[0], at)
    facts = [files[each].facts for each in (*own, at)]
    same_task = facts[0].task == facts[-1].task
    if likeness is None or (likeness.same is None and not (same_task or likeness.told)):
        return False, ""
    if likeness.same is False:
        asked = same_task and likeness.names
        return None if asked else False, "most of their prompts or expected answers differ"
    differing = [
        word
        for name, word in _SETTINGS.items()
        if len({getattr(each, name) for each in facts} - {None}) > 1
    ]
    differing += ["prompts"] if same_task and likeness.prompts is False else []
    why = "nothing shows that all of these are the same"
    if differing:
        why = f"they differ in {' and '.join(differing)}"
    elif likeness.same and (same_task or likeness.prompts):
        return True, ""
    elif likeness.same:
        why = "their tasks have different names"
    return None, why


def _names(files: Sequence[ImportedFile]) -> list[str]:
    """Return the files' names, with the folder where several have the same."""
    names = [each.path.name for each in files]
    return [
        str(Path(each.path.parent.name, name)) if names.count(name) > 1 else name
        for name, each in zip(names, files, strict=True)
    ]


def _labels(files: Sequence[ImportedFile], unsure: str | None) -> list[str]:
    """Return what is before the names of each set's problems, nothing for a single set.

    It is its task, or what its file's name has own: not what all begin or end with, such as the
    model. `unsure` is why sets may be of the same problems. Raises UsageError for files of one
    name.
    """
    if len(files) == 1:
        return [""]
    tasks = [each.facts.task or "" for each in files]
    if all(tasks) and len({*tasks}) == len(files):
        return tasks
    names = [own_name(each.path) for each in files]
    if len({*names}) < len(files):
        why = "" if unsure is None else f", and {unsure}"
        how = "" if unsure is None else ", or with --same-problems if they are of one run"
        raise UsageError(f"two of the files have the same name{why}. Import each by itself{how}")
    return _own_parts(names)


def _own_parts(names: Sequence[str]) -> list[str]:
    """Return names without the words that all begin with, and those that all end with."""
    words = [re.split(r"(?<=[-_. ])", name) for name in names]
    fewest = min(map(len, words))
    first = 0
    while first < fewest - 1 and len({each[first] for each in words}) == 1:
        first += 1
    last = 0
    while last < fewest - 1 - first and len({each[-1 - last] for each in words}) == 1:
        last += 1
    parts = ["".join(each[first : len(each) - last]).strip("-_. ") for each in words]
    return parts if all(parts) and len({*parts}) == len(names) else list(names)


_DISAGREE = 0.1  # between a verifier's share of right samples and the file's own


def _against(counted: Counted, files: Sequence[ImportedFile], choices: Choices) -> Iterator[str]:
    """Say where nothing is right, or a verifier and the files' own metric disagree."""
    right = counted.samples["correct"].mean()
    if not isinstance(right, float):  # nothing was judged
        return
    own = [each for file in files for each in file.facts.own]
    if choices.judge is None:
        if right == 0:
            yield f"none of {counted.samples['correct'].count():,} judged samples is right"
        return
    finds = f"the verifier {choices.verifier} finds {right:.3f} of the samples right"
    if not own:
        if right == 0:
            yield f"{finds}. Check what the completions end with, and try another verifier"
        return
    share = sum(own) / len(own)
    if abs(share - right) >= _DISAGREE or (right == 0 and share > 0):
        metric = next(each.facts.own_metric for each in files if each.facts.own)
        yield (
            f"{finds}, the file's own {metric} {share:.3f}. One of the two reads the answers "
            "wrongly: compare some by hand, try another verifier (numeric, choice, math), or leave "
            "--verifier out"
        )


_FEWEST_AT_LIMIT = 3  # samples that are equally long, and longer than all others
_LONG = 1000  # tokens


def _at_one_length(counted: Counted) -> str | None:
    """Return what to say where several samples have the same number of tokens, the most of all."""
    samples = counted.samples
    if "output_tokens" not in samples.columns:
        return None
    longest = samples["output_tokens"].max()
    if not isinstance(longest, int) or longest < _LONG:
        return None
    at_most = samples.filter(samples["output_tokens"] == longest)
    has_reasons = "finish_reason" in samples.columns and at_most["finish_reason"].count()
    if has_reasons or at_most.height < _FEWEST_AT_LIMIT:
        return None
    return (
        f"{at_most.height:,} samples have {longest:,} output tokens, the most of all. If they were "
        f"cut there, import again with --max-tokens {longest}"
    )


def _check_longest(counted: Counted, given: Given) -> None:
    longest = counted.samples["output_tokens"].max() if "output_tokens" in counted.samples else None
    if given.max_tokens is not None and isinstance(longest, int) and longest > given.max_tokens:
        raise UsageError(
            f"--max-tokens {given.max_tokens:,}: a sample has {longest:,} output tokens. Give the "
            "limit that the samples were drawn with"
        )


def _notes(
    chosen: type[OutcomeReader], files: Sequence[ImportedFile], counted: Counted, given: Given
) -> list[str]:
    names = listed([each.path.name for each in files], 4)
    notes = [f"imported from {chosen.name}: {names}. Times and engine are not known"]
    given_values = given.to_json() | ({} if counted.prompts_filled else {"prompt_tokens": None})
    if given.no_answer:
        given_values["no_answer"] = " ".join(map(repr, given.no_answer))
    settings = ", ".join(
        f"{name} {value}" for name, value in given_values.items() if value is not None
    )
    if settings:
        notes.append(f"given at the import: {settings}")
    if counted.doubled:
        unit = files[0].skipped.unit
        notes.append(
            f"samples that were there before, left out: {counted.doubled:,} (first: {unit} "
            f"{counted.doubled_place:,})"
        )
    if counted.copies:
        notes.append(
            "samples that an earlier file has too, or that failed and were drawn again, left out: "
            f"{counted.copies:,}"
        )
    for each in files:
        notes += each.remarks()
    for at, problems, prompts in counted.repeated:
        notes.append(
            f"{files[at].path.name}: {problems:,} problems have only {prompts:,} different "
            "prompts. Each counts as a problem of its own, so that intervals are too narrow. Write "
            "those of one prompt as samples of one problem, in plain outcomes"
        )
    if counted.logprobs is not None:
        notes.append(
            f"{counted.logprobs} (first: {files[0].skipped.unit} {counted.logprobs_place:,})"
        )
    unjudged = counted.samples["correct"].null_count()
    if unjudged:
        notes.append(f"samples not known to be right or wrong: {unjudged:,}")
    if counted.contradicted:
        notes.append(
            "answers marked both right and wrong within one problem: "
            f"{counted.contradicted:,}. Each sample counts as it is marked"
        )
    if counted.expected_differs:
        notes.append(
            "problems whose samples have different expected answers, or some none: "
            f"{counted.expected_differs:,}. The first counts, and each sample as it is marked"
        )
    notes += _suspected(counted.suspects[:3], files)
    if counted.untimed:
        notes.append(
            f"samples without latency_s: {counted.untimed:,} of {counted.samples.height:,}. Their "
            "problems are in no mean of latencies, and rules that stop early need those of all"
        )
    return [*notes, *_of_numbers(chosen, counted)]


_BY_ITSELF = ". The sets have different numbers of samples: import each set by itself"


def _of_numbers(chosen: type[OutcomeReader], counted: Counted) -> list[str]:
    """Return what to know of how many samples can vote."""
    notes = []
    if counted.prose:
        how = (
            "Import again with --verifier numeric (exact, choice, math) to read their answers"
            if chosen.completions
            else "Write the final answer alone into answer"
        )
        notes.append(f"the answers are whole completions, so that samples cannot vote. {how}")
    elif counted.most > 1 and not counted.answers_told:
        notes.append("the answers are not there, so that samples cannot vote")
    if counted.failed:
        note = (
            f"samples that failed: {counted.failed:,}. They are no draws, and the others of their "
            "problems count"
        )
        if counted.failed_problems > MOST_UNTOLD * counted.problems.height:
            note += (
                f". They are in {counted.failed_problems:,} of {counted.problems.height:,} "
                "problems, so that advise, replay and --policies refuse: what did not fail may be "
                "shorter and easier"
            )
        notes.append(note)
    if counted.beyond:
        note = (
            f"problems have up to {counted.largest:,} samples, and nearly all {counted.most:,} or "
            f"more, so that the first {counted.most:,} of each count. Samples left out: "
            f"{counted.beyond:,}"
        )
        if counted.sets_differ:
            note += _BY_ITSELF
        elif counted.short:
            named = listed([f"{name[:40]} has {count:,}" for name, count in counted.short], 3)
            note += (
                f". Most have {counted.short_of:,}, but {named}. Complete these, or leave them out"
            )
        notes.append(note)
    if counted.fewer:
        note = f"problems with fewer than {counted.most} samples: {counted.fewer:,}"
        by_itself = counted.sets_differ and not counted.beyond
        notes.append(f"{note}{_BY_ITSELF if by_itself else ''}")
    return notes


def _suspected(suspects: Sequence[Suspect], files: Sequence[ImportedFile]) -> Iterator[str]:
    """Ask whether an answer stands for none. Only known words are repeated."""
    unnamed = []
    for each in suspects:
        many = f"{each.samples:,} samples of {each.problems:,} problems"
        if each.text is None:
            unnamed.append(f"{files[0].skipped.unit} {each.place:,} ({many})")
            continue
        head = f"the answer {each.text}" if each.text else "the empty answer"
        yield (
            f"{head} is that of {many}, and never right. It votes. If it stands for none, import "
            f"again with {flag_word('no-answer', each.text)}"
        )
    if unnamed:
        whose = files[0].path.name if len(files) == 1 else "the files"
        head = "an answer is" if len(unnamed) == 1 else f"{len(unnamed)} answers are"
        yield (
            f"{head} common and never right. Open {whose} at {', '.join(unnamed)}. If the text "
            "there stands for no answer, import again with --no-answer TEXT. Else it votes"
        )


def _one(files: Sequence[ImportedFile], name: str, given: Any = None) -> Any:
    """Return what all files say of a setting, else what is given. UsageError where these differ."""
    values = {getattr(each.facts, name) for each in files}
    for value in values - {None} if given is not None else ():
        if value != given:
            raise UsageError(
                f"--{name.replace('_', '-')} {given}: the file says {value}. Leave the option out"
            )
    if given is not None:
        return given
    return values.pop() if len(values) == 1 else None


def _policy(files: Sequence[ImportedFile], given: Given, most: int) -> Policy:
    temperature = _one(files, "temperature", given.temperature)
    return Policy(
        method="greedy" if most == 1 and temperature == 0 else "majority",
        n=most,
        max_tokens=_one(files, "max_tokens", given.max_tokens) or None,
        temperature=temperature,
        top_p=_one(files, "top_p", given.top_p),
    )


def _model(files: Sequence[ImportedFile], given: Given) -> str:
    """Return the model's name. Raises UsageError for files of several models."""
    models = {each.facts.model for each in files} - {None}
    if len(models) > 1:
        raise UsageError(f"the files are of different models ({', '.join(map(str, models))})")
    return given.model_name(next(iter(models), None))
