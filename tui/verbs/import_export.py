"""The verbs for foreign formats: import and export.

What a file is, its first bytes say: samples of an evaluation, requests, forward passes, else a
profiler trace.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from traces.errors import RecordingError, UsageError
from traces.foreign.evaluations.reader import Choices, Given, Judge
from traces.foreign.kinds import files_in, kind_of
from traces.kineto.read import TraceTables
from traces.recording.reader import Recording
from traces.schema.formats import counted, number
from tui.options import Json, facts_of, takes
from tui.text.layout import align, wrap
from tui.text.terminal import say, say_json
from tui.verbs.progress import progress_bar

_OF_SAMPLES = (
    "score", "verifier", "model", "model_config", "temperature", "top_p", "max_tokens",
    "prompt_tokens",
)  # fmt: skip
_MOST_PROMPT = 100_000_000
_COUNTS = ("problems", "samples", "answered", "judged")
_REQUEST_COUNTS = (
    "requests", "measured", "failed", "span_s", "prompt_tokens", "output_tokens",
)  # fmt: skip
_ENDINGS = {"perfetto": (".json", ".gz"), "mooncake": (".jsonl",)}


@dataclass(frozen=True, kw_only=True)
class Import:
    """Files of others, and how to read them."""

    files: Annotated[
        list[Path],
        typer.Argument(
            help="Profiler traces, one per rank; samples of evaluations; requests; or files of "
            "forward passes."
        ),
    ]
    output: Annotated[Path, typer.Option("-o", "--output", help="The recording's folder.")]
    limit: Annotated[
        float, typer.Option(help="GB of JSON per file, inflated, before it is refused.")
    ] = 16.0
    score: Annotated[
        str | None, typer.Option(help="Metric, metric,filter or scorer that says what is right.")
    ] = None
    verifier: Annotated[
        str | None,
        typer.Option(help="Judge completions anew: exact, numeric, choice or math."),
    ] = None
    record_text: Annotated[bool, typer.Option(help="Keep the answers' texts.")] = False
    model: Annotated[
        str | None, typer.Option(help="Samples: the model's name, where the files lack it.")
    ] = None
    model_config: Annotated[
        Path | None, typer.Option(help="Samples: the model's config.json, to predict its times.")
    ] = None
    temperature: Annotated[float | None, typer.Option(help="Samples: that they were drawn at.")] = (
        None
    )
    top_p: Annotated[float | None, typer.Option(help="Samples: nucleus sampling.")] = None
    max_tokens: Annotated[int | None, typer.Option(help="Samples: tokens of each at most.")] = None
    prompt_tokens: Annotated[
        str | None,
        typer.Option(metavar="N|NAME", help="Samples: tokens of a prompt, or what has them."),
    ] = None
    run: Annotated[
        int | None, typer.Option(help="Which of a file's benchmarks, from 1; of requests.")
    ] = None
    block_tokens: Annotated[
        int | None, typer.Option(help="Tokens per hash id of a Mooncake trace (512).")
    ] = None
    as_json: Json = False


@takes(Import)
def import_(asked: Import) -> None:
    """Make a recording of others' profiler traces, samples, requests or forward passes."""
    if not asked.limit > 0:
        raise UsageError(f"--limit must be above 0, not {asked.limit:g}")
    limit = int(asked.limit * 1e9)
    files = files_in(asked.files)
    kind = kind_of(files)
    samples, requests = kind == "samples", kind == "requests"
    for name in _OF_SAMPLES:
        if getattr(asked, name) is not None and not samples:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is for samples; {files[0]} holds none")
    for option, count in (("--run", asked.run), ("--block-tokens", asked.block_tokens)):
        if count is not None and not requests:
            raise UsageError(f"{option} is for requests; {files[0]} holds none")
        if count is not None and count < 1:
            raise UsageError(f"{option} must be at least 1, not {count}")
    if kind == "passes":
        _import_passes(files, asked.output, limit=limit, as_json=asked.as_json)
        return
    if requests:
        _import_requests(
            files,
            asked.output,
            run=asked.run,
            block_tokens=asked.block_tokens,
            limit=limit,
            as_json=asked.as_json,
        )
        return
    if not samples:
        _import_traces(files, asked.output, limit=limit, as_json=asked.as_json)
        return
    judge = None if asked.verifier is None else _judge(asked.verifier)
    given, column = _given(asked)
    choices = Choices(
        score=asked.score,
        judge=judge,
        verifier=asked.verifier,
        prompt_column=column,
        limit_bytes=limit,
    )
    _import_outcomes(
        files,
        asked.output,
        choices=choices,
        given=given,
        record_text=asked.record_text,
        as_json=asked.as_json,
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
    for option, (value, low, high) in most.items():
        if value is not None and not low <= value <= high:
            bounds = f"above 0, up to {high:,}" if low < 1 and low else f"from {low:g} to {high:,}"
            raise UsageError(f"{option} {value:g}: wants a number {bounds}")
    given = Given(
        model=asked.model,
        facts=None if asked.model_config is None else facts_of(asked.model_config),
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=asked.max_tokens,
        prompt_tokens=prompt_tokens,
    )
    return given, text


def _judge(name: str) -> Judge:
    """Return the verifier of that name as a rule that reads and judges completions."""
    from profiler.workload.verifiers import verifier

    chosen = verifier(name)

    def judge(text: str, expected: str | None) -> tuple[str | None, bool | None]:
        written = chosen.answer_of(text)
        answer = None if written is None else chosen.canonical(written)
        if expected is None:
            return answer, None
        return answer, answer is not None and chosen.matches(answer, expected)

    return judge


def _import_outcomes(
    paths: Sequence[Path],
    output: Path,
    *,
    choices: Choices,
    given: Given,
    record_text: bool,
    as_json: bool,
) -> None:
    from traces.foreign.evaluations.importer import import_outcomes

    with progress_bar() as bar:
        task = bar.add_task("reading", total=len(paths))

        def on_file(path: Path) -> None:
            bar.update(task, description=path.name, completed=paths.index(path))

        imported = import_outcomes(
            paths,
            output,
            choices=choices,
            given=given,
            record_text=record_text,
            on_file=on_file,
        )
    if as_json:
        files = [
            {
                "file": each.path.name,
                "samples": each.samples,
                "skipped": each.skipped.counts,
                "notes": each.facts.notes,
            }
            for each in imported.files
        ]
        counts = {name: getattr(imported, name) for name in _COUNTS}
        document = {"recording": str(output), "format": imported.format, "files": files, **counts}
        say_json(document | {"notes": list(imported.notes[1:])})
        return
    samples, problems = counted(imported.samples, "sample"), counted(imported.problems, "problem")
    say(f"{imported.format}: {samples} of {problems}")
    for what, count in (("with an answer", imported.answered), ("right or wrong", imported.judged)):
        say(f"  {what:<16}{count:>10,}")
    for note in imported.notes[1:]:
        for line in wrap("!", note, width=80, indent=2):
            say(line)
    say(f"kept in {output}; ttscope show {output} tells of it")


def _import_requests(
    paths: Sequence[Path],
    output: Path,
    *,
    run: int | None,
    block_tokens: int | None,
    limit: int,
    as_json: bool,
) -> None:
    from traces.foreign.requests.importer import import_requests
    from traces.foreign.requests.reader import RequestChoices
    from traces.foreign.values import BLOCK_TOKENS

    choices = RequestChoices(run=run, block_tokens=block_tokens or BLOCK_TOKENS, limit_bytes=limit)
    with progress_bar() as bar:
        task = bar.add_task("reading", total=None)

        def on_rows(count: int) -> None:
            bar.update(task, description=f"{count:,} requests")

        imported = import_requests(paths[0], output, choices=choices, on_rows=on_rows)
    if as_json:
        counts = {name: getattr(imported, name) for name in _REQUEST_COUNTS}
        say_json(
            {
                "recording": str(output),
                "format": imported.format,
                "file": paths[0].name,
                **counts,
                "skipped": imported.skipped.counts,
                "notes": list(imported.notes),
            }
        )
        return
    span = number(imported.span_s, "s")
    say(f"{imported.format}: {counted(imported.requests, 'request')} in {span}")
    rows = [
        ("tokens of prompt", f"{imported.prompt_tokens:,}"),
        ("tokens of output", f"{imported.output_tokens:,}"),
        ("with measured times", f"{imported.measured:,}"),
        ("failed or cut off", f"{imported.failed:,}"),
    ]
    for line in align(rows, right=(1,)):
        say(f"  {line}")
    for note in imported.notes[1:]:
        for line in wrap("!", note, width=80, indent=2):
            say(line)
    say(f"kept in {output}; ttscope show {output} tells of it")


def _import_passes(paths: Sequence[Path], output: Path, *, limit: int, as_json: bool) -> None:
    from traces.foreign.forward_passes import import_passes

    with progress_bar() as bar:
        task = bar.add_task("reading", total=len(paths))
        taken = 0

        def on_file(path: Path) -> None:
            nonlocal taken
            bar.update(task, description=path.name, completed=taken)
            taken += 1

        found = import_passes(paths, output, limit_bytes=limit, on_file=on_file)
    if as_json:
        say_json(
            {
                "recording": str(output),
                "format": found.format,
                "files": [path.name for path in paths],
                "steps": found.steps,
                "engines": [vars(engine) for engine in found.engines],
                "skipped": found.skipped.counts,
                "notes": list(found.notes[1:]),
            }
        )
        return
    engines = counted(len(found.engines), "engine")
    say(f"{found.format}: {counted(found.steps, 'step')} of {engines}")
    rows: list[tuple[str, ...]] = [("engine", "steps", "lost", "heartbeats", "span")]
    for each in found.engines:
        span = "-" if each.span_s is None else number(each.span_s, "s")
        lost = "sampled" if each.sampled else f"{each.lost:,}"
        name = each.name if len(each.name) <= 40 else f"...{each.name[-37:]}"
        rows.append((name, f"{each.steps:,}", lost, f"{each.heartbeats:,}", span))
    for line in align(rows, right=(1, 2, 3, 4)):
        say(line)
    for note in found.notes[1:]:
        for line in wrap("!", note, width=80, indent=2):
            say(line)
    say(f"kept in {output}; ttscope show {output} tells of it")


def _import_traces(paths: Sequence[Path], output: Path, *, limit: int, as_json: bool) -> None:
    from traces.foreign.profiler_traces import import_traces, remarks
    from traces.summary.run import summarise, to_plain
    from tui.text.kernels import kernel_lines

    with progress_bar() as bar:
        task = bar.add_task("reading", total=len(paths))

        def on_file(path: Path) -> None:
            bar.update(task, description=path.name, completed=paths.index(path))

        traces = import_traces(paths, output, limit_bytes=limit, on_file=on_file)
    (run,) = summarise(Recording.open(output))
    if as_json:
        document = {
            "recording": str(output),
            "files": [_file(trace) for trace in traces],
            "notes": remarks(traces)[1:],
            "time_by_family": to_plain(run.time_by_family),
            "collectives": to_plain(run.collectives),
            "device_time": to_plain(run.device_time),
        }
        say_json(document)
        return
    rows: list[tuple[str, ...]] = [("file", "rank", "steps", "kernels", "window", "idle")]
    for trace in traces:
        told = _file(trace)
        rows.append(
            (
                trace.path.name[-34:],
                str(trace.rank),
                f"{len(trace.steps):,}",
                f"{told['kernels']:,}",
                number(told["window_s"], "s"),
                number(told["idle_s"], "s"),
            )
        )
    for line in (*align(rows, right=(1, 2, 3, 4, 5)), "", *kernel_lines(run)):
        say(line)
    for note in remarks(traces)[1:]:
        for line in wrap("!", note, width=80, indent=2):
            say(line)
    say(f"kept in {output}")


def _file(trace: TraceTables) -> dict[str, Any]:
    """Return what one file held; `kernels` counts device events, or operators on a CPU."""
    window = trace.window
    return {
        "file": trace.path.name,
        "rank": trace.rank,
        "world_size": trace.world_size,
        "device": trace.device_name,
        "events": trace.events,
        "steps": len(trace.steps),
        "kernels": int(trace.kernels["count"].sum()),
        "window_s": (window.end_ns - window.start_ns) / 1e9,
        "busy_s": window.busy_ns / 1e9,
        "idle_s": window.idle_ns / 1e9,
        "skipped": dict(trace.skipped),
    }


@dataclass(frozen=True, kw_only=True)
class Export:
    """A recording, and the file to write."""

    recording: Annotated[Path, typer.Argument(help="A recording.")]
    output: Annotated[
        Path, typer.Option("-o", "--output", help="trace.json or trace.json.gz; trace.jsonl.")
    ]
    form: Annotated[
        str, typer.Option("--format", help="perfetto, or mooncake: a line per request.")
    ] = "perfetto"
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
            f"{opened.name}: holds no problem, step, kernel or power to draw; ttscope show tells "
            "what /metrics told"
        )
    counts = export_trace(opened, asked.output)
    if asked.as_json:
        say_json({"trace": str(asked.output), "events": counts})
        return
    written = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    wrote = (
        f"wrote {written or 'an empty trace'} to {asked.output}; open it in https://ui.perfetto.dev"
    )
    for line in wrap("", wrote, width=80, indent=0):
        say(line)


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
    for line in wrap("", wrote, width=80, indent=0):
        say(line)
    for note in exported.notes:
        for line in wrap("!", note, width=80, indent=2):
            say(line)
