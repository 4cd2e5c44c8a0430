"""How much of a context layers with a sliding window, or with chunks, read.

The replay compiles `in_window` and `window_context`. A window of 0 is none there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def in_window(context: float, window: float, chunked: bool) -> float:
    """Return the tokens of a context that are read: its end, or its last chunk."""
    if window <= 0.0:
        return 0.0
    if chunked:
        return context - max(-(-context // window) - 1.0, 0.0) * window
    return min(context, window)


def window_context(before: float, tokens: float, window: float, chunked: bool) -> float:
    """Return the sum of `in_window` over the contexts before + 1 .. before + tokens."""
    if window <= 0.0:
        return 0.0
    after = before + tokens
    if chunked:
        low, high = before // window, after // window
        low_rest, high_rest = before - low * window, after - high * window
        full_chunks = window * (window + 1.0) / 2.0 * (high - low)
        return full_chunks + (high_rest * (high_rest + 1.0) - low_rest * (low_rest + 1.0)) / 2.0
    low, high = min(before, window), min(after, window)
    return (high * (high + 1.0) - low * (low + 1.0)) / 2.0 + window * (tokens - (high - low))


def read_until(
    context: npt.NDArray[np.float64], end: int | None, chunked: bool
) -> npt.NDArray[np.float64]:
    """Return what tokens read of the contexts 1 .. `context`, in all, in a window or all of it."""
    if end is None:
        return context * (context + 1.0) / 2.0
    if chunked:
        chunks = context // end
        rest = context - chunks * end
        return chunks * end * (end + 1.0) / 2.0 + rest * (rest + 1.0) / 2.0
    near: npt.NDArray[np.float64] = np.minimum(context, end)
    return near * (near + 1.0) / 2.0 + end * (context - near)
