"""The interval of one more run, from draws of a load and from what it takes on another day."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from traces.schema.estimate import Estimate
from traces.statistics import Z95


def of_one_more_run(
    value: float,
    unit: str,
    *,
    draws: Sequence[float],
    days: Sequence[float],
    most: float = math.inf,
    extrapolated: bool = False,
) -> Estimate:
    """Return a number with the interval of one more run of the same problems.

    `draws` are what such runs gave at the usual speed, and `days` how many times as much it is at
    the slow and the fast end. These add up as squares in logs. No interval without `days`.
    """
    plain = Estimate(value=value, unit=unit, extrapolated=extrapolated)
    if not days or value <= 0:
        return plain
    half = Z95 * float(np.std(draws, ddof=1)) / max(float(np.mean(draws)), 1e-12)
    moved = [math.log(max(each, 1e-12)) for each in (*days, 1.0)]
    low, high = (
        value * math.exp(sign * math.hypot(end, half))
        for sign, end in ((-1, min(moved)), (1, max(moved)))
    )
    return Estimate(
        value=value, low=low, high=min(high, most), unit=unit, extrapolated=extrapolated,
        of="fresh",
    )  # fmt: skip
