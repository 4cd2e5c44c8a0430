"""OTLP/HTTP and the plugin's steps, as a receiver takes them: connections, their time and bodies.

A thread per connection. Whoever has no token is refused by the head of a request alone. Bodies are
inflated and read one at a time.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import zlib
from functools import partial
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import BaseRequestHandler
from typing import Any, Protocol

from profiler.doors.guard import IDLE_S, Guard, Place
from profiler.plugin.batches import STEPS_PATH, Batch, read_batch
from traces.live.otlp import Received, json_answer, protobuf_answer, read_json, read_protobuf

TRACES = "/v1/traces"
MOST_BODY_BYTES = 8 << 20
MOST_INFLATED_BYTES = 16 << 20
MOST_FLYING_BYTES = 16 << 20  # of all bodies that are on their way
MOST_HEAD_BYTES = 16 << 10  # of a request's first line and headers
MOST_CONNECTIONS = 64
_MOMENT_S = 1.0  # that a new connection waits for a place where we work for all
_ANSWER_S = 5.0
_DRAIN_S = 1.0  # for a body that is refused: unread, the sender would miss the answer
_PIECE = 1 << 16
_PROTOBUF, _JSON = "application/x-protobuf", "application/json"
NO_TOKEN = (
    "needs the token of ttscope: Authorization: Bearer with what TTSCOPE_TOKEN or the file of "
    "ttscope attach holds (docs/attach.md)"
)


class Keeper(Protocol):
    """What takes the bodies: it knows who may send, and keeps what they hold (`Receiver`)."""

    decoding: threading.Lock

    def knows(self, authorization: str | None, *, spans: bool) -> bool:
        """Whether a sender may send."""

    def is_called(self, host: str) -> bool:
        """Whether a sender names us as those on this machine do."""

    def refuse(self) -> None:
        """Count a request that was refused."""

    def put_spans(self, found: Received) -> bool:
        """Keep spans; False when there is no room."""

    def put_batch(self, batch: Batch, sender: str | None = None) -> bool:
        """Keep what is new in a batch of steps of an address; False when there is no room."""


class HttpListener(HTTPServer):
    """A thread per connection, as many as its guard lets in."""

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], receiver: Keeper) -> None:
        self.receiver = receiver
        self.guard = Guard(connections=MOST_CONNECTIONS, held_bytes=MOST_FLYING_BYTES)
        self._threads = threading.Semaphore(2 * MOST_CONNECTIONS)  # some may be about to end
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, BaseRequestHandler)  # see `_serve`

    def server_bind(self) -> None:
        """Bind without asking the resolver for our name, which may take long."""
        super(HTTPServer, self).server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread of its own, or end it where there is no place."""
        place = Place(partial(_end, request))
        if not self._threads.acquire(timeout=_MOMENT_S):
            self.shutdown_request(request)
            return
        if not self.guard.admit(place, _MOMENT_S):
            self._threads.release()
            self.shutdown_request(request)
            return
        threading.Thread(
            target=self._serve,
            args=(request, place, client_address),
            name="ttscope-otlp",
            daemon=True,
        ).start()

    def service_actions(self) -> None:
        self.guard.end_overdue()

    def _serve(self, connection: socket.socket, place: Place, client_address: Any) -> None:
        try:
            _Handler(connection, place, client_address, self)
        except Exception:  # a connection that breaks is its sender's affair
            pass
        finally:
            self.shutdown_request(connection)
            self.guard.leave(place)
            self._threads.release()


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was first
        connection.shutdown(socket.SHUT_RDWR)


class _Stream:
    """What a connection sends; of a request's head so many bytes at most."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.left = stream, 0
        self.read1, self.close = stream.read1, stream.close

    def readline(self, most: int = -1) -> bytes:
        line: bytes = self._stream.readline(self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise LineTooLong("head")
        return line


class _Refused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ttscope", ""
    wbufsize = -1  # buffered, so that the head of an answer never goes without its body
    timeout = IDLE_S  # of a single read or write; the server ends what takes longer in all
    disable_nagle_algorithm = True  # else a sender that keeps its connection waits 40 ms an answer
    server: HttpListener

    def __init__(
        self, connection: socket.socket, place: Place, client_address: Any, server: HttpListener
    ) -> None:
        self._place, self._unread = place, 0
        super().__init__(connection, client_address, server)

    def setup(self) -> None:
        super().setup()
        self._stream = _Stream(self.rfile)
        self.rfile = self._stream  # type: ignore[assignment]

    def handle_one_request(self) -> None:
        self._stream.left, self._unread = MOST_HEAD_BYTES, 0
        super().handle_one_request()
        self._place.rest()

    def do_POST(self) -> None:
        try:
            kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            taken = self._taken(kind)
        except _Refused as error:
            self._refuse(error.status, str(error))
            return
        self._place.served = True
        self._answer(200, taken, kind)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request that can be read, without repeating it."""
        self.close_connection = True
        self._refuse(code, "not a request that is received here")

    def _refuse(self, status: int, why: str) -> None:
        if status != 503:
            self.server.receiver.refuse()
        if self._unread:
            self.close_connection = True
        self._answer(status, json.dumps({"message": why}).encode(), _JSON)
        if self._unread:
            self._drain()

    def _taken(self, kind: str) -> bytes:
        """Take what a request brings; returns the answer."""
        receiver, spans = self.server.receiver, self.path == TRACES
        length = self._length()
        if "Origin" in self.headers:
            raise _Refused(403, "not for web pages")
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not receiver.is_called(hosts[0]):
            raise _Refused(403, "Host is not this receiver. Send to 127.0.0.1")
        if not receiver.knows(self.headers.get("Authorization"), spans=spans):
            raise _Refused(401, NO_TOKEN)
        if self.path not in {TRACES, STEPS_PATH}:
            raise _Refused(404, "only /v1/traces is received here")
        if kind != _JSON and (kind != _PROTOBUF or not spans):
            raise _Refused(415, f"Content-Type must be {_PROTOBUF} (spans) or {_JSON}")
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in {"gzip", "identity"}:
            raise _Refused(415, "Content-Encoding must be gzip or absent")
        body = self._body(length)
        with receiver.decoding:
            if encoding == "gzip":
                body = _inflated(body)
            try:
                if not spans:
                    if not receiver.put_batch(read_batch(body), str(self.client_address[0])):
                        raise _Refused(503, "no room now. Send it again")
                    return b"{}"
                sent = read_protobuf(body) if kind == _PROTOBUF else read_json(body)
            except (ValueError, OverflowError):
                what = "an OTLP trace request" if spans else "a batch of steps"
                raise _Refused(400, f"not {what}") from None
        if not receiver.put_spans(sent):
            raise _Refused(503, "no room now. Send it again")
        if sent.bad and not sent.spans:
            raise _Refused(400, f"{sent.bad} spans with numbers out of range or odd names")
        return protobuf_answer(sent) if kind == _PROTOBUF else json_answer(sent)

    def _length(self) -> int:
        """Return the length of the body. Refuses what tells none, or more than one."""
        lengths = self.headers.get_all("Content-Length", [])
        length = lengths[0].strip() if len(lengths) == 1 else ""
        is_number = length.isascii() and length.isdecimal() and len(length) < 12
        if not is_number or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise _Refused(411, "needs a Content-Length")
        self._unread = int(length)
        if self._unread > MOST_BODY_BYTES:
            raise _Refused(413, f"more than {MOST_BODY_BYTES:,} bytes")
        return self._unread

    def _body(self, length: int) -> bytearray:
        body = bytearray()
        self._place.send_body()
        while len(body) < length:
            piece = self.rfile.read1(min(length - len(body), _PIECE))
            self._unread -= len(piece)
            if not piece:
                self._unread, self.close_connection = 0, True
                raise _Refused(400, "the body ended early")
            if not self.server.guard.hold(self._place, len(piece)):
                raise _Refused(503, "no room now. Send it again")
            body += piece
        self._place.work()
        return body

    def _drain(self) -> None:
        """Read on for a moment, so that the sender sees the answer before the connection ends."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self._place.wait(_DRAIN_S)
            while self._unread > 0 and (piece := self.rfile.read1(_PIECE)):
                self._unread -= len(piece)

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        """Answer in one piece. The body that was sent takes no room any more."""
        self._place.held = 0
        self._place.wait(_ANSWER_S)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if status == 503:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Say nothing: a path may hold what it should not."""


def _inflated(body: bytearray) -> bytearray:
    """Gunzip a body. Refuses what is damaged, ends early, goes on behind it or is too large."""
    inflate, inflated = zlib.decompressobj(wbits=31), bytearray()
    rest: bytes | bytearray = body
    try:
        while not inflate.eof:
            piece = inflate.decompress(rest, _PIECE * 16)
            rest = inflate.unconsumed_tail
            inflated += piece
            if len(inflated) > MOST_INFLATED_BYTES:
                raise _Refused(413, f"more than {MOST_INFLATED_BYTES:,} bytes inflated")
            if not piece and not rest and not inflate.eof:
                raise _Refused(400, "gzip data end early")
    except zlib.error:
        raise _Refused(400, "damaged gzip data") from None
    if inflate.unused_data:
        raise _Refused(400, "something follows the gzip data")
    return inflated
