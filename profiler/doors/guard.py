"""Who may keep a listener waiting, for how long, and with how many bytes.

Every connection has a place. When all places are taken, the connection that has kept us waiting
longest gives way to a new one: of those that have sent nothing good yet, else of the others. The
places are fewer than the files that the process may open, so that a recording can go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import hmac
import resource
import threading
import time
from collections.abc import Callable

HEAD_S, BODY_S, IDLE_S = 10.0, 30.0, 60.0  # for a head, a body, and until the next request
_M_MMAP_THRESHOLD = -3  # of malloc.h
_KEPT_FILES = 128  # of those that may be open: parts of a recording, logs, sockets that end


class Place:
    """One connection: until when it may keep us waiting, None while we work for it."""

    def __init__(self, end: Callable[[], None]) -> None:
        self.end = end
        self.since = time.monotonic()  # since when it waits for the next request
        self.until: float | None = self.since + HEAD_S
        self.served = False  # a request of it was taken
        self.held = 0  # bytes of its body
        self.refuse: Callable[[], None] | None = None  # what refuses a body that is on its way
        self.refused = False  # its body

    def wait(self, seconds: float) -> None:
        """Give it so long from now on."""
        self.until = time.monotonic() + seconds

    def send_body(self) -> None:
        """Wait for the body of its request."""
        self.wait(BODY_S)

    def work(self) -> None:
        """Have it wait for us."""
        self.until = None

    def rest(self, idle_s: float = IDLE_S) -> None:
        """Its request is answered: wait for the next one."""
        self.held, self.refused, self.since = 0, False, time.monotonic()
        self.wait(idle_s)


class Guard:
    """The places of one listener, and the bytes of all bodies that it holds."""

    def __init__(self, *, connections: int, held_bytes: int) -> None:
        self.connections, self.held_bytes = connections, held_bytes
        self._places: list[Place] = []
        self._changed = threading.Condition()

    def admit(self, place: Place, wait_s: float = 0.0) -> bool:
        """Give a new connection a place, after a moment in which we work; False: there is none."""
        with self._changed:
            if len(self._places) >= self.connections and not self._give_way():
                self._changed.wait_for(lambda: len(self._places) < self.connections, wait_s)
            if len(self._places) >= self.connections:
                return False
            self._places.append(place)
        return True

    def leave(self, place: Place) -> None:
        with self._changed:
            if place in self._places:
                self._places.remove(place)
            self._changed.notify()

    def hold(self, place: Place, count: int) -> bool:
        """Note so many more bytes of a body; False when there is no room for them."""
        with self._changed:
            if place.refused:
                return False
            place.held += count
            while sum(each.held for each in self._places) > self.held_bytes:
                if not self._give_way(but=place):
                    return False
        return True

    def _give_way(self, but: Place | None = None) -> bool:
        """End the connection that has kept us waiting longest.

        For the bytes of `but` it is one of those with a body, which is refused where that can be.
        """
        waiting = [each for each in self._places if each.until is not None and each is not but]
        if but is not None:
            waiting = [each for each in waiting if each.held]
        if not waiting:
            return False
        place = min(waiting, key=lambda each: (each.served, each.since))
        if but is not None and place.refuse is not None:
            place.refuse()
            place.refuse, place.refused, place.held = None, True, 0
            return True
        self._places.remove(place)
        place.end()
        return True

    def end_overdue(self) -> None:
        """End the connections whose time is over."""
        now = time.monotonic()
        with self._changed:
            for place in self._places:
                if place.until is not None and now > place.until:
                    place.end()

    def end_all(self) -> None:
        with self._changed:
            for place in self._places:
                place.end()


def bears(authorization: str | None, key: str) -> bool:
    """Whether a sender gives the key, in as much time whatever it gives."""
    scheme, _, given = (authorization or "").partition(" ")
    told = given.strip().encode("utf-8", "surrogateescape")
    return scheme.lower() == "bearer" and hmac.compare_digest(told, key.encode())


def connections_of(most: int, share: float = 0.5) -> int:
    """Return how many connections a listener may have, as a share of the files that may be open.

    Has the process open as many as it may, and keeps some of them free.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return most
    return max(min(most, int((files - _KEPT_FILES) * share)), 1)


def give_large_blocks_back() -> None:
    """Have the C library give large blocks back at once, where it can be asked to.

    By itself glibc keeps for every thread what that thread's largest body took.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 18)
