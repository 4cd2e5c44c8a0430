"""Receives spans (OTLP/HTTP) and the plugin's steps on this machine, bounded in every way.

Loopback unless another host is named, and only from senders that have the user's token
(profiler/shared_token.py). Connections, their time and the bytes of their bodies are limited one by
one and together. Bodies are read one at a time, and what they hold is checked before it is
acknowledged. What cannot be read is answered 4xx, what does not fit now 503, at which exporters
send it again. Answers repeat nothing of a body.
"""

from __future__ import annotations

import contextlib
import ctypes
import hmac
import ipaddress
import json
import socket
import threading
import time
import zlib
from collections import deque
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlsplit

from profiler.plugin_steps import MOST_HELD, STEPS_PATH, Batch, read_batch
from profiler.shared_token import shared_token
from traces.errors import EngineError, UsageError
from traces.otlp import GenSpan, Received, read_json, read_protobuf

TRACES = "/v1/traces"
MOST_BODY_BYTES = 8 << 20
MOST_INFLATED_BYTES = 16 << 20
MOST_FLYING_BYTES = 16 << 20  # of all bodies that are on their way
MOST_HEAD_BYTES = 16 << 10  # of a request's first line and headers
MOST_CONNECTIONS = 64
MOST_PLUGINS = 1_000
MOST_WAITING = 20_000  # spans that nobody has taken yet
MOST_BATCHES = 500  # of steps, likewise
HEAD_S, BODY_S, IDLE_S = 10.0, 30.0, 60.0  # for a head, a body, and until the next request
_ANSWER_S = 5.0
_DRAIN_S = 1.0  # for a body that is refused: unread, the sender would miss the answer
_PIECE = 1 << 16
_M_MMAP_THRESHOLD = -3  # of malloc.h
_PROTOBUF, _JSON = "application/x-protobuf", "application/json"
NO_TOKEN = (
    "needs the token of ttscope: Authorization: Bearer with what TTSCOPE_TOKEN or the file of "
    "ttscope attach holds (docs/attach.md)"
)


def parse_listen(text: str, option: str = "--listen") -> tuple[str, int]:
    """Return host and port of `4318` or `0.0.0.0:4318`. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) < 65536 or (colon and not host):
        raise UsageError(f"{option} {text}: write a port from 0 to 65535, or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on a host."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(str(each[4][0])).is_loopback for each in found)


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
        self.decoding = threading.Lock()  # bodies are inflated and read one at a time
        self._ahead: dict[tuple[str, int], int] = {}  # a sender's clock before ours, ns
        self._next_row: dict[tuple[str, int], int] = {}  # of each engine of a plugin
        self._lock = threading.Lock()
        self._token = shared_token()
        _give_large_blocks_back()
        check_open(host, "--listen", spans_without_token)
        try:
            self._server = _Server((host, port), self)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise EngineError(
                f"--listen {host}:{port}: cannot listen there ({why}); name another port"
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
        """Start serving."""
        self._thread.start()

    def close(self) -> None:
        """Stop, whatever connections are open; what has come can still be taken."""
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join(5.0)
        self._server.server_close()
        self._server.end_all()

    def knows(self, authorization: str | None, *, spans: bool) -> bool:
        """Whether a sender may send: it has the token, or needs none. Others are counted."""
        if spans and self.spans_without_token:
            return True
        scheme, _, token = (authorization or "").partition(" ")
        told = token.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() == "bearer" and hmac.compare_digest(told, self._token.encode()):
            return True
        with self._lock:
            self.strangers += 1
        return False

    def is_called(self, host: str) -> bool:
        """Whether a sender names us as those on this machine do; a rebound name is another.

        Where others on the network may send, by whatever name, the token alone decides.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return not self._local or name in {"localhost", self.host.lower()} or _is_local(name)
        except ValueError:
            return False

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
            self.bad += found.bad
            return True

    def put_batch(self, batch: Batch) -> bool:
        """Keep what is new in a batch of steps; False when there is no room."""
        key = batch.instance, batch.engine
        with self._lock:
            rows = sum(len(each.rows) for each in self.batches) + len(batch.rows)
            known = key in self.heard or len(self.heard) < MOST_PLUGINS
            if len(self.batches) >= MOST_BATCHES or rows > MOST_HELD or not known:
                self.overflowed += 1
                return False
            self._leave_out_known(batch)
            made, batch.ahead = time.time_ns(), None
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
        known = self._next_row.get(key, 0)
        self._next_row[key] = max(known, batch.first + len(batch.rows))
        batch.rows = batch.rows[max(known - batch.first, 0) :]


def check_open(host: str, option: str, spans_without_token: bool) -> None:
    """Raise UsageError where others on the network could send spans without the token."""
    if spans_without_token and not is_loopback(host):
        raise UsageError(
            f"{option} {host}: others on the network reach it, so the token is needed; leave out "
            "--spans-without-token"
        )


def _is_local(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _give_large_blocks_back() -> None:
    """Have the C library give large blocks back at once, where it can be asked to.

    By itself glibc keeps for every thread what that thread's largest body took.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 18)


class _Place:
    """One connection: until when it may keep us waiting, None while we work for it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.since = time.monotonic()  # since when it waits for the next request
        self.until: float | None = self.since + HEAD_S
        self.served = False  # a request of it was taken
        self.held = 0  # bytes of its body

    def wait(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds

    def end(self) -> None:
        with contextlib.suppress(OSError):  # the other side was first
            self.connection.shutdown(socket.SHUT_RDWR)


class _Server(HTTPServer):
    """A thread per connection, so many at most.

    When all places are taken, the connection that has kept us waiting longest gives way to a new
    one: of those that have sent nothing good yet, else of the others.
    """

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        self.receiver = receiver
        self._places: list[_Place] = []
        self._changed = threading.Condition()
        self._threads = threading.Semaphore(2 * MOST_CONNECTIONS)  # some may be about to end
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking the resolver for our name, which may take long."""
        super(HTTPServer, self).server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        place = _Place(request)
        if not self._admit(place):
            self.shutdown_request(request)
            return
        threading.Thread(
            target=self._serve, args=(place, client_address), name="ttscope-otlp", daemon=True
        ).start()

    def _admit(self, place: _Place) -> bool:
        """Give a new connection a place; it may have to wait for a moment in which we work."""
        with self._changed:
            if len(self._places) >= MOST_CONNECTIONS and not self._give_way():
                self._changed.wait_for(lambda: len(self._places) < MOST_CONNECTIONS, 1.0)
            if len(self._places) >= MOST_CONNECTIONS:
                return False
        if not self._threads.acquire(timeout=1.0):
            return False
        with self._changed:
            self._places.append(place)
        return True

    def _give_way(self, but: _Place | None = None) -> bool:
        """End the connection that has kept us waiting longest, of those with a body for `but`."""
        found = [each for each in self._places if each.until is not None and each is not but]
        if but is not None:
            found = [each for each in found if each.held]
        if not found:
            return False
        place = min(found, key=lambda each: (each.served, each.since))
        self._places.remove(place)
        place.end()
        return True

    def hold(self, place: _Place, count: int) -> bool:
        """Note so many more bytes of a body; False when there is no room for them."""
        with self._changed:
            place.held += count
            while sum(each.held for each in self._places) > MOST_FLYING_BYTES:
                if not self._give_way(but=place):
                    return False
        return True

    def service_actions(self) -> None:
        """End the connections whose time is over."""
        now = time.monotonic()
        with self._changed:
            for place in self._places:
                if place.until is not None and now > place.until:
                    place.end()

    def end_all(self) -> None:
        """End every connection."""
        with self._changed:
            for place in self._places:
                place.end()

    def _serve(self, place: _Place, client_address: Any) -> None:
        try:
            _Handler(place, client_address, self)
        except Exception:  # a connection that breaks is its sender's affair
            pass
        finally:
            self.shutdown_request(place.connection)
            with self._changed:
                if place in self._places:
                    self._places.remove(place)
                self._changed.notify()
            self._threads.release()


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
    timeout = IDLE_S  # of a single read or write; the server ends what takes longer in all
    disable_nagle_algorithm = True  # else a sender that keeps its connection waits 40 ms an answer
    server: _Server

    def __init__(self, place: _Place, client_address: Any, server: _Server) -> None:
        self._place, self._unread = place, 0
        super().__init__(place.connection, client_address, server)

    def setup(self) -> None:
        super().setup()
        self._stream = _Stream(self.rfile)
        self.rfile = self._stream  # type: ignore[assignment]

    def handle_one_request(self) -> None:
        self._stream.left, self._unread = MOST_HEAD_BYTES, 0
        super().handle_one_request()
        self._place.held, self._place.since = 0, time.monotonic()
        self._place.wait(IDLE_S)

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
            raise _Refused(403, "Host is not this receiver; send to 127.0.0.1")
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
                    if not receiver.put_batch(read_batch(body)):
                        raise _Refused(503, "no room now; send it again")
                    return b"{}"
                found = read_protobuf(body) if kind == _PROTOBUF else read_json(body)
            except (ValueError, OverflowError):
                what = "an OTLP trace request" if spans else "a batch of steps"
                raise _Refused(400, f"not {what}") from None
        if not receiver.put_spans(found):
            raise _Refused(503, "no room now; send it again")
        if found.bad and not found.spans:
            raise _Refused(400, f"{found.bad} spans with numbers out of range or odd names")
        return answer_of(found) if kind == _PROTOBUF else _json_answer(found)

    def _length(self) -> int:
        """Return the length of the body. Refuses what tells none, or more than one."""
        told = self.headers.get_all("Content-Length", [])
        length = told[0].strip() if len(told) == 1 else ""
        known = length.isascii() and length.isdecimal() and len(length) < 12
        if not known or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise _Refused(411, "needs a Content-Length")
        self._unread = int(length)
        if self._unread > MOST_BODY_BYTES:
            raise _Refused(413, f"more than {MOST_BODY_BYTES:,} bytes")
        return self._unread

    def _body(self, length: int) -> bytearray:
        body = bytearray()
        self._place.wait(BODY_S)
        while len(body) < length:
            piece = self.rfile.read1(min(length - len(body), _PIECE))
            self._unread -= len(piece)
            if not piece:
                self._unread, self.close_connection = 0, True
                raise _Refused(400, "the body ended early")
            if not self.server.hold(self._place, len(piece)):
                raise _Refused(503, "no room now; send it again")
            body += piece
        self._place.until = None
        return body

    def _drain(self) -> None:
        """Read on for a moment, so that the sender sees the answer before the connection ends."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self._place.wait(_DRAIN_S)
            while self._unread > 0 and (piece := self.rfile.read1(_PIECE)):
                self._unread -= len(piece)

    def _answer(self, status: int, body: bytes, kind: str) -> None:
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

    def log_message(self, *_: Any) -> None:
        """Say nothing: a path may hold what it should not."""


def answer_of(found: Received) -> bytes:
    """Return an ExportTraceServiceResponse: how many spans were refused, empty where none were."""
    if not found.bad:
        return b""
    count, rejected = found.bad, bytearray(b"\x08")  # partial_success.rejected_spans
    while count > 127:
        rejected.append(count & 127 | 128)
        count >>= 7
    rejected.append(count)
    return b"\x0a" + bytes([len(rejected)]) + bytes(rejected)


def _json_answer(found: Received) -> bytes:
    told = {"partialSuccess": {"rejectedSpans": str(found.bad)}} if found.bad else {}
    return json.dumps(told).encode()


def _inflated(body: bytearray) -> bytearray:
    """Gunzip a body. Refuses what is damaged, ends early or becomes too large."""
    inflate, found = zlib.decompressobj(wbits=31), bytearray()
    rest: bytes | bytearray = body
    try:
        while not inflate.eof:
            piece = inflate.decompress(rest, _PIECE * 16)
            rest = inflate.unconsumed_tail
            found += piece
            if len(found) > MOST_INFLATED_BYTES:
                raise _Refused(413, f"more than {MOST_INFLATED_BYTES:,} bytes inflated")
            if not piece and not rest and not inflate.eof:
                raise _Refused(400, "gzip data end early")
    except zlib.error:
        raise _Refused(400, "damaged gzip data") from None
    return found
