"""Whether the GPUs of a live deployment are this machine's, and a probe that reads their power.

A server on loopback may still be far away, behind a forwarded port. It is here when a process of
this machine began at the very moment that its /metrics tells as its own start.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from profiler.attach.deployment import Deployment, Replica
from profiler.engines.server.access import Access, is_loopback, port_of
from profiler.plugin.process_clock import listening_ports, process_start
from profiler.probes.nvml import Gpu, GpuUser, open_gpus, open_gpus_of
from profiler.probes.power import watch_gpus_here
from profiler.runs.record import Probe
from traces.errors import UsageError

_TICK_S = 0.02
_DECIDES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


def parse_gpus(text: str) -> int | None:
    """Return -1 for `auto`, None for `none`, or a number of GPUs. Raises UsageError."""
    if text in {"auto", "none"}:
        return -1 if text == "auto" else None
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise UsageError(f"--gpus {text}: auto, none, or how many of this machine's GPUs they use")
    return int(text)


def why_unread(deployment: Deployment, gpus: int | None) -> str | None:
    """Return why the power of a deployment's GPUs is not read, None where it can be.

    `gpus` is as `parse_gpus` gives it.
    """
    if gpus is None:
        return "--gpus none was given"
    if gpus > 0:
        return None
    if not all(processes_here(each.access, each.started) for each in deployment.replicas):
        return "the servers do not run on this machine, as far as can be seen"
    if any(_gpus_of(replica) == 0 for replica in deployment.replicas):
        return "a server runs on the processor"
    return None


def power_probe(deployment: Deployment, gpus: int | None) -> Probe:
    """Return a probe of a deployment's GPUs, where `why_unread` knows no reason against it.

    It reads all GPUs that CUDA shows to a server whose number of GPUs is not known. A given number
    counts those that CUDA shows to this process.
    """
    if gpus is not None and gpus > 0:
        return partial(watch_gpus_here, partial(open_gpus, gpus))
    return partial(watch_gpus_here, partial(_opened, deployment.replicas))


def _opened(replicas: Sequence[Replica]) -> AbstractContextManager[list[Gpu]]:
    pids_of = [processes_here(each.access, each.started) for each in replicas]
    users = [
        GpuUser(count=_gpus_of(replica), environs=[_shown_to(pid) for pid in pids])
        for replica, pids in zip(replicas, pids_of, strict=True)
    ]
    return open_gpus_of(users, _with_children({pid for pids in pids_of for pid in pids}))


def _shown_to(pid: int) -> dict[str, str] | None:
    """Return what decides which GPUs CUDA shows to a process; None where it cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    pairs = (line.decode("utf-8", "replace").partition("=") for line in lines)
    return {name: value for name, _, value in pairs if name in _DECIDES}


def _with_children(pids: set[int]) -> set[int]:
    """Return processes with all that they have begun, and those have."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            children[int(parent)].append(int(folder.name))
    family, left = set(pids), list(pids)
    while left:
        new = set(children[left.pop()]) - family
        family |= new
        left += new
    return family


def _gpus_of(replica: Replica) -> int | None:
    """Return how many GPUs a server uses: its plugin tells; None where it has none."""
    config = replica.config
    if config.gpu is not None:
        return config.num_devices
    return 0 if replica.adopted else None


def processes_here(access: Access, started: float | None) -> list[int]:
    """Return the processes of this machine that may be a server: by its start, and its port.

    `started` is in unix seconds, as its /metrics tells it. There are none where its URL leads away.
    """
    near = is_loopback(urlsplit(access.url).hostname)
    began = _began_here(started) if near and started is not None else []
    port = port_of(access.url)
    return [pid for pid in began if port in listening_ports(pid)] or began


def _began_here(started: float) -> list[int]:
    """Return the processes of this machine that began then.

    The kernel's time of boot, of which both sides make their number, may differ by a second.
    """
    pids = []
    for folder in Path("/proc").iterdir():
        begun = process_start(folder.name) if folder.name.isdecimal() else None
        if begun is not None and any(
            abs(begun - started + shift) < _TICK_S for shift in (-1, 0, 1)
        ):
            pids.append(int(folder.name))
    return pids
