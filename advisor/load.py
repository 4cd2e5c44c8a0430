"""What a replay is given (problems with their samples, an engine's limits) and gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advisor.cache import Prompt
from advisor.evidence import Sample

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Load:
    """One problem: its prompt, what of it other problems have in the cache, its samples."""

    prompt_tokens: int
    cached_tokens: int
    samples: Sequence[Sample]

    def prompt(self) -> Prompt:
        """Return what the cache holds for it."""
        return Prompt(
            tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            samples=len(self.samples),
            longest=max(map(self.longest, self.samples), default=self.prompt_tokens),
        )

    def longest(self, sample: Sample) -> int:
        """Return the most tokens that a sample comes to hold, drafts among them."""
        drafts = 0 if sample.scheduled is None else int(sample.scheduled.max(initial=0))
        return self.prompt_tokens + sample.output_tokens + drafts


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The scheduler's limits; None is no limit. `num_blocks` is what the cache can give out."""

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    num_blocks: int | None = None
    prefix_caching: bool = True
    speculative: bool = False


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What happened, in seconds of simulated time.

    `latency_s` [problems] from arrival to decision; `busy_share_s` [problems] of the engine's busy
    time, each step shared by tokens; `ttft_s` [samples] in the order of the problems; `totals`
    [FEATURES] over all steps; `peak` the most requests, tokens and context of a step.
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
