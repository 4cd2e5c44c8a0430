"""The decode steps of a sample that was drafted for: tokens forwarded and kept in each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def verify_steps(
    output_tokens: int, drafted: object, accepted: object
) -> tuple[Ints | None, Ints | None]:
    """Return tokens forwarded and kept per step after the prompt, or None when not recorded.

    The first token comes from the prompt's own step. Steps in which nothing was drafted are not
    recorded: they keep one token each and are spread evenly among the others, the first of them
    ahead. The last step is cut where the sample ended.
    """
    if output_tokens <= 1:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if not isinstance(accepted, list):
        return None, None
    kept = np.asarray(accepted, dtype=np.int64) + 1
    forwarded = (
        np.asarray(drafted, dtype=np.int64) + 1 if isinstance(drafted, list) else kept.copy()
    )
    if len(kept) != len(forwarded):
        return None, None
    wanted = output_tokens - 1
    total = int(kept.sum())
    if total < wanted:
        plain = np.ones(wanted - total, dtype=np.int64)
        place = np.concatenate(
            [(np.arange(len(kept)) + 0.5) / max(len(kept), 1), np.arange(len(plain)) / len(plain)]
        )
        order = np.argsort(place, kind="stable")
        return np.concatenate([forwarded, plain])[order], np.concatenate([kept, plain])[order]
    ends = np.cumsum(kept)
    count = int(np.searchsorted(ends, wanted)) + 1 if wanted else 0
    kept, forwarded = kept[:count].copy(), forwarded[:count].copy()
    if count:
        kept[-1] -= int(ends[count - 1]) - wanted
    return forwarded, kept
