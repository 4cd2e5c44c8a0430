"""What can be predicted of a model, by its facts alone: nothing of it needs to be recorded."""

from __future__ import annotations

from dataclasses import dataclass

from advisor.evidence.unrecorded import refusal, unchecked
from traces.errors import MissingDependencyError, TablesError, TtscopeError
from traces.schema.engine import EngineConfig, ModelFacts
from traces.schema.record import Record


@dataclass(frozen=True, kw_only=True)
class Predictability(Record):
    """Whether something can be predicted, and what it rests on or what is missing."""

    ok: bool
    why: str


def replay_of(facts: ModelFacts) -> Predictability:
    """Return whether `replay` and `advise` take a recording of one's own of a model."""
    why = refusal(facts, EngineConfig(model=facts.name))
    if why is not None:
        return Predictability(ok=False, why=why)
    known = (
        "A recording of it is enough: its weights, its FLOPs and what it reads of the KV cache are "
        "known"
    )
    note = unchecked(facts, EngineConfig(model=facts.name))
    return Predictability(ok=True, why=known if note is None else f"{known}. {note}")


def prior_of_gpu(facts: ModelFacts, system: str | None) -> Predictability:
    """Return whether the prior of a system prices a model, at any size of tensor parallelism.

    Raises UsageError for a system of an unknown name.
    """
    from advisor.step_time.prior.defaults import with_blocks
    from advisor.step_time.prior.offers import SIZES, memory_on
    from advisor.step_time.prior.prior import check, prior_of
    from advisor.step_time.prior.relatives import read_gpu

    try:
        tables = None if system is None else read_gpu(system)
    except (MissingDependencyError, TablesError) as error:
        return Predictability(ok=False, why=_told(error))
    try:
        check(facts, EngineConfig(model=facts.name))
    except TtscopeError as error:
        return Predictability(ok=False, why=_told(error))
    if tables is None:
        return Predictability(ok=False, why="No GPU is named. Name one, such as --gpu h100_sxm")
    priced, refused, rules = [], list[str](), dict[str, None]()
    for size in SIZES:
        engine = EngineConfig(model=facts.name, tensor_parallel_size=size)
        try:
            prior = prior_of(tables, facts, engine)
            memory = memory_on(tables, engine, facts)
            if memory is not None:
                with_blocks(memory, engine, facts)
        except TtscopeError as error:
            refused.append(_told(error))
        else:
            priced.append(str(size))
            rules |= dict.fromkeys(prior.shares)
    if not priced:
        return Predictability(ok=False, why=refused[-1])
    return Predictability(
        ok=True,
        why=f"The tables of {tables.device} (vLLM {tables.versions['gemm']}) have its shapes at "
        f"tensor_parallel_size {', '.join(priced)}"
        + (f". By rule: {' | '.join(rules)}" if rules else ""),
    )


def _told(error: TtscopeError) -> str:
    return str(error).removeprefix("--gpu: ").replace("--gpu needs", "The prior needs")
