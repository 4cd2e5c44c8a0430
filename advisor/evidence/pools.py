"""Samples that can be judged together, and the policies that they can answer for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from zlib import crc32

from advisor.evidence.gather import Evidence
from advisor.evidence.keys import SampleKey, decoder_of, powers, sample_counts, sampling_of
from advisor.evidence.runs import ProblemRun, RecordedProblem, RecordedRun, Sample
from traces.schema.engine import EngineConfig
from traces.schema.tts.methods import METHODS
from traces.schema.tts.parameters import complete
from traces.schema.tts.policy import AS_SENT, Policy
from traces.schema.tts.published import PublishedCurve
from traces.schema.tts.routes import Table


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The samples of one model with one way of sampling, from every run of it.

    `tables` are those of a policy that was learned from these problems, for each of them the one
    that was learned without it. Where such a table names reasoning efforts, its pool has the
    samples of several: `by_problem` is the pool that each problem's are of, by the effort that its
    table gives it. Such a pool answers for that policy alone, which is the second part of its key.
    `draws` are other draws of the runs, where their traffic is drawn.
    """

    key: SampleKey
    runs: tuple[RecordedRun, ...]
    policies: tuple[Policy, ...]  # that its samples can answer
    problem_ids: frozenset[str]
    tables: Mapping[Policy, Mapping[str, Table]] = field(default_factory=dict)
    by_problem: Mapping[str, Pool] = field(default_factory=dict)
    draws: tuple[tuple[RecordedRun, ...], ...] = ()

    def most_samples(self, policy: Policy) -> int:
        """Return how many samples a policy draws of a problem at most."""
        return max([policy.n, *(max(table) for table in self.tables.get(policy, {}).values())])

    def drawn(self, problem_ids: Sequence[str]) -> list[int]:
        """Return how many samples of each problem its policies draw at most."""
        if self.by_problem:
            (tables,) = self.tables.values()
            return [max(tables[name]) for name in problem_ids]
        return [max(map(self.most_samples, self.policies), default=1)] * len(problem_ids)

    @property
    def sources(self) -> frozenset[SampleKey]:
        """The keys of the pools whose samples it has."""
        return frozenset(pool.key for pool in self.by_problem.values()) or frozenset([self.key])

    @property
    def curve(self) -> PublishedCurve | None:
        """The published curve that alone tells what of its votes is right, if that is so."""
        return next((run.curve for run in self.runs if run.curve is not None), None)

    def loads(self, problem_ids: Sequence[str]) -> list[RecordedProblem] | None:
        """Return each problem with all samples, or None when one has none to replay.

        Answers of several runs cannot be told equal unless they are texts. Else a problem has the
        samples of one of the runs with the most of it, by its name. A speculative engine needs
        samples that say how their drafts went.
        """
        if self.by_problem:
            each_own = [self.by_problem[name].loads([name]) for name in problem_ids]
            loaded = [own[0] for own in each_own if own is not None]
            return loaded if len(loaded) == len(each_own) else None
        drafting = self.key[0][-1] is not None
        alike = all(run.texts for run in self.runs)
        problems = []
        for name in problem_ids:
            problem_runs = [run.problems[name] for run in self.runs if name in run.problems]
            each = [
                [s for s in problem.samples if not drafting or s.advance is not None]
                for problem in problem_runs
            ]
            if each and not alike:
                most = max(map(len, each), default=0)
                each = [samples for samples in each if len(samples) == most]
                each = [each[crc32(name.encode()) % len(each)]]
            samples = list(chain.from_iterable(each))
            if not samples:
                return None
            problems.append(_load(problem_runs, samples))
        return problems


def _load(own: Sequence[ProblemRun], samples: Sequence[Sample]) -> RecordedProblem:
    cached = sorted(problem.cached_tokens for problem in own)
    return RecordedProblem(
        prompt_tokens=own[0].prompt_tokens,
        cached_tokens=cached[len(cached) // 2],
        samples=tuple(samples),
        shared_tokens=own[0].shared_tokens,
        front_end_s=own[0].front_end_s,
    )


def find_pools(evidence: Evidence, *, few: bool = False) -> list[Pool]:
    """Return the samples by model and way of sampling, those cut at budgets included.

    With `few` their policies have powers of two as n, and the recorded ones.
    """
    groups: dict[SampleKey, list[RecordedRun]] = {}
    for run in (*evidence.runs, *evidence.cut):
        groups.setdefault((decoder_of(run.engine), sampling_of(run.policy)), []).append(run)
    pools = []
    for key, runs in groups.items():
        if key[1] == AS_SENT:
            pools.append(_of_traffic(key, runs))
            continue
        curve = next((run.curve for run in runs if run.curve is not None), None)
        if curve is not None:
            pools.append(_of_curve(key, runs, curve))
            continue
        sampled = [run for run in runs if run.policy.method != "greedy"]
        policies = (
            [dataclasses.replace(key[1], method="greedy")] if len(sampled) < len(runs) else []
        )
        most = max((run.policy.n for run in sampled), default=0)
        doubled = powers([run.policy.n for run in sampled], 1)
        counts = {*doubled} if few else {*doubled, *sample_counts(most)}
        if not all(run.answers_told for run in runs):
            counts = {1}
        if most:
            policies += [dataclasses.replace(key[1], n=n) for n in sorted(counts)]
            policies += [
                rule
                for n in sorted(counts)
                for rule in _stopping(key[1], n)
                if n in doubled or not METHODS[rule.method].capped
            ]
        ids = {name for run in runs for name in run.problems}
        judged = {n for n in ids if all(run.judged(n) for run in runs)}
        complete = {n for n in judged if not most or _most_samples(sampled, n) >= most}
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


def _of_traffic(key: SampleKey, runs: Sequence[RecordedRun]) -> Pool:
    """Return a run of each watched server: where traffic was drawn, the first, middle, last draw.

    Of lengths whose mean alone is known these are alike, and further and further apart.
    """
    each: dict[tuple[str, EngineConfig], list[RecordedRun]] = {}
    for run in runs:
        each.setdefault((run.recording, run.engine), []).append(run)
    few = (0.0, 0.5, 1.0) if any(len(draws) > 1 for draws in each.values()) else (0.0,)
    first, *draws = [tuple(d[round(share * (len(d) - 1))] for d in each.values()) for share in few]
    names = frozenset(name for run in first for name in run.problems)
    return Pool(key=key, runs=first, policies=(AS_SENT,), problem_ids=names, draws=tuple(draws))


FEW_POINTS = 12  # of a published curve: up to so many are all candidates


def _of_curve(key: SampleKey, runs: Sequence[RecordedRun], curve: PublishedCurve) -> Pool:
    """Return what a published curve can answer: fixed votes, as only their averages are known."""
    points = [point.n for point in curve.points]
    counts = {*sample_counts(curve.most), curve.most}
    counts |= set(points) if len(points) <= FEW_POINTS else set()
    return Pool(
        key=key,
        runs=tuple(runs),
        policies=tuple(dataclasses.replace(key[1], n=n) for n in sorted(counts)),
        problem_ids=frozenset(name for run in runs for name in run.problems),
    )


def _most_samples(runs: Sequence[RecordedRun], name: str) -> int:
    return max((len(r.problems[name].samples) for r in runs if name in r.problems), default=0)


def _stopping(sampling: Policy, n: int) -> Iterator[Policy]:
    """Yield the policies of traces/schema/tts/methods.py that stop a vote of n early."""
    able = [(each.proposed_from, each.name) for each in METHODS.values() if each.proposed_from]
    for fewest, name in sorted(able):
        if n >= fewest:
            for rule in METHODS[name].proposed(n):
                own = dataclasses.replace(sampling, method=name, n=n, rule=tuple(rule.items()))
                yield complete(own)
