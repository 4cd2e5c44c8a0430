"""Builds fake_nvml.c and gives it to the real NVML bindings."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
NAME = "libnvidia-ml.so.1"
KINDS = (
    *("COUNT", "INIT", "IS_LOST", "ENERGY", "POWER", "INSTANT", "PCIE", "NVLINK", "STATE"),
    *("ENERGY_MJ", "POWER_MW", "DELAY_US", "HANG", "OTHER_NAME", "PROCESS"),
)
NOT_SUPPORTED, TIMEOUT, DRIVER_NOT_LOADED, LOST = 3, 10, 9, 15


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def build(folder: Path) -> Path:
    """Compile the library into a folder, to be found by LD_LIBRARY_PATH."""
    library = folder / NAME
    command = [compiler() or "gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True)
    return library


class FakeNvml:
    """The driver's side of a loaded library."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.fake_calls.restype = ctypes.c_int64
        self.library.fake_set.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64)

    def reset(self, gpus: int) -> None:
        self.library.fake_reset(gpus)

    def set(self, kind: str, value: int, *, gpu: int = 0) -> None:
        self.library.fake_set(KINDS.index(kind), gpu, value)

    def calls(self, kind: str) -> int:
        return int(self.library.fake_calls(KINDS.index(kind)))

    def lend(self, pynvml: object, setattr_: object = setattr) -> None:
        """Have the bindings load this library wherever they look for the driver's."""
        setattr_(pynvml, "CDLL", lambda name: ctypes.CDLL(self.library._name))
        setattr_(pynvml, "nvmlLib", None)
        setattr_(pynvml, "_nvmlGetFunctionPointer_cache", {})
