"""Steps that stand for all, so that the laws of a thousand long recordings fit in memory.

One step is taken of each stretch of neighbouring ones, at random within it: what changes over a run
is there in proportion, and no period of the workload is met in time with it. Recordings that
together hold no more than `MOST_STEPS` steps keep every one.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

MOST_STEPS: Final = 200_000  # steps of all recordings together


def most_of_each(counts: Sequence[int], most: int) -> int | None:
    """Return how many steps a recording keeps at most, None where all of them keep all.

    `counts` are the steps of each. Those with fewer keep theirs, the others share what is left, at
    least one each.
    """
    if sum(counts) <= most:
        return None
    left, rest = most, len(counts)
    for count in sorted(counts):
        if count * rest > left:
            break
        left, rest = left - count, rest - 1
    return max(left // rest, 1)


def places(rows: int, kept: int, name: str) -> Ints:
    """Return which of so many rows are kept, ascending, the same for the same `name`."""
    kept = min(max(kept, 1), rows)
    edges = np.linspace(0, rows, kept + 1).astype(np.int64)
    rng = np.random.default_rng([zlib.crc32(name.encode()), rows, kept])
    return np.asarray(rng.integers(edges[:-1], edges[1:]), dtype=np.int64)
