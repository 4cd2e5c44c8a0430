"""What a model costs, from its Hugging Face config and the headers of its weights.

The weights as an engine holds them are no guide: engines repack, fuse and pad them (a CPU
build leaves a float32 model with a twentieth of its parameters registered). What a config has that
is not counted here makes the number None, never a wrong one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from profiler.engines.config_fields import LONGEST, Fields, field_of, shown
from profiler.engines.stored_weights import Stored, stored_weights
from traces.errors import UsageError
from traces.schema.engine import ModelFacts

_MOST_CONFIG_BYTES: Final = 16 << 20
_DTYPE_BYTES: Final = {
    "float32": 4, "float16": 2, "bfloat16": 2, "half": 2, "float8": 1, "fp8": 1, "int8": 1,
}  # fmt: skip
_TEXT: Final = ("text_config", "llm_config", "language_config", "thinker_config")
# Models whose parameters are the matrices that `_matrices` counts: every layer has grouped-query
# attention and an MLP of three matrices, or experts of three and nothing beside them. By
# architecture, or by the type of the language model inside another.
_COUNTED: Final = frozenset({
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
    "MiMoForCausalLM", "MixtralForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM",
    "MiniMaxM2ForCausalLM", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "qwen3_vl_text",
    "qwen3_vl_moe_text",
})  # fmt: skip
_OTHER_TOWERS: Final = ("vision_config", "audio_config", "visual_config")
# Fields that only layers with a state of their own have.
_STATES: Final = (
    "state_size", "ssm_state_size", "mamba_d_state", "mamba_d_ssm", "linear_num_value_heads",
    "linear_attn_config",
)  # fmt: skip
# Fields of layers that choose what of the context they read.
_INDEXED: Final = ("index_topk", "index_head_dim", "sparse_attention_config", "compress_ratios")
_PATTERNS: Final = ("hybrid_layer_pattern", "sliding_window_pattern", "_sliding_window_pattern")
_NO_MIXING: Final = ("mlp", "moe", "dense", "sparse")  # layers that look at one token alone
# Fields that make the keys and values of a token others than a head's in every layer alike.
_OTHER_KV: Final = ("global_head_dim", "num_global_key_value_heads", "num_kv_shared_layers")
_FP8_ONLINE: Final = ("fp8", "ptpc_fp8", "fp8_per_tensor", "fp8_per_block")


def _bytes_of(name: str | None) -> int | None:
    plain = (name or "").removeprefix("torch.")
    return next((size for kind, size in _DTYPE_BYTES.items() if plain.startswith(kind)), None)


def facts_from_config(
    config: Any,
    *,
    name: str,
    folder: Path | None = None,
    dtype: str | None = None,
    kv_cache_dtype: str | None = None,
    quantization: str | None = None,
    around: Sequence[Any] = (),
    where: str | None = None,
) -> ModelFacts:
    """Build the facts from a Hugging Face config: an object with its fields, or a mapping.

    `around` are the configs that this one, of the language model, lies in; `quantization` is what
    the engine was started with. Parameters are counted in the headers of the safetensors files in
    `folder`; without them, or where they are packed by quantisation, in the config's matrices
    where these are known to be all (norms and biases left out). Active parameters leave out experts
    that a token does not visit, what looks at images, and an untied input embedding, which is a
    look-up and no multiplication. Weight bytes are those of `dtype`, or of the files when they are
    quantised. KV bytes per token: 2 x layers x kv heads x head dim x bytes; of latent attention
    layers x (kv_lora_rank + qk_rope_head_dim) x bytes (arXiv 2405.04434). What cannot be known so
    is None. Raises UsageError, naming `where` and the field, for a config that is none.
    """
    fields = Fields(config, where or f"the config of {name}", around)
    if fields.get("block_configs") is not None:
        raise UsageError(
            f"{fields.where}: block_configs gives each layer a shape of its own, which the facts of"
            " a model do not hold"
        )
    layers, hidden = _layers(fields), fields.need("hidden_size")
    heads, vocabulary = fields.need("num_attention_heads"), fields.need("vocab_size")
    head_dim, kv_heads = _head_dim(fields, hidden, heads), fields.count("num_key_value_heads")
    kv_heads = kv_heads or heads
    if heads % kv_heads:
        raise UsageError(
            f"{fields.where}: num_attention_heads {heads} is no multiple of num_key_value_heads "
            f"{kv_heads}"
        )
    experts = fields.count("num_experts", "num_local_experts", "n_routed_experts", least=0) or None
    visited = fields.count(
        "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts",
        least=0,
    )  # fmt: skip
    per_token = visited or None if experts else None
    if experts and per_token and per_token > experts:
        raise UsageError(
            f"{fields.where}: {per_token} experts are visited of the {experts} there are"
        )
    kinds = _attention(fields)
    window = fields.count("sliding_window", "sliding_window_size", least=0) or None
    shape = _Shape(
        layers=layers,
        hidden=hidden,
        attention=2 * (heads + kv_heads) * head_dim * hidden,
        width=fields.count("intermediate_size"),
        expert_width=fields.count("moe_intermediate_size"),
        experts=experts,
        per_token=per_token,
        embedding=vocabulary * hidden,
    )
    stored = stored_weights(folder, layers)
    kind = _quantization(fields) or (None if stored is None else stored.quantized)
    tied = fields.flag("tie_word_embeddings", around=True)
    if tied is None:
        tied = stored is not None and not stored.output
    total, active = _parameters(fields, shape, kinds, tied, stored)
    own = fields.dtype()
    element = _bytes_of(own if dtype in (None, "auto") else dtype)
    if own is None and dtype in (None, "auto"):
        element = 2
    embedded = shape.embedding * (1 if tied else 2)  # left as it is by what is quantised on loading
    weight_bytes = None
    if kind is not None:
        weight_bytes = None if stored is None else stored.size_bytes
    elif total is not None and element is not None:
        if quantization is None:
            weight_bytes = total * element
        elif quantization in _FP8_ONLINE:
            weight_bytes = total - embedded + embedded * element
    architectures = fields.words("architectures", around=True)
    kv_width = _kv_width(fields, kinds, kv_heads, head_dim)
    kv_bytes = _kv_element(fields, kv_cache_dtype, element)
    return ModelFacts(
        name=name,
        architecture=architectures[0] if architectures else None,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=shape.width,
        vocab_size=vocabulary,
        num_experts=experts,
        experts_per_token=per_token,
        total_parameters=total,
        active_parameters=active,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=None if kv_width is None or kv_bytes is None
        else layers * kv_width * kv_bytes,
        attention=kinds,
        sliding_window=window if "sliding_attention" in kinds else None,
        quantization=kind,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What `_matrices` counts; `attention` is a layer's, the embedding's is one matrix."""

    layers: int
    hidden: int
    attention: int
    width: int | None
    expert_width: int | None
    experts: int | None
    per_token: int | None
    embedding: int


def _layers(fields: Fields) -> int:
    """Return the number of layers; configs of hybrids may only list their kinds."""
    listed = fields.words("layers_block_type")
    if listed and fields.get("num_hidden_layers") is None:
        return len(listed)
    return fields.need("num_hidden_layers")


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    """Return the width of a head; of latent attention that of its queries and keys."""
    if fields.get("kv_lora_rank"):
        turned = fields.count("qk_rope_head_dim", least=0) or 0
        return fields.need("qk_nope_head_dim") + turned
    told = fields.count("head_dim", "attention_head_dim")
    if told is None and hidden % heads:
        raise UsageError(
            f"{fields.where}: hidden_size {hidden} is no multiple of num_attention_heads {heads}, "
            "and there is no field head_dim"
        )
    return told or hidden // heads


def _parameters(
    fields: Fields,
    shape: _Shape,
    kinds: tuple[str, ...],
    tied: bool,
    stored: Stored | None,
) -> tuple[int | None, int | None]:
    """Return all parameters and the active ones."""
    embedding = 0 if tied else shape.embedding
    spared = 0.0
    if shape.experts:
        spared = 1.0 if shape.per_token is None else 1 - shape.per_token / shape.experts
    if stored is not None and stored.parameters is not None:
        total = stored.parameters - (stored.output if tied else 0)
        if shape.experts and (shape.per_token is None or not stored.experts):
            return total, None
        return total, total - stored.towers - embedding - round(stored.experts * spared)
    matrices = _matrices(fields, shape, kinds)
    if matrices is None:
        return None, None
    of_text = matrices + shape.embedding * (1 if tied else 2)
    active = of_text - embedding
    if shape.experts:
        if shape.per_token is None:
            return of_text, None
        width = shape.expert_width or shape.width or 0
        unvisited = shape.experts - shape.per_token
        active -= shape.layers * unvisited * 3 * shape.hidden * width
    towers = any(fields.get(name, around=True) is not None for name in _OTHER_TOWERS)
    return None if towers else of_text, active


def _matrices(fields: Fields, shape: _Shape, kinds: tuple[str, ...]) -> int | None:
    """Return the parameters of a config's layers, None where it is not known that these are all."""
    named = {*fields.words("architectures"), str(fields.get("model_type"))}
    shared = ("n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size")
    others = [
        set(kinds) - {"full_attention", "sliding_attention"},
        any(fields.get(name) for name in (*shared, "mlp_only_layers", "first_k_dense_replace")),
        fields.get("decoder_sparse_step") not in (None, 1),
    ]
    width = shape.width if not shape.experts else shape.expert_width or shape.width
    if not named & _COUNTED or any(others) or width is None:
        return None
    return shape.layers * (shape.attention + (shape.experts or 1) * 3 * shape.hidden * width)


def _kv_width(fields: Fields, kinds: tuple[str, ...], kv_heads: int, head_dim: int) -> int | None:
    """Return the values that a layer keeps of a token, None where not all layers keep as many."""
    if kinds == ("latent_attention",):
        rank, rope = fields.count("kv_lora_rank"), fields.count("qk_rope_head_dim", least=0)
        return None if rank is None else rank + (rope or 0)
    alike = kinds in (("full_attention",), ("sliding_attention",))
    values = fields.count("v_head_dim") or head_dim
    if not alike or values != head_dim or any(fields.get(name) for name in _OTHER_KV):
        return None
    return 2 * kv_heads * head_dim


def _kv_element(fields: Fields, kv_cache_dtype: str | None, element: int | None) -> int | None:
    """Return the bytes of a value in the cache, None of a form that is not known."""
    if kv_cache_dtype not in (None, "auto"):
        plain = str(kv_cache_dtype).removeprefix("torch.")
        known = ("fp8_e4m3", "fp8_e5m2", "fp8_inc", *_DTYPE_BYTES)
        return _bytes_of(plain) if plain in known else None
    quantised = _quantised(fields) or {}
    told = quantised.get("kv_cache_quant_algo") or quantised.get("kv_cache_scheme")
    if not told:
        return element
    bits = told.get("num_bits") if isinstance(told, Mapping) else told
    return 1 if bits == 8 or str(bits).upper() == "FP8" else None


def _quantised(fields: Fields) -> dict[str, Any] | None:
    """Return what a config says of quantisation, in one object; None where it says nothing."""
    names = ("quantization_config", "compression_config")
    found = fields.get(*names, around=True)
    to_dict = None if isinstance(found, Mapping) else field_of(found, "to_dict")
    found = to_dict() if callable(to_dict) else found  # an object of transformers'
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise fields.wrong(names, found, "an object")
    inner = found.get("quantization")
    return {**found, **inner} if isinstance(inner, Mapping) else dict(found)


def _quantization(fields: Fields) -> str | None:
    """Return how a checkpoint's weights are quantised, in short; None where they are not."""
    told = _quantised(fields)
    if told is None:
        dtype = fields.dtype()
        return dtype if _bytes_of(dtype) == 1 else None
    algorithm, method, form = (told.get(n) for n in ("quant_algo", "quant_method", "format"))
    if isinstance(algorithm, str) and algorithm:
        return algorithm.lower()[:LONGEST]
    if not isinstance(method, str) or not method:
        bits = told.get("load_in_4bit") or told.get("load_in_8bit")
        return "bitsandbytes" if bits else "an unknown form" if told else None
    if method == "fp8" and told.get("weight_block_size"):
        return "fp8_block"
    return (f"{method} {form}" if isinstance(form, str) and form else method)[:LONGEST]


def _attention(fields: Fields) -> tuple[str, ...]:
    """Return the kinds of layers that mix tokens, sorted (`ModelFacts.attention`)."""
    listed = fields.words("layer_types", "layers_block_type")
    found = {"full_attention" if kind == "attention" else kind for kind in listed}
    if "deepseek_sparse_attention" in found:
        found = found - {"deepseek_sparse_attention"} | {"indexed_attention"}
    found -= set(_NO_MIXING)
    if fields.get("kv_lora_rank"):
        found = found - {"full_attention"} | {"latent_attention"}
    elif not listed:
        window = fields.get("sliding_window", "sliding_window_size")
        if window and fields.flag("use_sliding_window") is not False:
            found.add("sliding_attention")
            if any(fields.get(name) for name in _PATTERNS):
                found.add("full_attention")
        elif fields.get("attention_chunk_size"):
            found.add("chunked_attention")
        else:
            found.add("full_attention")
    kinds = fields.get("attn_type_list")
    linear = isinstance(kinds, list) and 0 in kinds
    if linear or (not listed and any(fields.get(name) for name in _STATES)):
        found.add("linear_attention")
    if any(fields.get(name) for name in _INDEXED):
        found.add("indexed_attention")
    if fields.flag("is_encoder_decoder"):
        found.add("cross_attention")
    return tuple(sorted(found))


def facts_from_folder(folder: Path, *, name: str, dtype: str | None = None) -> ModelFacts | None:
    """Read the facts from a Hugging Face folder; None where it is not one or is not readable."""
    try:
        return facts_from_file(folder / "config.json", name=name, dtype=dtype)
    except (UsageError, OSError, ValueError):  # a name that can be no path
        return None


def facts_from_file(path: Path, *, name: str | None = None, dtype: str | None = None) -> ModelFacts:
    """Read the facts from a model's config, a JSON file of any name, or its folder.

    A file config.json has its model's name in its folder, and perhaps the weights beside it. How
    they are quantised may be in a hf_quant_config.json. Raises UsageError with the file and the
    field for what is no config.
    """
    file = path / "config.json" if path.is_dir() else path
    whole = file.name == "config.json"
    config: Any = _json(file)
    extra = file.with_name(f"{file.name.removesuffix('config.json')}hf_quant_config.json")
    if (
        file.name.endswith("config.json")
        and config.get("quantization_config") is None
        and extra.is_file()
    ):
        config = {**config, "quantization_config": _json(extra)}
    around: list[Any] = []
    while (part := next((n for n in _TEXT if config.get(n) is not None), None)) is not None:
        inner = config[part]
        if not isinstance(inner, dict):
            raise UsageError(f"{file}: {part} is {shown(inner)}, not an object")
        around.insert(0, {key: value for key, value in config.items() if key != part})
        config = inner
    return facts_from_config(
        config,
        name=name or (file.parent.resolve().name if whole else file.stem),
        folder=file.parent if whole else None,
        dtype=dtype,
        around=around,
        where=str(file),
    )


def _json(file: Path) -> dict[str, Any]:
    """Return the object in a file. Raises UsageError where there is none."""
    try:
        if file.exists() and not (file.is_file() and file.stat().st_size <= _MOST_CONFIG_BYTES):
            raise UsageError(f"{file}: is no file of at most {_MOST_CONFIG_BYTES >> 20} MB")
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read ({error.strerror}). Give a model's config.json, or its folder"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: is no JSON ({error}). Give a model's config.json") from None
    if not isinstance(found, dict):
        raise UsageError(f"{file}: holds no JSON object. Give a model's config.json")
    return found
