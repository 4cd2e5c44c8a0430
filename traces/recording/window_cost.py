"""What the profiler's windows cost the steps that they touched, and times without that cost.

A profiled step takes longer than it would have: the profiler starts before the first of a window,
slows all of them, and writes its trace behind the last. What a step would have taken is the mean of
steps alike that were not profiled, those nearest in time: of the same kind, and with about as many
prefill tokens and decoding requests. Where few are alike, a line through steps of its kind tells
it. The rest is cost. All of an engine stands still for it, so
that taking the cost between two moments out of the time between them gives the time of a run
without windows. Where too few steps are alike the cost is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.recording.tables import STEP_INTERVAL

ALIKE = 40  # steps nearest in time that say what a profiled one would have taken
FEWEST = 8
_NEAR = (1_000, 20_000)  # steps on either side among which steps alike are looked for
_FEWEST_OF_A_LINE = 16
_TOLERANCE = 0.15  # of tokens and requests, at least one
_LOAD = ("prefill_tokens", "decode_requests")

Times = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class WindowCost:
    """The profiled steps of one engine, in order, and what each cost.

    `begun` and `ended` are unix ns, `cost_ns` what a step took more than steps alike, nan where
    there are too few. `places` are rows of the steps, `usual_ns` what they would have taken. Its
    standard error has two parts: `own_sd_ns` is by how much a step's own time varies, and
    `alike_sd_ns` that of the mean of steps alike. Steps of one window have nearly the same ones, so
    that what is wrong there is wrong in all of them.
    """

    places: NDArray[np.intp]
    begun: Times
    ended: Times
    usual_ns: Floats
    own_sd_ns: Floats
    alike_sd_ns: Floats

    @cached_property
    def cost_ns(self) -> Floats:
        """What each step took more than steps alike."""
        return np.asarray((self.ended - self.begun) - self.usual_ns)

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        return np.isfinite(self.usual_ns)

    def unknown(self, since: Times, until: Times) -> NDArray[np.bool_]:
        """Tell of each stretch of time whether a step whose cost is not known was in it."""
        return _overlaps(self.begun[~self.known], self.ended[~self.known], since, until)

    def touched(self, since: Times, until: Times) -> NDArray[np.bool_]:
        """Tell of each stretch of time whether a profiled step was in it."""
        return _overlaps(self.begun, self.ended, since, until)

    def within_s(self, since: Times, until: Times) -> Floats:
        """Return the known cost in each stretch of time, seconds."""
        return (self._until(until, self.cost_ns) - self._until(since, self.cost_ns)) / 1e9

    def sd_within_s(self, since: Times, until: Times) -> Floats:
        """Return the standard error of `within_s`."""
        squares = self.own_sd_ns**2
        own_variance = self._until(until, squares) - self._until(since, squares)
        variance = np.maximum(own_variance, 0.0) + self._alike_between(since, until)
        return np.asarray(np.sqrt(variance) / 1e9)

    def _alike_between(self, since: Times, until: Times) -> Floats:
        """Return the variance of the means of steps alike: standard errors add up in a window."""
        if not self.places.size:
            return np.zeros(since.size)
        starts = np.flatnonzero(np.diff(self.places, prepend=-2) != 1)
        sds = np.where(self.known, self.alike_sd_ns, 0.0)
        whole = np.concatenate(([0.0], np.add.reduceat(sds, starts)))  # none, then each window
        before, squares = np.cumsum(whole) - whole, np.cumsum(whole**2)
        first, last = (
            np.searchsorted(self.begun[starts], each, side="right") for each in (since, until)
        )
        begun, ended = (self._until(each, self.alike_sd_ns) for each in (since, until))
        apart = (
            (whole[first] - (begun - before[first])) ** 2
            + (squares[last] - whole[last] ** 2 - squares[first])
            + (ended - before[last]) ** 2
        )
        return np.where(first == last, (ended - begun) ** 2, apart)

    def _until(self, times: Times, amounts: Floats) -> Floats:
        """Return the sum of the steps' amounts up to each time, a part of the one that it cuts."""
        if not self.begun.size:
            return np.zeros(times.size)
        amounts = np.where(self.known, amounts, 0.0)
        corners = np.column_stack([self.begun, self.ended]).ravel()
        total = np.cumsum(amounts)
        sums = np.column_stack([total - amounts, total]).ravel()
        origin = corners[0]  # unix ns have more digits than a float
        running_sums: Floats = np.interp(
            (times - origin).astype(float), (corners - origin).astype(float), sums
        )
        return running_sums


def _overlaps(begun: Times, ended: Times, since: Times, until: Times) -> NDArray[np.bool_]:
    return np.searchsorted(begun, until) > np.searchsorted(ended, since, side="right")


def window_cost(steps: pl.DataFrame) -> WindowCost:
    """Return what windows cost an engine's steps, which are in order."""
    if not steps["profiled"].any():
        none = np.zeros(0)
        times = none.astype(np.int64)
        return WindowCost(
            places=times.astype(np.intp),
            begun=times,
            ended=times,
            usual_ns=none,
            own_sd_ns=none,
            alike_sd_ns=none,
        )
    ended = steps["end"].fill_null(0).to_numpy().astype(np.int64)
    took = steps.select(STEP_INTERVAL).to_series()
    timed = (took.is_not_null() & steps["end"].is_not_null()).to_numpy()
    times = took.fill_null(0).to_numpy().astype(np.int64)
    profiled = steps["profiled"].fill_null(False).to_numpy()
    places = np.flatnonzero(profiled & timed)
    load = steps.select(pl.col(name).fill_null(0) for name in _LOAD).to_numpy().astype(float)
    usual, own_sd, alike_sd = np.full((3, places.size), np.nan)
    usable = timed & ~profiled
    for index, place in enumerate(places if usable.any() else ()):
        for near in _NEAR:
            first = max(place - near, 0)
            others = first + np.flatnonzero(usable[first : place + near])
            estimate = _would_have_taken(load[place], place, load[others], others, times[others])
            if estimate is not None:
                usual[index], own_sd[index], alike_sd[index] = estimate
                break
    # A step begins no earlier than the one before has ended: intervals are between ends.
    begun = np.maximum(ended[places] - times[places], np.concatenate(([0], ended))[places])
    return WindowCost(
        places=places,
        begun=begun,
        ended=ended[places],
        usual_ns=usual,
        own_sd_ns=own_sd,
        alike_sd_ns=alike_sd,
    )


def _would_have_taken(
    own: Floats, place: int, load: Floats, places: NDArray[np.intp], times: Times
) -> tuple[float, float, float] | None:
    """Return the mean time of a step of this load by the others, their sd, and that of the mean.

    By steps alike where there are some, else by a line through steps of its kind, between the
    smallest and the largest of them. A step's own time varies as those do.
    """
    kind = ((load > 0) == (own > 0)).all(axis=1)
    load, places, times = load[kind], places[kind], times[kind]
    slack = np.maximum(_TOLERANCE * own, own > 0)
    alike = np.flatnonzero((np.abs(load - own) <= slack).all(axis=1))
    if alike.size >= FEWEST:
        order = np.argsort(np.abs(places[alike] - place), kind="stable")[:ALIKE]
        sample = times[alike[order]].astype(float)
        sd = float(sample.std(ddof=1))
        return float(sample.mean()), sd, sd / np.sqrt(sample.size)
    if times.size < _FEWEST_OF_A_LINE:
        return None
    if (own < load.min(axis=0)).any() or (own > load.max(axis=0)).any():
        return None
    design = np.column_stack([np.ones(times.size), load])
    coefficients, *_ = np.linalg.lstsq(design, times.astype(float), rcond=None)
    rank = np.linalg.matrix_rank(design)
    residual = float(np.sqrt(((times - design @ coefficients) ** 2).sum() / (times.size - rank)))
    at = np.concatenate(([1.0], own))
    leverage = float(at @ np.linalg.pinv(design.T @ design) @ at)
    return float(at @ coefficients), residual, residual * np.sqrt(leverage)
