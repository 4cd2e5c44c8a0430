"""What steps with prompts take beyond their kernels where the host's part hides behind others."""

from __future__ import annotations

from typing import Final, NamedTuple

from advisor.step_time.host.law import ASYNCHRONOUS, generation_of, kept
from advisor.step_time.host.spread import PLAIN, kind_of
from traces.schema.engine import EngineConfig, ModelFacts


class PromptPart(NamedTuple):
    """Steps with prompts: `factor` times their kernels, and `seconds` more beyond CUDA graphs."""

    factor: float = 1.0
    seconds: float = 0.0


AS_KERNELS: Final = PromptPart()


def prompt_kind(facts: ModelFacts, engine: EngineConfig) -> bool:
    """Whether points of a model and an engine like these taught what prompts take."""
    return generation_of(engine) == ASYNCHRONOUS and kind_of(facts) != PLAIN


def prompt_part(facts: ModelFacts, engine: EngineConfig) -> PromptPart:
    """Return what published runs paid for prompts: of quantised models and mixtures.

    They are launched kernel by kernel, as CUDA graphs hold fewer tokens. Other models taught none:
    engines that schedule step by step have the host's part of prompts instead.
    """
    if not prompt_kind(facts, engine):
        return AS_KERNELS
    law = kept()["prompts"][ASYNCHRONOUS]
    return PromptPart(float(law["factor"]), float(law["seconds"]))
