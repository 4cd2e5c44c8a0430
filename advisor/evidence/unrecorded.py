"""What to say of an engine that nothing recorded tells of, and what would teach it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable
from typing import Any, Final

from traces.schema.engine import EngineConfig, ModelFacts, Speculative

DECODING: Final = ("model", "dtype", "quantization", "kv_cache_dtype", "speculative")
_OPTIONS: Final = ("model", "tensor_parallel_size", "dtype", "speculative")  # of `record`


def differences(
    asked: EngineConfig, recorded: Iterable[EngineConfig]
) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which an engine differs from the nearest recorded one, both values."""
    names = [field.name for field in dataclasses.fields(EngineConfig)]
    found = [
        {
            name: (getattr(asked, name), getattr(other, name))
            for name in names
            if getattr(asked, name) != getattr(other, name)
        }
        for other in recorded
    ]
    return min(found, key=lambda each: ("model" in each, len(each)), default={})


def what_differs(fields: dict[str, tuple[Any, Any]]) -> str:
    """Return differing fields as `block_size 16 (recorded: 128)`."""
    return ", ".join(
        f"{name} {_shown(asked)} (recorded: {_shown(recorded)})"
        for name, (asked, recorded) in fields.items()
    )


def recording_of(asked: EngineConfig, fields: Iterable[str]) -> str:
    """Return how to record an engine that differs in some fields: a command where there is one."""
    if asked.mode == "server" or not set(fields) <= set(_OPTIONS):
        return "record such an engine"
    words = ["ttscope", "record", "--model", asked.model]
    if asked.tensor_parallel_size > 1:
        words += ["--tensor-parallel-size", str(asked.tensor_parallel_size)]
    if asked.dtype is not None:
        words += ["--dtype", asked.dtype]
    if asked.speculative is not None:
        given = {k: v for k, v in asked.speculative.to_json().items() if v is not None}
        words += ["--speculative", json.dumps(given)]
    return shlex.join(words)


def _shown(value: object) -> str:
    if isinstance(value, Speculative):
        return f"{value.method} k{value.num_speculative_tokens}"
    return "none" if value is None else str(value)


# Which architectures a step law is refused for: those that no recording has checked a replay of.
#
# The law counts a KV read and an attention FLOP for every token of context, and a cache of blocks
# that every layer fills alike. Dense and grouped-query attention do that, and a latent in every
# layer, with experts counted by their active parameters. What reads less than the context, or keeps
# a state instead of it, would be given times that nothing has ever been compared with.


_KINDS: Final = {
    "latent_attention": "latent attention (MLA), whose KV and FLOPs per token of context are "
    "others than a head's",
    "compressed_attention": "attention to entries of several tokens each",
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
    """Return why times of a model's steps cannot be predicted on an engine, None where they can.

    What older recordings do not tell (`attention` is None) is not refused. A window in every layer
    that `max_model_len` never leaves is full attention; in some layers it is refused all the same,
    as the cache then has blocks of two kinds.
    """
    shown = "`ttscope show` says what was measured"
    if not facts.is_linear(engine.max_model_len):
        kinds = sorted(set(facts.attention or ()) - {"full_attention"})
        parts = ", and ".join(_KINDS.get(kind, f"layers of the kind {kind}") for kind in kinds)
        return (
            f"{facts.name} has {parts}. No run of such a model has checked the replay, so it is "
            f"refused ({shown})"
        )
    if None not in (facts.active_parameters, facts.weight_bytes, facts.kv_bytes_per_token):
        return None
    parts = "parts whose weights or KV cache are not counted"
    if facts.uncounted is not None:
        parts = f"{facts.uncounted}, which ttscope does not count"
    return (
        f"{facts.name} ({facts.architecture or 'of unknown architecture'}) has {parts}. Without "
        f"them the times of its steps cannot be learned ({shown})"
    )
