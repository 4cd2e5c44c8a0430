"""What the step probe saw, as columns of the `steps` table; runs on the writer's thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.tables import COMPOSITION, TABLES

Contexts = list[int]
# Tokens of each request; those that ran before and, of them, those that come back after a
# preemption; context and tokens of each new one.
Work = tuple[dict[str, int], list[str], set[str], list[tuple[int, int]]]
Kept = tuple[list[int], list[int]]  # tokens drafted for each request, and how many it kept

# What `schedule` leaves of a step: vLLM's SchedulerOutput, the first nine of RAW and, behind the
# start, the CPU clock.
Begun = tuple[Any, int, int | None, int, int, int, int, int, Contexts, Contexts, Work | None]
RAW = (  # what one step leaves; clocks are monotonic nanoseconds
    "start",
    "running",
    "waiting",
    "free_blocks",
    "ended",  # requests, since the step before was scheduled
    "preempted",
    "contexts",  # of the requests that ran before
    "put_out",  # their tokens until now
    "work",  # None where the step is one token for each of them
    "step",
    "end",
    "cpu_ns",
    "idle_before",
    "finished",
    "kept",  # None where nothing was drafted
    "draft_ns",
    "profiled",
)
RawStep = tuple[Any, ...]

Composition = tuple[int, int, int, int, int, int, int, int, int]


@dataclass
class StepRows:
    """Turns raw steps into rows, in their order.

    `usable_blocks` is the size of the KV cache in blocks; `left_over` how many requests had
    ended before the first step and are reported to it as finished.
    """

    engine_key: str
    unix_offset_ns: int
    usable_blocks: int
    left_over: int = 0
    _last_end: int = 0

    def frame(self, raw: Sequence[RawStep]) -> pl.DataFrame:
        """Return a frame of the `steps` table, one row a step."""
        if not raw:
            return pl.DataFrame(schema=TABLES["steps"])
        seen = dict(zip(RAW, zip(*raw, strict=True), strict=True))
        start, end, ended, finished = (
            np.array(seen[name]) for name in ("start", "end", "ended", "finished")
        )
        before, left_over = _shifted(end, self._last_end), _shifted(finished, self.left_over)
        self._last_end, self.left_over = int(end[-1]), int(finished[-1])
        idle = pl.Series(seen["idle_before"])
        names = (*COMPOSITION, "max_context_tokens", "cached_prompt_tokens")
        composed = map(composition, seen["contexts"], seen["put_out"], seen["work"])
        drafted, accepted = zip(*map(speculation, seen["kept"]), strict=True)
        columns = {
            "step": seen["step"],
            "end": end + self.unix_offset_ns,
            "interval_ns": pl.Series(end - before).set(idle, None),
            "wall_ns": end - start,
            "cpu_ns": seen["cpu_ns"],
            "gap_ns": pl.Series(start - before).set(idle, None),
            "running": seen["running"],
            "waiting": seen["waiting"],
            "kv_blocks": self.usable_blocks - np.array(seen["free_blocks"]),
            "finished": finished,
            # What ended since the last update ended without it: it was aborted.
            "aborted": np.maximum(ended - left_over, 0),
            "preempted": seen["preempted"],
            "drafted": drafted,
            "accepted": accepted,
            "draft_ns": seen["draft_ns"],
            "profiled": seen["profiled"],
            **dict(zip(names, zip(*composed, strict=True), strict=True)),
        }
        schema = {name: TABLES["steps"][name] for name in columns}
        return pl.DataFrame(columns, schema=schema).with_columns(
            engine=pl.lit(self.engine_key), source=pl.lit("measured")
        )


def _shifted(values: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    """Return of each value the one before."""
    return np.concatenate(([first], values[:-1]))


def composition(contexts: Contexts, produced: Contexts, work: Work | None) -> Composition:
    """Return what a step computes, summed over its requests.

    The order is that of `COMPOSITION`, then the longest context and the prompt tokens found in the
    prefix cache.
    """
    count = len(contexts)
    if work is None:  # nearly all steps, and sums run at C's speed
        if all(produced):
            return 0, 0, count, count, 0, sum(contexts) + count, 0, max(contexts) + 1, 0
        tokens: list[int] = [1] * count
        resumed, prefills = [False] * count, list[tuple[int, int]]()
    else:
        scheduled, names, back, new = work
        tokens = [scheduled[name] for name in names]
        resumed, prefills = [name in back for name in names], list(new)
    cached = sum(context for context, _ in prefills)
    decode_requests = decode_tokens = decode_kv = longest = 0
    for context, put_out, again, adds in zip(contexts, produced, resumed, tokens, strict=True):
        if put_out == 0 or again:
            prefills.append((context, adds))
            continue
        decode_requests += 1
        decode_tokens += adds
        decode_kv += context + adds
        longest = max(longest, context + adds)
    return (
        len(prefills),
        sum(count for _, count in prefills),
        decode_requests,
        decode_tokens,
        sum(context + count for context, count in prefills),
        decode_kv,
        sum(count * context + count * (count + 1) // 2 for context, count in prefills),
        max([longest, *(context + count for context, count in prefills)]),
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
