"""From a trace's events to rows of the kernels table: steps, self and exposed time, idle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from traces.intervals import Ints, covered, distinct, enclosing, length, self_times, union
from traces.kernels import family_of
from traces.tables import KERNELS
from traces.trace_events import TraceEvents
from traces.trace_steps import Steps


@dataclass(frozen=True, kw_only=True)
class TraceWindow:
    """The span in which work was seen, in the trace's clock, and how much of it was busy.

    With devices: from the first launch or device event to the last event's end; `busy_ns` is the
    sum over devices of the time in which at least one event ran, `idle_ns` the rest of span x
    devices. On a CPU `devices` is 1, busy the time in which any operator ran.
    """

    start_ns: int
    end_ns: int
    busy_ns: int
    idle_ns: int
    devices: int


@dataclass(frozen=True)
class Rows:
    """Events of one kind as columns, with what was computed for each."""

    found: TraceEvents
    step: Ints
    stream: Ints
    name: Ints
    message: Ints  # which collective, -1 for none
    moved: Ints  # bytes, -1 where not known
    time: Ints
    own: Ints
    exposed: Ints  # -1 where not known
    window: TraceWindow
    last_ends: Mapping[int, int]
    device: int | None

    def frame(
        self, engine: str | None, rank: int | None, window_id: int, steps: Steps
    ) -> pl.DataFrame:
        """Return the rows of the kernels table, summed over equal events."""
        keys = (self.step, self.stream, self.name, self.message)
        order = np.lexsort(keys[::-1])
        fresh = np.zeros(order.size, dtype=bool)
        fresh[:1] = True
        for key in keys:
            fresh[1:] |= np.diff(key[order]) != 0
        first = np.flatnonzero(fresh)

        def total(values: Ints) -> list[int | None]:
            sums = np.add.reduceat(values[order], first).tolist()
            lowest = np.minimum.reduceat(values[order], first).tolist()
            return [None if low < 0 else sum_ for sum_, low in zip(sums, lowest, strict=True)]

        step, stream, name, message = (key[order][first].tolist() for key in keys)
        names = list(self.found.names)
        facts = [None, *self.found.messages]
        told = [facts[index + 1] for index in message]
        columns = {
            "engine": [engine] * first.size,
            "rank": [rank] * first.size,
            "step": [None if index < 0 else steps.numbers[index] for index in step],
            "window_id": [window_id] * first.size,
            "stream": [None if each < 0 else each for each in stream],
            "family": [family_of(names[index]) for index in name],
            "name": [names[index] for index in name],
            "count": np.diff([*first, order.size]).tolist(),
            "time": total(self.time),
            "self_time": total(self.own),
            "exposed_time": total(self.exposed),
            "collective": [fact and fact.collective for fact in told],
            "algorithm": [fact and fact.algorithm for fact in told],
            "bytes": total(self.moved),
            "dtype": [fact and fact.dtype for fact in told],
            "group_size": [fact and fact.group_size for fact in told],
        }
        return pl.DataFrame(columns, schema=KERNELS)


def device_rows(found: TraceEvents, steps: Steps, group: int | None) -> Rows:
    """Return the device events with their steps and exposed times; `group` as a stand-in."""
    event = found.device_columns(group)
    start, time = event["start"], event["time"]
    end = start + time
    launch = found.launch_columns()
    order = np.argsort(launch["correlation"], kind="stable")
    ids = launch["correlation"][order]
    place = np.searchsorted(ids, event["correlation"])
    linked = place < ids.size
    linked[linked] = ids[place[linked]] == event["correlation"][linked]
    linked &= event["correlation"] > 0
    which = order[place[linked]]
    step = np.full(start.shape, -1, dtype=np.int64)
    step[linked] = steps.by_launch(launch["thread"][which], launch["start"][which])
    _by_device_annotation(found, steps, event, step)
    begin = int(start.min())
    if which.size:
        begin = min(begin, int(launch["start"][which].min()))
    devices = distinct(event["device"])
    busy = sum(length(start[at], end[at]) for at in (event["device"] == d for d in devices))
    return Rows(
        found=found,
        step=step,
        stream=event["stream"],
        name=event["name"],
        message=event["message"],
        moved=event["bytes"],
        time=time,
        own=time,
        exposed=_exposed(found, event, end),
        window=_window(begin, int(end.max()), busy, len(devices)),
        last_ends=_last_ends(step, end),
        device=devices[0] if len(devices) == 1 and devices[0] >= 0 else None,
    )


def _by_device_annotation(
    found: TraceEvents, steps: Steps, event: dict[str, Any], step: Ints
) -> None:
    """Give kernels without a launch the step that the device's own annotation names."""
    by_id = {mark.external: i for i, mark in enumerate(steps.marks) if mark.external is not None}
    by_name: dict[str, int | None] = {}
    for index, mark in enumerate(steps.marks):
        by_name[mark.name] = None if mark.name in by_name else index
    groups: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for mark in found.device_annotations:
        index_of = by_name.get(mark.name)
        if mark.external in by_id:
            index_of = by_id[mark.external]
        if index_of is not None:
            groups.setdefault((mark.device, mark.thread), []).append(
                (mark.start, mark.end, index_of)
            )
    for (device, stream), marks in groups.items():
        here = np.flatnonzero(
            (step < 0) & (event["device"] == device) & (event["stream"] == stream)
        )
        starts, ends, index = np.asarray(sorted(marks), dtype=np.int64).T
        inside = enclosing(starts, ends, event["start"][here])
        step[here[inside >= 0]] = index[inside[inside >= 0]]


def _exposed(found: TraceEvents, event: dict[str, Any], end: Ints) -> Ints:
    """Return of each collective the time in which no other stream of its device computed."""
    families = np.asarray([family_of(name) == "communication" for name in found.names])
    message = families[event["name"]]
    computes = ~message & (event["copy"] == 0)
    start = event["start"]
    exposed = np.full(start.shape, -1, dtype=np.int64)
    places = zip(event["device"][message].tolist(), event["stream"][message].tolist(), strict=True)
    for device, stream in set(places):
        same = (event["device"] == device) & (event["stream"] == stream)
        other = computes & (event["device"] == device) & (event["stream"] != stream)
        here = np.flatnonzero(message & same)
        hidden = covered(union(start[other], end[other]), start[here], end[here])
        exposed[here] = end[here] - start[here] - hidden
    return exposed


def cpu_rows(found: TraceEvents, steps: Steps, group: int | None) -> Rows:
    """Return the operators of the CPU with their steps and self times; `group` as a stand-in."""
    op = found.cpu_columns(group)
    start, time, thread = op["start"], op["time"], op["thread"]
    own = self_times(thread, start, time)
    step = steps.by_launch(thread, start)
    end = start + time
    families = np.asarray([family_of(name) == "communication" for name in found.names])
    message = families[op["name"]]
    # A backend's thread (gloo) moves the data while the operator that asked for it returns and
    # its thread waits: there the time and the message are the backend's.
    moves = message & ((op["apart"] == 1) if (message & (op["apart"] == 1)).any() else True)
    hidden = covered(union(start[~message], end[~message]), start, end)
    exposed = np.where(op["apart"] == 1, time - hidden, own)
    absent = np.full(start.shape, -1, dtype=np.int64)
    return Rows(
        found=found,
        step=step,
        stream=absent,
        name=op["name"],
        message=np.where(moves | ~message, op["message"], -1),
        moved=op["bytes"],
        time=time,
        own=own,
        exposed=np.where(moves, exposed, -1),
        window=_window(int(start.min()), int(end.max()), length(start, end), 1),
        last_ends=_last_ends(step, end),
        device=None,
    )


def _last_ends(step: Ints, end: Ints) -> dict[int, int]:
    """Return when the last event of each step ended."""
    latest = np.full(int(step.max()) + 1, np.iinfo(np.int64).min)
    here = step >= 0
    np.maximum.at(latest, step[here], end[here])
    return {index: latest[index].item() for index in distinct(step[here])}


def _window(start: int, end: int, busy: int, devices: int) -> TraceWindow:
    return TraceWindow(
        start_ns=start,
        end_ns=end,
        busy_ns=busy,
        idle_ns=max((end - start) * devices - busy, 0),
        devices=devices,
    )
