"""How to reach a server that somebody else runs: its URL, its key, its headers.

Keys and header values never get into a recording, a log or an error.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from traces.errors import UsageError

if TYPE_CHECKING:
    import httpx

_MOST_KEY_BYTES = 16_384
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")  # as people name one, unlike keys
_OURS = {"host", "content-length", "transfer-encoding", "connection", "accept-encoding"}


@dataclass(frozen=True, kw_only=True)
class Access:
    """A server's base URL (no `/v1`) and the headers that go with every request to it.

    `metrics` is where its metrics page is, None where it is at `/metrics` of the URL.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    metrics: str | None = None

    def client(self, seconds: float | None = None) -> httpx.Client:
        """Return a client of the server, to be closed; each answer has so long in all."""
        from profiler.doors.clients import Client

        return Client(base_url=self.url, headers=dict(self.headers), seconds=seconds)

    @property
    def where(self) -> str:
        """What tells this server from others: its URL, or that of its metrics."""
        return self.metrics or self.url

    @property
    def metrics_page(self) -> str:
        return self.metrics or f"{self.url}/metrics"

    @property
    def metrics_headers(self) -> Mapping[str, str]:
        """What goes with a request for that page: a key goes to no other host than the server's."""
        here, there = urlsplit(self.url), urlsplit(self.metrics_page)
        same = (here.scheme, here.hostname) == (there.scheme, there.hostname)
        return self.headers if same else {}

    def with_metrics(self, url: str) -> Access:
        """Return the server with its metrics elsewhere. Raises UsageError as `of` does."""
        base = Access.of(url).url
        path = urlsplit(url.rstrip("/")).path
        return replace(self, metrics=url.rstrip("/") if path else f"{base}/metrics")

    @staticmethod
    def of(url: str, headers: Mapping[str, str] | None = None) -> Access:
        """Check a URL as a person writes it. Raises UsageError, without repeating a password."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise UsageError("URL: its host or port is malformed. Write http://HOST:PORT") from None
        if parts.scheme not in {"http", "https"} or not host:
            raise UsageError(f"URL {without_secrets(url)}: write http://HOST:PORT or https://HOST")
        if parts.username is not None or parts.password is not None:
            raise UsageError(
                f"URL of {host}: give no user or password in it. Use --api-key-env (or --header)"
            )
        if parts.query or parts.fragment:
            raise UsageError(f"URL of {host}: leave out what follows ? or #. Use --header for keys")
        check_environment()
        base = url.rstrip("/").removesuffix("/metrics").removesuffix("/v1")
        return Access(url=base, headers=dict(headers or {}))


def port_of(url: str) -> int:
    """Return the port of a URL of HTTP, the usual one where it names none."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def is_loopback(name: str | None) -> bool:
    """Whether a host's name or address is that of one's own machine, without asking a resolver."""
    try:
        return name == "localhost" or ipaddress.ip_address(name or "").is_loopback
    except ValueError:
        return False


def check_environment() -> None:
    """Raise UsageError where httpx cannot use the proxies or certificates of the environment.

    The message repeats no proxy, which may have a password.
    """
    import httpx

    for kind, proxy in getproxies().items():
        if kind not in {"http", "https", "all"}:
            continue
        scheme, mark, _ = proxy.lower().partition("://")
        if mark and scheme not in {"http", "https", "socks5", "socks5h"}:
            raise UsageError(
                f"{kind.upper()}_PROXY: is no proxy of http, https or socks5. Unset it"
            )
        if scheme.startswith("socks") and mark and find_spec("socksio") is None:
            raise UsageError(
                f"{kind.upper()}_PROXY: a SOCKS proxy needs socksio. Install that, or unset it"
            )
    try:
        httpx.Client(verify=False).close()
    except (httpx.InvalidURL, ValueError):
        raise UsageError(
            "NO_PROXY, or a proxy: a host or port in it is malformed. Correct or unset it"
        ) from None
    if named := os.environ.get("SSL_CERT_FILE"):
        try:
            ssl.create_default_context(cafile=named)
        except OSError:
            raise UsageError("SSL_CERT_FILE: holds no certificates. Correct or unset it") from None


def accesses_of(
    urls: Sequence[str], metrics: Sequence[str], headers: Mapping[str, str]
) -> tuple[Access, ...]:
    """Return the servers at some URLs, with their metrics pages where these are elsewhere.

    There are none, one for each URL in their order, or several for one URL, which are pods behind
    it. Raises UsageError.
    """
    accesses = [Access.of(url, headers) for url in urls]
    if not metrics:
        return tuple(accesses)
    if len(accesses) == 1:
        accesses *= len(metrics)
    if len(accesses) != len(metrics):
        raise UsageError(
            f"--metrics-url: {len(metrics)} for {len(accesses)} URLs. Name one for each, in order"
        )
    return tuple(each.with_metrics(url) for each, url in zip(accesses, metrics, strict=True))


def without_secrets(url: str) -> str:
    """Return a URL, or what was typed for one, without user, password, query and fragment."""
    scheme, mark, rest = url.rpartition("://")
    before = re.split("[?#]", rest, maxsplit=1)[0]
    return f"{scheme}{mark}{before.rpartition('@')[2]}"


def read_key(variable: str | None, file: Path | None, option: str = "--api-key") -> str | None:
    """Return a key from an environment variable or a file; None when neither is named.

    `option` begins the names of both. Raises UsageError that names where it was looked for, and
    never what was found.
    """
    if variable is not None and file is not None:
        raise UsageError(f"{option}-env and {option}-file exclude each other")
    if variable is not None:
        where, text = f"{option}-env", _value_of(variable, f"{option}-env")
    elif file is not None:
        where = f"{option}-file {file}"
        try:
            with file.open("rb") as opened:
                text = opened.read(_MOST_KEY_BYTES + 1).decode()
        except OSError as error:
            raise UsageError(f"{where}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise UsageError(f"{where}: is not text") from None
    else:
        return None
    key = text.strip()
    if not key or len(key) > _MOST_KEY_BYTES or not key.isascii() or not key.isprintable():
        raise UsageError(f"{where}: holds no key (one line of printable ASCII)")
    return key


def _value_of(variable: str, where: str) -> str:
    """Return a variable's value. Raises UsageError, which repeats no name that may be a key."""
    value = os.environ.get(variable, "")
    if not value:
        name = f" {variable}" if _VARIABLE.fullmatch(variable) else ""
        raise UsageError(f"{where}: the variable{name} is not set. Give its name, not the key")
    return value


def read_headers(key: str | None, given: Sequence[str]) -> dict[str, str]:
    """Return what goes with every request: the key, and headers given as `Name: value`.

    A value `$NAME` is read from the environment. Raises UsageError, which never repeats a value.
    """
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    for number, text in enumerate(given, 1):
        name, colon, value = text.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
            raise UsageError(f"--header number {number}: write 'Name: value'")
        if name.lower() in _OURS:
            raise UsageError(f"--header {name}: is set by ttscope itself")
        if value.startswith("$"):
            value = _value_of(value[1:], f"--header {name}")
        if not value.isascii() or not value.isprintable():
            raise UsageError(f"--header {name}: its value is not printable ASCII")
        if name.lower() == "authorization":
            headers.pop("Authorization", None)
        headers[name] = value
    return headers
