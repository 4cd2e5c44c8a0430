"""Receives spans (OTLP/HTTP) and the plugin's steps on this machine, bounded in every way.

Loopback unless another host is named, and only from senders that have the user's token
(profiler/plugin/shared_token.py). Connections, their time and the bytes of their bodies are limited
one by one and together. Bodies are read one at a time, and what they hold is checked before it is
acknowledged. What cannot be read is answered 4xx, what does not fit now 503, at which exporters
send it again. Answers repeat nothing of a body.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from urllib.parse import urlsplit

from profiler.attach.receiver.http_listener import HttpListener
from profiler.doors.guard import bears, give_large_blocks_back
from profiler.engines.server.access import is_loopback
from profiler.plugin.batches import MOST_HELD, Batch
from profiler.plugin.shared_token import shared_token
from traces.clock import now_ns
from traces.errors import EngineError, UsageError
from traces.live.otlp import GenSpan, Received

MOST_PLUGINS = 1_000
MOST_WAITING = 20_000  # spans that nobody has taken yet
MOST_BATCHES = 500  # of steps, likewise


def parse_listen(text: str, option: str = "--listen") -> tuple[str, int]:
    """Return host and port of `4318` or `0.0.0.0:4318`. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) < 65536 or (colon and not host):
        raise UsageError(f"{option} {text}: write a port from 0 to 65535, or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def reaches_only_here(host: str) -> bool:
    """Whether only this machine reaches what listens on a host."""
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(is_loopback(str(each[4][0])) for each in addresses)


class Receiver:
    """Listens from `start` to `close`; `spans` and `batches` wait to be taken.

    `spans_without_token` lets every user of this machine send spans; steps need the token always.
    `received` counts spans of requests to models, `others` the spans that are not kept, `bad` those
    that were refused by themselves, `refused` requests answered 4xx, `strangers` those of them that
    came without the token, `overflowed` those answered 503. Raises EngineError where it cannot
    listen, UsageError where there is no token or others could send without one.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 4318, *, spans_without_token: bool = False
    ) -> None:
        self.spans: deque[GenSpan] = deque()
        self.batches: deque[Batch] = deque()
        self.received = self.others = self.refused = self.overflowed = 0
        self.bad = self.strangers = 0
        # By plugin and engine: when its last batch came, monotonic, and until when it told, unix
        # ns by our clock. A batch may be on its way for long where the machine is busy.
        self.heard: dict[tuple[str, int], tuple[float, int]] = {}
        self.spans_without_token = spans_without_token
        self.shut = False  # nothing more is taken, so nothing is acknowledged
        self.decoding = threading.Lock()  # bodies are inflated and read one at a time
        self._ahead: dict[tuple[str, int], int] = {}  # a sender's clock before ours, ns
        self._next_row: dict[tuple[str, int], int] = {}  # of each engine of a plugin
        self._lock = threading.Lock()
        self._token = shared_token()
        give_large_blocks_back()
        check_open(host, "--listen", spans_without_token)
        try:
            self._server = HttpListener((host, port), self)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise EngineError(
                f"--listen {host}:{port}: cannot listen there ({why}). Name another port"
            ) from None
        self.host, self.port = host, int(self._server.server_address[1])
        self._local = is_loopback(str(self._server.server_address[0]))
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="ttscope-receiver",
            daemon=True,
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop, whatever connections are open; what has come can still be taken."""
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join(5.0)
        self._server.server_close()
        self._server.guard.end_all()

    def knows(self, authorization: str | None, *, spans: bool) -> bool:
        """Whether a sender may send: it has the token, or needs none. Others are counted."""
        if spans and self.spans_without_token:
            return True
        if bears(authorization, self._token):
            return True
        with self._lock:
            self.strangers += 1
        return False

    def is_called(self, host: str) -> bool:
        """Whether a sender names us as those on this machine do; a rebound name is another.

        Where others on the network may send, by whatever name, the token alone decides.
        """
        try:
            name = urlsplit(f"//{host}").hostname
            return not self._local or name == self.host.lower() or is_loopback(name)
        except ValueError:
            return False

    def refuse(self) -> None:
        """Count a request that was answered 4xx, or as gRPC says it."""
        with self._lock:
            self.refused += 1

    def end_taking(self) -> None:
        """Acknowledge nothing from now on; what was acknowledged can still be taken, once more."""
        with self._lock:
            self.shut = True

    def take_spans(self) -> list[GenSpan]:
        return [self.spans.popleft() for _ in range(len(self.spans))]

    def take_batches(self) -> list[Batch]:
        return [self.batches.popleft() for _ in range(len(self.batches))]

    def put_spans(self, found: Received) -> bool:
        with self._lock:
            if self.shut or len(self.spans) + len(found.spans) > MOST_WAITING:
                self.overflowed += not self.shut
                return False
            self.spans.extend(found.spans)
            self.received += len(found.spans)
            self.others += found.others
            self.bad += found.bad
            return True

    def put_batch(self, batch: Batch, sender: str | None = None) -> bool:
        """Keep a batch of the machine at an address, where there is room."""
        batch.sender = sender
        key = batch.instance, batch.engine
        with self._lock:
            rows = sum(len(each.rows) for each in self.batches) + len(batch.rows)
            has_room = key in self.heard or len(self.heard) < MOST_PLUGINS
            full = len(self.batches) >= MOST_BATCHES or rows > MOST_HELD
            if self.shut or full or not has_room:
                self.overflowed += not self.shut
                return False
            self._leave_out_known(batch)
            made, batch.ahead = now_ns(), None
            if batch.now is not None:
                ahead = batch.now - made  # less what the way took
                batch.ahead = self._ahead[key] = max(self._ahead.get(key, ahead), ahead)
                made = batch.now - batch.ahead
            self.heard[key] = time.monotonic(), made
            self.batches.append(batch)
            return True

    def _leave_out_known(self, batch: Batch) -> None:
        """Take from a batch the rows that came before: its sender had no answer in time."""
        if batch.first is None:
            return
        key = batch.instance, batch.engine
        next_row = self._next_row.get(key, 0)
        self._next_row[key] = max(next_row, batch.first + len(batch.rows))
        batch.rows = batch.rows[max(next_row - batch.first, 0) :]


def check_open(host: str, option: str, spans_without_token: bool) -> None:
    """Raise UsageError where others on the network could send spans without the token."""
    if spans_without_token and not reaches_only_here(host):
        raise UsageError(
            f"{option} {host}: others on the network reach it, so the token is needed. Leave out "
            "--spans-without-token"
        )
