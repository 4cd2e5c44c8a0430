"""What an engine's step takes beyond its kernels: the host's part, by generation of engines.

Learned by `benchmarks/host_term.py` from published serving points (benchmarks/RESULTS.md), kept in
host_term.json with where they are from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from advisor.evidence.features import ZERO, Features
from traces.notes import Telling
from traces.schema.engine import LOOKUPS, EngineConfig
from traces.schema.formats import percent
from traces.statistics import Floats

# Seconds of a step, of one that several ranks share, of a request in it, of prompts in it, and of a
# token of context: V0 builds lists of all tokens and blocks of a request in each step.
TERMS: Final = ("step", "shared_step", "requests", "prefill_step", "kv_tokens")
KEPT: Final = Path(__file__).with_name("host_term.json")
OLD, SYNCHRONOUS, ASYNCHRONOUS = "v0", "synchronous", "asynchronous"
FIRST_V1: Final = (0, 8)  # of vLLM, where engine V1 is the default
FIRST_ASYNCHRONOUS: Final = (0, 14)  # where a step is scheduled while the one before runs
BEFORE, SINCE = "before 0.14", "since 0.14"  # of engines that schedule asynchronously


def schedules_ahead(version: tuple[int, int] | None) -> bool:
    """Whether vLLM schedules asynchronously by default; a version not known is the newest."""
    return version is None or version >= FIRST_ASYNCHRONOUS


def generation_of(engine: EngineConfig) -> str:
    """Return the generation of an engine: V0, or V1 by how it schedules.

    A version that is not known is the newest.
    """
    version = engine.version
    if version is not None and version < FIRST_V1:
        return OLD
    given = engine.async_scheduling
    overlapped = schedules_ahead(version) if given is None else given
    return ASYNCHRONOUS if overlapped else SYNCHRONOUS


def ranks_of(engine: EngineConfig) -> int:
    """Return the GPUs that work on a step together."""
    return engine.tensor_parallel_size * engine.data_parallel_size


@dataclass(frozen=True, kw_only=True)
class HostPart:
    """The host's part of an engine's steps: `seconds` [FEATURES], and the share that kernels hide.

    A step takes what is not hidden, and the longer of its kernels and of the share that is.
    """

    seconds: Floats
    hidden: float

    def scaled(self, factor: float) -> HostPart:
        """Return the part, `factor` times as long."""
        return HostPart(seconds=self.seconds * factor, hidden=self.hidden)


@cache
def kept() -> dict[str, Any]:
    """Return host_term.json."""
    document: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    return document


def host_part(engine: EngineConfig) -> HostPart:
    """Return the host's part of an engine's steps, as learned from published runs."""
    generation = generation_of(engine)
    ahead = generation == ASYNCHRONOUS
    law = kept()["seconds"][SYNCHRONOUS if ahead else generation]
    hidden = float(kept()["hidden"][hiding_of(engine)]) if ahead else 0.0
    return HostPart(
        seconds=in_features(np.array([law[name] for name in TERMS]), engine), hidden=hidden
    )


def hiding_of(engine: EngineConfig) -> str:
    """Return which of the engines that schedule asynchronously this one hides the host as."""
    return SINCE if schedules_ahead(engine.version) else BEFORE


def in_features(seconds: Floats, engine: EngineConfig) -> Floats:
    """Return seconds [FEATURES] of the seconds [TERMS] of an engine.

    A request that verifies the drafts of a model takes of the host what each of its tokens would
    alone. Lookup drafts for some requests alone, which the engine does not tell.
    """
    terms = dict(zip(TERMS, seconds.tolist(), strict=True))
    shared = terms.pop("shared_step")
    terms["step"] += shared if ranks_of(engine) > 1 else 0.0
    if engine.speculative is not None and engine.speculative.method not in LOOKUPS:
        terms["draft_requests"] = engine.speculative.num_speculative_tokens * terms["requests"]
    return np.array(ZERO._replace(**terms))


def host_note(engine: EngineConfig) -> str:
    """Say what an engine's steps take beyond their kernels, and where that is from."""
    part = Features(*host_part(engine).seconds.tolist())
    context = f", {1e9 * part.kv_tokens:.0f} ns a token of context" if part.kv_tokens else ""
    what = (
        f"beyond its kernels a step takes {1e3 * part.step:.2f} ms, {1e6 * part.requests:.0f} us a "
        f"request{context} and {1e3 * part.prefill_step:.1f} ms with prompts, as in published runs "
        "of a vLLM that schedules step by step"
    )
    if generation_of(engine) != ASYNCHRONOUS:
        return what
    hidden = host_part(engine).hidden
    return Telling(
        f"{what}. This engine schedules while kernels run, which hid {percent(hidden)} of that in "
        "other runs"
    )
