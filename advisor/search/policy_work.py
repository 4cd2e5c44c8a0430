"""What a policy gives on the recorded problems, whatever the engine: samples, votes, work.

Votes of a fixed number of samples are exact expectations over subsets. How often a rule that stops
early is right is expected over many orders (advisor/accuracy/subsets.py). What it takes alone on an
engine is replayed here in a few of them, and under load in advisor/search/replayed.py.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from advisor.accuracy.models.one_more import OneMoreRun
from advisor.accuracy.models.published import CurveAccuracy
from advisor.accuracy.subsets import decides_as_vote, expected_right
from advisor.evidence.features import Features, reads_of
from advisor.evidence.gather import Evidence
from advisor.evidence.pools import Pool
from advisor.evidence.runs import RecordedProblem, RecordedRun
from advisor.forecast.stream import RepeatedProblems
from advisor.replay.draws import (
    exact_half_width,
    of_other_draws,
    part_drawn,
    with_drawn,
    with_drawn_again,
)
from advisor.replay.limits import limits_of
from advisor.replay.result import Replayed
from advisor.replay.workload import ReplayWorkload
from advisor.search.space import CandidateKind, Space
from traces.schema.engine import LOOKUPS, ModelFacts
from traces.schema.tts.policy import AS_SENT, Policy
from traces.schema.tts.routes import packed
from traces.statistics import Floats, Ints

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ProblemWork:
    """What one problem takes of an engine that it has to itself.

    `steps` [draws, problems] until it is decided, `totals` [FEATURES] of its steps, the mean over
    problems; `totals_one` and `right_one` where samples run one after the other, as a rule then
    cancels those that wait. Per problem [problems] `right` ([sets, problems] by a published curve),
    `tokens` generated and `flops`, infinite where they are not known.
    """

    steps: Floats
    totals: Floats
    totals_one: Floats
    right: Floats
    right_one: Floats
    tokens: Floats
    flops: Floats


class PolicyWork:
    """The samples of a space's kinds, drawn once, and what follows from them; all of it is kept."""

    def __init__(self, evidence: Evidence, space: Space, seed: int) -> None:
        self.evidence, self.space, self.seed = evidence, space, seed
        self._kept: dict[Hashable, Any] = {}

    def _once(self, name: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept under a name, made the first time."""
        if name not in self._kept:
            self._kept[name] = make()
        kept: T = self._kept[name]
        return kept

    # -- samples -------------------------------------------------------------------------------

    def problems(self, pool: Pool, policy: Policy) -> list[list[RecordedProblem]]:
        """Return the problems with n of their recorded samples each, several times."""
        name = ("problems", *self._drawn_alike(pool, policy))
        return self._once(name, lambda: self._draw(pool, policy))

    def workloads(self, pool: Pool, policy: Policy) -> list[ReplayWorkload]:
        name = ("workloads", *self._drawn_alike(pool, policy))
        return self._once(
            name, lambda: [ReplayWorkload.from_loads(each) for each in self.problems(pool, policy)]
        )

    def redrawn(self, pool: Pool, policy: Policy) -> list[list[RecordedProblem]]:
        """Return the problems with as many samples drawn again, with replacement, several times.

        As fresh runs draw them: none where these draw nothing otherwise, at temperature 0 and where
        others sent the samples.
        """
        if policy == AS_SENT or policy.temperature == 0:
            return []
        counts = [len(problem.samples) for problem in self.problems(pool, policy)[0]]
        name = ("redrawn", *self._drawn_alike(pool, policy))
        return self._once(name, lambda: with_drawn_again(self._problems(pool), counts, self.seed))

    def of_draws(self, pool: Pool, policy: Policy) -> tuple[float, float]:
        """Return the share of the recorded samples that is drawn, and N / (N - 1), in the mean."""
        counts = [len(problem.samples) for problem in self._problems(pool)]
        return part_drawn(counts, pool.most_samples(policy))

    def repeated(self, pool: Pool, policy: Policy) -> RepeatedProblems:
        """Return the draws of the problems, which come again and again in a stream."""
        name = ("repeated", *self._drawn_alike(pool, policy))
        return self._once(name, lambda: RepeatedProblems(self.problems(pool, policy)))

    @staticmethod
    def _drawn_alike(pool: Pool, policy: Policy) -> tuple[Hashable, ...]:
        """Return what policies share that are replayed on the same workloads."""
        return pool.key, policy.n, policy.all_samples_end, policy if policy in pool.tables else None

    def _draw(self, pool: Pool, policy: Policy) -> list[list[RecordedProblem]]:
        """Draw n samples; a rule looks at them in the order of the draw."""
        problems, n = self._problems(pool), pool.most_samples(policy)
        if (tables := pool.tables.get(policy)) is not None:
            routes = [packed(tables[name]) for name in self.space.problem_ids]
            each = zip(problems, routes, strict=True)
            problems = [dataclasses.replace(problem, route=route) for problem, route in each]
        if policy == AS_SENT:
            others = (dataclasses.replace(pool, runs=runs) for runs in pool.draws)
            return [problems, *map(self._loads, others)]
        return with_drawn([problems], n, self.seed, ordered=not policy.all_samples_end)

    def _problems(self, pool: Pool) -> list[RecordedProblem]:
        return self._once(("all", pool.key), lambda: self._loads(pool))

    def _loads(self, pool: Pool) -> list[RecordedProblem]:
        problems = pool.loads(self.space.problem_ids)
        assert problems is not None  # space drops such a candidate
        return problems

    # -- accuracy ------------------------------------------------------------------------------

    def correctness(self, pool: Pool, policy: Policy) -> Floats:
        """Return each problem's expected correctness of a whole vote, 0 where none is judged.

        By a published curve [sets, problems], whose means over problems alone are sound.
        """
        if pool.curve is not None:
            return self._published(pool)[policy.n]

        def mean() -> Floats:
            if policy == AS_SENT:
                return np.zeros(len(self.space.problem_ids))
            curves = [self._curve(run) for run in pool.runs if run.policy.n >= policy.n]
            right = np.array([curve[:, policy.n - 1] for curve in curves])
            has_value = np.isfinite(right)
            return np.asarray(np.where(has_value, right, 0.0).sum(axis=0) / has_value.sum(axis=0))

        return self._once(("right", pool.key, policy.n), mean)

    def one_more(self, pool: Pool) -> OneMoreRun:
        """Return what the samples of a pool tell of one more run."""
        return self._once(
            ("one more", pool.key),
            lambda: OneMoreRun([problem.samples for problem in self._problems(pool)]),
        )

    def _published(self, pool: Pool) -> dict[int, Floats]:
        def votes() -> dict[int, Floats]:
            assert pool.curve is not None
            counts = [policy.n for policy in pool.policies]
            seed = zlib.crc32(repr(pool.key).encode())  # models err by themselves
            model = CurveAccuracy(pool.curve, counts, self.seed + seed)
            return model.votes(len(self.space.problem_ids))

        return self._once(("published", pool.key), votes)

    def _curve(self, run: RecordedRun) -> Floats:
        """Return [problems, n], NaN for a problem that the run lacks."""

        def curve() -> Floats:
            right = np.full((len(self.space.problem_ids), run.policy.n), np.nan)
            for row, name in enumerate(self.space.problem_ids):
                if name in run.problems:
                    right[row] = run.vote_curve(name)
            return right

        return self._once(("curve", id(run)), curve)

    def right_in(self, kind: CandidateKind, replayed: Sequence[Floats]) -> Floats:
        """Return how often a rule is right in replays of its drawn samples, in their order.

        The expectation over all orders, and what the load changed in those that were drawn.
        """
        alone = self._run_alone(kind, None)
        changed = [right - alone[i % len(alone)].right for i, right in enumerate(replayed)]
        return np.asarray(self._expected(kind)[0] + np.mean(changed, axis=0))

    def _expected(self, kind: CandidateKind) -> tuple[Floats, Floats]:
        """Return how often a rule is right alone on an engine, and one sample after the other."""
        pool, policy = kind.pool, kind.policy
        if decides_as_vote(policy.stop, policy.n):
            exact = self.correctness(pool, policy)
            return exact, exact

        by_policy: dict[Policy, tuple[Floats, Floats]] = self._once(("rules", pool.key), dict)
        if policy not in by_policy:  # a table may come later than the others
            new = [
                p for p in pool.policies if p not in by_policy and not decides_as_vote(p.stop, p.n)
            ]
            samples = [problem.samples for problem in self._problems(pool)]
            names = self.space.problem_ids
            tables = {p: [own[name] for name in names] for p, own in pool.tables.items()}
            by_policy |= expected_right(samples, new, [self.seed, 4], tables)
        return by_policy[policy]

    # -- work ----------------------------------------------------------------------------------

    def tokens_and_flops(self, kind: CandidateKind) -> tuple[Floats, Floats]:
        """Return generated tokens and FLOPs of each problem of a whole vote, expected."""
        limits, pool, n = limits_of(kind.engine), kind.pool, kind.policy.n
        drafting = self.drafting(kind)
        size = limits.block_size if limits.prefix_caching else 0

        def by_problem() -> tuple[Floats, Floats]:
            problems = self._problems(pool)
            pairs = [
                _work(
                    problem,
                    decode.mean(axis=1),
                    len(problem.samples) if kind.policy == AS_SENT else n,
                    size,
                    kind.facts,
                    drafting,
                )
                for problem, decode in zip(problems, self._decodes(kind), strict=True)
            ]
            tokens, flops = np.array(pairs).T
            return tokens, flops

        name = ("exact", pool.key, n, kind.facts, kind.engine.speculative, size)
        return self._once(name, by_problem)

    def _decodes(self, kind: CandidateKind) -> list[Floats]:
        """Return [problems] what each recorded sample takes (`_decodes`)."""
        pool, facts = kind.pool, kind.facts
        name = ("decodes", pool.key, facts)
        return self._once(name, lambda: [_decodes(each, facts) for each in self._problems(pool)])

    def exact_spreads(
        self, kind: CandidateKind, members: Ints | None = None
    ) -> dict[str, tuple[float, float]]:
        """Return by how much tokens and FLOPs lie off for their draws of samples, in logs.

        Of a fresh run (`exact_half_width`), and of one of other problems (`of_other_draws`). With
        `members` of the problems at these places alone. Nothing where a fresh run draws nothing, or
        a rule stops early, which is seen in replays.
        """
        policy = kind.policy
        if policy == AS_SENT or policy.temperature == 0 or not policy.all_samples_end:
            return {}
        name = ("exact spreads", kind.pool.key, policy.n, kind.facts, kind.engine.speculative)
        if members is not None:
            return self._exact_spreads(kind, members)
        every = np.arange(len(self.space.problem_ids))
        return self._once(name, lambda: self._exact_spreads(kind, every))

    def _exact_spreads(self, kind: CandidateKind, members: Ints) -> dict[str, tuple[float, float]]:
        decodes, n = self._decodes(kind), kind.policy.n
        each = [decodes[place] for place in members.tolist()]
        tokens, flops = (values[members] for values in self.tokens_and_flops(kind))
        found = {"tokens": exact_half_width(float(tokens.mean()), [own[2] for own in each], n)}
        drafting = self.drafting(kind)
        if kind.facts is not None and np.isfinite(drafting):
            of_sample = [own[0] + drafting * own[1] for own in each]
            found["flops"] = exact_half_width(float(flops.mean()), of_sample, n)
        share, _ = self.of_draws(kind.pool, kind.policy)
        return {name: (half, of_other_draws(half, share)) for name, half in found.items()}

    def drafting(self, kind: CandidateKind) -> float:
        """Return the FLOPs of drafting a token, infinite where those of a token are not known.

        So it is with a model without facts, one that drafts or not.
        """
        if kind.facts is None or not kind.facts.counts_flops(kind.engine.max_model_len):
            return np.inf
        setting = kind.engine.speculative
        if setting is None or setting.method in LOOKUPS:
            return 0.0
        facts = None if setting.model is None else self.evidence.models.get(setting.model)
        unknown = facts is None or facts.active_parameters is None
        return np.inf if unknown else facts.matmul_flops(1.0)  # type: ignore[union-attr]

    def stopped(self, kind: CandidateKind, runs: list[Replayed]) -> tuple[Floats, Floats, Floats]:
        """Return accuracy, generated tokens and FLOPs per problem of replays that stopped early.

        FLOPs are those of all that was forwarded, shared by the tokens generated.
        """
        first = self.workloads(kind.pool, kind.policy)[0].first
        right = self.right_in(kind, [run.right for run in runs])
        tokens = np.mean(
            [np.add.reduceat(run.generated_tokens, first[:-1]) for run in runs], axis=0
        ).astype(float)
        totals = Features(*np.mean([run.totals for run in runs], axis=0).tolist())
        drafting = self.drafting(kind)
        if kind.facts is None or np.isinf(drafting):
            return right, tokens, np.full_like(tokens, np.inf)
        flops = kind.facts.matmul_flops(totals.tokens)
        flops += kind.facts.state_flops() * totals.tokens
        flops += kind.facts.attention_flops(totals.query_context, totals.window_context)
        not_drafted = (
            totals.requests - totals.prefill_requests
        )  # of the steps that verify, not drafted
        flops += drafting * (totals.tokens - not_drafted)
        return right, tokens, tokens * (flops / tokens.sum())

    def work(self, kind: CandidateKind) -> ProblemWork:
        runs = self._run_alone(kind, None)
        all_end = kind.policy.all_samples_end
        one = runs if all_end else self._run_alone(kind, 1)
        if all_end:
            right = self.correctness(kind.pool, kind.policy)
            tokens, flops = self.tokens_and_flops(kind)
        else:
            right, tokens, flops = self.stopped(kind, runs)
        return ProblemWork(
            steps=np.array([run.latency_s for run in runs]),
            totals=self._mean_totals(runs),
            totals_one=self._mean_totals(one),
            right=right,
            right_one=right if all_end else self._expected(kind)[1],
            tokens=tokens,
            flops=flops,
        )

    def _mean_totals(self, runs: list[Replayed]) -> Floats:
        totals: Floats = np.mean([run.totals for run in runs], axis=0)
        return totals / len(self.space.problem_ids)

    def _run_alone(self, kind: CandidateKind, seqs: int | None) -> list[Replayed]:
        """Replay one problem at a time on an engine without limits whose steps take a second."""
        from advisor.replay.replay import replay_alone, stop_of  # numba takes a third of a second

        limits = limits_of(kind.engine).unlimited(seqs)
        reads, stop = reads_of(kind.facts), stop_of(kind.policy)
        workloads = self.workloads(kind.pool, kind.policy)
        name = ("alone", kind.pool.key, kind.policy.n, kind.policy.rule, limits, reads)
        return self._once(name, lambda: [replay_alone(w, limits, stop, reads) for w in workloads])


def _work(
    load: RecordedProblem,
    decodes: Floats,
    n: int,
    block_size: int,
    facts: ModelFacts | None,
    drafting: float,
) -> tuple[float, float]:
    """Return generated tokens and FLOPs of a problem with n samples like the recorded ones.

    Forwarded are the prompt that is not cached (once, and its last partial block for the other
    samples), every generated token but the last, and with speculation the rejected drafts too.
    """
    prompt = load.prompt_tokens
    first = min(load.cached_tokens, prompt - 1) if block_size else 0
    shared = max(first, (prompt - 1) // block_size * block_size) if block_size else 0
    starts, times = np.array([first, shared]), np.array([1, n - 1])
    flops, drafted, generated = (decodes * n).tolist()
    if facts is None or facts.active_parameters is None:
        return generated, np.inf
    flops += float((times * facts.forward_flops(starts, prompt - starts)).sum())
    if drafting:
        flops += drafting * (float((times * (prompt - starts)).sum()) + drafted)
    return generated, flops


def _decodes(load: RecordedProblem, facts: ModelFacts | None) -> Floats:
    """Return [3, samples] FLOPs after the prompt, tokens drafted, and tokens generated."""
    prompt = load.prompt_tokens
    tokens = np.array([sample.output_tokens for sample in load.samples], dtype=float)
    demands = np.array([np.full(len(tokens), np.nan), np.zeros(len(tokens)), tokens])
    if facts is None or facts.active_parameters is None:
        return demands
    demands[0] = facts.forward_flops(prompt, tokens - 1)
    for place, sample in enumerate(load.samples):
        if sample.scheduled is not None and sample.advance is not None:
            scheduled, kept = sample.scheduled.astype(float), sample.advance.astype(float)
            before = prompt + np.cumsum(kept) - kept
            demands[0, place] = facts.forward_flops(before, scheduled).sum()
            demands[1, place] = (scheduled - 1).sum()
    return demands
