"""What a server's front end takes of a request: tokenising, the way to the engine, and back.

vLLM's spans tell the time to the first token, and what of it the engine had the request waiting
and computing. The rest is the front end's part D and what was left of the step that ran as the
request came to the engine, which takes requests in between two steps. A replay has that wait as
well, so D alone is missing in it. D is at most the rest, and at least the rest less that whole
step. Where the engine was idle it is the rest. When a step ends does not depend on D, so D is
interval-censored, and its distribution is the one that makes the intervals most likely (B.W.
Turnbull, The empirical distribution function with arbitrarily grouped, censored and truncated
data, 1976). Each problem gets a D of that distribution, from its own interval.

With /metrics alone there is the mean of D: that of the rest, less half of a step while steps ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from advisor.evidence.runs import RecordedRun
from traces.live.numbers import ITL, PREFILL, QUEUE, RUNNING, TTFT, Window
from traces.live.watched import Windows, windows_for
from traces.recording.reader import Recording
from traces.statistics import Floats, Ints

POINTS = 96  # at which D may lie, evenly by logarithm
ROUNDS = 200  # of the expectation and the maximum
MOST = 4_000  # requests that the distribution is learned from
SHORTEST_S = 1e-5


def with_front_end(
    recording: Recording, runs: Sequence[RecordedRun], windows: Windows
) -> list[RecordedRun]:
    """Return runs of watched servers whose problems say what the front end took of each.

    A problem's is that of its sample that was queued first. They say nothing where neither spans
    nor /metrics tell it. Spans that do not say on which of several servers a request was have the
    mean step of all of their model.
    """
    timed_runs = []
    for run in runs:
        key = recording.engine_key(run.engine)
        if run.drawn:  # as they are drawn
            timed_runs.append(run)
            continue
        window = windows.get(key)
        step_s = _step_of(recording, run, windows) if window is None else _mean_step(window)
        each = _of_spans(recording, key, run, step_s)
        problems = {
            name: replace(problem, front_end_s=each.get(name, 0.0))
            for name, problem in run.problems.items()
        }
        timed_runs.append(replace(run, problems=problems))
    return timed_runs


def _step_of(recording: Recording, run: RecordedRun, windows: Windows) -> float:
    """Return the mean step of the servers of a model, else of all, in seconds; 0 for none."""
    every = [window for window in windows.values() if window is not None]
    for several in (windows_for(recording, windows, run.engine), every):
        steps = [step for window in several if (step := _mean_step(window))]
        if steps:
            return float(np.mean(steps))
    return 0.0


def _of_spans(recording: Recording, key: str, run: RecordedRun, step_s: float) -> dict[str, float]:
    """Return what was taken of each problem; `step_s` stands for steps that did not come."""
    samples = recording.samples.filter(pl.col("engine") == key).drop_nulls(["arrival", "queued"])
    first = samples.sort("queued").unique("problem_id", keep="first", maintain_order=True)
    first = first.filter(pl.col("problem_id").is_in(list(run.problems))).sort("arrival")
    if first.is_empty():
        return {}
    arrival, queued = (first[name].to_numpy().astype(np.int64) for name in ("arrival", "queued"))
    steps = recording.frame("steps", ("engine", "end", "interval_ns")).filter(
        pl.col("engine") == key, pl.col("end").is_not_null()
    )
    rest = np.maximum(queued - arrival, 0) / 1e9
    ran = _step_before(queued, steps.sort("end")) if len(steps) else np.full(len(rest), step_s)
    took = drawn_within(np.maximum(rest - ran, 0.0), rest)
    return dict(zip(first["problem_id"].to_list(), took.tolist(), strict=True))


def _step_before(queued: Ints, steps: pl.DataFrame) -> Floats:
    """Return the seconds of the step that ended as each request was queued; 0 for an idle engine.

    Infinite where it is not known. The front end sees the end of a step a little after it, so a
    step ends with the queueing if it ends less than half a step later.
    """
    ends = steps["end"].to_numpy().astype(np.int64)
    took = steps["interval_ns"].to_numpy().astype(float) / 1e9  # nan: idle before it
    usual = float(np.nanmedian(took)) if np.isfinite(took).any() else 0.0
    after = np.searchsorted(ends, queued + round(0.5e9 * usual), side="right")
    is_recorded = (after > 0) & (after < len(ends))
    place = np.clip(after, 1, max(len(ends) - 1, 1))
    ran = np.full(len(queued), np.inf)
    if len(ends) > 1:
        before = np.where(np.isnan(took[place - 1]), np.inf, took[place - 1])
        ran = np.where(np.isnan(took[place]), 0.0, before)
        ran = np.where(is_recorded, ran, np.inf)
    return ran


def drawn_within(low: Floats, high: Floats) -> Floats:
    """Return a value from within each interval, as their most likely distribution has them.

    Both in seconds, [requests]. The draws are the same each time.
    """
    most = float(high.max(initial=0.0))
    if most <= SHORTEST_S:
        return high.copy()
    points = np.geomspace(SHORTEST_S, most, POINTS)
    first, last = _places(points, low, high)
    rng = np.random.default_rng([len(high), POINTS])
    some = np.arange(len(high))
    if len(some) > MOST:
        some = np.sort(rng.choice(some, MOST, replace=False))
    share = _most_likely(first[some], last[some])
    upto = np.concatenate([[0.0], np.cumsum(share)])
    begin, mass = upto[first], upto[last + 1] - upto[first]
    wanted = begin + rng.random(len(high)) * mass
    place = np.clip(np.searchsorted(upto, wanted, side="right") - 1, first, last)
    place = np.where(mass > 0, place, last)
    return np.asarray(np.clip(points[place], low, high))


def _places(points: Floats, low: Floats, high: Floats) -> tuple[Ints, Ints]:
    """Return the first and the last point in each interval, the nearest where none is in it."""
    last = np.maximum(np.searchsorted(points, high * (1 + 1e-9), side="right") - 1, 0)
    first = np.minimum(np.searchsorted(points, low, side="left"), last)
    return first.astype(np.int64), last.astype(np.int64)


def _most_likely(first: Ints, last: Ints) -> Floats:
    """Return the share of each point, [POINTS], that makes the intervals most likely."""
    share = np.full(POINTS, 1.0 / POINTS)
    for _ in range(ROUNDS):
        upto = np.concatenate([[0.0], np.cumsum(share)])
        weight = 1.0 / np.maximum(upto[last + 1] - upto[first], 1e-300)
        change = np.zeros(POINTS + 1)
        np.add.at(change, first, weight)
        np.add.at(change, last + 1, -weight)
        share = share * np.cumsum(change)[:POINTS] / len(first)
        share = np.maximum(share, 0.0)
        share /= share.sum()
    return share


def _mean_step(window: Window) -> float:
    """Return the mean seconds of a step in which requests decoded, 0 where it is not told."""
    return _mean(window, ITL) or 0.0


def mean_front_end(window: Window) -> float:
    """Return the mean seconds that the front end took, 0 where /metrics does not tell it."""
    ttft, waited, computed = (_mean(window, name) for name in (TTFT, QUEUE, PREFILL))
    if ttft is None or waited is None or computed is None:
        return 0.0
    running = window.gauges[RUNNING]
    busy = float(np.nanmean(running > 0)) if np.isfinite(running).any() else 1.0
    return max(ttft - waited - computed - busy * _mean_step(window) / 2, 0.0)


def _mean(window: Window, name: str) -> float | None:
    histogram = window.histograms.get(name)
    count = 0.0 if histogram is None else float(histogram.counts.sum())
    if histogram is None or not count or np.isnan(histogram.sums).all():
        return None
    return float(np.nansum(histogram.sums)) / count
