"""What a replay is given (problems with their samples, an engine's limits) and gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advisor.evidence import ProblemRun, Sample

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Load:
    """One problem: its prompt, what of it other problems have in the cache, its samples.

    `prompt_blocks` name the prompt's blocks where they are told: equal names are equal prefixes.
    """

    prompt_tokens: int
    cached_tokens: int
    samples: Sequence[Sample]
    prompt_blocks: Sequence[int] = ()

    @classmethod
    def of(cls, problem: ProblemRun, samples: Sequence[Sample]) -> Load:
        """Return a recorded problem with some of its samples."""
        return cls(
            prompt_tokens=problem.prompt_tokens,
            cached_tokens=problem.cached_tokens,
            samples=samples,
            prompt_blocks=problem.prompt_blocks,
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The scheduler's limits; None is no limit. `num_blocks` is what the cache can give out."""

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    num_blocks: int | None = None
    prefix_caching: bool = True
    async_scheduling: bool = False
    speculative: bool = False


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What happened, in seconds of simulated time.

    Per problem: `latency_s` from arrival to decision; `busy_share_s` of the engines' busy time,
    each step shared by tokens; `right`, the share of right answers among those that led when it
    was decided, by the sample with index `decided_by`. Per sample, in the order of the problems:
    `ttft_s` from the problem's arrival, and when it was queued, first scheduled, gave its first
    token and ended, with NaN for what did not happen. `totals` [FEATURES] over all steps; `peak`
    the most requests, tokens and context of a step. `log` [leaps, LOG_COLUMNS] if it was kept.
    """

    latency_s: Floats
    busy_share_s: Floats
    ttft_s: Floats
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
    generated_tokens: Ints
    preempted: Ints
    cancelled: npt.NDArray[np.bool_]
    log: Floats | None
