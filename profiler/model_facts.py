"""What a model costs, from its Hugging Face config and the headers of its weights.

The weights as an engine holds them are no guide: engines repack, fuse and pad them (vLLM's CPU
build leaves a float32 model with a twentieth of its parameters registered).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from traces.schema import ModelFacts

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "half": 2, "fp8": 1, "int8": 1}
_MAX_HEADER_BYTES = 100 << 20
# Fields that only layers with a state of their own have.
_STATES = ("state_size", "ssm_state_size", "mamba_d_state", "mamba_d_ssm", "linear_num_value_heads")
_NO_MIXING = ("mlp", "moe", "dense", "sparse")  # layers that look at one token alone
_PACKED = ("I32", "I16", "U8", "I8")  # several weights in an element, or weights beside scales


def dtype_bytes(*names: str | None) -> int:
    """Return the bytes per element of the first name that is a known dtype; 2 where none is."""
    for name in names:
        for kind, size in _DTYPE_BYTES.items():
            if name and name.removeprefix("torch.").startswith(kind):
                return size
    return 2


def facts_from_config(
    config: Any,
    *,
    name: str,
    folder: Path | None = None,
    dtype: str | None = None,
    kv_cache_dtype: str | None = None,
) -> ModelFacts:
    """Build the facts from a Hugging Face config (its fields as attributes).

    Parameters are counted in the headers of the safetensors files in `folder`; without them, or
    where they are packed by quantisation, in the config's matrices, which leaves out norms and
    biases. Active parameters leave out experts that a token does not visit and an untied input
    embedding, which is a look-up and no multiplication. Weight bytes are those of `dtype`, or of
    the files when they are quantised. KV bytes per token: 2 x layers x kv heads x head dim x bytes;
    of latent attention layers x (kv_lora_rank + qk_rope_head_dim) x bytes (arXiv 2405.04434).
    """

    def read(*names: str) -> Any:
        return next((v for n in names if (v := getattr(config, n, None)) is not None), None)

    heads = config.num_attention_heads
    head_dim = read("head_dim") or config.hidden_size // heads
    kv_heads = read("num_key_value_heads") or heads
    tied = bool(read("tie_word_embeddings"))
    experts = read("num_experts", "num_local_experts", "n_routed_experts")
    per_token = read("num_experts_per_tok") if experts else None
    expert_width = read("moe_intermediate_size") or config.intermediate_size
    sparse = config.num_hidden_layers - (read("first_k_dense_replace") or 0) if experts else 0
    expert = 3 * config.hidden_size * expert_width
    vocabulary = config.vocab_size * config.hidden_size
    width = head_dim * config.hidden_size
    matrices = (
        config.num_hidden_layers * 2 * (heads + kv_heads) * width
        + (config.num_hidden_layers - sparse) * 3 * config.hidden_size * config.intermediate_size
        + sparse * (experts or 0) * expert
        + vocabulary * (1 if tied else 2)
    )
    counted, stored_bytes = _count_stored(folder, tied)
    parameters = counted or matrices
    active = parameters - (0 if tied else vocabulary)
    if experts and per_token:
        active -= sparse * (experts - per_token) * expert
    quantised = read("quantization_config") is not None
    element = dtype_bytes(dtype, str(read("dtype", "torch_dtype")))
    architectures = read("architectures")
    latent = read("kv_lora_rank")
    kv_width = latent + (read("qk_rope_head_dim") or 0) if latent else 2 * kv_heads * head_dim
    kinds = _attention(read)
    return ModelFacts(
        name=name,
        architecture=architectures[0] if architectures else None,
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        num_experts=experts,
        experts_per_token=per_token,
        total_parameters=parameters,
        active_parameters=active,
        weight_bytes=stored_bytes if quantised and stored_bytes else parameters * element,
        kv_bytes_per_token=config.num_hidden_layers
        * kv_width
        * dtype_bytes(kv_cache_dtype, dtype, str(read("dtype", "torch_dtype"))),
        attention=kinds,
        sliding_window=read("sliding_window") if "sliding_attention" in kinds else None,
    )


def _attention(read: Callable[..., Any]) -> tuple[str, ...]:
    """Return the kinds of layers that mix tokens, sorted (`ModelFacts.attention`)."""
    listed = read("layer_types", "layers_block_type")
    found = {"full_attention" if kind == "attention" else str(kind) for kind in listed or ()}
    found -= set(_NO_MIXING)
    if read("kv_lora_rank"):
        found = found - {"full_attention"} | {"latent_attention"}
    elif not listed:
        if read("sliding_window") and read("use_sliding_window") is not False:
            found.add("sliding_attention")
        elif read("attention_chunk_size"):
            found.add("chunked_attention")
        else:
            found.add("full_attention")
    if any(read(name) for name in _STATES) and not listed:
        found.add("linear_attention")
    if read("is_encoder_decoder"):
        found.add("cross_attention")
    return tuple(sorted(found))


def facts_from_folder(folder: Path, *, name: str, dtype: str | None = None) -> ModelFacts | None:
    """Read the facts from a Hugging Face folder; None where it is not one or is not readable."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        fields = SimpleNamespace(**config.get("text_config", config))
        return facts_from_config(fields, name=name, folder=folder, dtype=dtype)
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _count_stored(folder: Path | None, tied: bool) -> tuple[int | None, int | None]:
    """Count parameters and bytes in a folder's safetensors; None where they cannot be counted.

    A tied output embedding that the files hold beside the input embedding counts once.
    """
    if folder is None or not folder.is_dir():
        return None, None
    try:
        entries = [item for path in sorted(folder.glob("*.safetensors")) for item in _header(path)]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
    if not entries:
        return None, None
    size = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for _, entry in entries)
    if any(entry["dtype"] in _PACKED for _, entry in entries):
        return None, size
    kept = [e for key, e in entries if not (tied and key == "lm_head.weight")]
    return sum(math.prod(entry["shape"]) for entry in kept), size


def _header(path: Path) -> list[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(length))
    return [(key, entry) for key, entry in header.items() if key != "__metadata__"]
