"""What vLLM does on a GPU where nothing was said: its limits, and the KV blocks it has room for.

Limits are those of vLLM 0.32 (EngineArgs.get_batch_defaults): by the GPU's memory, and by whether a
server or the class LLM starts the engine. Before 0.28 GPUs of 160 GiB had those of 70 GiB
(vllm-project/vllm#51726). Blocks are a rule, as what a run sets aside for
activations and CUDA graphs is only known when it has started.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from advisor.evidence.keys import blocks_of
from advisor.step_time.host.law import schedules_ahead
from traces.errors import UsageError
from traces.schema.engine import EngineConfig, ModelFacts

GIB: Final = float(1 << 30)
UTILISATION: Final = 0.92  # of the memory, vLLM's default
OLD_UTILISATION: Final = 0.9  # the default while the memory of CUDA graphs was not counted in it
GRAPHS_COUNTED: Final = (0, 21)  # from which vLLM does
BLOCK: Final = 16  # vLLM's default on a GPU
WIDER_BATCHES: Final = (0, 28)  # from which GPUs of 160 GiB have larger ones
RESERVED: Final = (
    3.5 * GIB
)  # for activations, graphs and the context, as the prior's authors have it
ALIKE: Final = 1.5  # counts of layers that vLLM pads to the larger one
VALUE_BYTES: Final = 2  # of weights and cache in bfloat16
LIMITS: Final = ("max_num_seqs", "max_num_batched_tokens")
# vLLM's defaults on a GPU for what a CPU's engine was given otherwise.
GPU_DEFAULTS: Mapping[str, Any] = {
    "block_size": BLOCK,
    "async_scheduling": True,  # from FIRST_ASYNCHRONOUS on
    "enforce_eager": False,
}
# Memory in GiB as NVIDIA's driver tells it, by part of the device's name: the first that fits.
_MEMORY_GIB: Final = (
    ("RTX PRO 6000", 95.6), ("RTX 6000 Ada", 48.0), ("RTX A6000", 48.0), ("RTX 5090", 31.8),
    ("RTX 4090", 24.0), ("RTX 3090", 24.0), ("GH200 480GB", 95.6), ("H200", 140.4),
    ("H100 NVL", 93.6), ("H100 PCIe", 79.6), ("H100", 79.6), ("H20-3e", 140.4), ("H20", 95.6),
    ("B200", 179.1), ("GB200", 185.0), ("B300", 268.6), ("GB300", 277.5), ("L40S", 45.0),
    ("L40", 45.0), ("L4", 22.5), ("A10G", 22.5), ("A10", 22.5), ("T4", 15.0),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU that an engine is asked about: its name and memory, None where they are not known."""

    name: str | None
    memory_bytes: float | None

    @classmethod
    def named(cls, name: str | None) -> Device:
        """Return the GPU of a name that a driver gives: `NVIDIA H100 80GB HBM3`."""
        if name is None or "MIG" in name:  # a part of a GPU has a part of its memory
            return cls(name=name, memory_bytes=None)
        for part, size in _MEMORY_GIB:
            if re.search(rf"\b{part}\b", name):
                return cls(name=name, memory_bytes=size * GIB)
        stated = re.search(r"\b(\d{1,3}) ?GB\b", name)
        return cls(name=name, memory_bytes=float(stated[1]) * GIB if stated else None)

    def limits(self, mode: str, version: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return vLLM's max_num_seqs and max_num_batched_tokens of an engine's mode.

        A version that is not known is the newest.
        """
        memory, offline = self.memory_bytes or 0.0, mode == "in_process"
        if memory >= 160 * GIB and (version is None or version >= WIDER_BATCHES):
            return 1024, 16384
        if memory >= 70 * GIB and "a100" not in (self.name or "").lower():
            return 1024, 16384 if offline else 8192
        return 256, 8192 if offline else 2048


def _fitted(engine: EngineConfig, limits: tuple[int, int], given: Collection[str]) -> list[int]:
    """Return both limits as vLLM fits them to each other and to the longest sequence.

    `given` ones are the engine's own.
    """
    seqs, batched = limits
    if "max_num_seqs" in given and engine.max_num_seqs is not None:
        seqs = engine.max_num_seqs
    if "max_num_batched_tokens" in given and engine.max_num_batched_tokens is not None:
        batched = engine.max_num_batched_tokens
    elif engine.max_model_len is not None:
        batched = min(batched, seqs * engine.max_model_len)
    return [seqs if "max_num_seqs" in given else min(seqs, batched), batched]


def usual_limits(engine: EngineConfig) -> list[int]:
    """Return the max_num_seqs and max_num_batched_tokens that vLLM gives an engine by itself."""
    size = engine.pipeline_parallel_size * engine.tensor_parallel_size
    on_cpu = (128 * size, 2048 * size) if engine.mode == "server" else (256 * size, 4096 * size)
    there = (
        on_cpu
        if engine.gpu is None
        else Device.named(engine.gpu).limits(engine.mode, engine.version)
    )
    return _fitted(engine, there, ())


def as_on(
    device: Device,
    engine: EngineConfig,
    recorded: EngineConfig | None = None,
    given: Collection[str] = (),
) -> tuple[EngineConfig, tuple[str, ...]]:
    """Return an engine as vLLM would start it on a GPU, and the fields that are its defaults there.

    `given` fields stay. So does what was recorded, but for the blocks of another device, what is
    None, and what was only a default: limits of the device that `recorded` ran on, scheduling of
    its version.
    """
    recorded = recorded or engine
    elsewhere = recorded.gpu is None or recorded.gpu != device.name
    wanted: dict[str, Any] = dict(GPU_DEFAULTS) if recorded.gpu is None else {}
    ahead = schedules_ahead(engine.version)
    usual = engine.async_scheduling == schedules_ahead(recorded.version)
    if recorded.gpu is None or (usual and ahead != engine.async_scheduling):
        wanted["async_scheduling"] = ahead
    if engine.enable_prefix_caching is None:
        wanted["enable_prefix_caching"] = True
    defaults = usual_limits(recorded) if elsewhere else [None, None]
    open_limits = [
        name
        for name, value in zip(LIMITS, defaults, strict=True)
        if name not in given and getattr(engine, name) in (None, value)
    ]
    fitted = _fitted(
        engine, device.limits(engine.mode, engine.version), set(LIMITS) - set(open_limits)
    )
    wanted |= {
        name: value for name, value in zip(LIMITS, fitted, strict=True) if name in open_limits
    }
    wanted = {name: value for name, value in wanted.items() if name not in given}
    if elsewhere and "num_gpu_blocks" not in given:
        engine = replace(engine, num_gpu_blocks=None)
    return replace(engine, **wanted), tuple(wanted)


def assumed_note(device: Device, engine: EngineConfig, assumed: Collection[str]) -> str:
    """Say which settings of an engine are vLLM's defaults on a GPU."""
    settings = ", ".join(
        f"{name} {value:,}" if type(value) is int else f"{name} {str(value).lower()}"
        for name in assumed
        if (value := getattr(engine, name)) is not None
    )
    where = "a server" if engine.mode == "server" else "vLLM's class LLM"
    older = engine.version is not None and engine.version < WIDER_BATCHES
    version = engine.vllm_version if older else "0.32"
    memory = (
        f"{device.memory_bytes / GIB:.0f} GiB"
        if device.memory_bytes is not None
        else "a memory that is not known, taken as under 70 GiB"
    )
    return (
        f"not set, so the defaults of vLLM {version} hold, of {where} on "
        f"{device.name or 'a GPU'} with {memory}: {settings}. --set says others"
    )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What of a GPU's memory an engine of a model takes, in bytes on each GPU.

    `share` is vLLM's of the memory, `reserved` what weights and KV cache do not get, `token` what a
    token takes of a block, which has `least_block` tokens or more. `drafter` is what a drafting
    model's weights are of `weights`.
    """

    device: Device
    total: float
    share: float
    weights: float
    reserved: float
    token: float
    least_block: int = 1
    drafter: float = 0.0

    @property
    def cache(self) -> float:
        """The bytes that are left for the KV cache, below 0 where nothing is."""
        return self.share * self.total - self.weights - self.reserved

    def sum(self) -> str:
        """Return the sum in words, in GB on each GPU."""
        drafter = f" (the drafter's {_gb(self.drafter)})" if self.drafter else ""
        return (
            f"{self.share:g} x {_gb(self.total)} of memory less weights of {_gb(self.weights)}"
            f"{drafter} and {_gb(self.reserved)} for activations and graphs"
        )


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def memory_of(
    device: Device,
    engine: EngineConfig,
    facts: ModelFacts,
    *,
    reserved: float = RESERVED,
    drafter: ModelFacts | None = None,
) -> Memory | None:
    """Return what an engine takes of a GPU; None where memory or model is not known.

    Experts are shared by all ranks of tensor and data parallelism, other weights by those of tensor
    parallelism. KV heads that are fewer than the GPUs are kept by several of them, and so is what
    has no heads. A `drafter` is split as the model is, and keeps its own keys and values of every
    token.
    """
    stages, drafting = engine.pipeline_parallel_size, 0.0
    weights, kept = _weights(engine, facts), _kept(engine, facts)
    if device.memory_bytes is None or weights is None or kept is None:
        return None
    token, block = kept[0] / stages, kept[1]
    if drafter is not None:  # it runs on the last stage alone
        alone = replace(engine, quantization=None, pipeline_parallel_size=1)
        drafts, drafts_kept = _weights(alone, drafter), _kept(alone, drafter)
        if drafts is None or drafts_kept is None:
            return None
        drafting, token = drafts, token + drafts_kept[0]
    old = engine.version is not None and engine.version < GRAPHS_COUNTED
    return Memory(
        device=device,
        total=device.memory_bytes,
        share=engine.gpu_memory_utilization or (OLD_UTILISATION if old else UTILISATION),
        weights=weights + drafting,
        reserved=reserved,
        token=token,
        least_block=block,
        drafter=drafting,
    )


def _weights(engine: EngineConfig, facts: ModelFacts) -> float | None:
    """Return the bytes of a model's weights on each GPU."""
    size, stages = engine.tensor_parallel_size, engine.pipeline_parallel_size
    weights: float | None = facts.weight_bytes
    layers = 1.0  # times the checkpoint's bytes
    if facts.quantization is None and engine.quantization is None:
        weights = None if facts.total_parameters is None else VALUE_BYTES * facts.total_parameters
        layers = weights / facts.weight_bytes if weights and facts.weight_bytes else 0.0
    elif facts.quantization is None and weights is not None and facts.layers is not None:
        outside = sum(each.size_bytes or 0.0 for each in facts.others)
        weights, layers = outside + (weights - outside) / 2, 0.5  # layers alone, brought to FP8
    if weights is None:
        return None
    experts = layers * facts.routed_weight_bytes()
    return (weights - experts) / (size * stages) + experts / (
        size * engine.data_parallel_size * stages
    )


def _kept(engine: EngineConfig, facts: ModelFacts) -> tuple[float, int] | None:
    """Return the bytes of a token in a block on each GPU, and the tokens that a block has at least.

    Layers of one kind share blocks, each with what it keeps (vLLM's `UniformTypeKVCacheSpecs`).
    Those of several kinds take blocks of their own, in groups of as many layers (`limits.py`), and
    all blocks are as large: so that a state fits in one, vLLM makes blocks of more tokens.
    """
    size, cache = engine.tensor_parallel_size, engine.kv_cache_dtype
    if cache in (None, "auto"):
        cache = facts.kv_cache_dtype
    value = 1 if (cache or "").startswith("fp8") else VALUE_BYTES
    if facts.layers is None:
        if not facts.reads_all(None):
            return None
        heads = max(facts.num_key_value_heads / size, 1.0)
        return 2 * facts.num_hidden_layers * heads * facts.head_dim * value, 1
    layers: Counter[tuple[str, int | None]] = Counter()
    tokens, states, summed = [0.0], [0.0], 0.0
    for group in facts.layers:
        if (attention := group.attention) is not None and attention.kept:
            share = 1.0 if attention.latent is not None else min(size, attention.kv_heads)
            entry = attention.values / share * value + attention.index_bytes(value)
            tokens.append(entry / attention.tokens_per_entry)
            summed += group.count * tokens[-1]
            window = attention.window if attention.kind == "sliding_attention" else None
            layers["attention", window] += group.count
        if group.state is not None:
            if group.state.size_bytes is None:
                return None
            states.append(group.state.size_bytes / size)
            layers["state", None] += group.count
    widest = max(tokens)
    if not widest:
        return None
    if len(layers) == 1:
        return summed, 1
    least, most = min(layers.values()), max(layers.values())
    together = most if most < ALIKE * least else least
    block = -(-max(states) / widest // BLOCK) * BLOCK if max(states) else 1
    return together * widest, int(block)


def with_blocks(memory: Memory, engine: EngineConfig, facts: ModelFacts) -> EngineConfig:
    """Return an engine with the KV blocks that a GPU has room for, where they are not given.

    Raises UsageError, with the sum, where weights or a sequence of `max_model_len` do not fit, or
    more blocks were given than the whole memory holds.
    """
    what = f"{facts.name} with tensor_parallel_size {engine.tensor_parallel_size}"
    on = f"on {memory.device.name or 'this GPU'}"
    if (engine.block_size or BLOCK) < memory.least_block and engine.num_gpu_blocks is None:
        engine = replace(engine, block_size=memory.least_block)
    block = (engine.block_size or BLOCK) * memory.token
    mend = "Set a larger engine.tensor_parallel_size, or ask about a GPU with more memory"
    if engine.num_gpu_blocks is not None:
        if engine.num_gpu_blocks * block + memory.weights > memory.total:
            raise UsageError(
                f"{what} does not fit {on}: on each GPU weights of {_gb(memory.weights)} and "
                f"engine.num_gpu_blocks={engine.num_gpu_blocks:,} of {block / 1e6:.1f} MB each are "
                f"{_gb(engine.num_gpu_blocks * block + memory.weights)} of {_gb(memory.total)}"
            )
        return engine
    blocks = int(memory.cache // block)
    needed = 2 if engine.max_model_len is None else blocks_of(engine, engine.max_model_len) + 1
    if memory.cache <= 0 or blocks < 2:
        raise UsageError(
            f"{what} does not fit {on}: on each GPU {memory.sum()} leaves nothing for the KV cache "
            f"({_gb(memory.cache)}). {mend}"
        )
    if blocks < needed:
        raise UsageError(
            f"{what} does not fit {on}: on each GPU {memory.sum()} leaves {_gb(memory.cache)} for "
            f"the KV cache, and a sequence of max_model_len {engine.max_model_len:,} needs "
            f"{_gb(needed * block)}, so vLLM does not start. {mend}, or set a lower "
            "engine.max_model_len"
        )
    return replace(engine, num_gpu_blocks=blocks)


def blocks_note(memory: Memory, engine: EngineConfig) -> str:
    """Say where the KV blocks of an engine come from."""
    return (
        f"num_gpu_blocks {engine.num_gpu_blocks:,} by a rule: on each GPU {memory.sum()} leaves "
        f"{_gb(memory.cache)} for the KV cache. --set engine.num_gpu_blocks says the engine's own"
    )
