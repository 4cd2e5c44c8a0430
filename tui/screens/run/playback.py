"""Where one looks at in a recording's time: the cursor, the stretch that is shown, and the play."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from traces.errors import UsageError

WHOLE_S = 30.0  # that a whole recording takes at the speed it starts with
SLOWEST, FASTEST = 2.0**-10, 2.0**16
_LEAST_NS = 1_000_000  # of a stretch
_TIME = re.compile(r"(?:(\d+):)?(?:(\d+):)?(\d+(?:\.\d+)?)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Playback:
    """Times in unix nanoseconds: the whole from `start` to `end`, shown from `left` to `right`.

    `speed` is recorded seconds per second of play.
    """

    start: int
    end: int
    left: int
    right: int
    now: int
    speed: float = 1.0
    playing: bool = False

    @classmethod
    def over(cls, start: int, end: int) -> Playback:
        """Return the whole, the cursor at its start, at a speed that shows it in half a minute."""
        end = max(end, start + 1)
        speed = 2.0 ** round(math.log2(max((end - start) / 1e9, 1e-9) / WHOLE_S))
        return cls(
            start=start,
            end=end,
            left=start,
            right=end,
            now=start,
            speed=min(max(speed, SLOWEST), FASTEST),
        )

    def seek(self, time: int) -> Playback:
        """Move the cursor to a time; the stretch follows it."""
        now = min(max(time, self.start), self.end)
        length = self.right - self.left
        left = self.left
        if not left <= now <= left + length:
            left = min(max(now - length // 8, self.start), self.end - length)
        return replace(self, now=now, left=left, right=left + length)

    def move(self, columns: int, bins: int) -> Playback:
        """Move the cursor by columns of a chart of so many bins, to a bin's start."""
        place = self.column(bins) + columns
        length = self.right - self.left
        return self.seek(self.left - (-length * place // max(bins, 1)))

    def column(self, bins: int) -> int:
        return min((self.now - self.left) * bins // (self.right - self.left), bins - 1)

    def zoom(self, factor: float) -> Playback:
        """Show a stretch `factor` times as long, the cursor staying where it is on it."""
        length_of_run = self.end - self.start
        length = min(
            max(round((self.right - self.left) * factor), min(_LEAST_NS, length_of_run)),
            length_of_run,
        )
        share = (self.now - self.left) / (self.right - self.left)
        left = min(max(self.now - round(length * share), self.start), self.end - length)
        return replace(self, left=left, right=left + length)

    def show(self, start: int, end: int) -> Playback:
        """Show a stretch of the whole with a tenth of room, and put the cursor at its start."""
        room = max((end - start) // 20, 1)
        left, right = max(start - room, self.start), min(end + room, self.end)
        if right <= left:
            return self
        return replace(self, left=left, right=right, now=min(max(start, left), right))

    def whole(self) -> Playback:
        return replace(self, left=self.start, right=self.end)

    def toggle(self) -> Playback:
        """Play, from the start where it is at the end, or pause."""
        if not self.playing and self.now >= self.end:
            return replace(self.seek(self.start), playing=True)
        return replace(self, playing=not self.playing)

    def faster(self, factor: float) -> Playback:
        return replace(self, speed=min(max(self.speed * factor, SLOWEST), FASTEST))

    def tick(self, seconds: float) -> Playback:
        """Let time pass; at the end it pauses."""
        if not self.playing:
            return self
        moved = self.seek(self.now + round(seconds * self.speed * 1e9))
        return replace(moved, playing=moved.now < moved.end)

    def label(self) -> str:
        """Return the speed and whether it plays, such as `> x1/4`."""
        speed = f"x{self.speed:g}" if self.speed >= 1 else f"x1/{1 / self.speed:g}"
        return f"{'playing' if self.playing else 'paused'} {speed}"


@dataclass(frozen=True)
class Goto:
    """Where to go: a problem's number from 1, a step's, or seconds since the start."""

    what: str
    number: float


def parse_goto(text: str) -> Goto:
    """Return where `137`, `s48213` or `3:32.4` leads. Raises UsageError for anything else."""
    plain = text.strip().lower().replace(",", "")
    if plain.isdigit():
        return Goto("problem", int(plain))
    if plain[:1] == "p" and plain[1:].strip().isdigit():
        return Goto("problem", int(plain[1:]))
    if plain[:1] == "s" and plain[1:].strip().isdigit():
        return Goto("step", int(plain[1:]))
    match = _TIME.fullmatch(plain.removesuffix("s"))
    if match is None or (match[1] is None and not plain.endswith("s")):
        raise UsageError(
            f"{text}: give a problem as 137, a step as s48213, a time as 3:32 or 12.5s"
        )
    parts = [float(part) for part in match.groups() if part is not None]
    if any(part >= 60 for part in parts[1:]):
        raise UsageError(f"{text}: minutes and seconds end at 59. Write 2:39, not 1:99")
    return Goto("time", sum(part * 60**place for place, part in enumerate(reversed(parts))))
