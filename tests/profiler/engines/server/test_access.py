"""What httpx takes from the environment is checked before anything is asked."""

import pytest

from profiler.engines.server.access import Access
from traces.errors import UsageError

LOWER = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
NAMES = (*LOWER, *map(str.upper, LOWER))


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (*NAMES, "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ALL_PROXY", "gopher://user:secret@host:1", "ALL_PROXY: is no proxy of http"),
        ("https_proxy", "socks5://user:secret@host:1", "HTTPS_PROXY: a SOCKS proxy needs socksio"),
        ("NO_PROXY", "localhost,[::1]:secret", "NO_PROXY, or a proxy: a host or port in it is mal"),
        (
            "HTTP_PROXY",
            "http://secret:x",
            "NO_PROXY, or a proxy: a host or port in it is malformed",
        ),
        ("SSL_CERT_FILE", "/absent/secret.pem", "SSL_CERT_FILE: holds no certificates"),
    ],
)
def test_what_cannot_be_used_is_one_line_without_secrets(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("profiler.engines.server.access.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=message) as told:
        Access.of("http://127.0.0.1:8000")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("value", ["http://host:1", "HTTP://user:secret@host:1", "host:1"])
def test_other_proxies_stand(monkeypatch, value):
    monkeypatch.setenv("ALL_PROXY", value)
    assert Access.of("http://127.0.0.1:8000").url == "http://127.0.0.1:8000"
