"""When a process of this machine began, as prometheus_client's process collector reckons it."""

from __future__ import annotations

import os
from pathlib import Path


def process_start(pid: int | str = "self") -> float | None:
    """Return unix seconds, None where /proc does not tell. Exact to a tick, 10 ms."""
    try:
        ticks = float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        lines = Path("/proc/stat").read_text().splitlines()
        boot = next(float(line.split()[1]) for line in lines if line.startswith("btime "))
        return boot + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, StopIteration, IndexError):
        return None
