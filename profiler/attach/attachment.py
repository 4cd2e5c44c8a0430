"""What it takes to attach to a deployment, for `ttscope attach` and the Live screen.

Receivers of spans and steps, profiler windows and the power of GPUs become probes of a recording.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from profiler.engines.server.access import Access, accesses_of, read_headers, read_key
from traces.errors import UsageError

if TYPE_CHECKING:
    from profiler.attach.deployment import Deployment
    from profiler.attach.forward_passes import PassSteps
    from profiler.attach.kernel_windows import ServerPlan, ServerWindows
    from profiler.attach.receiver.incoming import Incoming
    from profiler.attach.receiver.receiver import Receiver
    from profiler.runs.record import Probe
    from traces.schema.engine import ModelFacts

CAUTION = (
    "A server stands still while it writes a trace. vLLM means its profiler for development, and "
    "SGLang does not say whether a profile is open already, which another one would spoil."
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d|)", re.ASCII)
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """What is watched, and how."""

    accesses: tuple[Access, ...]
    model: str | None = None
    facts: ModelFacts | None = None  # what it costs, where a file says so
    declared: Mapping[str, Any] = field(default_factory=dict)
    duration_s: float | None = None
    period_s: float = 1.0
    reconnect: bool = True
    listen: tuple[str, int] | None = None
    listen_grpc: tuple[str, int] | None = None
    spans_without_token: bool = False
    fpm: tuple[str, ...] = ()  # where engines publish their forward passes
    kernels: Path | None = None  # where the servers' profiler writes
    plan: ServerPlan | None = None
    yes: bool = False
    gpus: int | None = None  # see profiler/attach/gpus_here.py
    price: float | None = None

    @property
    def listens(self) -> bool:
        return self.listen is not None or self.listen_grpc is not None

    def windows_told(self) -> str:
        """Return which profiler windows would be opened, and where."""
        from profiler.attach.kernel_windows import ServerPlan

        plan = self.plan or ServerPlan()
        urls = ", ".join(access.url for access in self.accesses)
        return (
            f"profiler windows of {plan.steps} steps on {urls}, at most one in {plan.every_s:g} s"
        )


def attachment_of(given: Mapping[str, Any]) -> Attachment:
    """Return what the options of `ttscope attach` ask for. Raises UsageError.

    `given` may have others as well, such as those of a workload.
    """
    from profiler.attach.forward_passes import check_endpoint
    from profiler.attach.gpus_here import parse_gpus
    from profiler.attach.kernel_windows import ServerPlan
    from profiler.attach.receiver.receiver import parse_listen
    from profiler.engines.models.model_facts import given_facts

    headers = read_headers(
        read_key(given["api_key_env"], given["api_key_file"]), given["header"] or ()
    )
    on_loss, duration, price = given["on_loss"], given["duration"], given["price"]
    listen, listen_grpc = given["listen"], given["listen_grpc"]
    if on_loss not in {"wait", "end"}:
        raise UsageError(f"--on-loss {on_loss}: wait or end")
    if price is not None and not 0 < price < inf:
        raise UsageError(f"--price must be above 0 and finite, not {price}")
    if given["spans_without_token"] and listen is None and listen_grpc is None:
        raise UsageError("--spans-without-token: nobody listens. Add --listen or --listen-grpc")
    return Attachment(
        accesses=accesses_of(given["urls"], given["metrics_url"] or (), headers),
        model=given["model"],
        facts=None if given["model_config"] is None else given_facts(given["model_config"]),
        declared={"tensor_parallel_size": given["tensor_parallel_size"]},
        duration_s=None if duration is None else parse_duration(duration, "--duration"),
        period_s=parse_duration(given["period"], "--period"),
        reconnect=on_loss == "wait",
        listen=None if listen is None else parse_listen(listen),
        listen_grpc=None if listen_grpc is None else parse_listen(listen_grpc, "--listen-grpc"),
        spans_without_token=given["spans_without_token"],
        fpm=tuple(map(check_endpoint, dict.fromkeys(given["fpm"] or ()))),
        kernels=given["kernels"],
        plan=ServerPlan.parse(given["kernel_windows"]),
        yes=given["yes"],
        gpus=parse_gpus(given["gpus"]),
        price=price,
    )


def parse_duration(text: str, option: str) -> float:
    """Return the seconds of `90s`, `10m`, `2h` or `90`. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"{option} {text}: write for example 90s, 10m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def default_folder(access: Access) -> Path:
    """Name a new folder in ./runs after the server and the time."""
    parts = urlsplit(access.url)
    host = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{parts.hostname}-{parts.port or parts.scheme}")
    return Path("runs") / f"live-{host}-{time.strftime('%Y%m%d-%H%M%S')}"


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A deployment that answers, and the probes of what else was asked for.

    `incoming` is None where nobody listens; `unpowered` says why no power is read, else None.
    """

    deployment: Deployment
    probes: list[Probe]
    incoming: Incoming | None
    unpowered: str | None
    passes: PassSteps | None = None

    @property
    def steps(self) -> int | None:
        """How many steps have come so far, None where none are received."""
        sources = [each for each in (self.incoming, self.passes) if each is not None]
        return sum(each.steps for each in sources) if sources else None


def attach_to(
    stack: ExitStack,
    wanted: Attachment,
    *,
    may_open: Callable[[str], bool],
    say: Callable[[str], None],
    metrics_needed: bool = True,
    own_traces: Collection[str] = (),
) -> Attached:
    """Connect to a deployment until the stack unwinds.

    `may_open` is asked before profiler windows are opened, unless `wanted.yes`; `say` takes a line
    that the user must see. `own_traces` are the traces of requests of ours (`Incoming`). Raises
    TtscopeError where a server does not answer or what was asked for cannot be had.
    """
    from profiler.attach.deployment import Deployment
    from profiler.attach.gpus_here import power_probe, why_unread
    from profiler.attach.receiver.incoming import Incoming
    from profiler.probes.otlp_metrics import exporter_of, table_metrics

    deployment = Deployment(
        wanted.accesses,
        model=wanted.model,
        facts=wanted.facts,
        declared=wanted.declared,
        period_s=wanted.period_s,
        reconnect=wanted.reconnect,
        say=say,
    )
    receiver, passes = _listening(stack, wanted, say), None
    if wanted.fpm:
        from profiler.attach.forward_passes import PassReceiver, PassSteps

        passes = PassReceiver(wanted.fpm)
        stack.callback(passes.close)
    stack.callback(deployment.close)
    deployment.connect(metrics_needed=metrics_needed)
    probes: list[Probe] = []
    exporter = exporter_of()
    if exporter is not None:
        metrics = table_metrics(exporter, {}, lambda: dict(deployment.engines))
        stack.callback(metrics.close)
        probes.append(metrics.watched)
    windows, incoming = _windows(deployment, wanted, may_open), None
    seen, steps = {} if windows is None else {"profiled": windows.saw}, None
    if passes is not None:
        steps = PassSteps(passes, deployment, **seen)
        probes.append(steps.watched)
    if receiver is not None:
        incoming = Incoming(
            receiver, deployment, own_traces=own_traces, steps=passes is None, **seen
        )
        incoming.adopt()
        probes.append(incoming.watched)
    if windows is not None:
        windows.awaits_steps = receiver is not None or passes is not None
        probes.append(windows.watched)
    unpowered = why_unread(deployment, wanted.gpus)
    if unpowered is None:
        probes.append(power_probe(deployment, wanted.gpus))
    return Attached(
        deployment=deployment,
        probes=probes,
        incoming=incoming,
        unpowered=unpowered,
        passes=steps,
    )


def _listening(stack: ExitStack, wanted: Attachment, say: Callable[[str], None]) -> Receiver | None:
    """Listen for spans and steps where asked to, until the stack unwinds."""
    from profiler.attach.receiver.receiver import Receiver

    if not wanted.listens:
        return None
    receiver = Receiver(
        *(wanted.listen or ("127.0.0.1", 0)), spans_without_token=wanted.spans_without_token
    )
    stack.callback(receiver.close)
    hosts = [receiver.host]
    if wanted.listen_grpc is not None:
        from profiler.attach.receiver.grpc_listener import GrpcListener

        listener = GrpcListener(receiver, *wanted.listen_grpc)
        listener.start()
        stack.callback(listener.close)
        hosts.append(listener.host)
    receiver.start()
    for host in sorted(set(hosts) - {"127.0.0.1", "::1", "localhost"}):
        say(f"listening on {host}: others on the network who have the token can send here")
    return receiver


def _windows(
    deployment: Deployment, wanted: Attachment, may_open: Callable[[str], bool]
) -> ServerWindows | None:
    """Ask whether windows may be opened, and try one. Raises TtscopeError."""
    from profiler.attach.kernel_windows import ServerPlan, ServerWindows

    if wanted.kernels is None:
        return None
    windows = ServerWindows(deployment, wanted.kernels, wanted.plan or ServerPlan())
    windows.look()
    if not wanted.yes and not may_open(wanted.windows_told()):
        raise UsageError("--kernels: not opened. Leave it out to watch without")
    windows.rehearse()
    return windows
