"""The verbs for foreign formats: import and export.

What a file is, its first bytes say: samples of an evaluation, requests, forward passes, results of
`vllm bench forward`, else a profiler trace.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.engines.models.model_facts import given_facts
from traces.errors import RecordingError, UsageError
from traces.foreign.evaluations.curve import import_curve
from traces.foreign.evaluations.importer import import_outcomes
from traces.foreign.evaluations.plain import STEP_SCORES
from traces.foreign.evaluations.reader import Choices, Given, Judge
from traces.foreign.kinds import files_in, kind_of
from traces.foreign.power.importer import import_power
from traces.foreign.profiler_traces import import_traces
from traces.foreign.requests.importer import import_requests
from traces.foreign.requests.reader import RequestChoices
from traces.foreign.steps.bench_forward import import_forwards
from traces.foreign.steps.forward_passes import import_passes
from traces.foreign.values import BLOCK_TOKENS
from traces.foreign.written import Imported
from traces.kineto.read import TraceTables
from traces.recording.manifest import NAME as MANIFEST
from traces.recording.reader import Recording
from tui.options import OPTIONS, Json, argument, option, takes
from tui.terminal import say_all, say_json
from tui.text.commands import next_lines
from tui.text.layout import align, labelled, wrap
from tui.verbs.progress import progress_bar

if TYPE_CHECKING:
    from profiler.workload.verifiers import Verifier

_OF_SAMPLES = (
    "score", "verifier", "model", "model_config", "temperature", "top_p", "max_tokens",
    "prompt_tokens", "no_answer", "same_problems", "step_scores",
)  # fmt: skip
_PASSES = ("forward passes", "results of vllm bench forward")
_ALSO_OF = {
    "model": _PASSES, "model_config": _PASSES, "temperature": ("requests",), "top_p": ("requests",),
}  # fmt: skip
_KINDS = {"passes": _PASSES[0], "forwards": _PASSES[1]}
_OF_CURVES = ("problems", "length_spread", "benchmark")
_NOT_OF_CURVES = (
    "score", "verifier", "no_answer", "same_problems", "step_scores", "run", "block_tokens",
)  # fmt: skip
_MOST_PROMPT = 100_000_000
_ENDINGS = {"perfetto": (".json", ".gz"), "mooncake": (".jsonl",)}


@dataclass(frozen=True, kw_only=True)
class Import:
    """Files of others, and how to read them."""

    files: list[Path] = argument(
        "Profiler traces, one per rank, samples of evaluations, requests, files of "
        "forward passes, or of vllm bench forward. With --power a recording."
    )
    output: Path = option(MISSING, "The recording's folder.", "-o", "--output")
    limit: float = option(16.0, "Largest file, in GB of JSON once unpacked.")
    score: str | None = option(None, "Metric, metric,filter or scorer that judges an answer.")
    verifier: str | None = option(None, "Judge completions by exact, numeric, choice or math.")
    record_text: bool = option(False, "Keep the answers' texts.")
    model: str | None = option(None, "Name of the model, if the files lack it.")
    model_config: Path | None = option(None, "config.json of the model, for its times.")
    shapes: Path | None = option(
        None, "vllm bench forward: its --shapes file, written by advise --plan."
    )
    temperature: float | None = option(
        None, "Samples, requests: the temperature they were drawn at."
    )
    top_p: float | None = option(None, "Samples, requests: nucleus sampling they were drawn with.")
    max_tokens: int | None = option(None, "Samples: limit of tokens of each.")
    prompt_tokens: str | None = option(
        None, "Samples: tokens of a prompt, or the field that has them.", metavar="N|NAME"
    )
    no_answer: list[str] | None = option(
        None, "Samples: text that stands for no answer, repeatable.", metavar="TEXT"
    )
    step_scores: str | None = option(
        None, "Samples: how scores of steps become one: last, min, mean, prod."
    )
    same_problems: bool | None = option(
        None,
        "Samples: whether several files are of the same problems.",
        "--same-problems/--other-problems",
        show_default=False,
    )
    curve: bool = option(False, "The file is a curve: n, accuracy and tokens of votes.")
    problems: int | None = option(None, "Number of problems that were averaged.", metavar="N")
    length_spread: float | None = option(
        None, "Spread of the logarithm of lengths (0.6).", metavar="SD"
    )
    benchmark: str | None = option(
        None, "Name of the benchmark, to compare models.", metavar="NAME"
    )
    run: int | None = option(None, "Which benchmark of a file, counted from 1.")
    block_tokens: int | None = option(None, "Tokens per hash id of a Mooncake trace (512).")
    power: Path | None = option(
        None, "Power readings of nvidia-smi or aiperf, joined with a recording."
    )
    power_gpus: str | None = option(
        None, "Power: the GPUs of the engine, by index or UUID.", metavar="0,1"
    )
    power_zone: str | None = option(
        None, "Power: zone of nvidia-smi's times (this machine's).", metavar="ZONE"
    )
    as_json: Json = False


@takes(
    Import,
    panels={
        "score": "Samples of evaluations",
        "curve": "Published curves",
        "run": "Requests",
        "power": "Power readings",
        "as_json": OPTIONS,
    },
)
def import_(asked: Import) -> None:
    """Make a recording of others' profiler traces, samples, requests or forward passes."""
    imported = import_files(asked)
    document, lines = imported.to_json(), [imported.head] if imported.head else []
    columns = range(1, len(imported.rows[0])) if imported.rows else ()
    lines += [f"  {line}" for line in align(imported.rows, right=columns)]
    if any(isinstance(each, TraceTables) for each in imported.files):
        times, kernels = _of_kernels(asked.output)
        document |= times
        lines += ["", *kernels]
    if asked.as_json:
        say_json({"recording": str(asked.output), **document})
        return
    kept = f"kept in {asked.output}"
    say_all([*lines, *_notes(imported.notes[1:]), kept, *next_lines("show", asked.output)])


def _of_kernels(output: Path) -> tuple[dict[str, Any], list[str]]:
    """Return where the time of profiler traces went, for --json and in lines."""
    from traces.summary.run import summarise, to_plain
    from tui.text.recordings.kernels import kernel_lines

    (run,) = summarise(Recording.open(output))
    names = ("time_by_family", "collectives", "device_time")
    return {name: to_plain(getattr(run, name)) for name in names}, kernel_lines(run)


def import_files(asked: Import) -> Imported:
    """Write the recording; return what the importer of the files found.

    Raises UsageError for options that the kind of file has no use for.
    """
    if not 0 < asked.limit < math.inf:
        raise UsageError(f"--limit must be above 0 and finite, not {asked.limit:g}")
    limit = int(asked.limit * 1e9)
    if asked.power is not None:
        return _joined(asked, asked.power, limit)
    _check_alone(asked)
    if asked.curve:
        return _curve(asked, limit)
    files = files_in(asked.files)
    kind = kind_of(files)
    _check_kind(asked, kind, files[0])
    given, column = _given(asked)
    of_model: dict[str, Any] = {"model": given.model, "facts": given.facts, "limit_bytes": limit}
    with progress_bar() as bar:
        task = bar.add_task("reading", total=None if kind == "requests" else len(files))
        begun = itertools.count()

        def on_file(path: Path) -> None:
            bar.update(task, description=path.name, completed=next(begun))

        if kind == "passes":
            imported = import_passes(files, asked.output, **of_model, on_file=on_file)
        elif kind == "forwards":
            imported = import_forwards(files[0], asked.output, shapes=asked.shapes, **of_model)
        elif kind == "traces":
            imported = import_traces(files, asked.output, limit_bytes=limit, on_file=on_file)
        elif kind == "requests":
            wanted = RequestChoices(
                run=asked.run,
                block_tokens=asked.block_tokens or BLOCK_TOKENS,
                limit_bytes=limit,
                temperature=given.temperature,
                top_p=given.top_p,
            )

            def on_rows(count: int) -> None:
                bar.update(task, description=f"{count:,} requests")

            imported = import_requests(files, asked.output, choices=wanted, on_rows=on_rows)
        else:
            imported = import_outcomes(
                files,
                asked.output,
                choices=_choices(asked, column, limit),
                given=given,
                record_text=asked.record_text,
                on_file=on_file,
            )
    return imported


def _choices(asked: Import, prompt_column: str | None, limit_bytes: int) -> Choices:
    from profiler.workload.verifiers import verifier

    chosen = None if asked.verifier is None else verifier(asked.verifier)
    if asked.step_scores not in (None, *STEP_SCORES):
        raise UsageError(f"--step-scores {asked.step_scores}: give {', '.join(STEP_SCORES)}")
    return Choices(
        score=asked.score,
        judge=None if chosen is None else _judge(chosen),
        too_long=lambda: 0 if chosen is None else chosen.too_long,
        verifier=asked.verifier,
        prompt_column=prompt_column,
        same_problems=asked.same_problems,
        step_scores=asked.step_scores,
        limit_bytes=limit_bytes,
    )


def _refuse(asked: Import, names: Iterable[str], why: str) -> None:
    """Raise UsageError for the first of these options that was given."""
    for name in names:
        value = getattr(asked, name)
        if value is not None and value is not False:
            raise UsageError(f"--{name.replace('_', '-')} {why}")


def _check_alone(asked: Import) -> None:
    """Raise UsageError for options that go with another one alone."""
    why = "is for power readings. Name their file with --power"
    _refuse(asked, ("power_gpus", "power_zone"), why)
    if not asked.curve:
        _refuse(asked, _OF_CURVES, "is for published curves, with --curve")


def _check_kind(asked: Import, kind: str, first: Path) -> None:
    """Raise UsageError for options that a kind of file has no use for."""
    for name in () if kind == "samples" else _OF_SAMPLES:
        *others, last = ("samples", *_ALSO_OF.get(name, ()))
        if _KINDS.get(kind, kind) not in (*others, last):
            kinds = f"{', '.join(others)} or {last}" if others else last
            _refuse(asked, (name,), f"is for {kinds}, and {first} holds none")
    if kind != "forwards":
        why = f"is for vllm bench forward, and {first} holds none of its cases"
        _refuse(asked, ("shapes",), why)
    if kind != "requests":
        _refuse(asked, ("run", "block_tokens"), f"is for requests, and {first} holds none")
    for flag, count in (("--run", asked.run), ("--block-tokens", asked.block_tokens)):
        if count is not None and count < 1:
            raise UsageError(f"{flag} must be at least 1, not {count}")


def _curve(asked: Import, limit_bytes: int) -> Imported:
    """Import a curve. Raises UsageError for options that it has no use for."""
    if len(asked.files) != 1:
        raise UsageError("--curve: give one file. Curves of several models are imported by one")
    _refuse(asked, _NOT_OF_CURVES, "has no use with --curve")
    if asked.record_text:
        raise UsageError("--record-text has no use with --curve, which has no answers")
    given, column = _given(asked)
    if column is not None:
        raise UsageError(f"--prompt-tokens {column}: with --curve wants a number for all prompts")
    return import_curve(
        asked.files[0],
        asked.output,
        given=given,
        problems=asked.problems,
        spread=asked.length_spread,
        benchmark=asked.benchmark,
        limit_bytes=limit_bytes,
    )


def _joined(asked: Import, path: Path, limit_bytes: int) -> Imported:
    """Join a recording with power readings. Raises UsageError for what is no recording."""
    others = (*_OF_SAMPLES, *_OF_CURVES, "run", "block_tokens", "record_text", "curve")
    _refuse(asked, others, "is for files of others, and --power joins a recording")
    if len(asked.files) != 1 or not (asked.files[0] / MANIFEST).is_file():
        raise UsageError(
            f"{asked.files[0]}: --power joins readings with one recording. Import the file first, "
            "then give its recording"
        )
    names = [each.strip() for each in (asked.power_gpus or "").split(",") if each.strip()]
    if asked.power_gpus is not None and not names:
        raise UsageError("--power-gpus: name the engine's GPUs, such as 0,1")
    return import_power(
        Recording.open(asked.files[0]),
        path,
        asked.output,
        gpus=names,
        zone=asked.power_zone,
        limit_bytes=limit_bytes,
    )


def _given(asked: Import) -> tuple[Given, str | None]:
    """Return what the options say of a run, and the name that prompts' lengths have in a line.

    Raises UsageError for what no run can have.
    """
    text, prompt_tokens = asked.prompt_tokens, None
    if text is not None and (not text.strip() or re.fullmatch(r"[-+.,\d]+", text)):
        prompt_tokens = int(text) if text.isascii() and text.isdecimal() else 0
        if not 1 <= prompt_tokens <= _MOST_PROMPT:
            raise UsageError(
                f"--prompt-tokens {text}: wants a whole number from 1 to {_MOST_PROMPT:,}, or the "
                "name that has it in a line"
            )
        text = None
    if asked.model is not None and not asked.model.strip():
        raise UsageError("--model: wants the model's name")
    most: dict[str, tuple[float | None, float, float]] = {
        "--temperature": (asked.temperature, 0, 100),
        "--top-p": (asked.top_p, sys.float_info.min, 1),
        "--max-tokens": (asked.max_tokens, 1, _MOST_PROMPT),
    }
    for name, (value, low, high) in most.items():
        if value is not None and not low <= value <= high:
            bounds = f"above 0, up to {high:,}" if low < 1 and low else f"from {low:g} to {high:,}"
            raise UsageError(f"{name} {value:g}: wants a number {bounds}")
    given = Given(
        model=asked.model,
        facts=None if asked.model_config is None else given_facts(asked.model_config),
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=asked.max_tokens,
        prompt_tokens=prompt_tokens,
        no_answer=tuple(asked.no_answer or ()),
    )
    return given, text


def _judge(chosen: Verifier) -> Judge:
    """Return the verifier as a rule that reads and judges completions."""
    from profiler.workload.verifiers import is_right, read_answer

    def judge(text: str, expected: str | None, prompt: str) -> tuple[str | None, bool | None]:
        written = read_answer(chosen, text, prompt)
        answer = None if written is None else chosen.canonical(written)
        return answer, is_right(chosen, answer, expected)

    return judge


def _notes(notes: Sequence[str]) -> list[str]:
    return labelled((("!", note) for note in notes), width=80, indent=2)


@dataclass(frozen=True, kw_only=True)
class Export:
    """A recording, and the file to write."""

    recording: Path = argument("A recording.")
    output: Path = option(MISSING, "trace.json, trace.json.gz or trace.jsonl.", "-o", "--output")
    form: str = option("perfetto", "perfetto, or mooncake: a line per request.", "--format")
    as_json: Json = False


@takes(Export)
def export(asked: Export) -> None:
    """Write a recording for Perfetto and chrome://tracing, or as a trace of requests."""
    if asked.form not in _ENDINGS:
        raise UsageError(f"--format {asked.form}: one of {', '.join(_ENDINGS)}")
    if asked.output.suffix not in _ENDINGS[asked.form]:
        named = {"perfetto": ".json or .json.gz", "mooncake": ".jsonl"}[asked.form]
        raise UsageError(f"-o {asked.output}: name a {named} file")
    if asked.form == "mooncake":
        _export_requests(asked.recording, asked.output, as_json=asked.as_json)
        return
    from traces.foreign.perfetto import export_trace

    opened = Recording.open(asked.recording)
    if not any(opened.rows(table) for table in ("problems", "steps", "kernels", "power")):
        raise RecordingError(
            f"{opened.name}: holds no problem, step, kernel or power to draw. ttscope show says "
            "what /metrics said"
        )
    counts = export_trace(opened, asked.output)
    if asked.as_json:
        say_json({"trace": str(asked.output), "events": counts})
        return
    written = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    wrote = (
        f"wrote {written or 'an empty trace'} to {asked.output}. Open it in https://ui.perfetto.dev"
    )
    say_all(wrap("", wrote, width=80, indent=0))


def _export_requests(recording: Path, output: Path, *, as_json: bool) -> None:
    from traces.foreign.mooncake import export_requests

    exported = export_requests(Recording.open(recording), output)
    if as_json:
        say_json(
            {
                "trace": str(output),
                "requests": exported.requests,
                "blocks": exported.blocks,
                "notes": list(exported.notes),
            }
        )
        return
    wrote = (
        f"wrote {exported.requests:,} requests, whose prompts have {exported.blocks:,} different "
        f"blocks, to {output}"
    )
    lines = [*wrap("", wrote, width=80, indent=0), *_notes(exported.notes)]
    say_all([*lines, *next_lines("import", output, "-o", output.with_suffix(""))])
