"""Watch a live deployment into a recording, beside its own traffic or with a workload of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from profiler.attach.deployment import Deployment
from profiler.attach.scraper import Silence
from profiler.runs.provenance import provenance
from profiler.runs.record import Probe
from traces.clock import ClockWatch
from traces.live.numbers import LIVE_S, Numbers
from traces.recording.manifest import Manifest
from traces.recording.writer import RecordingWriter, read_clocks

Tick = Callable[[float, Mapping[str, Numbers | None], Mapping[str, Silence]], None]


def watch(
    deployment: Deployment,
    folder: str | Path,
    *,
    stop: threading.Event,
    duration_s: float | None = None,
    probes: Sequence[Probe] = (),
    on_tick: Tick | None = None,
    price_usd_per_device_hour: float | None = None,
) -> Path:
    """Record a connected deployment's own traffic until `stop`, `duration_s`, or it is lost.

    Each of `probes` writes into the recording too. `on_tick` is called every second with the
    seconds since the start, the engines' numbers over the last `LIVE_S` and their silences. It is
    complete unless a server was lost for good. Raises RecordingError when `folder` is taken.
    """
    manifest = Manifest(
        provenance=provenance(deployment.replicas[0].config),
        clock_start=read_clocks(),
        engines=dict(deployment.engines),
        models=dict(deployment.models),
        price_usd_per_device_hour=price_usd_per_device_hour,
    )
    writer = RecordingWriter(folder, manifest)
    writer.add_source("events", ClockWatch().drain)
    complete = False
    try:
        with ExitStack() as stack:
            for probe in (deployment.watched, deployment.polled, *probes):
                stack.enter_context(probe(writer))
            _wait(deployment, stop, duration_s, on_tick)
        complete = not deployment.lost
        if not complete:
            writer.event("killed", "a server is gone, as --on-loss end asks")
    finally:
        writer.close(complete=complete)
    return writer.path


def _wait(
    deployment: Deployment, stop: threading.Event, duration_s: float | None, on_tick: Tick | None
) -> None:
    begun = time.monotonic()
    due = begun + 1.0
    while not deployment.lost:
        left = float("inf") if duration_s is None else begun + duration_s - time.monotonic()
        if left <= 0 or stop.wait(min(max(due - time.monotonic(), 0.0), left)):
            return
        if time.monotonic() >= due:
            due = max(due + 1.0, time.monotonic())
            if on_tick is not None:
                numbers = deployment.numbers(LIVE_S)
                on_tick(time.monotonic() - begun, numbers, deployment.silences(numbers))


class Ticker:
    """Calls `on_tick` every second while a workload of ours runs; a probe for `record`."""

    def __init__(self, deployment: Deployment, on_tick: Tick) -> None:
        self._deployment, self._on_tick = deployment, on_tick
        self._stop = threading.Event()

    def __enter__(self) -> None:
        self._thread = threading.Thread(
            target=_wait,
            args=(self._deployment, self._stop, None, self._on_tick),
            name="ttscope-live",
            daemon=True,
        )
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5.0)
