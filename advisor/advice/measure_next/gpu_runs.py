"""Short runs on a GPU that nobody measured, which would settle an answer by its prior.

Each checks the step times of one model and size by two problems, recorded on that GPU. It saves the
expected regret with its speed known (experiments.py), for the prior's time of it and a start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from advisor.advice.feasible import ReplayedCheck
from advisor.advice.measure_next.experiments import LEAST, WORTH, after_speed, regrets
from advisor.search.closed_form import ClosedForm
from advisor.search.space import Candidate
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy

PROBLEMS = 2  # of a short run, one after the other
START_S = 120.0  # taken for loading weights and capturing graphs
MOST = 3


@dataclass(frozen=True, kw_only=True)
class ShortRun:
    """A run to make: what it takes by the prior, and the expected regret before and after it."""

    engine: EngineConfig
    policy: Policy
    device_s: float
    cost_usd: float | None
    regret: float
    regret_after: float

    @property
    def saves(self) -> bool:
        """Whether the run is expected to lead to a better pick."""
        return self.regret_after < self.regret

    @property
    def folder(self) -> str:
        """Where its recording goes."""
        gpu = "-".join((self.engine.gpu or "gpu").lower().split())
        model = self.engine.model.strip("/").rpartition("/")[2].lower()
        return f"runs/{gpu}-{model}-tp{self.engine.tensor_parallel_size}"


def short_runs(check: ReplayedCheck, system: int, seed: int, alone: ClosedForm) -> list[ShortRun]:
    """Return the runs that save most regret a second, the cheapest first.

    Where none saves any it is that of the pick, which checks its times. `alone` has the candidates
    with one problem at a time, as they are run. One run a model, tensor-parallel size and GPU. None
    of an engine whose ranks share experts, as a short run has one rank.
    """
    metrics = check.metrics
    pick, law = metrics.candidate(system).engine, metrics.replayed[system].law
    rows, regret = regrets(check, system)
    before = float(regret[0, ~metrics.choosing].mean())
    runs: dict[int, ShortRun] = {}
    for row in map(int, rows):
        replayed = metrics.replayed[row]
        if replayed.law.prior is None or id(replayed.law) in runs:
            continue
        ran = replayed.candidate.engine
        if ran.shares_experts:
            continue
        after = after_speed(check, row, regret, seed)
        saves = before - after > max(WORTH * before, LEAST)
        if row != system and not saves:
            continue
        engine = replace(
            ran,
            max_num_seqs=pick.max_num_seqs,
            max_num_batched_tokens=pick.max_num_batched_tokens,
        )
        devices = engine.num_devices // engine.data_parallel_size
        seconds = START_S + PROBLEMS * _problem_s(alone, replayed.candidate)
        price = check.prices.of(engine)
        runs[id(replayed.law)] = ShortRun(
            engine=engine,
            policy=replayed.candidate.policy,
            device_s=seconds * devices,
            cost_usd=None if price is None else seconds * devices * price / 3600,
            regret=before,
            regret_after=after if saves else before,
        )
    pick_runs = [runs.pop(id(law))] if id(law) in runs else []
    if runs and pick_runs and not pick_runs[0].saves:
        pick_runs = []
    others = sorted(
        runs.values(), key=lambda each: (each.regret_after - each.regret) / each.device_s
    )
    return sorted([*pick_runs, *others[: MOST - len(pick_runs)]], key=lambda each: each.device_s)


def _problem_s(alone: ClosedForm, candidate: Candidate) -> float:
    """Return the seconds of a problem whose samples all end, on one replica."""
    engine, space = candidate.engine.one_replica(), alone.space
    majority = replace(candidate.policy, method="majority", rule=())
    row, *_ = space.rows_of(engine, majority) or space.rows_of(engine, candidate.policy)
    return float(alone.latency_s[row])
