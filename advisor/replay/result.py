"""What a replay gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from traces.statistics import Floats

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What happened, in seconds of simulated time.

    Per problem: `latency_s` from arrival to decision; `busy_share_s` of the engines' busy time,
    each step shared by tokens; `right`, the share of right answers among those that led when it
    was decided, by the sample with index `decided_by`. Per sample, in the order of the problems:
    `ttft_s` from the problem's arrival, `front_end_s`, what a server's front end took of it before
    the engine had it, and when it was queued, first scheduled, gave its first
    token and ended, with NaN for what did not happen. `totals` [FEATURES] over all steps; `peak`
    the most requests, tokens and context of a step. `log` [leaps] has records of LEAP, if kept.
    """

    latency_s: Floats
    busy_share_s: Floats
    ttft_s: Floats
    front_end_s: Floats
    makespan_s: float
    busy_s: float
    steps: int
    preemptions: int
    totals: Floats
    peak: dict[str, float]
    arrival_s: Floats
    right: Floats
    decided_by: Ints
    engine: Ints
    queued_s: Floats
    scheduled_s: Floats
    first_token_s: Floats
    end_s: Floats
    cached_tokens: Ints
    prompt_tokens: Ints
    generated_tokens: Ints
    preempted: Ints
    cancelled: npt.NDArray[np.bool_]
    log: npt.NDArray[np.void] | None
