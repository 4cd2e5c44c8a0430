"""A budget -> what to run: the system-optimal and the compute-optimal configuration.

The system-optimal candidate is the best on what is optimised among those that meet every limit
with the wanted probability. The compute-optimal one needs the fewest FLOPs for the same accuracy;
the difference of the two is the regret of having taken FLOPs as the measure.

Two stages. All candidates' metrics are worked out once in closed form (search/closed_form.py). The
replay then looks at those that may be the answer (search/shortlist.py), and the answer is among
what was replayed. Both are kept: another budget filters and sorts, and replays what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from advisor.advice.answer import Asked, answer
from advisor.advice.command import CpuBuild
from advisor.advice.feasible import Question
from advisor.advice.reasons import name_without_limits
from advisor.evidence.gather import Evidence, gather
from advisor.evidence.keys import law_key
from advisor.search.budget import Prices
from advisor.search.closed_form import Profile, Screen
from advisor.search.metrics import Measures
from advisor.search.policy_work import Drawn
from advisor.search.replayed import Outcomes
from advisor.search.resampling import Draws
from advisor.search.shortlist import Costs, Ranking
from advisor.search.space import Space, explore
from advisor.step_time.fit import StepTimeModel
from advisor.step_time.saved import load_laws, save_laws
from traces.errors import RecordingError, UsageError
from traces.recording.reader import Recording
from traces.schema.advice import Budget, Objective, Recommendation
from traces.schema.engine import EngineConfig
from traces.schema.policy import Policy

if TYPE_CHECKING:
    from advisor.step_time.prior.offers import Offers

Ints = npt.NDArray[np.int64]
ModelPath = Callable[[str], str]
Progress = Callable[[int, int], None]

LEADERS = 24  # candidates that are replayed for a budget before the answer is looked at
MOST = 96  # and at most, while one that was not replayed may be better
AT_ONCE = 8
PROBES = 16  # candidates taken at random, which tell how far the closed form is from the replay
TWINS = 64
FEW = 20_000  # candidates up to which other rates are tried for every answer
RELAXED: dict[str, Objective] = {  # a limit, and what is best on it
    "min_accuracy": "accuracy",
    "max_latency_s": "latency",
    "max_device_s": "cost",
    "max_cost_usd": "cost",
    "max_energy_j": "energy",
}
KEPT = 8  # loads whose candidates are kept


class UnderLoad:
    """All candidates under one load: in closed form, and replayed as far as that was asked for."""

    def __init__(self, advisor: Advisor, rate_per_s: float | None) -> None:
        self._advisor, self.rate_per_s = advisor, rate_per_s
        self._concurrency = advisor.evidence.load[0]
        self.screen = Screen(
            advisor.profile,
            concurrency=self._concurrency,
            rate_per_s=rate_per_s,
            most=len(advisor.space.problem_ids),
        )
        self.rows: list[int] = []
        self.place: dict[int, int] = {}
        self.measures = Measures(
            [],
            advisor.draws,
            rate_per_s=rate_per_s,
            concurrency=self._concurrency,
            watts=advisor.evidence.watts,
            law_key=law_key,
        )
        self._probes: list[int] | None = None
        self.looked_at: dict[int, None] = {}  # places in `rows`, for the budget asked, in order

    def begin(self) -> None:
        """Forget what was looked at for another budget; its replays stay."""
        self.looked_at = {self.place[row]: None for row in self._probe()}

    def replay(self, rows: Sequence[int], progress: Progress | None = None) -> None:
        """Look at candidates, replaying those that were not yet."""
        new = [row for row in dict.fromkeys(rows) if row not in self.place]
        outcomes = []
        for number, row in enumerate(new, 1):
            outcomes.append(
                self._advisor.outcomes.outcome(
                    row, concurrency=self._concurrency, rate_per_s=self.rate_per_s
                )
            )
            if progress is not None:
                progress(number, len(new))
        for row in new:
            self.place[row] = len(self.rows)
            self.rows.append(row)
        self.measures.add(outcomes)
        self.looked_at |= {self.place[row]: None for row in rows}

    def _probe(self) -> list[int]:
        """Replay some candidates at random, once, and learn how far the closed form lies off."""
        if self._probes is not None:
            return self._probes
        rng = np.random.default_rng([self._advisor.draws.seed, 4])
        count = len(self._advisor.space)
        rows = [int(r) for r in rng.choice(count, min(PROBES, count), replace=False)]
        self._probes = rows
        self.replay(rows)
        told = [r for r in rows if self.measures.outcomes[self.place[r]].keeps_up]
        mine = [self.measures.outcomes[self.place[row]] for row in told]
        self.screen.learn(
            told,
            {
                "latency_s": np.array([each.latency_s[0].mean() for each in mine]),
                "device_s": np.array([each.device_s[0].mean() for each in mine]),
            },
        )
        return rows


class Advisor:
    """Answers budgets from recordings; `fit` learns, `recommend` filters, sorts and replays."""

    def __init__(
        self, evidence: Evidence, space: Space, model: StepTimeModel, draws: Draws
    ) -> None:
        self.evidence, self.space, self.model, self.draws = evidence, space, model, draws
        self.drawn = Drawn(evidence, space, draws.seed)
        self.outcomes = Outcomes(space, model, self.drawn)
        self.profile = Profile(space, self.drawn, model, draws)
        watts = {
            number: evidence.watts[law_key(kind.engine)]
            for number, kind in enumerate(space.kinds)
            if law_key(kind.engine) in evidence.watts
        }
        self.costs = Costs(evidence, space, watts)
        self._preferred = _preferred(space)
        self._loads: dict[float | None, UnderLoad] = {}

    @classmethod
    def fit(
        cls,
        recordings: Sequence[Recording],
        *,
        seed: int = 0,
        draws: int = 400,
        saved: Path | None = None,
        gpus: Sequence[str] = (),
    ) -> Advisor:
        """Learn from recordings and work out every candidate's metrics.

        With `saved`, step-time laws are read from that file if they are of these recordings, and
        else learned and written to it. `gpus` are systems of the prior on which the recorded models
        are offered too. Raises UsageError when recordings answer different workloads and for what
        cannot be offered, RecordingError when they hold nothing to learn from.
        """
        known = None if saved is None or not saved.exists() else load_laws(saved, recordings)
        evidence, offers = gather(recordings), None
        if gpus:
            from advisor.step_time.prior.offers import offer

            offers = offer(evidence, recordings, gpus)
        advisor = cls.of(evidence, seed=seed, draws=draws, model=known, offers=offers)
        if saved is not None and known is None:
            save_laws(saved, advisor.model, recordings)
        return advisor

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        *,
        seed: int = 0,
        draws: int = 400,
        model: StepTimeModel | None = None,
        offers: Offers | None = None,
    ) -> Advisor:
        """Learn from what was gathered, step times too unless a fitted `model` is given."""
        model = model or StepTimeModel().fit(evidence.steps)
        if offers is not None:
            model.laws_ |= offers.laws
        space = explore(evidence, offers)
        if not len(space):
            why = "; ".join(space.dropped) or "their engines have no recorded steps"
            raise RecordingError(f"{', '.join(evidence.recordings)}: no candidate to judge: {why}")
        return cls(evidence, space, model, Draws(len(space.problem_ids), count=draws, seed=seed))

    def under(self, rate_per_s: float | None) -> UnderLoad:
        """Return all candidates at an arrival rate (None: the recorded load)."""
        rate = self.evidence.load[1] if rate_per_s is None else rate_per_s
        if rate not in self._loads:
            for old in list(self._loads)[: max(len(self._loads) - KEPT + 1, 0)]:
                del self._loads[old]
            self._loads[rate] = UnderLoad(self, rate)
        return self._loads[rate]

    def measures(self, rate_per_s: float | None) -> Measures:
        """Replay every candidate of one replica, and return the metrics of all replayed."""
        state = self.under(rate_per_s)
        state.replay([int(row) for row in np.flatnonzero(self.space.replicas == 1)])
        return state.measures

    def ranking(self, budget: Budget) -> Ranking:
        """Return the first stage: the budget asked of all candidates in closed form.

        Raises UsageError when the budget limits what was not measured (energy) or has no price.
        """
        prices = self._prices(budget)
        prices.check([kind.engine for kind in self.space.kinds])
        screen = self.under(budget.rate_per_s).screen
        return Ranking(screen, self.costs, budget, prices, self._preferred)

    def recommend(
        self,
        budget: Budget,
        *,
        model_path: ModelPath | None = None,
        cpu_build: CpuBuild | None = None,
        present: tuple[EngineConfig, Policy] | None = None,
        progress: Progress | None = None,
    ) -> Recommendation:
        """Return what to run for a budget; nothing that fits is an answer too.

        Where the budget requires nothing, the answer holds the fronts, and no pick.
        `model_path` turns a model's name into what vLLM is given, `cpu_build` is vLLM's where the
        command is to be run, if it is that; `present` is what runs today; `progress` hears how many
        leaders are replayed. Raises UsageError as `ranking` does, and for a present configuration
        that is no candidate.
        """
        state = self.under(budget.rate_per_s)
        state.begin()
        ranking = self.ranking(budget)
        today = None if present is None else self._present(*present)
        if budget.required:
            state.replay(ranking.leaders(LEADERS), progress)
        fronts = [*ranking.front(), *ranking.front("flops")]
        state.replay([*fronts, *([] if today is None else [today])])
        if budget.required:
            self._look_for_picks(state, ranking, budget)
        return answer(
            Asked(
                evidence=self.evidence,
                space=self.space,
                draws=self.draws,
                ranking=ranking,
                question=self._question(state, budget),
                rows=tuple(state.rows),
                present=None if today is None else state.place[today],
                model_path=model_path or str,
                cpu_build=cpu_build,
                at_rate=partial(self._at_rate, budget) if len(self.space) <= FEW else None,
            )
        )

    def _look_for_picks(self, state: UnderLoad, ranking: Ranking, budget: Budget) -> None:
        """Replay what may be a pick, or else comes nearest to one."""
        system = self._improve(state, ranking)
        if system is None:
            self._look_near(state, ranking, budget)
        else:
            state.replay(ranking.twins(state.rows[system])[:TWINS])
        accuracy = None if system is None else state.measures.values("accuracy")[system]
        for of in ("flops", "tokens"):
            state.replay(ranking.fewest(of, accuracy))

    def _at_rate(self, budget: Budget, rate_per_s: float) -> str | None:
        """Return the closed form's pick at a rate, without its limits; None where nothing fits."""
        screen = Screen(
            self.profile,
            concurrency=None,
            rate_per_s=rate_per_s,
            most=len(self.space.problem_ids),
        )
        prices = self._prices(budget)
        row = Ranking(screen, self.costs, budget, prices, self._preferred).best()
        return None if row is None else name_without_limits(self.space.candidate(row))

    def _prices(self, budget: Budget) -> Prices:
        evidence = self.evidence
        return Prices(budget, evidence.price_usd_per_device_hour, evidence.gpus)

    def _question(self, state: UnderLoad, budget: Budget) -> Question:
        prices = self._prices(budget)
        return Question(
            state.measures, self.draws, budget, prices, self.space.made, among=[*state.looked_at]
        )

    def _improve(self, state: UnderLoad, ranking: Ranking) -> int | None:
        """Replay on while one not looked at may be better than the pick; return the pick."""
        question = self._question(state, ranking.budget)
        system = question.best(question.fits)
        seen = state.looked_at
        waiting = [row for row in ranking.leaders(MOST) if state.place.get(row) not in seen]
        while waiting:
            batch, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
            if system is not None and ranking.least[batch[0]] >= question.cost()[system]:
                break
            state.replay(batch)
            question = self._question(state, ranking.budget)
            system = question.best(question.fits)
        return system

    def _look_near(self, state: UnderLoad, ranking: Ranking, budget: Budget) -> None:
        """Replay those nearest to each limit: the best on it under the others."""
        state.replay(ranking.nearest())
        for name, optimise in RELAXED.items():
            if getattr(budget, name) is None:
                continue
            changes: dict[str, Any] = {name: None, "optimise": optimise}
            others = self.ranking(replace(budget, **changes))
            state.replay(others.leaders(LEADERS))
            self._improve(state, others)

    def _present(self, engine: EngineConfig, policy: Policy) -> int:
        rows = self.space.rows_of(engine, policy)
        if not rows:
            raise UsageError(
                f"--present: {engine.model} {engine.label()}, {policy.label()} is no candidate; "
                "name a recording that is among those to advise on"
            )
        return rows[0]


def _preferred(space: Space) -> Ints:
    """Return [candidates], less being preferred among equals: what was run, then its engine."""
    found = np.full(len(space), 2, dtype=np.int64)
    for engine in space.made.engines:
        for row in space.rows_with(engine):
            ran = space.made.has(engine, space.kinds[space.kind[row]].policy)
            found[row] = min(found[row], 0 if ran else 1)
    return np.asarray(found * 64 + np.log2(space.replicas).astype(np.int64))
