"""A recording as a Chrome JSON trace, which Perfetto and chrome://tracing open.

Tracks: `problems`, `samples` (which hold their phases) and each engine's `steps`, as many as run at
a time; each engine's `events`; and for each engine and rank the kernels of every stream. A
recording keeps kernels summed per step, not when each ran: a step's families are laid end to end
from the step's start, and their arguments say so. Kernels without a step lie on a track of their
own. Times count from the recording's first, which the document's `baseTimeNanoseconds` holds.
"""

from __future__ import annotations

import gzip
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import polars as pl

from traces.files import whole_file
from traces.recording.reader import Recording
from traces.recording.tables import STEP_TOOK

LAID_OUT = "summed per step and laid end to end from its start, not when the kernels ran"
_PHASES = (  # name, begins at, ends at
    ("waiting", "arrival", "scheduled"),
    ("prefill", "scheduled", "first_token"),
    ("thinking", "first_token", "think_end"),
    ("answer", "think_end", "end"),
)
Slice = dict[str, Any]
_FIRST_TRACK = 100_000  # above the numbers of processes: a thread of its process's is its main one


def export_trace(recording: Recording, path: Path) -> dict[str, int]:
    """Write a trace (gzip for .gz); return how many slices of each kind. Raises RecordingError."""
    opened = gzip.open if path.suffix == ".gz" else open
    with whole_file(path) as partial, opened(partial, "wt", encoding="utf-8") as file:
        return _write(recording, file)


def _write(recording: Recording, file: TextIO) -> dict[str, int]:
    tracks = _Tracks()
    base = _first_time(recording)
    counts: Counter[str] = Counter(problems=0, samples=0, steps=0, kernels=0, events=0)
    head = {"displayTimeUnit": "ns", "baseTimeNanoseconds": base}
    file.write(json.dumps(head)[:-1] + ', "traceEvents": [\n')
    separator = ""
    for kind, piece in _slices(recording, base, tracks):
        counts[kind] += piece.pop("counts", 1)
        for time in ("ts", "dur"):
            if time in piece:
                origin = base if time == "ts" else 0
                piece[time] = round((piece[time] - origin) / 1e3, 3)
        file.write(separator + json.dumps(piece))
        separator = ",\n"
    for piece in tracks.names():
        file.write(separator + json.dumps(piece))
        separator = ",\n"
    file.write("\n]}\n")
    return dict(counts)


def _slices(recording: Recording, base: int, tracks: _Tracks) -> Iterator[tuple[str, Slice]]:
    for piece in _problems(recording.problems, tracks):
        yield "problems", piece
    for piece in _samples(recording.samples, tracks):
        yield "samples", piece
    kernels, events = recording.frame("kernels"), recording.frame("events")
    for engine in recording.manifest.engines:
        steps = _placed(recording.steps.filter(pl.col("engine") == engine), base)
        lanes = _Lanes(tracks, f"engine {engine}", "steps")
        for row in steps.sort("begin").iter_rows(named=True):
            track = lanes.take(row["begin"], row["end"])
            yield (
                "steps",
                _slice("step", track, row["begin"], row["took"], _told(row, "begin", "took")),
            )
        engine_kernels = kernels.filter(pl.col("engine") == engine)
        for piece in _kernels(engine_kernels, steps, engine, base, tracks):
            yield "kernels", piece
    for row in events.drop_nulls("time").iter_rows(named=True):
        track = tracks.of(f"engine {row['engine'] or ''}".strip(), "events")
        details = _told({"detail": row["detail"]})
        mark = {"name": row["kind"] or "event", "ph": "i", "s": "t", "ts": row["time"]}
        yield "events", mark | {"pid": track[0], "tid": track[1], "args": details}


def _placed(steps: pl.DataFrame, first: int) -> pl.DataFrame:
    """Return the steps by their times, with `begin` and `took`; undated ones in turn from `first`.

    Where the wall time is not known a step began at the end of the step before. One without either
    time is left out.
    """
    timed = steps.with_columns(took=STEP_TOOK).drop_nulls("took").sort("step")
    if timed["end"].null_count() == timed.height:
        timed = timed.with_columns(end=first + pl.col("took").cum_sum())
    timed = timed.drop_nulls("end").sort("end")
    return timed.with_columns(begin=pl.col("end") - pl.col("took"))


def _problems(problems: pl.DataFrame, tracks: _Tracks) -> Iterator[Slice]:
    lanes = _Lanes(tracks, "problems", "problem")
    for row in problems.drop_nulls("arrival").sort("arrival").iter_rows(named=True):
        end = row["end"] if row["end"] is not None else row["decided_at"]
        track = lanes.take(row["arrival"], end)
        name = f"problem {row['problem_id']}"
        yield _slice(name, track, row["arrival"], _span(row["arrival"], end), _told(row))


def _samples(samples: pl.DataFrame, tracks: _Tracks) -> Iterator[Slice]:
    lanes = _Lanes(tracks, "samples", "sample")
    for row in samples.drop_nulls("arrival").sort("arrival").iter_rows(named=True):
        track = lanes.take(row["arrival"], row["end"])
        name = f"sample {row['problem_id']}.{row['sample_index']}"
        yield _slice(name, track, row["arrival"], _span(row["arrival"], row["end"]), _told(row))
        last = row["arrival"]
        for phase, begin, end in _PHASES:
            start, stop = row[begin], row[end]
            if start is None or stop is None or not last <= start <= stop:
                continue
            if row["end"] is None or stop <= row["end"]:
                yield _slice(phase, track, start, stop - start, {}) | {"counts": 0}
                last = stop


def _kernels(
    kernels: pl.DataFrame, steps: pl.DataFrame, engine: str, first: int, tracks: _Tracks
) -> Iterator[Slice]:
    """Lay the families of each rank, stream and step end to end; none may overlap the next."""
    duration = pl.coalesce("self_time", "time").fill_null(0)
    keys = ("rank", "stream", "step", "family")
    sums = kernels.group_by(keys, maintain_order=True).agg(
        duration.sum().alias("ns"),
        pl.col("count").sum(),
        pl.col("name").sort_by(duration, descending=True).first().alias("longest"),
    )
    begins = dict(steps.select("step", "begin").iter_rows())
    ends: dict[tuple[str, str], int] = {}
    order = sums.with_columns(
        begin=pl.col("step").replace_strict(begins, default=None, return_dtype=pl.Int64)
    ).sort("begin", "rank", "stream", "ns", descending=[False, False, False, True], nulls_last=True)
    start = min(begins.values(), default=first)
    for row in order.iter_rows(named=True):
        stream = "operators" if row["stream"] is None else f"stream {row['stream']}"
        place = stream if row["begin"] is not None else f"{stream}, no step"
        key = (f"kernels of rank {row['rank'] or 0}, engine {engine}", place)
        at = max(start if row["begin"] is None else row["begin"], ends.get(key, 0))
        ends[key] = at + row["ns"]
        details = _told(row, "begin", "ns", "family") | {"placed": LAID_OUT}
        yield _slice(row["family"] or "other", tracks.of(*key), at, row["ns"], details)


def _slice(
    name: str, track: tuple[int, int], begin: int, length: int | None, args: Mapping[str, Any]
) -> Slice:
    """Return a complete slice, or one that never ended."""
    piece = {"name": name, "ph": "X", "pid": track[0], "tid": track[1], "ts": begin}
    if length is None:
        piece["ph"] = "B"
    else:
        piece["dur"] = length
    return piece | {"args": dict(args)}


def _span(begin: int, end: int | None) -> int | None:
    return None if end is None else max(end - begin, 0)


def _told(row: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """Return the columns that are known, without lists."""
    return {
        name: value
        for name, value in row.items()
        if value is not None and not isinstance(value, list) and name not in without
    }


def _first_time(recording: Recording) -> int:
    """Return the earliest time that a slice begins at, 0 when nothing has a date."""
    steps = recording.steps.select(pl.col("end") - STEP_TOOK).to_series()
    columns = [
        recording.problems["arrival"],
        recording.samples["arrival"],
        recording.frame("events")["time"],
        steps,
    ]
    times = [int(low) for column in columns if (low := column.drop_nulls().min()) is not None]  # type: ignore[arg-type]
    return min(times, default=0)


class _Tracks:
    """Numbers for processes and their tracks, in order of appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, tuple[int, int]]] = {}
        self._count = 0

    def of(self, process: str, track: str) -> tuple[int, int]:
        tracks = self._numbers.setdefault(process, {})
        if track not in tracks:
            pid = list(self._numbers).index(process) + 1
            # Of no other process: Perfetto takes a thread's number for its name everywhere.
            self._count += 1
            tracks[track] = (pid, _FIRST_TRACK + self._count)
        return tracks[track]

    def names(self) -> Iterator[Slice]:
        for process, tracks in self._numbers.items():
            for track, (pid, tid) in tracks.items():
                same = {"ph": "M", "pid": pid, "tid": tid}
                yield {**same, "name": "process_name", "args": {"name": process}}
                yield {**same, "name": "thread_name", "args": {"name": track}}


class _Lanes:
    def __init__(self, tracks: _Tracks, process: str, name: str) -> None:
        self._tracks, self._process, self._name = tracks, process, name
        self._busy: list[tuple[int, int]] = []  # until, lane
        self._free: list[int] = []
        self._count = 0

    def take(self, begin: int, end: int | None) -> tuple[int, int]:
        while self._busy and self._busy[0][0] <= begin:
            heapq.heappush(self._free, heapq.heappop(self._busy)[1])
        if self._free:
            lane = heapq.heappop(self._free)
        else:
            lane, self._count = self._count, self._count + 1
        if end is not None:
            heapq.heappush(self._busy, (max(end, begin + 1), lane))
        return self._tracks.of(self._process, f"{self._name} {lane + 1}")
