"""The steps of a trace, and which of them launched what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.kineto.events import Annotation, TraceEvents
from traces.kineto.intervals import Ints, distinct, enclosing
from traces.kineto.marks import StepMark


@dataclass(frozen=True, kw_only=True)
class TraceStep:
    """One step annotation.

    `number` is what the kernels' `step` column holds: PyTorch's own number, or the place among
    the trace's steps. `start_ns` and `end_ns` are the annotation's, on the CPU; `last_kernel_ns`
    is when the last of its kernels ended, None without any. All in the trace's clock.
    """

    number: int
    name: str
    start_ns: int
    end_ns: int
    last_kernel_ns: int | None
    mark: StepMark


@dataclass(frozen=True)
class Steps:
    """The step annotations by start; `numbers[i]` is what a kernel's row says for step i."""

    marks: list[Annotation]
    numbers: list[int]

    def by_launch(self, threads: Ints, times: Ints) -> Ints:
        """Return the index of the step enclosing each moment on its thread, -1 without one."""
        indices = np.full(times.shape, -1, dtype=np.int64)
        mark_threads = np.asarray([mark.thread for mark in self.marks], dtype=np.int64)
        for thread in distinct(mark_threads):
            which, here = np.flatnonzero(mark_threads == thread), np.flatnonzero(threads == thread)
            starts = np.asarray([self.marks[i].start for i in which], dtype=np.int64)
            ends = np.asarray([self.marks[i].end for i in which], dtype=np.int64)
            inside = enclosing(starts, ends, times[here])
            indices[here[inside >= 0]] = which[inside[inside >= 0]]
        return indices

    def described(self, last_ends: Mapping[int, int]) -> list[TraceStep]:
        """Return the steps; `last_ends` has when the last kernel of step i ended."""
        return [
            TraceStep(
                number=number,
                name=mark.name,
                start_ns=mark.start,
                end_ns=mark.end,
                last_kernel_ns=last_ends.get(index),
                mark=mark.mark,
            )
            for index, (mark, number) in enumerate(zip(self.marks, self.numbers, strict=True))
        ]


def find_steps(found: TraceEvents) -> tuple[Steps, list[str]]:
    """Return the steps in order: vLLM's annotations where there are any, else PyTorch's."""
    every = found.annotations or _joined(found.device_annotations)
    engine = [mark for mark in every if mark.mark.number is None]
    marks = sorted(engine or every, key=lambda mark: (mark.start, -mark.end))
    numbers = [mark.mark.number for mark in marks]
    step_numbers = [number for number in numbers if number is not None]
    if len(set(step_numbers)) < len(marks):
        step_numbers = list(range(len(marks)))
    notes = []
    last: dict[int, int] = {}
    overlaps = 0
    for mark in marks:
        overlaps += mark.start < last.get(mark.thread, mark.start)
        last[mark.thread] = max(last.get(mark.thread, mark.end), mark.end)
    if overlaps:
        notes.append(f"{overlaps:,} steps overlap. A kernel belongs to the last begun")
    return Steps(marks, step_numbers), notes


def _joined(marks: list[Annotation]) -> list[Annotation]:
    """Join a step's annotations on several streams: they share its id, or its name."""
    joined: dict[Any, Annotation] = {}
    for mark in marks:
        key = mark.name if mark.external is None else mark.external
        earlier = joined.get(key, mark)
        joined[key] = mark._replace(
            thread=-1, start=min(mark.start, earlier.start), end=max(mark.end, earlier.end)
        )
    return list(joined.values())
