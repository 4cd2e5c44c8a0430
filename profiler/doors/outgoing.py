"""A try to reach somebody else: so many seconds and so many bytes in all, whatever is answered.

The monotonic clock counts from before the name is resolved to the last byte of the body. Each read
gets what is left of both, so that a head that drips, answers of 1xx without end and a body that
never ends are over as soon as silence is. Standard library alone: the plugin sends by it in vLLM.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextvars import ContextVar

MOST_HEAD_BYTES = 256 << 10  # of an answer before its body, all of 1xx included
_PIECE = 1 << 16
_FINAL = re.compile(rb"(?:\A|\r\n\r\n)HTTP/1\.[01] ([2-5]\d\d)\b.*?\r\n\r\n", re.DOTALL)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,9})\r", re.IGNORECASE)
_CURRENT: ContextVar[Try | None] = ContextVar("ttscope_try", default=None)
_LOOKUPS: dict[tuple[str, int], Future[list[str]]] = {}  # that have not ended
_LOCK = threading.Lock()


class TooLarge(ValueError):
    """An answer has more bytes than are read."""


class Try:
    """One try, from now on; `granted` are the bytes that may still come."""

    def __init__(self, seconds: float = math.inf, granted: int = MOST_HEAD_BYTES) -> None:
        self.until, self.granted = time.monotonic() + seconds, granted

    @staticmethod
    def current() -> Try | None:
        """Return the try of this thread or task that began last."""
        return _CURRENT.get()

    def begin(self) -> Try:
        """Have all reads of this thread or task count for this try, until another begins."""
        _CURRENT.set(self)
        return self

    def left_s(self, most: float | None = None) -> float | None:
        """Return how long the next wait may take, None for ever. Raises TimeoutError."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole answer in time")
        left = left if most is None else min(left, most)
        return None if math.isinf(left) else left

    def came(self, data: bytes) -> bytes:
        """Count bytes that came. Raises TooLarge."""
        self.granted -= len(data)
        if self.granted < 0:
            raise TooLarge("an answer that is too large")
        return data

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a connection to the first address of a host that takes one. Raises OSError."""
        problem = OSError("no address")
        for address in self.addresses(host, port):
            try:
                return socket.create_connection((address, port), self.left_s())
            except OSError as error:
                problem = error
        raise problem

    def addresses(self, host: str, port: int, most_s: float | None = None) -> list[str]:
        """Return the addresses of a host. Raises OSError."""
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        try:
            return _lookup(host, port).result(self.left_s(most_s))
        except NotYet:  # its thread stays behind, one for each name
            raise TimeoutError("no address in time") from None

    def post(
        self,
        address: tuple[str, int],
        path: str,
        headers: Mapping[str, str],
        body: Callable[[], bytes],
    ) -> int:
        """POST what `body` makes once somebody has taken the connection; returns the status.

        An answer that does not come to its end counts as none. Raises OSError or ValueError.
        """
        with contextlib.closing(self.connect(*address)) as connection:
            data = body()
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            named = {"Host": f"{host}:{address[1]}", "Connection": "close", **headers}
            lines = [f"{name}: {value}\r\n" for name, value in named.items()]
            head = f"POST {path} HTTP/1.1\r\n{''.join(lines)}Content-Length: {len(data)}\r\n\r\n"
            connection.settimeout(self.left_s())
            connection.sendall(head.encode("ascii") + data)  # its time-out is of all of it
            answer = b"".join(self._pieces(connection))
        last = _FINAL.search(answer)
        length = None if last is None else _LENGTH.search(last[0])
        if last is None or (length is not None and len(answer) - last.end() < int(length[1])):
            raise ValueError("no whole answer of HTTP")
        return int(last[1])

    def _pieces(self, connection: socket.socket) -> Iterator[bytes]:
        while True:
            connection.settimeout(self.left_s())
            try:
                piece = connection.recv(_PIECE)
            except ConnectionError:  # what came before may be a whole answer
                return
            if not piece:
                return
            yield self.came(piece)


def _lookup(host: str, port: int) -> Future[list[str]]:
    """Ask the resolver for a name on a thread of its own, as it knows no deadline."""
    with _LOCK:
        if (host, port) in _LOOKUPS:
            return _LOOKUPS[host, port]
        found = _LOOKUPS[host, port] = Future()

    def ask() -> None:
        try:
            told = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result([str(each[4][0]) for each in told])
        except Exception as error:  # raised where it is waited for
            found.set_exception(error)
        finally:
            with _LOCK:
                del _LOOKUPS[host, port]

    threading.Thread(target=ask, name="ttscope-name", daemon=True).start()
    return found
