"""How many problems a second engines serve while problems never run out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from advisor.replay.result import Replayed
from advisor.replay.workload import Workload

FULL: Final = 4  # times the room of the engines: some of a problem's samples end before its others
SPAN: Final = 2.0  # times as long as the first problems take, for the rest to count
MOST: Final = 200_000  # samples of a stream, more where two passes have more


def capacity_per_s(
    stream: Callable[[int], Workload],
    serve: Callable[[Workload, int], Replayed],
    *,
    problems: int,
    at_once: int,
    slots: int | None,
) -> float:
    """Return how many problems a second are served in a steady state.

    `stream` gives a workload that passes over the `problems` so many times, `serve` replays one
    with so many of its problems in flight. A problem begins with `at_once` samples, and the engines
    run `slots` at a time. So many problems are in flight that the engines stay full, and that
    samples which a rule draws later run among those of new problems. Where `slots` is None all
    problems are in flight. What counts is decided after the first problems are and before the last
    one begins: neither a fresh start nor the drain of a few long samples tells what is served.
    """
    in_flight = problems if slots is None else math.ceil(FULL * slots / at_once)
    passes = max(math.ceil(2 * in_flight / problems), 2)
    while True:
        workload = stream(passes)
        replayed = serve(workload, in_flight)
        begun = replayed.arrival_s
        decided, end = begun + replayed.latency_s, float(begun.max())
        first = float(decided[begun <= 0].max())
        if end >= (1 + SPAN) * first or 2 * len(workload.prompt_tokens) > MOST:
            break
        passes *= 2
    if end <= 0:
        return len(begun) / float(decided.max())
    first = min(first, end / 2)
    return float(np.sum((decided > first) & (decided <= end))) / (end - first)
