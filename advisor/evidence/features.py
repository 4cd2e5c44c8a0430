"""What a step of the engine consists of: the features that its time is linear in.

The context read is `kv_tokens`: the sum over requests of the context each reads, a shared prompt
once per sample. `query_context` is the sum over tokens of the context each attends to; for
decoding requests that verify drafts it is taken as the mean number of tokens a request times the
context. What the process does between two steps for samples and problems that begin or end there
(steps.py) is counted in the step that comes after it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from traces.recording.tables import COMPOSITION

FEATURES: Final = (
    "step",  # 1
    "prefill_step",  # 1 when any request is in its prompt
    "draft_step",  # 1 when drafts are verified
    "requests",
    "prefill_requests",
    "draft_requests",  # decoding requests of a speculative engine
    "tokens",
    "kv_tokens",
    "query_context",
    "problem_starts",  # since the step before, as the next two
    "sample_starts",
    "sample_ends",
)
HOST_WORK: Final = FEATURES[-3:]
INDEX: Final = {name: number for number, name in enumerate(FEATURES)}


def composition_matrix(steps: pl.DataFrame, *, speculative: bool) -> npt.NDArray[np.float64]:
    """Return [steps, FEATURES] of rows of the steps table that have all of COMPOSITION.

    Columns of HOST_WORK that they lack are 0.
    """
    column = {name: steps[name].to_numpy().astype(float) for name in COMPOSITION}
    prefills, decodes = column["prefill_requests"], column["decode_requests"]
    drafting = decodes if speculative else np.zeros_like(decodes)
    host = [
        steps[name].to_numpy().astype(float) if name in steps.columns else np.zeros_like(decodes)
        for name in HOST_WORK
    ]
    per_request = column["decode_tokens"] / np.maximum(decodes, 1)
    return np.column_stack(
        [
            np.ones_like(prefills),
            (prefills > 0).astype(float),
            (drafting > 0).astype(float),
            prefills + decodes,
            prefills,
            drafting,
            column["prefill_tokens"] + column["decode_tokens"],
            column["prefill_kv_tokens"] + column["decode_kv_tokens"],
            column["prefill_query_context"] + column["decode_kv_tokens"] * per_request,
            *host,
        ]
    )
