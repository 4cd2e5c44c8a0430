"""What a model costs, from its Hugging Face config and its weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from traces.schema import ModelFacts

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "int8": 1}
_MAX_HEADER_BYTES = 100 << 20


def dtype_bytes(*names: str | None) -> int:
    """Return the bytes per element of the first name that is a known dtype; 2 where none is."""
    for name in names:
        for kind, size in _DTYPE_BYTES.items():
            if name and name.removeprefix("torch.").startswith(kind):
                return size
    return 2


def facts_from_config(
    config: Any, *, name: str, parameters: int, weight_bytes: int, kv_dtype_bytes: int
) -> ModelFacts:
    """Build the facts from a Hugging Face config (its fields as attributes).

    `parameters` counts a shared tensor once. Active parameters leave out the experts that a
    token does not visit, and an untied input embedding, which is a look-up and no multiplication.
    KV bytes per token: 2 x layers x kv heads x head dim x bytes.
    """

    def read(*names: str) -> Any:
        return next((v for n in names if (v := getattr(config, n, None)) is not None), None)

    heads = config.num_attention_heads
    head_dim = read("head_dim") or config.hidden_size // heads
    kv_heads = read("num_key_value_heads") or heads
    experts = read("num_experts", "num_local_experts", "n_routed_experts")
    per_token = read("num_experts_per_tok") if experts else None
    active = parameters
    if experts and per_token:
        width = read("moe_intermediate_size") or config.intermediate_size
        sparse_layers = config.num_hidden_layers - (read("first_k_dense_replace") or 0)
        active -= sparse_layers * (experts - per_token) * 3 * config.hidden_size * width
    if not read("tie_word_embeddings"):
        active -= config.vocab_size * config.hidden_size
    architectures = read("architectures")
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
        weight_bytes=weight_bytes,
        kv_bytes_per_token=2 * config.num_hidden_layers * kv_heads * head_dim * kv_dtype_bytes,
    )


def facts_from_folder(folder: Path, *, name: str) -> ModelFacts | None:
    """Read the facts from a Hugging Face folder; None where it is not one or is not readable.

    Only the headers of the safetensors files are read.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        tensors = [_tensors(path) for path in sorted(folder.glob("*.safetensors"))]
    except (OSError, ValueError):
        return None
    shapes = [shape for file in tensors for shape, _ in file]
    if not shapes:
        return None
    try:
        return facts_from_config(
            SimpleNamespace(**config.get("text_config", config)),
            name=name,
            parameters=sum(map(math.prod, shapes)),
            weight_bytes=sum(size for file in tensors for _, size in file),
            kv_dtype_bytes=dtype_bytes(config.get("dtype"), config.get("torch_dtype")),
        )
    except (AttributeError, TypeError):
        return None


def _tensors(path: Path) -> list[tuple[list[int], int]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(length))
    return [
        (entry["shape"], entry["data_offsets"][1] - entry["data_offsets"][0])
        for key, entry in header.items()
        if key != "__metadata__"
    ]
