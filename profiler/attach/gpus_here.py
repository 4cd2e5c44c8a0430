"""Whether the GPUs of a live deployment are this machine's, and a probe that reads their power.

A server on loopback may still be far away, behind a forwarded port. It is here when a process of
this machine began at the very moment that its /metrics tells as its own start.
"""

from __future__ import annotations

import ipaddress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from profiler.attach.deployment import Deployment, Replica
from profiler.plugin.process_clock import process_start
from profiler.probes.power import watch_gpus_here
from profiler.runs.record import Probe
from traces.errors import UsageError

_TICK_S = 0.02


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
    if not all(_is_here(replica) for replica in deployment.replicas):
        return "the servers do not run on this machine, as far as can be seen"
    if any(_gpus_of(replica) == 0 for replica in deployment.replicas):
        return "a server runs on the processor"
    return None


def power_probe(deployment: Deployment, gpus: int | None) -> Probe:
    """Return a probe of a deployment's GPUs, where `why_unread` knows no reason against it.

    Of a deployment whose number of GPUs is not known all that CUDA_VISIBLE_DEVICES leaves are read.
    """
    if gpus is not None and gpus > 0:
        return partial(watch_gpus_here, gpus)
    counts = [_gpus_of(replica) for replica in deployment.replicas]
    known = [count for count in counts if count is not None]
    return partial(watch_gpus_here, sum(known) if len(known) == len(counts) else None)


def _gpus_of(replica: Replica) -> int | None:
    """Return how many GPUs a server uses: its plugin tells; None where it has none."""
    config = replica.config
    if config.gpu is not None:
        return config.num_devices
    return None if config.max_num_seqs is None else 0


def _is_here(replica: Replica) -> bool:
    host = urlsplit(replica.access.url).hostname or ""
    try:
        near = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = False
    return near and replica.started is not None and _began_here(replica.started)


def _began_here(started: float) -> bool:
    """Tell whether a process of this machine began then.

    The kernel's time of boot, of which both sides make their number, may differ by a second.
    """
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        begun = process_start(folder.name)
        if begun is not None and any(
            abs(begun - started + shift) < _TICK_S for shift in (-1, 0, 1)
        ):
            return True
    return False
