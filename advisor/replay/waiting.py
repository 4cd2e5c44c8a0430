"""Who waited for whom: what a problem's time was spent on, and which others held its slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from advisor.replay.result import Replayed
from traces.schema.record import Record
from traces.statistics import Ints


@dataclass(frozen=True, kw_only=True)
class Waited(Record):
    """A problem, by the sample that decided it: seconds in the queue, in its prompt, decoding.

    `before_s` is the time until that sample was drawn, when a rule draws one after another.
    `behind` are the problems that ran most while it queued, with the seconds that their samples
    held slots of its engine in that time.
    """

    problem_id: str
    latency_s: float
    before_s: float
    queued_s: float
    prefill_s: float
    decode_s: float
    preemptions: int
    behind: tuple[tuple[str, float], ...]


def longest_waits(
    replayed: Replayed, first: Sequence[int], problem_ids: Sequence[str]
) -> list[Waited]:
    """Return the five problems whose deciding sample queued longest, the longest first.

    `first` [problems + 1] are their first samples.
    """
    starts = np.asarray(first, dtype=np.int64)
    deciding = starts[:-1] + replayed.decided_by
    queue = replayed.scheduled_s[deciding] - replayed.queued_s[deciding]
    order = [p for p in _longest_first(queue) if queue[p] > 0][:5]
    owner = np.repeat(np.arange(len(problem_ids)), np.diff(starts))
    waits = []
    for p in order:
        s = int(deciding[p])
        begun, scheduled = replayed.queued_s[s], replayed.scheduled_s[s]
        first_token, end = replayed.first_token_s[s], replayed.end_s[s]
        waits.append(
            Waited(
                problem_id=problem_ids[p],
                latency_s=float(replayed.latency_s[p]),
                before_s=float(begun - replayed.arrival_s[p]),
                queued_s=float(scheduled - begun),
                prefill_s=float(first_token - scheduled),
                decode_s=float(end - first_token),
                preemptions=int(replayed.preempted[s]),
                behind=_behind(replayed, owner, int(p), s, problem_ids),
            )
        )
    return waits


def _behind(
    replayed: Replayed, owner: npt.NDArray[np.int64], p: int, s: int, problem_ids: Sequence[str]
) -> tuple[tuple[str, float], ...]:
    low, high = replayed.queued_s[s], replayed.scheduled_s[s]
    held = np.minimum(replayed.end_s, high) - np.maximum(replayed.scheduled_s, low)
    here = (replayed.engine == replayed.engine[s]) & (owner != p) & (held > 0)
    seconds = np.bincount(owner[here], weights=held[here], minlength=len(problem_ids))
    most = _longest_first(seconds)[:3]
    return tuple((problem_ids[i], float(seconds[i])) for i in most if seconds[i] > 0)


def _longest_first(seconds: npt.NDArray[Any]) -> Ints:
    """Return places, of times that are equal to a nanosecond, as a recording has them, in order."""
    return np.argsort(-np.rint(seconds * 1e9), kind="stable")
