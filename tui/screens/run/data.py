"""What the Run screen reads of a recording in its workers: the timeline, steps, kernels, power."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from traces.live.watched import Watched, watched_engines
from traces.recording.reader import Recording
from traces.statistics import Floats
from traces.summary.energy import Curve, energy_curve, of_one_kind, run_window
from traces.summary.kernels import Collective, FamilyTime, collectives, time_by_family
from traces.summary.run import Run
from tui.text.recordings.series import Timeline

PAGE = 2_048  # steps that are read at once
PAGES = 8


def taken_ns(row: Mapping[str, Any]) -> int | None:
    """Return how long a step ran, None where that is not known.

    It begins at the end of the step before where that is later than its own start, as it is with
    asynchronous scheduling.
    """
    times = (row.get("wall_ns"), row.get("interval_ns"))
    return min((time for time in times if time is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run's timeline, its kernels by step, and what its devices drew from `window` on.

    `watched` are the servers of a recording without problems, by their /metrics.
    """

    timeline: Timeline | None
    kernels: pl.DataFrame
    curve: Curve | None
    window: tuple[int, int] | None
    watched: tuple[Watched, ...] = ()

    def watts(self, edges_ns: np.ndarray) -> Floats | None:
        """Return the mean power between the edges in watts, None where it is not known."""
        if self.curve is None or self.window is None:
            return None
        at = (edges_ns - self.window[0]) / 1e9
        joules = self.curve.between(at[:-1], at[1:])
        inside = (at[:-1] >= self.curve.seconds[0]) & (at[1:] <= self.curve.seconds[-1])
        return np.where(inside, joules / np.maximum(np.diff(at), 1e-12), np.nan)

    def joules(self, row: Mapping[str, Any] | None) -> float | None:
        """Return what was drawn while a step ran."""
        if self.curve is None or self.window is None or row is None:
            return None
        end, took = row.get("end"), taken_ns(row)
        if end is None or took is None:
            return None
        since, until = ((time - self.window[0]) / 1e9 for time in (end - took, end))
        if since < self.curve.seconds[0] or until > self.curve.seconds[-1]:
            return None
        return float(self.curve.between(np.array([since]), np.array([until]))[0])

    def kernels_of(
        self, step: int | None
    ) -> tuple[tuple[FamilyTime, ...] | None, tuple[Collective, ...] | None]:
        """Return families and collectives of one step; None where it was not profiled."""
        if step is None or not self.kernels.height:
            return None, None
        of_step = self.kernels.filter(pl.col("step") == step)
        return time_by_family(of_step), collectives(of_step)


def read_run(recording: Recording | None, run: Run) -> RunData:
    """Read what the screen draws; a recording that is not there leaves kernels and power out."""
    timeline = None
    if run.step_rows is not None and run.step_rows.height:
        timeline = Timeline.of(run.step_rows, run.engine.num_gpu_blocks)
    none = pl.DataFrame(schema={"step": pl.Int64})
    if recording is None:
        return RunData(timeline=timeline, kernels=none, curve=None, window=None)
    key = recording.engine_key(run.engine)
    kernels = recording.frame("kernels").filter(pl.col("engine") == key)
    curve, window = None, None
    if run.rows is not None and run.sample_rows is not None and run.energy_j.total is not None:
        window = run_window(run.rows, run.sample_rows)
        if window is not None:
            reading = energy_curve(of_one_kind(recording.frame("power")), window)
            curve = reading if isinstance(reading, Curve) else None
    watched = () if run.rows is not None and run.rows.height else watched_engines(recording, [run])
    return RunData(
        timeline=timeline, kernels=kernels, curve=curve, window=window, watched=tuple(watched)
    )


class StepPages:
    """Whole rows of an engine's steps, read from the recording a page at a time."""

    def __init__(self, recording: Recording | None, run: Run) -> None:
        self._recording, self._run = recording, run
        self._pages: OrderedDict[int, pl.DataFrame] = OrderedDict()

    def known(self, position: int) -> dict[str, Any] | None:
        """Return what is in memory of the step at a position of the run's steps."""
        rows = self._run.step_rows
        if rows is None or not 0 <= position < rows.height:
            return None
        page = self._pages.get(position // PAGE)
        source = rows if page is None else page
        at = position if page is None else position % PAGE
        return source.row(at, named=True)

    def read(self, position: int) -> bool:
        """Read the page of a position where it is not there; return whether it was read."""
        number = position // PAGE
        rows = self._run.step_rows
        if number in self._pages or self._recording is None or rows is None:
            return False
        shown = rows.slice(number * PAGE, PAGE)
        first, last = shown["step"][0], shown["step"][-1]
        page = (
            self._recording.table("steps")
            .filter(
                pl.col("step").is_between(first, last),
                pl.col("engine") == self._recording.engine_key(self._run.engine),
            )
            .collect()
            .sort("step")
        )
        if page.height != shown.height:  # steps of replicas share their numbers
            return False
        self._pages[number] = page
        while len(self._pages) > PAGES:
            self._pages.popitem(last=False)
        return True
