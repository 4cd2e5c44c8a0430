"""The guard of every listener, on a loop of its own, with sockets that attack it."""

import asyncio
import resource
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest

pytest.importorskip("aiohttp")

from aiohttp import web

from profiler.doors import guard as module
from profiler.doors.guard import Guard, Place, connections_of
from profiler.doors.site import SiteGuard, guarded, listen


@contextmanager
def serving(connections=8, idle_s=30.0):
    """Serve an application behind a guard in a thread; gives its URL and the guard."""
    ready, told = threading.Event(), {}

    async def answer(request):
        await asyncio.sleep(float(request.query.get("s", 0)))
        return web.Response(text="good")

    async def run():
        app = web.Application()
        app.router.add_get("/", answer)
        listening = listen("127.0.0.1", 0)
        made = SiteGuard(connections=connections, held_bytes=1000, idle_s=idle_s)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with guarded(app, listening, made, shutdown_s=0.5):
            port = listening.getsockname()[1]
            told.update(url=f"http://127.0.0.1:{port}", guard=made)
            told.update(end=lambda: loop.call_soon_threadsafe(ended.set))
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield told["url"], told["guard"]
    finally:
        told["end"]()
        thread.join(60)
        assert not thread.is_alive()


def opened(url, sent=b""):
    made = socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=30)
    made.sendall(sent)
    return made


def has_ended(connection):
    connection.settimeout(30)
    try:
        return not connection.recv(1)
    except ConnectionError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_who_has_waited_longest_gives_way(sent):
    with serving() as (url, guard), ExitStack() as stack:
        held = [stack.enter_context(opened(url, sent)) for _ in range(40)]
        for _ in range(3):
            assert httpx.get(url, timeout=30).text == "good"
        assert all(has_ended(each) for each in held[:30])
        assert len(guard._places) <= 8


def test_who_is_being_answered_gives_way_to_nobody():
    with serving(connections=2) as (url, guard), ExitStack() as stack:
        slow = [stack.enter_context(opened(url, b"GET /?s=1 HTTP/1.1\r\nHost: a\r\n\r\n"))]
        until = time.monotonic() + 30
        while not any(each.until is None for each in guard._places) and time.monotonic() < until:
            time.sleep(0.01)
        slow += [stack.enter_context(opened(url)) for _ in range(10)]
        slow[0].settimeout(30)
        assert slow[0].recv(1000).endswith(b"good")


def test_a_head_has_its_time_however_it_drips(monkeypatch):
    monkeypatch.setattr(module, "HEAD_S", 0.5)
    with serving() as (url, _), opened(url, b"GET / HTTP/1.1\r\nX: ") as connection:
        begun = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() < begun + 30:
                connection.sendall(b"x")
                time.sleep(0.05)
        assert 0.4 < time.monotonic() - begun < 30


def test_a_connection_that_is_kept_waits_for_its_next_request():
    with serving(idle_s=0.5) as (url, guard), httpx.Client(timeout=30) as asking:
        assert asking.get(url).text == "good"
        (place,) = guard._places
        assert place.served or place.until is not None
        until = time.monotonic() + 30
        while guard._places and time.monotonic() < until:
            time.sleep(0.05)
        assert not guard._places


def test_bytes_of_all_bodies_are_limited_and_those_of_work_stay():
    ended = []
    made = Guard(connections=9, held_bytes=100)
    places = [Place(lambda name=name: ended.append(name)) for name in "abc"]
    for place in places:
        assert made.admit(place)
        place.send_body()
    assert made.hold(places[0], 60)
    assert made.hold(places[1], 60)  # the first, which waits, gives way
    assert ended == ["a"]
    places[1].work()
    assert not made.hold(places[2], 60)
    assert ended == ["a"]
    places[1].rest()
    places[2].rest()
    assert made.hold(places[2], 60)


@pytest.mark.parametrize(
    ("files", "most", "taken"),
    [(1024, 1024, 448), (100, 1024, 1), (20_000, 1024, 1024), (resource.RLIM_INFINITY, 7, 7)],
)
def test_files_are_kept_free(monkeypatch, files, most, taken):
    limits = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.append(given))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert connections_of(most) == taken
    assert limits == [(files, files)]
