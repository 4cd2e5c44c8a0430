"""Receives the forward passes that engines publish over ZMQ, and makes steps of them.

SGLang (`--enable-forward-pass-metrics`), vLLM's open change (`--forward-pass-metrics-port`) and the
schedulers of Dynamo publish a message an iteration: an empty topic, a sequence number of 8 bytes,
and a record in msgpack (traces/forward_pass). What comes is checked and bounded one by one. A gap
of the sequence counts as lost steps, whoever lost them. Nothing here holds up the watch: a thread
of its own takes the messages, at most so many a second, and the rest is lost and counted.
"""

from __future__ import annotations

import dataclasses
import math
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from profiler.attach.deployment import Deployment, Replica
from traces.clock import now_ns
from traces.errors import EngineError, MissingDependencyError, UsageError, install_command
from traces.forward_pass.record import MOST_BYTES, ForwardPass, read_message
from traces.forward_pass.rows import SCOPES, ForwardPassRows, Row
from traces.live.engine_names import VLLM
from traces.recording.tables import SILENT
from traces.recording.writer import RecordingWriter

MOST_WAITING = 20_000  # records that nobody has taken yet
MOST_ENGINES = 64  # workers and ranks of all endpoints
_AT_ONCE = 1_000  # messages in `_PAUSE_S`; 10,000 a second are more than engines have steps
_PAUSE_S = 0.1
_QUEUED = 2_000  # messages that ZMQ holds for us
_FORM = re.compile(
    r"tcp://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([1-9]\d{0,4})|ipc://(/[^\0]{1,100})"
)
_REASONS = 8


def check_endpoint(text: str) -> str:
    """Return where an engine publishes. Raises UsageError where it is no endpoint."""
    match = _FORM.fullmatch(text)
    if match is None or (match[2] is not None and int(match[2]) > 65_535):
        raise UsageError(f"--fpm {text}: write tcp://HOST:PORT or ipc:///PATH, one for each rank")
    return text


@dataclasses.dataclass(frozen=True, slots=True)
class Passed:
    """A record, which endpoint it came from, by its place, and when, unix ns."""

    endpoint: int
    record: ForwardPass
    came: int


class PassReceiver:
    """Takes messages of `endpoints` from `start` to `close`; `waiting` has the records.

    `refused` counts messages that are none, by reason; `silent` are the endpoints from which
    nothing has come. Raises MissingDependencyError without pyzmq, EngineError where an endpoint
    cannot be reached at all.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:
        try:
            import zmq as installed
        except ImportError:
            raise MissingDependencyError(
                f"--fpm needs pyzmq, which is not installed: {install_command('fpm')}"
            ) from None
        zmq: Any = installed
        self._zmq = zmq
        self.endpoints = tuple(endpoints)
        self.waiting: deque[Passed] = deque()
        self.refused: Counter[str] = Counter()
        self.silent = set(endpoints)
        self._stopping = threading.Event()
        self._context = zmq.Context()
        self._sockets: list[Any] = []
        try:
            for endpoint in endpoints:
                self._sockets.append(self._connected(endpoint))
        except zmq.ZMQError as error:
            self._destroy()
            raise EngineError(f"--fpm {endpoint}: cannot be reached ({error.strerror})") from None
        self._thread = threading.Thread(target=self._work, name="ttscope-fpm", daemon=True)

    def _connected(self, endpoint: str) -> Any:
        zmq = self._zmq
        socket = self._context.socket(zmq.SUB)
        options = ((zmq.LINGER, 0), (zmq.RCVHWM, _QUEUED), (zmq.MAXMSGSIZE, MOST_BYTES))
        for option, value in (*options, (zmq.IPV6, 1), (zmq.RECONNECT_IVL_MAX, 5_000)):
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(endpoint)
        return socket

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop; what has come can still be taken."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(5.0)
        if not self._thread.is_alive():
            self._destroy()

    def take(self) -> list[Passed]:
        return [self.waiting.popleft() for _ in range(len(self.waiting))]

    def _destroy(self) -> None:
        for socket in self._sockets:
            socket.close(linger=0)
        self._sockets.clear()
        self._context.term()

    def _work(self) -> None:
        poller, places = self._zmq.Poller(), {each: n for n, each in enumerate(self._sockets)}
        for socket in self._sockets:
            poller.register(socket, self._zmq.POLLIN)
        taken, since = 0, time.monotonic()
        last = math.inf  # when it ends, monotonic: what has come by then is taken
        while time.monotonic() < last:
            if self._stopping.is_set():
                last = min(last, time.monotonic() + _PAUSE_S)
            try:
                ready = poller.poll(200 if last == math.inf else 0)
                if not ready and last < math.inf:
                    return
                for socket, _ in ready:
                    self._take(places[socket], socket.recv_multipart(self._zmq.NOBLOCK))
                    taken += 1
            except self._zmq.Again:
                continue
            except self._zmq.ZMQError:  # nothing that a watch should end for
                self._refuse("messages that could not be received")
                self._stopping.wait(_PAUSE_S)
            if time.monotonic() - since >= _PAUSE_S:
                taken, since = 0, time.monotonic()
            elif taken >= _AT_ONCE:
                self._stopping.wait(max(since + _PAUSE_S - time.monotonic(), 0.0))

    def _take(self, place: int, frames: list[bytes]) -> None:
        if len(frames) != 3 or len(frames[1]) != 8:
            self._refuse("messages that are not topic, sequence and record")
            return
        try:
            record = read_message(frames[2])
        except ValueError as error:
            self._refuse(str(error))
            return
        self.silent.discard(self.endpoints[place])
        if len(self.waiting) < MOST_WAITING:  # else its number is missed, and counted so
            number = int.from_bytes(frames[1], "big")
            if number != record.counter_id and number < 1 << 62:
                record = msgspec.structs.replace(record, counter_id=number)
            self.waiting.append(Passed(place, record, now_ns()))

    def _refuse(self, reason: str) -> None:
        if reason not in self.refused and len(self.refused) >= _REASONS:
            reason = "others"
        self.refused[reason] += 1


class PassSteps:
    """Feeds a recording with the steps of a receiver; `watched` is a probe.

    With as many endpoints as servers they belong to each other in their order, with one server all
    are its ranks. A rank that the server's metrics do not name is an engine of its own. `profiled`
    tells whether a profiler's window touched a step (`ServerWindows.saw`); `steps` counts
    those that came. Raises UsageError where it is not clear whose endpoints they are.
    """

    def __init__(
        self,
        receiver: PassReceiver,
        deployment: Deployment,
        profiled: Callable[[Row, int | None], bool | None] = lambda row, error_ns: None,
    ) -> None:
        servers, endpoints = len(deployment.replicas), len(receiver.endpoints)
        if servers not in (1, endpoints):
            raise UsageError(
                f"--fpm: {endpoints} of {servers} servers. Name one for each URL, in their order"
            )
        self._receiver, self._deployment, self._profiled = receiver, deployment, profiled
        self._of_rank: dict[tuple[int, str, int], ForwardPassRows] = {}
        self._writer: RecordingWriter | None = None
        self._left_out = self.steps = 0
        self._ending = self._told = False

    @contextmanager
    def watched(self, writer: RecordingWriter) -> Iterator[None]:
        """Write into a recording while the block runs."""
        self._writer = writer
        writer.add_source("steps", self._take)
        self._receiver.start()
        try:
            yield
        finally:
            self._receiver.close()
            self._ending = True  # the writer takes the rest when it is closed

    def _take(self) -> list[Row]:
        steps: list[Row] = []
        for passed in self._receiver.take():
            rows = self._rows_of(passed)
            if rows is None:
                self._left_out += 1
                continue
            lost = rows.lost
            steps += rows.rows(passed.record, passed.came)
            if rows.lost > lost and self._writer is not None:
                self._writer.dropped("steps", rows.lost - lost)
        if self._ending and not self._told and self._writer is not None:
            self._told = True
            steps += [row for rows in self._of_rank.values() for row in rows.flush()]
            self._say_all(self._writer)
        self.steps += len(steps)
        for row in steps:
            row["profiled"] = self._profiled(row, None)  # it came here by a way of its own
        return steps

    def _rows_of(self, passed: Passed) -> ForwardPassRows | None:
        """Return the rows of a record's rank, None for one too many."""
        record = passed.record
        name = passed.endpoint, record.worker_id, record.dp_rank
        if name not in self._of_rank and len(self._of_rank) < MOST_ENGINES:
            replicas = self._deployment.replicas
            replica = replicas[passed.endpoint if len(replicas) > 1 else 0]
            key = self._key(replica, record)
            self._of_rank[name] = ForwardPassRows(engine=key, speculates=_speculates(replica))
        return self._of_rank.get(name)

    def _key(self, replica: Replica, record: ForwardPass) -> str:
        """Return the engine that a rank is, which may be one that only its records tell of."""
        taken = {rows.engine for rows in self._of_rank.values()}
        labels = [label for label in replica.keys if label]
        rank = str(record.dp_rank)
        if rank in replica.keys:
            key = replica.keys[rank]
        else:
            key = replica.keys[labels[0]] if len(labels) == 1 else replica.keys[""]
        if key not in taken and (rank in labels or len(labels) < 2):
            return key
        extra = (("dp_rank", rank), ("worker", record.worker_id))
        other = tuple(sorted({*replica.config.other, *extra}))
        return self._deployment.add(dataclasses.replace(replica.config.one_replica(), other=other))

    def _say_all(self, writer: RecordingWriter) -> None:
        """Write what a reader must know of the steps: what their times are, what was refused."""
        for rows in self._of_rank.values():
            for scope in rows.scopes:
                meant = SCOPES.get(scope, f"what the engine calls {scope}")
                writer.event("note", f"the time of a step is {meant}", engine=rows.engine)
            if rows.restarts:
                writer.event(
                    "restart", "its forward passes count from the start again", engine=rows.engine
                )
        for endpoint in sorted(self._receiver.silent):
            writer.event(SILENT, f"--fpm {endpoint}: nothing came from there (docs/attach.md)")
        for reason, count in self._receiver.refused.most_common():
            writer.event("drop", f"--fpm: refused {count:,} {reason}")
        if self._left_out:
            writer.event(
                "drop", f"--fpm: {self._left_out:,} steps of more than {MOST_ENGINES} ranks"
            )


def _speculates(replica: Replica) -> bool | None:
    """Whether a server speculates, as it says itself or its metrics count drafts; None: unknown."""
    if replica.config.speculative is not None or replica.drafts:
        return True
    kinds = replica.scraper.reader.engines
    has_info = any("chunked_prefill_size" in pair for pair in replica.config.other)  # /server_info
    return False if has_info or any(kind.startswith(VLLM) for kind in kinds) else None
