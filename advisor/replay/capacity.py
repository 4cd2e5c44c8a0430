"""How many problems a second engines serve while problems never run out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from advisor.replay.result import Replayed
from advisor.replay.workload import Workload

RESERVE: Final = 32  # samples that wait for each engine, so that it is full
MORE: Final = 4.0  # times as many passes, while the problems of the start are not over
LONGER: Final = 1.5  # times as many, once they are
ENOUGH: Final = 1000  # problems, up to which each of their draws counts alike
SPAN: Final = 2.0  # times as long as the first problems take, without limits
MOST: Final = 200_000  # samples of a stream without limits


def capacity_per_s(
    stream: Callable[[int], Workload],
    serve: Callable[..., Replayed],
    *,
    problems: int,
    draws: int,
    engines: int,
    limited: bool,
) -> float:
    """Return how many problems a second are served in a steady state.

    `stream` gives a workload that passes over the `problems` so many times, the `draws` of their
    samples in turn. `serve` replays one on the `engines`, with a `reserve` or a `concurrency`.
    Problems come as fast as the engines take their samples, so that these are always full, and
    samples which a rule draws later run among those of new problems. Whole passes count that begin
    when all problems of the start are decided: a full engine serves as many problems as its time is
    shared by. Without a limit on what runs all problems are in flight.
    """
    if not limited:
        return _of_all(stream, serve, problems)
    passes, whole = 2, problems * (draws if problems * draws <= ENOUGH else 1)
    while True:
        replayed = serve(stream(passes), reserve=RESERVE)
        begun = replayed.arrival_s
        decided = np.nan_to_num(begun + replayed.latency_s, nan=np.inf)
        first = float(decided[begun <= decided.min()].max())  # of those there before any ended
        start = int(np.searchsorted(begun, first))
        over = int(np.argmax(np.append(np.isinf(decided[start:]), True)))
        if counted := over // whole * whole:
            return engines / float(replayed.busy_share_s[start : start + counted].mean())
        passes = math.ceil(passes * (LONGER if math.isfinite(first) else MORE))


def _of_all(
    stream: Callable[[int], Workload], serve: Callable[..., Replayed], problems: int
) -> float:
    """Return the same with all problems in flight.

    What counts is decided after the first are and before the last one begins.
    """
    passes = 2
    while True:
        workload = stream(passes)
        replayed = serve(workload, concurrency=problems)
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
