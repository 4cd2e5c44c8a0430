"""How confident a model was: DeepConf's lowest group confidence (Fu et al. 2025, 2508.15260).

A token's confidence is the negative mean of the log-probabilities of the k most probable tokens
at its place (eq. 2); a group's the mean over a sliding window of tokens (eq. 4); the lowest group
confidence is the least over all windows (eq. 6). It is high where the distribution is peaked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

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


def log_probabilities(completion: Any, window: int | None) -> tuple[float | None, float | None]:
    """Return the mean log-probability of a vLLM CompletionOutput's tokens and its confidence.

    The confidence is the lowest over windows of `window` tokens. Both are None where flat
    log-probabilities were not asked for.
    """
    flat = completion.logprobs
    if flat is None or not completion.token_ids:
        return None, None
    mean = finite(completion.cumulative_logprob / len(completion.token_ids))
    if window is None:
        return mean, None
    # At each place the sampled token comes first, then the most probable ones.
    bounds = zip(flat.start_indices, flat.end_indices, strict=True)
    top = [flat.logprobs[start + 1 : end] for start, end in bounds]
    confidences = token_confidences(top, max(map(len, top)))
    return mean, finite(lowest_group(confidences, window))
