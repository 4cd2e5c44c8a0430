"""What vLLM resolved: its engine configuration and the loaded model, in our types."""

from __future__ import annotations

from typing import Any

from profiler.model_facts import dtype_bytes, facts_from_config
from traces.schema import EngineConfig, ModelFacts, Speculative


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
    )


def _device(parallel: Any) -> tuple[str | None, int | None]:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return None, None
    return str(current_platform.get_device_name()), int(parallel.world_size)


def model_facts(vllm_config: Any, name: str, engine: Any) -> ModelFacts:
    """Return what the loaded model costs."""
    parameters, weight_bytes = _weights(engine)
    return facts_from_config(
        vllm_config.model_config.hf_text_config,
        name=name,
        parameters=parameters,
        weight_bytes=weight_bytes,
        kv_dtype_bytes=dtype_bytes(
            str(vllm_config.cache_config.cache_dtype), str(vllm_config.model_config.dtype)
        ),
    )


def _weights(engine: Any) -> tuple[int, int]:
    """Parameters and their bytes over all ranks; a tensor that every rank holds counts for each."""

    def measure(worker: Any) -> tuple[int, int]:
        tensors = list(worker.get_model().parameters())
        elements = sum(tensor.numel() for tensor in tensors)
        return elements, sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    per_rank = engine.collective_rpc(measure)
    return sum(count for count, _ in per_rank), sum(size for _, size in per_rank)
