"""Small profiler traces of our own: a device with two streams, and a CPU with nested operators."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

BASE_NS = 1_700_000_000_000_000_000


def event(name: str, cat: str, ts: float, dur: float, tid: Any = 1, **args: Any) -> dict[str, Any]:
    pid = 0 if cat in ("kernel", "gpu_memcpy", "gpu_memset", "gpu_user_annotation") else 7
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": ts,
        "dur": dur,
        "args": args,
    }


def kernel(name: str, ts: float, dur: float, correlation: int, stream: int = 7, **args: Any) -> Any:
    told = {"device": 0, "stream": stream, "correlation": correlation, **args}
    return event(name, "kernel", ts, dur, stream, **told)


def launch(ts: float, correlation: int, name: str = "cudaLaunchKernel", tid: int = 1) -> Any:
    return event(name, "cuda_runtime", ts, 2, tid, correlation=correlation)


def device_events() -> list[dict[str, Any]]:
    """Return two steps: kernels run after their annotation, one in a graph, one from nowhere."""
    reduce = {
        "Collective name": "allreduce",
        "In msg nelems": 1000,
        "Out msg nelems": 1000,
        "Group size": 2,
        "dtype": "BFloat16",
    }
    return [
        event("execute_context_1(20)_generation_0(0)", "user_annotation", 100, 50),
        event("execute_context_0(0)_generation_4(4)", "user_annotation", 200, 50),
        launch(110, 1),
        launch(120, 2),
        launch(210, 3, "cudaGraphLaunch"),
        launch(215, 4, "cudaMemcpyAsync"),
        launch(230, 6, tid=99),
        kernel("flash_fwd_kernel", 160, 30, 1),
        kernel("ampere_bf16_gemm", 190, 40, 2),  # runs in the time of step 1, belongs to step 0
        kernel("void vllm::rms_norm_kernel<c10::BFloat16>", 230, 10, 3),
        kernel("void vllm::act_and_mul_kernel<>", 240, 10, 3),
        kernel("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(args)", 245, 20, 3, stream=9, **reduce),
        event("Memcpy DtoH", "gpu_memcpy", 270, 5, 7, stream=7, device=0, correlation=4, bytes=64),
        kernel("ampere_bf16_gemm", 280, 10, 6),  # launched on a thread without a step
        {"ph": "s", "cat": "ac2g", "name": "ac2g", "id": 1, "pid": 7, "tid": 1, "ts": 110},
        {"ph": "M", "name": "process_name", "pid": 7, "args": {"name": "python"}},
    ]


def cpu_events() -> list[dict[str, Any]]:
    """Return one step of nested operators, with a message that the thread waits for."""
    shapes = {"Input Dims": [[], [8, 16]], "Input type": ["Scalar", "c10::BFloat16"]}
    return [
        event("execute_context_0(0)_generation_2(2)", "user_annotation", 0, 100),
        event("aten::linear", "cpu_op", 10, 50),
        event("aten::addmm", "cpu_op", 15, 40),
        event("aten::copy_", "cpu_op", 20, 5),
        event("_C::shm_allreduce", "cpu_op", 60, 10.5, **shapes),
        event("aten::argmax", "cpu_op", 110, 5),
        event("aten::linear", "cpu_op", 10, 4, tid=2),
    ]


def document(events: list[Any], **metadata: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 1,
        "distributedInfo": {"rank": 0, "world_size": 2},
        "baseTimeNanoseconds": BASE_NS,
        **metadata,
        "traceEvents": events,
        "traceName": "made",
    }


def write(path: Path, data: Any) -> Path:
    """Write a document, or bytes as they are; gzip where the name says so."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path
