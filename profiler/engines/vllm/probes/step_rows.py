"""What the step probe saw, as columns of the `steps` table; runs on the writer's thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.recording.tables import COMPOSITION, TABLES, WINDOWED
from traces.schema.window import window_context

Contexts = list[int]
# Tokens of each request; those that ran before and, of them, those that come back after a
# preemption; context and tokens of each new one.
Work = tuple[dict[str, int], list[str], set[str], list[tuple[int, int]]]
Kept = tuple[list[int], list[int]]  # tokens drafted for each request, and how many it kept

# What a step computes: its tick (see below); how many requests ended since the step before was
# scheduled; how many were preempted; contexts of the requests that ran before, and their tokens
# until now; the work, None where it is one token for each of them.
Base = tuple[int, int, int, Contexts, Contexts, Work | None]
# What `schedule` leaves: start; requests that run and that wait; free blocks; how many steps were
# scheduled before this one, its tick; and its base or, where the same requests went on with one
# token each, that of the step with which they began.
Seen = tuple[int, int, int, int, int, Base]
# And with it, of the end: the time; requests that ended in the step; None in most steps, else CPU
# time, what was kept of drafts, and the time of drafting. Clocks are monotonic nanoseconds.
RawStep = tuple[Seen, int, int, tuple[int | None, Kept | None, int | None] | None]
NOTHING: Base = (0, 0, 0, [], [], None)
NOTHING_MORE = (None, None, None)

Composition = tuple[int, int, int, int, int, int, int, int, int]
COMPOSED = (*COMPOSITION, "max_context_tokens", "cached_prompt_tokens")


@dataclass
class StepRows:
    """Turns raw steps into rows, in their order.

    `usable_blocks` is the size of the KV cache in blocks; `left_over` how many requests had
    ended before the first step and are reported to it as finished. `window` is that of the model's
    layers, 0 where they read all of a context, and whether it is one of chunks.
    """

    engine_key: str
    unix_offset_ns: int
    usable_blocks: int
    left_over: int = 0
    window: tuple[int, bool] = (0, False)
    _step: int = 0  # number of the next
    _dropped: int = 0
    _last_end: int = 0
    _unfinished: int = 0  # requests after the last step

    def frame(
        self, raw: Sequence[RawStep], dropped: int = 0, toggled: Sequence[int] = ()
    ) -> pl.DataFrame:
        """Return a frame of the `steps` table, one row a step.

        Behind these steps `dropped` in all were lost. A profiler was off before the first step of
        `toggled`, on from there to the second, and so on.
        """
        first, self._step = self._step, self._step + len(raw) + dropped - self._dropped
        self._dropped = dropped
        if not raw:
            return pl.DataFrame(schema=TABLES["steps"])
        seen, ends, ended_in, mores = zip(*raw, strict=True)
        starts, *counts, bases = zip(*seen, strict=True)
        running, waiting, free, ticks = (np.array(values) for values in counts)
        start, end, finished = np.array(starts), np.array(ends), np.array(ended_in)
        cpu, kept, draft = zip(*(more or NOTHING_MORE for more in mores), strict=True)
        step = np.arange(first, first + len(raw))
        ended, preempted, composed = _composed(bases, ticks)
        before, left_over = _shifted(end, self._last_end), _shifted(finished, self.left_over)
        unfinished = np.maximum(running + waiting - finished, 0)
        idle = pl.Series(_shifted(unfinished, self._unfinished) == 0)
        self._last_end, self.left_over = int(end[-1]), int(finished[-1])
        self._unfinished = int(unfinished[-1])
        drafted, accepted = zip(*map(speculation, kept), strict=True)
        columns = {
            "step": step,
            "end": end + self.unix_offset_ns,
            "interval_ns": pl.Series(end - before).set(idle, None),
            "wall_ns": end - start,
            "cpu_ns": cpu,
            "gap_ns": pl.Series(start - before).set(idle, None),
            "running": running,
            "waiting": waiting,
            "kv_blocks": self.usable_blocks - free,
            "finished": finished,
            # What ended since the last update ended without it: it was aborted.
            "aborted": np.maximum(ended - left_over, 0),
            "preempted": preempted,
            "drafted": drafted,
            "accepted": accepted,
            "draft_ns": draft,
            "profiled": np.searchsorted(toggled, step, side="right") % 2 == 1,
            **dict(zip(COMPOSED, composed.T, strict=True)),
        }
        if self.window[0]:
            windowed = _windowed(bases, ticks, *self.window)
            columns |= dict(zip(WINDOWED, windowed.T, strict=True))
        else:
            columns |= dict.fromkeys(WINDOWED)
        schema = {name: TABLES["steps"][name] for name in columns}
        return pl.DataFrame(columns, schema=schema).with_columns(
            engine=pl.lit(self.engine_key), source=pl.lit("measured")
        )


def _shifted(values: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    """Return of each value the one before."""
    return np.concatenate(([first], values[:-1]))


def _composed(
    bases: Sequence[Base], ticks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return of each step the requests that ended before it, those preempted, its composition."""
    place: dict[int, int] = {}  # id of a base -> its row below; `bases` keeps them alive
    which = np.array([place.setdefault(id(base), len(place)) for base in bases])
    unique = [bases[index] for index in np.unique(which, return_index=True)[1]]
    age = ticks - np.array([base[0] for base in unique])[which]
    is_first = np.where(age == 0, 1, 0)
    composed = np.array([composition(*base[3:]) for base in unique])[which]
    grows = np.array([COMPOSED.index(name) for name in ("decode_kv_tokens", "max_context_tokens")])
    composed[:, grows[0]] += age * composed[:, COMPOSED.index("decode_requests")]
    composed[:, grows[1]] += age
    ended, preempted = (np.array([base[at] for base in unique])[which] * is_first for at in (1, 2))
    return ended, preempted, composed


def _windowed(
    bases: Sequence[Base], ticks: NDArray[np.int64], window: int, chunked: bool
) -> NDArray[np.int64]:
    """Return of each step what layers with a window read: [steps, WINDOWED]."""
    in_windows = np.zeros((len(bases), len(WINDOWED)), dtype=np.int64)
    first = 0
    while first < len(bases):
        last, base = first + 1, bases[first]
        while last < len(bases) and bases[last] is base:  # the same requests go on
            last += 1
        decodes, prefills = _requests(*base[3:])
        read = np.array([context + tokens for context, tokens in decodes], dtype=np.int64)
        reached = read + (ticks[first:last] - base[0])[:, None]
        within = (reached - 1) % window + 1 if chunked else np.minimum(reached, window)
        in_windows[first:last, 0] = within.sum(axis=1)
        if prefills:
            sums = (window_context(before, count, window, chunked) for before, count in prefills)
            in_windows[first:last, 1] = round(sum(sums))
        first = last
    return in_windows


def _requests(
    contexts: Contexts, produced: Contexts, work: Work | None
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return context and tokens of each request that decodes, and of each that prefills."""
    tokens: list[int] = [1] * len(contexts)
    resumed, prefills = [False] * len(contexts), list[tuple[int, int]]()
    if work is not None:
        scheduled, names, back, new = work
        tokens = [scheduled[name] for name in names]
        resumed, prefills = [name in back for name in names], list(new)
    decodes = list[tuple[int, int]]()
    for context, put_out, again, adds in zip(contexts, produced, resumed, tokens, strict=True):
        (prefills if put_out == 0 or again else decodes).append((context, adds))
    return decodes, prefills


def composition(contexts: Contexts, produced: Contexts, work: Work | None) -> Composition:
    """Return what a step computes, summed over its requests.

    The order is that of `COMPOSITION`, then the longest context and the prompt tokens found in the
    prefix cache.
    """
    count = len(contexts)
    if work is None and all(produced):  # nearly all steps, and sums run at C's speed
        return 0, 0, count, count, 0, sum(contexts) + count, 0, max(contexts) + 1, 0
    decodes, prefills = _requests(contexts, produced, work)
    read = [context + adds for context, adds in decodes]
    cached = sum(context for context, _ in (work[3] if work else ()))
    return (
        len(prefills),
        sum(count for _, count in prefills),
        len(decodes),
        sum(adds for _, adds in decodes),
        sum(context + count for context, count in prefills),
        sum(read),
        sum(count * context + count * (count + 1) // 2 for context, count in prefills),
        max([0, *read, *(context + count for context, count in prefills)]),
        cached,
    )


def speculation(kept: Kept | None) -> tuple[list[int] | None, list[int] | None]:
    """Return tokens drafted and accepted per position of one step, None when none was drafted."""
    if kept is None or not any(kept[0]):
        return None, None
    pairs = Counter(zip(*kept, strict=True)).items()
    positions = range(max(kept[0]))
    return (
        [sum(times for (size, _), times in pairs if size > place) for place in positions],
        [
            sum(times for (size, got), times in pairs if min(size, got) > place)
            for place in positions
        ],
    )
