"""PyTorch profiler (Kineto) traces: which kernels ran, for how long, and in which step.

`read_trace` streams the file, keeps about thirty bytes per kernel, launch and operator, and sums
at the end. A trace with device events (CUDA, ROCm, Triton) counts those; one without counts the
operators of the CPU by self time.

A kernel belongs to the step whose annotation encloses its launch, on the launch's thread; the
correlation id leads from kernel to launch, for a graph's kernels to the launch of the graph.
Where no launch is known, the device's own annotation decides. Never the time at which the kernel
started: it may run long after its step's annotation ended. Without a link its step is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from traces.errors import TraceError
from traces.kineto.events import TraceEvents
from traces.kineto.rows import TraceWindow, cpu_rows, device_rows
from traces.kineto.steps import TraceStep, find_steps
from traces.kineto.stream import LIMIT_BYTES, TraceStream


@dataclass(frozen=True, kw_only=True)
class TraceTables:
    """What a trace holds.

    `kernels` has the columns of `traces.recording.tables.KERNELS`, one row per step, stream, name
    and message size; `time`, `self_time`, `exposed_time` and `bytes` are sums over `count` events.
    `self_time` of a device event is its time, `stream` of a CPU operator null. `exposed_time` is
    given for collectives: the part in which no other stream of the device computed, and on a CPU
    the self time, since its thread waits. Add `unix_offset_ns` to a time of the trace to get
    unix nanoseconds; it is None where the trace does not say. `skipped` counts what could not be
    read by reason, `notes` are one-line remarks.
    """

    path: Path
    rank: int | None
    world_size: int | None
    kernels: pl.DataFrame
    steps: tuple[TraceStep, ...]
    window: TraceWindow
    on_device: bool
    unix_offset_ns: int | None
    device_name: str | None
    vllm_version: str | None
    bytes_read: int
    events: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def window_detail(self) -> dict[str, Any]:
        """Return what the `detail` of a window's row in `events` says of this trace."""
        return {
            "rank": self.rank,
            "steps": len(self.steps),
            "span_ns": self.window.end_ns - self.window.start_ns,
            "busy_ns": self.window.busy_ns,
            "idle_ns": self.window.idle_ns,
            "devices": self.window.devices,
            "skipped": dict(self.skipped),
        }


def read_trace(
    path: str | Path,
    *,
    engine: str | None = None,
    window_id: int = 0,
    limit_bytes: int = LIMIT_BYTES,
) -> TraceTables:
    """Read a PyTorch profiler trace (.json or .json.gz), whole or damaged.

    `engine` and `window_id` are written into the kernels' rows. Raises TraceError when the file
    cannot be opened, is empty, is no trace, holds more than `limit_bytes` of JSON, or nothing that
    can be read.
    """
    stream, events = _collect(path, limit_bytes, keep_ops=False)
    if not events.devices.size and not events.ops.size:
        stream, events = _collect(path, limit_bytes, keep_ops=True)
    skipped = stream.skipped + events.skipped
    info = stream.metadata.get("distributedInfo")
    info = info if isinstance(info, dict) else {}
    if not events.devices.size and not events.ops.size:
        left = f", skipped: {skipped_text(skipped)}" if skipped else ""
        raise TraceError(
            f"{path}: no kernel and no operator in {events.seen:,} events{left}. Profile with "
            "CPU or CUDA activities" + (f" ({stream.cut})" if stream.cut else "")
        )
    steps, notes = find_steps(events)
    if stream.cut:
        notes.append(f"the file is cut off ({stream.cut}). What is lost of it counts as idle")
    group = _group_size(info)
    rows = (
        device_rows(events, steps, group) if events.devices.size else cpu_rows(events, steps, group)
    )
    rank = _whole(info.get("rank"))
    return TraceTables(
        path=Path(path),
        rank=rank,
        world_size=_whole(info.get("world_size")),
        kernels=rows.frame(engine, rank, window_id, steps),
        steps=tuple(steps.described(rows.last_ends)),
        window=rows.window,
        on_device=bool(events.devices.size),
        unix_offset_ns=_unix_offset(stream.metadata, rows.window.start_ns),
        device_name=_device_name(stream.metadata, rows.device),
        vllm_version=_text(stream.metadata.get("vllm_version")),
        bytes_read=stream.bytes_read,
        events=events.seen,
        skipped=dict(skipped),
        notes=tuple(notes),
    )


def _collect(
    path: str | Path, limit_bytes: int, *, keep_ops: bool
) -> tuple[TraceStream, TraceEvents]:
    """Read all events; operators too where asked, or where the trace tells of no device."""
    stream = TraceStream(path, limit_bytes=limit_bytes)
    collected: TraceEvents | None = None
    for events in stream:
        if collected is None:
            collected = TraceEvents(
                keep_ops=keep_ops or not stream.metadata.get("deviceProperties")
            )
        collected.add(events)
    collected = collected or TraceEvents()
    collected.finish()
    return stream, collected


def skipped_text(skipped: Mapping[str, int]) -> str:
    """Return what was skipped as one phrase, the most frequent reason first."""
    ordered = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {reason}" for reason, count in ordered[:6]]
    if len(ordered) > 6:
        shown.append(f"{sum(count for _, count in ordered[6:]):,} for other reasons")
    return ", ".join(shown)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _group_size(info: Mapping[str, Any]) -> int | None:
    """Return the size of the only process group with more than one rank, if it is the only."""
    groups = info.get("pg_config")
    sizes = {
        size
        for group in (groups if isinstance(groups, list) else ())
        if isinstance(group, dict) and (size := _whole(group.get("pg_size"))) and size > 1
    }
    return sizes.pop() if len(sizes) == 1 else None


def _unix_offset(metadata: Mapping[str, Any], start_ns: int) -> int | None:
    """Return what to add to the trace's times: 0 where they count from 1970 already."""
    if start_ns > 10**18:
        return 0
    base = metadata.get("baseTimeNanoseconds")
    return base if isinstance(base, int) and 0 < base < 1 << 62 else None


def _device_name(metadata: Mapping[str, Any], device: int | None) -> str | None:
    listed = metadata.get("deviceProperties")
    devices = [
        each for each in (listed if isinstance(listed, list) else ()) if isinstance(each, dict)
    ]
    names = {_text(each.get("name")) for each in devices if device in (None, each.get("id"))}
    return names.pop() if len(names) == 1 else None
