"""What each layer of a model holds, by the fields of its Hugging Face config.

Most of it follows from which fields are there, whatever the model is called. What families have
under other names stands in tables. A field that speaks of sizes and that nothing here reads makes
the whole uncounted: a part that is left out would make a wrong number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from profiler.engines.models.config_fields import Fields, ListedError, shown
from profiler.engines.models.quantised import Form, Quantised, bytes_of
from traces.errors import UsageError
from traces.schema.layers import Attention, Experts, Layers, Matrix, State

MOST_LAYERS: Final = 2_048

EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
VISITED: Final = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts",
    "moe_top_k", "moe_topk", "moe_k",
)  # fmt: skip
_SHARED: Final = (
    "n_shared_experts",
    "num_shared_experts",
    "num_shared_expert",
    "moe_num_shared_experts",
)
_SHARED_WIDTH: Final = (
    "moe_shared_expert_intermediate_size", "shared_expert_intermediate_size",
    "shared_intermediate_size", "share_expert_dim",
)  # fmt: skip
_EXPERT_WIDTH: Final = (
    "moe_intermediate_size",
    "expert_intermediate_size",
    "expert_ffn_hidden_size",
)
_DENSE_WIDTH: Final = ("dense_intermediate_size", "intermediate_size_mlp", "intermediate_size")
_WIDTHS: Final = {
    "granitemoehybrid": "shared_intermediate_size", "longcat_flash": "ffn_hidden_size",
}  # fmt: skip
_LATENT_EXPERTS: Final = ("moe_latent_size", "routed_expert_hidden_size")
KV_HEADS: Final = ("num_key_value_heads", "num_attention_groups")
DRAFTING: Final = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")

# Words of layers in configs, by what they are here: what mixes tokens, and what follows it.
_MIXERS: Final = {
    "full_attention": "full_attention", "attention": "full_attention", "global": "full_attention",
    "sliding_attention": "sliding_attention", "sliding": "sliding_attention",
    "chunked_attention": "chunked_attention", "linear_attention": "linear_attention",
    "deepseek_sparse_attention": "full_attention", "indexed_attention": "full_attention",
    "compressed_sparse_attention": "compressed_attention",
    "heavily_compressed_attention": "compressed_attention", "mamba": "mamba", "mamba2": "mamba",
    "hybrid": "hybrid", "conv": "conv",
}  # fmt: skip
_ALONE: Final = {"mlp": "dense", "moe": "moe"}  # layers that look at one token alone
_LETTERS: Final = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}  # of Nemotron-H
_SHORTCUT: Final = "longcat_flash"
# Fields with a number for each layer: what layers of a number above 0 are, and what the others.
_FLAGS: Final = (
    ("compress_ratios", "compressed_attention", "sliding_attention"),
    ("attn_type_list", "full_attention", "linear_attention"),
    ("hybrid_layer_pattern", "sliding_attention", "full_attention"),
)
_FULL: Final = ("attn_layer_indices", "full_attn_idxs")  # of Bamba, of older configs of LFM2
_PATTERNS: Final = ("sliding_window_pattern", "_sliding_window_pattern")
_TOWERS: Final = ("vision_config", "audio_config", "visual_config")
_GATED_TOWERS: Final = ("pixtral", "gemma4_vision")  # whatever their activation
# Models whose every n-th layer reads all of the context where their config does not say.
_ALTERNATING: Final = {"gemma2": 2, "gpt_oss": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4,
                       "exaone4": 4, "olmo3": 4, "vaultgemma": 2, "gemma4_text": 6,
                       "afmoe": 4}  # fmt: skip
_GATED: Final = (
    "silu",
    "swish",
    "swiglu",
    "swigluoai",
    "situ",
    "gelu_pytorch_tanh_gated",
    "gelu_glu",
)
_GATED_TYPES: Final = re.compile(
    r"bitnet|lfm2|gemma|gpt_?oss|grok|qwen|llama|mistral|mixtral|minimax|glm|deepseek|step3"
    r"|phi3|phimoe|granite|olmo|exaone|hunyuan|ernie|bailing|longcat|seed_oss|cohere|smollm"
)
_ACTIVATIONS: Final = ("mlp_hidden_act", "hidden_act", "hidden_activation", "activation_function")
_UNGATED: Final = ("relu2", "relu_squared", "xielu")
_UNGATED_TYPES: Final = re.compile(r"nemotron|starcoder2|^phi$|gpt_neox|arcee")
_GATED_QUERIES: Final = re.compile(r"qwen3_(next|5)")  # where the config does not say
# Model types of which every part is counted, so that none of their fields can mean another.
_COUNTED: Final = frozenset({
    "llama", "mistral", "ministral", "qwen2", "qwen3", "mimo", "mixtral", "qwen2_moe", "qwen3_moe",
    "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_vl_text", "qwen3_vl_moe_text",
    "gpt_oss", "minimax_m2", "minimax_m3", "deepseek_v2", "deepseek_v3", "deepseek_v32",
    "deepseek_v4", "kimi_k2", "kimi_linear", "glm4_moe", "glm_moe_dsa", "nemotron_h",
    "nemotron-nas", "gemma2", "gemma3_text", "gemma4_text", "llama4_text", "mimo_v2_flash",
    "step3p5", "step3p7", "minimax", "minimax_text_01", "minimax_m1", "DeepseekV4ForCausalLM",
    "granitemoehybrid", "jamba", "falcon_h1", "lfm2", "lfm2_moe", "longcat_flash",
})  # fmt: skip
_MAMBA: Final = (
    ("mamba_num_heads", "mamba_n_heads"), ("mamba_head_dim", "mamba_d_head"),
    ("n_groups", "mamba_n_groups"), ("ssm_state_size", "mamba_d_state"),
    ("conv_kernel", "mamba_d_conv"),
)  # fmt: skip
_STRUCTURE: Final = re.compile(
    r"(size|dim|dims|rank|heads|layers|experts?|width|groups?|mult|kernel|state|ratios?|patterns?"
    r"|(layer|block)_types?|freq|interval|configs?|cycles|stack|streams|inputs|blocks|depth|tower)$"
)
_READ: Final = frozenset({
    *EXPERTS, *VISITED, *_SHARED, *_SHARED_WIDTH, *_EXPERT_WIDTH, *_DENSE_WIDTH, *_LATENT_EXPERTS,
    *KV_HEADS, *DRAFTING, *_PATTERNS, *_TOWERS, "num_hidden_layers", "hidden_size", "head_dim",
    "num_attention_heads", "vocab_size", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "share_q_dim", "qk_head_dim", "v_head_dim", "index_head_dim",
    "index_n_heads", "layer_types", "layers_block_type", "mlp_layer_types", "hybrid_layer_pattern",
    "moe_layer_freq", "mlp_only_layers", "sliding_window_size", "linear_key_head_dim",
    "linear_value_head_dim", "linear_num_key_heads", "linear_num_value_heads",
    "linear_conv_kernel_dim", "mamba_num_heads", "mamba_head_dim", "mamba_n_heads", "n_groups",
    "mamba_n_groups", "mamba_d_state", "ssm_state_size", "conv_kernel", "attention_head_dim",
    "full_attention_interval", "linear_attn_config", "layer_group_size", "group_norm_size",
    "sparse_attention_config", "linear_head_dim", "linear_num_heads", "num_dense_layers",
    "moe_layer_interval", "per_layer_config", "attention_chunk_size", "num_hash_layers",
    "num_layers", "draft_vocab_size",
})  # fmt: skip
# Fields that speak of sizes which no weight and no cache depends on.
_NO_MATTER: Final = re.compile(
    r"^(rope_.*|partial_rotary.*|rotary_dim|.*router.*|n_group|topk_group"
    r"|num_expert_groups?|num_limited_groups|order_of_interleaved_layers|scale_depth"
    r"|chunk_size|chunk_size_feed_forward|max_.*|num_logits_to_keep|num_beam_groups|ep_size"
    r"|_?(num_)?mtp_.*|quantization_config|compression_config|generation_config"
    r"|no_repeat_ngram_size|encoder_no_repeat_ngram_size|pruned_heads|.*_token_.*"
    r"|index_topk_freq|type_vocab_size|initializer.*|.*(tp|ep|pp)_plan|tie_.*"
    r"|mamba_chunk_size|no_rope_layers|no_rope_layer_interval|global_attn_every_n_layers|.*_loss_.*|time_step_.*"
    r"|original_.*|org_vocab_size)$"
)
_STATES: Final = (
    "state_size", "ssm_state_size", "mamba_d_state", "mamba_d_ssm", "linear_num_value_heads",
    "linear_attn_config", "layer_group_size",
)  # fmt: skip
_STATEFUL: Final = {"mamba", "linear_attention", "hybrid"}
_STATE_DTYPES: Final = ("mamba_ssm_cache_dtype", "mamba_ssm_dtype")
# By what a matrix is called here, the other names of its module and of itself in checkpoints.
_BLOCKS: Final = {
    "self_attn": ("self_attn", "attn", "attention", "mixer"),
    "linear_attn": ("linear_attn", "self_attn", "mixer", "mamba"),
    "mlp": ("mlp", "ffn", "feed_forward", "block_sparse_moe", "mixer"),
    "moe": ("moe", ""),
}  # fmt: skip
_LEAVES: Final = {
    "gate_proj": ("gate_proj", "w1", "gate_up_proj"), "up_proj": ("up_proj", "w3", "gate_up_proj"),
    "down_proj": ("down_proj", "w2"), "q_proj": ("q_proj", "qkv_proj"),
    "k_proj": ("k_proj", "qkv_proj"), "v_proj": ("v_proj", "qkv_proj"), "gate": ("gate", "router"),
    "shared_experts": ("shared_experts", "shared_expert"), "o_proj": ("o_proj", "out_proj"),
}  # fmt: skip
_PLAIN: Final = ("gate", "conv1d", "hyper_connection", "weights_proj", "compressor")


# Heads that draft from a model's hidden states, by their architectures.
_EAGLE_3: Final = re.compile(r"eagle-?3", re.I)
_BLOCKS_OF_DRAFTS: Final = re.compile(r"draft_?model", re.I)  # DFlash, DSpark
_TAPPED: Final = 3  # hidden states of the model that an EAGLE-3 head joins (arXiv 2503.01840)


class _UncountedError(Exception):
    """A part of a config is not understood; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A model's layers and the matrices outside of them; None and why where they are not counted.

    `kinds` are those of the layers that mix tokens, in the words of `ModelFacts.attention`.
    """

    kinds: tuple[str, ...]
    layers: tuple[Layers, ...] | None
    others: tuple[Matrix, ...]
    uncounted: str | None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a layer is: what mixes tokens, what follows, and what else makes it another's equal."""

    mixer: str | None
    after: str | None
    index: str | None = None
    ratio: int = 1
    kept: bool = True
    head_dim: int | None = None  # this and what follows of this layer alone
    kv_heads: int | None = None
    mlp_width: int | None = None


def parts_of(fields: Fields, quantised: Quantised, plain: Form, *, tied: bool) -> Parts:
    """Return what a model is made of, in the forms of its checkpoint.

    `plain` is the form of what is not quantised. Raises UsageError, naming file and field, for
    fields that contradict themselves.
    """
    count = layer_count(fields)
    mixers = _mixers(fields, count)
    kinds = _kinds(fields, mixers)
    try:
        _check_fields(fields)
        built: dict[_Place, Layers] = {}
        groups: dict[Layers, list[int]] = {}
        words: set[str] = set()
        for number, place in enumerate(_places(fields, mixers, count)):
            layer = built.get(place)
            if layer is None:
                layer = built[place] = _layer(fields, place, plain)
                names = [name for each in layer.matrices for name in _names(each.name)]
                words |= {word for name in names for word in name.split(".")}
            matrices = tuple(_stored(each, number, quantised, plain) for each in layer.matrices)
            groups.setdefault(replace(layer, matrices=matrices), []).append(number)
        others = tuple(
            _in_form(each, quantised.of(["lm_head"], plain, linear=False))
            if each.name == "lm_head"
            else _in_form(each, plain)
            for each in _others(fields, tied=tied, layers=count)
        )
        quantised.check(words | {"Linear", "head", "lm_head", "experts", "router", "0"}, count)
    except ListedError as error:
        why = f"parts that {error.name} lists"
        return Parts(kinds=kinds, layers=None, others=(), uncounted=why)
    except _UncountedError as error:
        return Parts(kinds=kinds, layers=None, others=(), uncounted=str(error))
    layers = tuple(replace(group, places=tuple(numbers)) for group, numbers in groups.items())
    return Parts(kinds=kinds, layers=layers, others=others, uncounted=None)


def layer_count(fields: Fields) -> int:
    """Return the number of layers; configs of hybrids may only list their kinds."""
    listed = fields.words("layers_block_type")
    if listed and fields.get("num_hidden_layers") is None:
        return len(listed)
    count = fields.need("num_hidden_layers", "num_layers")
    if fields.get("model_type") == _SHORTCUT:  # each holds two, the first with experts too
        count = 2 * fields.need("num_layers")
    if count > MOST_LAYERS:
        raise UsageError(
            f"{fields.where}: num_hidden_layers is {count:,}, more than the {MOST_LAYERS:,} that "
            "ttscope counts"
        )
    return count


# What each layer is.


def _mixers(fields: Fields, count: int) -> list[str]:
    """Return the word of each layer, as its config has it."""
    words = fields.words("layer_types", "layers_block_type")
    letters = fields.get("hybrid_override_pattern")
    period, full = fields.count("attn_layer_period"), fields.numbers(*_FULL)
    if words:
        state = "mamba" if _is_mamba(fields) else "linear_attention"
        words = [state if word == "linear_attention" else word for word in words]
    elif fields.get("model_type") == "falcon_h1":  # attention and Mamba side by side
        words = ["hybrid"] * count
    elif full:
        other = "mamba" if fields.get(_FULL[0]) else "conv"
        words = _either("full_attention", other, (number in full for number in range(count)))
    elif period:
        offset = fields.count("attn_layer_offset", least=0) or 0
        at = (number % period == offset for number in range(count))
        words = _either("full_attention", "mamba", at)
    elif isinstance(letters, str):
        words = [_LETTERS.get(letter, letter) for letter in letters]
    elif row := next((each for each in _FLAGS if fields.get(each[0]) is not None), None):
        name, one, other = row
        flags = fields.numbers(name) or []
        words = _either(one, other, flags[:count] if name == "compress_ratios" else flags)
    elif (linear := fields.inner("linear_attn_config")) is not None:
        states = set(linear.numbers("kda_layers") or ())
        at = (number in states for number in range(1, count + 1))
        words = _either("linear_attention", "full_attention", at)
    else:
        words = _by_rule(fields, count)
    return words


def _by_rule(fields: Fields, count: int) -> list[str]:
    """Return the word of each layer where the config gives a rule, or none."""
    numbers, kind = range(1, count + 1), str(fields.get("model_type"))
    every = fields.count("full_attention_interval", "layer_group_size")
    if any(fields.get(name) for name in _STATES):
        full = [not every or number % every == 0 for number in numbers]
        return _either("full_attention", "linear_attention", full)
    if window_of(fields) and fields.flag("use_sliding_window") is not False:
        pattern = fields.get(*_PATTERNS) or _ALTERNATING.get(kind)
        widest = fields.count("max_window_layers", least=0) or 0
        if isinstance(pattern, str) and pattern:
            full = [pattern[(number - 1) % len(pattern)] == "G" for number in numbers]
        elif isinstance(pattern, int) and pattern > 0:
            full = [number % pattern == 0 for number in numbers]
        else:
            full = [bool(fields.flag("use_sliding_window")) and n <= widest for n in numbers]
        return _either("full_attention", "sliding_attention", full)
    if fields.get("attention_chunk_size"):
        rotated = fields.numbers("no_rope_layers") or []
        nope = fields.count("no_rope_layer_interval") or (4 if kind.startswith("llama4") else 0)
        local = [bool(number % nope) if nope else True for number in numbers]
        local[: len(rotated)] = map(bool, rotated[:count])
        return _either("chunked_attention", "full_attention", local)
    return ["full_attention"] * count


def _either(one: str, other: str, flags: Iterable[Any]) -> list[str]:
    return [one if flag else other for flag in flags]


def _is_mamba(fields: Fields) -> bool:
    """Return whether layers with a state are Mamba's, which transformers calls linear too."""
    linear = ("linear_attn_config", "linear_num_value_heads", "linear_num_heads")
    return not any(fields.get(name) for name in linear) and any(
        fields.get(name) for name in (*_MAMBA[0], "mamba_d_state")
    )


def window_of(fields: Fields) -> int | None:
    """Return the tokens of a sliding window, None where there is none (0 and -1 too)."""
    window = fields.count("sliding_window", "sliding_window_size", least=-1)
    return window if window is not None and window > 0 else None


def _kinds(fields: Fields, mixers: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of layers that mix tokens, sorted (`ModelFacts.attention`)."""
    kinds = {_MIXERS.get(word, word) for word in mixers} - {*_ALONE, "dense", "sparse"}
    if fields.get("kv_lora_rank"):
        kinds = kinds - {"full_attention"} | {"latent_attention"}
    if _unplaced(fields, mixers):
        kinds.add("linear_attention")
    if any(fields.get(n) for n in ("index_topk", "index_head_dim")) or _sparse(fields):
        kinds.add("indexed_attention")
    if fields.flag("is_encoder_decoder"):
        kinds.add("cross_attention")
    return tuple(sorted(kinds))


def _unplaced(fields: Fields, mixers: Sequence[str]) -> bool:
    """Return whether layers with a state are somewhere, and nothing says where.

    A config that lists its layers may have sizes of a state that none of them keeps.
    """
    listed = {_MIXERS.get(word) for word in fields.words("layer_types", "layers_block_type")}
    if {_MIXERS.get(word, word) for word in mixers} & _STATEFUL or listed == {"full_attention"}:
        return False
    return any(fields.get(name) for name in _STATES)


def _places(fields: Fields, mixers: Sequence[str], count: int) -> Iterator[_Place]:
    if len(mixers) != count:
        raise _UncountedError(f"kinds for {len(mixers):,} layers of {count:,}")
    if _unplaced(fields, mixers):
        raise _UncountedError("layers with a state, in places that no field names")
    alone = any(word in _ALONE for word in mixers)
    afters = None if alone else _afters(fields, count)
    ratios, indexes = fields.numbers("compress_ratios"), _indexes(fields, count)
    shared = fields.count("num_kv_shared_layers", least=0) or 0
    for number, word in enumerate(mixers):
        if word in _ALONE or (alone and word in _MIXERS):
            after, mixer = _ALONE.get(word), None if word in _ALONE else _MIXERS[word]
        else:
            after, mixer = afters[number] if afters is not None else None, _MIXERS.get(word)
            if word == "compressed_attention":
                mixer = word
            if mixer is None:
                raise _UncountedError(f"layers of the kind {shown(word).strip(chr(34))}")
        place = _Place(
            mixer=mixer,
            after=after,
            index=indexes[number] if mixer in ("full_attention", "compressed_attention") else None,
            ratio=(ratios[number] or 1) if ratios and number < len(ratios) else _rate(fields, word),
            kept=number < count - shared,
        )
        yield _own_shape(fields, place, number, count)


def _own_shape(fields: Fields, place: _Place, number: int, count: int) -> _Place:
    """Return a layer with what a config gives it alone: Gemma 4's, or a block's (2411.19146)."""
    shapes, blocks = fields.plain().get("per_layer_config"), fields.get("block_configs")
    if isinstance(shapes, Mapping):  # by numbers that may start with zeros
        changes = next((shapes[key] for key in shapes if f"{key}".zfill(9) == f"{number:09}"), None)
        if changes is not None:
            shape = Fields(changes, f"{fields.where}: per_layer_config {number}")
            heads = shape.count("num_key_value_heads")
            place = replace(place, head_dim=shape.count("head_dim"), kv_heads=heads)
    if blocks is None:
        return place
    if not (isinstance(blocks, list) and len(blocks) == count):
        raise fields.wrong(("block_configs",), blocks, f"a list of {count:,} objects")
    block = Fields(blocks[number], f"{fields.where}: block_configs {number}")
    attention, mlp = block.inner("attention"), block.inner("ffn")
    if attention is None or mlp is None:
        raise _UncountedError(f"block_configs {number} without attention or ffn")
    for each in (attention, mlp):
        if any(each.get(name) for name in ("replace_with_linear", "sparsify", "window_length")):
            raise _UncountedError("layers that are linear or sparse by block_configs")
    kv_heads = width = None
    if not attention.flag("no_op"):
        heads = fields.need("num_attention_heads")
        kv_heads = max(heads // attention.need("n_heads_in_group"), 1)
    if not mlp.flag("no_op"):
        factor = mlp.get("ffn_mult")
        width = mlp.count("intermediate_size")
        if width is None:
            if not isinstance(factor, int | float) or not 0 < factor < 1000:
                raise mlp.wrong(("ffn_mult",), factor, "a number above 0")
            width = -(-int(2 * factor * fields.need("hidden_size") / 3) // 256) * 256
    return _Place(
        mixer="full_attention" if kv_heads else None, after="dense" if width else None,
        kv_heads=kv_heads, mlp_width=width,
    )  # fmt: skip


def _rate(fields: Fields, word: str) -> int:
    """Return the tokens of an entry, of a config that has them by the word of a layer."""
    rates = fields.inner("compress_rates")
    return 1 if rates is None else rates.count(word) or 1


def _sparse(fields: Fields) -> Fields | None:
    """Return what a config says of an index of blocks, None where it has none."""
    sparse = fields.inner("sparse_attention_config")
    return sparse if sparse is not None and sparse.get("use_sparse_attention") else None


def _indexes(fields: Fields, count: int) -> list[str | None]:
    """Return whether each layer has an index, uses the choice of an earlier one, or has none."""
    sparse = _sparse(fields)
    if sparse is not None:
        listed = sparse.numbers("sparse_attention_freq") or [1] * count
        return ["full" if each else None for each in [*listed, *[1] * count][:count]]
    if not fields.get("index_topk"):
        return [None] * count
    types: list[str | None] = [*fields.words("indexer_types")]
    if types:
        return [*types, *[types[-1]] * count][:count]
    every = fields.count("index_topk_freq") or 1
    offset = fields.count("index_skip_topk_offset", least=0)
    first = 2 if offset is None else offset
    return [
        "full" if max(number - first + 1, 0) % every == 0 else "shared" for number in range(count)
    ]


def _afters(fields: Fields, count: int) -> list[str]:
    """Return what follows attention in each layer: a dense MLP or experts."""
    if (fields.count(*EXPERTS, least=0) or 0) < 2:  # one is an MLP that all tokens visit
        return ["dense"] * count
    if fields.get("model_type") == _SHORTCUT:
        return ["moe", "dense"] * (count // 2)
    enumerated, frequency = fields.get("moe_layers_enum"), fields.get("moe_layer_freq")
    is_list, dense = isinstance(frequency, list | tuple), fields.numbers("mlp_only_layers") or ()
    first = fields.count("first_k_dense_replace", "num_dense_layers", least=0) or 0
    every = 1 if is_list else fields.count("moe_layer_freq") or 1
    step = fields.count("moe_layer_interval", "decoder_sparse_step", "interleave_moe_layer_step")
    if listed := fields.words("mlp_layer_types"):
        words = [*listed, *[listed[-1]] * count][:count]
        chosen = {number for number, word in enumerate(words) if word != "dense"}
    elif isinstance(enumerated, str):
        chosen = {int(each) for each in enumerated.split(",") if each.isdigit()}
    elif enumerated:
        chosen = set(fields.numbers("moe_layers_enum") or ())
    elif is_list:
        flags = fields.numbers("moe_layer_freq") or ()
        chosen = {number for number, flag in enumerate(flags) if flag}
    else:
        chosen = {
            number
            for number in range(first, count)
            if number % every == 0 and (number + 1) % (step or 1) == 0 and number not in dense
        }
    start, end = fields.get("moe_layer_start_index"), fields.get("moe_layer_end_index")
    if isinstance(start, int) and isinstance(end, int):
        chosen = {each for each in chosen if start <= each <= (end if end >= 0 else count)}
    if period := fields.count("expert_layer_period"):
        offset = fields.count("expert_layer_offset", least=0) or 0
        chosen = {number for number in range(count) if number % period == offset}
    return _either("moe", "dense", (number in chosen for number in range(count)))


# What a layer of each kind holds.


def _matrix(
    path: str, inputs: int, outputs: int, copies: int = 1, used: int | None = None
) -> Matrix:
    """Return a matrix. It is not known yet in which form it is stored."""
    return Matrix(
        name=path, inputs=inputs, outputs=outputs, precision="", parameter_bytes=None,
        copies=copies, used=copies if used is None else used,
    )  # fmt: skip


def _layer(fields: Fields, place: _Place, plain: Form) -> Layers:
    hidden, raw = fields.need("hidden_size"), list[Matrix]()
    attention = state = width = experts = None
    if place.mixer in ("mamba", "linear_attention", "hybrid", "conv"):
        kind = "mamba" if place.mixer == "hybrid" else place.mixer
        state, matrices = _state(fields, hidden, kind, plain)
        raw += matrices
    if place.mixer == "hybrid":
        place = replace(place, mixer="full_attention")
    if (place.mixer is not None and state is None) or place.mixer == "full_attention":
        attention = _attention(fields, hidden, place)
        raw += _attention_matrices(fields, hidden, attention)
        raw += _index_matrices(fields, hidden, attention)
    # An MLP beside experts (Gemma 4, Grok 2, LongCat, and Arctic, whose is as wide as h).
    narrow = fields.flag("parallel_attn_mlp_res")
    both = any(fields.flag(name) for name in ("enable_moe_block", "residual_moe")) or narrow
    both = both or fields.get("model_type") == _SHORTCUT
    if place.after == "dense" or (both and place.after == "moe"):
        width = hidden if narrow and place.after == "moe" else place.mlp_width
        width = width or _dense_width(fields)
        raw += _mlp("mlp", hidden, width, _gated(fields))
    if place.after == "moe":
        experts, matrices = _experts(fields, hidden, "moe" if both else "mlp")
        raw += matrices
    if streams := fields.count("hc_mult"):
        size = (2 + streams) * streams  # mHC (arXiv 2512.24880): before, after and between streams
        raw.append(_matrix("hyper_connection", streams * hidden, size, 2))
    if beside := fields.count("hidden_size_per_layer_input", least=0):
        raw.append(_matrix("per_layer_input_gate", hidden, beside))
        raw.append(_matrix("per_layer_projection", beside, hidden))
    return Layers(
        places=(), attention=attention, state=state, mlp_width=width, experts=experts,
        matrices=tuple(raw),
    )  # fmt: skip


def head_dim(fields: Fields) -> int:
    """Return the width of a head; of latent attention that of its queries and keys."""
    if fields.get("kv_lora_rank"):
        rope = fields.count("qk_rope_head_dim", least=0) or 0
        return fields.need("qk_nope_head_dim") + rope
    hidden, heads = fields.need("hidden_size"), fields.need("num_attention_heads")
    width = fields.count("head_dim", "attention_head_dim")
    if width is None and hidden % heads:
        raise UsageError(
            f"{fields.where}: hidden_size {hidden} is no multiple of num_attention_heads {heads}, "
            "and there is no field head_dim"
        )
    return width or hidden // heads


def _attention(fields: Fields, hidden: int, place: _Place) -> Attention:
    heads, width = fields.need("num_attention_heads"), head_dim(fields)
    kv_heads = fields.count(*KV_HEADS) or heads
    kind, window, values = str(place.mixer), None, fields.count("v_head_dim") or width
    latent = rope = None
    if kind == "sliding_attention":
        window = window_of(fields)
        if not window:
            raise _UncountedError("sliding windows of no size")
        heads = fields.count("swa_num_attention_heads", "num_sliding_attention_heads") or heads
        kv_heads = fields.count("swa_num_key_value_heads") or kv_heads
        width = fields.count("swa_head_dim") or width
        values = fields.count("swa_v_head_dim") or (values if fields.get("v_head_dim") else width)
        other = fields.inner("attention_other_setting")
        if other is not None:
            heads = other.count("num_attention_heads") or heads
            kv_heads = other.count("num_attention_groups") or kv_heads
            width = values = other.count("head_dim") or width
    elif kind == "chunked_attention":
        window = fields.need("attention_chunk_size")
    elif kind == "compressed_attention":
        window = fields.need("sliding_window")
    elif fields.get("kv_lora_rank"):
        kind, latent = "latent_attention", fields.count("kv_lora_rank")
        rope, kv_heads = fields.count("qk_rope_head_dim", least=0) or 0, heads
        values = _part(fields, "v_head_dim")
    elif wide := fields.count("global_head_dim"):
        width = values = wide
        kv_heads = fields.count("num_global_key_value_heads") or kv_heads
    if place.head_dim:
        width = values = place.head_dim
    kv_heads = place.kv_heads or kv_heads
    if heads % kv_heads:
        raise UsageError(
            f"{fields.where}: {heads} attention heads are no multiple of {kv_heads} KV heads"
        )
    top, index_heads, index_dim = _index(fields, place)
    return Attention(
        kind=kind, heads=heads, kv_heads=kv_heads, head_dim=width, v_head_dim=values,
        window=window, latent=latent, rope=rope, tokens_per_entry=place.ratio, top_k=top,
        index_heads=index_heads, index_dim=index_dim, kept=place.kept,
        one_entry=fields.get("o_lora_rank") is not None,
    )  # fmt: skip


def _index(fields: Fields, place: _Place) -> tuple[int | None, int | None, int | None]:
    """Return how many entries a layer's index chooses, and the index's heads and width."""
    if place.index is None:
        return None, None, None
    if (sparse := _sparse(fields)) is not None:
        blocks = _part(sparse, "sparse_topk_blocks") * _part(sparse, "sparse_block_size")
        return blocks, _part(sparse, "sparse_num_index_heads"), _part(sparse, "sparse_index_dim")
    if place.mixer == "compressed_attention" and place.ratio > 4:  # so few that all are read
        return None, None, None
    top = _part(fields, "index_topk")
    if place.index != "full":
        return top, None, None
    return top, _part(fields, "index_n_heads"), _part(fields, "index_head_dim")


def _of_attention(name: str, *sizes: int) -> Matrix:
    return _matrix(f"self_attn.{name}", *sizes)


def _attention_matrices(fields: Fields, hidden: int, each: Attention) -> Iterator[Matrix]:
    queries, values = each.heads * each.head_dim, each.heads * each.v_head_dim
    low = fields.count("q_lora_rank", "share_q_dim", least=0)
    if _drafts_by_eagle(fields):  # the embedding beside what the model's hidden states make
        hidden *= 2
    gate = fields.flag("attn_output_gate", "attention_output_gate")
    if gate is None:
        gate = bool(_GATED_QUERIES.match(str(fields.get("model_type"))))
    if low and (each.latent is not None or fields.get("o_lora_rank", "share_q_dim")):
        yield _of_attention("q_a_proj", hidden, low)
        yield _of_attention("q_b_proj", low, queries)
    else:
        yield _of_attention("q_proj", hidden, queries * (2 if gate else 1))
    if fields.get("model_type") == "afmoe":
        yield _of_attention("gate_proj", hidden, values)
    if each.latent is not None:
        rope = each.rope or 0
        yield _of_attention("kv_a_proj_with_mqa", hidden, each.latent + rope)
        yield _of_attention(
            "kv_b_proj", each.latent, each.heads * (each.head_dim - rope + each.v_head_dim)
        )
        if fields.flag("mla_use_output_gate"):
            yield _of_attention("g_proj", hidden, values)
    elif fields.get("o_lora_rank"):
        yield _of_attention("kv_proj", hidden, each.head_dim)
    elif each.kept:
        yield _of_attention("k_proj", hidden, each.kv_heads * each.head_dim)
        if not (fields.flag("attention_k_eq_v") and each.window is None):
            yield _of_attention("v_proj", hidden, each.kv_heads * each.v_head_dim)
    hidden = fields.need("hidden_size")
    if outputs := fields.count("o_lora_rank"):
        groups = fields.count("o_groups") or 1
        yield _of_attention("o_a_proj", values // groups, outputs, groups)
        yield _of_attention("o_b_proj", groups * outputs, hidden)
    else:
        yield _of_attention("o_proj", values, hidden)


def _drafts_by_eagle(fields: Fields) -> bool:
    """Whether it is the config of an EAGLE-3 head of one layer, as its authors have it."""
    words = fields.words("architectures", around=True)
    return fields.get("num_hidden_layers") == 1 and any(_EAGLE_3.search(each) for each in words)


def _index_matrices(fields: Fields, hidden: int, each: Attention) -> Iterator[Matrix]:
    """Yield the matrices of an index, and of what makes one entry of several tokens."""
    packed = each.kind == "compressed_attention"
    if each.index_dim is not None and each.index_heads is not None:
        keys = each.index_heads * each.index_dim
        if _sparse(fields) is not None:
            yield _of_attention("index_q_proj", hidden, keys)
            yield _of_attention("index_k_proj", hidden, each.index_dim)
        else:
            low = fields.count("q_lora_rank", least=0) or hidden
            name, width = ("compressor", 4) if packed else ("wk", 1)
            yield _of_attention("indexer.wq_b", low, keys)
            yield _of_attention("indexer.weights_proj", hidden, each.index_heads)
            yield _of_attention(f"indexer.{name}", hidden, width * each.index_dim)
    if packed:  # of windows that overlap where there is an index
        yield _of_attention("compressor", hidden, (4 if each.index_dim else 2) * each.head_dim)


_StateShape = tuple[int, int, int, int, list[tuple[str, int, int]]]


def _state(fields: Fields, hidden: int, kind: str, plain: Form) -> tuple[State, list[Matrix]]:
    """Return the state that a layer keeps of a request, and the layer's matrices."""
    named = fields.get(*_STATE_DTYPES)
    wide = plain.parameter_bytes if named in (None, "auto") else bytes_of(str(named))
    model = str(fields.get("model_type"))
    if kind == "conv":
        shape = _short_convolution(fields, hidden)
    elif kind == "mamba":
        shape = (_mamba_1 if fields.get("mamba_dt_rank") else _mamba_2)(fields, hidden)
        if named is None and model.startswith("nemotron_h"):
            wide = 4  # vLLM's default for them
    elif fields.get("linear_attn_config") is not None or fields.get("linear_num_heads"):
        shape, wide = _kimi_delta(fields, hidden), 4  # whose state is float32
    elif fields.get("linear_num_value_heads"):
        shape = _gated_delta(fields, hidden)
    elif model.startswith("minimax") or (
        model.startswith("bailing") and not fields.get("short_conv_kernel_size")
    ):
        shape = _lightning(fields, hidden)
    else:
        raise _UncountedError("layers with a state whose size no field says")
    heads, values, kernel, convolved, matrices = shape
    if convolved:
        matrices.append(("conv1d", kernel, convolved))
    state = State(
        kind=kind, heads=heads, values=values, value_bytes=wide,
        convolved_values=(kernel - 1) * convolved, convolved_bytes=plain.parameter_bytes,
    )  # fmt: skip
    return state, [_matrix(f"linear_attn.{name}", *sizes) for name, *sizes in matrices]


# Each returns heads, values of the state, width of the convolution, what it runs over, matrices.


def _short_convolution(fields: Fields, hidden: int) -> _StateShape:
    """A gated short convolution (arXiv 2511.23404), which keeps its last inputs alone."""
    matrices = [("in_proj", hidden, 3 * hidden), ("out_proj", hidden, hidden)]
    return hidden, 0, _part(fields, "conv_L_cache"), hidden, matrices


def _mamba_1(fields: Fields, hidden: int) -> _StateShape:
    """Mamba (arXiv 2312.00752), each of whose channels is a head."""
    rank, wanted = _part(fields, "mamba_dt_rank"), _part(fields, "mamba_d_state")
    size = (fields.count("mamba_expand") or 2) * hidden
    matrices = [("in_proj", hidden, 2 * size), ("x_proj", size, rank + 2 * wanted)]
    matrices += [("dt_proj", rank, size), ("out_proj", size, hidden)]
    return size, size * wanted, _part(fields, "mamba_d_conv"), size, matrices


def _mamba_2(fields: Fields, hidden: int) -> _StateShape:
    """Mamba 2 (arXiv 2405.21060)."""
    heads, width, groups, wanted, kernel = (_part(fields, *names) for names in _MAMBA)
    size, convolved = heads * width, heads * width + 2 * groups * wanted
    matrices = [("in_proj", hidden, size + convolved + heads), ("out_proj", size, hidden)]
    return heads, size * wanted, kernel, convolved, matrices


def _kimi_delta(fields: Fields, hidden: int) -> _StateShape:
    """Kimi delta attention (arXiv 2510.26692)."""
    inner = fields.inner("linear_attn_config") or fields
    heads = _part(inner, "num_heads", "linear_num_heads")
    width = _part(inner, "linear_head_dim", "head_dim")
    kernel = _part(inner, "short_conv_kernel_size", "linear_conv_kernel_dim")
    size = heads * width
    matrices = [(name, hidden, size) for name in ("q_proj", "k_proj", "v_proj")]
    matrices += [("f_a_proj", hidden, width), ("f_b_proj", width, size)]
    if inner.flag("use_full_rank_gate"):
        matrices.append(("g_proj", hidden, size))
    else:
        matrices += [("g_a_proj", hidden, width), ("g_b_proj", width, size)]
    matrices += [("b_proj", hidden, heads), ("o_proj", size, hidden)]
    return heads, size * width, kernel, 3 * size, matrices


def _gated_delta(fields: Fields, hidden: int) -> _StateShape:
    """A gated delta net (arXiv 2412.06464)."""
    key = _part(fields, "linear_key_head_dim")
    keys = _part(fields, "linear_num_key_heads") * key
    heads = _part(fields, "linear_num_value_heads")
    size = heads * _part(fields, "linear_value_head_dim")
    convolved = 2 * keys + size
    matrices = [("in_proj_qkv", hidden, convolved), ("in_proj_z", hidden, size)]
    matrices += [("in_proj_b", hidden, heads), ("in_proj_a", hidden, heads)]
    matrices += [("out_proj", size, hidden)]
    return heads, size * key, _part(fields, "linear_conv_kernel_dim"), convolved, matrices


def _lightning(fields: Fields, hidden: int) -> _StateShape:
    """Lightning attention (arXiv 2501.08313)."""
    heads = fields.need("num_attention_heads")
    width = fields.count("head_dim") or head_dim(fields)  # beside latent attention, not that of it
    size = heads * width
    matrices = [("qkv_proj", hidden, 3 * size), ("output_gate", hidden, size)]
    matrices.append(("out_proj", size, hidden))
    return heads, size * width, 1, 0, matrices


def _part(fields: Fields, *names: str) -> int:
    """Return a whole number without which a part of a layer cannot be counted."""
    number = fields.count(*names)
    if number is None:
        raise _UncountedError(f"a part whose {names[0]} is missing")
    return number


def _dense_width(fields: Fields) -> int:
    if name := _WIDTHS.get(str(fields.get("model_type"))):
        return _part(fields, name, "intermediate_size")
    width = fields.count("block_ff_dim", *_DENSE_WIDTH)
    if width is None:
        raise _UncountedError("an MLP whose intermediate_size is missing")
    if fields.get("model_type") == "qwen":  # the first Qwen's is of both halves of a gate
        width //= 2
    if fields.flag("block_auto_adjust_ff_dim"):  # of LFM2
        width, step = 2 * width // 3, fields.count("block_multiple_of") or 1
        factor = fields.get("block_ffn_dim_multiplier") or 1
        if not isinstance(factor, int | float) or not 0 < factor < 1000:
            raise fields.wrong(("block_ffn_dim_multiplier",), factor, "a number above 0")
        width = -(-int(factor * width) // step) * step
    return width


def _gated(fields: Fields) -> bool:
    """Return whether an MLP has three matrices, of which one makes a gate, or two."""
    activation = str(fields.get(*_ACTIVATIONS) or "")
    kind = str(fields.get("model_type") or "")
    architectures = f"{fields.words('architectures', around=True)}".lower()
    if activation in _GATED or _GATED_TYPES.search(kind):
        return True
    if activation in _UNGATED or _UNGATED_TYPES.search(kind):
        return False
    if _GATED_TYPES.search(architectures):
        return True
    raise _UncountedError(f"an MLP with the activation {activation[:40] or 'of no name'}")


def _mlp(
    path: str, inputs: int, width: int, gated: bool, copies: int = 1, used: int = 1
) -> list[Matrix]:
    """Return the matrices of an MLP, or of experts."""
    names = ("gate_proj", "up_proj") if gated else ("up_proj",)
    inward = [_matrix(f"{path}.{name}", inputs, width, copies, used) for name in names]
    return [*inward, _matrix(f"{path}.down_proj", width, inputs, copies, used)]


def _experts(fields: Fields, hidden: int, path: str) -> tuple[Experts, list[Matrix]]:
    total, active = fields.need(*EXPERTS), _part(fields, *VISITED)
    chosen = total + (fields.count("zero_expert_num", least=0) or 0)
    active = round(active * total / chosen)  # of the others a token passes unchanged (LongCat)
    width = _part(fields, *_EXPERT_WIDTH, "intermediate_size")
    shared = fields.count(*_SHARED, least=0) or 0
    shared_width = fields.count(*_SHARED_WIDTH, least=0) or 0
    if str(fields.get("model_type")).startswith("llama4"):
        shared, shared_width = 1, width
    shared_width = shared_width or shared * width
    gated, inner = _gated(fields), fields.count(*_LATENT_EXPERTS) or hidden
    raw = [_matrix(f"{path}.gate", hidden, chosen)]
    raw += _mlp(f"{path}.experts.0", inner, width, gated, total, active)
    if shared_width:
        raw += _mlp(f"{path}.shared_experts", hidden, shared_width, gated)
    if inner != hidden:
        raw.append(_matrix(f"{path}.fc1_latent_proj", hidden, inner))
        raw.append(_matrix(f"{path}.fc2_latent_proj", inner, hidden))
    experts = Experts(
        total=total, active=active, width=width, shared=max(shared, 1) if shared_width else 0,
        shared_width=shared_width,
    )  # fmt: skip
    return experts, raw


# In which form, and what is outside of the layers.


def _names(path: str) -> list[str]:
    """Return the names that checkpoints have for a matrix."""
    block, _, rest = path.partition(".")
    paths = [""]
    for part in rest.split(".") if rest else []:
        paths = [f"{each}.{leaf}" for each in paths for leaf in _LEAVES.get(part, (part,))]
    return [f"{each}{path}".strip(".") for each in _BLOCKS.get(block, (block,)) for path in paths]


def _stored(matrix: Matrix, number: int, quantised: Quantised, plain: Form) -> Matrix:
    names = [f"layers.{number}.{name}" for name in _names(matrix.name)]
    leaf = matrix.name.rpartition(".")[2]
    form = quantised.of(names, plain, linear=leaf not in _PLAIN)
    return _in_form(replace(matrix, name=matrix.name.replace(".0.", ".")), form)


def _in_form(matrix: Matrix, form: Form) -> Matrix:
    return replace(matrix, precision=form.name, parameter_bytes=form.parameter_bytes)


def _others(fields: Fields, *, tied: bool, layers: int) -> Iterator[Matrix]:
    """Yield the matrices outside of the layers."""
    hidden, vocabulary = fields.need("hidden_size"), fields.need("vocab_size")
    yield _matrix("embed_tokens", hidden, vocabulary, used=1 if tied else 0)
    if not tied:
        yield _matrix("lm_head", hidden, _of_draft(fields, "draft_vocab_size") or vocabulary)
    if _drafts_by_eagle(fields):
        yield _matrix("fc", _TAPPED * (_of_draft(fields, "target_hidden_size") or hidden), hidden)
    if beside := fields.count("hidden_size_per_layer_input", least=0):
        words = fields.count("vocab_size_per_layer_input") or vocabulary
        yield _matrix("embed_tokens_per_layer", layers * beside, words, used=0)
        yield _matrix("per_layer_model_projection", hidden, layers * beside)
    for name in _TOWERS:
        if (tower := fields.get(name, around=True)) is not None:
            yield _matrix(name.removesuffix("_config"), 1, _tower(tower, name, fields), used=0)


def _of_draft(fields: Fields, name: str) -> int | None:
    """Return a size of a head that drafts, which may stand around its layer's config."""
    return Fields({name: fields.get(name, around=True)}, fields.where).count(name)


def _tower(config: Any, name: str, fields: Fields) -> int:
    """Return the parameters of a part that looks at images: a transformer's, and its merger's.

    A layer has 4 h^2 + 2 h x intermediate, with a gate 3 h. What merges 4 patches has (4h)^2 + 4h
    x the width of the language model, once and for each layer that feeds in directly (Qwen3-VL's
    deepstack). Gemma's projects alone, GLM's makes one patch of 4 and has an MLP of its own.
    """
    tower = Fields(config, f"{fields.where}: {name}")
    hidden = tower.count("embed_dim", "hidden_size", "vt_hidden_size", "d_model")
    depth = tower.count("depth", "num_hidden_layers", "vt_num_hidden_layers", "encoder_layers")
    width = tower.count("intermediate_size", "vt_intermediate_size", "encoder_ffn_dim")
    if width is None and hidden is not None and isinstance(tower.get("mlp_ratio"), int | float):
        width = round(tower.get("mlp_ratio") * hidden)
    if hidden is None or depth is None or width is None:
        raise _UncountedError(f"{name}, whose size no field says")
    inner = tower.count("qkv_hidden_size") or hidden
    outside, kind = fields.need("hidden_size"), str(tower.get("model_type"))
    mergers = 1 + len(tower.numbers("deepstack_visual_indexes") or ())
    wide = (tower.count("spatial_merge_size") or 2) ** 2 * hidden
    merger = wide * (wide + outside)
    if kind.startswith(("siglip", "gemma4")):
        merger = hidden * outside
    if kind.startswith("glm4v"):
        merger, width = outside * (wide + outside + 3 * width), outside
    gated = tower.get(*_ACTIVATIONS) in _GATED or kind in _GATED_TOWERS
    return depth * (4 * hidden * inner + (3 if gated else 2) * hidden * width) + mergers * merger


def _check_fields(fields: Fields) -> None:
    """Raise _UncountedError for a field of a model of unknown type that nothing here reads."""
    for name in ("hybrid_override_pattern", *_PATTERNS):
        value = fields.get(name)
        if value is not None and not isinstance(value, str | int):
            raise fields.wrong((name,), value, "a pattern")
    named = fields.words("architectures", around=True)
    if any(_BLOCKS_OF_DRAFTS.search(each) and not _EAGLE_3.search(each) for each in named):
        raise _UncountedError("a draft of several tokens at once")
    if fields.get("model_type") == "jetmoe":
        raise _UncountedError("experts of attention")
    if fields.flag("use_cla"):
        raise _UncountedError("layers that share the keys and values of others (use_cla)")
    if fields.flag("is_encoder_decoder"):
        raise _UncountedError("an encoder")
    kinds = {str(fields.get("model_type")), *fields.words("architectures", around=True)}
    if kinds & _COUNTED:
        return
    strange = sorted(
        name for name, value in fields.plain().items() if value
        if _STRUCTURE.search(name) and name not in _READ and not _NO_MATTER.match(name)
    )  # fmt: skip
    if strange:
        raise _UncountedError(f"parts that {strange[0][:60]} speaks of")
