"""Who occupied the engine: each step's time, shared among the samples it computed.

A step's time is shared by the tokens that were scheduled in it. Which tokens of a sample ran in
which step is known from its first and its last step: its uncached prompt in the first, its output
evenly over the steps after it. Samples that were cut into several prefills or preempted are
therefore shared approximately, but nothing is lost: the shares sum to the busy time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.statistics import Floats
from traces.window_cost import WindowCost


@dataclass(frozen=True)
class Shares:
    """Seconds of each sample, nan where its steps are not known, and the engine's busy seconds."""

    sample_s: Floats
    busy_s: float


def busy_seconds(steps: pl.DataFrame) -> Floats:
    """Return the busy time of each step in seconds; 0 for steps slowed by the profiler.

    That is the time since the end of the step before, or the step's own wall time where the
    engine had been idle.
    """
    time = pl.coalesce("interval_ns", "wall_ns").fill_null(0)
    profiled = pl.col("profiled").fill_null(False)
    busy = steps.select(pl.when(profiled).then(0).otherwise(time).cast(pl.Float64) / 1e9)
    return busy.to_series().to_numpy(writable=True)


def never_ran() -> pl.Expr:
    """Return whether a sample was cancelled before it was scheduled, so that it cost nothing.

    False for all where the engine does not tell when samples are scheduled, as a server does not.
    """
    scheduled = pl.col("scheduled").is_not_null() | pl.col("first_step").is_not_null()
    cancelled = pl.col("cancelled_by").is_not_null()
    nothing = pl.col("output_tokens").eq(0).fill_null(False)
    return cancelled & nothing & ~scheduled & scheduled.any()


def share_steps(
    steps: pl.DataFrame, samples: pl.DataFrame, cost: WindowCost | None = None
) -> Shares:
    """Share one engine's busy time among its samples, in the samples' order.

    With the `cost` of the profiler's windows the profiled steps count with what they would have
    taken, or where that is not known, with what they took.
    """
    if not steps["step"].is_sorted():
        steps = steps.sort("step")
    busy = busy_seconds(steps)
    if cost is not None:
        busy[cost.places] = np.where(cost.known, cost.usual_ns, cost.ended - cost.begun) / 1e9
    return Shares(share(busy, steps, samples), float(busy.sum()))


def share(amounts: Floats, steps: pl.DataFrame, samples: pl.DataFrame) -> Floats:
    """Share an amount of each step (seconds, joules; `steps` in order) among samples by tokens.

    Returns one number per sample, nan where its steps are not known, 0 where it never ran. The
    amounts of steps in which no sample of the recording ran (a warm-up, another client) are spread
    over all in proportion, so that the shares sum to the amounts. A sample in flight counts up to
    the last step.
    """
    numbers = steps["step"].to_numpy()
    unknown = np.full(samples.height, np.nan)
    if not steps.height or not samples.height:
        return unknown
    first, last = _step_range(numbers, steps["end"], samples)
    known = first >= 0
    if not known.any():
        return unknown
    first, last = first[known], np.maximum(last[known], first[known])
    prompt = _uncached(samples)[known]
    decoded = np.maximum(_floats(samples, "output_tokens")[known], 1.0) - 1.0
    span = last - first
    # A prompt served wholly from the cache still runs its last token, and a sample that ends in
    # its first step has nothing after it.
    opening = np.maximum(prompt, 1.0) + np.where(span == 0, decoded, 0.0)
    pace = np.where(span > 0, np.maximum(decoded, span) / np.maximum(span, 1), 0.0)
    tokens = _tokens_by_step(first, last, opening, pace, steps.height)
    # Of a million steps each array takes 8 MB: they are made in one another's place.
    rate = np.divide(amounts, tokens, out=tokens, where=tokens > 0)
    opened = opening * rate[first]
    total = np.cumsum(rate, out=rate)
    shares = opened + pace * (total[last] - total[first])
    attributed, whole = shares.sum(), amounts.sum()
    if attributed <= 0 < whole:  # it all went where none of them ran
        return unknown
    if attributed > 0:
        shares = shares * (whole / attributed)
    unknown[known] = shares
    unknown[samples.select(never_ran()).to_series().to_numpy()] = 0.0
    return unknown


def _tokens_by_step(
    first: NDArray[np.intp], last: NDArray[np.intp], opening: Floats, pace: Floats, steps: int
) -> Floats:
    change = np.zeros(steps + 1)
    np.add.at(change, first + 1, pace)
    np.add.at(change, last + 1, -pace)
    later = np.cumsum(change, out=change)[:steps]
    running = np.zeros(steps + 1, dtype=np.int32)
    np.add.at(running, first + 1, 1)
    np.add.at(running, last + 1, -1)
    later[np.cumsum(running, out=running)[:steps] == 0] = 0.0  # dust of rounding: nobody runs
    np.add.at(later, first, opening)
    return later


def _step_range(
    numbers: NDArray[np.int64], ends: pl.Series, samples: pl.DataFrame
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return positions of the first and last step of each sample, -1 where it never ran.

    Where the numbers were not recorded, the times say it: the first step is the one that ended
    next after the sample was scheduled, the last the one that had ended when the sample did.
    """
    highest = numbers.size - 1
    end_times = ends.fill_null(0).to_numpy()

    def find(number: str, time: str, ended: int) -> NDArray[np.intp]:
        by_number = np.searchsorted(numbers, samples[number].fill_null(0).to_numpy())
        times = samples[time].fill_null(0).to_numpy()
        by_time = np.maximum(np.searchsorted(end_times, times, side="right") - ended, 0)
        counted, timed = samples[number].is_not_null(), samples[time].is_not_null()
        position = np.where(counted.to_numpy(), by_number, by_time)
        return np.where((counted | timed).to_numpy(), np.minimum(position, highest), -1)

    first, last = find("first_step", "scheduled", 0), find("last_step", "end", 1)
    return first, np.where((last < 0) & (first >= 0), highest, last)


def _floats(frame: pl.DataFrame, column: str) -> Floats:
    return frame[column].cast(pl.Float64).fill_null(0.0).to_numpy()


def _uncached(samples: pl.DataFrame) -> Floats:
    return _floats(samples, "prompt_tokens") - _floats(samples, "cached_tokens")
