"""From profiler traces of others to a recording: one file per rank.

The recording has kernels, the steps that the annotations mark (as profiled ones, so that nothing
is fitted on them), a window per rank in `events`, and no problems, samples or policies. The
manifest says so under `provenance`: `imported` has the files' names, ranks and what was skipped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from traces.errors import UsageError
from traces.foreign.values import UNKNOWN_MODEL
from traces.foreign.written import Imported, written_into
from traces.kineto.read import TraceTables, read_trace, skipped_text
from traces.kineto.stream import LIMIT_BYTES
from traces.recording.manifest import check_free
from traces.recording.tables import TABLES
from traces.schema.engine import EngineConfig
from traces.schema.formats import counted, listed, number


def import_traces(
    paths: Sequence[Path],
    folder: Path,
    *,
    limit_bytes: int = LIMIT_BYTES,
    on_file: Callable[[Path], None] | None = None,
) -> Imported:
    """Read traces into the recording `folder`; return what was read, `files` by rank.

    A rank comes from the trace, else from the file's place among those given. `limit_bytes`
    holds for each file, `on_file` is told each before it is read. Raises TraceError for a file
    of which nothing can be read, UsageError when two files have the same rank or belong to worlds
    of different sizes, RecordingError when the folder cannot be written.
    """
    check_free(folder)
    read = []
    for path in paths:
        if on_file is not None:
            on_file(path)
        read.append(read_trace(path, limit_bytes=limit_bytes))
    traces = _with_ranks(read)
    engine = _engine(traces)
    key = engine.key()
    steps = step_rows(max(traces, key=lambda trace: len(trace.steps)))
    notes = _notes(traces)
    with written_into(folder) as tables:
        tables.add("kernels", pl.concat([trace.kernels for trace in traces]), engine=key)
        tables.add("steps", pl.DataFrame(steps, schema=TABLES["steps"]), engine=key)
        windows = pl.DataFrame([*map(_window_row, traces)], schema=TABLES["events"])
        tables.add("events", windows, engine=key, kind="window")
        tables.finish_one(
            {"format": "PyTorch profiler", "files": [_provenance(trace) for trace in traces]},
            notes,
            engine,
        )
    facts = [_facts(trace) for trace in traces]
    return Imported(
        head=f"PyTorch profiler: {counted(len(traces), 'file')}",
        rows=[("file", "rank", "steps", "kernels", "window", "idle"), *map(_cells, facts)],
        facts={"files": facts},
        files=traces,
        notes=tuple(notes),
    )


def _facts(trace: TraceTables) -> dict[str, Any]:
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


def _cells(facts: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (f"{facts[name]:,}" for name in ("steps", "kernels"))
    times = (number(facts[name], "s") for name in ("window_s", "idle_s"))
    return facts["file"][-34:], str(facts["rank"]), *counts, *times


def _notes(traces: Sequence[TraceTables]) -> list[str]:
    """Return in one line each what a reader must know: skipped events, cuts, unlike ranks."""
    names = listed([trace.path.name for trace in traces], 4)
    lines = [f"imported from profiler traces: {names}"]
    for trace in traces:
        notes = [*trace.notes]
        if trace.skipped:
            notes.append(f"skipped: {skipped_text(trace.skipped)}")
        if notes:
            lines.append(f"{trace.path.name}: {', '.join(notes)}")
    counts = Counter(len(trace.steps) for trace in traces)
    if len(counts) > 1:
        each = ", ".join(f"rank {trace.rank} {len(trace.steps):,}" for trace in traces[:8])
        lines.append(f"the ranks have different numbers of steps ({each})")
    if len({trace.on_device for trace in traces}) > 1:
        lines.append("some traces have device events and some only the CPU's")
    return lines


def step_rows(trace: TraceTables) -> list[dict[str, Any]]:
    """Return rows of steps until their last kernel's end; `end` is null where no date is told."""
    rows = []
    for step in trace.steps:
        end = max(step.end_ns, step.last_kernel_ns or step.end_ns)
        columns = {name: value for name, value in vars(step.mark).items() if name != "number"}
        rows.append(
            {
                "step": step.number,
                "end": _unix(trace, end),
                "wall_ns": end - step.start_ns,
                "profiled": True,
                "source": "measured",
                **columns,
            }
        )
    return rows


def _unix(trace: TraceTables, time_ns: int) -> int | None:
    return None if trace.unix_offset_ns is None else time_ns + trace.unix_offset_ns


def _window_row(trace: TraceTables) -> dict[str, Any]:
    detail = json.dumps({"window": 0} | trace.window_detail())
    return {"time": _unix(trace, trace.window.start_ns), "detail": detail}


def _with_ranks(traces: Sequence[TraceTables]) -> list[TraceTables]:
    """Give every trace a rank, and sort by it."""
    worlds = {trace.world_size for trace in traces if trace.world_size is not None}
    if len(worlds) > 1:
        sizes = ", ".join(f"{trace.path.name} of {trace.world_size}" for trace in traces[:4])
        raise UsageError(f"the traces are of different jobs ({sizes}). Import each job by itself")
    by_rank: dict[int, Path] = {}
    for trace in traces:
        if trace.rank is not None and trace.rank in by_rank:
            raise UsageError(
                f"{by_rank[trace.rank]} and {trace.path} both say rank {trace.rank}. Give one file "
                "per rank"
            )
        if trace.rank is not None:
            by_rank[trace.rank] = trace.path
    free = iter(rank for rank in range(2 * len(traces)) if rank not in by_rank)
    placed = []
    for trace in traces:
        rank = next(free) if trace.rank is None else trace.rank
        kernels = trace.kernels.with_columns(rank=pl.lit(rank, pl.Int64))
        placed.append(replace(trace, rank=rank, kernels=kernels))
    return sorted(placed, key=lambda trace: trace.rank or 0)


def _engine(traces: Sequence[TraceTables]) -> EngineConfig:
    """Return what the traces tell of the engine; they do not name its model."""
    first = traces[0]
    devices = sum(trace.window.devices for trace in traces if trace.on_device)
    return EngineConfig(
        model=UNKNOWN_MODEL,
        gpu=first.device_name,
        num_gpus=devices or None,
        vllm_version=first.vllm_version,
    )


def _provenance(trace: TraceTables) -> dict[str, Any]:
    return {
        "name": trace.path.name,
        "rank": trace.rank,
        "world_size": trace.world_size,
        "events": trace.events,
        "json_bytes": trace.bytes_read,
        "skipped": dict(trace.skipped),
        "notes": list(trace.notes),
    }
