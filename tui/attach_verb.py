"""The verb that watches a live deployment."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from profiler.access import Access
from traces.deployment import Numbers
from traces.errors import TtscopeError, UsageError
from traces.schema import Policy

if TYPE_CHECKING:
    from profiler.capture import Probe
    from profiler.deployment import Deployment
    from profiler.engines.protocol import Engine
    from profiler.receiver import Receiver
    from profiler.server_windows import ServerPlan, ServerWindows

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)", re.ASCII)
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """What is watched, and how."""

    accesses: tuple[Access, ...]
    model: str | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)
    duration_s: float | None = None
    period_s: float = 1.0
    reconnect: bool = True
    listen: tuple[str, int] | None = None
    listen_grpc: tuple[str, int] | None = None
    kernels: Path | None = None  # where the servers' profiler writes
    plan: ServerPlan | None = None
    yes: bool = False
    gpus: int | None = None  # see profiler/gpus_here.py
    price: float | None = None


@dataclass(frozen=True, kw_only=True)
class Posed:
    """A workload that is posed: `load_workload`'s arguments, `make_policy`'s, and the rest.

    `checkpoints` are the budgets of forced answers, and of how many samples.
    """

    source: Mapping[str, Any]
    policy: Mapping[str, Any]
    rule: tuple[str, ...] = ()
    concurrency: int = 8
    timeout_s: float | None = None
    checkpoints: tuple[tuple[int, ...], int] = ((), 8)
    logprobs: bool = False
    chat_template: str | None = None
    record_text: bool = False

    def make_policy(self) -> Policy:
        """Return the policy. Raises UsageError."""
        from profiler.policies.rules import make_policy

        given = dict(self.policy)
        for text in self.rule:
            name, sign, value = text.partition("=")
            if not sign or not name.isidentifier() or name in given:
                raise UsageError(f"--rule {text}: write NAME=VALUE, such as window=4")
            given[name] = _number(value)
        several = given["n"] > 1 or given["method"] not in {None, "greedy"}
        given["method"] = given["method"] or ("majority" if several else "greedy")
        if given["temperature"] is None:
            given["temperature"] = 0.8 if several else 0.0
        return make_policy(given)


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_duration(text: str, option: str) -> float:
    """Return the seconds of `90s`, `10m` or `2h`. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"{option} {text}: write for example 90s, 10m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def default_folder(access: Access) -> Path:
    """Name a new folder in ./runs after the server and the time."""
    parts = urlsplit(access.url)
    host = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{parts.hostname}-{parts.port or parts.scheme}")
    return Path("runs") / f"live-{host}-{time.strftime('%Y%m%d-%H%M%S')}"


@contextmanager
def ended_by_signal() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C or SIGTERM set; a second one ends at once."""
    stop = threading.Event()

    def end(number: int, _: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class LiveLine:
    """Writes a line per second to stderr, over the last one where that is a terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def __call__(self, seconds: float, numbers: Mapping[str, Numbers | None]) -> None:
        """Write it."""
        from tui.live_text import live_line

        line = live_line(seconds, numbers)
        if self._terminal:
            sys.stderr.write(f"\r{line:<80}")
        else:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the last line where it is."""
        if self._terminal:
            sys.stderr.write("\n")


def _listening(stack: ExitStack, wanted: Attachment) -> Receiver | None:
    """Listen for spans and steps where asked to, until the stack unwinds."""
    from profiler.receiver import Receiver

    if wanted.listen is None and wanted.listen_grpc is None:
        return None
    receiver = Receiver(*(wanted.listen or ("127.0.0.1", 0)))
    stack.callback(receiver.close)
    hosts = [receiver.host]
    if wanted.listen_grpc is not None:
        from profiler.grpc_receiver import GrpcListener

        listener = GrpcListener(receiver, *wanted.listen_grpc)
        listener.start()
        stack.callback(listener.close)
        hosts.append(listener.host)
    receiver.start()
    for host in sorted(set(hosts) - {"127.0.0.1", "::1", "localhost"}):
        sys.stderr.write(f"listening on {host}: others on the network can send here\n")
    return receiver


def _windows(deployment: Deployment, wanted: Attachment) -> ServerWindows | None:
    """Ask whether windows may be opened, and try one. Raises TtscopeError."""
    from profiler.server_windows import ServerPlan, ServerWindows

    if wanted.kernels is None:
        return None
    plan = wanted.plan or ServerPlan()
    windows = ServerWindows(deployment, wanted.kernels, plan)
    windows.look()
    urls = ", ".join(replica.access.url for replica in deployment.replicas)
    told = f"profiler windows of {plan.steps} steps on {urls}, at most one in {plan.every_s:g} s"
    if not wanted.yes:
        if not sys.stdin.isatty():
            raise UsageError(f"--kernels: opens {told}; say that it may with --yes")
        sys.stderr.write(f"Opens {told}.\nA server stands still while it writes a trace. ")
        sys.stderr.write("vLLM means its profiler for development. Open them? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise UsageError("--kernels: not opened; leave it out to watch without")
    windows.rehearse()
    return windows


def run_attach(
    wanted: Attachment, posed: Posed | None, *, output: Path | None, as_json: bool
) -> None:
    """Watch, then print the summary and the verdict.

    Exits 1 when a server was lost and was not to be waited for.
    """
    from profiler.attach import watch
    from profiler.deployment import Deployment
    from profiler.gpus_here import power_probe
    from profiler.incoming import Incoming
    from traces.recording import Recording
    from tui.read_verbs import print_show

    if wanted.price is not None and not wanted.price > 0:
        raise UsageError(f"--price must be above 0, not {wanted.price}")
    folder = output or default_folder(wanted.accesses[0])
    if (folder / "recording.json").exists():
        raise UsageError(f"-o {folder}: already holds a recording; name another folder")
    policy = None if posed is None else posed.make_policy()
    deployment = Deployment(
        wanted.accesses,
        model=wanted.model,
        declared=wanted.declared,
        period_s=wanted.period_s,
        reconnect=wanted.reconnect,
    )
    line = LiveLine()
    with ExitStack() as stack:
        receiver = _listening(stack, wanted)
        stack.callback(line.end)
        stack.callback(deployment.close)
        deployment.connect(metrics_needed=posed is None)
        probes: list[Probe] = []
        own_traces: set[str] = set()
        windows = _windows(deployment, wanted)
        if receiver is not None:
            profiled = None if windows is None else windows.profiled
            incoming = Incoming(receiver, deployment, profiled, own_traces)
            incoming.adopt()
            probes.append(incoming.watched)
        if windows is not None:
            probes.append(windows.watched)
        power = power_probe(deployment, wanted.gpus)
        if power is not None:
            probes.append(power)
        if posed is None or policy is None:
            stop = stack.enter_context(ended_by_signal())
            watch(
                deployment,
                folder,
                stop=stop,
                duration_s=wanted.duration_s,
                probes=probes,
                on_tick=line,
                price_usd_per_device_hour=wanted.price,
            )
        else:
            engine = _engine_of(deployment, wanted.model, posed, own_traces)
            stack.callback(engine.close)
            _pose(deployment, wanted, posed, policy, engine, folder, line, probes)
    print_show([folder], price=None, as_json=as_json)
    if not as_json:
        print(f"kept in {folder}")
    if not Recording.open(folder).complete:
        raise TtscopeError(f"{folder}: a server was lost; what was recorded until then is kept")


def _pose(
    deployment: Deployment,
    wanted: Attachment,
    posed: Posed,
    policy: Policy,
    engine: Engine,
    folder: Path,
    line: LiveLine,
    probes: Sequence[Probe],
) -> None:
    """Run the workload against the servers while all of them are watched."""
    from profiler.attach import Ticker
    from profiler.capture import record
    from profiler.workload import load_workload

    record(
        load_workload(**posed.source),
        policy,
        engine,
        folder,
        concurrency=posed.concurrency,
        timeout_s=posed.timeout_s,
        logprobs=posed.logprobs,
        budget_checkpoints=posed.checkpoints[0],
        checkpoint_samples=posed.checkpoints[1],
        record_text=posed.record_text,
        price_usd_per_device_hour=wanted.price,
        probes=(deployment.watched, *probes, lambda _: Ticker(deployment, line)),
        stop_after_s=wanted.duration_s,
    )


def _engine_of(deployment: Deployment, model: str | None, posed: Posed, traces: set[str]) -> Engine:
    """Return the deployment as an engine; one key for what the client and /metrics tell."""
    from profiler.engines.replicas import Replicas, together
    from profiler.engines.server import ServerEngine
    from profiler.launch import read_template

    replicas, template = deployment.replicas, read_template(posed.chat_template)
    configs = [replica.config for replica in replicas]
    whole = together(configs, [replica.access.url for replica in replicas])
    engines: list[ServerEngine] = []
    try:
        for replica in replicas:
            access = replica.access
            engines.append(
                ServerEngine(
                    access.url, model=model, headers=access.headers, chat_template=template
                )
            )
            engines[-1].config, engines[-1].traces = replica.config, traces
    except BaseException:
        for engine in engines:
            engine.close()
        raise
    return engines[0] if len(engines) == 1 else Replicas(engines, whole)
