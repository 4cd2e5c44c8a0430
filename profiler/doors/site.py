"""A guard before an application of aiohttp, on the loop that serves it (extras `serve`, `web`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterable
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from profiler.doors.guard import Guard, Place

_BACKLOG = 128
_LOOK_S = 0.5
TAKE_S = 10.0  # for a piece of an answer to be taken
_PAUSE_S = 0.1  # where no connection can be taken at all


class SiteGuard(Guard):
    """A guard that knows the place of each request."""

    def __init__(self, *, connections: int, held_bytes: int, idle_s: float) -> None:
        super().__init__(connections=connections, held_bytes=held_bytes)
        self.idle_s = idle_s
        self.places: dict[Any, Place] = {}  # by aiohttp's protocol

    def of(self, request: web.BaseRequest) -> Place:
        """Return the place of a request; one of nobody where its connection has just ended."""
        return self.places.get(request.protocol) or Place(lambda: None)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Work for a request whose head has come, and then wait for the next one."""
        place = self.of(request)
        place.work()
        try:
            answer: web.StreamResponse = await handler(request)
            return answer
        finally:
            place.rest(self.idle_s)

    async def write(
        self, request: web.BaseRequest, answer: web.StreamResponse, piece: bytes
    ) -> None:
        """Write a piece of an answer, which has `TAKE_S` to be taken. Raises ConnectionError."""
        place = self.of(request)
        place.wait(TAKE_S)
        await answer.write(piece)
        place.work()

    async def write_held(
        self,
        request: web.BaseRequest,
        answer: web.StreamResponse,
        pieces: Iterable[bytes],
        held: int,
    ) -> bool:
        """Write an answer that holds so many bytes until it is taken; False: no room for them.

        Others have the loop between its pieces. Who has not taken theirs gives way. Raises
        ConnectionError.
        """
        place = self.of(request)
        place.since = time.monotonic()
        if not self.hold(place, held):
            return False
        await answer.prepare(request)
        for piece in pieces:
            await self.write(request, answer, piece)
            await asyncio.sleep(0)
        await answer.write_eof()
        return True


class _Connection(asyncio.Protocol):
    """Hands all to aiohttp's own protocol, and leaves its place at the end."""

    def __init__(self, inner: Any, guard: SiteGuard, place: Place) -> None:
        self._inner, self._guard, self._place = inner, guard, place
        self.data_received = inner.data_received  # type: ignore[method-assign]
        self.eof_received = inner.eof_received  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: Any) -> None:
        self._place.end = transport.abort
        self._guard.places[self._inner] = self._place
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.leave(self._place)
        self._inner.connection_lost(exc)
        self._guard.places.pop(self._inner, None)


class _Handler(web.RequestHandler):
    """Answers what is no request of HTTP with a body of ours, which repeats nothing of it."""

    __slots__ = ()

    def handle_error(self, *asked: Any, **more: Any) -> web.StreamResponse:
        answer = super().handle_error(*asked, **more)
        if answer.status == HTTPStatus.BAD_REQUEST:
            answer = web.Response(
                status=answer.status,
                body=error_body("not a request of HTTP, or its head is too long", answer.status),
                content_type="application/json",
            )
            answer.force_close()
        return answer


def error_body(message: str, status: int) -> bytes:
    """Return the body of an error as OpenAI's API has it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return msgspec.json.encode({"error": {"message": message, "type": kind, "code": status}})


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises OSError."""
    family = min(each[0] for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    made = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    made.setblocking(False)
    return made


@contextlib.asynccontextmanager
async def guarded(
    app: web.Application,
    listening: socket.socket,
    guard: SiteGuard,
    *,
    shutdown_s: float,
    cancels: bool = False,
) -> AsyncIterator[None]:
    """Serve an application on a socket while the block runs. Its first middleware is the guard's.

    Connections are taken one at a time, so that no burst of them takes all files. `cancels` says
    that a client that goes away ends the work for it.
    """
    silent = logging.getLogger("ttscope.doors.silent")  # what is malformed is repeated nowhere
    silent.disabled = True
    app.middlewares.insert(0, guard.middleware)
    runner = web.AppRunner(
        app,
        handler_cancellation=cancels,
        access_log=None,
        logger=silent,
        keepalive_timeout=guard.idle_s,
        shutdown_timeout=shutdown_s,
    )
    await runner.setup()
    tasks = [
        asyncio.create_task(_accept(runner, listening, guard)),
        asyncio.create_task(_look(guard)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listening.close()
        await runner.cleanup()


async def _accept(runner: web.AppRunner, listening: socket.socket, guard: SiteGuard) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            made, _ = await loop.sock_accept(listening)
        except OSError:
            await asyncio.sleep(_PAUSE_S)
            continue
        place = Place(made.close)
        if not guard.admit(place):
            made.close()
            continue
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(_protocol(runner), guard, place)
        try:
            await loop.connect_accepted_socket(partial(_same, connection), made)
        except OSError:
            guard.leave(place)
            made.close()


def _same(connection: _Connection) -> _Connection:
    return connection


def _protocol(runner: web.AppRunner) -> Any:
    assert runner.server is not None
    made = runner.server()
    made.__class__ = _Handler  # a server makes no other handlers than aiohttp's
    return made


async def _look(guard: SiteGuard) -> None:
    while True:
        await asyncio.sleep(_LOOK_S)
        guard.end_overdue()
