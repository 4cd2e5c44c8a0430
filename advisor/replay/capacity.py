"""How many problems a second engines serve while problems never run out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from advisor.replay.result import Replayed
from advisor.replay.workload import Workload

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SPAN: Final = 4.0  # times the longest stay of a sample in its engine that requests wait for
MORE: Final = 4  # times the problems of the last stream, where those were too few
MOST: Final = 40_000  # samples of a stream, more where the problems themselves have more


def capacity_per_s(
    stream: Callable[[int], Workload], serve: Callable[[Workload], Replayed]
) -> float:
    """Return how many problems a second are served in a steady state.

    `stream` gives a workload that passes over the problems so many times, `serve` replays one whose
    problems all wait from the start. While any wait, engines are as full as they can be, and as
    many requests get in as are done. This is the slope of those that got in over time, without the
    fresh engines of the start and the drain at the end: what the last long samples take says
    nothing about those that could be served beside them. Where no limit makes a request wait,
    it is what is served with the longest stream at once.
    """
    passes = 1
    while True:
        workload = stream(passes)
        replayed = serve(workload)
        rate, lasted = steady_rate(replayed, workload.first)
        samples = len(workload.prompt_tokens)
        if lasted >= SPAN or samples * MORE > MOST:
            break
        passes *= MORE
    if lasted >= 1:
        return rate
    engines = int(replayed.engine.max(initial=0)) + 1
    return (len(workload.first) - 1) * engines / replayed.busy_s


def steady_rate(replayed: Replayed, first: Ints) -> tuple[float, float]:
    """Return the problems that get in a second, and how long that was steady, in longest stays.

    `first` is each problem's first sample, as of a workload. The steady time begins when the
    first samples are done, and ends when an engine has no request left that waits.
    """
    ran = np.isfinite(replayed.scheduled_s)
    times, engine = replayed.scheduled_s[ran], replayed.engine[ran]
    longest = float(np.nanmax(replayed.end_s - replayed.scheduled_s))
    last = np.full(int(engine.max()) + 1, np.inf)
    for each in np.unique(engine):
        last[each] = times[engine == each].max()
    end = float(last.min())
    problem = np.repeat(np.arange(len(first) - 1), np.diff(first))[ran]
    share = 1 / np.bincount(problem)[problem]  # of its problem that a sample is
    order = np.argsort(times, kind="stable")
    times, got_in = times[order], np.cumsum(share[order])
    steady = (times >= longest) & (times <= end)
    if end <= longest or times[steady].min(initial=np.inf) >= end:
        return 0.0, 0.0
    return float(np.polyfit(times[steady], got_in[steady], 1)[0]), end / longest - 1
