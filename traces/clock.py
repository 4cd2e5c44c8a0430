"""The one clock of a process: unix nanoseconds that never jump.

The wall clock is read once, when the process begins, and the monotonic clock counts on from there.
So a step of the wall clock, by hand or by a time server, changes no duration and no timeout. It is
noted in the recording.
"""

from __future__ import annotations

import time
from typing import Any

JUMP_NS = 500_000_000  # of the wall clock between two looks, from which it is noted
KIND = "clock"  # of the event

# The wall clock is read first, so that the largest of some readings is the nearest, and not ahead.
OFFSET_NS = max(time.time_ns() - time.monotonic_ns() for _ in range(5))


def now_ns() -> int:
    """Return the time, unix nanoseconds."""
    return OFFSET_NS + time.monotonic_ns()


class ClockWatch:
    """Notes jumps of the wall clock from when it is made on."""

    def __init__(self) -> None:
        self._ahead_ns = self._read()

    @staticmethod
    def _read() -> int:
        return time.time_ns() - now_ns()

    def drain(self) -> list[dict[str, Any]]:
        """Return a row of `events` where the wall clock has jumped since the last call."""
        ahead, before = self._read(), self._ahead_ns
        self._ahead_ns = ahead
        if abs(ahead - before) < JUMP_NS:
            return []
        seconds = (ahead - before) / 1e9
        where = "ahead" if seconds > 0 else "back"
        detail = f"the wall clock jumped {abs(seconds):,.1f} s {where}. The recorded times did not"
        return [{"time": now_ns(), "engine": None, "kind": KIND, "detail": detail}]
