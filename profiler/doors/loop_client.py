"""A session of aiohttp whose requests have a deadline, whatever is answered (extra `serve`)."""

from __future__ import annotations

from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

_CONNECT_S = 10.0
_MOST_HEADS = 64  # of one answer, those of 1xx included, that nobody has read yet


class _Handler(ResponseHandler):
    """A connection that ends where heads come faster than they are read.

    aiohttp reads on through answers of 1xx and keeps each: 256 KB of them take 10 MB.
    """

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if len(self._buffer) > _MOST_HEADS:
            self._buffer.clear()
            self.set_exception(aiohttp.ClientPayloadError("heads without end"))
            if self.transport is not None:
                self.transport.abort()


class _Connector(aiohttp.TCPConnector):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        made: Any = partial(_Handler, loop=self._loop)
        self._factory = made  # has no public place


def session(seconds: float, *, connections: int, idle_s: float) -> aiohttp.ClientSession:
    """Return a session on the running loop, each request of which has so long in all.

    It takes and gives bodies as they are, and keeps no cookies. So many connections are open at a
    time, and further requests wait for one.
    """
    return aiohttp.ClientSession(
        connector=_Connector(limit=connections, keepalive_timeout=idle_s),
        timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_S),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
    )
