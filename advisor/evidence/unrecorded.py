"""What to say of an engine that nothing recorded tells of, and what would teach it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any, Final

from traces.plain_text import flag_word
from traces.schema.engine import EngineConfig, ModelFacts, Speculative

SHOWN: Final = "`ttscope show` says what was measured"
DECODING: Final = ("model", "dtype", "quantization", "kv_cache_dtype", "speculative")
_OPTIONS: Final = ("model", "tensor_parallel_size", "dtype", "speculative")  # of `record`


def differences(
    asked: EngineConfig, recorded: Iterable[EngineConfig]
) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which an engine differs from the nearest recorded one, both values."""
    names = [field.name for field in dataclasses.fields(EngineConfig)]
    candidates = [
        {
            name: (getattr(asked, name), getattr(other, name))
            for name in names
            if getattr(asked, name) != getattr(other, name)
        }
        for other in recorded
    ]
    return min(candidates, key=lambda each: ("model" in each, len(each)), default={})


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
    words = ["ttscope record", flag_word("model", asked.model)]
    if asked.tensor_parallel_size > 1:
        words.append(flag_word("tensor-parallel-size", asked.tensor_parallel_size))
    if asked.dtype is not None:
        words.append(flag_word("dtype", asked.dtype))
    if asked.speculative is not None:
        given = {k: v for k, v in asked.speculative.to_json().items() if v is not None}
        words.append(flag_word("speculative", json.dumps(given)))
    return " ".join(words)


def _shown(value: object) -> str:
    if isinstance(value, Speculative):
        return f"{value.method} k{value.num_speculative_tokens}"
    return "none" if value is None else str(value)


# Which architectures a step law is refused for: those whose layers read what no feature counts.


_COUNTED: Final = {  # kinds of layers, in the words of transformers' `layer_types`
    "full_attention": "full attention",
    "latent_attention": "latent attention (MLA)",
    "compressed_attention": "attention to entries of several tokens each",
    "sliding_attention": "sliding windows",
    "chunked_attention": "chunked attention",
    "indexed_attention": "sparse attention, which reads a choice of the context",
    "linear_attention": "linear attention, which keeps a state",
    "mamba": "Mamba layers, which keep a state",
    "hybrid": "layers with a state beside their KV cache",
    "conv": "convolutions instead of attention",
    "recurrent": "recurrent layers",
}
_OTHERS: Final = {"cross_attention": "an encoder, whose output is read beside the context"}


def _parts(facts: ModelFacts) -> str:
    """Return the kinds of a model's layers but for full attention, in words."""
    kinds = sorted(set(facts.attention or ()) - {"full_attention"})
    words = _COUNTED | _OTHERS
    return ", and ".join(words.get(kind, f"layers of the kind {kind}") for kind in kinds)


def refusal(facts: ModelFacts, engine: EngineConfig) -> str | None:
    """Return why times of a model's steps cannot be predicted on an engine, None where they can.

    What older recordings do not tell (`attention` is None) is not refused.
    """
    if not facts.is_linear(engine.max_model_len):
        if set(facts.attention or ()) - set(_COUNTED):
            return (
                f"{facts.name} has {_parts(facts)}. What a step reads of it is not counted, so it "
                f"is refused ({SHOWN})"
            )
        if facts.layers is None and facts.uncounted is None:
            return (
                f"{facts.name} has {_parts(facts)}. The recording does not say what its layers "
                f"hold, as it was made by an older ttscope. Record it again ({SHOWN})"
            )
    if None not in (facts.active_parameters, facts.weight_bytes, facts.kv_bytes_per_token):
        return None
    parts = "parts whose weights or KV cache are not counted"
    if facts.uncounted is not None:
        parts = f"{facts.uncounted}, which ttscope does not count"
    return (
        f"{facts.name} ({facts.architecture or 'of unknown architecture'}) has {parts}. Without "
        f"them the times of its steps cannot be learned ({SHOWN})"
    )


# Kinds whose replay real runs of small models checked (benchmarks/kinds_of_models.py), beside
# experts.
_CHECKED: Final = frozenset(
    {"full_attention", "sliding_attention", "latent_attention", "linear_attention"}
)


def unchecked(facts: ModelFacts, engine: EngineConfig, ranks: int | None = 1) -> str | None:
    """Return a note on a model whose layers are not those of a dense one, None for others.

    It says what of them real runs have checked. `ranks` are the data-parallel ones of a server,
    None where they are not known.
    """
    unwindowed = facts.reads_all(engine.max_model_len)
    parts = [] if unwindowed else [_parts(facts)]
    untried = not unwindowed and not set(facts.attention or ()) <= _CHECKED
    if facts.num_experts and facts.experts_per_token:
        alone = "" if ranks == 1 else ", those of a rank as visited by its own tokens alone"
        untried = untried or bool(alone)
        parts.append(f"experts (each token's choice is taken as even{alone})")
    if not parts:
        return None
    windows = {end for end in facts.reads_by_end() if end is not None}
    if len(windows) > 1:
        untried = True
        parts.append(f"several windows (that of {facts.window:,} tokens is followed)")
    if untried:
        tried = "No run of a model of this kind has checked the replay"
    else:
        tried = "Runs of small models with such layers on a CPU have checked the replay"
    return f"{facts.name} has {', '.join(parts)}. {tried}"
