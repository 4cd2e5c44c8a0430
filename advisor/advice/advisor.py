"""A budget -> what to run: the system-optimal and the compute-optimal configuration.

The metrics of all candidates are worked out once in closed form (search/closed_form.py). Those that
may be the answer are replayed, and the answer is among them. Both are kept: another budget filters
and sorts, and replays what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from advisor.advice.answer import Answering, answer, outline
from advisor.advice.command import CpuBuild
from advisor.advice.feasible import ReplayedCheck, Shortlist
from advisor.advice.reasons import name_of
from advisor.evidence.gather import MOST_SEEN, Evidence, gather
from advisor.evidence.keys import law_key
from advisor.evidence.measured import Under
from advisor.evidence.runs import arrival_rate, clients_wait
from advisor.search.budget import Prices
from advisor.search.closed_form import ClosedForm, Demands
from advisor.search.metrics import CandidateMetrics
from advisor.search.policy_work import PolicyWork
from advisor.search.replayed import CandidateReplays, Sent
from advisor.search.resampling import Resampling
from advisor.search.space import Space, explore
from advisor.step_time.fit import StepTimeModel, learned
from advisor.step_time.pace import hours_at, pace_of
from traces.errors import RecordingError, UsageError
from traces.recording.reader import Recording, both_told_apart
from traces.schema.advice import Budget, Objective, Recommendation
from traces.schema.engine import EngineConfig
from traces.schema.formats import number
from traces.schema.tts.policy import AS_SENT, Policy
from traces.summary.comparison import lies_off

if TYPE_CHECKING:
    from advisor.step_time.prior.offers import Offers

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


def _check_used(offers: Offers, checks: Sequence[Recording]) -> None:
    """Raise UsageError for what is of no GPU that was asked for; `untaught` is said elsewhere."""
    from advisor.what_if.measured.points import gpus_of, of_forwards

    priors = [law.prior for law in offers.laws.values() if law.prior is not None]
    used = {name for prior in priors for name in prior.recordings}
    for each in checks:
        if each.name in used or each.name in offers.untaught:
            continue
        if of_forwards(each) and not gpus_of(each):
            raise UsageError(
                f"--with {each.path}: its cases name no GPU, and --gpu names several. Import them "
                "again with --shapes, or ask for one --gpu"
            )
        if of_forwards(each):
            raise UsageError(
                f"--with {each.path}: its cases are of {', '.join(gpus_of(each))}, which no --gpu "
                "is"
            )
        raise UsageError(
            f"--with {each.path}: holds no steps of a GPU of --gpu, in a model that its tables "
            "can price. Give a recording made there"
        )


class UnderLoad:
    """All candidates under one load: in closed form, and replayed as far as that was asked for."""

    def __init__(self, advisor: Advisor, rate_per_s: float | None) -> None:
        in_flight, rate = advisor.load_at(rate_per_s)
        sent = advisor.sent_at(rate_per_s)
        self.closed_form = ClosedForm(advisor.demands, concurrency=in_flight, rate_per_s=rate)
        self.metrics = CandidateMetrics(
            advisor.space,
            advisor.resampling,
            rate_per_s=rate,
            as_sent=sent is not None,
            luck=advisor.demands.luck,
        )
        self._replay = partial(
            advisor.replays.of, concurrency=in_flight, rate_per_s=rate, sent=sent
        )
        self._probes: list[int] | None = None
        self.looked_at: dict[int, None] = {}  # places in `metrics`, for the budget asked, in order

    def begin(self) -> None:
        """Forget what was looked at for another budget; its replays stay."""
        self.looked_at = {self.metrics.place[row]: None for row in self._probe()}

    def replay(self, rows: Sequence[int], progress: Progress | None = None) -> None:
        """Look at candidates, replaying those that were not yet."""
        place = self.metrics.place
        new = [row for row in dict.fromkeys(rows) if row not in place]
        for done, row in enumerate(new, 1):
            self.metrics.add(row, self._replay(row))
            if progress is not None:
                progress(done, len(new))
        self.looked_at |= {place[row]: None for row in rows}

    def _probe(self) -> list[int]:
        """Replay some candidates at random, once, and learn how far the closed form lies off."""
        if self._probes is not None:
            return self._probes
        metrics = self.metrics
        rng = np.random.default_rng([metrics.resampling.seed, 4])
        count = len(metrics.space)
        self._probes = [int(r) for r in rng.choice(count, min(PROBES, count), replace=False)]
        self.replay(self._probes)
        replayed = {row: metrics.replayed[metrics.place[row]] for row in self._probes}
        kept_up = {row: each for row, each in replayed.items() if each.keeps_up}
        means = {
            name: np.array([getattr(each, name)[0].mean() for each in kept_up.values()])
            for name in ("latency_s", "device_s")
        }
        self.closed_form.learn(list(kept_up), means)
        return self._probes


class Advisor:
    """Answers budgets from recordings; `fit` learns, `recommend` filters, sorts and replays."""

    def __init__(
        self,
        evidence: Evidence,
        space: Space,
        model: StepTimeModel,
        resampling: Resampling,
        policy_work: PolicyWork | None = None,
    ) -> None:
        self.evidence, self.space, self.model, self.resampling = evidence, space, model, resampling
        self.policy_work = policy_work or PolicyWork(evidence, space, resampling.seed)
        self.replays = CandidateReplays(space, model, self.policy_work)
        self.demands = Demands(space, self.policy_work, model, resampling)
        self._loads: dict[float | None, UnderLoad] = {}

    @classmethod
    def fit(
        cls,
        recordings: Sequence[Recording],
        *,
        seed: int = 0,
        draws: int = 400,
        gpus: Sequence[str] = (),
        checks: Sequence[Recording] = (),
        power_cap_w: float | None = None,
        quick: bool = False,
        solver: Any = None,
    ) -> Advisor:
        """Learn from recordings and work out every candidate's metrics.

        `gpus` are systems of the prior on which the recorded models are offered too, and `checks`
        recordings of any workload on such GPUs, which recalibrate the prior. Their boards may draw
        `power_cap_w`. `quick` is enough for
        `outline`: until `refined` the spread of step times is assumed, and n goes in powers of two
        without tables by difficulty. `solver` is another regression for step times
        (`StepTimeRegression`). Raises UsageError when recordings answer different workloads
        and for what cannot be offered, RecordingError when they hold nothing to learn from.
        """
        recordings, checks = both_told_apart(recordings, checks)
        evidence, offers = gather(recordings, timed=not gpus), None
        if gpus:
            from advisor.step_time.power.prior import PowerAsked
            from advisor.step_time.prior.offers import offer
            from advisor.what_if.drafts.redrafting import with_published

            evidence = with_published(evidence)
            asked = PowerAsked(cap_w=power_cap_w)
            offers = offer(evidence, [*recordings, *checks], gpus, asked)
            _check_used(offers, checks)
            untaught = (f"{name} {what}" for name, what in offers.untaught.items())
            evidence = replace(evidence, lost=(*evidence.lost, *untaught))
        model = learned(evidence.steps, held_out=not quick, solver=solver)
        return cls.of(evidence, seed=seed, draws=draws, model=model, offers=offers, quick=quick)

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        *,
        seed: int = 0,
        draws: int = 400,
        model: StepTimeModel | None = None,
        offers: Offers | None = None,
        quick: bool = False,
    ) -> Advisor:
        """Learn from what was gathered, step times too unless a fitted `model` is given."""
        model = model or learned(evidence.steps)
        if offers is not None:
            model.laws_ |= offers.laws
        space = explore(evidence, offers, quick=quick)
        if not len(space):
            why = ", ".join(space.dropped) or "their engines have no recorded steps"
            raise RecordingError(f"{', '.join(evidence.recordings)}: no candidate to judge: {why}")
        return cls(
            evidence, space, model, Resampling(len(space.problem_ids), count=draws, seed=seed)
        )

    def refined(self) -> Advisor:
        """Return what `fit` gives without `quick`. What was worked out of policies is kept."""
        model = learned(self.evidence.steps, solver=self.model.solver)
        model.laws_ |= {key: law for key, law in self.model.laws_.items() if law.prior is not None}
        space = explore(self.evidence, self.space.offers)
        return Advisor(self.evidence, space, model, self.resampling, self.policy_work)

    def outline(self, budget: Budget) -> Recommendation:
        """Return a first answer by the closed form: values without intervals, and no command.

        A few candidates are replayed for `Stages.spread`. Raises UsageError as `shortlist` does.
        """
        self._check_judged(budget)
        state = self.under(budget.rate_per_s)
        state.begin()
        return outline(self.shortlist(budget), self.evidence.load[0])

    def _check_judged(self, budget: Budget) -> None:
        if not self.space.judged and (budget.min_accuracy or budget.optimise == "accuracy"):
            raise UsageError(
                "--min-accuracy, --optimise accuracy: the answers of traffic that was only watched "
                "are not judged. Send problems to the server with ttscope attach URL --workload "
                "FILE"
            )

    def under(self, rate_per_s: float | None) -> UnderLoad:
        """Return all candidates at an arrival rate (None: the recorded load)."""
        if rate_per_s not in self._loads:
            for old in list(self._loads)[: max(len(self._loads) - KEPT + 1, 0)]:
                del self._loads[old]
            self._loads[rate_per_s] = UnderLoad(self, rate_per_s)
        return self._loads[rate_per_s]

    @cached_property
    def sent(self) -> Sent | None:
        """How the problems of one watch came.

        None of other recordings, and where they are fewer than came: those left out are a load too.
        """
        runs = self.evidence.runs
        rate = self.evidence.load[1]
        one = len({run.recording for run in runs}) == 1
        if not one or rate is None or any(run.policy != AS_SENT for run in runs):
            return None
        arrival_of = {name: each.arrival_ns for run in runs for name, each in run.problems.items()}
        came = [arrival_of[name] for name in self.space.problem_ids]
        seen_rate = arrival_rate(came)
        if None in came or seen_rate is None or seen_rate < MOST_SEEN * rate:
            return None
        times, engine = np.array(came, dtype=np.int64), runs[0].engine
        law = self.model.laws_.get(law_key(engine))
        first = int(times.min())
        return Sent(
            arrivals=np.asarray((times - first) / 1e9),
            pace=None if law is None else pace_of(self.evidence.steps, law, engine, first),
            at_once=runs[0].at_once,
        )

    def sent_at(self, rate_per_s: float | None) -> Sent | None:
        """Return how they come at an arrival rate (None: as they did): in the same hours, faster.

        None where they come at random.
        """
        sent, recorded = self.sent, self.evidence.load[1]
        if rate_per_s is None or sent is None:
            return sent
        came_s = np.sort(sent.arrivals)
        hours = hours_at(rate_per_s, recorded, came_s, at_once=sent.at_once)
        if hours is None:
            return None
        arrivals, pace = sent.arrivals / hours.faster, sent.pace
        if pace is not None:
            pace = pace.passing(hours, 2 * float(arrivals.max()))
        return replace(sent, arrivals=arrivals, pace=pace)

    def notes(self, rate_per_s: float | None) -> tuple[str, ...]:
        """Return what to know of the recordings and of their load at an arrival rate (None: it)."""
        sent = self.sent_at(rate_per_s)
        waits = () if sent is None or sent.at_once is None else (clients_wait(sent.at_once),)
        return (*self.evidence.lost, *waits)

    def load_at(self, rate_per_s: float | None) -> Under:
        """Return the load of answers at an arrival rate (None: the recorded load).

        It has the recorded number in flight too, no more than there are problems.
        """
        in_flight, recorded = self.evidence.load
        if in_flight is not None:
            in_flight = min(in_flight, len(self.space.problem_ids))
        return in_flight, recorded if rate_per_s is None else rate_per_s

    def metrics(self, rate_per_s: float | None) -> CandidateMetrics:
        """Replay every candidate of one replica, and return the metrics of all replayed."""
        state = self.under(rate_per_s)
        state.replay([int(row) for row in np.flatnonzero(self.space.alone)])
        return state.metrics

    def shortlist(self, budget: Budget) -> Shortlist:
        """Return the first stage: the budget asked of all candidates in closed form.

        Raises UsageError when the budget limits what was not measured (energy) or has no price.
        """
        prices = self.prices(budget)
        prices.check([kind.engine for kind in self.space.kinds])
        return Shortlist(self.under(budget.rate_per_s).closed_form, budget, prices)

    def check(self, budget: Budget) -> ReplayedCheck:
        """Return the second stage: the budget asked of the candidates replayed for it so far."""
        state = self.under(budget.rate_per_s)
        return ReplayedCheck(state.metrics, budget, self.prices(budget), [*state.looked_at])

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
        leaders are replayed. Raises UsageError as `shortlist` does, and for a present configuration
        that is no candidate.
        """
        self._check_judged(budget)
        state = self.under(budget.rate_per_s)
        state.begin()
        shortlist = self.shortlist(budget)
        today = [] if present is None else [self._present(*present)]
        if budget.required:
            state.replay(shortlist.leaders(LEADERS), progress)
        state.replay([*shortlist.front(), *shortlist.front("flops"), *today])
        if budget.required:
            self._look_for_picks(state, shortlist)
        return answer(
            Answering(
                evidence=self.evidence,
                shortlist=shortlist,
                check=self.check(budget),
                present=state.metrics.place[today[0]] if today else None,
                model_path=model_path or str,
                cpu_build=cpu_build,
                at_rate=partial(self._at_rate, budget) if len(self.space) <= FEW else None,
                warning=self._far_off(state),
                notes=self.notes(budget.rate_per_s),
            )
        )

    def _far_off(self, state: UnderLoad) -> str | None:
        """Say that the replay of a watch as it was does not give what was recorded, if it is so."""
        if not state.metrics.as_sent:
            return None
        run = self.evidence.runs[0]
        recorded = np.array([each.latency_s for each in run.problems.values()])
        rows = self.space.rows_of(run.engine, AS_SENT)
        if len(self.evidence.runs) > 1 or not rows or not np.isfinite(recorded).all():
            return None
        state.replay(rows[:1])
        was = float(recorded.mean())
        replayed = state.metrics.estimate("latency_s", state.metrics.place[rows[0]], price=None)
        if replayed is None or not lies_off(replayed, was, was):
            return None
        return (
            f"Replayed as it was, the watch has a mean latency of {number(replayed.value, 's')}, "
            f"and {number(was, 's')} as recorded. Do not rely on this answer"
        )

    def _look_for_picks(self, state: UnderLoad, shortlist: Shortlist) -> None:
        """Replay what may be a pick, or else comes nearest to one."""
        system = self._improve(state, shortlist)
        if system is None:
            system = self._look_surely(state, shortlist)
        accuracy = None
        if system is None:
            self._look_near(state, shortlist)
        else:
            state.replay(shortlist.twins(state.metrics.rows[system])[:TWINS])
            accuracy = float(state.metrics.values("accuracy")[system])
        for of in ("flops", "tokens"):
            state.replay(shortlist.fewest(of, accuracy))
            seen: set[int] = set()
            while True:  # on other engines a policy may need more, and another is the least
                check = self.check(shortlist.budget)
                least = check.compute_optimal(check.best(), of=of)
                if least is None:
                    break
                policy = int(self.space.policies[check.metrics.kind[least]])
                if policy in seen:
                    break
                seen.add(policy)
                state.replay(shortlist.engines_of(state.metrics.rows[least]))

    def _at_rate(self, budget: Budget, rate_per_s: float) -> str | None:
        """Return the closed form's pick at a rate, without its limits; None where nothing fits."""
        closed_form = ClosedForm(self.demands, concurrency=None, rate_per_s=rate_per_s)
        row = Shortlist(closed_form, budget, self.prices(budget)).best()
        return None if row is None else name_of(self.space.candidate(row), limits=False)

    def prices(self, budget: Budget) -> Prices:
        """Return the prices of every cost of an answer: the budget's, else the recorded one."""
        evidence = self.evidence
        return Prices(budget, evidence.price_usd_per_device_hour, evidence.gpus)

    def _improve(self, state: UnderLoad, shortlist: Shortlist) -> int | None:
        """Replay on while one not looked at may be better than the pick; return the pick."""
        check = self.check(shortlist.budget)
        place, seen = state.metrics.place, state.looked_at
        waiting = [row for row in shortlist.leaders(MOST) if place.get(row) not in seen]
        while waiting:
            batch, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
            system = check.best()
            if system is not None and shortlist.least[batch[0]] >= check.cost[system]:
                break
            state.replay(batch)
            check = self.check(shortlist.budget)
        return check.best()

    def _look_surely(self, state: UnderLoad, shortlist: Shortlist) -> int | None:
        """Replay the surest; without a pick, of more devices in turn, up to the fewest that fit."""
        budget = shortlist.budget
        state.replay(shortlist.surest())
        system, most = self.check(budget).best(), budget.max_gpus
        if system is None and most is not None:
            counts = [int(count) for count in np.unique(self.space.devices) if count > most]
            for fewer, count in pairwise([most, *counts]):
                more = replace(budget, max_gpus=count)
                state.replay(self.shortlist(more).surest(above=fewer))
                if self.check(more).fits.any():
                    break
        return system

    def _look_near(self, state: UnderLoad, shortlist: Shortlist) -> None:
        """Replay those nearest to each limit: the best on it under the others."""
        state.replay(shortlist.nearest())
        for field, optimise in RELAXED.items():
            if field in shortlist.limits:
                changes: dict[str, Any] = {field: None, "optimise": optimise}
                others = self.shortlist(replace(shortlist.budget, **changes))
                state.replay(others.leaders(LEADERS))
                self._improve(state, others)

    def _present(self, engine: EngineConfig, policy: Policy) -> int:
        rows = self.space.rows_of(engine, policy)
        if not rows:
            raise UsageError(
                f"--present: {engine.model} {engine.label()}, {policy.label()} is no candidate. "
                "Name a recording that is among those to advise on"
            )
        return rows[0]
