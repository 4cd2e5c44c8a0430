"""Configurations beside each other, replayed under a budget's load as candidates of an answer are.

They need not be candidates: other limits, or other numbers of the recorded samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from advisor.advice.advisor import Advisor
from advisor.advice.feasible import ReplayedCheck
from advisor.evidence.keys import decoder_of, sampling_of, without_limits
from advisor.evidence.pools import Pool
from advisor.replay.limits import check_startable
from advisor.search.metrics import CandidateMetrics
from advisor.search.replayed import CandidateReplays
from advisor.search.space import CandidateKind
from traces.errors import UsageError
from traces.schema.advice import Budget
from traces.schema.engine import EngineConfig
from traces.schema.formats import counted
from traces.schema.tts.policy import Policy


def beside(
    advisor: Advisor,
    configurations: Sequence[tuple[EngineConfig, Policy]],
    budget: Budget,
    *,
    prior: str | None = None,
) -> ReplayedCheck:
    """Return the budget read against the configurations, whose places are its rows.

    Their numbers are those that an answer has of them, at its load and its prices. With `prior`
    step times are those of that system. Raises UsageError for what the recordings cannot answer.
    """
    engines = [engine for engine, _ in configurations]
    kinds = [_kind(advisor, engine, policy, prior) for engine, policy in configurations]
    for engine, kind in zip(engines, kinds, strict=True):
        check_startable(
            engine.one_replica(),
            engines[0].one_replica(),
            kind.pool.runs,
            on_tables=prior is not None,
            on_prior=prior is not None,
        )
    space = replace(
        advisor.space,
        kinds=tuple(kinds),
        kind=np.arange(len(kinds)),
        max_num_seqs=np.array([each.max_num_seqs or 0 for each in engines]),
        max_num_batched_tokens=np.array([each.max_num_batched_tokens or 0 for each in engines]),
        replicas=np.array([each.data_parallel_size for each in engines]),
    )
    replays = CandidateReplays(space, advisor.model, advisor.policy_work)
    in_flight, rate = advisor.load_at(budget.rate_per_s)
    metrics = CandidateMetrics(
        space, advisor.resampling, rate_per_s=rate, luck=advisor.demands.luck
    )
    for row, engine in enumerate(engines):
        try:
            metrics.add(row, replays.of(row, concurrency=in_flight, rate_per_s=rate))
        except ValueError as error:
            raise UsageError(f"{engine.label()}: {error}") from None
    return ReplayedCheck(metrics, budget, advisor.prices(budget))


def _kind(
    advisor: Advisor, engine: EngineConfig, policy: Policy, prior: str | None
) -> CandidateKind:
    """Return the engine without limits and the samples that answer for the policy."""
    kinds = [kind for kind in advisor.space.kinds if kind.prior == prior]
    base = without_limits(engine)
    same = [kind for kind in kinds if _without_blocks(kind.engine) == _without_blocks(base)]
    if same and base.num_gpu_blocks is None:
        base = same[0].engine
    advisor.model.law(base)  # which says what to record where none was learned
    ranks = same[0].ranks if same or prior is not None else advisor.evidence.ranks_of(base)
    return CandidateKind(
        engine=base,
        pool=_pool([kind.pool for kind in kinds], engine, policy),
        policy=policy,
        facts=advisor.evidence.models.get(engine.model),
        prior=prior,
        ranks=ranks,
    )


def _without_blocks(engine: EngineConfig) -> EngineConfig:
    return replace(engine, num_gpu_blocks=None)


def _pool(pools: Sequence[Pool], engine: EngineConfig, policy: Policy) -> Pool:
    """Return the samples that answer for a policy, with it among those that they can answer for."""
    decoder = decoder_of(engine)
    alike = [
        pool for pool in pools if pool.key in ((decoder, policy), (decoder, sampling_of(policy)))
    ]
    if not alike:
        raise UsageError(
            f"no samples of {engine.model} were recorded for {policy.label_with_temperature()} on "
            "such an engine. Record them, or ask ttscope replay, which may make them of others"
        )
    pool = next((each for each in alike if policy in each.policies), alike[0])
    if policy in pool.policies:
        return pool
    most = max((each.n for each in pool.policies if each.method != "greedy"), default=1)
    if policy.n > most:
        raise UsageError(
            f"policy.n={policy.n}: {counted(most, 'sample')} per problem "
            f"{'were' if most > 1 else 'was'} recorded. Record more, or ask for fewer"
        )
    methods = {each.method for each in pool.policies}
    if policy.method not in methods or pool.curve is not None:
        raise UsageError(
            f"{policy.label()}: the samples answer for {', '.join(sorted(methods))}, and votes of "
            "a published curve for those that it has"
        )
    return replace(pool, policies=(*pool.policies, policy))
