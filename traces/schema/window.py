"""How much of a context layers with a sliding window, or with chunks, read.

The replay compiles both functions. A window of 0 is none.
"""

from __future__ import annotations


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
