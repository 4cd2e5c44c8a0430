"""Which of an engine's recorded steps a window of its profiler holds.

A trace has the engine's steps one after another, each with its batch in its mark, and so has the
recording. One offset puts one onto the other. An offset is possible where

- no step is recorded before the trace says that its work was done,
- the first one is recorded no later than the first after the start of the profiler was answered:
  steps that ended before were handed to the front end before that answer was. As many batches as
  the engine keeps under way beside may still come between,
- every batch is the same: requests and tokens, and the context read where the mark tells it.

Where the clocks cannot be compared (steps that an engine published by itself) only context that was
measured counts, since running sums of it may be off by an aborted request's. Where one offset is
left the steps are known. Where several are, they are not: batches that are alike are not told apart
by a guess.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from traces.kineto.steps import TraceStep

KEPT = 20_000  # steps of an engine that are remembered
CLOCK_NS = 2_000_000  # that the clocks of a trace and of a front end on one host may be apart
COARSE_NS = 10_000_000_000  # around a window, where clocks cannot be compared
UNDER_WAY = 2  # batches beside the one that runs, of an engine that schedules ahead
NONE_CAME = "no steps of this engine were received"
NO_MARKS = "the trace does not say where steps begin"
NONE_ALIKE = "no steps with these batches were received then"
Row = dict[str, Any]
_BATCH = ("prefill_requests", "prefill_tokens", "decode_requests", "decode_tokens")
_NEEDED = ("step", "end", *_BATCH, "decode_kv_tokens", "prefill_kv_tokens", "source")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """When a window was asked for, and answered, and ended, unix ns of our clock.

    `under_way` is how many batches the engine may have handed out already when it starts.
    """

    begun: int
    answered: int
    ended: int
    under_way: int = UNDER_WAY


class SeenSteps:
    """The newest recorded steps of one engine, rows of `steps` in their order."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque(maxlen=KEPT)
        self._error_ns: int | None = None
        self._lock = threading.Lock()

    def add(self, row: Row, error_ns: int | None) -> None:
        """Remember a step.

        `error_ns` is how far its clock may be from ours, None where its end is not the time at
        which the server's front end saw it.
        """
        kept = {name: row.get(name) for name in _NEEDED}
        with self._lock:
            self._rows.append(kept)
            self._error_ns = error_ns

    @property
    def until(self) -> int:
        """The end of the newest step, unix ns."""
        return self._rows[-1]["end"] if self._rows else 0

    def holding(
        self, steps: Sequence[TraceStep], offset_ns: int | None, opened: Opened
    ) -> range | str:
        """Return the numbers of the steps that a trace has, or why they are not known.

        `offset_ns` makes unix nanoseconds of the trace's times, None where it does not say.
        """
        with self._lock:
            rows, count = list(self._rows), len(steps)
        if not rows:
            return NONE_CAME
        if not steps:
            return NO_MARKS
        places = self._possible(rows, steps, offset_ns, opened)
        places = [at for at in places if _one_after_another(rows[at : at + count])]
        left = [at for at in places if _alike(rows[at : at + count], steps, context=False)]
        measured = offset_ns is None or self._error_ns is None
        exact = [
            at
            for at in left
            if _alike(rows[at : at + count], steps, context=True)
            and not (measured and rows[at].get("prefill_kv_tokens") is None)
        ]
        left = exact or left
        if not left:
            return NONE_ALIKE
        first, last = rows[left[0]]["step"], rows[left[-1] + count - 1]["step"]
        if len(left) > 1:
            return f"{count} of the steps {first:,} to {last:,}, which have the same batches"
        return range(first, last + 1)

    def _possible(
        self,
        rows: Sequence[Row],
        steps: Sequence[TraceStep],
        offset_ns: int | None,
        opened: Opened,
    ) -> Sequence[int]:
        """Return where the first step may be, by the clocks."""
        ends = [row["end"] for row in rows]
        error = self._error_ns
        if offset_ns is None or error is None:
            low = bisect_left(ends, opened.begun - COARSE_NS)
            high = bisect_right(ends, opened.ended + COARSE_NS)
            return range(low, min(high, len(rows) - len(steps) + 1))
        done = [max(each.end_ns, each.last_kernel_ns or 0) + offset_ns - error for each in steps]
        latest = bisect_right(ends, opened.answered + error) + opened.under_way
        low = bisect_left(ends, done[0])
        return [
            at
            for at in range(low, min(latest, len(rows) - len(steps)) + 1)
            if all(ends[at + i] >= each for i, each in enumerate(done))
        ]


def _one_after_another(rows: Sequence[Row]) -> bool:
    return all(row["step"] == rows[0]["step"] + i for i, row in enumerate(rows))


def _alike(rows: Sequence[Row], steps: Sequence[TraceStep], *, context: bool) -> bool:
    """Whether each batch is that of the row beside it, as far as both say it."""
    return all(_same(each, row, context=context) for each, row in zip(steps, rows, strict=True))


def _same(step: TraceStep, row: Row, *, context: bool) -> bool:
    if context:
        read = step.mark.decode_kv_tokens
        return read is not None and read == row.get("decode_kv_tokens")
    pairs = [(getattr(step.mark, name), row.get(name)) for name in _BATCH]
    measured = [(told, own) for told, own in pairs if told is not None and own is not None]
    if row.get("source") == "inferred":
        # A front end sees the requests that got a token, and a prefill when it ends.
        return all(own <= told for told, own in measured)
    return all(own == told for told, own in measured)
