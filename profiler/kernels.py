"""Sampled windows of the torch profiler on an engine in this process.

``--kernels M/N`` profiles M steps every N. A window costs more than its steps: starting the
profiler, writing its trace and reading it take their time too. All of it is measured, and the
period is stretched until it is below `BUDGET` of the run. The traces lie in a folder of their own
until the writer's thread has read them into the `kernels` table.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from profiler.steps import StepProbe
from traces.errors import TraceError, UsageError
from traces.kineto import TraceTables, read_trace
from traces.tables import KERNELS

log = logging.getLogger("ttscope.kernels")

BUDGET = 0.03  # of the run's time, for all that windows cost
STEPS_AFTER = 1  # steps after a window that are marked profiled too: its stalls are in them
WAITING_TRACES = 4  # windows that may wait to be read; no window begins while more do
_FORM = re.compile(r"([1-9]\d{0,3})/([1-9]\d{0,6})")


@dataclass(frozen=True)
class WindowPlan:
    """Profile `steps` engine steps every `every` steps, or less often (see `BUDGET`)."""

    steps: int
    every: int

    @staticmethod
    def parse(text: str) -> WindowPlan:
        """Read ``M/N``. Raises UsageError for anything else, or for M not below N."""
        match = _FORM.fullmatch(text)
        if match is None or int(match[1]) >= int(match[2]):
            raise UsageError(
                f"--kernels {text}: give M/N with M below N, such as 4/400 for 4 steps every 400"
            )
        return WindowPlan(int(match[1]), int(match[2]))


@dataclass
class _Window:
    number: int
    first_step: int
    started: int  # monotonic ns, before the profiler was started
    start_ns: int  # what starting it took
    usual_ns: float  # mean interval of the steps before
    steps: int = 0
    stop_ns: int = 0
    profiled_ns: int = 0


@dataclass
class KernelWindows:
    """Opens and closes windows between the steps of `engine`, a vLLM LLMEngine, after `reset`."""

    engine: Any
    probe: StepProbe
    plan: WindowPlan
    folder: Path
    failure: str | None = None
    _open: _Window | None = None
    _closed: deque[_Window] = field(default_factory=deque)
    _events: deque[dict[str, Any]] = field(default_factory=deque)
    _count: int = 0
    _next: int | None = None  # step at which the next window opens
    _mark_until: int = 0
    _began: int = 0
    _quiet: tuple[int, int] = (0, 0)  # since when, and which step, no window was open
    _spent_ns: float = 0.0  # on the engine's thread
    _read_ns: int = 0  # on the writer's, which alone changes it
    _last_cost_ns: float = 0.0

    @staticmethod
    def profiler_config(folder: Path, *, shapes: bool) -> dict[str, Any]:
        """Return vLLM's `profiler_config` for windows whose traces go to `folder`.

        With `shapes` the operators' are kept, the only place where a CPU tells message sizes.
        """
        return {
            "profiler": "torch",
            "torch_profiler_dir": str(folder),
            "torch_profiler_with_stack": False,
            "torch_profiler_record_shapes": shapes,
            "torch_profiler_use_gzip": False,
            "torch_profiler_dump_cuda_time_total": False,
            "ignore_frontend": True,
            "detailed_trace_annotation": True,
        }

    def warm_up(self) -> None:
        """Open and close an empty window, so that no run pays for the profiler's first start."""
        try:
            self.engine.start_profile(profile_prefix="warm-up")
            self._skip_totals()
            self.engine.stop_profile()
        except Exception as error:
            self._give_up(error)
        self._delete("warm-up")

    def _skip_totals(self) -> None:
        """Keep vLLM's CPU build from printing totals at each export, a third of a second's stall.

        Where the worker is in another process this is out of reach, and part of a window's cost.
        """
        with contextlib.suppress(AttributeError):
            executor = self.engine.engine_core.engine_core.model_executor
            executor.driver_worker.worker.profiler.dump_cpu_time_total = False

    def reset(self) -> None:
        """Begin a new recording: the first window opens after half a period."""
        self._count, self._spent_ns, self._read_ns, self._last_cost_ns = 0, 0.0, 0, 0.0
        self._began = time.monotonic_ns()
        self._quiet = (self._began, 0)
        self._next = max(self.plan.every // 2, 1)
        self._closed.clear()
        self._events.clear()

    @property
    def cost_share(self) -> float | None:
        """What windows took of the time since `reset`, stalls and reading included.

        None before the first.
        """
        elapsed = time.monotonic_ns() - self._began
        return (self._spent_ns + self._read_ns) / elapsed if self._count else None

    def between_steps(self) -> None:
        """Open or close a window where it is time to; call after every engine step."""
        step = self.probe.step
        if self._open is not None:
            if step - self._open.first_step >= self.plan.steps:
                self._stop(self._open)
        elif self._mark_until and step >= self._mark_until:
            self.probe.profiled, self._mark_until = False, 0
            self._quiet = (time.monotonic_ns(), step)
        elif self._next is not None and step >= self._next and self._room():
            self._start(step)

    def _room(self) -> bool:
        """Tell whether another window like the last keeps all of them within the budget."""
        if self.failure is not None or len(self._closed) >= WAITING_TRACES:
            return False
        expected = self._spent_ns + self._read_ns + self._last_cost_ns
        return expected <= BUDGET * (time.monotonic_ns() - self._began)

    def _start(self, step: int) -> None:
        before = time.monotonic_ns()
        try:
            self.engine.start_profile(profile_prefix=f"window{self._count}")
        except Exception as error:
            self._give_up(error)
            return
        now = time.monotonic_ns()
        since, first = self._quiet
        usual = (before - since) / max(step - first, 1)
        self._open = _Window(self._count, step, before, now - before, usual)
        self.probe.profiled = True
        self._count += 1

    def _stop(self, window: _Window) -> None:
        before = time.monotonic_ns()
        window.steps = self.probe.step - window.first_step
        window.profiled_ns = before - window.started - window.start_ns
        try:
            self.engine.stop_profile()
        except Exception as error:
            self._give_up(error)
            return
        window.stop_ns = time.monotonic_ns() - before
        self._open = None
        self._mark_until = self.probe.step + STEPS_AFTER
        excess = max(window.profiled_ns - window.steps * window.usual_ns, 0.0)
        self._last_cost_ns = window.start_ns + window.stop_ns + excess
        self._spent_ns += self._last_cost_ns
        self._closed.append(window)
        self._next = window.first_step + self.plan.every

    def drain(self) -> pl.DataFrame:
        """Read the traces of closed windows: rows of the `kernels` table, and `events` beside."""
        frames = [pl.DataFrame(schema=KERNELS)]
        while self._closed:
            window = self._closed[0]
            begun = time.thread_time_ns()
            for path in sorted(self.folder.glob(f"window{window.number}_*.json*")):
                try:
                    trace = read_trace(path, engine=self.probe.engine_key, window_id=window.number)
                except TraceError as error:
                    self._say(window, {"error": str(error)})
                    continue
                frames.append(self._placed(trace, window))
                self._say(window, _described(trace, window))
            self._delete(f"window{window.number}_")
            self._read_ns += time.thread_time_ns() - begun
            self._closed.popleft()
        return pl.concat(frames)

    def events(self) -> list[dict[str, Any]]:
        """Return rows of the `events` table, one per window and rank read since the last call."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def _placed(self, trace: TraceTables, window: _Window) -> pl.DataFrame:
        """Give kernels the engine's step numbers; null where the trace has other steps."""
        same = len(trace.steps) == window.steps
        order = {mark.number: window.first_step + i for i, mark in enumerate(trace.steps)}
        steps = pl.col("step").replace_strict(
            list(order), list(order.values()), default=None, return_dtype=pl.Int64
        )
        rows = trace.kernels.with_columns(step=steps if same and order else pl.lit(None, pl.Int64))
        return rows.select(pl.col(name).cast(kind) for name, kind in KERNELS.items())

    def _say(self, window: _Window, detail: dict[str, Any]) -> None:
        self._events.append(
            {
                "time": time.time_ns(),
                "engine": self.probe.engine_key,
                "kind": "window",
                "detail": json.dumps({"window": window.number} | detail),
            }
        )

    def _give_up(self, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {error}"
        self._open, self.probe.profiled = None, False
        log.warning("no more kernel windows (%s)", self.failure)

    def _delete(self, prefix: str) -> None:
        for path in self.folder.glob(f"{prefix}*"):
            path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Close a window that is open and open no more; its trace can still be drained."""
        if self._open is not None:
            self._stop(self._open)
        self._next = None
        self.probe.profiled, self._mark_until = False, 0


def _described(trace: TraceTables, window: _Window) -> dict[str, Any]:
    return trace.window_detail() | {
        "start_stall_ns": window.start_ns,
        "export_stall_ns": window.stop_ns,
        "profiled_ns": window.profiled_ns,
        "usual_ns": round(window.steps * window.usual_ns),
    }
