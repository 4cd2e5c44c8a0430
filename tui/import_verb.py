"""The verbs for foreign formats: import and export.

What a file is, its first bytes say: samples of an evaluation, requests, else a profiler trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from traces.errors import RecordingError, UsageError
from traces.formats.outcome import Choices, Judge
from traces.kineto import TraceTables
from traces.recording import Recording
from tui.formats import align, counted, number, wrap
from tui.library import kind_of
from tui.progress import progress_bar
from tui.read_verbs import print_document
from tui.terminal_text import say

_COUNTS = ("problems", "samples", "answered", "judged")
_REQUEST_COUNTS = (
    "requests", "measured", "failed", "span_s", "prompt_tokens", "output_tokens",
)  # fmt: skip
_ENDINGS = {"perfetto": (".json", ".gz"), "mooncake": (".jsonl",)}


def run_import(
    paths: Sequence[Path],
    output: Path,
    *,
    limit_gb: float,
    record_text: bool,
    score: str | None,
    verifier: str | None,
    run: int | None = None,
    block_tokens: int | None = None,
    as_json: bool,
) -> None:
    """Read files of others into a recording and print what was found."""
    if not limit_gb > 0:
        raise UsageError(f"--limit must be above 0, not {limit_gb:g}")
    limit = int(limit_gb * 1e9)
    kind = kind_of(paths)
    samples, requests = kind == "samples", kind == "requests"
    for option, value in (("--score", score), ("--verifier", verifier)):
        if value is not None and not samples:
            raise UsageError(f"{option} is for samples; {paths[0]} holds none")
    for option, count in (("--run", run), ("--block-tokens", block_tokens)):
        if count is not None and not requests:
            raise UsageError(f"{option} is for requests; {paths[0]} holds none")
        if count is not None and count < 1:
            raise UsageError(f"{option} must be at least 1, not {count}")
    if requests:
        _import_requests(
            paths, output, run=run, block_tokens=block_tokens, limit=limit, as_json=as_json
        )
        return
    if not samples:
        _import_traces(paths, output, limit=limit, as_json=as_json)
        return
    judge = None if verifier is None else _judge(verifier)
    choices = Choices(score=score, judge=judge, verifier=verifier, limit_bytes=limit)
    _import_outcomes(paths, output, choices=choices, record_text=record_text, as_json=as_json)


def _judge(name: str) -> Judge:
    """Return the verifier of that name as a rule that reads and judges completions."""
    from profiler.verifiers import verifier

    chosen = verifier(name)

    def judge(text: str, expected: str | None) -> tuple[str | None, bool | None]:
        written = chosen.answer_of(text)
        answer = None if written is None else chosen.canonical(written)
        if expected is None:
            return answer, None
        return answer, answer is not None and chosen.matches(answer, expected)

    return judge


def _import_outcomes(
    paths: Sequence[Path], output: Path, *, choices: Choices, record_text: bool, as_json: bool
) -> None:
    from traces.outcome_import import import_outcomes

    with progress_bar() as bar:
        task = bar.add_task("reading", total=len(paths))

        def on_file(path: Path) -> None:
            bar.update(task, description=path.name, completed=paths.index(path))

        found = import_outcomes(
            paths, output, choices=choices, record_text=record_text, on_file=on_file
        )
    if as_json:
        files = [
            {
                "file": each.path.name,
                "samples": each.samples,
                "skipped": each.skipped.counts,
                "notes": each.facts.notes,
            }
            for each in found.files
        ]
        counts = {name: getattr(found, name) for name in _COUNTS}
        document = {"recording": str(output), "format": found.format, "files": files, **counts}
        print_document(document | {"notes": list(found.notes[1:])})
        return
    samples, problems = counted(found.samples, "sample"), counted(found.problems, "problem")
    say(f"{found.format}: {samples} of {problems}")
    for what, count in (("with an answer", found.answered), ("right or wrong", found.judged)):
        say(f"  {what:<16}{count:>10,}")
    for note in found.notes[1:]:
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
    from traces.formats.request import BLOCK_TOKENS, RequestChoices
    from traces.request_import import import_requests

    choices = RequestChoices(run=run, block_tokens=block_tokens or BLOCK_TOKENS, limit_bytes=limit)
    with progress_bar() as bar:
        task = bar.add_task("reading", total=None)

        def on_rows(count: int) -> None:
            bar.update(task, description=f"{count:,} requests")

        found = import_requests(paths[0], output, choices=choices, on_rows=on_rows)
    if as_json:
        counts = {name: getattr(found, name) for name in _REQUEST_COUNTS}
        print_document(
            {
                "recording": str(output),
                "format": found.format,
                "file": paths[0].name,
                **counts,
                "skipped": found.skipped.counts,
                "notes": list(found.notes),
            }
        )
        return
    say(f"{found.format}: {counted(found.requests, 'request')} in {number(found.span_s, 's')}")
    rows = [
        ("tokens of prompt", f"{found.prompt_tokens:,}"),
        ("tokens of output", f"{found.output_tokens:,}"),
        ("with measured times", f"{found.measured:,}"),
        ("failed or cut off", f"{found.failed:,}"),
    ]
    for line in align(rows, right=(1,)):
        say(f"  {line}")
    for note in found.notes[1:]:
        for line in wrap("!", note, width=80, indent=2):
            say(line)
    say(f"kept in {output}; ttscope show {output} tells of it")


def _import_traces(paths: Sequence[Path], output: Path, *, limit: int, as_json: bool) -> None:
    from traces.summary import summarise, to_plain
    from traces.trace_import import import_traces, remarks
    from tui.kernel_text import kernel_lines

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
        print_document(document)
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


def run_export(recording: Path, output: Path, *, form: str, as_json: bool) -> None:
    """Write a recording as a Chrome JSON trace, or its requests as a trace of Mooncake's form."""
    if form not in _ENDINGS:
        raise UsageError(f"--format {form}: one of {', '.join(_ENDINGS)}")
    if output.suffix not in _ENDINGS[form]:
        named = {"perfetto": ".json or .json.gz", "mooncake": ".jsonl"}[form]
        raise UsageError(f"-o {output}: name a {named} file")
    if form == "mooncake":
        _export_requests(recording, output, as_json=as_json)
        return
    from traces.perfetto import export_trace

    opened = Recording.open(recording)
    if not any(opened.rows(table) for table in ("problems", "steps", "kernels", "power")):
        raise RecordingError(
            f"{opened.name}: holds no problem, step, kernel or power to draw; ttscope show tells "
            "what /metrics told"
        )
    counts = export_trace(opened, output)
    if as_json:
        print_document({"trace": str(output), "events": counts})
        return
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    wrote = f"wrote {told or 'an empty trace'} to {output}; open it in https://ui.perfetto.dev"
    for line in wrap("", wrote, width=80, indent=0):
        say(line)


def _export_requests(recording: Path, output: Path, *, as_json: bool) -> None:
    from traces.mooncake_export import export_requests

    found = export_requests(Recording.open(recording), output)
    if as_json:
        print_document(
            {
                "trace": str(output),
                "requests": found.requests,
                "blocks": found.blocks,
                "notes": list(found.notes),
            }
        )
        return
    wrote = (
        f"wrote {found.requests:,} requests, whose prompts have {found.blocks:,} different blocks, "
        f"to {output}"
    )
    for line in wrap("", wrote, width=80, indent=0):
        say(line)
    for note in found.notes:
        for line in wrap("!", note, width=80, indent=2):
            say(line)
