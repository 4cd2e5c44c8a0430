"""Windows of the torch profiler on servers that others use, through /start_profile.

A server is asked for a window of a few steps (vLLM's `max_iterations`, SGLang's `num_steps`), so
that it ends by itself even where we are killed; there is one at a time over all servers, and
together they are open at most `BUDGET` of the time. Traces are read where the server writes them,
in a folder that both see, and only files with our own prefix are touched.

Before the first window one without a step is opened and closed at once: it takes the profiler's
dear first start, shows that the folder is the right one, and that the server's front end, which no
number of steps bounds, is not profiled too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import polars as pl

from profiler.attach.deployment import Deployment, ProfilerWindow, Replica
from profiler.attach.window_steps import UNDER_WAY, Opened, Row, SeenSteps
from profiler.engines.server.served import routes
from traces.clock import now_ns
from traces.errors import EngineError, TraceError, UsageError
from traces.kineto.read import TraceTables, read_trace
from traces.live.engine_names import SGLANG, VLLM, software_of
from traces.live.numbers import RUNNING
from traces.recording.tables import KERNELS, PROFILED
from traces.recording.writer import RecordingWriter

BUDGET = 0.03  # of the time, for all windows together
STEPS, EVERY_S = 4, 60.0
MOST_STEPS = 100
FIRST_S = 3.0  # after the start
SETTLE_NS = 3_000_000_000  # until steps that a window holds have come
OPEN_S = 10.0  # that a window may stay open, where a server has not so many steps
_ANSWER_S = 60.0  # an export takes seconds on a large engine
_PATH = "/start_profile"
_FRONT_END = "async_llm"  # in the names of the front end's traces
_FORM = re.compile(r"([1-9]\d{0,2})/(\d+(?:\.\d+)?)s", re.ASCII)
SERVER_FLAGS = (
    '--profiler-config \'{"profiler": "torch", "torch_profiler_dir": "/DIR", "ignore_frontend": '
    'true, "torch_profiler_with_stack": false, "detailed_trace_annotation": true}\''
)


@dataclass(frozen=True)
class ServerPlan:
    """Windows of `steps` steps, `every_s` seconds apart or more (see `BUDGET`)."""

    steps: int = STEPS
    every_s: float = EVERY_S

    @staticmethod
    def parse(text: str) -> ServerPlan:
        """Read ``4/60s``. Raises UsageError."""
        match = _FORM.fullmatch(text)
        if match is None or int(match[1]) > MOST_STEPS or not 1 <= float(match[2]) <= 86_400:
            raise UsageError(
                f"--kernel-windows {text}: write STEPS/SECONDS, such as 4/60s for 4 steps every "
                f"minute. At most {MOST_STEPS} steps, and a second between windows"
            )
        return ServerPlan(int(match[1]), float(match[2]))


@dataclass(frozen=True)
class _Dialect:
    """How an engine's /start_profile is asked: `bound` is what ends a window by itself.

    `ended` are answers to /stop_profile that say that a window has ended by itself; they come when
    its traces are written. `named` says that `bound` stands in the server's description of its
    API. Traces are called PREFIX, `mark`, and more.
    """

    bound: str
    mark: str
    version: str
    named: bool = True
    ended: frozenset[int] = frozenset()


_DIALECTS = {
    VLLM: _Dialect(bound="max_iterations", mark="_", version="vLLM 0.32"),
    # SGLang 0.5.23, srt/managers/scheduler_components/profiler_manager.py
    SGLANG: _Dialect(
        bound="num_steps", mark="-", version="SGLang 0.5", named=False, ended=frozenset({500})
    ),
}


@dataclass(frozen=True)
class _Waiting:
    """A trace whose steps may still be on their way."""

    key: str
    trace: TraceTables
    detail: dict[str, Any]
    opened: Opened


class ServerWindows:
    """Opens windows on the servers of `deployment` in turn; their traces come to `folder`.

    Call `look`, which only looks, then `rehearse`, then have `watched` open them.
    """

    def __init__(self, deployment: Deployment, folder: Path, plan: ServerPlan) -> None:
        self._deployment, self._folder, self._plan = deployment, folder, plan
        self._mark = f"ttscope-{uuid.uuid4().hex[:8]}"
        self._serial = self._count = 0
        self._usable: list[Replica] = []
        self._waiting: deque[_Waiting] = deque()
        self._seen: defaultdict[str, SeenSteps] = defaultdict(SeenSteps)
        self._ending = False
        self._event: Callable[..., None] = lambda kind, detail, *, engine: None  # of no recording
        self.awaits_steps = False  # that somebody sends
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ttscope-windows", daemon=True)

    def saw(self, row: Row, error_ns: int | None) -> bool:
        """Take note of a row of `steps`, and tell whether a window was open in that step.

        `error_ns` is as of `SeenSteps.add`. Rows of an engine come in their order.
        """
        engine, ended = row["engine"], row["end"]
        begun = ended - (row["interval_ns"] or row["wall_ns"] or 0)
        self._seen[engine].add(row, error_ns)
        return any(
            span.begun <= ended and (span.ended is None or begun <= span.ended)
            for replica in self._deployment.replicas
            if engine in replica.keys.values()
            for span in list(replica.windows)
        )

    def look(self) -> None:
        """Ask whether windows can be had. Raises UsageError or EngineError in one line."""
        if not self._folder.is_dir() or not os.access(self._folder, os.R_OK | os.X_OK):
            raise UsageError(
                f"--kernels {self._folder}: no folder that can be read here. Name the servers' "
                "torch_profiler_dir"
            )
        for replica in self._deployment.replicas:
            with replica.access.client(_ANSWER_S) as client:
                self._check_route(client, replica)

    def rehearse(self) -> None:
        """Open and close a window without steps on each server (see the module).

        Raises EngineError in one line where a server's windows are not to be used.
        """
        for replica in self._deployment.replicas:
            try:
                with replica.access.client(_ANSWER_S) as client:
                    traces = self._window(client, replica, steps=0)
            except httpx.HTTPError as error:
                raise EngineError(
                    f"{replica.access.url}: {_PATH}: {type(error).__name__}"
                ) from None
            self._delete(traces)
            if not traces:
                raise EngineError(
                    f"--kernels {self._folder}: a trace of {replica.access.url} did not come "
                    "there. Name its torch_profiler_dir"
                )
            if any(_FRONT_END in path.name for path in traces):
                raise EngineError(
                    f"{replica.access.url}: its front end is profiled too, which no number of "
                    f'steps bounds. Start it with "ignore_frontend": true in --profiler-config'
                )
            self._usable.append(replica)

    def _check_route(self, client: httpx.Client, replica: Replica) -> None:
        url, schema = replica.access.url, routes(client)
        if schema is None or _PATH not in schema["paths"]:
            raise EngineError(
                f"{url}: has no profiler (POST {_PATH}). Start vLLM with {SERVER_FLAGS}"
            )
        dialect = _dialect(replica)
        if dialect.named and dialect.bound not in json.dumps(schema.get("components", {})):
            raise EngineError(
                f"{url}: its {_PATH} knows no {dialect.bound}, without which a window could stay "
                f"open for ever. It takes {dialect.version}"
            )

    @contextmanager
    def watched(self, writer: RecordingWriter) -> Iterator[None]:
        """Open windows while the block runs, into a recording; a probe."""
        writer.add_source("kernels", self._drain)
        self._event = writer.event
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join(_ANSWER_S)
            until = time.monotonic() + SETTLE_NS / 1e9
            while self._waiting and self.awaits_steps and time.monotonic() < until:
                time.sleep(0.05)
            self._ending = True

    def _drain(self) -> pl.DataFrame:
        frames = [pl.DataFrame(schema=KERNELS)]
        while self._waiting and (self._ending or self._settled(self._waiting[0])):
            frames.append(self._placed(self._waiting.popleft()))
        return pl.concat(frames)

    def _settled(self, waiting: _Waiting) -> bool:
        """Whether the steps of a trace have come, or will not."""
        ended = waiting.opened.ended
        come = self._seen[waiting.key].until > ended
        return come or not self.awaits_steps or now_ns() > ended + SETTLE_NS

    def _placed(self, waiting: _Waiting) -> pl.DataFrame:
        """Return a trace's rows with the numbers of its steps, null where they are not known."""
        trace, detail = waiting.trace, waiting.detail
        held = self._seen[waiting.key].holding(trace.steps, trace.unix_offset_ns, waiting.opened)
        step = pl.lit(None, pl.Int64)
        if isinstance(held, str):
            detail["steps_unknown"] = held
        else:
            detail |= {"first_step": held[0], "last_step": held[-1]}
            numbers = [each.number for each in trace.steps]
            step = pl.col("step").replace_strict(
                numbers, list(held), default=None, return_dtype=pl.Int64
            )
        self._event("window", json.dumps(detail), engine=waiting.key)
        rows = trace.kernels.with_columns(step=step)
        return rows.select(pl.col(name).cast(kind) for name, kind in KERNELS.items())

    def _work(self) -> None:
        due, turn = time.monotonic() + FIRST_S, 0
        while not self._stopping.wait(max(due - time.monotonic(), 0.25)) and self._usable:
            replica = self._usable[turn % len(self._usable)]
            turn += 1
            if not _busy(replica):
                continue
            begun = time.monotonic()
            try:
                with replica.access.client(_ANSWER_S) as client:
                    self._read(replica, self._window(client, replica, steps=self._plan.steps))
            except (EngineError, httpx.HTTPError) as error:
                why = str(error) if isinstance(error, EngineError) else type(error).__name__
                self._event("drop", f"no more kernel windows: {why}", engine=engine_key(replica))
                self._usable.remove(replica)
            took = time.monotonic() - begun
            due = begun + max(self._plan.every_s, took / BUDGET)

    def _window(self, client: httpx.Client, replica: Replica, *, steps: int) -> list[Path]:
        """Open a window, wait until it has ended, and return its traces."""
        url, prefix = replica.access.url, f"{self._mark}-{self._serial}"
        self._serial += 1
        dialect = _dialect(replica)
        bounds = {"profile_prefix": prefix, dialect.bound: max(steps, 1), **self._more(dialect)}
        span, started = ProfilerWindow(now_ns()), True  # for all that we know
        replica.windows.append(span)
        try:
            answer = client.post(_PATH, json=bounds)
            span.answered = now_ns()
            started = answer.status_code == 200
            if answer.status_code == 409:
                raise EngineError(
                    f"{url}: somebody's profile is open there. End it with POST /stop_profile"
                )
            if not started:
                raise EngineError(f"{url}: POST {_PATH} answers HTTP {answer.status_code}")
            until = time.monotonic() + (OPEN_S if steps else 0.0)
            while time.monotonic() < until and not self._stopping.is_set():
                if self._traces(prefix, dialect):
                    break
                time.sleep(0.05)
        finally:
            try:
                if started:  # it answers when every worker has written its trace
                    stopped = client.post("/stop_profile")
                    if stopped.status_code not in dialect.ended:
                        stopped.raise_for_status()
            finally:
                span.ended = now_ns()
                stood = {"begun_ns": span.begun, "ended_ns": span.ended}
                self._event(PROFILED, json.dumps(stood), engine=engine_key(replica))
        return self._traces(prefix, dialect)

    def _more(self, dialect: _Dialect) -> dict[str, Any]:
        """Return what else a start needs: vLLM was told its folder when it was started."""
        if dialect is _DIALECTS[VLLM]:  # its profiler stops in the step after that many
            return {"delay_iterations": 0}
        return {
            "output_dir": str(self._folder.resolve()),
            "activities": ["CPU", "GPU"],
            "with_stack": False,
            "record_shapes": False,
            "detailed_annotations": True,  # what is in a step, in its mark
        }

    def _traces(self, prefix: str, dialect: _Dialect) -> list[Path]:
        return sorted(self._folder.glob(f"{prefix}{dialect.mark}*.json*"))

    def _read(self, replica: Replica, paths: list[Path]) -> None:
        number, self._count = self._count, self._count + 1
        key = engine_key(replica)
        span = replica.windows[-1]
        for path in paths:
            if _FRONT_END in path.name:
                continue
            try:
                trace = read_trace(path, engine=key, window_id=number)
            except TraceError as error:
                # The path is the server's own; what is wrong with the file is enough.
                why = str(error).removeprefix(f"{path}: ")
                self._event("window", json.dumps({"window": number, "error": why}), engine=key)
                continue
            ended = span.ended or now_ns()
            detail = {"window": number} | trace.window_detail() | {"open_ns": ended - span.begun}
            opened = Opened(
                begun=span.begun,
                answered=span.answered or ended,
                ended=ended,
                under_way=_under_way(replica),
            )
            self._waiting.append(_Waiting(key, trace, detail, opened))
        self._delete(paths)

    def _delete(self, paths: list[Path]) -> None:
        """Delete what the server wrote for a window: its traces, and tables of totals."""
        prefixes = {path.name.partition("_")[0] for path in paths}
        beside = [each for prefix in prefixes for each in self._folder.glob(f"{prefix}_*")]
        for path in dict.fromkeys([*paths, *beside]):
            with contextlib.suppress(OSError):  # readable is enough
                path.unlink()


def _dialect(replica: Replica) -> _Dialect:
    return _DIALECTS.get(software_of(replica.config), _DIALECTS[VLLM])


def engine_key(replica: Replica) -> str:
    """Return the key of a server's only engine, or of the server where it has several."""
    labels = [label for label in replica.keys if label]
    return replica.keys[labels[0]] if len(labels) == 1 else replica.keys[""]


def _busy(replica: Replica) -> bool:
    """Tell whether requests ran at the last poll: a window of an idle server shows nothing."""
    page = replica.pages[-1] if replica.pages else None
    return page is not None and page.filter(pl.col("name") == RUNNING)["value"].sum() > 0


def _under_way(replica: Replica) -> int:
    """Return how many batches an engine may have handed out beside the one that runs."""
    stages = replica.config.pipeline_parallel_size or 1
    return 0 if replica.config.async_scheduling is False and stages == 1 else UNDER_WAY + stages - 1
