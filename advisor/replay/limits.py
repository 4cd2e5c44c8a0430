"""An engine's limits: what the replay takes of them, and whether vLLM starts with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.evidence.keys import DEFAULT_BLOCK, blocks_of, tokens_a_request
from advisor.evidence.runs import RecordedRun
from advisor.step_time.prior.defaults import ALIKE
from traces.errors import UsageError
from traces.schema.engine import EngineConfig, ModelFacts

if TYPE_CHECKING:
    from advisor.replay.workload import ReplayWorkload

_ROOMY: Final = 0.8  # of a cache, up to which it does not matter how blocks are counted
_NOT_IN_TABLES: Final = ("pipeline_parallel_size", "mode", "vllm_version")  # of operators
_PRIOR: Final = ("vllm_version", "pipeline_parallel_size")  # of which the prior's times depend


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The scheduler's limits; None is no limit. `num_blocks` is what the cache can give out.

    `several_kinds` says that the cache's blocks are of several kinds, of which `num_blocks` is as
    many of one kind as hold the same requests.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    num_blocks: int | None = None
    prefix_caching: bool = True
    async_scheduling: bool = False
    speculative: bool = False
    several_kinds: bool = False

    def unlimited(self, seqs: int | None = None) -> Limits:
        """Return the same without any limit, but for `seqs` samples at a time."""
        return replace(self, max_num_seqs=seqs, max_num_batched_tokens=None, num_blocks=None)

    def crowded(self, kv_tokens: float) -> bool:
        """Whether contexts of so many tokens nearly fill a cache whose blocks are approximate."""
        if not self.several_kinds or self.num_blocks is None:
            return False
        return kv_tokens > _ROOMY * self.num_blocks * self.block_size


def limits_of(
    engine: EngineConfig,
    facts: ModelFacts | None = None,
    workload: ReplayWorkload | None = None,
    models: Mapping[str, ModelFacts] | None = None,
) -> Limits:
    """Return what the replay needs of an engine.

    With the facts of its model and what it serves, blocks are those that a request takes in the
    middle of its output (`blocks_a_request`), but no fewer than the longest one needs. `models` are
    those that may draft, by name: one that is not among them is left out.
    """
    blocks, several = engine.num_gpu_blocks, False
    size = engine.block_size or DEFAULT_BLOCK
    if blocks is not None and facts is not None and workload is not None:
        context = float(np.mean(workload.prompt_tokens + workload.output_tokens / 2))
        drafter = _drafter(engine, facts, models or {})
        share = blocks_a_request(facts, size, context, drafter) / math.ceil(context / size)
        several = share != 1.0
        if several:
            blocks = 1 + max(int((blocks - 1) / share), math.ceil(workload.longest / size))
    return Limits(
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        block_size=size,
        num_blocks=None if blocks is None else blocks - 1,  # one is vLLM's null block
        prefix_caching=engine.enable_prefix_caching is not False,
        async_scheduling=engine.async_scheduling is True,
        speculative=engine.speculative is not None,
        several_kinds=several,
    )


def _drafter(
    engine: EngineConfig, facts: ModelFacts, models: Mapping[str, ModelFacts]
) -> ModelFacts | None:
    """Return the facts of what drafts for an engine's model, None where nothing does or tells."""
    if engine.speculative is None:
        return None
    from advisor.step_time.prior.drafting import drafter_in  # a replay without drafts needs none

    with suppress(UsageError):
        return drafter_in(engine, facts, models)
    return None


def blocks_a_request(
    facts: ModelFacts, size: int, context: float, drafter: ModelFacts | None = None
) -> float:
    """Return the blocks of so many tokens that a request of a context holds, of all kinds.

    As vLLM's hybrid KV cache manager gives them out (`_get_kv_cache_groups_uniform_page_size` in
    v1/core/kv_cache_utils.py): layers of a kind, those of a `drafter` among them, form groups of
    one size, and each group takes blocks of its own. A window holds what lies in it and a block
    more, a state takes one.
    """
    full_blocks = math.ceil(context / size)
    held: dict[tuple[str, int | None], int] = {}  # blocks of a kind's groups
    layers: Counter[tuple[str, int | None]] = Counter()
    of_drafter = () if drafter is None or not facts.layers else drafter.layers or ()
    for group in (*(facts.layers or ()), *of_drafter):
        attention = group.attention
        if attention is not None and attention.kept:
            window = attention.window if attention.kind == "sliding_attention" else None
            near = full_blocks if window is None else math.ceil((window - 1) / size) + 1
            held["attention", window] = min(full_blocks, near)
            layers["attention", window] += group.count
        if group.state is not None:
            held["state", None] = 1
            layers["state", None] += group.count
    if not layers:
        return full_blocks
    least, most = min(layers.values()), max(layers.values())
    together = most if most < ALIKE * least else least
    return sum(held[kind] * math.ceil(count / together) for kind, count in layers.items())


def check_startable(
    engine: EngineConfig,
    recorded: EngineConfig,
    sources: Iterable[RecordedRun],
    *,
    on_tables: bool,
    on_prior: bool = False,
) -> None:
    """Raise UsageError for a change of the recorded engine that the replay cannot answer.

    These are limits with which vLLM does not start, those that would cut the samples of `sources`,
    and settings that nothing here depends on. What was recorded is not doubted. Tables are of
    operators, `on_prior` those of the prior, of which there are several versions.
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
    untold = [name for name in untold if not (on_prior and name in _PRIOR)]
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


def _check_lengths(engine: EngineConfig, sources: Iterable[RecordedRun]) -> None:
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
