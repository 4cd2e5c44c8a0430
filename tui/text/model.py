"""A model's facts as lines: what its layers are, what it weighs, and what a token costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from traces.schema.engine import ModelFacts
from traces.schema.formats import ABSENT, counted, digits, number
from traces.schema.layers import Attention, Layers
from tui.text.layout import labelled

_STATES = {"mamba": "Mamba", "linear_attention": "linear attention", "conv": "a convolution"}
_BATCH = 64
_CONTEXT = 32_768


def model_lines(facts: ModelFacts) -> list[str]:
    """Return what is known of a model, in lines of 80 characters."""
    every, active = map(_billions, (facts.total_parameters, facts.active_parameters))
    rows = [
        ("model", f"{facts.name}, {facts.architecture or 'of unknown architecture'}"),
        ("parameters", f"{every}. A token is multiplied with {active}"),
        ("weights", _weights(facts)),
        *(("layers", _layer(each, facts.num_hidden_layers)) for each in facts.layers or ()),
        ("KV cache", _cache(facts)),
    ]
    if facts.state_bytes_per_request:
        rows.append(("states", f"{_bytes(facts.state_bytes_per_request)} for each request"))
    if facts.mtp_layers:
        drafting = counted(facts.mtp_layers, "layer")
        rows.append(("drafts", f"{drafting} more that only draft (MTP), which no total counts"))
    if facts.uncounted is not None:
        rows.append(("not counted", facts.uncounted))
    return labelled(rows, width=80, indent=16)


def _bytes(size: float | None) -> str:
    return ABSENT if size is None else number(size, "B")


def _billions(count: int | None) -> str:
    return ABSENT if count is None else f"{digits(count / 1e9)} billion"


def _weights(facts: ModelFacts) -> str:
    text = f"{_bytes(facts.weight_bytes)}, {facts.quantization or 'not quantised'}"
    few, many = facts.read_weight_bytes(1), facts.read_weight_bytes(_BATCH)
    if facts.num_experts and few is not None:
        text += f". A step of 1 token reads {_bytes(few)}, one of {_BATCH} reads {_bytes(many)}"
    return text


def _cache(facts: ModelFacts) -> str:
    text = f"{_bytes(facts.kv_bytes_per_token)} a token, {facts.kv_cache_dtype or ABSENT}"
    kept, read = facts.kv_bytes(_CONTEXT), facts.kv_read_bytes(_CONTEXT)
    if kept is None:
        return text
    return (
        f"{text}. Of {_CONTEXT:,} tokens {_bytes(kept)} are kept and a token reads {_bytes(read)}"
    )


def _layer(group: Layers, layers: int) -> str:
    parts = [f"{group.count} of {layers} ({_places(group.places)}): {_mixer(group)}"]
    if group.mlp_width is not None:
        parts.append(f"MLP of {group.mlp_width:,}")
    if (experts := group.experts) is not None:
        shared = f" and {experts.shared} shared" if experts.shared else ""
        parts.append(f"{experts.active} of {experts.total} experts of {experts.width:,}{shared}")
    forms = sorted({each.precision for each in group.matrices})
    return ", ".join([*parts, " and ".join(forms)])


def _mixer(group: Layers) -> str:
    if group.state is not None:
        kind = _STATES.get(group.state.kind, group.state.kind)
        text = f"{kind} with a state of {_bytes(group.state.size_bytes)}"
        return text if group.attention is None else f"{text} and {_attention(group.attention)}"
    return "no attention" if group.attention is None else _attention(group.attention)


def _attention(attention: Attention) -> str:
    text = f"{attention.kind.replace('_', ' ')}, {attention.heads} heads"
    if attention.latent is not None:
        text += f", latent of {attention.latent} + {attention.rope or 0}"
    else:
        text += f", {attention.kv_heads} of KV, {attention.head_dim} wide"
    if attention.window is not None:
        text += f", window of {attention.window:,}"
    if attention.tokens_per_entry > 1:
        text += f", an entry for {attention.tokens_per_entry} tokens"
    if attention.top_k is not None:
        index = "an index" if attention.index_dim else "the index of an earlier layer"
        text += f", {index} chooses {attention.top_k:,}"
    return text


def _places(places: Sequence[int]) -> str:
    """Return places as ranges, the first few of them."""
    ranges = list(_ranges(places))
    return ", ".join(ranges[:3]) + (", .." if len(ranges) > 3 else "")


def _ranges(places: Sequence[int]) -> Iterator[str]:
    start = last = places[0]
    for place in [*places[1:], -1]:
        if place != last + 1:
            yield f"{start}" if start == last else f"{start}-{last}"
            start = place
        last = place
