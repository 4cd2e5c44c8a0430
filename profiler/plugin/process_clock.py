"""What /proc tells of the processes of this machine: when they began, and on what they listen."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def process_start(pid: int | str = "self") -> float | None:
    """Return when a process began as prometheus_client's process collector reckons it.

    In unix seconds, exact to a tick of 10 ms. None where /proc does not tell.
    """
    try:
        ticks = float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        lines = Path("/proc/stat").read_text().splitlines()
        boot = next(float(line.split()[1]) for line in lines if line.startswith("btime "))
        return boot + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def listening_ports(pid: int | str = "self") -> set[int]:
    """Return the TCP ports on which a process listens, as far as /proc tells."""
    sockets, ports = set(), set()
    try:
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                sockets.add(str(each.readlink()))
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # it listens
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    except (OSError, ValueError, IndexError):
        pass
    return ports
