"""Which kind of file somebody gives: samples, requests, steps or profiler traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from traces.errors import OutcomesError, TraceError, TtscopeError, UsageError
from traces.foreign.source import head_of
from traces.plain_text import flag_word

FileKind = Literal["samples", "requests", "traces", "passes", "forwards"]


def files_in(paths: Sequence[Path]) -> list[Path]:
    """Return the paths, folders as their forward passes, else as their files of JSON.

    Raises UsageError for a folder without any.
    """
    if not paths:
        raise UsageError("name the files to import")
    files: list[Path] = []
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = sorted(path.glob("*fpm*.jsonl*")) or sorted(path.glob("*.json"))
        if not inside:
            raise UsageError(
                f"{path}: holds no files *fpm*.jsonl.gz or *.json. Name the files to import"
            )
        files += inside
    return files


def kind_of(paths: Sequence[Path]) -> FileKind:
    """Return what files of others hold, by the first bytes of the first of a known kind.

    Raises OutcomesError where it cannot be read, TraceError where it is of no kind, UsageError for
    power readings, and several files of vllm bench forward.
    """
    faults: list[TtscopeError] = []
    for path in paths:
        try:
            kind = _kind(path)
        except (OutcomesError, TraceError) as error:
            faults.append(error)
            continue
        if kind == "forwards" and len(paths) > 1:
            raise UsageError("give one file of vllm bench forward at a time")
        return kind
    raise faults[0]


def _kind(path: Path) -> FileKind:
    from traces.foreign.evaluations import importer as outcomes
    from traces.foreign.evaluations.plain import not_lines
    from traces.foreign.power.readings import kept_in
    from traces.foreign.requests import importer as requests
    from traces.foreign.steps import bench_forward, forward_passes
    from traces.kineto.stream import TraceStream

    head = head_of(path)
    if kept_in(head) is not None:
        raise UsageError(
            f"{path}: holds power readings. Join them with the recording of the run: "
            f"ttscope import REC {flag_word('power', path)} -o OUT"
        )
    kinds: tuple[tuple[FileKind, Sequence[Any]], ...] = (
        ("passes", [forward_passes]),
        ("forwards", [bench_forward]),
        ("samples", outcomes.FORMATS),
        ("requests", requests.FORMATS),
    )
    for kind, formats in kinds:
        if any(each.recognises(head) for each in formats):
            return kind
    if (why := not_lines(head)) is not None:
        raise OutcomesError(f"{path}: {why}")
    next(iter(TraceStream(path)), None)
    return "traces"
