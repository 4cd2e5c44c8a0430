"""Clients of httpx and a session of requests, each request of which is a `Try`.

httpx has no deadline of a whole answer, and reads answers of 1xx for ever. So what reads and writes
for it here is httpcore's network stream behind a try. httpx has no public place to put that in: its
pool's `_network_backend` is set, in `_through`.
"""

from __future__ import annotations

import io
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import httpcore
import httpx

from profiler.doors.outgoing import Try

if TYPE_CHECKING:
    import requests

ANSWER_S = 15.0  # of what is asked of a server once
MOST_ANSWER_BYTES = 8 << 20  # the same
MOST_STREAM_BYTES = 1 << 30  # of a streamed answer
_PIECE = 1 << 16
_MOST_EXPORT_BYTES = 64 << 10  # of a collector's answer


class AnswerTooLarge(httpx.TransportError):
    """An answer has more bytes than are read."""


class Client(httpx.Client):
    """A client whose requests have `seconds` and `most_bytes` of an answer, head and body."""

    def __init__(
        self,
        *,
        seconds: float | None = None,
        most_bytes: int = MOST_ANSWER_BYTES,
        connect_s: float = 10.0,
        **options: Any,
    ) -> None:
        self.seconds = seconds or ANSWER_S
        super().__init__(
            **options,
            timeout=httpx.Timeout(self.seconds, connect=min(self.seconds, connect_s)),
            event_hooks={"response": [lambda _: _grant(most_bytes)]},
        )
        _through(_Backend(), self)

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        Try(self.seconds).begin()
        return super().send(request, **options)


class StreamingClient(httpx.AsyncClient):
    """A client whose answers have `MOST_STREAM_BYTES`. Who streams them sets a deadline."""

    def __init__(self, **options: Any) -> None:
        async def granted(_: httpx.Response) -> None:
            _grant(MOST_STREAM_BYTES)

        super().__init__(**options, event_hooks={"response": [granted]})
        _through(_AsyncBackend(), self)

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        Try().begin()
        return await super().send(request, **options)


def _through(backend: Any, client: Any) -> None:
    """Have a client's connections, those by a proxy too, go through a backend."""
    for transport in (client._transport, *client._mounts.values()):
        if transport is not None:
            transport._pool._network_backend = backend


def _current() -> Try:
    return Try.current() or Try()


def _grant(most_bytes: int) -> None:
    """Let a body come behind its head."""
    _current().granted = most_bytes


def _left_s(most: float | None) -> float | None:
    try:
        return _current().left_s(most)
    except TimeoutError as error:
        raise httpx.ReadTimeout(str(error)) from None


def _counted(data: bytes) -> bytes:
    try:
        return _current().came(data)
    except ValueError as error:
        raise AnswerTooLarge(str(error)) from None


class _Stream(httpcore.NetworkStream):
    """A connection whose waits end with the try that is made on it."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self.close, self.get_extra_info = inner.close, inner.get_extra_info  # type: ignore[method-assign]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return _counted(self._inner.read(max_bytes, _left_s(timeout)))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for at in range(0, len(buffer), _PIECE):
            self._inner.write(buffer[at : at + _PIECE], _left_s(timeout))

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left_s = _left_s(timeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left_s))


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        problem: Exception = httpx.ConnectError("no address")
        try:
            addresses = _current().addresses(host, port, timeout)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(str(error)) from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None
        for address in addresses:
            try:
                return _Stream(
                    super().connect_tcp(
                        address, port, _left_s(timeout), local_address, socket_options
                    )
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem


class _AsyncStream(httpcore.AsyncNetworkStream):
    """The same on a loop, where deadlines are set outside."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self.write, self.aclose = inner.write, inner.aclose  # type: ignore[method-assign]
        self.get_extra_info = inner.get_extra_info  # type: ignore[method-assign]

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return _counted(await self._inner.read(max_bytes, timeout))

    async def start_tls(self, *arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _AsyncStream(await self._inner.start_tls(*arguments, **options))


class _AsyncBackend(httpcore.AnyIOBackend):
    async def connect_tcp(self, *arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _AsyncStream(await super().connect_tcp(*arguments, **options))


def _trusting(verify: bool | str, cert: str | tuple[str, str] | None) -> Any:
    """Return what httpx verifies by, of what requests is given."""
    if verify is True and cert is None:
        return True
    context = ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)
    if verify is False:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if cert is not None:
        context.load_cert_chain(*([cert] if isinstance(cert, str) else cert))
    return context


def export_session() -> requests.Session:
    """Return a session for OpenTelemetry's exporters, each export of which is a try."""
    import requests
    from requests.adapters import BaseAdapter

    class Adapter(BaseAdapter):
        def __init__(self) -> None:
            super().__init__()
            self.clients: dict[Any, Client] = {}

        def send(
            self,
            request: requests.PreparedRequest,
            stream: bool = False,
            timeout: Any = None,
            verify: Any = True,
            cert: Any = None,
            proxies: Any = None,
        ) -> requests.Response:
            client = self.clients.get((verify, cert))
            if client is None:
                client = Client(verify=_trusting(verify, cert), most_bytes=_MOST_EXPORT_BYTES)
                self.clients[verify, cert] = client
            client.seconds = timeout if isinstance(timeout, int | float) else ANSWER_S
            headers: Any = {**request.headers, "Accept-Encoding": "identity"}
            made = requests.Response()
            try:
                with client.stream(
                    request.method or "POST",
                    request.url or "",
                    content=request.body,  # type: ignore[arg-type]
                    headers=headers,
                ) as answer:
                    made.raw = io.BytesIO(b"".join(answer.iter_raw()))
            except httpx.TimeoutException as error:
                raise requests.Timeout(type(error).__name__) from None
            except httpx.HTTPError as error:
                raise requests.ConnectionError(type(error).__name__) from None
            made.status_code, made.reason = answer.status_code, answer.reason_phrase
            made.headers.update(answer.headers)
            made.url, made.request = request.url or "", request
            return made

        def close(self) -> None:
            for client in self.clients.values():
                client.close()

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    return session
