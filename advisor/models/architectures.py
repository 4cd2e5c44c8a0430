"""Which architectures a step law is refused for: those that no recording has checked a replay of.

The law counts a KV read and an attention FLOP for every token of context in every layer, and a
cache of blocks that every layer fills alike. Dense and grouped-query attention do that, with
experts counted by their active parameters. What reads less than the context, or keeps a state
instead of it, would be given times that nothing has ever been compared with.
"""

from __future__ import annotations

from typing import Final

from traces.schema import EngineConfig, ModelFacts

_KINDS: Final = {
    "latent_attention": "latent attention (MLA), whose KV and FLOPs per token of context are "
    "others than a head's",
    "sliding_attention": "a sliding window, so that a layer reads no more than the window",
    "chunked_attention": "chunked attention, so that a layer reads no more than its chunk",
    "indexed_attention": "sparse attention, so that a layer reads a choice of the context",
    "linear_attention": "layers with a state instead of a KV cache (Mamba, linear attention)",
    "mamba": "layers with a state instead of a KV cache (Mamba)",
    "hybrid": "layers with a state beside their KV cache",
    "conv": "convolutions instead of attention in some layers",
    "recurrent": "recurrent layers instead of attention",
    "cross_attention": "an encoder, whose output is read beside the context",
}


def refusal(facts: ModelFacts, engine: EngineConfig) -> str | None:
    """Return why steps of a model cannot be foretold on an engine, None where they can.

    What older recordings do not tell (`attention` is None) is not refused. A window in every layer
    that `max_model_len` never leaves is full attention; in some layers it is refused all the same,
    as the cache then has blocks of two kinds.
    """
    if facts.reads_all(engine.max_model_len):
        counts = (facts.active_parameters, facts.weight_bytes, facts.kv_bytes_per_token)
        if None not in counts:
            return None
        return (
            f"{facts.name} ({facts.architecture or 'of unknown architecture'}) has parts whose "
            "weights or KV cache are not counted. Without them the times of its steps cannot be "
            "learned (`ttscope show` tells what was measured)"
        )
    kinds = set(facts.attention or ()) - {"full_attention"}
    told = " and ".join(_KINDS.get(kind, f"layers of the kind {kind}") for kind in sorted(kinds))
    return (
        f"{facts.name} has {told}; the replay was never checked against runs of such a model, so "
        "its times are not foretold (`ttscope show` tells what was measured)"
    )
