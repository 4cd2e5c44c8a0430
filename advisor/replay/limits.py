"""An engine's limits: what the replay takes of them, and whether vLLM starts with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from advisor.evidence.keys import DEFAULT_BLOCK, blocks_of, tokens_a_request
from advisor.evidence.runs import Run
from traces.errors import UsageError
from traces.schema.engine import EngineConfig

_NOT_IN_TABLES: Final = ("pipeline_parallel_size", "mode", "vllm_version")  # of operators


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


def limits_of(engine: EngineConfig) -> Limits:
    """Return what the replay needs of an engine."""
    blocks = engine.num_gpu_blocks
    return Limits(
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        block_size=engine.block_size or DEFAULT_BLOCK,
        num_blocks=None if blocks is None else blocks - 1,  # one is vLLM's null block
        prefix_caching=engine.enable_prefix_caching is not False,
        async_scheduling=engine.async_scheduling is True,
        speculative=engine.speculative is not None,
    )


def check_startable(
    engine: EngineConfig, recorded: EngineConfig, sources: Iterable[Run], *, on_tables: bool
) -> None:
    """Raise UsageError for a change of the recorded engine that the replay cannot answer.

    These are limits with which vLLM does not start, those that would cut the samples of `sources`,
    and settings that nothing here depends on. What was recorded is not doubted.
    """
    changed = {
        name
        for name, value in vars(engine).items()
        if value != getattr(recorded, name) and value is not None  # cleared: not known
    }
    if "gpu_memory_utilization" in changed and "num_gpu_blocks" not in changed:
        raise UsageError(
            f"engine.gpu_memory_utilization={engine.gpu_memory_utilization:g}: a replay does not "
            "know how much memory it leaves to the cache. Set engine.num_gpu_blocks"
        )
    untold = sorted(changed.intersection(_NOT_IN_TABLES)) if on_tables else []
    if untold:
        raise UsageError(
            f"engine.{untold[0]}={getattr(engine, untold[0])}: step times of tables do not depend "
            "on it. Leave it as recorded"
        )
    if changed & {"max_num_seqs", "max_num_batched_tokens", "speculative"}:
        _check_batch(engine)
    if "max_model_len" in changed:
        _check_lengths(engine, sources)
    if changed & {"max_model_len", "num_gpu_blocks", "block_size"}:
        _check_cache(engine)


def _check_batch(engine: EngineConfig) -> None:
    seqs, batched = engine.max_num_seqs, engine.max_num_batched_tokens
    if seqs is None or batched is None or batched >= seqs * tokens_a_request(engine):
        return
    drafts = "" if engine.speculative is None else " with its drafts"
    raise UsageError(
        f"engine.max_num_batched_tokens={batched}: vLLM needs a token for each of max_num_seqs "
        f"{seqs}{drafts}, {seqs * tokens_a_request(engine):,} in all. Set so many, or a lower "
        "max_num_seqs"
    )


def _check_lengths(engine: EngineConfig, sources: Iterable[Run]) -> None:
    longest = max(
        problem.prompt_tokens + sample.output_tokens
        for run in sources
        for problem in run.problems.values()
        for sample in problem.samples
    )
    if engine.max_model_len is not None and longest > engine.max_model_len:
        raise UsageError(
            f"engine.max_model_len={engine.max_model_len}: the recorded sequences have up to "
            f"{longest:,} tokens, which vLLM would cut, and answers with them. Set that or more"
        )


def _check_cache(engine: EngineConfig) -> None:
    blocks, length = engine.num_gpu_blocks, engine.max_model_len
    if blocks is None or length is None or blocks_of(engine, length) <= blocks:
        return
    size = engine.block_size or DEFAULT_BLOCK
    raise UsageError(
        f"engine.num_gpu_blocks={blocks}: a cache of {blocks * size:,} tokens (blocks of {size}) "
        f"does not hold max_model_len {length:,}, so vLLM does not start. Set "
        f"{blocks_of(engine, length):,} blocks or more, or a lower max_model_len"
    )
