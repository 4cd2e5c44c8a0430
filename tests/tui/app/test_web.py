"""`ttscope tui --web`: who may ask, what the page loads, and the app behind its web socket."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import tui
from tests.traces.synthetic import simulate, write_recording

aiohttp = pytest.importorskip("aiohttp")
pytest.importorskip("textual_serve.server")

from tui.app.web import command_of, is_loopback  # noqa: E402

ROOT = Path(tui.__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a folder; $(false)")
    write_recording(folder / "one", simulate(problems=6, n=2))
    return folder


@contextmanager
def served(*arguments):
    """Serve the app; gives its address and the process."""
    start = [sys.executable, "-P", "-c", "from tui.start import main; main()", "tui", "--web"]
    process = subprocess.Popen(
        [*start, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("ttscope on http://"), process.stderr.read()
        url, _, token = line.split()[2].partition("/?token=")
        yield url, token, process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@dataclass
class App:
    """A served app: its address and token, and what a browser has that opened it."""

    url: str
    token: str
    cookies: httpx.Cookies
    page: httpx.Response

    @property
    def cookie(self):
        ((name, value),) = self.cookies.items()
        return {name: value}


@pytest.fixture(scope="module")
def app(folder):
    with served("--listen", "0", folder) as (url, token, _), httpx.Client(base_url=url) as client:
        page = client.get("/", params={"token": token})
        assert page.status_code == 200
        yield App(url, token, client.cookies, page)


@pytest.mark.slow
def test_the_page_and_what_it_loads_come_from_here(app):
    page = app.page
    assert f'data-session-websocket-url="{app.url.replace("http", "ws")}/ws"' in page.text
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self' 'unsafe-inline';")
    assert "google" not in policy
    assert ".xterm-helper-textarea" in page.text  # keys are taken without a click
    with httpx.Client(base_url=app.url, cookies=app.cookies) as again:
        assert again.get("/static/js/textual.js").status_code == 200
        for odd in ("x%22", "9" * 5_000):
            assert again.get(f"/?fontsize={odd}").text.count('data-font-size="16"') == 1


@pytest.mark.slow
def test_addresses_are_those_that_were_asked_for(app):
    """As through ssh -L 9000:localhost:8080."""
    asked = {"Cookie": "; ".join("=".join(each) for each in app.cookies.items())}
    page = httpx.get(app.url, headers=asked | {"Host": "localhost:9000"})
    assert 'data-session-websocket-url="ws://localhost:9000/ws"' in page.text
    proxied = asked | {"Host": "localhost", "X-Forwarded-Proto": "https"}
    assert '"wss://localhost/ws"' in httpx.get(app.url, headers=proxied).text


@pytest.mark.slow
def test_the_token_is_kept_where_no_script_and_no_other_site_has_it(app):
    kept = app.page.headers["Set-Cookie"].split("; ")
    assert kept[0].endswith(app.token) and len(app.token) >= 32
    assert {"HttpOnly", "SameSite=Strict"} <= set(kept)
    assert app.page.headers["Referrer-Policy"] == "no-referrer"
    assert app.page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "frame-ancestors 'none'" in app.page.headers["Content-Security-Policy"]


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"Origin": "http://evil.example"}, "Only the app's own may"),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, "is not this machine"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/ws"])
def test_pages_of_others_are_refused(app, path, headers, told):
    answer = httpx.get(f"{app.url}{path}", headers=headers | UPGRADE, params={"token": app.token})
    assert answer.status_code == 403
    assert told in answer.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [
        *({"Origin": b"http://["}, {"Origin": b"http://\xff"}),
        *({"Host": b"["}, {"Host": b"[::1"}, {"Host": b"\xff"}, {"Cookie": b"NAME=\xff"}),
    ],
)
def test_headers_that_are_none_are_refused_too(app, headers):
    (name,) = app.cookie
    headers = {key: told.replace(b"NAME", name.encode()) for key, told in headers.items()}
    assert httpx.get(app.url, headers=headers).status_code == 403


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/", "/static/js/textual.js", "/static/", "/download/x", "/ws"])
@pytest.mark.parametrize("token", [None, "", "wrong", "\u00fc", "known, at another path"])
def test_nobody_without_the_token_is_answered(app, path, token):
    if token == "known, at another path":
        if path == "/":
            return
        token = app.token
    asked = {} if token is None else {"token": token}
    answer = httpx.get(f"{app.url}{path}", params=asked, headers=UPGRADE | {"Origin": app.url})
    assert answer.status_code == 403
    assert app.token not in answer.text


@pytest.mark.slow
async def test_the_socket_opens_for_the_apps_own_page_alone(app):
    url = f"{app.url.replace('http', 'ws')}/ws"
    wrong = dict.fromkeys(app.cookie, "wrong")
    for cookies, origin in (
        (app.cookie, None), ({}, app.url), (wrong, app.url),
        (app.cookie, "http://localhost:1"), (app.cookie, "null"),
    ):  # fmt: skip
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookies=cookies, cookie_jar=jar) as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(url, **({"origin": origin} if origin else {}))
            assert refused.value.status == 403


@pytest.mark.slow
async def test_the_app_answers_behind_the_socket(app):
    url = f"{app.url.replace('http', 'ws')}/ws?width=100&height=30"
    jar = aiohttp.CookieJar(unsafe=True)
    async with (
        aiohttp.ClientSession(cookies=app.cookie, cookie_jar=jar) as session,
        session.ws_connect(url, origin=app.url) as ws,
    ):
        seen = await until(ws, b"acc +-90%")
        assert b"Recordings" in seen
        await ws.send_json(["stdin", "2"])
        await until(ws, b"problem 1 of 6")
        await ws.send_json(["stdin", "q"])
        async for message in ws:
            assert message.type is aiohttp.WSMsgType.BINARY
        assert ws.closed


async def until(ws, text):
    seen = b""
    while text not in seen:
        message = await ws.receive(timeout=120)
        assert message.type is aiohttp.WSMsgType.BINARY, message
        seen += message.data
    return seen


@pytest.mark.slow
def test_it_ends_while_a_page_is_open(folder):
    with served("--listen", "127.0.0.1:0", folder) as (url, _, process):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))):
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0


def test_the_command_is_one_for_any_folder():
    arguments = ["--present=a b", "--", "x; rm -rf ~", "$(id)", "'", "-q"]
    words = shlex.split(command_of(arguments))
    assert words[:2] == ["exec", sys.executable]
    assert words[-len(arguments) :] == arguments


def test_loopback():
    for host in ("localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"):
        assert is_loopback(host)
    for host in ("", "0.0.0.0", "gpu7", "127.0.0.1.evil.example", "::"):
        assert not is_loopback(host)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--listen", "8080"], 2, "--listen: says where --web serves"),
        (["--web", "--screenshot", "a.svg"], 2, "exclude each other"),
        (["--web", "--listen", "x"], 2, "write a port from 0 to 65535"),
        (["--web", "--listen", "203.0.113.1:0"], 1, "cannot listen there"),
        (["--web", "--keys", "absent.toml"], 2, "cannot be read"),
        (["--web", "--present", "absent"], 1, "absent: no such recording"),
        (["--present", "absent"], 1, "absent: no such recording"),
    ],
)
def test_wrong_use_is_one_line(run, arguments, code, message):
    assert message in run.refused("tui", *arguments, code=code)


@pytest.mark.slow
def test_without_the_extra_one_line_names_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "textual_serve.server", None)
    monkeypatch.delitem(sys.modules, "tui.app.web")
    code, _, err = run("tui", "--web")
    assert code == 1
    assert err.startswith("ttscope: --web needs textual-serve: ")
    assert "-m pip install" in err and "'textual-serve" in err and "ttscope[" not in err
