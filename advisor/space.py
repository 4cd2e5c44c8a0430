"""The candidates: recorded engines with other limits, and policies that the samples can answer.

Nothing is proposed whose step time or samples were never recorded: models, tensor-parallel sizes
and speculative settings are those of the recordings. `max_num_seqs` takes the powers of two up to
the largest recorded, and n those up to the samples recorded.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from advisor.evidence import Evidence, ProblemRun, Run, Sample, law_key
from advisor.load import Limits, Load
from advisor.workload import Workload
from traces.schema import EngineConfig, ModelFacts, Policy, Speculative

DEFAULT_BLOCK: Final = 16
UNRECORDED: Final = "speculation was not recorded with this sampling"
ENOUGH_PROBLEMS: Final = 0.5  # of those of the fullest pool; a pool with fewer is left out

Decoder = tuple[str, str | None, str | None, str | None, Speculative | None]
SampleKey = tuple[Decoder, Policy]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The samples of one model with one way of sampling, from every run of it."""

    key: SampleKey
    runs: tuple[Run, ...]
    policies: tuple[Policy, ...]  # that its samples can answer
    problem_ids: frozenset[str]

    def loads(self, problem_ids: Sequence[str]) -> list[Load] | None:
        """Return per problem a Load with all samples, or None when one has none to replay.

        A speculative engine needs samples that say how their drafts went.
        """
        drafting = self.key[0][-1] is not None
        found = []
        for name in problem_ids:
            own = [run.problems[name] for run in self.runs if name in run.problems]
            samples = [
                sample
                for problem in own
                for sample in problem.samples
                if not drafting or sample.advance is not None
            ]
            if not samples:
                return None
            found.append(_load(own, samples))
        return found


def _load(own: Sequence[ProblemRun], samples: Sequence[Sample]) -> Load:
    cached = sorted(problem.cached_tokens for problem in own)
    return Load(
        prompt_tokens=own[0].prompt_tokens,
        cached_tokens=cached[len(cached) // 2],
        samples=tuple(samples),
    )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration that could be run; `recorded` says that it was."""

    engine: EngineConfig
    policy: Policy
    pool: Pool
    facts: ModelFacts
    recorded: bool

    def limits(self) -> Limits:
        """Return what the replay needs of the engine."""
        engine = self.engine
        blocks = engine.num_gpu_blocks
        return Limits(
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            block_size=engine.block_size or DEFAULT_BLOCK,
            num_blocks=None if blocks is None else blocks - 1,  # one is vLLM's null block
            prefix_caching=engine.enable_prefix_caching is not False,
            async_scheduling=engine.async_scheduling is True,
            speculative=engine.speculative is not None,
        )


@dataclass(frozen=True, kw_only=True)
class Space:
    """The candidates, how many were dropped and why, and the problems that all have."""

    candidates: tuple[Candidate, ...]
    dropped: Mapping[str, int]
    problem_ids: tuple[str, ...]


def explore(evidence: Evidence) -> Space:
    """Return every candidate that the evidence can judge."""
    pools = _pools(evidence)
    fullest = max(len(pool.problem_ids) for pool in pools)
    dropped: Counter[str] = Counter()
    kept = []
    for pool in pools:
        if len(pool.problem_ids) < ENOUGH_PROBLEMS * fullest:
            dropped["recorded on too few of the problems"] += len(pool.policies)
        else:
            kept.append(pool)
    common = frozenset.intersection(*(pool.problem_ids for pool in kept))
    if not common:
        kept = [max(kept, key=lambda pool: len(pool.problem_ids))]
        common = kept[0].problem_ids
    order = dict.fromkeys(name for run in evidence.runs for name in run.problems)
    names = tuple(name for name in order if name in common)
    recorded = {(run.engine, run.policy) for run in evidence.runs}
    candidates = []
    for engine in _engines(evidence):
        own = {pool.key[1] for pool in kept if pool.key[0] == _decoder(engine)}
        for pool in kept:
            if pool.key[0] != _decoder(engine):
                like = pool.key[0][:-1] == _decoder(engine)[:-1]
                if engine.speculative is not None and like and pool.key[1] not in own:
                    dropped[UNRECORDED] += len(pool.policies)
                continue
            reason = _unfit(engine, pool, names)
            if reason is not None:
                dropped[reason] += len(pool.policies)
                continue
            for policy in pool.policies:
                candidates.append(
                    Candidate(
                        engine=engine,
                        policy=policy,
                        pool=pool,
                        facts=evidence.models[engine.model],
                        recorded=(engine, policy) in recorded,
                    )
                )
    return Space(candidates=tuple(candidates), dropped=dict(dropped), problem_ids=names)


def _decoder(engine: EngineConfig) -> Decoder:
    """Return what decides the answers beside the sampling.

    Speculation should not, but that is a claim about an implementation: engines with and without
    it are each judged by their own samples.
    """
    return (
        engine.model,
        engine.dtype,
        engine.quantization,
        engine.kv_cache_dtype,
        engine.speculative,
    )


def _pools(evidence: Evidence) -> list[Pool]:
    groups: dict[SampleKey, list[Run]] = {}
    for run in evidence.runs:
        sampling = dataclasses.replace(run.policy, method="majority", n=1, rule=())
        groups.setdefault((_decoder(run.engine), sampling), []).append(run)
    pools = []
    for key, runs in groups.items():
        whole = [run for run in runs if run.policy.method != "greedy"]
        policies = [dataclasses.replace(key[1], method="greedy")] if len(whole) < len(runs) else []
        most = max((run.policy.n for run in whole), default=0)
        counts = {run.policy.n for run in whole} | {2**i for i in range(most.bit_length())}
        if most:
            policies += [dataclasses.replace(key[1], n=n) for n in sorted(counts)]
        ids = {n for run in runs for n in run.problems if len(run.problems[n].samples) >= 1}
        judged = {n for n in ids if all(_judged(run, n) for run in runs)}
        complete = {n for n in judged if not most or _most_samples(whole, n) >= most}
        if complete:
            pools.append(
                Pool(
                    key=key,
                    runs=tuple(runs),
                    policies=tuple(policies),
                    problem_ids=frozenset(complete),
                )
            )
    return pools


def _judged(run: Run, name: str) -> bool:
    problem = run.problems.get(name)
    return problem is None or all(
        s.correct is not None or s.answer is None for s in problem.samples
    )


def _most_samples(runs: Sequence[Run], name: str) -> int:
    return max((len(r.problems[name].samples) for r in runs if name in r.problems), default=0)


def _engines(evidence: Evidence) -> list[EngineConfig]:
    """Return the recorded engines, each with every `max_num_seqs` up to the largest recorded."""
    recorded = list(
        dict.fromkeys([t.engine for t in evidence.steps] + [r.engine for r in evidence.runs])
    )
    taught = {law_key(table.engine) for table in evidence.steps}
    largest: dict[EngineConfig, int] = {}
    for engine in recorded:
        key = law_key(engine)
        largest[key] = max(largest.get(key, 0), engine.max_num_seqs or 0)
    found: dict[EngineConfig, None] = {}
    for engine in recorded:
        if law_key(engine) not in taught:
            continue
        found[engine] = None
        if engine.max_num_seqs is None:
            continue
        most = largest[law_key(engine)]
        for power in range(most.bit_length()):
            found[dataclasses.replace(engine, max_num_seqs=2**power)] = None
    return list(found)


def _unfit(engine: EngineConfig, pool: Pool, names: Sequence[str]) -> str | None:
    """Return why an engine cannot be judged with a pool's samples, or None."""
    if engine.data_parallel_size > 1:
        return "data parallel engines are not replayed yet"
    loads = pool.loads(names)
    if loads is None:
        return UNRECORDED
    most = max((policy.n for policy in pool.policies), default=1)
    if engine.speculative is not None:
        if min(len(load.samples) for load in loads) < most:
            return UNRECORDED
        width = 1 + engine.speculative.num_speculative_tokens
        seqs = engine.max_num_seqs or 1
        if engine.max_num_batched_tokens and seqs * width > engine.max_num_batched_tokens:
            return "max_num_batched_tokens is too few for the drafts"
    if engine.num_gpu_blocks is not None:
        size = engine.block_size or DEFAULT_BLOCK
        longest = Workload.from_loads(loads).longest
        if -(-longest // size) > engine.num_gpu_blocks - 1:
            return "the KV cache is too small for one sequence"
    return None
