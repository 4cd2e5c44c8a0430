"""What a policy gives on the recorded problems, whatever the engine: samples, votes, work.

Votes of a fixed number of samples are exact expectations over subsets; what is replayed are a few
draws of them. A rule that stops early looks at samples in a random order: how often it is right is
expected over many orders (advisor/accuracy/subsets.py); what it takes alone on an engine, step by
step, is replayed here in a few, and again under load in advisor/search/replayed.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advisor.accuracy.subsets import decides_as_vote, expected_right
from advisor.evidence.features import FEATURES, INDEX
from advisor.evidence.gather import Evidence
from advisor.evidence.pools import Pool
from advisor.evidence.runs import RecordedProblem, Run
from advisor.replay.limits import Limits, limits_of
from advisor.replay.result import Replayed
from advisor.replay.workload import Workload
from advisor.search.space import Kind, Space
from traces.schema.engine import LOOKUPS, ModelFacts
from traces.schema.policy import WHOLE, Policy
from traces.summary.votes import majority_curve

Floats = npt.NDArray[np.float64]

REPLAYS = 3  # draws of n of the N recorded samples, or of their order where a rule looks at it


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one problem takes of an engine that it has to itself.

    `steps` [draws, problems] until it is decided, `totals` [FEATURES] of its steps, the mean over
    problems; `totals_one` where samples run one after the other, which is less where a rule
    cancels those that wait. Per problem [problems] `right` (`right_one` one after the other),
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
    """The samples of a space's kinds, drawn once and kept."""

    def __init__(self, evidence: Evidence, space: Space, seed: int) -> None:
        self.evidence, self.space, self.seed = evidence, space, seed
        self._votes: dict[int, Floats] = {}
        self._loads: dict[Hashable, list[RecordedProblem]] = {}
        self._chosen: dict[Hashable, list[list[list[int]]]] = {}
        self._draws: dict[Hashable, list[list[RecordedProblem]]] = {}
        self._flat: dict[Hashable, list[Workload]] = {}
        self._accuracy: dict[Hashable, Floats] = {}
        self._decodes: dict[Hashable, list[Floats]] = {}
        self._exact: dict[Hashable, tuple[Floats, Floats]] = {}
        self._alone: dict[Hashable, list[Replayed]] = {}
        self._rules: dict[Hashable, Mapping[Policy, tuple[Floats, Floats]]] = {}

    # -- samples -------------------------------------------------------------------------------

    def problems(self, pool: Pool, policy: Policy) -> list[list[RecordedProblem]]:
        """Return the problems with n of their recorded samples each, several times."""
        name = _draw_of(pool, policy)
        if name not in self._draws:
            self._draws[name] = self._draw(pool, policy)
        return self._draws[name]

    def workloads(self, pool: Pool, policy: Policy) -> list[Workload]:
        """Return `problems` as the replay takes them."""
        name = _draw_of(pool, policy)
        if name not in self._flat:
            drawn = self.problems(pool, policy)
            self._flat[name] = [Workload.from_loads(loads) for loads in drawn]
        return self._flat[name]

    def _draw(self, pool: Pool, policy: Policy) -> list[list[RecordedProblem]]:
        loads, n = self._pool_loads(pool), policy.n
        ordered = policy.method not in WHOLE
        if not ordered and all(len(load.samples) == n for load in loads):
            return [loads]
        if (pool.key, n) not in self._chosen:
            drawn = [np.random.default_rng([self.seed, 2, n, i]) for i in range(REPLAYS)]
            self._chosen[pool.key, n] = [
                [rng.permutation(len(load.samples))[:n].tolist() for load in loads] for rng in drawn
            ]
        found = []
        for chosen in self._chosen[pool.key, n]:
            whole = []
            for load, places in zip(loads, chosen, strict=True):
                samples = [load.samples[i] for i in (places if ordered else sorted(places))]
                whole.append(dataclasses.replace(load, samples=tuple(samples)))
            found.append(whole)
        return found

    def _pool_loads(self, pool: Pool) -> list[RecordedProblem]:
        if pool.key not in self._loads:
            loads = pool.loads(self.space.problem_ids)
            assert loads is not None  # space drops such a candidate
            self._loads[pool.key] = loads
        return self._loads[pool.key]

    # -- accuracy ------------------------------------------------------------------------------

    def correctness(self, pool: Pool, policy: Policy) -> Floats:
        """Return each problem's expected correctness of a whole vote."""
        name = (pool.key, policy.n)
        if name not in self._accuracy:
            total = np.zeros(len(self.space.problem_ids))
            count = np.zeros_like(total)
            for run in pool.runs:
                if run.policy.n < policy.n:
                    continue
                curve = self._curve(run)[:, policy.n - 1]
                known = np.isfinite(curve)
                total[known] += curve[known]
                count[known] += 1
            self._accuracy[name] = total / count
        return self._accuracy[name]

    def _curve(self, run: Run) -> Floats:
        """Return [problems, n], NaN for a problem that the run lacks."""
        if id(run) not in self._votes:
            found = np.full((len(self.space.problem_ids), run.policy.n), np.nan)
            for row, name in enumerate(self.space.problem_ids):
                if name in run.problems:
                    samples = run.problems[name].samples
                    found[row] = majority_curve(
                        [s.answer for s in samples], [s.correct for s in samples]
                    )
            self._votes[id(run)] = found
        return self._votes[id(run)]

    def right_in(self, kind: Kind, replayed: Sequence[Floats]) -> Floats:
        """Return how often a rule is right in replays of its drawn samples, in their order.

        The expectation over all orders, and what the load changed in those that were drawn.
        """
        alone = self._run_alone(kind, None)
        changed = [right - alone[i % len(alone)].right for i, right in enumerate(replayed)]
        return np.asarray(self._expected(kind)[0] + np.mean(changed, axis=0))

    def _expected(self, kind: Kind) -> tuple[Floats, Floats]:
        """Return how often a rule is right alone on an engine, and one sample after the other."""
        policy = kind.policy
        if decides_as_vote(policy):
            exact = self.correctness(kind.pool, policy)
            return exact, exact
        pool = kind.pool
        if pool.key not in self._rules:
            rules = [p for p in pool.policies if p.method not in WHOLE and not decides_as_vote(p)]
            problems = [load.samples for load in self._pool_loads(pool)]
            self._rules[pool.key] = expected_right(problems, rules, [self.seed, 4])
        return self._rules[pool.key][policy]

    # -- work ----------------------------------------------------------------------------------

    def tokens_and_flops(self, kind: Kind) -> tuple[Floats, Floats]:
        """Return generated tokens and FLOPs of each problem of a whole vote, expected."""
        limits = limits_of(kind.engine)
        drafting = self.drafting(kind)
        size = limits.block_size if limits.prefix_caching else 0
        name = (kind.pool.key, kind.policy.n, kind.facts, kind.engine.speculative, size)
        if name not in self._exact:
            loads = self._pool_loads(kind.pool)
            if kind.pool.key not in self._decodes:
                self._decodes[kind.pool.key] = [_decodes(load) for load in loads]
            pairs = [
                _work(load, each, kind.policy.n, size, kind.facts, drafting)
                for load, each in zip(loads, self._decodes[kind.pool.key], strict=True)
            ]
            tokens, flops = np.array(pairs).T
            self._exact[name] = tokens, flops
        return self._exact[name]

    def drafting(self, kind: Kind) -> float:
        """Return the FLOPs of drafting a token, infinite where the model that does is not known."""
        setting = kind.engine.speculative
        if setting is None or setting.method in LOOKUPS:
            return 0.0
        facts = None if setting.model is None else self.evidence.models.get(setting.model)
        unknown = facts is None or facts.active_parameters is None
        return np.inf if unknown else facts.matmul_flops(1.0)  # type: ignore[union-attr]

    def stopped(self, kind: Kind, runs: list[Replayed]) -> tuple[Floats, Floats, Floats]:
        """Return accuracy, generated tokens and FLOPs per problem of replays that stopped early.

        FLOPs are those of all that was forwarded, shared by the tokens generated.
        """
        first = self.workloads(kind.pool, kind.policy)[0].first
        right = self.right_in(kind, [run.right for run in runs])
        tokens = np.mean(
            [np.add.reduceat(run.generated_tokens, first[:-1]) for run in runs], axis=0
        ).astype(float)
        totals = np.mean([run.totals for run in runs], axis=0)
        flops = kind.facts.matmul_flops(totals[INDEX["tokens"]])
        flops += kind.facts.attention_flops(totals[INDEX["query_context"]])
        drafting = self.drafting(kind)
        if np.isinf(drafting):
            return right, tokens, np.full_like(tokens, np.inf)
        flops += drafting * totals[INDEX["tokens"]]
        return right, tokens, tokens * (flops / tokens.sum())

    def work(self, kind: Kind) -> Work:
        """Return what a problem of this kind takes of an engine alone."""
        runs = self._run_alone(kind, None)
        whole = kind.policy.method in WHOLE
        one = runs if whole else self._run_alone(kind, 1)
        if whole:
            right = self.correctness(kind.pool, kind.policy)
            tokens, flops = self.tokens_and_flops(kind)
        else:
            right, tokens, flops = self.stopped(kind, runs)
        return Work(
            steps=np.array([run.latency_s for run in runs]),
            totals=self._mean_totals(runs),
            totals_one=self._mean_totals(one),
            right=right,
            right_one=right if whole else self._expected(kind)[1],
            tokens=tokens,
            flops=flops,
        )

    def _mean_totals(self, runs: list[Replayed]) -> Floats:
        totals: Floats = np.mean([run.totals for run in runs], axis=0)
        return totals / len(self.space.problem_ids)

    def _run_alone(self, kind: Kind, seqs: int | None) -> list[Replayed]:
        """Replay one problem at a time on an engine without limits whose steps take a second."""
        from advisor.replay.replay import (
            replay,  # numba takes a third of a second to load
            stop_of,
        )
        from advisor.step_time.cost import linear_cost

        own = limits_of(kind.engine)
        limits = Limits(
            max_num_seqs=seqs,
            block_size=own.block_size,
            prefix_caching=own.prefix_caching,
            async_scheduling=own.async_scheduling,
            speculative=own.speculative,
        )
        name = (kind.pool.key, kind.policy.n, kind.policy.rule, limits)
        if name not in self._alone:
            unit = np.zeros(len(FEATURES))
            unit[INDEX["step"]] = 1.0
            self._alone[name] = [
                replay(
                    workload, linear_cost(unit), limits, concurrency=1, stop=stop_of(kind.policy)
                )
                for workload in self.workloads(kind.pool, kind.policy)
            ]
        return self._alone[name]


def _draw_of(pool: Pool, policy: Policy) -> Hashable:
    """Return what decides which samples are drawn: rules of as many samples look at the same."""
    return pool.key, policy.n, policy.method in WHOLE


def _work(
    load: RecordedProblem,
    decodes: Floats,
    n: int,
    block_size: int,
    facts: ModelFacts,
    drafting: float,
) -> tuple[float, float]:
    """Return generated tokens and FLOPs of a problem with n samples like the recorded ones.

    Forwarded are the prompt that is not cached (once, and its last partial block for the other
    samples), every generated token but the last, and with speculation the rejected drafts too.
    """
    prompt = load.prompt_tokens
    first = min(load.cached_tokens, prompt - 1) if block_size else 0
    shared = max(first, (prompt - 1) // block_size * block_size) if block_size else 0
    tokens, query = 0.0, 0.0
    for start, times in ((first, 1), (shared, n - 1)):
        tokens += (prompt - start) * times
        query += (prompt * (prompt + 1) / 2 - start * (start + 1) / 2) * times
    forwarded, context, drafted, generated = (decodes * n).tolist()
    flops = facts.matmul_flops(tokens + forwarded) + facts.attention_flops(query + context)
    if drafting:
        flops += drafting * (tokens + drafted)
    return generated, flops


def _decodes(load: RecordedProblem) -> Floats:
    """Return what a sample takes on average: `_drafted`, and the tokens that it generates."""
    prompt = load.prompt_tokens
    tokens = np.array([sample.output_tokens for sample in load.samples], dtype=float)
    count = tokens - 1
    found = np.array(
        [count, count * prompt + count * (count + 1) / 2, np.zeros(len(count)), tokens]
    )
    for place, sample in enumerate(load.samples):
        if sample.scheduled is not None and sample.advance is not None:
            found[:3, place] = _drafted(sample.scheduled, sample.advance, prompt)
    return np.asarray(found.mean(axis=1))


def _drafted(
    scheduled: npt.NDArray[np.integer], advance: npt.NDArray[np.integer], prompt: int
) -> tuple[float, float, float]:
    """Return tokens forwarded after the prompt, the context they attend to, tokens drafted."""
    scheduled, kept = scheduled.astype(np.int64), advance.astype(np.int64)
    before = prompt + np.cumsum(kept) - kept
    context = scheduled * before + scheduled * (scheduled + 1) / 2
    return float(scheduled.sum()), float(context.sum()), float((scheduled - 1).sum())
