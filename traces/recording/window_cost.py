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

from traces.statistics import Floats

ALIKE = 40  # steps nearest in time that say what a profiled one would have taken
FEWEST = 8
_NEAR = (1_000, 20_000)  # steps on either side among which steps alike are looked for
_FEWEST_OF_A_LINE = 16
_TOLERANCE = 0.15  # of tokens and requests, at least one
_LOAD = ("prefill_tokens", "decode_requests")

Times = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class WindowCost:
    """The profiled steps of one engine, in order, and what each cost.

    `begun` and `ended` are unix ns, `cost_ns` what a step took more than steps alike, nan where
    there are too few, and `sd_ns` the standard error of that. `places` are rows of the steps,
    `usual_ns` what they would have taken.
    """

    places: NDArray[np.intp]
    begun: Times
    ended: Times
    usual_ns: Floats
    sd_ns: Floats

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
        squares = self.sd_ns**2
        variance = self._until(until, squares) - self._until(since, squares)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)) / 1e9)

    def _until(self, times: Times, amounts: Floats) -> Floats:
        """Return the sum of the steps' amounts up to each time, a part of the one that it cuts."""
        if not self.begun.size:
            return np.zeros(times.size)
        amounts = np.where(self.known, amounts, 0.0)
        corners = np.column_stack([self.begun, self.ended]).ravel()
        total = np.cumsum(amounts)
        sums = np.column_stack([total - amounts, total]).ravel()
        origin = corners[0]  # unix ns have more digits than a float
        found: Floats = np.interp(
            (times - origin).astype(float), (corners - origin).astype(float), sums
        )
        return found


def _overlaps(begun: Times, ended: Times, since: Times, until: Times) -> NDArray[np.bool_]:
    return np.searchsorted(begun, until) > np.searchsorted(ended, since, side="right")


def window_cost(steps: pl.DataFrame) -> WindowCost:
    """Return what windows cost an engine's steps, which are in order."""
    if not steps["profiled"].any():
        none = np.zeros(0)
        times = none.astype(np.int64)
        return WindowCost(
            places=times.astype(np.intp), begun=times, ended=times, usual_ns=none, sd_ns=none
        )
    ended = steps["end"].fill_null(0).to_numpy().astype(np.int64)
    took = steps.select(pl.coalesce("interval_ns", "wall_ns")).to_series()
    known = (took.is_not_null() & steps["end"].is_not_null()).to_numpy()
    times = took.fill_null(0).to_numpy().astype(np.int64)
    profiled = steps["profiled"].fill_null(False).to_numpy()
    places = np.flatnonzero(profiled & known)
    load = steps.select(pl.col(name).fill_null(0) for name in _LOAD).to_numpy().astype(float)
    usual, sd = np.full(places.size, np.nan), np.full(places.size, np.nan)
    usable = known & ~profiled
    for index, place in enumerate(places if usable.any() else ()):
        for near in _NEAR:
            first = max(place - near, 0)
            others = first + np.flatnonzero(usable[first : place + near])
            told = _would_have_taken(load[place], place, load[others], others, times[others])
            if told is not None:
                usual[index], sd[index] = told
                break
    # A step begins no earlier than the one before has ended: intervals are between ends.
    begun = np.maximum(ended[places] - times[places], np.concatenate(([0], ended))[places])
    return WindowCost(places=places, begun=begun, ended=ended[places], usual_ns=usual, sd_ns=sd)


def _would_have_taken(
    own: Floats, place: int, load: Floats, places: NDArray[np.intp], times: Times
) -> tuple[float, float] | None:
    """Return the mean time of a step of this load by the others, and its standard error.

    By steps alike where there are some, else by a line through steps of its kind, between the
    smallest and the largest of them. A step's own time varies as those do: that is in the error.
    """
    kind = ((load > 0) == (own > 0)).all(axis=1)
    load, places, times = load[kind], places[kind], times[kind]
    slack = np.maximum(_TOLERANCE * own, own > 0)
    alike = np.flatnonzero((np.abs(load - own) <= slack).all(axis=1))
    if alike.size >= FEWEST:
        order = np.argsort(np.abs(places[alike] - place), kind="stable")[:ALIKE]
        sample = times[alike[order]].astype(float)
        return float(sample.mean()), float(sample.std(ddof=1) * np.sqrt(1 + 1 / sample.size))
    if times.size < _FEWEST_OF_A_LINE:
        return None
    if (own < load.min(axis=0)).any() or (own > load.max(axis=0)).any():
        return None
    design = np.column_stack([np.ones(times.size), load])
    found, *_ = np.linalg.lstsq(design, times.astype(float), rcond=None)
    rank = np.linalg.matrix_rank(design)
    residual = float(np.sqrt(((times - design @ found) ** 2).sum() / (times.size - rank)))
    at = np.concatenate(([1.0], own))
    leverage = float(at @ np.linalg.pinv(design.T @ design) @ at)
    return float(at @ found), residual * np.sqrt(1 + leverage)
