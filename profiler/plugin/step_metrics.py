"""The plugin's metrics over OTLP, from inside a vLLM server, without anybody who attaches.

vLLM's thread appends one tuple per step to a bounded ring. A thread of ours sums them every second,
another sends the sums (profiler/probes/otlp_metrics.py). A ring that is full forgets its oldest.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import uuid
from collections import deque
from time import monotonic_ns
from typing import Any

from profiler.probes.otlp_metrics import (
    ACCEPTED,
    DRAFTED,
    KV_USAGE,
    REQUEST,
    RUNNING,
    STEP_BATCH,
    STEP_TIME,
    TPOT,
    TTFT,
    WAITING,
    Attributes,
    OtlpMetrics,
    exporter_of,
)
from traces.recording.spans import ENGINE_KEY, GEN_AI_MODEL, GEN_AI_PROVIDER

CAPACITY = 20_000
_PERIOD_S = 1.0


class StepMetrics:
    """Metrics of the steps of one engine. Raises ValueError where no collector is named."""

    def __init__(self, vllm_config: Any, engine_index: int) -> None:
        exporter = exporter_of()
        if exporter is None:
            raise ValueError("TTSCOPE_PLUGIN=otlp: set OTEL_EXPORTER_OTLP_ENDPOINT")
        self._ring: deque[tuple[Any, ...]] = deque(maxlen=CAPACITY)
        resource = {"service.name": "vllm", "service.instance.id": uuid.uuid4().hex}
        self._out = OtlpMetrics(exporter, resource)
        model = str(vllm_config.model_config.served_model_name)
        self._engine: Attributes = (
            (ENGINE_KEY, str(engine_index)),
            (GEN_AI_MODEL, model),
            (GEN_AI_PROVIDER, "vllm"),
        )
        self._last: int | None = None  # when the step before ended, where the engine was busy
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ttscope-sums", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def take(self, scheduler: Any, iteration: Any) -> None:
        """Keep what a step's statistics say; vLLM's thread."""
        load = spec = details = None
        if scheduler is not None:
            details = getattr(scheduler, "iteration_details", None)
            load = (
                scheduler.num_running_reqs,
                scheduler.num_waiting_reqs,
                scheduler.kv_cache_usage,
            )
            spec = scheduler.spec_decoding_stats
        first: Any = ()
        more, ended = 0, ()
        if iteration is not None:
            first = iteration.time_to_first_tokens_iter
            more = len(iteration.inter_token_latencies_iter)
            ended = iteration.finished_requests
        batch = len(first) + more  # of this front end; the details are of all
        if details is not None:
            batch = details.num_ctx_requests + details.num_generation_requests
        self._ring.append((monotonic_ns(), load, spec, first, batch, ended))

    def _work(self) -> None:
        while not self._stopping.wait(_PERIOD_S):
            self.sum_up()

    def sum_up(self) -> None:
        """Add the steps that wait to the sums."""
        out, engine = self._out, self._engine
        load = None
        while self._ring:
            end, running, spec, first, batch, ended = self._ring.popleft()
            with contextlib.suppress(Exception):  # statistics with other fields
                if running is not None:
                    load = running
                    if batch and self._last is not None:
                        out.record(STEP_TIME, (end - self._last) / 1e9, engine)
                    if batch:
                        out.record(STEP_BATCH, batch, engine)
                    self._last = end if running[0] else None
                for seconds in first:
                    out.record(TTFT, seconds, engine)
                for each in ended:
                    out.record(REQUEST, each.e2e_latency, engine)
                    if each.num_generation_tokens > 1:
                        out.record(TPOT, each.mean_time_per_output_token, engine)
                if spec is not None:
                    self._add(spec)
        for instrument, value in zip((RUNNING, WAITING, KV_USAGE), load or (), strict=False):
            out.set(instrument, value, engine)

    def _add(self, spec: Any) -> None:
        pairs = (
            (DRAFTED, spec.num_draft_tokens_per_pos),
            (ACCEPTED, spec.num_accepted_tokens_per_pos),
        )
        for instrument, counts in pairs:
            for place, count in enumerate(counts):
                self._out.add(instrument, count, (*self._engine, ("position", place)))

    def close(self) -> None:
        """Send what is left, within a second."""
        self._stopping.set()
        self._thread.join(_PERIOD_S)
        self.sum_up()
        self._out.close(hurry=True)
