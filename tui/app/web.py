"""`ttscope tui --web`: the terminal app in a browser, a process for each page that is open.

textual-serve draws it. Here is what it lacks: nothing is loaded from other hosts, addresses are
those that the browser asked for (so that ssh -L works), and others are refused. The app can delete
recordings, and all keys come through its web socket: another user of the machine, or a page of
another site in the same browser, could otherwise press d and y. So the URL that is printed has a
token, new at every start. The page keeps it in a cookie that no script reads and that no other site
sends, and the web socket opens for that cookie from the app's own page alone.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

import aiohttp_jinja2
from aiohttp import web
from aiohttp.typedefs import Handler
from textual_serve.server import Server

from profiler.doors.guard import connections_of
from profiler.doors.site import SiteGuard, guarded, listen
from traces.errors import EngineError
from traces.plain_text import clean
from tui.terminal import say

PORT = 8080
_END_S = 2.0  # that open pages have to end their apps
_MOST_CONNECTIONS, _MOST_BYTES, _IDLE_S = 256, 1 << 20, 75.0
_FOCUS = """<script>
  history.replaceState(null, "", location.pathname);
  const waiting = setInterval(() => {
    const keys = document.querySelector(".xterm-helper-textarea");
    if (keys) { keys.focus(); clearInterval(waiting); }
  }, 50);
</script>
"""  # the token leaves the address; textual-serve waits for a click before it takes keys


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host by that name."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _name_in(host: str) -> str:
    """Return the name in a Host header; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def command_of(arguments: Sequence[str]) -> str:
    """Return the shell command that opens the app with `ttscope tui`'s arguments."""
    start = [sys.executable, "-P", "-c", "from tui.start import main\nmain()", "tui"]
    return f"exec {shlex.join([*start, *arguments])}"


class AppServer(Server):
    """Serves the page and, per web socket, an app; `local` says that only this machine may ask.

    `token` is what a browser must have been given.
    """

    def __init__(self, arguments: Sequence[str], *, local: bool, token: str) -> None:
        super().__init__(command_of(arguments), title="ttscope")
        self._local, self._token = local, token
        self._cookie = f"ttscope-{secrets.token_hex(4)}"  # another ttscope's page has another

    async def make_app(self) -> web.Application:
        """Return the application with its guard in front."""
        app = await self._make_app()
        app.middlewares.append(self._own_pages_only)
        return app

    async def on_startup(self, app: web.Application) -> None:
        """Say nothing: `serve` says where it is."""

    @web.middleware
    async def _own_pages_only(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            raise web.HTTPForbidden(text=f"a page of {clean(origin)} asks. Only the app's own may")
        if self._local and not is_loopback(_name_in(request.host)):
            raise web.HTTPForbidden(
                text=f"{clean(request.host)} is not this machine. Ask for localhost, or start it "
                "with --listen HOST:PORT"
            )
        kept = self._is_token(request.cookies.get(self._cookie))
        if request.path == "/ws":
            if origin is None or not kept:
                raise web.HTTPForbidden(text="only the app's own page may open this")
        elif not (kept or (request.path == "/" and self._is_token(request.query.get("token")))):
            raise web.HTTPForbidden(text="open the whole URL that ttscope printed. It has a token")
        return await handler(request)

    def _is_token(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(
            given.encode(errors="replace"), self._token.encode()
        )

    async def handle_index(self, request: web.Request) -> web.Response:
        """Return the page, which may load from this server alone."""
        wanted = request.query.get("fontsize", "16")
        shown_as = request.headers.get("X-Forwarded-Proto", request.scheme)  # behind a proxy
        scheme = "wss" if shown_as == "https" else "ws"
        socket_url = f"{scheme}://{request.host}"
        context = {
            "font_size": int(wanted) if wanted.isdecimal() and len(wanted) < 4 else 16,
            "app_websocket_url": f"{socket_url}/ws",
            "config": {"static": {"url": "/static/"}},
            "application": {"name": self.title},
        }
        page = aiohttp_jinja2.render_template("app_index.html", request, context)
        page.text = (page.text or "").replace("</body>", f"{_FOCUS}</body>")
        page.headers["Content-Security-Policy"] = (
            "default-src 'self' 'unsafe-inline'; img-src 'self' data:; "
            f"connect-src 'self' {socket_url}; frame-ancestors 'none'"
        )
        page.headers["Referrer-Policy"] = "no-referrer"
        page.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        page.headers["Cache-Control"] = "no-store"
        page.set_cookie(self._cookie, self._token, httponly=True, samesite="Strict")
        return page


def serve(arguments: Sequence[str], host: str, port: int) -> None:
    """Serve the app with `ttscope tui`'s arguments until Ctrl-C or SIGTERM.

    Says in a line where it is, on stderr whether others reach it. Raises EngineError where it
    cannot listen.
    """
    try:
        listener = listen(host, port)
    except OSError as error:
        why = error.strerror or error
        raise EngineError(
            f"--listen {host}:{port}: cannot listen there ({why}). Name another port"
        ) from None
    port = listener.getsockname()[1]
    local, token = is_loopback(host), secrets.token_urlsafe(24)
    if not local:
        sys.stderr.write(
            f"listening on {host}: who reads the token on the network, where it is not encrypted, "
            "can use the app as you can, and it can delete recordings\n"
        )
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}/?token={token}"
    asyncio.run(_serve(AppServer(arguments, local=local, token=token), listener, url))


async def _serve(server: AppServer, listener: socket.socket, url: str) -> None:
    guard = SiteGuard(
        connections=connections_of(_MOST_CONNECTIONS), held_bytes=_MOST_BYTES, idle_s=_IDLE_S
    )
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    async with guarded(await server.make_app(), listener, guard, shutdown_s=_END_S):
        say(f"ttscope on {url}  (Ctrl-C ends it)", flush=True)
        await ended.wait()
