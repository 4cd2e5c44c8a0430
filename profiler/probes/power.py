"""Power while a run goes on: a thread that reads the engine's devices into the recording.

GPUs are read through NVML, and where the engine runs on the processor its packages through RAPL.
The thread never holds up the run: it drops rows when nobody drains them, reads less often where a
reading is slow, and is left behind where the driver hangs.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from profiler.probes import rapl
from profiler.probes.nvml import Gpu, NoDriverError, open_gpus
from profiler.probes.rapl import open_packages
from profiler.probes.sensor import Sensor, SensorError, Sensors
from traces.clock import now_ns
from traces.errors import UsageError
from traces.recording.writer import RecordingWriter
from traces.schema.engine import EngineConfig

HZ = 20.0
_HZ_RANGE = (10.0, 50.0)
_STATE_HZ = 2.0  # clocks, memory, byte counters: slower to read and slower to change
_IDLE_PER_BUSY = 4.0  # at most a fifth of the time is spent in readings
_PATIENCE_S = 1.0


def check_hz(hz: float) -> None:
    """Raise UsageError for a number of readings a second that no sampler takes."""
    if not (isinstance(hz, int | float) and _HZ_RANGE[0] <= hz <= _HZ_RANGE[1]):
        raise UsageError(f"--power-hz must be 10 to 50 readings a second, not {hz}")


class PowerSampler:
    """Reads sensors `hz` times a second on a thread of its own, from `start` to `stop`.

    Parameters
    ----------
    open_sensors: opens the devices; called on the thread, for a driver may hang.
    hz: readings a second, 10 to 50 (UsageError otherwise); fewer where a reading is slow.
    capacity: rows that may wait for `drain`; more are dropped and counted in `dropped`.
    patience_s: how long `start` and `stop` wait for a reading at most.

    `failures` says for each device that was given up why.

    """

    def __init__(
        self,
        open_sensors: Callable[[], Sensors],
        *,
        hz: float = HZ,
        capacity: int = 20_000,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        check_hz(hz)
        self._open = open_sensors
        self._period_s = 1 / hz
        self._state_every = max(1, round(hz / _STATE_HZ))
        self._capacity = capacity
        self._patience_s = patience_s
        self._host = platform.node()
        self._rows: deque[dict[str, Any]] = deque()
        self._answered, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="ttscope-power", daemon=True)
        self.dropped = 0
        self.failures: list[str] = []

    def start(self) -> None:
        """Start reading, and return after the first reading or when patience ends."""
        self._thread.start()
        self._answered.wait(self._patience_s)

    def drain(self) -> list[dict[str, Any]]:
        return [self._rows.popleft() for _ in range(len(self._rows))]

    def stop(self) -> None:
        """Read a last time and end; a reading that hangs is left behind."""
        self._stopping.set()
        if self._answered.is_set():
            self._thread.join(self._patience_s)
        if self._thread.is_alive():
            self.failures.append(f"a reading took more than {self._patience_s:g} s")

    def _work(self) -> None:
        try:
            with self._open() as sensors:
                self._read_on(list(sensors))
        except Exception as error:  # telemetry never breaks its host
            self.failures.append(_said(error))
        finally:
            self._answered.set()

    def _read_on(self, sensors: list[Sensor]) -> None:
        tick = 0
        while sensors:
            begun, last = time.monotonic(), self._stopping.is_set()
            state = last or tick % self._state_every == 0
            sensors = [each for each in sensors if self._read(each, state)]
            self._answered.set()
            if last:
                return
            spent = time.monotonic() - begun
            self._stopping.wait(max(self._period_s - spent, _IDLE_PER_BUSY * spent))
            tick += 1

    def _read(self, sensor: Sensor, state: bool) -> bool:
        before = now_ns()
        try:
            reading = sensor.read(state=state)
        except Exception as error:  # this device only
            self.failures.append(f"{sensor.device}: {_said(error)}")
            return False
        if all(value is None for value in reading.values()):
            return True
        if len(self._rows) >= self._capacity:
            self.dropped += 1
            return True
        row = {
            "host": self._host,
            "device": sensor.device,
            "kind": sensor.kind,
            "time": (before + now_ns()) // 2,
        }
        self._rows.append({**row, **reading})
        return True


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, SensorError) else f"{type(error).__name__}: {error}"


@contextmanager
def watch_power(config: EngineConfig, writer: RecordingWriter, *, hz: float = HZ) -> Iterator[None]:
    """Record the power of an engine's devices while the block runs.

    GPUs when the engine runs on them, else the host's packages; nothing of a server, whose
    devices are not known here. A device that is given up leaves one row in `events`.
    """
    if config.mode == "server":
        yield
        return
    opened = open_packages if config.gpu is None else partial(open_gpus, config.num_devices)
    with _sampled(PowerSampler(opened, hz=hz), writer):
        yield


def watch_gpus_here(
    opened: Callable[[], AbstractContextManager[list[Gpu]]], writer: RecordingWriter
) -> AbstractContextManager[None]:
    """Record the power of the GPUs that are `opened`, for servers that run here.

    Without a driver there is nothing to say: the servers run on something else.
    """

    @contextmanager
    def found() -> Iterator[list[Gpu]]:
        try:
            with opened() as gpus:
                yield gpus
        except NoDriverError:
            yield []

    return _sampled(PowerSampler(found), writer)


@contextmanager
def _sampled(sampler: PowerSampler, writer: RecordingWriter) -> Iterator[None]:
    writer.add_source("power", sampler.drain)
    sampler.start()
    try:
        yield
    finally:
        sampler.stop()
        if sampler.dropped:
            writer.dropped("power", sampler.dropped)
        for why in sampler.failures:
            writer.event("drop", f"power: {why}")


def energy_here(
    rapl_root: Path = rapl.ROOT, *, patience_s: float = 5.0
) -> tuple[bool, str, str | None]:
    """Return whether energy can be measured on this machine, by what or why not, and the mend."""
    ways: list[tuple[bool, str, str | None]] = []

    def look() -> None:
        try:
            with open_gpus(None) as gpus:
                readings = [gpu.read(state=False) for gpu in gpus]
        except SensorError as error:
            ways.append((False, str(error), None))
            return
        counted = sum(reading["energy_j"] is not None for reading in readings)
        drawn = sum(reading["watts"] is not None for reading in readings)
        every = all(each["energy_j"] is not None or each["watts"] is not None for each in readings)
        mend = None if every else "whole GPUs: NVML knows no energy of a MIG slice"
        how = f"energy counter on {counted} of {len(readings)} GPUs, power on {drawn}"
        ways.append((every, f"NVML: {how}", mend))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(patience_s)
    if not ways:
        ways.append((False, f"NVML did not answer for {patience_s:g} s", "a driver that answers"))
    present, detail, needs = ways[0]
    if present or needs:
        return present, detail, needs
    packages, why = rapl.examine(rapl_root)
    if packages:
        return True, f"RAPL: {', '.join(each.device for each in packages)}", None
    mend = f"root, or: sudo chmod a+r {rapl_root}/intel-rapl:*/energy_uj"
    return False, f"{detail}, {why}, shown as '-'", mend if "root" in (why or "") else None
