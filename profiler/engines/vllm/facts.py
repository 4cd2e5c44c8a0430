"""What vLLM resolved: its engine configuration and the loaded model, in our types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from profiler.engines.models.model_facts import facts_from_config
from traces.errors import UsageError
from traces.schema.engine import EXPERTS, LOOKUPS, EngineConfig, ModelFacts, Speculative


def engine_config(vllm_config: Any, name: str, speculative: Speculative | None) -> EngineConfig:
    """Return what an engine was started with, as vLLM resolved it."""
    import vllm

    model, cache = vllm_config.model_config, vllm_config.cache_config
    scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    gpu, count = _device(parallel)
    return EngineConfig(
        model=name,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization,
        kv_cache_dtype=str(cache.cache_dtype),
        max_model_len=model.max_model_len,
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        data_parallel_size=parallel.data_parallel_size,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        block_size=cache.block_size,
        num_gpu_blocks=cache.num_gpu_blocks,
        gpu_memory_utilization=None if gpu is None else cache.gpu_memory_utilization,
        enable_prefix_caching=cache.enable_prefix_caching,
        enforce_eager=model.enforce_eager,
        async_scheduling=scheduler.async_scheduling,
        speculative=speculative,
        gpu=gpu,
        num_gpus=count,
        mode="in_process",
        vllm_version=vllm.__version__,
        other=((EXPERTS, "true"),) if parallel.enable_expert_parallel else (),
    )


def speculation_of(vllm_config: Any) -> Speculative | None:
    """Return how an engine drafts, as a user would have asked for it; None where it does not.

    vLLM gives every method a model: the method's own name, or the model that is served.
    """
    config = vllm_config.speculative_config
    if config is None or not config.num_speculative_tokens:
        return None
    method, model = str(config.method), config.model
    lookup = method in LOOKUPS
    return Speculative(
        method=method,
        num_speculative_tokens=config.num_speculative_tokens,
        model=None if model in (None, method, vllm_config.model_config.model) else str(model),
        prompt_lookup_min=config.prompt_lookup_min if lookup else None,
        prompt_lookup_max=config.prompt_lookup_max if lookup else None,
        num_speculative_tokens_per_batch_size=_by_batch(config),
    )


def _by_batch(config: Any) -> tuple[tuple[int, int, int], ...] | None:
    """Return the tokens of a draft by batch, as vLLM reads them; None where they never change.

    Between two ranges those of the one before hold, and none has more than there are at most
    (`build_dynamic_sd_schedule_lookup` in v1/spec_decode/dynamic/utils.py).
    """
    told = getattr(config, "num_speculative_tokens_per_batch_size", None)
    if not told:
        return None
    most, ranges = config.num_speculative_tokens, sorted(map(tuple, told))
    ends = [low - 1 for low, _, _ in ranges[1:]] + [ranges[-1][1]]
    return tuple((low, end, min(k, most)) for (low, _, k), end in zip(ranges, ends, strict=True))


def _device(parallel: Any) -> tuple[str | None, int | None]:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return None, None
    return str(current_platform.get_device_name()), int(parallel.world_size)


def model_facts(vllm_config: Any, name: str) -> ModelFacts | None:
    """Return what the loaded model costs, None where its config does not say."""
    return _facts(vllm_config.model_config, vllm_config, name)


def draft_facts(vllm_config: Any, speculative: Speculative | None) -> ModelFacts | None:
    """Return what the model costs that drafts; None without one, or where its config is another's.

    It bears the name that `speculative` has for it.
    """
    model = getattr(vllm_config.speculative_config, "draft_model_config", None)
    if speculative is None or speculative.model is None or model is None:
        return None
    return _facts(model, vllm_config, speculative.model)


def _facts(model: Any, vllm_config: Any, name: str) -> ModelFacts | None:
    around = [] if model.hf_config is model.hf_text_config else [model.hf_config]
    try:
        return facts_from_config(
            model.hf_text_config,
            name=name,
            folder=_folder(model.model),
            dtype=str(model.dtype),
            kv_cache_dtype=str(vllm_config.cache_config.cache_dtype),
            quantization=model.quantization,
            around=around,
        )
    except UsageError:  # such as a head that drafts without layers of its own, Medusa's
        return None


def _folder(model: str) -> Path | None:
    if Path(model).is_dir():
        return Path(model)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, local_files_only=True))
    except Exception:  # a hub name that vLLM fetched in a way of its own
        return None
