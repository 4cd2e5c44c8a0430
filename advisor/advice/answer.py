"""A recommendation from candidates that were replayed: picks, regret, front, reasons."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from advisor.advice.command import CpuBuild, serve_command
from advisor.advice.feasible import ReplayedCheck, Shortlist
from advisor.advice.measure_next.experiments import experiments, missed
from advisor.advice.measure_next.gpu_runs import short_runs
from advisor.advice.reasons import alternatives, measure_next, name_of, reasons, why_nothing
from advisor.advice.sensitivity import turnings
from advisor.evidence.gather import Evidence
from advisor.evidence.measured import Under
from advisor.search.closed_form import ClosedForm
from advisor.search.metrics import EXACT
from advisor.search.replayed import ReplayedCandidate
from traces.schema.advice import (
    ESTIMATES,
    Experiment,
    Load,
    NearMiss,
    Pick,
    Present,
    Recommendation,
    Stages,
)
from traces.schema.estimate import Estimate
from traces.schema.quantities import LIMITS, latency, limited, quantity

REGRETS = ("latency_s", "latency_p95_s", "device_s", "cost_usd", "energy_j")
EQUALS = 8  # candidates listed that cannot be told from the pick
UNSURE = "not sure enough of all limits at once"


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A budget with all that answers it: read against the closed form, and against the replays.

    `present` is the place of the present configuration among the replayed, `at_rate` gives the
    closed form's pick at another rate.
    """

    evidence: Evidence
    shortlist: Shortlist
    check: ReplayedCheck
    present: int | None
    model_path: Callable[[str], str]
    cpu_build: CpuBuild | None
    at_rate: Callable[[float], str | None] | None
    warning: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def load(self) -> Under:
        """The load of the answer: (problems in flight, None) or (None, problems per second)."""
        rate = self.check.metrics.rate_per_s
        return (self.evidence.load[0], None) if rate is None else (None, rate)


def answer(answering: Answering) -> Recommendation:
    """Return the recommendation."""
    check, evidence, load = answering.check, answering.evidence, answering.load
    space, required = check.metrics.space, check.budget.required
    system = check.best() if required else None
    compute = check.compute_optimal(system)
    tokens = check.compute_optimal(system, of="tokens")
    rows = check.near_misses() if required and system is None else []
    misses = tuple(_near_miss(answering, field, row) for field, row in rows)
    equals = [] if system is None else check.equals(system)
    stages = _stages(answering, system)
    proposed, short, at_limits = list[Experiment](), [], 0.0
    if system is not None:
        seed = check.metrics.resampling.seed
        proposed = experiments(check, system, load=load, seed=seed)
        at_limits = missed(check, system)
        if check.metrics.replayed[system].law.prior is not None:
            demands = answering.shortlist.metrics.demands
            alone = ClosedForm(demands, concurrency=1, rate_per_s=None)
            short = short_runs(check, system, seed, alone)
    why = reasons(
        evidence,
        check,
        system=system,
        compute=compute,
        least_tokens=tokens,
        equals=equals,
        stages=stages,
        load=load,
    )
    if required and system is None:
        why = [*why_nothing(check, misses, rows), *why]
    return Recommendation(
        budget=check.budget,
        system_optimal=None if system is None else _as_run(answering, system),
        compute_optimal=None if compute is None else _as_run(answering, compute),
        regret=_difference(answering, REGRETS, compute, system),
        pareto=tuple(_pick(answering, row) for row in check.front()),
        compute_pareto=tuple(_pick(answering, row) for row in check.front("flops")),
        reasons=tuple(why),
        alternatives=() if system is None else tuple(alternatives(check, system)),
        near_misses=misses,
        measure_next=tuple(
            measure_next(
                evidence,
                check.metrics,
                system,
                proposed,
                load=load,
                short=short,
                at_limits=at_limits,
            )
        ),
        candidates=int(answering.shortlist.asked.sum()) + sum(space.dropped.values()),
        infeasible=dict(Counter(space.dropped) + _infeasible(answering.shortlist, check)),
        equals=tuple(_pick(answering, row) for row in equals[:EQUALS]),
        sensitivity=() if system is None else tuple(turnings(check, system, answering.at_rate)),
        stages=stages,
        present=_present(answering, system, equals),
        experiments=tuple(proposed),
        routings=space.routings,
        load=Load(concurrency=load[0], rate_per_s=load[1]),
        notes=answering.notes,
        warning=answering.warning,
    )


def outline(shortlist: Shortlist, in_flight: int | None) -> Recommendation:
    """Return the closed form's picks and fronts as values, so many in flight without a rate."""
    budget, space, metrics = shortlist.budget, shortlist.metrics.space, shortlist.metrics
    rate = metrics.rate_per_s
    system = shortlist.best() if budget.required else None
    compute = shortlist.compute_optimal(system)
    wanted = latency(budget.latency_percentile).name
    names = {name: quantity(name).unit for name in (*ESTIMATES, wanted)}

    def estimate(name: str, row: int) -> Estimate | None:
        if name == "cost_usd":
            value = metrics.values("device_s")[row] * shortlist.per_second[row]
        else:
            value = metrics.values(name)[row]
        if not np.isfinite(value):
            return None
        outside = bool(metrics.outside[row]) and name not in EXACT
        return Estimate(value=float(value), unit=names[name], extrapolated=outside)

    def pick(row: int | None) -> Pick | None:
        if row is None:
            return None
        candidate = space.candidate(row)
        return Pick(
            engine=candidate.engine,
            policy=candidate.policy,
            estimates={name: estimate(name, row) for name in names},
            probability_within_budget=float(shortlist.chance[row]),
            prior=candidate.prior,
        )

    pareto, compute_pareto = (
        tuple(filter(None, map(pick, shortlist.front(of)[::-1]))) for of in (None, "flops")
    )
    return Recommendation(
        budget=budget,
        system_optimal=pick(system),
        compute_optimal=pick(compute),
        regret={},
        pareto=pareto,
        compute_pareto=compute_pareto,
        reasons=(),
        near_misses=(),
        measure_next=(),
        candidates=int(shortlist.asked.sum()) + sum(space.dropped.values()),
        infeasible=dict(Counter(space.dropped) + _infeasible(shortlist)),
        stages=Stages(
            screened=int(shortlist.asked.sum()), replayed=0, spread=metrics.off, first=None
        ),
        load=Load(concurrency=in_flight if rate is None else None, rate_per_s=rate),
    )


def _difference(
    answering: Answering, names: tuple[str, ...], row: int | None, system: int | None
) -> dict[str, Estimate | None]:
    """Return by name what a candidate has more than the pick; nothing where either is missing."""
    if row is None or system is None:
        return {}
    return {name: answering.check.difference(name, row, system) for name in names}


def _pick(answering: Answering, row: int) -> Pick:
    check = answering.check
    candidate = check.metrics.candidate(row)
    engine = candidate.engine
    names = list(ESTIMATES)
    wanted = latency(check.budget.latency_percentile).name
    if wanted not in names:
        names.insert(3, wanted)
    command = None
    if check.budget.required:
        facts = answering.evidence.models.get(engine.model)
        draft = None if engine.speculative is None else engine.speculative.model
        command = serve_command(
            engine,
            model_path=answering.model_path(engine.model),
            draft_path=None if draft is None else answering.model_path(draft),
            policy=candidate.policy,
            cpu_build=answering.cpu_build,
            kv_bytes_per_token=None if facts is None else facts.kv_bytes_per_token,
        )
    return Pick(
        engine=engine,
        policy=candidate.policy,
        command=command,
        estimates={name: check.estimate(name, row) for name in names},
        probability_within_budget=float(check.chance[row]),
        prior=candidate.prior,
        beyond=_beyond(check.metrics.replayed[row]),
    )


def _beyond(replayed: ReplayedCandidate) -> float | None:
    """Return the share of busy time in steps larger than those that taught its law."""
    smaller = replayed.law.smaller(replayed.requests_per_step)
    return None if smaller or replayed.law.prior is not None else replayed.beyond


def _as_run(answering: Answering, row: int) -> Pick:
    pick = _pick(answering, row)
    price = answering.check.prices.of(pick.engine)
    made = answering.evidence.made
    measured = made.measured(pick.engine, pick.policy, answering.load, price)
    return dataclasses.replace(pick, measured=measured)


def _infeasible(shortlist: Shortlist, check: ReplayedCheck | None = None) -> Counter[str]:
    """Return how many candidates each limit rules out, each counted once.

    By the closed form, and by the replay where it was made. Where none of these fits, the closed
    form's surest are among them, so that what it has as fitting is not sure enough either.
    """
    why = [*(LIMITS[field].why for field in shortlist.limits), UNSURE]
    broken = shortlist.broken.copy()
    if check is not None:
        rows = np.array(check.metrics.rows, dtype=np.int64)
        broken[rows[check.asked]] = check.broken[check.asked]
        if not check.fits.any():
            broken[broken < 0] = len(shortlist.limits)
    counts = np.bincount(broken[shortlist.asked] + 1, minlength=len(why) + 1)[1:]
    return Counter({name: int(count) for name, count in zip(why, counts, strict=True) if count})


def _stages(answering: Answering, system: int | None) -> Stages:
    shortlist, check = answering.shortlist, answering.check
    closed_form, first = shortlist.metrics, shortlist.best()
    changed = None
    if (
        first is not None
        and system is not None
        and check.metrics.rows[system] not in shortlist.twins(first)
    ):
        changed = name_of(closed_form.space.candidate(first))
    return Stages(
        screened=int(shortlist.asked.sum()),
        replayed=int(check.asked.sum()),
        spread=closed_form.off,
        first=changed,
    )


def _present(answering: Answering, system: int | None, equals: list[int]) -> Present | None:
    row, check = answering.present, answering.check
    if row is None:
        return None
    asked = answering
    if not check.asked[row]:  # as it has several replicas, where `--gpus` asks about none of them
        budget = dataclasses.replace(check.budget, max_gpus=int(check.metrics.devices[row]))
        asked = dataclasses.replace(
            answering, check=ReplayedCheck(check.metrics, budget, check.prices)
        )
    return Present(
        pick=_as_run(asked, row),
        best=system is not None and (row == system or row in equals),
        difference=_difference(answering, ("accuracy", *REGRETS), row, system),
    )


def _near_miss(answering: Answering, field: str, row: int) -> NearMiss:
    check, metrics = answering.check, answering.check.metrics
    replayed, nearest = metrics.replayed[row], None
    if field == "max_gpus":
        nearest = Estimate(value=float(metrics.devices[row]), unit="devices")
    elif field == "rate":
        nearest = metrics.resampling.estimate(
            replayed.capacity_per_s,
            replayed.capacity_per_s / metrics.loads[row],
            "problems/s",
            runs=replayed.law.runs,
            extrapolated=replayed.extrapolated,
        )
    else:
        nearest = check.estimate(limited(field, check.budget.latency_percentile).name, row)
        assert nearest is not None  # a limit on what is not known was refused
    return NearMiss(
        limit=field,
        wanted=float(check.budget.limits().get(field, metrics.rate_per_s or 0.0)),
        nearest=nearest,
        sure=float(metrics.chance(check.met[field])[row]),
        pick=_pick(answering, row),
    )
