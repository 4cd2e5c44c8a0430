"""How many problems a second engines serve while problems never run out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from advisor.replay.result import Replayed
from advisor.replay.workload import ReplayWorkload
from traces.statistics import Floats

RESERVE: Final = 32  # samples that wait for each engine at least, so that it is full
STEPS: Final = 4  # or those of so many steps more: who comes during a step may wait for two
MORE: Final = 4.0  # times as many passes, while the problems of the start are not over
LONGER: Final = 1.5  # times as many, once they are
ENOUGH: Final = 1000  # problems, up to which each of their draws counts alike
SPAN: Final = 2.0  # times as long as the first problems take, without limits
MOST: Final = 200_000  # samples of a stream, unless fewer are less than two passes
HOPELESS: Final = 8.0  # times as many samples as that would not last as long as the first problems


def capacity_per_s(
    stream: Callable[[int], ReplayWorkload],
    serve: Callable[..., Replayed],
    *,
    problems: int,
    draws: int,
    engines: int,
    slots: int | None,
) -> float:
    """Return how many problems a second are served in a steady state.

    `stream` gives a workload that passes over the `problems` so many times, in the same order, the
    `draws` of their samples in turn. `serve` replays one on the `engines`, with a `reserve` or a
    `concurrency`. Problems come as fast as the engines take their samples, so that these are always
    full. What counts begins when all problems of the start are decided and is as long as whole
    passes: a full engine serves as many problems as its time is shared by. Without a limit on what
    runs, of `slots` on an engine, all problems are in flight. More than any stream has is none.
    """
    if slots is None or slots > MOST:
        return _of_all(stream, serve, problems)
    passes, pass_size = 2, problems * (draws if problems * draws <= ENOUGH else 1)
    while True:
        workload = stream(passes)
        turns = 1 + float(workload.verify_steps.mean())  # steps that a sample has its slot
        replayed = serve(workload, reserve=RESERVE + math.ceil(STEPS * slots / turns))
        begun = replayed.arrival_s
        decided = np.nan_to_num(begun + replayed.latency_s, nan=np.inf)
        first = float(decided[begun <= decided.min()].max())  # of those there before any ended
        start = int(np.searchsorted(begun, first))
        over = int(np.argmax(np.append(np.isinf(decided[start:]), True)))
        if counted := over // pass_size * pass_size:
            return engines / float(replayed.busy_share_s[start : start + counted].mean())
        more = LONGER if math.isfinite(first) else MORE
        if more * len(workload.prompt_tokens) > MOST and passes > 2:
            return _between(begun, decided, first)
        passes = math.ceil(passes * more)


def _between(begun: Floats, decided: Floats, first: float) -> float:
    """Return how many a second are decided after `first`, or a half, and before the last begins.

    As many as begin, where steps are so short that all are decided later.
    """
    start, end = float(begun.min()), float(begun.max())
    first = min(first, (start + end) / 2)
    if first == end:
        return math.inf
    served = np.sum((decided > first) & (decided <= end)) or np.sum(begun > first)
    return float(served) / (end - first)


def _of_all(
    stream: Callable[[int], ReplayWorkload], serve: Callable[..., Replayed], problems: int
) -> float:
    """Return the same with all problems in flight, from the first decisions to the last arrival."""
    passes = 2
    while True:
        workload = stream(passes)
        replayed = serve(workload, concurrency=problems)
        begun = replayed.arrival_s
        decided, end = begun + replayed.latency_s, float(begun.max())
        first, size = float(decided[begun <= 0].max()), len(workload.prompt_tokens)
        if end >= (1 + SPAN) * first or 2 * size > MOST:
            break
        start = float(begun.min())
        if (end - start) * MOST / size * HOPELESS < first - start:
            break
        passes *= 2
    return _between(begun, decided, first)
