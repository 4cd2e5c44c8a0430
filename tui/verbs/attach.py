"""`ttscope attach`: watch a live deployment, and on request pose a workload to it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.attach.attachment import (
    CAUTION,
    Attachment,
    attach_to,
    attachment_of,
    default_folder,
)
from traces.endings import ending_signals, leave_terminal
from traces.errors import TtscopeError, UsageError
from traces.live.numbers import Numbers
from traces.plain_text import clean
from traces.recording.manifest import check_free
from traces.schema.tts.policy import Policy
from tui.options import (
    KEYS,
    OPTIONS,
    PROMPTS,
    SAMPLES,
    Concurrency,
    Json,
    Measures,
    Output,
    Problems,
    RawPrompts,
    RecordText,
    Sampling,
    Seed,
    SystemPrompt,
    Verifier,
    Watch,
    option,
    takes,
    verifier_for,
)  # fmt: skip
from tui.terminal import say, say_all, tell

if TYPE_CHECKING:
    from profiler.attach.deployment import Deployment, Replica
    from profiler.attach.scraper import Silence
    from profiler.engines.interface import Engine
    from profiler.runs.record import Probe
    from traces.deployment.checks import Check
    from traces.deployment.documents import Expectations
    from traces.recording.reader import Recording


@dataclass(frozen=True, kw_only=True)
class Pose:
    """A workload that is posed to the servers."""

    workload: str | None = option(
        None, "Send this, to the URLs in turn: demo, demo:preamble, or a JSONL file."
    )
    passive: bool = option(False, "Only watch the servers' own traffic (the default).")
    problems: Problems = None
    seed: Seed = 0
    concurrency: Concurrency = 8


@dataclass(frozen=True, kw_only=True)
class MethodRules:
    """The parameters of the method."""

    rule: list[str] | None = option(
        None, "Parameters of the method: window=4.", metavar="NAME=VALUE"
    )

    def parameters(self) -> dict[str, float | int | str]:
        """Return the parameters of `--rule` by name. Raises UsageError."""
        values: dict[str, float | int | str] = {}
        fields_of_policy = {field.name for field in fields(Policy)}
        for text in self.rule or ():
            name, sign, value = text.partition("=")
            if not sign or not name.isidentifier() or name in fields_of_policy or name in values:
                raise UsageError(f"--rule {text}: write NAME=VALUE, such as window=4")
            values[name] = _number(value)
        return values


@dataclass(frozen=True, kw_only=True)
class Judging(Measures):
    """How the workload is judged, and where the recording goes."""

    raw_prompts: RawPrompts = False
    chat_template: str | None = option(
        None, "A Jinja template instead of the servers'.", metavar="FILE"
    )
    system_prompt: SystemPrompt = None
    verifier: Verifier = None
    record_text: RecordText = False
    expect: Path | None = option(
        None, "Exit 3 where this expect.json is not kept, and say where.", metavar="FILE"
    )
    output: Output = None
    as_json: Json = False


@takes(
    Watch,
    Pose,
    Sampling,
    MethodRules,
    Judging,
    panels={
        "gpus": "What the servers run on",
        "metrics_url": "Polls of /metrics",
        "listen": "Spans, steps and kernels",
        "api_key_env": KEYS,
        "workload": "A workload to send",
        "policy": SAMPLES,
        "timeout": PROMPTS,
        "expect": OPTIONS,
    },
)
def attach(
    watched: Watch, pose: Pose, sampling: Sampling, rules: MethodRules, asked: Judging
) -> int:
    """Profile a live deployment: its own traffic, or with a workload of yours."""
    # Exits 1 when a server was lost and was not to be waited for.
    from traces.recording.reader import Recording
    from traces.summary.run import to_plain
    from tui.verbs.show import print_show

    expected = None
    if asked.expect is not None:
        from traces.deployment.documents import read_expectations

        expected = read_expectations(asked.expect)
    folder, terminated = watch_servers(watched, pose, sampling, rules, asked)
    recording = Recording.open(folder)
    if pose.workload is None and not recording.rows("scrapes"):
        raise TtscopeError(
            f"{folder}: /metrics did not answer once. Watch for longer, or ask it by hand: curl "
            f"{watched.urls[0]}/metrics"
        )
    moved = [] if expected is None else _drift(expected, recording)
    more = None if expected is None else {"drift": to_plain(moved)}
    if terminated and recording.problems.height > MOST_SUMMED_UP:
        tell(f"ended by a signal. Sum it up with ttscope show {folder}")
    else:
        print_show([folder], price=None, as_json=asked.as_json, extra=more)
        if moved and not asked.as_json:
            _print_drift(moved)
        if not asked.as_json and not terminated:
            _print_next(recording)
    if not asked.as_json:
        say(f"kept in {folder}")
    if not recording.complete:
        other = ", or rows did not fit their tables" if recording.manifest.dropped else ""
        raise TtscopeError(f"{folder}: a server was lost{other}. What was recorded is kept")
    return 3 if any(each.verdict == "broken" for each in moved) else 0


def _drift(expected: Expectations, recording: Recording) -> list[Check]:
    """Return what the deployment is like against what was assumed of it."""
    from traces.deployment.checks import drift
    from traces.live.watched import runs_and_servers, servers_in

    runs, watched = runs_and_servers(recording)
    servers = servers_in(recording, watched)
    return drift(expected, servers, [run for run in runs if run.problems and run.policy])


def _print_drift(checks: Sequence[Check]) -> None:
    from tui.text.recordings.gate import headed_lines

    broken = [each for each in checks if each.verdict == "broken"]
    title = "against what was assumed" + ("" if broken else ": nothing that is known moved")
    say()
    say_all(headed_lines(title, checks))


def _print_next(recording: Recording) -> None:
    """Print the replay to run next. It takes seconds, so not after a signal."""
    from advisor.what_if.suggest import suggest  # with numba, which no watch needs
    from tui.text.recordings.live import next_lines
    from tui.verbs.progress import progress_bar

    with progress_bar() as bar:
        bar.add_task("replaying", total=None)
        found = suggest(recording)
    say()
    say_all(next_lines(str(recording.path), found))


def watch_servers(
    watched: Watch, pose: Pose, sampling: Sampling, rules: MethodRules, asked: Judging
) -> tuple[Path, bool]:
    """Watch until the end; return the recording's folder and whether a signal ended it."""
    from profiler.attach.watch import watch

    if pose.workload is not None and pose.passive:
        raise UsageError("--workload and --passive exclude each other")
    wanted = attachment_of(vars(watched))
    policy = None if pose.workload is None else sampling.chosen(rules.parameters())
    folder = asked.output or default_folder(wanted.accesses[0])
    check_free(folder)
    line, own_traces, terminated = LiveLine(), set[str](), False
    with ExitStack() as stack:
        stack.callback(line.end)
        attached = attach_to(
            stack,
            wanted,
            may_open=_may_open,
            say=line.say,
            metrics_needed=policy is None,
            own_traces=own_traces,
        )
        deployment, probes = attached.deployment, attached.probes
        if policy is None:
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
            engine = _engine_of(deployment, wanted.model, asked.chat_template, own_traces)
            stack.callback(engine.close)
            verifier = verifier_for(sampling, pose.workload or "", asked.verifier)
            asked = replace(asked, verifier=verifier)
            _pose(deployment, wanted, pose, policy, asked, engine, folder, line, probes)
    return folder, terminated


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


MOST_SUMMED_UP = 1_000  # problems, after a signal: who sends it waits for the end, not for numbers


class StopSignal(threading.Event):
    """Set by a signal; `terminated` says that it was not Ctrl-C."""

    terminated = False


@contextmanager
def ended_by_signal() -> Iterator[StopSignal]:
    """Give an event that Ctrl-C, SIGTERM or SIGHUP set; a second one ends at once."""
    stop = StopSignal()

    def end(number: int, _: Any) -> None:
        leave_terminal()
        if stop.is_set():
            raise KeyboardInterrupt
        stop.terminated = number != signal.SIGINT
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, *ending_signals())}
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

    def __call__(
        self,
        seconds: float,
        numbers: Mapping[str, Numbers | None],
        silences: Mapping[str, Silence],
    ) -> None:
        """Write it. A terminal that is gone ends no recording."""
        from tui.text.recordings.live import live_line

        line = live_line(seconds, numbers, silences)
        with contextlib.suppress(OSError):
            if self._terminal:
                width = shutil.get_terminal_size().columns - 3  # with room for the ^C of Ctrl-C
                sys.stderr.write(f"\r{clean(line)[:width]:<{width}}")
                self._written = True
            else:
                sys.stderr.write(f"{clean(line)}\n")
            sys.stderr.flush()

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self.end()
        with contextlib.suppress(OSError):
            say(text, file=sys.stderr)

    def end(self) -> None:
        """Leave the last line where it is."""
        if self._written:
            self._written = False
            with contextlib.suppress(OSError):
                sys.stderr.write("\n")
                sys.stderr.flush()


def _may_open(told: str) -> bool:
    """Ask whether profiler windows may be opened. Raises UsageError where nobody can answer."""
    if not sys.stdin.isatty():
        raise UsageError(f"--kernels: opens {told}. Say that it may with --yes")
    sys.stderr.write(f"Opens {clean(told)}.\n{CAUTION} Open them? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _pose(
    deployment: Deployment,
    wanted: Attachment,
    pose: Pose,
    policy: Policy,
    asked: Judging,
    engine: Engine,
    folder: Path,
    line: LiveLine,
    probes: Sequence[Probe],
) -> None:
    """Run the workload against the servers while all of them are watched."""
    from profiler.attach.watch import Ticker
    from profiler.runs.record import record
    from profiler.workload.problems import load_workload
    from tui.verbs.interrupted import says_what_is_kept

    assert pose.workload is not None
    with says_what_is_kept(folder):
        record(
            load_workload(
                source=pose.workload,
                problems=pose.problems,
                seed=pose.seed,
                chat=not asked.raw_prompts,
                verifier=asked.verifier,
                system_prompt=asked.system_prompt,
            ),
            policy,
            engine,
            folder,
            concurrency=pose.concurrency,
            **asked.settings(),
            record_text=asked.record_text,
            price_usd_per_device_hour=wanted.price,
            probes=(
                deployment.watched,
                *probes,
                deployment.polled,
                lambda _: Ticker(deployment, line),
            ),
            stop_after_s=wanted.duration_s,
        )


def _engine_of(
    deployment: Deployment, model: str | None, template: str | None, traces: set[str]
) -> Engine:
    """Return the deployment as an engine; one key for what the client and /metrics tell."""
    from profiler.engines.options import read_template
    from profiler.engines.server.replicas import ReplicaEngine, together
    from profiler.engines.server.server import ServerEngine

    replicas, chat_template = deployment.replicas, read_template(template)
    configs = [replica.described or replica.config for replica in replicas]
    combined = together(configs, [replica.access.where for replica in replicas])
    if all(replica.joined for replica in replicas):
        combined = combined.of_servers(combined.data_parallel_size)
    engines: list[ServerEngine] = []
    try:
        by_url: dict[str, Replica] = {}
        for replica in replicas:  # several pages of /metrics may be of one server
            by_url.setdefault(replica.access.url, replica)
        for url, replica in by_url.items():
            access = replica.access
            engines.append(
                ServerEngine(url, model=model, headers=access.headers, chat_template=chat_template)
            )
            engines[-1].config, engines[-1].traces = replica.config, traces
    except BaseException:
        for engine in engines:
            engine.close()
        raise
    return engines[0] if len(engines) == 1 else ReplicaEngine(engines, combined)
