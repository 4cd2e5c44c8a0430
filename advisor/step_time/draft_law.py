"""The law of an engine with drafts of another length, from one that was recorded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl

from advisor.evidence.features import Features
from advisor.evidence.keys import law_key, learned_as
from advisor.step_time.fit import StepTimeModel
from advisor.step_time.law import StepLaw, non_negative_least_squares
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig

# These propose one token after another, so that a draft takes as long as it has tokens.
ONE_BY_ONE: Final = ("draft_model", "eagle", "eagle3", "mtp")


def draft_law(
    model: StepTimeModel, recordings: Sequence[Recording], engine: EngineConfig
) -> tuple[StepLaw, str | None]:
    """Return the law of an engine and what to say of it, None where it was recorded itself.

    Verifying is priced by its tokens and context, whatever k. What drafting takes goes with k for
    drafters that propose token after token, and is the same for lookup. Raises UsageError where no
    engine with drafts of that kind was recorded.
    """
    key, wanted = law_key(engine), engine.speculative
    if key in model.laws_ or wanted is None:
        return model.law(engine), None
    plain = dataclasses.replace(key, speculative=None)
    alike = [
        (drafts.num_speculative_tokens, other)
        for other in model.laws_
        if (drafts := other.speculative) is not None
        and (drafts.method, drafts.model) == (wanted.method, wanted.model)
        and dataclasses.replace(other, speculative=None) == plain
    ]
    if not alike:
        given = {name: value for name, value in wanted.to_json().items() if value is not None}
        raise UsageError(
            f"what a step of {engine.model} takes that verifies {wanted.method} drafts was never "
            f"recorded. A few problems are enough: ttscope record --model {engine.model} "
            f"--speculative '{json.dumps(given)}', then name that recording with --with"
        )
    k = wanted.num_speculative_tokens
    before, nearest = min(alike, key=lambda each: abs(each[0] - k))
    law = model.laws_[nearest]
    if wanted.method not in ONE_BY_ONE:
        return law, f"steps take what those with drafts of {before} took, and their tokens"
    seconds = Features(*law.seconds)
    launch, each = _drafting(recordings, nearest) or (seconds.draft_step, seconds.draft_requests)
    seconds = seconds._replace(
        draft_step=seconds.draft_step + (k / before - 1) * launch,
        draft_requests=seconds.draft_requests + (k / before - 1) * each,
    )
    return (
        dataclasses.replace(law, seconds=np.array(seconds)),
        f"drafting takes {k}/{before} of the time that it took with drafts of {before}",
    )


def _drafting(recordings: Sequence[Recording], engine: EngineConfig) -> tuple[float, float] | None:
    """Return the measured seconds of drafting per step and per request, None if not measured."""
    frames = [
        recording.steps.filter(
            pl.col("engine") == key, ~pl.col("profiled").fill_null(False)
        ).drop_nulls(["draft_ns", "decode_requests"])
        for recording in recordings
        for key, other in learned_as(recording.manifest.engines).items()
        if law_key(other) == engine
    ]
    steps = pl.concat([frame.select("draft_ns", "decode_requests") for frame in frames])
    if not steps.height:
        return None
    took = steps["draft_ns"].to_numpy() / 1e9
    took = np.minimum(took, 10 * np.median(took))  # stalls
    rows = np.column_stack([np.ones(len(took)), steps["decode_requests"].to_numpy()])
    launch, each = non_negative_least_squares(rows, took)
    return float(launch), float(each)
