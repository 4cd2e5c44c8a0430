"""The features of a step: what its time is linear in.

All there is to say of a feature stands here: its name and place, how it follows from a step's work,
what a unit of it asks of the hardware, what it costs where no steps tell, and the words for it. To
add one, give it a field of `Features` and a line in `features_of`, `demands`, `STEEP` and `PARTS`.
Where it needs a sum over requests that `Work` lacks, `Work` gets a field of the name of its column
in the steps table, and the replay keeps that sum: of requests that decode in
advisor/replay/simulation/requests.py, of prompts in scheduling.py beside it.
"""

from __future__ import annotations

from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from traces.recording.tables import COMPOSITION, WINDOWED
from traces.schema.engine import EngineConfig, ModelFacts
from traces.schema.window import in_window, window_context

Value = TypeVar("Value")


class Work(NamedTuple, Generic[Value]):
    """What a step computes, summed over its requests: numbers, or arrays [steps].

    The fields are columns of the steps table (`COMPOSITION` in traces/recording/tables.py).
    """

    prefill_requests: Value
    prefill_tokens: Value
    decode_requests: Value
    decode_tokens: Value
    prefill_kv_tokens: Value  # the context that each reads; a shared prompt counts once per sample
    decode_kv_tokens: Value
    prefill_query_context: Value  # sum over tokens of the context that each attends to
    decode_window_tokens: Value  # of `decode_kv_tokens`, what layers with a window read
    prefill_window_context: Value  # of `prefill_query_context`, the same


class Reads(NamedTuple):
    """What of a model decides how much a step reads, beside its size (`reads_of`).

    `experts` is the share of its experts that a token visits, `window` the tokens after which some
    of its layers read no more of a context, `chunked` whether they begin again there. 0 where there
    are none.
    """

    experts: float = 0.0
    window: float = 0.0
    chunked: bool = False


ALL: Final = Reads()  # every weight, and the whole context


class Features(NamedTuple, Generic[Value]):
    """One value per feature: of a step, of many steps (a sum or a matrix's columns), or of a law.

    The last three are the work of the process between two steps (steps.py). It counts in the step
    that comes after it.
    """

    step: Value  # 1
    prefill_step: Value  # 1 where any request is in its prompt
    draft_step: Value  # 1 where drafts are verified
    requests: Value
    prefill_requests: Value
    draft_requests: Value  # decoding requests of a speculative engine
    tokens: Value
    experts: Value  # share of the experts that any token visits, where each one's choice is uniform
    kv_tokens: Value  # context read
    query_context: Value  # sum over tokens of the context that each attends to
    window_tokens: Value  # of decoding requests' context, what layers with a window read
    window_context: Value  # sum over tokens of what each attends to in a window
    problem_starts: Value  # since the step before, as the next two
    sample_starts: Value
    sample_ends: Value


FEATURES: Final = Features._fields
HOST_WORK: Final = ("problem_starts", "sample_starts", "sample_ends")
ZERO: Final = Features(*np.zeros(len(FEATURES)).tolist())
PARTS: Final = {  # what a step's time goes to; one model cannot tell launches from weights
    "a fixed part (launches and reading the weights)": ("step", "prefill_step"),
    "drafting": ("draft_step", "draft_requests"),
    "work per request": ("requests", "prefill_requests"),
    "work per token": ("tokens",),
    "reading the experts that a batch visits": ("experts",),
    "reading and attending to the context": (
        *("kv_tokens", "query_context", "window_tokens", "window_context"),
    ),
    "the recorder's own work": HOST_WORK,
}

# Between which a feature's cost is taken to lie where no steps tell it, in times of a step's fixed
# part: much comes with each step and little with each request, or the other way round. GPUs read
# weights for many requests at once (benchmarks/RESULTS.md, "One recording alone").
FLAT: Final = ZERO._replace(
    step=1.0,
    prefill_step=1.0,
    draft_step=1.0,
    requests=0.001,
    tokens=0.001,
    problem_starts=0.5,
)
STEEP: Final = ZERO._replace(
    step=1.0,
    requests=0.03,
    prefill_requests=0.2,
    draft_requests=0.03,
    tokens=0.03,
    experts=1.0,
    kv_tokens=1e-4,
    query_context=1e-4,
    window_tokens=1e-4,
    window_context=1e-4,
    sample_starts=0.15,
    sample_ends=0.15,
)
STEEP_ON_GPU: Final = STEEP._replace(
    requests=0.01,
    draft_requests=0.01,
    tokens=0.01,
    kv_tokens=2e-5,
    query_context=2e-5,
    window_tokens=2e-5,
    window_context=2e-5,
)


# Features that cost an engine nothing in which they never were.
UNSEEN: Final = (*HOST_WORK, "draft_step", "draft_requests")


def features_of(work: Work[Any], speculative: bool, experts: float) -> Features[Any]:
    """Return the features of a step, or of steps [steps], without HOST_WORK.

    The replay compiles this function too. Requests that verify drafts are taken to have the same
    number of tokens each, so that their `query_context` is that number times their context. Where
    each token visits k of E experts, T tokens visit E (1 - (1 - k/E)^T), and `experts` is k/E.

    What a prompt reads of the cache in a window is no feature: it is in proportion to its tokens,
    but for at most a window's worth.
    """
    decodes = work.decode_requests
    per_request = work.decode_tokens / (decodes + (decodes == 0))
    drafting = decodes * speculative
    tokens = work.prefill_tokens + work.decode_tokens
    return Features(
        step=1.0,
        prefill_step=(work.prefill_requests > 0) * 1.0,
        draft_step=(drafting > 0) * 1.0,
        requests=work.prefill_requests + decodes,
        prefill_requests=work.prefill_requests,
        draft_requests=drafting,
        tokens=tokens,
        experts=1.0 - (1.0 - experts) ** tokens,
        kv_tokens=work.prefill_kv_tokens + work.decode_kv_tokens,
        query_context=work.prefill_query_context + work.decode_kv_tokens * per_request,
        window_tokens=work.decode_window_tokens,
        window_context=work.prefill_window_context + work.decode_window_tokens * per_request,
        problem_starts=0.0,
        sample_starts=0.0,
        sample_ends=0.0,
    )


def work_planned(engine: Any) -> Work[float]:
    """Return what a replayed engine's planned step computes, or the first of its steps.

    `engine` has the sums of `ENGINE` (advisor/replay/simulation/state.py). Compiled for the replay,
    as the next two functions.
    """
    return Work(
        float(engine.prefill_requests),
        float(engine.prefill_tokens),
        float(engine.decode_requests + engine.drain_decode_requests),
        engine.decode_tokens + engine.drain_decode_tokens,
        engine.prefill_kv_tokens,
        engine.decode_kv_tokens + engine.drain_decode_kv_tokens,
        engine.prefill_query_context,
        engine.decode_window_tokens + engine.drain_decode_window_tokens,
        engine.prefill_window_context,
    )


def mean_of(work: Work[float], steps: int, growth: float, window_growth: float) -> Work[float]:
    """Return the mean of decoding steps, the first with this work, whose context read grows so."""
    return Work(
        work.prefill_requests,
        work.prefill_tokens,
        work.decode_requests,
        work.decode_tokens,
        work.prefill_kv_tokens,
        work.decode_kv_tokens + (steps - 1) / 2 * growth,
        work.prefill_query_context,
        work.decode_window_tokens + (steps - 1) / 2 * window_growth,
        work.prefill_window_context,
    )


def work_in(row: npt.NDArray[np.float64]) -> Work[float]:
    """Return an array of the fields of `Work` by name."""
    return Work(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8])


def work_of_steps(steps: pl.DataFrame, reads: Reads = ALL) -> Work[npt.NDArray[np.float64]]:
    """Return the work of steps, or of means of them, that have all of COMPOSITION, [steps] a field.

    Where WINDOWED is not told it is inferred: as if the requests of a step had equal contexts.
    """
    composition = {name: steps[name].to_numpy().astype(float) for name in COMPOSITION}
    windowed = {
        name: steps[name].cast(pl.Float64).to_numpy()
        if name in steps.columns
        else np.full(steps.height, np.nan)
        for name in WINDOWED
    }
    if not reads.window:
        return Work(**composition, **{name: np.zeros(steps.height) for name in WINDOWED})
    window = (reads.window, reads.chunked)
    decodes, prompts = composition["decode_requests"], composition["prefill_requests"]
    decodes = np.where(decodes > 0, decodes, 1.0)  # a mean may be below 1
    inferred = decodes * [in_window(c, *window) for c in composition["decode_kv_tokens"] / decodes]
    count = np.where(prompts > 0, prompts, 1.0)
    each, upto = composition["prefill_tokens"] / count, composition["prefill_kv_tokens"] / count
    attended = prompts * [
        window_context(max(after - tokens, 0.0), tokens, *window)
        for after, tokens in zip(upto, each, strict=True)
    ]
    made = (inferred, np.minimum(attended, composition["prefill_query_context"]))
    for (name, values), guess in zip(windowed.items(), made, strict=True):
        windowed[name] = np.where(np.isnan(values), guess, values)
    return Work(**composition, **windowed)


def feature_matrix(
    steps: pl.DataFrame, *, speculative: bool, reads: Reads = ALL
) -> npt.NDArray[np.float64]:
    """Return [steps, FEATURES] of rows of the steps table that have all of COMPOSITION.

    Columns of HOST_WORK that they lack are 0.
    """
    work = work_of_steps(steps, reads)
    host = {name: steps[name].to_numpy() for name in HOST_WORK if name in steps.columns}
    features = features_of(work, speculative, reads.experts)._replace(**host)
    return np.column_stack(np.broadcast_arrays(*features)).astype(float)


def reads_of(facts: ModelFacts | None) -> Reads:
    """Return how much a step of a model reads, `ALL` where that is not known."""
    if facts is None:
        return ALL
    visited, total = facts.experts_per_token, facts.num_experts
    experts = min(visited / total, 1.0) if visited and total else 0.0
    return Reads(experts, float(facts.window), facts.chunked)


def demands(facts: ModelFacts, engine: EngineConfig) -> dict[str, Features[float]]:
    """Return what a unit of each feature asks of the hardware, by the model's facts.

    An engine's launches, layers, weight and KV bytes, FLOPs and host work are what engines of one
    kind have in common (fit.py). Bytes and FLOPs are those of one of its tensor-parallel ranks.
    """
    tp, drafts = engine.tensor_parallel_size, engine.speculative
    assert facts.weight_bytes is not None  # else its steps are refused (`unrecorded.refusal`)
    assert facts.kv_bytes_per_token is not None
    routed, reads = facts.routed_weight_bytes(), reads_of(facts)
    read = facts.reads_by_end()
    kv_bytes, flops = read.get(None, (0.0, 0.0))
    window_bytes, window_flops = read.get(round(reads.window), (0.0, 0.0))
    if not read:  # as of older recordings: every layer reads all
        kv_bytes, flops = facts.kv_bytes_per_token, facts.flops_by_end()[None]
    states = float(facts.state_bytes() or 0)
    asked = {
        f"launch tp{tp}": ZERO._replace(step=1.0),
        "layers": ZERO._replace(step=facts.num_hidden_layers),
        "weight_bytes": ZERO._replace(step=(facts.weight_bytes - routed) / tp, experts=routed / tp),
        "prefill_step": ZERO._replace(prefill_step=1.0),
        "requests": ZERO._replace(requests=1.0),
        "prefill_requests": ZERO._replace(prefill_requests=1.0),
        "tokens": ZERO._replace(tokens=1.0),
        "kv_bytes": ZERO._replace(  # a state is read and written
            kv_tokens=kv_bytes / tp, window_tokens=window_bytes / tp, requests=2 * states / tp
        ),
        "flops": ZERO._replace(
            tokens=facts.matmul_flops(1) / tp,
            query_context=flops / tp,
            window_context=window_flops / tp,
        ),
        **{name: ZERO._replace(**{name: 1.0}) for name in HOST_WORK},
    }
    if drafts is not None:
        asked[f"draft {drafts}"] = ZERO._replace(draft_step=1.0)
        asked[f"draft request {drafts}"] = ZERO._replace(draft_requests=1.0)
    return asked
