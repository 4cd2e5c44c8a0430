"""Which kind of file somebody gives: samples, requests, steps or profiler traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from traces.errors import OutcomesError, UsageError
from traces.foreign.source import head_of
from traces.plain_text import flag_word

FileKind = Literal["samples", "requests", "traces", "passes", "forwards"]


def files_in(paths: Sequence[Path]) -> list[Path]:
    """Return the paths, folders as their forward passes. Raises UsageError for one without any."""
    if not paths:
        raise UsageError("name the files to import")
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*fpm*.jsonl*")) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"{path}: holds no files *fpm*.jsonl.gz. Name the files to import")
        files += inside
    return files


def kind_of(paths: Sequence[Path]) -> FileKind:
    """Return what files of others hold, by the first bytes of the first.

    Raises OutcomesError where it cannot be read, TraceError where it is of no kind, UsageError for
    several files of requests.
    """
    from traces.foreign.evaluations import importer as outcomes
    from traces.foreign.evaluations.plain import not_lines
    from traces.foreign.power.readings import kept_in
    from traces.foreign.requests import importer as requests
    from traces.foreign.steps import bench_forward, forward_passes
    from traces.kineto.stream import TraceStream

    head = head_of(paths[0])
    if kept_in(head) is not None:
        raise UsageError(
            f"{paths[0]}: holds power readings. Join them with the recording of the run: "
            f"ttscope import REC {flag_word('power', paths[0])} -o OUT"
        )
    if forward_passes.recognises(head):
        return "passes"
    if bench_forward.recognises(head):
        if len(paths) > 1:
            raise UsageError("give one file of vllm bench forward at a time")
        return "forwards"
    if any(each.recognises(head) for each in outcomes.FORMATS):
        return "samples"
    if any(each.recognises(head) for each in requests.FORMATS):
        if len(paths) > 1:
            raise UsageError("give one file of requests at a time. Each is a load of its own")
        return "requests"
    if (why := not_lines(head)) is not None:
        raise OutcomesError(f"{paths[0]}: {why}")
    next(iter(TraceStream(paths[0])), None)
    return "traces"
