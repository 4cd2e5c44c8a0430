"""What identifies runs that may be learned from together: engines, decoders, sampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from traces.live.otlp import RESOURCE
from traces.schema.engine import BLOCKS, RANKS, EngineConfig, Speculative
from traces.schema.tts.policy import AS_SENT, Policy

WORKER: Final = frozenset(
    {"namespace", "component", "producer", "worker", "dp_rank", "urls", "engine", RANKS}
)
"""What says which worker of a deployment an engine is: of forward passes, of /metrics."""
URL: Final = "url"  # of one server of several


@lru_cache(maxsize=4096)
def law_key(engine: EngineConfig) -> EngineConfig:
    """Return what the time of a step depends on beside its composition.

    The limits of the scheduler and of the cache decide which steps are made, not how long one of
    a given composition takes; they are cleared, and so is which worker of a deployment it is.
    """
    return dataclasses.replace(
        engine.one_replica(),
        max_model_len=None,
        max_num_seqs=None,
        max_num_batched_tokens=None,
        num_gpu_blocks=None,
        gpu_memory_utilization=None,
        enable_prefix_caching=None,
        other=any_worker(engine),
    )


def any_worker(engine: EngineConfig) -> tuple[tuple[str, str], ...]:
    """Return what else is known of an engine, but for which worker of a deployment it is.

    A server keeps its URL where its GPU is not told: servers at other URLs may be other hardware.
    With how many KV blocks it was started decides as little as how many it has.
    """
    left_out = {BLOCKS, *WORKER, *(() if engine.gpu is None else (URL,))}
    return tuple(pair for pair in engine.other if pair[0] not in left_out)


def learned_as(engines: Mapping[str, EngineConfig]) -> dict[str, EngineConfig]:
    """Return a recording's engines by key, those that took one workload in turn without a URL.

    What they share is the law of the engine that they make up, which has no steps of its own.
    """
    urls = {url for each in engines.values() for url in dict(each.other).get("urls", "").split()}
    return {
        key: dataclasses.replace(each, other=tuple(pair for pair in each.other if pair[0] != URL))
        if dict(each.other).get(URL) in urls
        else each
        for key, each in engines.items()
    }


Decoder = tuple[str, str | None, str | None, str | None, Speculative | None]
SampleKey = tuple[Decoder, Policy]


def decoder_of(engine: EngineConfig) -> Decoder:
    """Return what decides the answers beside the sampling.

    Speculation should not, but that is a claim about an implementation: engines with and without
    it are each judged by their own samples.
    """
    return (
        engine.model,
        engine.dtype,
        engine.quantization,
        engine.kv_cache_dtype,
        engine.speculative,
    )


DECODER: Final = ("dtype", "quantization", "kv_cache_dtype", "speculative")  # beside the model


def of_spans(engine: EngineConfig) -> bool:
    """Whether nothing is known of an engine but what spans say, and how it decodes."""
    decoding = {name: getattr(engine, name) for name in DECODER}
    from_spans = EngineConfig(model=engine.model, mode="server", other=engine.other, **decoding)
    return engine == from_spans and dict(engine.other).keys() <= RESOURCE


def sampling_of(policy: Policy) -> Policy:
    """Return what of a policy decides its single samples."""
    if policy == AS_SENT:
        return policy
    return dataclasses.replace(policy, method="majority", n=1, rule=())


def without_limits(engine: EngineConfig) -> EngineConfig:
    """Return the engine as one replica, whichever of a deployment, whose limits are not said."""
    return dataclasses.replace(
        engine.one_replica(),
        max_num_seqs=None,
        max_num_batched_tokens=None,
        other=any_worker(engine),
    )


def powers(values: Sequence[int | None], fewest: int) -> list[int]:
    """Return the values that are known and the powers of two from `fewest` to the largest."""
    known = {value for value in values if value is not None}
    most = max(known, default=0)
    return sorted(known | {2**i for i in range(most.bit_length()) if fewest <= 2**i <= most})


def sample_counts(most: int) -> list[int]:
    """Return the numbers of samples that are proposed: 1 to 8, and then 10, 12, 14, 16, 20, ..."""
    quarters = [2**i * k // 4 for i in range(2, most.bit_length()) for k in (4, 5, 6, 7)]
    return [n for n in sorted({1, 2, 3, *quarters}) if n <= most]


DEFAULT_BLOCK: Final = 16


def tokens_a_request(engine: EngineConfig) -> int:
    """Return the tokens that a decoding request has in a step: its own and the drafted."""
    return 1 if engine.speculative is None else 1 + engine.speculative.num_speculative_tokens


def blocks_of(engine: EngineConfig, tokens: int) -> int:
    """Return the blocks of the KV cache that a sequence of so many tokens takes."""
    return -(-tokens // (engine.block_size or DEFAULT_BLOCK))
