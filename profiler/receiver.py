"""Receives spans (OTLP/HTTP) and the plugin's steps on this machine, bounded in every way.

Loopback unless told otherwise. Bodies are limited before and after inflation, connections in
number and idle time; what cannot be read is answered 4xx, what does not fit now 503, at which
exporters send it again. Answers repeat nothing of a body.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from profiler.plugin_steps import STEPS_PATH, Batch, read_batch
from traces.clock import now_ns
from traces.errors import EngineError, UsageError
from traces.otlp import GenSpan, Received, read_json, read_protobuf

TRACES = "/v1/traces"
MOST_BODY_BYTES = 8 << 20
MOST_INFLATED_BYTES = 32 << 20
MOST_CONNECTIONS = 64
MOST_PLUGINS = 1_000
MOST_WAITING = 100_000  # spans, and rows of steps, that nobody has taken yet
_IDLE_S = 30.0
_PROTOBUF, _JSON = "application/x-protobuf", "application/json"


def parse_listen(text: str, option: str = "--listen") -> tuple[str, int]:
    """Return host and port of `4318` or `0.0.0.0:4318`. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) < 65536 or (colon and not host):
        raise UsageError(f"{option} {text}: write a port from 0 to 65535, or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


class Receiver:
    """Listens from `start` to `close`; `spans` and `batches` wait to be taken.

    `received` counts spans of requests to models, `others` the spans that are not kept, `refused`
    requests answered 4xx, `overflowed` those answered 503.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 4318) -> None:
        self.spans: deque[GenSpan] = deque()
        self.batches: deque[Batch] = deque()
        self.received = self.others = self.refused = self.overflowed = 0
        # By plugin and engine: when its last batch came, monotonic, and until when it told, unix
        # ns by our clock. A batch may be on its way for long where the machine is busy.
        self.heard: dict[tuple[str, int], tuple[float, int]] = {}
        self._ahead: dict[tuple[str, int], int] = {}  # a sender's clock before ours, ns
        self._next_row: dict[tuple[str, int], int] = {}  # of each engine of a plugin
        self._lock = threading.Lock()
        try:
            self._server = _Server((host, port), _Handler, self)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise EngineError(
                f"--listen {host}:{port}: cannot listen there ({why}); name another port"
            ) from None
        self.host, self.port = host, int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="ttscope-receiver",
            daemon=True,
        )

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def close(self) -> None:
        """Stop; what has come can still be taken."""
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join(5.0)
        self._server.server_close()

    def refuse(self) -> None:
        """Count a request that was answered 4xx, or as gRPC says it."""
        with self._lock:
            self.refused += 1

    def take_spans(self) -> list[GenSpan]:
        """Return the spans that came since the last call."""
        return [self.spans.popleft() for _ in range(len(self.spans))]

    def take_batches(self) -> list[Batch]:
        """Return the plugin's batches that came since the last call."""
        return [self.batches.popleft() for _ in range(len(self.batches))]

    def put_spans(self, found: Received) -> bool:
        """Keep spans; False when there is no room."""
        with self._lock:
            if len(self.spans) + len(found.spans) > MOST_WAITING:
                self.overflowed += 1
                return False
            self.spans.extend(found.spans)
            self.received += len(found.spans)
            self.others += found.others
            return True

    def put_batch(self, batch: Batch) -> bool:
        """Keep what is new in a batch of steps; False when there is no room."""
        with self._lock:
            if len(self.batches) >= 1_000:
                self.overflowed += 1
                return False
            self._leave_out_known(batch)
            key, made, batch.ahead = (batch.instance, batch.engine), now_ns(), None
            if key in self.heard or len(self.heard) < MOST_PLUGINS:
                if batch.now is not None:
                    ahead = batch.now - made  # less what the way took
                    batch.ahead = self._ahead[key] = max(self._ahead.get(key, ahead), ahead)
                    made = batch.now - batch.ahead
                self.heard[key] = time.monotonic(), made
            self.batches.append(batch)
            return True

    def _leave_out_known(self, batch: Batch) -> None:
        """Take from a batch the rows that came before: its sender had no answer in time."""
        key = batch.instance, batch.engine
        known = self._next_row.get(key, 0)
        if batch.first is None or (not known and len(self._next_row) >= MOST_PLUGINS):
            return
        self._next_row[key] = max(known, batch.first + len(batch.rows))
        batch.rows = batch.rows[max(known - batch.first, 0) :]


class _Server(HTTPServer):
    """A thread per connection, so many at most; the next ones are closed at once."""

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: Any, receiver: Receiver) -> None:
        self.receiver = receiver
        self._free = threading.Semaphore(MOST_CONNECTIONS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        threading.Thread(
            target=self._serve, args=(request, client_address), name="ttscope-otlp", daemon=True
        ).start()

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # a connection that breaks is its sender's affair
            pass
        finally:
            self.shutdown_request(request)
            self._free.release()


class _Refused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ttscope", ""
    timeout = _IDLE_S
    disable_nagle_algorithm = True  # else a sender that keeps its connection waits 40 ms an answer
    server: _Server

    def do_POST(self) -> None:
        receiver = self.server.receiver
        try:
            body = self._body()
            kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if self.path == TRACES:
                taken = receiver.put_spans(_read(kind, body))
            elif self.path == STEPS_PATH:
                taken = receiver.put_batch(_read_steps(kind, body))
            else:
                raise _Refused(404, "only /v1/traces is received here")
            if not taken:
                raise _Refused(503, "no room now; send it again")
        except _Refused as error:
            if error.status != 503:
                receiver.refuse()
            self._answer(error.status, json.dumps({"message": str(error)}).encode(), _JSON)
            return
        self._answer(200, b"" if kind == _PROTOBUF else b"{}", kind)

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise _Refused(411, "needs a Content-Length")
        if int(length) > MOST_BODY_BYTES:
            self.close_connection = True
            raise _Refused(413, f"more than {MOST_BODY_BYTES:,} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            raise _Refused(400, "the body ended early")
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding == "identity":
            return body
        if encoding != "gzip":
            raise _Refused(415, "Content-Encoding must be gzip or absent")
        inflate = zlib.decompressobj(wbits=31)
        try:
            body = inflate.decompress(body, MOST_INFLATED_BYTES)
        except zlib.error:
            raise _Refused(400, "damaged gzip data") from None
        if inflate.unconsumed_tail:
            raise _Refused(413, f"more than {MOST_INFLATED_BYTES:,} bytes inflated")
        if not inflate.eof:
            raise _Refused(400, "gzip data end early")
        return body

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing: a path may hold what it should not."""


def _read(kind: str, body: bytes) -> Received:
    readers: dict[str, Callable[[bytes], Received]] = {_PROTOBUF: read_protobuf, _JSON: read_json}
    if kind not in readers:
        raise _Refused(415, f"Content-Type must be {_PROTOBUF} or {_JSON}")
    try:
        return readers[kind](body)
    except (ValueError, OverflowError):
        raise _Refused(400, "not an OTLP trace request") from None


def _read_steps(kind: str, body: bytes) -> Batch:
    if kind != _JSON:
        raise _Refused(415, f"Content-Type must be {_JSON}")
    try:
        return read_batch(body)
    except ValueError:
        raise _Refused(400, "not a batch of steps") from None
