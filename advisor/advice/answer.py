"""A recommendation from candidates that were replayed: picks, regret, front, reasons."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from advisor.advice.command import CpuBuild, serve_command
from advisor.advice.experiments import experiments
from advisor.advice.feasible import Question
from advisor.advice.reasons import measure_next, name_of, reasons, why_nothing
from advisor.advice.sensitivity import turnings
from advisor.evidence.gather import Evidence
from advisor.evidence.measured import Under
from advisor.search.budget import LIMITS, UNSURE, latency_name
from advisor.search.resampling import Draws
from advisor.search.shortlist import Ranking
from advisor.search.space import Space
from traces.schema.advice import Experiment, NearMiss, Pick, Present, Recommendation, Stages
from traces.schema.estimate import Estimate

METRICS = (
    "accuracy",
    "latency_s",
    "latency_p95_s",
    "cost_usd",
    "device_s",
    "energy_j",
    "tokens",
    "flops",
    "throughput_problems_per_s",
)
REGRETS = ("latency_s", "latency_p95_s", "device_s", "cost_usd", "energy_j")
EQUALS = 8  # candidates listed that cannot be told from the pick


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A budget with all that answers it; `rows` are the candidates of the question in the space.

    `present` is the place of the present configuration among them, `at_rate` tells the closed
    form's pick at another rate.
    """

    evidence: Evidence
    space: Space
    draws: Draws
    ranking: Ranking
    question: Question
    rows: tuple[int, ...]
    present: int | None
    model_path: Callable[[str], str]
    cpu_build: CpuBuild | None
    at_rate: Callable[[float], str | None] | None

    @property
    def load(self) -> Under:
        """The load of the answer: (problems in flight, None) or (None, problems per second)."""
        rate = self.question.measures.rate_per_s
        return (self.evidence.load[0], None) if rate is None else (None, rate)


def answer(asked: Asked) -> Recommendation:
    """Return the recommendation."""
    question, measures = asked.question, asked.question.measures
    required = question.budget.required
    system = question.best(question.fits) if required else None
    compute = question.compute_optimal(system)
    tokens = question.compute_optimal(system, of="tokens")
    regret: Mapping[str, Estimate | None] = {}
    if system is not None and compute is not None:
        regret = question.differences(REGRETS, compute, system)
    rows = question.near_misses() if required and system is None else []
    misses = tuple(_near_miss(asked, limit, row) for limit, row in rows)
    equals = [] if system is None else question.equals(system)
    infeasible = Counter(asked.space.dropped) + _infeasible(asked)
    stages = _stages(asked, system)
    present = _present(asked, system, equals)
    proposed: list[Experiment] = []
    if system is not None:
        proposed = experiments(question, system, load=asked.load, seed=asked.draws.seed)
    changes = () if system is None else tuple(turnings(question, system, asked.at_rate))
    told = reasons(
        asked.evidence,
        asked.space,
        question,
        system=system,
        compute=compute,
        least_tokens=tokens,
        equals=equals,
        stages=stages,
        load=asked.load,
    )
    if required and system is None:
        told = [*why_nothing(question, misses, rows), *told]
    return Recommendation(
        budget=question.budget,
        system_optimal=None if system is None else _as_run(asked, system),
        compute_optimal=None if compute is None else _as_run(asked, compute),
        regret=regret,
        pareto=tuple(_pick(asked, row) for row in question.front()),
        compute_pareto=tuple(_pick(asked, row) for row in question.front("flops")),
        reasons=tuple(told),
        near_misses=misses,
        measure_next=tuple(
            measure_next(asked.evidence, asked.space, measures, system, proposed, load=asked.load)
        ),
        candidates=int(asked.ranking.asked.sum()) + sum(asked.space.dropped.values()),
        infeasible=dict(infeasible),
        equals=tuple(_pick(asked, row) for row in equals[:EQUALS]),
        sensitivity=changes,
        stages=stages,
        present=present,
        experiments=tuple(proposed),
    )


def _pick(asked: Asked, row: int) -> Pick:
    question = asked.question
    candidate = question.measures.outcomes[row].candidate
    names = list(METRICS)
    wanted = latency_name(question.budget.latency_percentile)
    if wanted not in names:
        names.insert(3, wanted)
    engine = candidate.engine
    facts = asked.evidence.models.get(engine.model)
    draft = None if engine.speculative is None else engine.speculative.model
    return Pick(
        engine=engine,
        policy=candidate.policy,
        command=serve_command(
            engine,
            model_path=asked.model_path(engine.model),
            draft_path=None if draft is None else asked.model_path(draft),
            policy=candidate.policy,
            cpu_build=asked.cpu_build,
            kv_bytes_per_token=None if facts is None else facts.kv_bytes_per_token,
        )
        if question.budget.required
        else None,
        estimates={name: question.estimate(name, row) for name in names},
        probability_within_budget=float(question.chance[row]),
        prior=candidate.prior,
    )


def _as_run(asked: Asked, row: int) -> Pick:
    """Return a pick with what a run of it measured."""
    pick = _pick(asked, row)
    measured = asked.evidence.made.measured(pick.engine, pick.policy, asked.load)
    return dataclasses.replace(pick, measured=measured)


def _infeasible(asked: Asked) -> Counter[str]:
    """Return how many candidates each limit rules out, each counted once.

    By the closed form, and by the replay where it was made.
    """
    ranking = asked.ranking
    why = [LIMITS.get(name, UNSURE) for name in ranking.names]
    broken = ranking.broken.copy()
    places = {name: place for place, name in enumerate(ranking.names)}
    for place, name in enumerate(asked.question.broken()):
        row = asked.rows[place]
        if asked.question.asked[place]:
            broken[row] = -1 if name is None else places[name]
    counts = np.bincount(broken[ranking.asked] + 1, minlength=len(why) + 1)[1:]
    return Counter({name: int(count) for name, count in zip(why, counts, strict=True) if count})


def _stages(asked: Asked, system: int | None) -> Stages:
    ranking, screen = asked.ranking, asked.ranking.screen
    first = ranking.best()
    changed = None
    if first is not None and system is not None:
        twins = set(ranking.twins(first))
        if asked.rows[system] not in twins:
            changed = name_of(asked.space.candidate(first))
    return Stages(
        screened=int(ranking.asked.sum()),
        replayed=int(asked.question.asked.sum()),
        spread=screen.spread["latency_s"] if screen.compared else None,
        first=changed,
    )


def _present(asked: Asked, system: int | None, equals: list[int]) -> Present | None:
    row = asked.present
    if row is None:
        return None
    same = system is not None and (row == system or row in equals)
    return Present(
        pick=_as_run(asked, row),
        best=same,
        difference=(
            {}
            if system is None
            else asked.question.differences(("accuracy", *REGRETS), row, system)
        ),
    )


def _near_miss(asked: Asked, limit: str, row: int) -> NearMiss:
    question = asked.question
    measures = question.measures
    outcome = measures.outcomes[row]
    if limit == "max_gpus":
        wanted = float(question.budget.max_gpus or 0)
        nearest = Estimate(value=float(measures.devices[row]), unit="devices")
    elif limit == "rate":
        wanted = measures.rate_per_s or 0.0
        nearest = asked.draws.estimate(
            outcome.capacity_per_s,
            outcome.capacity_per_s / measures.factors[row],
            "problems/s",
            runs=outcome.law.runs,
            extrapolated=outcome.unmeasured,
        )
    else:
        wanted = float(getattr(question.budget, limit))
        named = {"max_cost_usd": "cost_usd", "max_energy_j": "energy_j"}
        found = question.estimate(named.get(limit, question.limits[limit].metric), row)
        assert found is not None  # a limit on what is not known was refused
        nearest = found
    return NearMiss(
        limit=limit,
        wanted=wanted,
        nearest=nearest,
        sure=float(question.chances(question.met[limit])[row]),
        pick=_pick(asked, row),
    )
