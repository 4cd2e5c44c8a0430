"""What to say of an engine that nothing recorded tells of, and what would teach it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable
from typing import Any, Final

from traces.schema import EngineConfig, Speculative

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
