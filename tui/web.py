"""`ttscope tui --web`: the terminal app in a browser, a process for each page that is open.

textual-serve draws it. Here is what it lacks: nothing is loaded from other hosts, addresses are
those that the browser asked for (so that ssh -L works), and pages of other sites are refused: the
app can delete recordings, and any page in the same browser could otherwise have its keys pressed.
"""

from __future__ import annotations

import ipaddress
import shlex
import socket
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

import aiohttp_jinja2
from aiohttp import web
from aiohttp.typedefs import Handler
from textual_serve.server import Server

from traces.errors import EngineError

PORT = 8080
_END_S = 2.0  # that open pages have to end their apps
_FOCUS = """<script>
  const waiting = setInterval(() => {
    const keys = document.querySelector(".xterm-helper-textarea");
    if (keys) { keys.focus(); clearInterval(waiting); }
  }, 50);
</script>
"""  # textual-serve waits for a click before it takes keys


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host by that name."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def command_of(arguments: Sequence[str]) -> str:
    """Return the shell command that opens the app with `ttscope tui`'s arguments."""
    start = [sys.executable, "-P", "-c", "from tui.cli import main; main()", "tui"]
    return f"exec {shlex.join([*start, *arguments])}"


class AppServer(Server):
    """Serves the page and, per web socket, an app; `local` says that only this machine may ask."""

    def __init__(self, arguments: Sequence[str], *, local: bool) -> None:
        super().__init__(command_of(arguments), title="ttscope")
        self._local = local

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
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text=f"a page of {origin} asks; only the app's own may")
        if self._local and not is_loopback(urlsplit(f"//{request.host}").hostname or ""):
            raise web.HTTPForbidden(
                text=f"{request.host} is not this machine; ask for localhost, or start it with "
                "--listen HOST:PORT"
            )
        return await handler(request)

    async def handle_index(self, request: web.Request) -> web.Response:
        """Return the page, which may load from this server alone."""
        wanted = request.query.get("fontsize", "16")
        shown_as = request.headers.get("X-Forwarded-Proto", request.scheme)  # behind a proxy
        scheme = "wss" if shown_as == "https" else "ws"
        socket_url = f"{scheme}://{request.host}"
        context = {
            "font_size": int(wanted) if wanted.isdecimal() else 16,
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
        return page


def serve(arguments: Sequence[str], host: str, port: int) -> None:
    """Serve the app with `ttscope tui`'s arguments until Ctrl-C or SIGTERM.

    Says in a line where it is, on stderr whether others reach it. Raises EngineError where it
    cannot listen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        why = error.strerror or error
        raise EngineError(
            f"--listen {host}:{port}: cannot listen there ({why}); name another port"
        ) from None
    port = listener.getsockname()[1]
    local = is_loopback(host)
    if not local:
        sys.stderr.write(
            f"listening on {host}: others on the network can use the app as you can, and it can "
            "delete recordings\n"
        )
    shown = f"[{host}]" if ":" in host else host
    web.run_app(
        AppServer(arguments, local=local).make_app(),
        sock=listener,
        access_log=None,
        shutdown_timeout=_END_S,
        print=lambda _: print(f"ttscope on http://{shown}:{port}/  (Ctrl-C ends it)", flush=True),
    )
