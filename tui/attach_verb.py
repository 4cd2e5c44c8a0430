"""The verb that watches a live deployment."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.deployment import Numbers
from traces.errors import TtscopeError, UsageError
from traces.schema import Policy
from tui.attachment import CAUTION, Attachment, attach_to, default_folder
from tui.terminal_text import clean, say

if TYPE_CHECKING:
    from profiler.capture import Probe
    from profiler.deployment import Deployment
    from profiler.engines.protocol import Engine


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


MOST_SUMMED_UP = 1_000  # problems, after SIGTERM: who sends it waits for the end, not for numbers


class Stop(threading.Event):
    """Set by a signal; `terminated` says that it was SIGTERM."""

    terminated = False


@contextmanager
def ended_by_signal() -> Iterator[Stop]:
    """Give an event that Ctrl-C or SIGTERM set; a second one ends at once."""
    stop = Stop()

    def end(number: int, _: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.terminated = number == signal.SIGTERM
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
        self._written = False  # over which the next line goes

    def __call__(self, seconds: float, numbers: Mapping[str, Numbers | None]) -> None:
        """Write it. A terminal that is gone ends no recording."""
        from tui.live_text import live_line

        line = live_line(seconds, numbers)
        with contextlib.suppress(OSError):
            if self._terminal:
                width = shutil.get_terminal_size().columns - 3  # with room for the ^C of Ctrl-C
                sys.stderr.write(f"\r{clean(line)[:width]:<{width}}")
                self._written = True
            else:
                sys.stderr.write(f"{clean(line)}\n")
            sys.stderr.flush()

    def end(self) -> None:
        """Leave the last line where it is."""
        if self._written:
            with contextlib.suppress(OSError):
                sys.stderr.write("\n")
                sys.stderr.flush()


def _may_open(told: str) -> bool:
    """Ask whether profiler windows may be opened. Raises UsageError where nobody can answer."""
    if not sys.stdin.isatty():
        raise UsageError(f"--kernels: opens {told}; say that it may with --yes")
    sys.stderr.write(f"Opens {clean(told)}.\n{CAUTION} Open them? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def run_attach(
    wanted: Attachment, posed: Posed | None, *, output: Path | None, as_json: bool
) -> None:
    """Watch, then print the summary and the verdict.

    Exits 1 when a server was lost and was not to be waited for.
    """
    from profiler.attach import watch
    from traces.recording import Recording
    from tui.read_verbs import print_show

    folder = output or default_folder(wanted.accesses[0])
    if (folder / "recording.json").exists():
        raise UsageError(f"-o {folder}: already holds a recording; name another folder")
    policy = None if posed is None else posed.make_policy()
    line, own_traces, terminated = LiveLine(), set[str](), False
    with ExitStack() as stack:
        stack.callback(line.end)
        attached = attach_to(
            stack,
            wanted,
            may_open=_may_open,
            say=lambda text: say(text, file=sys.stderr),
            metrics_needed=posed is None,
            own_traces=own_traces,
        )
        deployment, probes = attached.deployment, attached.probes
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
            terminated = stop.terminated
        else:
            engine = _engine_of(deployment, wanted.model, posed, own_traces)
            stack.callback(engine.close)
            _pose(deployment, wanted, posed, policy, engine, folder, line, probes)
    if terminated and Recording.open(folder).problems.height > MOST_SUMMED_UP:
        say(f"ended by SIGTERM: ttscope show {folder} sums it up", file=sys.stderr)
    else:
        print_show([folder], price=None, as_json=as_json)
    if not as_json:
        say(f"kept in {folder}")
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
    from tui.run_verbs import says_what_is_kept

    with says_what_is_kept(folder):
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
