"""From a trace's events to rows of the kernels table: steps, self and exposed time, idle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.kineto.events import TraceEvents
from traces.kineto.intervals import (
    Ints,
    Union,
    covered,
    distinct,
    enclosing,
    length,
    self_times,
    union,
)
from traces.kineto.names import family_of
from traces.kineto.steps import Steps
from traces.recording.tables import KERNELS


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
class Sums:
    """Events summed over those of one step, stream, name and message.

    `keys` are these four, `totals` and `lowest` the sums and the least values of time, own time,
    exposed time and bytes moved, where -1 stands for not known.
    """

    keys: tuple[Ints, ...]
    count: Ints
    totals: tuple[Ints, ...]
    lowest: tuple[Ints, ...]

    @staticmethod
    def of(keys: tuple[Ints, ...], values: tuple[Ints, ...]) -> Sums:
        return Sums(keys, np.ones(keys[0].shape, dtype=np.int64), values, values)._summed()

    @staticmethod
    def together(parts: list[Sums]) -> Sums:

        def joined(columns: list[tuple[Ints, ...]]) -> tuple[Ints, ...]:
            return tuple(np.concatenate(each) for each in zip(*columns, strict=True))

        return Sums(
            joined([part.keys for part in parts]),
            np.concatenate([part.count for part in parts]),
            joined([part.totals for part in parts]),
            joined([part.lowest for part in parts]),
        )._summed()

    def _summed(self) -> Sums:
        order = np.lexsort(self.keys[::-1])
        fresh = np.zeros(order.size, dtype=bool)
        fresh[:1] = True
        for key in self.keys:
            fresh[1:] |= np.diff(key[order]) != 0
        first = np.flatnonzero(fresh)
        return Sums(
            tuple(key[order][first] for key in self.keys),
            np.add.reduceat(self.count[order], first),
            tuple(np.add.reduceat(values[order], first) for values in self.totals),
            tuple(np.minimum.reduceat(values[order], first) for values in self.lowest),
        )

    def total(self, place: int) -> list[int | None]:
        """Return one of the four sums, None where a part of it is not known."""
        pairs = zip(self.totals[place].tolist(), self.lowest[place].tolist(), strict=True)
        return [None if low < 0 else whole for whole, low in pairs]


@dataclass(frozen=True)
class Rows:
    """What a trace's events add up to."""

    found: TraceEvents
    sums: Sums
    window: TraceWindow
    last_ends: Mapping[int, int]
    device: int | None

    def frame(
        self, engine: str | None, rank: int | None, window_id: int, steps: Steps
    ) -> pl.DataFrame:
        """Return the rows of the kernels table, summed over equal events."""
        step, stream, name, message = (key.tolist() for key in self.sums.keys)
        names = list(self.found.names)
        facts = [None, *self.found.messages]
        messages = [facts[index + 1] for index in message]
        columns = {
            "engine": [engine] * len(step),
            "rank": [rank] * len(step),
            "step": [None if index < 0 else steps.numbers[index] for index in step],
            "window_id": [window_id] * len(step),
            "stream": [None if each < 0 else each for each in stream],
            "family": [family_of(names[index]) for index in name],
            "name": [names[index] for index in name],
            "count": self.sums.count.tolist(),  # polars asks numpy.ma about arrays: 5 ms
            "time": self.sums.total(0),
            "self_time": self.sums.total(1),
            "exposed_time": self.sums.total(2),
            "collective": [fact and fact.collective for fact in messages],
            "algorithm": [fact and fact.algorithm for fact in messages],
            "bytes": self.sums.total(3),
            "dtype": [fact and fact.dtype for fact in messages],
            "group_size": [fact and fact.group_size for fact in messages],
        }
        return pl.DataFrame(columns, schema=KERNELS)


def device_rows(found: TraceEvents, steps: Steps, group: int | None) -> Rows:
    """Return the device events with their steps and exposed times; `group` as a stand-in."""
    busy: defaultdict[int, Union] = defaultdict(Union)
    others = {place: Union() for place in found.message_places}
    families = np.asarray([family_of(name) == "communication" for name in found.names])
    first, last = [], []
    for event in found.device_chunks(group):
        start, end, device = event["start"], event["start"] + event["time"], event["device"]
        if not start.size:
            continue
        first.append(int(start.min()))
        last.append(int(end.max()))
        for number in distinct(device):
            here = device == number
            busy[number].add(start[here], end[here])
        computes = ~families[event["name"]] & (event["copy"] == 0)
        for (number, stream), other in others.items():
            here = computes & (device == number) & (event["stream"] != stream)
            other.add(start[here], end[here])
    hidden = {place: other.whole() for place, other in others.items()}
    launches = _Launches(found, steps)
    by_device = _by_device_annotation(found, steps)
    parts: list[Sums] = []
    last_ends: dict[int, int] = {}
    for event in found.device_chunks(None):
        start, time = event["start"], event["time"]
        if not start.size:
            continue
        step = launches.steps_of(event["correlation"])
        by_device(event, step)
        exposed = _exposed(families[event["name"]], hidden, event)
        keys = (step, event["stream"], event["name"], event["message"])
        parts.append(Sums.of(keys, (time, time, exposed, event["bytes"])))
        for index, end in _last_ends(step, start + time).items():
            last_ends[index] = max(end, last_ends.get(index, end))
    begin = min([*first, *launches.first_used()])
    length_ns = sum(union.length() for union in busy.values())
    devices = sorted(busy)
    return Rows(
        found=found,
        sums=Sums.together(parts),
        window=_window(begin, max(last), length_ns, len(devices)),
        last_ends=last_ends,
        device=devices[0] if len(devices) == 1 and devices[0] >= 0 else None,
    )


class _Launches:
    """The calls that put work on a device, by their correlation id; the first of an id counts."""

    def __init__(self, found: TraceEvents, steps: Steps) -> None:
        count = found.launches.size
        self._ids, self._starts = np.empty(count, np.int64), np.empty(count, np.int64)
        self._steps = np.empty(count, np.int32)
        filled, highest, sorted_ = 0, 0, True
        for launch in found.launches.chunks():
            ids = launch["correlation"]
            if not ids.size:
                continue
            here = slice(filled, filled := filled + ids.size)
            self._ids[here], self._starts[here] = ids, launch["start"]
            self._steps[here] = steps.by_launch(launch["thread"], launch["start"])
            sorted_ &= bool(ids[0] >= highest and (np.diff(ids) >= 0).all())
            highest = ids[-1]
        if not sorted_:
            order = np.argsort(self._ids, kind="stable")
            self._ids, self._starts = self._ids[order], self._starts[order]
            self._steps = self._steps[order]
        self._used = np.zeros(self._ids.shape, dtype=bool)

    def steps_of(self, correlation: Ints) -> Ints:
        """Return the step of each event's launch, -1 where there is none."""
        place = np.searchsorted(self._ids, correlation)
        linked = (place < self._ids.size) & (correlation > 0)
        linked[linked] = self._ids[place[linked]] == correlation[linked]
        step = np.full(correlation.shape, -1, dtype=np.int64)
        step[linked] = self._steps[place[linked]]
        self._used[place[linked]] = True
        return step

    def first_used(self) -> list[int]:
        """Return when the first launch began whose step was asked for; empty when none was."""
        starts = self._starts[self._used]
        return [int(starts.min())] if starts.size else []


def _by_device_annotation(
    found: TraceEvents, steps: Steps
) -> Callable[[dict[str, Any], Ints], None]:
    """Return what gives kernels without a launch the step that the device's own mark names."""
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
    columns = {
        place: np.asarray(sorted(marks), dtype=np.int64).T for place, marks in groups.items()
    }

    def fill(event: dict[str, Any], step: Ints) -> None:
        for (device, stream), (starts, ends, index) in columns.items():
            here = np.flatnonzero(
                (step < 0) & (event["device"] == device) & (event["stream"] == stream)
            )
            inside = enclosing(starts, ends, event["start"][here])
            step[here[inside >= 0]] = index[inside[inside >= 0]]

    return fill


def _exposed(
    message: NDArray[np.bool_],
    hidden: Mapping[tuple[int, int], tuple[Ints, Ints]],
    event: dict[str, Any],
) -> Ints:
    """Return of each collective the time in which no other stream of its device computed."""
    start, end = event["start"], event["start"] + event["time"]
    exposed = np.full(start.shape, -1, dtype=np.int64)
    for (device, stream), computing in hidden.items():
        here = np.flatnonzero(message & (event["device"] == device) & (event["stream"] == stream))
        under = covered(computing, start[here], end[here])
        exposed[here] = end[here] - start[here] - under
    return exposed


def cpu_rows(found: TraceEvents, steps: Steps, group: int | None) -> Rows:
    """Return the operators of the CPU with their steps and self times; `group` as a stand-in."""
    op = found.cpu_columns(group)
    start, time, thread = op["start"], op["time"], op["thread"]
    self_ns = self_times(thread, start, time)
    step = steps.by_launch(thread, start)
    end = start + time
    families = np.asarray([family_of(name) == "communication" for name in found.names])
    message = families[op["name"]]
    # A backend's thread (gloo) moves the data while the operator that asked for it returns and
    # its thread waits: there the time and the message are the backend's.
    moves = message & ((op["apart"] == 1) if (message & (op["apart"] == 1)).any() else True)
    hidden = covered(union(start[~message], end[~message]), start, end)
    exposed = np.where(op["apart"] == 1, time - hidden, self_ns)
    absent = np.full(start.shape, -1, dtype=np.int64)
    keys = (step, absent, op["name"], np.where(moves | ~message, op["message"], -1))
    return Rows(
        found=found,
        sums=Sums.of(keys, (time, self_ns, np.where(moves, exposed, -1), op["bytes"])),
        window=_window(int(start.min()), int(end.max()), length(start, end), 1),
        last_ends=_last_ends(step, end),
        device=None,
    )


def _last_ends(step: Ints, end: Ints) -> dict[int, int]:
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
