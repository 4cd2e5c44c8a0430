"""What a model costs, from its Hugging Face config and the headers of its weights.

The weights as an engine holds them are no guide: engines repack, fuse and pad them (a CPU
build leaves a float32 model with a twentieth of its parameters registered). What a config has that
is not counted here makes the number None, never a wrong one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from profiler.engines.models.config_fields import Fields, ListedError, shown
from profiler.engines.models.config_layers import (
    DRAFTING,
    EXPERTS,
    KV_HEADS,
    VISITED,
    Parts,
    head_dim,
    layer_count,
    parts_of,
    window_of,
)
from profiler.engines.models.quantised import DTYPE_BYTES, Form, Quantised, bytes_of
from profiler.engines.models.stored_weights import Stored, stored_weights
from traces.errors import UsageError
from traces.foreign.packages import PRIOR, package_folder
from traces.schema.engine import ModelFacts
from traces.schema.layers import Matrix

_QUANTISED: Final = "hf_quant_config.json"
_MOST_CONFIG_BYTES: Final = 16 << 20
_TEXT: Final = (
    "text_config",
    "llm_config",
    "language_config",
    "thinker_config",
    "transformer_layer_config",  # of a head that drafts, as vLLM's speculators have it
)
# Fields that make the keys and values of a token others than a head's in every layer alike.
_OTHER_KV: Final = (
    "global_head_dim", "num_global_key_value_heads", "num_kv_shared_layers", "v_head_dim",
    "per_layer_config", "block_configs",
)  # fmt: skip
_FP8_ONLINE: Final = ("fp8", "ptpc_fp8", "fp8_per_tensor", "fp8_per_block")
# Bytes of a value in caches of other forms: vLLM's fp8_ds_mla keeps 656 for 576 values.
_CACHE_BYTES: Final = {
    **DTYPE_BYTES, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "fp8_ds_mla": 656 / 576,
    "nvfp4": 0.5 + 1 / 16,
}  # fmt: skip


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
    beside: dict[str, Any] | None = None,
) -> ModelFacts:
    """Build the facts from a Hugging Face config: an object with its fields, or a mapping.

    `around` are the configs that this one, of the language model, lies in; `quantization` is what
    the engine was started with; `beside` is a hf_quant_config.json, if not that in `folder`.
    Parameters are those of the layers' matrices and of what is outside of them (norms and biases
    left out), or counted in the headers of the safetensors files in `folder` where these are there
    and not packed. Active parameters leave out experts that a
    token does not visit, what looks at images, and an untied input embedding, which is a look-up
    and no multiplication. Weight bytes are those of each matrix's form (`quantised`), or of the
    files. What cannot be known so is None, and `uncounted` says why. Raises UsageError, naming
    `where` and the field, for a config that is none.
    """
    fields = Fields(config, where or f"the config of {name}", around)
    layers, hidden = layer_count(fields), fields.need("hidden_size")
    heads, vocabulary = fields.need("num_attention_heads"), fields.need("vocab_size")
    kv_heads = fields.count(*KV_HEADS)
    if heads % (kv_heads or heads):
        raise UsageError(
            f"{fields.where}: num_attention_heads {heads} is no multiple of num_key_value_heads "
            f"{kv_heads}"
        )
    experts, per_token = _experts(fields)
    stored = stored_weights(folder, layers)
    if beside is None and folder is not None and (folder / _QUANTISED).is_file():
        beside = _json(folder / _QUANTISED)
    quantised = Quantised(fields, layers, beside)
    kind = quantised.kind or (None if stored is None else stored.quantized)
    tied = fields.tied()
    if tied is None:
        tied = stored is not None and not stored.output
    named = fields.dtype()
    if dtype not in (None, "auto"):
        named = str(dtype).removeprefix("torch.")
    elif named in (None, "float32"):  # which vLLM's auto halves
        named = "bfloat16"
    element = bytes_of(named)
    plain = named if element != 1 else "bfloat16"  # of what is left of quantised weights
    parts = parts_of(
        fields, quantised, Form(name=plain, parameter_bytes=bytes_of(plain)), tied=tied
    )
    if parts.layers is not None:  # a config's class may have experts by default that no layer has
        shape = next((each.experts for each in parts.layers if each.experts), None)
        experts, per_token = (None, None) if shape is None else (shape.total, shape.active)
    uncounted = parts.uncounted
    if uncounted is None and quantised.kind is not None:
        uncounted = _unknown_form(parts, quantised, plain)
    total, active = _parameters(parts, tied, stored, vocabulary * hidden, experts, per_token)
    weight_bytes = None
    if uncounted is None or stored is not None:
        weight_bytes = _weight_bytes(parts, total, element, quantization, stored, kind is not None)
    cache = None if kv_cache_dtype in (None, "auto") else str(kv_cache_dtype)
    cache = (cache or quantised.cache or plain).removeprefix("torch.")
    facts = ModelFacts(
        name=name,
        architecture=next(iter(fields.words("architectures", around=True)), None),
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or _most_kv_heads(parts) or heads,
        head_dim=head_dim(fields),
        intermediate_size=_unless_listed(fields, "intermediate_size"),
        vocab_size=vocabulary,
        num_experts=experts,
        experts_per_token=per_token,
        total_parameters=total,
        active_parameters=active,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=None,
        attention=parts.kinds,
        sliding_window=window_of(fields)
        if "sliding_attention" in parts.kinds else None,
        quantization=kind,
        kv_cache_dtype=cache,
        kv_value_bytes=_CACHE_BYTES.get(cache),
        mtp_layers=fields.count(*DRAFTING, least=0),
        layers=parts.layers,
        others=parts.others,
        uncounted=uncounted,
    )  # fmt: skip
    kept = facts.kv_bytes(1)
    if parts.layers is None and stored is not None:
        kept = _kept_bytes(fields, facts)
    return replace(
        facts,
        kv_bytes_per_token=None if kept is None else round(kept),
        state_bytes_per_request=facts.state_bytes(),
    )


def _kept_bytes(fields: Fields, facts: ModelFacts) -> float | None:
    """Return the cache's bytes of a token where only the files tell what a model weighs.

    None where not all layers are known to keep as much as a head's keys and values.
    """
    alike = facts.attention in (("full_attention",), ("sliding_attention",))
    if not alike or facts.kv_value_bytes is None or any(fields.get(name) for name in _OTHER_KV):
        return None
    values = 2 * facts.num_hidden_layers * facts.num_key_value_heads * facts.head_dim
    return values * facts.kv_value_bytes


def _most_kv_heads(parts: Parts) -> int | None:
    """Return the KV heads of a layer, of a config that only has them layer by layer."""
    heads = [each.attention.kv_heads for each in parts.layers or () if each.attention is not None]
    return max(heads, default=None)


def _unknown_form(parts: Parts, quantised: Quantised, whole: str) -> str | None:
    """Return what is not understood of how weights are quantised, None where all is."""
    if quantised.unknown is not None:
        return f"quantised weights of {quantised.unknown}, which no layer has"
    forms = {each.precision: each.parameter_bytes for _, each in _matrices(parts)}
    if quantised.unread or None in forms.values() or not set(forms) - {whole}:
        return f"weights quantised as {quantised.kind}, in a form that is not known"
    return None


def _unless_listed(fields: Fields, *names: str) -> int | None:
    """Return a whole number, None where it is another in some layers."""
    try:
        return fields.count(*names, least=0)
    except ListedError:
        return None


def _experts(fields: Fields) -> tuple[int | None, int | None]:
    """Return a layer's experts, and how many a token visits."""
    experts = _unless_listed(fields, *EXPERTS) or None
    visited = _unless_listed(fields, *VISITED) or None
    if experts is None:
        return None, None
    if visited is not None and visited > experts:
        raise UsageError(
            f"{fields.where}: {visited} experts are visited of the {experts} there are"
        )
    groups = fields.count("n_group", "num_expert_group", least=0)
    if groups and experts % groups:
        raise UsageError(f"{fields.where}: {experts} experts are no multiple of n_group {groups}")
    return experts, visited


def _parameters(
    parts: Parts,
    tied: bool,
    stored: Stored | None,
    embedding: int,
    experts: int | None,
    per_token: int | None,
) -> tuple[int | None, int | None]:
    """Return all parameters and the active ones."""
    if stored is not None and stored.parameters is not None:
        total = stored.parameters - (stored.output if tied else 0)
        if experts and (per_token is None or not stored.experts):
            return total, None
        unvisited = 0.0 if not experts or per_token is None else 1 - per_token / experts
        looked_up = 0 if tied else embedding
        return total, total - stored.towers - looked_up - round(stored.experts * unvisited)
    if parts.layers is None:
        return None, None
    return (
        sum(count * each.parameters for count, each in _matrices(parts)),
        sum(count * each.active_parameters for count, each in _matrices(parts)),
    )


def _matrices(parts: Parts) -> Iterable[tuple[int, Matrix]]:
    yield from ((1, each) for each in parts.others)
    yield from ((g.count, each) for g in parts.layers or () for each in g.matrices)


def _weight_bytes(
    parts: Parts,
    total: int | None,
    element: int | None,
    quantization: str | None,
    stored: Stored | None,
    quantised: bool,
) -> int | None:
    """Return the bytes of all weights, in the files or as they are loaded."""
    if quantised and stored is not None:
        return stored.size_bytes
    if quantised or element is None:
        sizes = [(count, each.size_bytes) for count, each in _matrices(parts)]
        if not quantised or not sizes or any(size is None for _, size in sizes):
            return None
        return round(sum(count * size for count, size in sizes if size is not None))
    if total is None or quantization is None:
        return None if total is None else total * element
    if quantization not in _FP8_ONLINE or parts.layers is None:
        return None
    outside = sum(each.parameters for each in parts.others)  # is left as it is
    return total - outside + outside * element


def facts_from_folder(folder: Path, *, name: str, dtype: str | None = None) -> ModelFacts | None:
    """Read the facts from a Hugging Face folder; None where it is not one or is not readable."""
    try:
        return facts_from_file(folder / "config.json", name=name, dtype=dtype)
    except (UsageError, OSError, ValueError):  # a name that can be no path
        return None


def given_facts(path: Path) -> ModelFacts:
    """Return the facts of `--model-config`. Raises UsageError that names the option.

    A name such as Qwen/Qwen3-32B, where no such file is, is one of the prior's package.
    """
    try:
        return facts_from_file(path) if path.exists() else _facts_by_name(path)
    except UsageError as error:
        raise UsageError(f"--model-config {error}") from None
    except OSError as error:  # such as a name that is too long
        what = f"{str(path)[:80]}: cannot be read ({error.strerror})"
        raise UsageError(
            f"--model-config {what}. Give a model's config.json, or its folder"
        ) from None


def _facts_by_name(path: Path) -> ModelFacts:
    """Return the facts of a model by its name, from the config in the prior's package.

    Raises UsageError for another, with names that are near.
    """
    folder, name = package_folder(PRIOR, "model_configs"), str(path)
    found = [] if folder is None else sorted(folder.glob("*--*_config.json"))
    names = {each.name.removesuffix("_config.json").replace("--", "/", 1): each for each in found}
    if name in names:
        return facts_from_file(names[name], name=name)
    near = difflib.get_close_matches(name, names, n=2)
    if near:
        meant = " or ".join(near)
        raise UsageError(f"{name}: no such file, nor such a model. Did you mean {meant}?")
    return facts_from_file(path)  # which says that it cannot be read


def facts_from_file(path: Path, *, name: str | None = None, dtype: str | None = None) -> ModelFacts:
    """Read the facts from a model's config, a JSON file of any name, or its folder.

    A file config.json has its model's name in its folder, and perhaps the weights beside it. How
    they are quantised may be in a hf_quant_config.json. Raises UsageError with the file and the
    field for what is no config.
    """
    file = path / "config.json" if path.is_dir() else path
    in_folder = file.name == "config.json"
    config: Any = _json(file)
    extra = file.with_name(f"{file.name.removesuffix('config.json')}{_QUANTISED}")
    beside = _json(extra) if file.name.endswith("config.json") and extra.is_file() else None
    around: list[Any] = []
    while (part := next((n for n in _TEXT if config.get(n) is not None), None)) is not None:
        inner = config[part]
        if not isinstance(inner, dict):
            raise UsageError(f"{file}: {part} is {shown(inner)}, not an object")
        around.insert(0, {key: value for key, value in config.items() if key != part})
        config = inner
    return facts_from_config(
        config,
        name=name
        or (file.parent.resolve().name if in_folder else file.stem.removesuffix("_config")),
        folder=file.parent if in_folder else None,
        dtype=dtype,
        around=around,
        where=str(file),
        beside=beside,
    )


def _json(file: Path) -> dict[str, Any]:
    """Return the object in a file. Raises UsageError where there is none."""
    try:
        if file.exists() and not (file.is_file() and file.stat().st_size <= _MOST_CONFIG_BYTES):
            raise UsageError(f"{file}: is no file of at most {_MOST_CONFIG_BYTES >> 20} MB")
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read ({error.strerror}). Give a model's config.json, or its folder"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: is no JSON ({error}). Give a model's config.json") from None
    if not isinstance(document, dict):
        raise UsageError(f"{file}: holds no JSON object. Give a model's config.json")
    return document
