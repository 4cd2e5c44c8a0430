"""The step probe inside a vLLM server; vLLM loads it through `ttscope_plugin`.

It is off unless the environment variable TTSCOPE_PLUGIN names where to send: http://HOST:PORT,
where `ttscope attach --listen PORT` receives, `otlp` for the collector of
OTEL_EXPORTER_OTLP_ENDPOINT (step_metrics.py), or both with a comma. vLLM's thread only reads
numbers and appends one tuple per step to a bounded ring. A thread sends what is there twice a
second, and the end of the process waits for its last steps. Whatever goes wrong, the server goes
on: a full ring drops its oldest step and counts it, a receiver that is away or has another token
(shared_token.py) is tried again, and an exception switches the probe off with one line in the log.
While nobody listens a try is a connection that is refused, which takes some 0.1 ms.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import uuid
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from vllm.v1.metrics.loggers import StatLoggerBase

from profiler.doors.outgoing import Try
from profiler.plugin.batches import COLUMNS, MOST_ROWS, STEPS_PATH
from profiler.plugin.process_clock import listening_ports, process_start
from profiler.plugin.shared_token import shared_token
from traces.clock import OFFSET_NS, now_ns
from traces.errors import UsageError

if TYPE_CHECKING:
    from profiler.plugin.step_metrics import StepMetrics

log = logging.getLogger("vllm.ttscope")

VARIABLE = "TTSCOPE_PLUGIN"
CAPACITY = 20_000  # steps that may wait: some minutes of a receiver that is away
PERIOD_S = 0.5
_NEXT_S = 0.05  # until the next batch, where more than one wait
_TIMEOUT_S, _MOST_ANSWER_BYTES = 2.0, 16 << 10
_LONGEST_PAUSE_S = 2.0  # who attaches waits a little longer (incoming.HELLO_S)
_LAST_S = 0.5  # at most, that the end of the process waits for the last steps
_MOST_PORTS = 16
_FIX = "Run vLLM as the user who attaches, or give both the same TTSCOPE_TOKEN (16 letters or more)"
_SCHEDULER = ("num_running_reqs", "num_waiting_reqs", "kv_cache_usage", "spec_decoding_stats")
_ITERATION = (
    "num_generation_tokens",
    "prompt_token_stats",
    "num_preempted_reqs",
    "finished_requests",
    "time_to_first_tokens_iter",
    "inter_token_latencies_iter",
)


_SENDING: dict[int, StepLogger] = {}  # by the engine whose steps are sent, of this process


class StepLogger(StatLoggerBase):  # type: ignore[misc]
    """One per engine; vLLM calls `record` after every step, and nothing here may raise."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._overflowed = 0  # by vLLM's thread
        self._discarded = 0  # by ours
        self._dropped_until: int | None = None  # the end of the newest step that was dropped
        self.on = False
        self._ring: deque[tuple[Any, ...]] = deque()
        self._sends = False
        self._thread: threading.Thread | None = None
        self._metrics: StepMetrics | None = None
        try:
            target = os.environ.get(VARIABLE)
            if not target or engine_index in _SENDING:  # announced twice, each step counts once
                return
            self._start(target, vllm_config, engine_index)
        except Exception as error:
            self.on = False
            log.warning("ttscope: the step probe is off (%s: %s)", type(error).__name__, error)

    def _start(self, target: str, vllm_config: Any, engine_index: int) -> None:
        _check_fields()
        asked = [each.strip() for each in target.split(",")]
        if "otlp" in asked:
            from profiler.plugin.step_metrics import StepMetrics

            self._metrics = StepMetrics(vllm_config, engine_index)
            log.info("ttscope: sending metrics of engine %s over OTLP", engine_index)
        urls = [each for each in asked if each != "otlp"]
        self._sends, self.on = bool(urls), True
        if not _SENDING:
            atexit.register(_end)
        _SENDING[engine_index] = self
        if urls:
            self._start_sending(",".join(urls), vllm_config, engine_index)

    def _start_sending(self, target: str, vllm_config: Any, engine_index: int) -> None:
        parts = urlsplit(target)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{VARIABLE} must be http://HOST:PORT, otlp, or both with a comma")
        self._address = parts.hostname, parts.port or 4318
        self._vllm_config = vllm_config
        self._head = {
            "v": 1,
            "instance": uuid.uuid4().hex[:16],
            "engine": int(engine_index),
            "process_start_s": process_start(),
            "config": None,
            "ports": [],
            "replica": _ray_replica(),
            "process_id": os.getpid(),
            "tracer": None,
        }
        self._stopping = threading.Event()
        self._pending: list[tuple[Any, ...]] = []
        self._done = 0  # rows before `_pending`
        self._pause = PERIOD_S  # until the next try, longer while nobody receives
        self._token: str | None = None
        self._refused = self._told = False
        thread = threading.Thread(target=self._work, name="ttscope-steps", daemon=True)
        thread.start()
        self._thread = thread
        log.info("ttscope: sending the steps of engine %s to %s:%s", engine_index, *self._address)

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Keep what a step's statistics say; vLLM's thread, so as little as can be.

        Of several front ends one gets the scheduler's, each what its own requests got.
        """
        if not self.on or (scheduler_stats is None and iteration_stats is None):
            return
        try:
            if self._metrics is not None:
                self._metrics.take(scheduler_stats, iteration_stats)
            if not self._sends:
                return
            if len(self._ring) >= CAPACITY:
                with contextlib.suppress(IndexError):  # sent at this very moment
                    self._dropped_until = self._ring.popleft()[0]
                    self._overflowed += 1
            self._ring.append(_row(scheduler_stats, iteration_stats))
        except Exception as error:
            self.on = False
            log.warning(
                "ttscope: the step probe switched itself off (%s: %s)", type(error).__name__, error
            )

    @property
    def dropped(self) -> int:
        """Steps that were never sent: they waited too long, the oldest first, or were refused."""
        return self._overflowed + self._discarded

    def log_engine_initialized(self) -> None:
        """Nothing to say: the constructor did."""

    def _work(self) -> None:
        """Send twice a second, less often while nobody receives, and at the end all that waits."""
        last = 0.0
        try:
            self._describe()
            while True:
                ending = self._stopping.wait(self._pause)
                quiet = not self._pending and not self._ring
                if quiet and time.monotonic() - last < 1.0 and not ending:
                    continue
                if sent := self._send():
                    more = len(self._ring) >= MOST_ROWS
                    self._pause, last = _NEXT_S if more else PERIOD_S, time.monotonic()
                else:
                    self._pause = min(max(self._pause, PERIOD_S) * 2, _LONGEST_PAUSE_S)
                if not (self._pending or self._ring or (self.on and not ending)):
                    return
                if ending and not sent:
                    return
        except Exception as error:
            self.on = False
            log.warning("ttscope: the step probe stopped (%s: %s)", type(error).__name__, error)

    def send_the_last(self) -> None:
        """Have the thread send what waits, and then end."""
        if self._thread is not None:
            self._stopping.set()

    def wait_for_the_last(self, seconds: float) -> None:
        """Wait so long for it at most, and not where nobody took the steps before."""
        if self._thread is not None and self._pause <= PERIOD_S:
            self._thread.join(seconds)

    def _describe(self) -> None:
        with contextlib.suppress(Exception):  # steps without a configuration are worth having
            from profiler.engines.vllm.facts import engine_config, model_facts, speculation_of

            name = self._vllm_config.model_config.served_model_name
            drafts = speculation_of(self._vllm_config)
            config = engine_config(self._vllm_config, str(name), drafts).to_json()
            details = self._vllm_config.observability_config
            self._head["config"] = config | {"mode": "server"}
            self._head["details"] = bool(details.enable_logging_iteration_details)
            facts = model_facts(self._vllm_config, str(name))
            self._head["model"] = None if facts is None else facts.to_json()

    def _send(self) -> bool:
        """Send what waits; False when it could not be delivered and waits on."""
        if self._token is None and not self._read_token():
            return self._wait_on()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
        try:
            tried = Try(_TIMEOUT_S, _MOST_ANSWER_BYTES)
            status = tried.post(self._address, STEPS_PATH, headers, self._batch)
        except (OSError, ValueError):
            return self._wait_on()
        if status == 401:  # who attaches next may have ours, or there may be another by then
            self._refused, self._token = True, None
            self._say(f"the receiver has another token. {_FIX}")
            return self._wait_on()
        if self._refused:
            self._refused = self._told = False
            return status == 200  # an empty batch
        if status != 200 and 400 <= status < 500:  # what is refused once is refused again
            self._say(
                f"the receiver refuses them (HTTP {status}). Name it as 127.0.0.1:PORT, and "
                "install the same ttscope for vLLM and for attach"
            )
            self._discard(len(self._pending))
        elif status == 200:
            self._done += len(self._pending)
            self._pending = []
        return status == 200

    def _wait_on(self) -> bool:
        """Keep as many rows as there is room for, the newest."""
        self._discard(len(self._pending) + len(self._ring) - CAPACITY)
        return False

    def _read_token(self) -> bool:
        try:
            self._token = shared_token()
        except UsageError as error:
            self._say(str(error))
        return self._token is not None

    def _say(self, what: str) -> None:
        """Say once in vLLM's log why nothing is sent."""
        if not self._told:
            self._told = True
            log.warning("ttscope: steps are not sent: %s", what)

    def _batch(self) -> bytes:
        if not self._ring or not self._head["ports"]:
            # By them attach finds the server.
            self._head["ports"] = sorted(listening_ports())[:_MOST_PORTS]
        if self._head["tracer"] is None:  # vLLM may begin to trace later than to count
            self._head["tracer"] = _tracer_instance()
        while len(self._pending) < MOST_ROWS and self._ring and not self._refused:
            self._pending.append(self._ring.popleft())
        batch = self._head | {
            "columns": COLUMNS,
            "first": self._done,
            "rows": [] if self._refused else self._pending,
            "dropped": self.dropped,
            "dropped_until": self._dropped_until,
            "now": now_ns(),
            "on": self.on,
        }
        return msgspec.json.encode(batch)  # json would hold the GIL ten times as long

    def _discard(self, count: int) -> None:
        """Give up so many of the rows that were taken from the ring, the oldest ones."""
        given_up = self._pending[: max(count, 0)]
        if given_up:
            self._dropped_until = max(self._dropped_until or 0, given_up[-1][0])
            self._pending = self._pending[len(given_up) :]
            self._discarded += len(given_up)
            self._done += len(given_up)  # numbers are not given twice


def _ray_replica() -> str | None:
    """Return which replica of Ray Serve this is, as vLLM's ray_wrappers.py labels its metrics."""
    serve = sys.modules.get("ray.serve")
    if serve is None:
        return None
    with contextlib.suppress(Exception):  # not a replica, or another Ray
        return str(serve.get_replica_context().replica_id.unique_id)
    return None


def _tracer_instance() -> str | None:
    """Return the `service.instance.id` that spans of this process have; None without one."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    with contextlib.suppress(Exception):  # not vLLM's tracer
        resource = trace.get_tracer_provider().resource
        return str(resource.attributes["service.instance.id"])[:64]
    return None


def _end() -> None:
    """Wait for the last steps of all engines before the process ends."""
    until = time.monotonic() + _LAST_S
    for each in _SENDING.values():
        each.send_the_last()
    for each in _SENDING.values():
        each.wait_for_the_last(max(until - time.monotonic(), 0.0))


def _check_fields() -> None:
    """Raise where this vLLM's statistics have other names than are read here."""
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    scheduler, iteration = SchedulerStats(), IterationStats()
    for stats, names in ((scheduler, _SCHEDULER), (iteration, _ITERATION)):
        for name in names:
            getattr(stats, name)
    _row(scheduler, iteration)


def _row(scheduler: Any, iteration: Any) -> tuple[Any, ...]:
    """Return a step as COLUMNS has it; a step without outputs has no iteration statistics."""
    load: tuple[Any, ...] = (None, None, None)
    spec = details = perf = None
    if scheduler is not None:
        load = (
            scheduler.num_running_reqs,
            scheduler.num_waiting_reqs,
            scheduler.kv_cache_usage,
        )
        spec = scheduler.spec_decoding_stats
        details = getattr(scheduler, "iteration_details", None)
        perf = getattr(scheduler, "perf_stats", None)
    row = (
        (None,) * 6
        if details is None
        else (
            details.num_ctx_requests,
            details.num_ctx_tokens,
            details.num_generation_requests,
            details.num_generation_tokens,
            details.elapsed_ms,
            details.is_dummy,
        )
    )
    if iteration is None:
        made: tuple[Any, ...] = (0, 0, 0, 0, 0, 0, 0, 0, 0)
    else:
        prompt, ended = iteration.prompt_token_stats, iteration.finished_requests
        made = (
            len(iteration.time_to_first_tokens_iter),
            prompt.computed,
            prompt.cached_tokens,
            prompt.total,
            len(iteration.inter_token_latencies_iter),
            iteration.num_generation_tokens,
            len(ended),
            sum(each.num_prompt_tokens + each.num_generation_tokens for each in ended)
            if ended
            else 0,
            iteration.num_preempted_reqs,
        )
    return (
        monotonic_ns() + OFFSET_NS,
        *load,
        *made,
        None if spec is None else list(spec.num_draft_tokens_per_pos),
        None if spec is None else list(spec.num_accepted_tokens_per_pos),
        *row,
        None if perf is None else perf.num_flops_per_gpu,
        None if perf is None else perf.num_read_bytes_per_gpu,
    )
