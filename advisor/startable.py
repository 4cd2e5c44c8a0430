"""Whether vLLM starts with an engine's limits, and runs recorded samples there as they were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from advisor.recorded_runs import Run
from traces.errors import UsageError
from traces.schema import EngineConfig

DEFAULT_BLOCK: Final = 16
_NOT_IN_TABLES: Final = ("pipeline_parallel_size", "mode", "vllm_version")  # of operators


def tokens_a_request(engine: EngineConfig) -> int:
    """Return the tokens that a decoding request has in a step: its own and the drafted."""
    return 1 if engine.speculative is None else 1 + engine.speculative.num_speculative_tokens


def blocks_of(engine: EngineConfig, tokens: int) -> int:
    """Return the blocks of the KV cache that a sequence of so many tokens takes."""
    return -(-tokens // (engine.block_size or DEFAULT_BLOCK))


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
            "know how much memory it leaves to the cache; set engine.num_gpu_blocks"
        )
    untold = sorted(changed.intersection(_NOT_IN_TABLES)) if on_tables else []
    if untold:
        raise UsageError(
            f"engine.{untold[0]}={getattr(engine, untold[0])}: step times of tables do not depend "
            "on it; leave it as recorded"
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
        f"{seqs}{drafts}, {seqs * tokens_a_request(engine):,} in all; set so many, or a lower "
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
            f"{longest:,} tokens, which vLLM would cut, and answers with them; set that or more"
        )


def _check_cache(engine: EngineConfig) -> None:
    blocks, length = engine.num_gpu_blocks, engine.max_model_len
    if blocks is None or length is None or blocks_of(engine, length) <= blocks:
        return
    size = engine.block_size or DEFAULT_BLOCK
    raise UsageError(
        f"engine.num_gpu_blocks={blocks}: a cache of {blocks * size:,} tokens (blocks of {size}) "
        f"does not hold max_model_len {length:,}, so vLLM does not start; set "
        f"{blocks_of(engine, length):,} blocks or more, or a lower max_model_len"
    )
