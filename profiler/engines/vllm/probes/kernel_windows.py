"""Sampled windows of the torch profiler on an engine in this process.

``--kernels M/N`` profiles M steps every N. A window costs more than its steps: starting the
profiler, writing its trace and reading it take their time too. All of it is measured, and no
window opens before all of them, it included, fit in `BUDGET` of the run's time until then: the
period stretches by itself. What the first will cost is known from a rehearsal before the run. The
traces lie in a folder of their own until the writer's thread has read them into the `kernels`
table.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from profiler.engines.vllm.probes.steps import StepProbe
from traces.clock import now_ns
from traces.errors import TraceError, UsageError
from traces.kineto.read import TraceTables, read_trace
from traces.recording.tables import KERNELS

log = logging.getLogger("ttscope.kernels")

BUDGET = 0.03  # of the run's time, for all that windows cost
SURE = 1.5  # times what the dearest of the last windows cost is expected of the next
LAST = 4
REHEARSED_STEPS = 8  # at the most
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
    expected_ns: float
    steps: int = 0
    stop_ns: int = 0
    profiled_ns: int = 0


@dataclass
class KernelWindows:
    """Opens and closes windows between the steps of `engine`, a vLLM LLMEngine, after `reset`.

    `clock` gives nanoseconds, `cpu_clock` the CPU time of the thread that reads traces.
    """

    engine: Any
    probe: StepProbe
    plan: WindowPlan
    folder: Path
    clock: Callable[[], int] = time.monotonic_ns
    cpu_clock: Callable[[], int] = time.thread_time_ns
    failure: str | None = None
    _open: _Window | None = None
    _closed: deque[_Window] = field(default_factory=deque)
    _events: deque[dict[str, Any]] = field(default_factory=deque)
    _count: int = 0
    _next: int | None = None  # step at which the next window opens
    _mark_until: int = 0
    _began: int = 0
    _ended: int | None = None
    _put_off: bool = False
    _quiet: tuple[int, int] = (0, 0)  # since when, and which step, no window was open
    _spent_ns: float = 0.0  # on the engine's thread
    _read_ns: float = 0.0  # on the writer's, which alone changes it
    _rehearsed_ns: tuple[float, float] = (0.0, 0.0)
    # What the last windows cost on either thread; the rehearsal until one was measured.
    _costs_ns: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))
    _reads_ns: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))

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

    def rehearse(self, run_steps: Callable[[int], None]) -> None:
        """Measure a window before the run; `run_steps` has the engine do so many steps.

        The profiler's first start, which takes longest, is done before, so that no run pays for it.
        """
        steps = min(self.plan.steps, REHEARSED_STEPS)
        try:
            self.engine.start_profile(profile_prefix="first")
            self._skip_totals()
            self.engine.stop_profile()
            marks = [self.clock()]
            for act in (
                lambda: run_steps(steps),
                lambda: self.engine.start_profile(profile_prefix="rehearsal"),
                lambda: run_steps(steps),
                self.engine.stop_profile,
            ):
                act()
                marks.append(self.clock())
        except Exception as error:
            self._give_up(error)
            return
        usual, start, profiled, stop = (b - a for a, b in pairwise(marks))
        begun = self.cpu_clock()
        for path in sorted(self.folder.glob("rehearsal_*.json*")):
            with contextlib.suppress(TraceError):
                read_trace(path)
        # More steps cost more, at the most in proportion.
        times = self.plan.steps / steps
        stalls = start + stop + max(profiled - usual, 0)
        self._rehearsed_ns = (times * stalls, times * (self.cpu_clock() - begun))
        for prefix in ("first", "rehearsal"):
            self._delete(prefix)

    def _skip_totals(self) -> None:
        """Keep vLLM's CPU build from printing totals at each export, which takes 0.1 s."""

        def skip(worker: Any) -> None:  # a local function, so that workers need not import us
            worker.profiler.dump_cpu_time_total = False

        with contextlib.suppress(Exception):
            self.engine.collective_rpc(skip)

    def reset(self) -> None:
        """Begin a new recording: the first window opens after half a period."""
        self._count, self._spent_ns, self._read_ns, self._put_off = 0, 0.0, 0.0, False
        for store in (self._closed, self._events, self._costs_ns, self._reads_ns):
            store.clear()
        self._began, self._ended = self.clock(), None
        self._quiet = (self._began, 0)
        self._next = max(self.plan.every // 2, 1)

    @property
    def cost_share(self) -> float | None:
        """What windows took of the time from `reset` to `finish`, stalls and reading included.

        None before the first; complete when all were read.
        """
        elapsed = (self.clock() if self._ended is None else self._ended) - self._began
        return (self._spent_ns + self._read_ns) / elapsed if self._count and elapsed else None

    def between_steps(self) -> None:
        """Open or close a window where it is time to; call after every engine step."""
        step = self.probe.step
        if self._open is not None:
            if step - self._open.first_step >= self.plan.steps:
                self._stop(self._open)
        elif self._mark_until and step >= self._mark_until:
            self.probe.profiled, self._mark_until = False, 0
            self._quiet = (self.clock(), step)
        elif self._next is not None and step >= self._next:
            if self._room():
                self._start(step)
            else:
                self._put_off = True

    def _room(self) -> bool:
        """Tell whether another window keeps all of them, those not read yet too, in the budget."""
        if self.failure is not None or len(self._closed) >= WAITING_TRACES:
            return False
        unread = len(self._closed) * self._read_costs_ns()
        cost = self._spent_ns + self._read_ns + unread + self._expected_ns()
        return cost <= BUDGET * (self.clock() - self._began)

    def _expected_ns(self) -> float:
        stalls = max(self._costs_ns, default=self._rehearsed_ns[0])
        return SURE * (stalls + self._read_costs_ns())

    def _read_costs_ns(self) -> float:
        return max(tuple(self._reads_ns), default=self._rehearsed_ns[1])

    def _start(self, step: int) -> None:
        before = self.clock()
        try:
            self.engine.start_profile(profile_prefix=f"window{self._count}")
        except Exception as error:
            self._give_up(error)
            return
        now = self.clock()
        since, first = self._quiet
        usual = (before - since) / max(step - first, 1)
        expected = self._expected_ns()
        self._open = _Window(self._count, step, before, now - before, usual, expected)
        self.probe.profiled = True
        self._count += 1

    def _stop(self, window: _Window) -> None:
        before = self.clock()
        window.steps = self.probe.step - window.first_step
        window.profiled_ns = before - window.started - window.start_ns
        try:
            self.engine.stop_profile()
        except Exception as error:
            self._give_up(error)
            return
        window.stop_ns = self.clock() - before
        self._open = None
        self._mark_until = self.probe.step + STEPS_AFTER
        excess = max(window.profiled_ns - window.steps * window.usual_ns, 0.0)
        cost = window.start_ns + window.stop_ns + excess
        self._spent_ns += cost
        self._costs_ns.append(cost)
        self._closed.append(window)
        self._next = window.first_step + self.plan.every

    def drain(self) -> pl.DataFrame:
        """Read the traces of closed windows: rows of the `kernels` table, and `events` beside."""
        frames = [pl.DataFrame(schema=KERNELS)]
        while self._closed:
            window = self._closed[0]
            begun = self.cpu_clock()
            for path in sorted(self.folder.glob(f"window{window.number}_*.json*")):
                try:
                    trace = read_trace(path, engine=self.probe.engine_key, window_id=window.number)
                except TraceError as error:
                    self._tell(window, {"error": str(error)})
                    continue
                frames.append(self._placed(trace, window))
                self._tell(window, _described(trace, window))
            self._delete(f"window{window.number}_")
            self._reads_ns.append(self.cpu_clock() - begun)
            self._read_ns += self._reads_ns[-1]
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

    def _tell(self, window: _Window, detail: dict[str, Any]) -> None:
        self._say("window", json.dumps({"window": window.number} | detail))

    def _say(self, kind: str, detail: str) -> None:
        engine = self.probe.engine_key
        self._events.append({"time": now_ns(), "engine": engine, "kind": kind, "detail": detail})

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
        self._ended, due, self._next = self.clock(), self._next, None
        self.probe.profiled, self._mark_until = False, 0
        if not self._count and self.failure is None and due is not None:
            self._say("note", f"no kernel window was opened: {self._why_none(due)}")

    def _why_none(self, due: int) -> str:
        elapsed_s, cost_s = (self.clock() - self._began) / 1e9, self._expected_ns() / 1e9
        if not self._put_off:
            return f"the run ended after {self.probe.step} steps, and the first was due at {due}"
        return (
            f"one may cost {cost_s:.2g} s, more than {BUDGET:.0%} of the run's {elapsed_s:.2g} s. "
            f"It takes a run of {cost_s / BUDGET:.2g} s (more problems), or fewer steps a window"
        )


def _described(trace: TraceTables, window: _Window) -> dict[str, Any]:
    return trace.window_detail() | {
        "start_stall_ns": window.start_ns,
        "export_stall_ns": window.stop_ns,
        "profiled_ns": window.profiled_ns,
        "usual_ns": round(window.steps * window.usual_ns),
        "expected_cost_ns": round(window.expected_ns),
    }
