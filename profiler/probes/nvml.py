"""NVIDIA GPUs through NVML: which of them an engine uses, and what a reading of each says.

NVML's cost per query differs by four orders of magnitude. Power and energy take microseconds and
are read every time; clocks, memory and the PCIe byte counters (some 0.3 ms) with the state; the
PCIe throughput, for which NVML waits 20 ms, never.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from profiler.probes.sensor import Reading, SensorError

_ALL_LINKS = 0xFFFFFFFF  # scopeId that sums NVLink's counters over the links
_NO_SLICE = 0xFFFFFFFF  # gpuInstanceId of a process on a GPU that is not cut into slices
_LARGEST = 2**63 - 1  # of an Int64 column


class NoDriverError(SensorError):
    """There is no NVIDIA driver on this machine."""


def open_gpus(
    count: int | None, environ: Mapping[str, str] = os.environ
) -> AbstractContextManager[list[Gpu]]:
    """Open the first `count` GPUs (None: all) that CUDA shows to this process, in CUDA's order.

    Fewer come back where fewer are visible. Raises SensorError where there is no driver or no
    visible GPU, or where CUDA's order is not known.
    """
    return _driver(lambda nvml: _visible(nvml, environ)[:count])


@dataclass(frozen=True, kw_only=True)
class GpuUser:
    """A server: how many GPUs it uses, None where that is not known, and what CUDA shows to it.

    Several processes may be it, each with its own `environs`, None for one that cannot be read.
    """

    count: int | None
    environs: Sequence[Mapping[str, str] | None]


def open_gpus_of(
    users: Sequence[GpuUser], processes: Collection[int]
) -> AbstractContextManager[list[Gpu]]:
    """Open the GPUs on which these processes compute, or else those that CUDA shows to the users.

    Raises SensorError as `open_gpus` does, and where it cannot be seen which ones they are.
    """
    return _driver(lambda nvml: _used(nvml, users, processes))


@contextmanager
def _driver(chosen: Callable[[Any], list[Any]]) -> Iterator[list[Gpu]]:
    """Open the GPUs whose handles are chosen."""
    try:
        import pynvml as nvml
    except ImportError:
        raise SensorError("nvidia-ml-py is not installed") from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        none = error.value in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
        if none:
            raise NoDriverError("no NVIDIA driver") from None
        raise SensorError(f"NVML: {error}") from None
    try:
        try:
            gpus = [Gpu(nvml, handle) for handle in chosen(nvml)]
        except nvml.NVMLError as error:
            raise SensorError(f"NVML: {error}") from None
        yield gpus
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _all(nvml: Any) -> list[Any]:
    everything = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    if not everything:
        raise SensorError("NVML: there is no GPU")
    return everything


def _used(nvml: Any, users: Sequence[GpuUser], processes: Collection[int]) -> list[Any]:
    """Return the handles of the GPUs that servers use."""
    everything = _all(nvml)
    counts = [user.count for user in users if user.count is not None]
    total = sum(counts) if len(counts) == len(users) else None
    computing = [handle for handle in everything if _computes(nvml, handle, processes)]
    if computing and total in (None, len(computing)):
        return computing
    handles: dict[str, Any] = {}
    sure = True
    for user in users:
        shown = {tuple(sorted(each.items())) for each in user.environs if each is not None}
        sure = sure and len(shown) == 1 and None not in user.environs
        for environ in shown:
            for handle in _visible(nvml, dict(environ))[: user.count]:
                handles[nvml.nvmlDeviceGetUUID(handle)] = handle
    if sure or (total is not None and total == len(handles)):
        return list(handles.values())
    if len(everything) in (total, 1):
        return everything
    raise SensorError(
        f"which of the {len(everything)} GPUs here the servers use cannot be seen. Attach as the "
        "user who runs them, or with their CUDA_VISIBLE_DEVICES and --gpus N"
    )


def _computes(nvml: Any, handle: Any, processes: Collection[int]) -> bool:
    """Tell whether one of these processes computes on a whole GPU."""
    with suppress(nvml.NVMLError):
        return any(
            each.pid in processes and each.gpuInstanceId == _NO_SLICE
            for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        )
    return False


def _visible(nvml: Any, environ: Mapping[str, str]) -> list[Any]:
    """Return the handles that CUDA_VISIBLE_DEVICES leaves, by its own rules.

    Indices, (beginnings of) GPU UUIDs, or MIG UUIDs; the list ends at the first entry that names
    nothing.
    """
    everything = _all(nvml)
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    entries = list(map(str, range(len(everything)))) if wanted is None else wanted.split(",")
    handles: list[Any] = []
    for entry in map(str.strip, entries):
        handle = _named(nvml, entry, everything)
        if handle is None:
            break
        handles.append(handle)
    if not handles:
        raise SensorError(f"CUDA_VISIBLE_DEVICES={wanted} leaves no GPU")
    by_index = any(entry.strip().isdigit() for entry in entries[: len(handles)])
    if by_index and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        names = {nvml.nvmlDeviceGetName(handle) for handle in everything}
        if len(names) > 1:  # CUDA counts the fastest first, NVML along the bus
            raise SensorError(
                "GPUs differ: set CUDA_DEVICE_ORDER=PCI_BUS_ID to make clear which is used"
            )
    return handles


def _named(nvml: Any, entry: str, everything: list[Any]) -> Any | None:
    if entry.isdigit():
        return everything[int(entry)] if int(entry) < len(everything) else None
    if entry.startswith("MIG-"):
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(entry)
    if entry.startswith("GPU-"):
        fitting = [each for each in everything if nvml.nvmlDeviceGetUUID(each).startswith(entry)]
        return fitting[0] if len(fitting) == 1 else None
    return None


class Gpu:
    """A GPU, or a MIG slice of one; a slice knows its memory but neither power nor energy."""

    kind = "nvml"

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.device: str = nvml.nvmlDeviceGetUUID(handle)
        self._absent: set[str] = set()
        self._gone = {
            nvml.NVML_ERROR_GPU_IS_LOST,
            nvml.NVML_ERROR_RESET_REQUIRED,
            nvml.NVML_ERROR_UNINITIALIZED,
            nvml.NVML_ERROR_DRIVER_NOT_LOADED,
        }
        self._never = {
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            nvml.NVML_ERROR_NO_PERMISSION,
            nvml.NVML_ERROR_INVALID_ARGUMENT,  # a field that this driver does not know
            nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        }

    def read(self, *, state: bool) -> Reading:
        """Return the columns of `power`: null where this GPU or this moment gives none.

        What is not supported is asked for once. Raises SensorError when the GPU is lost.
        """
        nvml, handle = self._nvml, self._handle
        row: dict[str, float | int | None] = {
            "energy_j": self._ask(
                "energy_j", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
            ),
            "watts": self._watts(),
        }
        if state:
            for column, query in self._state().items():
                row[column] = self._ask(column, query)
        return row

    def _watts(self) -> float | None:
        """Power now; on older GPUs what NVML calls power usage, a mean of up to a second."""
        nvml = self._nvml
        now = self._ask("instant", lambda: self._fields(nvml.NVML_FI_DEV_POWER_INSTANT) / 1e3)
        if now is not None or "instant" not in self._absent:
            return now
        return self._ask("watts", lambda: nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3)

    def _state(self) -> dict[str, Callable[[], float | int]]:
        nvml, handle = self._nvml, self._handle
        pcie = (nvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, nvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES)
        links = (
            (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, _ALL_LINKS),
            (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, _ALL_LINKS),
        )
        return {
            "utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(
                handle, nvml.NVML_TEMPERATURE_GPU
            ),
            "throttle_bits": self._throttle,
            "pcie_bytes": lambda: self._fields(*pcie),
            "nvlink_bytes": lambda: self._fields(*links) * 1024,
        }

    def _throttle(self) -> int:
        """Return why clocks are low; drivers before 535 know only the older name."""
        nvml = self._nvml
        if "events" not in self._absent:
            try:
                return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle))
            except nvml.NVMLError as error:
                if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                    raise
                self._absent.add("events")
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))

    def _fields(self, *fields: Any) -> int:
        """Return the sum of integer fields. Raises NVMLError when one is not to be had."""
        nvml, total = self._nvml, 0
        for value in nvml.nvmlDeviceGetFieldValues(self._handle, list(fields)):
            if value.nvmlReturn != nvml.NVML_SUCCESS:
                raise nvml.NVMLError(value.nvmlReturn)
            small = value.valueType in (
                nvml.NVML_VALUE_TYPE_UNSIGNED_INT,
                nvml.NVML_VALUE_TYPE_SIGNED_INT,
            )
            total += value.value.uiVal if small else value.value.ullVal
        return total

    def _ask(self, name: str, query: Callable[[], Any]) -> Any | None:
        if name in self._absent:
            return None
        try:
            value = query()
        except self._nvml.NVMLError as error:
            if error.value in self._gone:
                raise SensorError(f"NVML: {error}") from None
            if error.value in self._never:
                self._absent.add(name)
            return None
        return value if 0 <= value <= _LARGEST else None
