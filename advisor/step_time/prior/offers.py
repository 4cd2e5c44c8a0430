"""Engines on GPUs that were not measured: candidates whose step times are of the prior.

A recorded model is offered on each tensor-parallel size that its shape, the GPU's memory and the
tables allow. Its samples are the recorded ones, so that lengths and answers are real; how long a
step takes is the prior's, as wide as the prior was wrong in the runs of benchmarks/RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

import numpy as np
import polars as pl

from advisor.evidence.features import FEATURES, Features, feature_matrix
from advisor.evidence.gather import Evidence
from advisor.evidence.keys import decoder_of, law_key, powers, without_limits
from advisor.step_time.cost import StepCost, predicted_steps
from advisor.step_time.law import PriorCost, StepLaw, non_negative_least_squares
from advisor.step_time.power.law import PowerLaw
from advisor.step_time.power.prior import NOTHING, PowerAsked, lengths_of
from advisor.step_time.prior.defaults import BLOCK, Device, Memory, as_on, memory_of, with_blocks
from advisor.step_time.prior.drafting import drafter_in
from advisor.step_time.prior.recalibration import (
    PriorTimes,
    recalibrate,
)
from advisor.step_time.prior.relatives import read_gpu
from advisor.step_time.prior.tables import PriorTables
from traces.errors import TablesError, UsageError
from traces.foreign.values import UNKNOWN_MODEL
from traces.recording.reader import Recording
from traces.recording.tables import COMPOSITION, TABLES
from traces.schema.engine import EngineConfig, ModelFacts
from traces.statistics import Z95, Floats

Choices = Sequence[tuple[int, int]]  # (max_num_seqs, max_num_batched_tokens)

SIZES: Final = (1, 2, 4, 8)  # of tensor parallelism
PRICED: Final = (None, "auto", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class RefusedOffer:
    """An engine that is not offered, how many limits it would have been offered with, and why."""

    engine: EngineConfig
    choices: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Offers:
    """Engines without limits by the system of their tables and their limits, and their laws.

    `laws` are by `law_key`, and so is `power`, what they draw where that is known. `ranks` are
    those of a server that share a mixture's experts, as recorded. `untaught` says which recordings
    of cases taught nothing, and why.
    """

    engines: Mapping[EngineConfig, tuple[str, Choices]]
    laws: Mapping[EngineConfig, StepLaw]
    refused: Sequence[RefusedOffer]
    ranks: Mapping[EngineConfig, int] = field(default_factory=dict)
    untaught: Mapping[str, str] = field(default_factory=dict)
    power: Mapping[EngineConfig, PowerLaw] = field(default_factory=dict)


def offer(
    evidence: Evidence,
    recordings: Sequence[Recording],
    systems: Sequence[str],
    asked: PowerAsked | None = None,
) -> Offers:
    """Return what the recorded models could be served on of the named systems of the prior.

    With a power cap, if one is `asked`.

    Recordings of such a GPU recalibrate it; what those of the evidence measured themselves is not
    offered again. Raises UsageError for a system without tables and for one on which nothing can be
    offered, MissingDependencyError where the tables are not installed, TablesError for damage.
    """
    asked = asked or NOTHING
    engines: dict[EngineConfig, tuple[str, Choices]] = {}
    laws: dict[EngineConfig, StepLaw] = {}
    power: dict[EngineConfig, PowerLaw] = {}
    ranks: dict[EngineConfig, int] = {}
    refused: list[RefusedOffer] = []
    untaught: dict[str, str] = {}
    truncated = any(run.policy.truncated for run in evidence.runs)
    for system in dict.fromkeys(systems):
        tables = read_gpu(system)
        asked.check(tables.device, tables.gpu.get("power"))
        recalibration = recalibrate(
            tables, recordings, models=evidence.models, unnamed=len(set(systems)) == 1
        )
        untaught |= {} if recalibration is None else recalibration.untaught
        measured = {_shape(table.engine) for table in evidence.steps}
        offered, why = 0, "no recording has a model"
        for base, choices, recorded in _bases(evidence, tables):
            facts = evidence.models.get(base.model)
            if facts is None:
                why = f"what {base.model} weighs is not known. Import it with --model-config FILE"
                if base.model == UNKNOWN_MODEL:
                    why = "no model is named. Import it with --model NAME and --model-config FILE"
                refused.append(
                    RefusedOffer(engine=base, choices=len(choices) * len(SIZES), why=why)
                )
                continue
            sharing = (recorded or 1) if facts.num_experts else None
            for size in SIZES:
                engine = replace(base, gpu=tables.device, tensor_parallel_size=size)
                if _shape(engine) in measured:
                    offered += 1
                    continue
                try:
                    times = PriorTimes(
                        tables=tables, facts=facts, found=recalibration, ranks=sharing or 1,
                        truncated=truncated, models=evidence.models,
                        asked=replace(
                            asked, lengths=lengths_of(evidence.runs, base.model)
                        ),
                    )  # fmt: skip
                    engine = _placed(engine, times)
                    law = _law(evidence, engine, choices, times)
                except (UsageError, TablesError) as error:
                    why = str(error).removeprefix("--gpu: ")
                    refused.append(RefusedOffer(engine=engine, choices=len(choices), why=why))
                    continue
                engines[engine] = (system, choices)
                laws[law_key(engine)] = law
                if (drawn := times.power(engine)) is not None:
                    power[law_key(engine)] = drawn
                ranks |= {} if sharing is None else {engine: sharing}
                offered += 1
        if not offered:
            raise UsageError(f"--gpu {system}: nothing can be offered there: {why}")
    return Offers(
        engines=engines,
        laws=laws,
        refused=tuple(refused),
        ranks=ranks,
        untaught=untaught,
        power=power,
    )


def _shape(engine: EngineConfig) -> tuple[object, ...]:
    """Return what of an engine a measurement on a GPU is of."""
    return (engine.gpu, engine.tensor_parallel_size, *decoder_of(engine))


def _bases(
    evidence: Evidence, tables: PriorTables
) -> Iterator[tuple[EngineConfig, Choices, int | None]]:
    """Yield an engine without limits for each recorded way of decoding, its limits, its ranks.

    These limits are the recorded ones, those that a server on the GPU has by default, and the
    powers of two up to the largest, and these ranks share the experts of a mixture.
    """
    groups: dict[object, list[EngineConfig]] = {}
    ranks: dict[object, int | None] = {}
    device = device_of(tables)
    usual = device.limits("server")
    for run in evidence.runs:
        there, _ = as_on(device, run.engine)
        groups.setdefault(decoder_of(run.engine), []).append(there)
    with_steps = [each.engine for each in evidence.steps]  # first, as spans tell of no ranks
    for engine in [*with_steps, *(each.engine for each in evidence.runs)]:
        if law_key(engine) in evidence.ranks:
            ranks.setdefault(decoder_of(engine), evidence.ranks_of(engine))
    for decoder, engines in groups.items():
        first = engines[0]
        base = replace(
            without_limits(first),
            pipeline_parallel_size=1,
            num_gpus=None,
            num_gpu_blocks=None,
            block_size=BLOCK,
            gpu_memory_utilization=None if first.gpu is None else first.gpu_memory_utilization,
        )
        seqs = powers([usual[0], *(each.max_num_seqs for each in engines)], 1)
        batched = powers([usual[1], *(each.max_num_batched_tokens for each in engines)], 256)
        yield base, [(s, b) for s in seqs for b in batched], ranks.get(decoder)


def device_of(tables: PriorTables) -> Device:
    """Return the GPU of a system of the prior."""
    return Device(name=tables.device, memory_bytes=tables.memory_bytes)


def memory_on(
    tables: PriorTables,
    engine: EngineConfig,
    facts: ModelFacts,
    models: Mapping[str, ModelFacts] | None = None,
) -> Memory | None:
    """Return what an engine takes of the memory of a system's GPU; None where it is not known.

    `models` are those that may draft, by name. Raises UsageError where the one that does is not
    known.
    """
    return memory_of(
        device_of(tables),
        engine,
        facts,
        reserved=tables.reserved_bytes(engine.tensor_parallel_size),
        drafter=drafter_in(engine, facts, models or {}),
    )


def _placed(engine: EngineConfig, times: PriorTimes) -> EngineConfig:
    """Return the engine with the KV blocks that its GPU has room for, where its memory is known.

    Raises UsageError where it does not fit.
    """
    facts = times.facts
    if engine.dtype not in PRICED:
        raise UsageError(
            f"{facts.name} was recorded in {engine.dtype}, and the tables are bfloat16's"
        )
    memory = memory_on(times.tables, times.shared(engine), facts, times.models)
    return engine if memory is None else with_blocks(memory, engine, facts)


def _law(evidence: Evidence, engine: EngineConfig, choices: Choices, times: PriorTimes) -> StepLaw:
    """Return the law of an engine: a linear one for the closed form, the tables for the replay.

    Raises UsageError for an engine that cannot be priced, TablesError for shapes that were not
    measured.
    """
    prior, drafting = times.prior(engine), times.drafting(engine)
    most = replace(
        engine,
        max_num_seqs=max(seqs for seqs, _ in choices),
        max_num_batched_tokens=max(tokens for _, tokens in choices),
    )

    @lru_cache(maxsize=64)
    def cost(seqs: int | None, tokens: int | None) -> StepCost:
        asked = replace(engine, max_num_seqs=seqs, max_num_batched_tokens=tokens)
        return times.cost(asked)

    def of(asked: EngineConfig) -> StepCost:
        return cost(asked.max_num_seqs, asked.max_num_batched_tokens)

    measured = prior.domain
    high = Features(*[np.inf] * len(FEATURES))._replace(
        requests=measured.batch, tokens=measured.tokens
    )
    ran = times.ran
    checked = ran is not None and ran.has(times.facts, engine.tensor_parallel_size)
    sigma = _sigma(times, most, of(most), evidence)
    return StepLaw(
        seconds=_linear(of, most, evidence) + (0.0 if drafting is None else drafting.seconds),
        fewest=0.0,
        high=np.array(high),
        sigma=sigma,
        sigma_outside=2 * sigma,
        runs=0 if ran is None else len(ran.recordings),
        repeats=0,
        repeats_outside=0,
        prior=PriorCost(
            system=times.tables.system,
            label=times.tables.label,
            recordings=() if times.found is None else times.found.recordings,
            checked=checked,
            kernels=times.found is not None and ran is None,
            told=times.published(engine).note(),
            cost=of,
            holds=prior.holds,
            drafts=_paying(evidence, most, times),
        ),
    )


def _paying(evidence: Evidence, engine: EngineConfig, times: PriorTimes) -> str | None:
    """Return up to which batch an engine's drafts pay, None without any that were recorded."""
    same = [run for run in evidence.runs if decoder_of(run.engine) == decoder_of(engine)]
    note = times.pays(engine, same)
    if note is None or any(run.recording for run in same):
        return note
    return f"{note}, by a published acceptance, as none ran"


def _sigma(times: PriorTimes, engine: EngineConfig, cost: StepCost, evidence: Evidence) -> float:
    """Return the spread (sd) of the log of a run's time about the prior.

    Of the host's share in the usual step. Where the host hides behind kernels it holds what it may
    be there.
    """
    ends = times.ends(engine, cost)
    if times.ran is not None:
        return times.sigma(engine, 0.0)
    steps = steps_to_come(engine, evidence)
    spent = feature_matrix(steps, speculative=False) @ times.host(engine)
    sigma = times.sigma(engine, float(np.median(spent / predicted_steps(cost, steps))))
    if ends is None:
        return sigma
    fast, slow = (predicted_steps(each, steps) for each in ends)
    return float(np.hypot(sigma, np.median(np.log(slow / fast)) / 2 / Z95))


def _linear(
    cost: Callable[[EngineConfig], StepCost], engine: EngineConfig, evidence: Evidence
) -> Floats:
    """Return seconds per feature that come nearest to the tables, for steps as will be made.

    Each step's relative error counts alike.
    """
    steps = steps_to_come(engine, evidence)
    seconds = predicted_steps(cost(engine), steps)
    composition = feature_matrix(steps, speculative=False)
    return non_negative_least_squares(composition / seconds[:, None], np.ones(len(seconds)))


def steps_to_come(engine: EngineConfig, evidence: Evidence) -> pl.DataFrame:
    """Return steps as will be made: of all batches up to `max_num_seqs`.

    At contexts up to the longest recorded, and with prompts of the usual length.
    """
    samples = [
        (problem.prompt_tokens, sample.output_tokens)
        for run in evidence.runs
        if run.engine.model == engine.model
        for problem in run.problems.values()
        for sample in problem.samples
    ]
    prompt, longest = int(np.median([p for p, _ in samples])), max(p + o for p, o in samples)
    seqs = engine.max_num_seqs or 1
    batches = powers([seqs], 1)
    rows = [
        {"decode_requests": batch, "decode_tokens": batch, "decode_kv_tokens": batch * context}
        for batch in batches
        for context in np.linspace(prompt, longest, 5).astype(int).tolist()
    ]
    prompt_step = {
        "prefill_requests": 1,
        "prefill_tokens": prompt,
        "prefill_kv_tokens": prompt,
        "prefill_query_context": prompt * (prompt + 1) // 2,
    }
    if (speculative := engine.speculative) is not None:  # what verifies drafts
        more = speculative.num_speculative_tokens + 1
        rows = [row | {"decode_tokens": more * row["decode_requests"]} for row in rows]
    rows += [prompt_step, *({**prompt_step, **row} for row in rows[2::5])]
    plain = {name: TABLES["steps"][name] for name in COMPOSITION}
    return pl.DataFrame([dict.fromkeys(plain, 0) | row for row in rows], schema=plain)
