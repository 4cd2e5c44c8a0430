"""How confident a model was: DeepConf's lowest group confidence (Fu et al. 2025, 2508.15260).

A token's confidence is the negative mean of the log-probabilities of the k most probable tokens
at its place (eq. 2); a group's the mean over a sliding window of tokens (eq. 4); the lowest group
confidence is the least over all windows (eq. 6). It is high where the distribution is peaked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

import numpy as np


def token_confidences(top_logprobs: Iterable[Sequence[float]], k: int) -> list[float]:
    """Return one confidence per token from its log-probabilities, of which the k highest count."""
    highest = (sorted(place, reverse=True)[:k] for place in top_logprobs)
    return [-sum(place) / len(place) for place in highest if place]


def lowest_group(confidences: Sequence[float], window: int) -> float | None:
    """Return the lowest mean over windows of so many tokens, None without tokens.

    Fewer tokens than a window are one group.
    """
    if not confidences:
        return None
    size = min(window, len(confidences))
    sums = np.concatenate(([0.0], np.cumsum(confidences)))
    return float((sums[size:] - sums[:-size]).min() / size)


def finite(number: float | None) -> float | None:
    """Return the number, None where it is infinite or none: nothing was measured then."""
    return number if number is not None and isfinite(number) else None
