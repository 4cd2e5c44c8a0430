"""What a receiver takes in, as rows of a recording: spans become problems, batches steps."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from profiler.attach.deployment import Deployment, Replica
from profiler.attach.receiver.receiver import Receiver
from profiler.attach.window_steps import CLOCK_NS
from profiler.engines.server.access import port_of
from profiler.plugin.batches import MOST_HELD, Batch, PluginRows
from traces.clock import now_ns
from traces.live.otlp import GenSpan
from traces.live.span_groups import Row, SpanGroups
from traces.recording.tables import SILENT
from traces.recording.writer import RecordingWriter
from traces.schema.engine import EngineConfig, ModelFacts

HELLO_S = 2.5  # a plugin says that it is there every second
FLUSH_S = 6.0  # an exporter of OpenTelemetry sends every 5 s the spans that ended
MOST_ENGINES = 64  # named by spans or plugins alone
HOLD_NS = 1_500_000_000  # that steps of several front ends wait for one another
_SAME_CLOCK_NS = 200_000_000  # below that a difference of clocks may be a batch's way
_TOLD_CLOCK_S = 1.0
_STRANGER = (
    "somebody sends without the token of ttscope and is refused. See docs/attach.md for how a "
    "sender gets it"
)
_INSTANCE, _PROCESS = "service.instance.id", "vllm.process_id"  # of a span's resource
_MOST_PROCESSES = 4_096
_SAME_START_S = 1.5  # clocks of /proc and of the metrics page are read apart


class Incoming:
    """Feeds a recording from a receiver; `steps` counts those that came.

    What ended before the recording began is left out, and an event `before` counts it: a plugin
    and an exporter deliver what they had kept for a receiver.

    `profiled` tells whether a profiler's window touched a step (`ServerWindows.saw`).
    Spans in one of `own_traces` are left out: they are of requests that we send ourselves, of which
    the recording has the client's rows. Without `steps` those of the plugin are left out, since
    the recording has them from elsewhere, and only its configuration is taken.
    """

    def __init__(
        self,
        receiver: Receiver,
        deployment: Deployment,
        profiled: Callable[[Row, int | None], bool | None] = lambda row, error_ns: None,
        own_traces: Collection[str] = (),
        *,
        steps: bool = True,
    ) -> None:
        self._wants_steps = steps
        self._own_traces = own_traces
        self._receiver, self._deployment, self._profiled = receiver, deployment, profiled
        self._groups = SpanGroups(self._engine_of_span)
        self._settling = threading.Lock()
        self._engines: dict[Any, str] = {}
        self._rows: dict[str, PluginRows] = {}
        self._dropped: dict[tuple[str, int], int] = {}  # as each plugin's engine told last
        self._learned: set[tuple[str, int]] = set()  # plugins' engines with a known configuration
        self._replaced: dict[tuple[str, int], str] = {}  # engines of plugins before a restart
        self._ahead: dict[str, int] = {}  # by engine: its host's clock before ours, ns
        self._ahead_spans = self._spans_ahead_ns = 0  # that ended after they came, and how much
        self._begun: int | None = None  # when the recording began, by our clock
        self._senders: dict[str, set[str]] = {}  # front ends by engine
        # Engines by rank. A replica of Ray is on the page, and so known, after its first request.
        self._processes: defaultdict[tuple[str, str], dict[int, str]] = defaultdict(dict)
        self._found_by_port: set[str] = set()  # where servers are
        self._ending = self._told = self._warned = False
        self._samples: list[Row] = []
        self._writer: RecordingWriter | None = None
        self._early: list[Batch] = []
        self.steps = 0

    def adopt(self, wait_s: float = HELLO_S) -> int:
        """Wait for plugins to say that they are there, and take their configurations over.

        Returns how many engines have one. Call it before the deployment is watched; one that comes
        later is taken over then.
        """
        until, rows = time.monotonic() + wait_s, 0
        configured: dict[str, tuple[EngineConfig, ModelFacts | None]] = {}
        while time.monotonic() < until and len(configured) < len(self._deployment.engines):
            time.sleep(0.05)
            for batch in self._taken() if rows < MOST_HELD and len(self._early) < 500 else ():
                self._early.append(batch)
                rows += len(batch.rows)
                key = self._key_of(batch)
                if key is not None and batch.config is not None:
                    configured[key] = batch.config, batch.model
                    self._learned.add((batch.instance, batch.engine))
        renamed = {key: self._deployment.adopt(key, *each) for key, each in configured.items()}
        self._engines.clear()
        return len(renamed)

    @contextmanager
    def watched(self, writer: RecordingWriter) -> Iterator[None]:
        """Write into a recording while the block runs; a probe."""
        self._writer, self._begun = writer, writer.manifest.clock_start.unix_ns
        writer.add_source("steps", self._take_steps)
        writer.add_source("problems", self._take_spans)
        writer.add_source("samples", self._take_samples)
        writer.add_source("events", self._take_events)
        try:
            yield
        finally:
            ended = now_ns()
            self._hear_out(ended)
            self._hear_spans_out(ended)
            self._receiver.end_taking()
            self._ending = True
            for table, rows in zip(
                ("problems", "samples"), self._settled(everything=True), strict=True
            ):
                for row in rows:
                    writer.append(table, row)
            if self._groups.dropped:
                writer.dropped("samples", self._groups.dropped)

    def _hear_out(self, ended: int) -> None:
        """Wait until every plugin that still speaks has told the steps until the end, unix ns."""
        now = time.monotonic()
        heard = self._receiver.heard.copy()
        speaking = [name for name, (came, _) in heard.items() if now - came < HELLO_S]
        while time.monotonic() < now + HELLO_S:
            if all(self._receiver.heard[name][1] >= ended for name in speaking):
                return
            time.sleep(0.02)

    def _hear_spans_out(self, ended: int) -> None:
        """Wait, where spans come, for those of all requests that had ended by the end, unix ns.

        /metrics has how many these are. Where some requests have no spans, as where an exporter
        samples them, `FLUSH_S` passes.
        """
        until, wanted = ended + round(FLUSH_S * 1e9), math.inf
        while self._receiver.received and now_ns() < until:
            finished, polled_ns = self._deployment.finished_since()
            if wanted == math.inf and polled_ns >= ended:
                wanted = finished
                if self._spans_told() < wanted:
                    self._deployment.say(f"waiting up to {FLUSH_S:g} s for the last spans")
            if self._spans_told() >= wanted:
                return
            time.sleep(0.1)

    def _spans_told(self) -> int:
        """Return of how many requests that ended during the recording spans came."""
        with self._settling:
            return self._receiver.received - self._groups.before

    def _take_steps(self) -> list[Row]:
        raw: dict[str, list[Any]] = {key: [] for key in self._rows}
        for batch in [*self._early, *self._taken()]:
            # Before a server listens, its plugin's port tells nothing: that is no other engine yet.
            key = self._replaced.get((batch.instance, batch.engine)) or self._key_of(batch)
            key = key or (self._own_key(batch) if batch.rows else None)
            if key is None:  # or one engine too many
                if self._writer is not None:
                    self._writer.dropped("steps", len(batch.rows))
                continue
            key = self._adopted(key, batch)
            missing = self._missing_until(key, batch, raw.get(key, []))
            self._note_batch(key, batch)
            if not self._wants_steps:
                continue
            config = self._deployment.engines[key]
            made = self._rows.setdefault(key, PluginRows(engine=key))
            if missing is not None:
                made.miss(missing)
            blocks = config.num_gpu_blocks
            made.usable_blocks = None if blocks is None else blocks - 1
            made.asynchronous = config.async_scheduling
            made.pipelined = config.pipeline_parallel_size > 1
            raw.setdefault(key, []).extend(batch.rows)
            self._senders.setdefault(key, set()).add(batch.instance)
        self._early = []
        steps: list[Row] = []
        most = MOST_HELD // max(len(raw), 1)
        for key, rows in raw.items():
            wait = len(self._senders[key]) > 1 and not self._ending
            until = now_ns() - HOLD_NS if wait else None
            error = CLOCK_NS + abs(self._ahead.get(key, 0))
            for row in self._rows[key].rows(rows, since=self._since(key), until=until, most=most):
                steps.append(row | {"profiled": self._profiled(row, error)})
        self.steps += len(steps)
        return steps

    def _missing_until(self, key: str, batch: Batch, raw: list[Any]) -> int | None:
        """Return until when steps before a batch are missing, or an earlier process's, unix ns.

        `raw` are the engine's steps that came just before it. None where it follows on them.
        """
        name, until = (batch.instance, batch.engine), batch.dropped_until or 0
        if name in self._dropped:
            return until if batch.dropped > self._dropped[name] else None
        start, made = round((batch.process_start_s or 0) * 1e9), self._rows.get(key)
        if made is not None and made.has_earlier(raw, start):
            return max(until, start)
        return until if batch.dropped or batch.first else None

    def _adopted(self, key: str, batch: Batch) -> str:
        """Take over the configuration that a batch tells, once; return the key of its engine.

        That of a server that was restarted with another one is another. Batches of the process
        before, which come late, keep theirs.
        """
        name = batch.instance, batch.engine
        if batch.config is None or name in self._learned:
            return key
        self._learned.add(name)
        if self._key_of(batch) != key:
            return key
        own = self._deployment.adopt(key, batch.config, batch.model)
        if own != key:
            self._replaced |= {(each, batch.engine): key for each in self._senders.get(key, ())}
        return own

    def _note_batch(self, key: str, batch: Batch) -> None:
        """Take from a batch what it tells beside its steps and configuration: clock and drops."""
        name = batch.instance, batch.engine
        for each, told in ((_INSTANCE, batch.tracer), (_PROCESS, batch.process_id)):
            if told is not None and len(self._processes) < _MOST_PROCESSES:
                self._processes[each, str(told)][batch.engine] = key
        if batch.ahead is not None:
            self._ahead[key] = max(self._ahead.get(key, batch.ahead), batch.ahead)
        # Steps are dropped from the oldest on: as a rule those from before the recording.
        told, since = self._dropped.get(name), self._since(key)
        if batch.dropped_until is None:  # a plugin that does not tell when they were
            count = 0 if told is None else batch.dropped - told
        else:
            count = batch.dropped - (told or 0) if batch.dropped_until > (since or 0) else 0
        self._dropped[name] = batch.dropped
        if count > 0 and self._writer is not None:
            self._writer.dropped("steps", count)

    def _since(self, key: str | None) -> int | None:
        """Return when the recording began by the clock of an engine's host, unix ns."""
        if self._begun is None:
            return None
        ahead = self._ahead.get(key or "")
        if ahead is None:
            offsets = [
                replica.ahead_ns
                for replica in self._deployment.replicas
                if key is None or key in replica.keys.values()
            ]
            ahead = min(offsets, key=abs, default=0)
        return self._begun + (ahead if abs(ahead) > _SAME_CLOCK_NS else 0)

    def _take_events(self) -> list[Row]:
        """Return that somebody sends without the token, and at the end what was left out.

        Whose clock is another than ours is said then too.
        """
        events: list[tuple[str | None, str, str]] = []
        if self._receiver.strangers and not self._warned:
            self._warned = True
            events.append((None, "note", _STRANGER))
        if self._ending and not self._told:
            self._told = True
            events += self._last_events()
        now = now_ns()
        return [
            {"time": now, "engine": engine, "kind": kind, "detail": detail}
            for engine, kind, detail in events
        ]

    def _last_events(self) -> Iterator[tuple[str | None, str, str]]:
        for key, rows in self._rows.items():
            if rows.before:
                yield key, "before", _before(rows.before, "steps")
            if rows.lost:
                yield key, "drop", f"what another front end saw of {rows.lost:,} steps"
            seconds = self._ahead.get(key, 0) / 1e9
            if abs(seconds) >= _TOLD_CLOCK_S:
                way = "ahead of" if seconds > 0 else "behind"
                note = f"the clock of the server's host is {abs(seconds):.1f} s {way} ours"
                yield key, "note", f"{note}, and its steps have its own times"
        with self._settling:
            before = self._groups.before
        if before:
            yield None, "before", _before(before, "spans")
        if self._ahead_spans:
            seconds = self._spans_ahead_ns / 1e9
            note = f"{self._ahead_spans:,} spans ended up to {seconds:,.1f} s after they came"
            yield None, "note", f"{note}: the clock of their sender is ahead. They have its times"
        receiver = self._receiver
        if not receiver.received and not receiver.heard:
            yield None, SILENT, self._why_silent()
        elif self._rows and self._wants_steps:
            for replica in self._deployment.replicas:
                if self._rows.keys().isdisjoint(replica.keys.values()):
                    note = "the plugin of this server never spoke, that of another did"
                    yield replica.keys[""], SILENT, f"{note} (docs/attach.md)"
        if receiver.refused or receiver.bad:
            yield (
                None,
                "drop",
                f"refused by the receiver: {receiver.refused:,} requests ({receiver.strangers:,} "
                f"without the token), and {receiver.bad:,} spans with numbers out of range or odd "
                "names",
            )
        if receiver.overflowed:
            yield (
                None,
                "note",
                f"{receiver.overflowed:,} requests came faster than they could be taken, and got "
                "503. What their senders did not send again is missing",
            )

    def _why_silent(self) -> str:
        """Say that neither plugin nor spans came, why that may be, and what to do."""
        receiver = self._receiver
        where = f"http://{receiver.host}:{receiver.port}"
        quiet = f"the plugin never spoke, and no span came to {where}"
        if receiver.strangers:
            return f"{quiet}. Who sent had another token: give both sides one (docs/attach.md)"
        if not self._wants_steps:
            return f"no span came to {where}. Start the server with its exporter (docs/attach.md)"
        return (
            f"{quiet}. Start vLLM with TTSCOPE_PLUGIN={where}, in an environment where ttscope is "
            "installed. Its Rust front end has no plugins (docs/attach.md)"
        )

    def _key_of(self, batch: Batch) -> str | None:
        """Return the engine that a plugin belongs to: by its port, its start, or the only one.

        Servers that were started together begin at the same time, so that a start tells only of
        one whose port no plugin has named, as behind a forwarded port.
        """
        replicas = self._deployment.replicas
        fitting = self._on_port(batch)
        if len(fitting) != 1:
            fitting = [
                replica
                for replica in replicas
                if replica.access.where not in self._found_by_port
                and batch.process_start_s is not None
                and replica.started is not None
                and abs(replica.started - batch.process_start_s) < _SAME_START_S
            ]
        if len(fitting) != 1 and len(replicas) == 1:
            # The only one, unless it is known to be another's, or both tell when they began.
            starts_known = batch.process_start_s is not None and replicas[0].started is not None
            fitting = (
                [] if starts_known or replicas[0].access.where in self._found_by_port else replicas
            )
        return fitting[0].key_of(batch.engine, batch.replica) if len(fitting) == 1 else None

    def _on_port(self, batch: Batch) -> list[Replica]:
        """Return the servers on a plugin's ports: by the metrics page, else by the URL.

        Workers behind one front end, as of Dynamo, share its URL and have pages of their own. Pods
        have one port on machines of their own: the address that a plugin sends from tells them.
        """
        replicas = self._deployment.replicas
        pages = [r for r in replicas if port_of(r.access.metrics_page) in batch.ports]
        fitting = pages or [r for r in replicas if port_of(r.access.url) in batch.ports]
        there = [r for r in fitting if r.scraper.peer in {batch.sender} - {None}]
        return there if len(there) == 1 else fitting

    def _taken(self) -> list[Batch]:
        """Return the batches that came, after noting which servers are known by their ports."""
        batches = self._receiver.take_batches()
        for batch in batches:
            if len(fitting := self._on_port(batch)) == 1:
                self._found_by_port.add(fitting[0].access.where)
        return batches

    def _own_key(self, batch: Batch) -> str | None:
        """Register an engine of which only a plugin tells."""
        config = batch.config or EngineConfig(model="-", mode="server")
        other = (("engine", str(batch.engine)), ("instance", batch.instance))
        return self._registered((batch.instance, batch.engine), replace(config, other=other))

    def _engine_of_span(self, span: GenSpan) -> str:
        engines = self._deployment.engines
        if len(engines) == 1:
            return next(iter(engines))
        resource = dict(span.resource)
        if (key := self._engine_in(resource)) is not None:
            return key
        names = (span.values.get(f"gen_ai.{side}.model") for side in ("request", "response"))
        replicas = self._deployment.replicas
        served = {each.config.model for each in replicas}
        only = served.pop() if len(served) == 1 else resource.get("service.name")  # as vLLM's
        model = str(next(filter(None, names), None) or only or "-")
        # Which front end of the only server took a request says nothing of the rank that it was on.
        ranks = len(replicas) == 1 and all(map(str.isdigit, replicas[0].keys.keys() - {""}))
        other = () if ranks and model == replicas[0].config.model else span.resource
        config = EngineConfig(model=model, mode="server", other=other)
        return self._registered((model, other), config) or next(iter(engines))

    def _engine_in(self, resource: Mapping[str, str]) -> str | None:
        """Return the engine of the process that sent a span, as the plugin in it tells.

        None where that process has several, or is not known. Processes of several machines may have
        one number, so that it tells only where no plugin is silent, and spans have no better name.
        """
        named = _INSTANCE if _INSTANCE in resource else _PROCESS
        keys = set(self._processes.get((named, resource.get(named, "")), {}).values())
        if len(keys) != 1:
            return None
        if named == _PROCESS:
            heard = {key for each in self._processes.values() for key in each.values()}
            if any(heard.isdisjoint(each.keys.values()) for each in self._deployment.replicas):
                return None
        return next(iter(keys))

    def _registered(self, name: Any, config: EngineConfig) -> str | None:
        if name not in self._engines:
            if len(self._engines) >= MOST_ENGINES:
                return None
            self._engines[name] = self._deployment.add(config)
        return self._engines[name]

    def _settled(self, *, everything: bool = False) -> tuple[list[Row], list[Row]]:
        keys = list(self._deployment.engines)
        with self._settling:  # the writer's thread goes on while the last ones are written
            self._groups.since = self._since(keys[0] if len(keys) == 1 else None)
            now = now_ns()
            for span in self._receiver.take_spans():
                if span.trace_id not in self._own_traces:
                    self._groups.add(span)
                    if span.end - now > _TOLD_CLOCK_S * 1e9:
                        self._ahead_spans += 1
                        self._spans_ahead_ns = max(self._spans_ahead_ns, span.end - now)
            return self._groups.drain(everything=everything)

    def _take_spans(self) -> list[Row]:
        problems, samples = self._settled()
        self._samples += samples
        return problems

    def _take_samples(self) -> list[Row]:
        taken, self._samples = self._samples, []
        return taken


def _before(count: int, what: str) -> str:
    return f"{count:,} {what} that ended before the recording began were left out"
