"""One question to the replay: its samples drawn, replayed at the usual, a slow and a fast speed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from advisor.accuracy.models.one_more import OneMoreRun
from advisor.accuracy.subsets import decides_as_vote, expected_right
from advisor.evidence.features import Features, reads_of
from advisor.evidence.gather import Evidence
from advisor.evidence.keys import law_key
from advisor.evidence.runs import RecordedProblem, RecordedRun, rate_under_load
from advisor.forecast.agents import Agents, AgentsAsked
from advisor.forecast.sessions import Sessions
from advisor.forecast.stream import RepeatedProblems, Stream
from advisor.replay.capacity import capacity_per_s
from advisor.replay.draws import (
    MOST,
    drawn_again,
    drawn_among,
    exact_half_width,
    half_width,
    of_other_draws,
    part_drawn,
    with_drawn,
    with_drawn_again,
)
from advisor.replay.limits import Limits, limits_of
from advisor.replay.recording import replayed_tables, replica_keys
from advisor.replay.replay import Replicas, replay, replay_alone, stop_of
from advisor.replay.result import Replayed
from advisor.replay.waiting import Waited, longest_waits
from advisor.replay.workload import ReplayWorkload, SampleArrays
from advisor.step_time.cost import StepCost, scaled_cost
from advisor.step_time.fit import StepTimeModel
from advisor.step_time.law import StepLaw, StepTimes, beyond_share, largest
from advisor.step_time.operators.files import Operators
from advisor.step_time.pace import Hours, Pace, hours_at
from advisor.step_time.power.law import PowerLaw
from advisor.step_time.prior.recalibration import PriorTimes
from advisor.what_if.latency_spread import BEYOND
from advisor.what_if.pace import AtPace
from advisor.what_if.question import Question, learned, tabled
from advisor.what_if.rollouts.batch import BatchRun, batch_run
from traces.errors import UsageError
from traces.recording.manifest import Manifest
from traces.recording.reader import Held, Recording
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate, Interval
from traces.schema.formats import percent
from traces.schema.tts.policy import AS_SENT, Policy
from traces.schema.tts.routes import OTHERS, most_samples, table_for
from traces.schema.tts.stop_rules import ROUTED, Stop
from traces.statistics import (
    ENDS,
    Z95,
    Floats,
    mean,
    off_together,
    quantile_of_others,
    ratio,
    spread,
)
from traces.summary.comparison import RUN_TO_RUN
from traces.summary.energy import Energy
from traces.summary.run import ErrorPart, Run, day_of, step_times, summarise
from traces.summary.votes import PolicyOutcome, policies_within

_FIGURES: Final = {  # of a draw, and the tags of what is printed of it
    **{
        f"{time}.{part}": (f"{time}.{part}",)
        for time in ("latency_s", "ttft_s", "tpot_s")
        for part in ("mean", "p50", "p95")
    },
    "tokens": ("tokens_per_problem",),
    "throughput": ("throughput_tokens_per_s",),
    "device_s": ("device_s_per_problem",),
    "joules": ("energy_j.total", "energy_j.per_problem"),
    "joules_a_token": ("energy_j.per_token",),
}
_QUANTILES: Final = {"latency_s.p50": 0.5, "latency_s.p95": 0.95}
UNLIKE: Final = 0.01  # change of the mean latency, from which other step times are another run
ALIKE: Final = 0.02  # spread of lengths, of their mean, up to which requests stay in lock-step
SHIFTS: Final = 200  # of the recorded problems against those replayed
_A_STEP: Final = {
    "requests": "requests in a step",
    "tokens": "tokens in a step",
    "kv_tokens": "tokens of context in a step",
}


class Replays:
    """The draws of one question, replayed at the law's usual, its fast and its slow speed.

    `sources` are the runs that the samples are of: one, or one for each draw of what is not known
    of them. A question of operator tables needs no model of recorded steps. `law` stands where no
    run has taught the engine's own; `extrapolated` says that the question lies outside what was
    recorded; without `power` no energy is foretold. `beyond` is what intervals of problem latency
    are wider by (`latency_spread`), `scatter` how far the recorded problems lay off, in their order
    (`latency_scatter`). Intervals hold what each of `routings` would give, since one of them
    was the router's. All takes as long as it does at `pace`. The front end's times are those of
    `own_pace`.
    """

    def __init__(
        self,
        base: Recording,
        evidence: Evidence,
        model: StepTimeModel | None,
        own: RecordedRun,
        sources: Sequence[RecordedRun],
        question: Question,
        prior: PriorTimes | None = None,
        *,
        operators: Operators | None = None,
        law: StepLaw | None = None,
        extrapolated: bool = False,
        power: PowerLaw | None = None,
        beyond: Mapping[str, float] | None = None,
        scatter: Floats | None = None,
        routings: Sequence[str] = (),
        pace: Pace | None = None,
        own_pace: Pace | None = None,
    ) -> None:
        self.base, self.sources, self.question, self.power = base, sources, question, power
        self.beyond = beyond or BEYOND
        self.scatter = np.zeros(0) if scatter is None else scatter
        self.routings, self.pace, self.own_pace = tuple(routings), pace, own_pace
        on_tables = question.gpu is not None or operators is not None
        self.engine = question.engine if on_tables else _with_blocks(evidence, question.engine)
        given = question.model_facts
        self.facts = {**evidence.models} | ({} if given is None else {self.engine.model: given})
        self.as_sent = question.policy == AS_SENT
        self._pose(own)
        self.times = self._times(model, prior, operators, law)
        if question.pace_of is not None:
            self.times = self.times.at_known_pace(RUN_TO_RUN)
        self._causes = self._named_causes(prior, operators, evidence)
        self.times = self.times.under(lambda cost: self._run(self.workloads[0], 1.0, cost=cost))
        self._find_stream()
        self._replay(extrapolated=extrapolated)
        key = (self.whole.key(), question.policy.key())
        self.manifest = self._manifest(key)
        self.tables = replayed_tables(
            self.shown,
            self.loads[0],
            self.ids,
            self.times.cost,
            keys=key,
            start_ns=base.manifest.clock_start.unix_ns,
            speculative=self.limits.speculative,
            judged=self._judged,
            replicas=question.replicas.count,
        )

    def _pose(self, own: RecordedRun) -> None:
        """Set what is replayed: draws of the recorded samples, when they come, and the limits."""
        sources, question = self.sources, self.question
        source, self.at_once, self.turns = sources[0], own.at_once, own.turns
        problems = own.problems.values()
        self.arriving_per_s = rate_under_load(
            (each.arrival_ns for each in problems), (each.latency_s for each in problems)
        )
        self.ids = [name for name in own.problems if name in source.problems]
        self.stop, self.drawn = stop_of(question.policy), question.policy.n
        self._stop_for = cache(question.policy.stop_for)  # of the class of a problem
        self.recorded = min(len(source.problems[name].samples) for name in self.ids)
        self.recorded_loads = [
            [self._load(source, name) for name in self.ids] for source in sources
        ]
        self.loads = self._draws()
        arrivals = self._arrivals(own)
        self.concurrency = None
        if arrivals is None:
            self.concurrency = question.concurrency or own.concurrency or 1
        workload = self.base.manifest.workload
        self.block_tokens = None if workload is None else workload.prompt_block_tokens
        self.workloads = [
            ReplayWorkload.from_loads(loads, arrivals, prompt_block_tokens=self.block_tokens)
            for loads in self.loads
        ]
        self.first = self.workloads[0].first
        self.limits = limits_of(
            self.engine, self.facts.get(self.engine.model), self.workloads[0], self.facts
        )

    def _times(
        self,
        model: StepTimeModel | None,
        prior: PriorTimes | None,
        operators: Operators | None,
        law: StepLaw | None,
    ) -> StepTimes:
        """Return where step times come from: a prior, operator tables, or recorded steps."""
        longest = max(workload.longest for workload in self.workloads)
        if self.question.gpu is not None and prior is not None:
            return prior.times(self.engine, longest)
        if operators is not None:
            facts = self.facts.get(self.engine.model)
            return tabled(self.question, operators, facts, longest)
        if model is not None:
            return learned(law or model.law(self.engine))
        raise UsageError("no steps were recorded. Give operator tables with --operators, or --gpu")

    def _named_causes(
        self, prior: PriorTimes | None, operators: Operators | None, evidence: Evidence
    ) -> dict[str, str]:
        """Return the names of what the numbers are off by, which other replays may share.

        That is the law of step times with what taught it, that of power, and the samples with how
        they are drawn. A law that only this recording taught is off by the state of the machine in
        it, too.
        """
        taught = sorted({table.recording for table in evidence.steps})
        where = (self.question.gpu, str(self.question.operators))
        law = (law_key(self.engine), *where, taught, prior is None, operators is None)
        started = self.base.manifest.clock_start.unix_ns
        drawn = sorted({source.recording for source in self.sources})
        samples = (drawn, started, self.question.policy, self.question.seed, self.arrivals_asked)
        causes = {"law": law, "power": law_key(self.engine), "samples": samples}
        named = {kind: f"{kind} {_name_of(what)}" for kind, what in causes.items()}
        own = prior is None and operators is None and taught == [self.base.name]
        return named | ({"day": day_of(started)} if own else {})

    @property
    def arrivals_asked(self) -> bool:
        """Whether problems come at a rate that was asked for."""
        return self.question.rate_per_s is not None

    @cached_property
    def errors(self) -> tuple[ErrorPart, ...]:
        """What of the numbers' intervals has a cause that other replays may share."""
        if self.times.sigma is None:
            return ()
        sigma = self.times.sigma[int(self.outside)]
        of_day = min(RUN_TO_RUN / sigma, 1.0) if sigma > 0 and "day" in self._causes else 0.0
        sds: dict[str, dict[str, float]] = {cause: {} for cause in self._causes}
        for figure, tags in _FIGURES.items():
            values = np.array([each.get(figure, np.nan) for each in self._numbers])
            if not np.isfinite(values).all() or (values <= 0).any():
                continue
            slow, fast = (np.mean([each[figure] for each in side]) for side in self.sides[0])
            speed = abs(float(np.log(slow / fast))) / (2 * Z95) if min(slow, fast) > 0 else 0.0
            again = np.array([each[figure] for each in self._fresh_numbers])
            parts = {
                "law": speed * float(np.sqrt(1 - of_day**2)),
                "day": speed * of_day,
                "samples": self._fresh_draw(figure, values, again) / Z95,
            }
            if figure.startswith("joules") and self.power is not None:
                ends = [
                    off_together(
                        self._by_power_law, self.power.sigma, level, weights=self.power.chance
                    )
                    for level in ENDS
                ]
                parts["power"] = float(np.log(ends[1] / ends[0])) / (2 * Z95)
            for cause in self._causes.keys() & parts.keys():
                sds[cause] |= dict.fromkeys(tags, parts[cause])
        return tuple(ErrorPart(name=self._causes[cause], sd=sd) for cause, sd in sds.items() if sd)

    @cached_property
    def _by_power_law(self) -> Floats:
        """How many times the expected energy each law of power has [laws], over all draws."""
        assert self.power is not None
        each = []
        for run in self.runs:
            seconds, busy_s, request_s = self._spent(run)
            each.append(self.power.each(seconds, busy_s, request_s / max(busy_s, 1e-12)))
        joules = np.mean(each, axis=0)
        return np.asarray(joules / (joules @ self.power.chance))

    @cached_property
    def _right(self) -> dict[str, float]:
        """The share of right answers over all draws, of problems whose first draw is not it."""
        if not self._judged:
            return {}
        rows = self.tables["problems"].select("problem_id", pl.col("correct").cast(pl.Float64))
        first = dict(rows.iter_rows())
        shares = zip(self.ids, np.clip(self._right_shares, 0, 1).tolist(), strict=True)
        return {name: share for name, share in shares if first.get(name) != share}

    def _find_stream(self) -> None:
        """Set whether problems come at random in a stream without end, or as they are given."""
        question, rate = self.question, self.question.rate_per_s
        drawn_again = question.policy.temperature != 0 and not self.as_sent
        self.samples_drawn = drawn_again and not question.arrivals_sent
        self.stream: Stream | None = None
        self.arrivals_drawn = rate is not None and not question.arrivals_sent and not self.hours
        if rate is None or not self.arrivals_drawn:
            return
        if rate <= self.capacity_per_s:
            self.stream = Stream(
                rate_per_s=rate,
                capacity_per_s=self.capacity_per_s,
                seed=question.seed,
                in_order=self.as_sent,
            )
        elif self.times.sigma is not None:  # the queue grows with every problem
            self.workloads = [
                replace(
                    self.workloads[draw % len(self.workloads)],
                    arrivals=self._asked_arrivals(len(self.ids), draw=draw),
                )
                for draw in range(MOST)
            ]

    def _replay(self, *, extrapolated: bool) -> None:
        """Replay all draws at the usual, the slow and the fast speed."""
        self.runs = self._all(log=True)
        self.shown = self.runs[0]
        if self.stream is not None:  # a run that begins and ends
            self.shown = self._run(self.workloads[0], 1.0, log=True)
        inside = self.times.within(self.runs) and not self.smaller
        self.crowded = any(self.limits.crowded(run.peak["kv_tokens"]) for run in self.runs)
        self.outside = extrapolated or self.crowded or not inside
        sigma = 0.0 if self.times.sigma is None else self.times.sigma[int(self.outside)]
        self.fresh = self._fresh_runs()
        self.slow, self.fast = (self._all(float(np.exp(sign * Z95 * sigma))) for sign in (1, -1))

    def _all(
        self,
        factor: float = 1.0,
        *,
        cost: StepCost | None = None,
        replicas: Replicas | None = None,
        log: bool = False,
    ) -> list[Replayed]:
        """Replay the draws where steps take `factor` times as long. The first keeps the `log`."""
        run = partial(self._run, factor=factor, cost=cost, replicas=replicas)
        if self.stream is None:
            return [run(each, log=log and not at) for at, each in enumerate(self.workloads)]
        first, *more = self.stream.runs(self._drawn, partial(run, log=log), speed=factor)
        return [first, *(replace(each, log=None) for each in more)]

    def _fresh_runs(self) -> list[Replayed]:
        """Replay more runs of the same problems, as far as chance has a part in them.

        Samples are drawn again, with replacement, and arrivals where they are random. There are
        none at temperature 0 where neither is, and where no interval is known.
        """
        if self.times.sigma is None:
            return []
        if self.stream is None:
            return [self._run(workload, 1.0) for workload in self.redrawn]
        problems = self._drawn
        if self.samples_drawn:
            counts, seed = [self.drawn] * len(self.ids), self.question.seed
            each = [with_drawn_again(loads, counts, seed) for loads in self.recorded_loads]
            again = [each[number % len(each)][number] for number in range(MOST)]
            problems = self._repeated(again)
        return self.stream.runs(problems, partial(self._run, factor=1.0), fresh=True)

    def _draws(self) -> list[list[RecordedProblem]]:
        each, seed = self.recorded_loads, self.question.seed
        return each if self.as_sent else with_drawn(each, self.drawn, seed, ordered=not self._whole)

    @cached_property
    def redrawn(self) -> list[ReplayWorkload]:
        """Workloads of fresh runs: their samples drawn again, and arrivals where drawn.

        A problem's are drawn with replacement. Empty where a fresh run draws nothing otherwise: at
        temperature 0, where lengths are given, and where no interval is known.
        """
        if self.times.sigma is None or not self.samples_drawn:
            return self.workloads if self.arrivals_drawn else []
        counts = [self.drawn] * len(self.ids)
        each = [
            (SampleArrays.of(loads), drawn_again(drawn_among(loads), counts, self.question.seed))
            for loads in self.recorded_loads
        ]
        workloads = []
        for number in range(MOST):
            samples, runs = each[number % len(each)]
            workload = self._of_as_many(number)
            workloads.append(workload.with_samples(samples.at(np.concatenate(runs[number]))))
        return workloads

    def _of_as_many(self, number: int) -> ReplayWorkload:
        """Return a draw's workload whose problems all have as many samples as are drawn."""
        workload = self.workloads[number % len(self.workloads)]
        if (np.diff(workload.first) == self.drawn).all():
            return workload
        loads = self.recorded_loads[number % len(self.recorded_loads)]
        full = [replace(load, samples=[load.samples[0]] * self.drawn) for load in loads]
        return ReplayWorkload.from_loads(
            full, workload.arrivals, prompt_block_tokens=self.block_tokens
        )

    def _load(self, source: RecordedRun, name: str) -> RecordedProblem:
        problem = source.problems[name]
        if self.engine.speculative is not None and any(
            sample.advance is None for sample in problem.samples
        ):
            raise UsageError(
                f"{source.recording}: does not say how drafts went per sample. Record again"
            )
        stop = self._stop_for(problem.group)
        if stop is None or stop.rule != ROUTED:
            return problem
        return replace(problem, route=stop.value)

    def _arrivals(self, own: RecordedRun) -> Floats | None:
        self.hours = self._hours(own)
        if self.arrivals_asked:
            if self.hours is None and self.question.pace_of is None:
                self.pace = None
            return self._asked_arrivals(len(self.ids))
        if self.question.concurrency is None and own.concurrency is None:
            return own.arrivals_s(self.ids)
        return None

    def _hours(self, own: RecordedRun) -> Hours | None:
        """Return the recorded hours as they pass at an asked rate; None where none are known."""
        rate, told = self.question.rate_per_s, own.concurrency is None and self.as_sent
        if rate is None or not told or self.question.arrivals_sent:
            return None
        if any(each.arrival_ns is None for each in own.problems.values()):
            return None
        came_s = own.arrivals_s(own.problems)
        if (np.diff(came_s) < 0).any():
            return None
        return hours_at(rate, self.arriving_per_s, came_s, at_once=own.at_once)

    def _asked_arrivals(self, count: int, *, draw: int = 0) -> Floats:
        question = self.question
        assert question.rate_per_s is not None
        if self.hours is not None:
            return self.hours.arrivals(count)
        return poisson_arrivals(question.rate_per_s, count, question.seed, draw=draw)

    def _run(
        self,
        workload: ReplayWorkload,
        factor: float,
        *,
        log: bool = False,
        concurrency: int | None = None,
        reserve: int | None = None,
        replicas: Replicas | None = None,
        cost: StepCost | None = None,
        limits: Limits | None = None,
    ) -> Replayed:
        # The front end runs on the same machine as the steps.
        pace, front_end_s = self.pace, factor * workload.front_end_s
        if pace is not None and pace is not self.own_pace and self.own_pace is not None:
            front_end_s = front_end_s * pace.mean / self.own_pace.mean
        if pace is not None and self.hours is not None and workload.arrivals is not None:
            pace = pace.passing(self.hours, 2 * float(workload.arrivals[-1]))
        elif pace is not None and (self.arrivals_asked or workload.arrivals is None):
            pace = Pace.constant(pace.mean)  # nothing says at which hour that is
        workload = replace(workload, front_end_s=front_end_s)
        at_once = None if self.arrivals_asked else self.at_once
        if at_once is not None and pace is not None and workload.arrivals is not None:
            # Clients that wait for answers send as much sooner or later as these come.
            workload = replace(workload, arrivals=workload.arrivals * factor)
            pace, factor = pace.stretched(factor), 1.0
        try:
            return replay(
                workload,
                self.times.at(factor) if cost is None else scaled_cost(cost, factor),
                limits or self.limits,
                concurrency=concurrency or (self.concurrency if reserve is None else None),
                at_once=at_once,
                reserve=reserve,
                stop=self.stop,
                replicas=replicas or self.question.replicas,
                log=log,
                pace=pace,
            )
        except ValueError as error:
            raise UsageError(f"{self.engine.label()}: {error}") from None

    @property
    def whole(self) -> EngineConfig:
        """The engine with all of its replicas and their devices."""
        count, gpus = self.question.replicas.count, self.engine.num_gpus
        return replace(
            self.engine,
            data_parallel_size=count * self.engine.data_parallel_size,
            num_gpus=None if gpus is None else gpus * count,
        )

    def _manifest(self, key: tuple[str, str]) -> Manifest:
        manifest = self.base.manifest
        engines = {key[0]: self.whole}
        count = self.question.replicas.count
        if count > 1:  # problems are the whole engine's, steps are each replica's
            engines |= dict.fromkeys(replica_keys(key[0], count), self.engine)
        return Manifest(
            clock_start=manifest.clock_start,
            engines=engines,
            policies={key[1]: self.question.policy},
            models=self.facts,
            workload=manifest.workload,
            concurrency=self.concurrency,
            rate_per_s=self.question.rate_per_s,
            price_usd_per_device_hour=manifest.price_usd_per_device_hour,
            provenance={"replayed": {"recording": self.base.name, "seed": self.question.seed}},
            complete=True,
        )

    @cached_property
    def capacity_per_s(self) -> float:
        """How many problems a second are served while problems never run out."""
        return capacity_per_s(
            partial(self._drawn.passes, seed=self.question.seed),
            partial(self._run, factor=1.0),
            problems=len(self.ids),
            draws=len(self.loads),
            engines=self.question.replicas.count,
            slots=self.limits.max_num_seqs,
        )

    @cached_property
    def _drawn(self) -> RepeatedProblems:
        return self._repeated(self.loads)

    def _repeated(self, draws: Sequence[Sequence[RecordedProblem]]) -> RepeatedProblems:
        return RepeatedProblems(draws, prompt_block_tokens=self.block_tokens)

    def batch(self, count: int, concurrency: int | None) -> BatchRun:
        """Return a batch of so many problems that are sent at once, or so many at a time.

        Each pass over the recorded problems is in a random order, with prompts of its own.
        """
        asked = min(concurrency or count, count)

        def runs(workloads: Sequence[ReplayWorkload], factor: float) -> list[Replayed]:
            return [self._run(each, factor, concurrency=asked) for each in workloads]

        usual = [self._posed(count, number) for number in range(MOST)]
        sigma = None if self.times.sigma is None else self.times.sigma[int(self.outside)]
        again = self.samples_drawn and sigma is not None
        first = runs(usual, 1.0)
        return batch_run(
            first,
            runs([self._posed(count, number, fresh=True) for number in range(MOST)], 1.0)
            if again
            else [],
            []
            if sigma is None
            else [runs(usual, float(np.exp(sign * Z95 * sigma))) for sign in (-1, 1)],
            problems=count,
            samples=self.drawn,
            concurrency=None if asked == count else asked,
            slots=self.limits.max_num_seqs,
            replicas=self.question.replicas.count,
            extrapolated=self.outside or not self.times.within(first),
        )

    def agents(self, counts: Sequence[int], limit_s: float | None) -> Agents:
        """Return what is predicted of so many agents at once, whose turns the run has.

        With a limit of a p95 turn also the most agents within it. Raises UsageError where the
        recording does not tell sessions.
        """
        source = self.sources[0]
        problems = [source.problems[name] for name in self.ids]
        try:
            if self.block_tokens is None:
                turns = [*self.turns, *(each for each in problems if each.session is not None)]
                sessions = Sessions.watched(turns, self.engine.block_size or 16)
            else:
                sessions = Sessions.of(
                    problems, self.loads[0], prompt_block_tokens=self.block_tokens
                )
        except UsageError as error:
            raise UsageError(f"{self.base.name}: {error}") from None
        endless = replace(self.limits, num_blocks=None)

        def serve(
            workload: ReplayWorkload, agents: int, *, factor: float = 1.0, is_endless: bool = False
        ) -> Replayed:
            limits = endless if is_endless else None
            return self._run(workload, factor, concurrency=agents, limits=limits)

        return AgentsAsked(
            sessions=sessions,
            serve=serve,
            seed=self.question.seed,
            sigma=None if self.times.sigma is None else self.times.sigma[int(self.outside)],
            devices=self.whole.num_devices,
            within=self.times.within,
        ).answer(counts, limit_s)

    def _posed(self, count: int, number: int, *, fresh: bool = False) -> ReplayWorkload:
        """Return so many problems in a random order, with samples drawn, in `fresh` ones again."""
        loads = self.recorded_loads[number % len(self.recorded_loads)]
        repeated = self._repeated([loads])
        rng = np.random.default_rng([self.question.seed, 3 * MOST, number, fresh])
        problems = []
        for place in range(count):
            turn, within = divmod(place, len(loads))
            if within == 0:
                order = rng.permutation(len(loads))
            load = repeated.again(loads[order[within]], turn)
            have = len(load.samples)
            if not self.as_sent and (fresh or have > self.drawn):
                drawn = rng.choice(have, self.drawn, replace=fresh)
                load = replace(load, samples=tuple(load.samples[i] for i in drawn))
            problems.append(load)
        return ReplayWorkload.from_loads(problems, prompt_block_tokens=self.block_tokens)

    @cached_property
    def requests_per_step(self) -> float:
        """How many requests a step has in the mean."""
        totals = Features(*np.sum([run.totals for run in self.runs], axis=0).tolist())
        return float(totals.requests / max(totals.step, 1.0))

    @property
    def smaller(self) -> bool:
        """Whether its batches are smaller than those recorded."""
        return self.times.smaller(self.requests_per_step)

    def larger(self) -> str | None:
        """Return what is larger than in the recorded steps, and how much time such steps take.

        Or how much smaller the batches are.
        """
        if self.smaller:
            return (
                f"{self.requests_per_step:.2g} requests in the mean step, {self.times.fewest:,.0f} "
                "and more recorded"
            )
        beyond = self.times.beyond(largest(self.runs))
        if not beyond:
            return None
        parts = [
            f"up to {value:,.0f} {_A_STEP[name]}, {most:,.0f} recorded"
            for name, (value, most) in beyond.items()
        ]
        share = percent(beyond_share(self.runs))
        return f"{' and '.join(parts)}. Steps with more take {share} of the busy time"

    @cached_property
    def otherwise(self) -> list[dict[str, float]]:
        """By how many times each number changes where another of the routings was the router's."""
        usual = _means(self._numbers)
        changes = []
        for routing in self.routings:
            replicas = replace(self.question.replicas, routing=routing)
            other = _means([self._statistics(run) for run in self._all(replicas=replicas)])
            changes.append({name: other[name] / usual[name] for name in usual if usual[name]})
        return changes

    @cached_property
    def alone(self) -> list[dict[str, float]]:
        """What each draw takes at the fast speed where one problem at a time is in flight.

        Nothing is faster at given arrivals, where problems meet others or none. Empty otherwise.
        """
        if self.concurrency is not None or self.times.sigma is None:
            return []
        fast = float(np.exp(-Z95 * self.times.sigma[int(self.outside)]))
        workloads = self.redrawn if self.samples_drawn else self.workloads
        draws = [replace(each, arrivals=None) for each in workloads]
        return [
            self._statistics(self._run(draw, fast, concurrency=1, cost=cost))
            for cost in (None, *self.others)
            for draw in draws
        ]

    @cached_property
    def others(self) -> list[StepCost]:
        """Step times that the recorded steps cannot tell from its own, and that change its runs."""
        first = self.shown.latency_s.mean()
        runs = [(cost, self._run(self.workloads[0], 1.0, cost=cost)) for cost in self.times.others]
        return [cost for cost, run in runs if abs(run.latency_s.mean() / first - 1) > UNLIKE]

    @cached_property
    def sides(self) -> tuple[list[list[dict[str, float]]], list[list[dict[str, float]]]]:
        """What the draws take with slow and fast steps, and with others that may be theirs."""

        def took(runs: Iterable[Replayed]) -> list[dict[str, float]]:
            return [self._statistics(run) for run in runs]

        others = [took(self._all(cost=cost)) for cost in self.others]
        return [took(self.slow), took(self.fast)], others

    @cached_property
    def at_pace(self) -> AtPace | None:
        """What is predicted at the machine's pace, None where that is not known."""
        if self.pace is None or self.times.sigma is None or self.concurrency is not None:
            return None
        sigma, known = (
            times.sigma[int(self.outside)]
            for times in (self.times, self.times.at_known_pace(RUN_TO_RUN))
            if times.sigma is not None
        )
        ends = [
            _means([self._statistics(run) for run in self._all(factor)])
            for factor in np.exp([-Z95 * known, Z95 * known]).tolist()
        ]
        usual, (low, high) = _means(self._numbers), self.pace.ends()
        return AtPace(
            mean=self.pace.mean,
            low=low,
            high=high,
            run_low=math.exp(-Z95 * sigma),
            run_high=math.exp(Z95 * sigma),
            latency_s={
                which: Estimate(
                    value=usual[tag],
                    low=min(usual[tag], *(end[tag] for end in ends)),
                    high=max(usual[tag], *(end[tag] for end in ends)),
                    unit="s",
                    runs=self.times.runs,
                    extrapolated=self.outside,
                )
                for which, tag in (("mean", "latency_s.mean"), ("p95", "latency_s.p95"))
            },
            arriving_per_s=None if self.at_once is not None else self.arriving_per_s,
            capacity_per_s=self.capacity_per_s,
        )

    def waits(self) -> list[Waited]:
        return longest_waits(self.shown, self.first.tolist(), self.ids)

    @property
    def recording(self) -> Held:
        """The first draw."""
        return Held(Path(f"{self.base.name} (replayed)"), self.manifest, tables=self.tables)

    @cached_property
    def summary(self) -> Run:
        """The first draw's summary with the estimates of all draws and speeds."""
        first = summarise(self.recording)[0]
        device = self._estimate("device_s", "device-s")
        price = self.manifest.price_usd_per_device_hour
        latency = self._three("latency_s", "s", self.beyond)
        tokens = self._estimate("tokens", "tokens")
        ttft = self._undetermined(self._three("ttft_s", "s", {}))
        ttft = {which: _in_order(each, latency[which])[0] for which, each in ttft.items()}
        per_token = latency["mean"]
        if per_token is not None and tokens is not None:
            each = self.whole.num_devices / tokens.value
            per_token = per_token.scaled(each, "device-s/token")
        return replace(
            first,
            steps=self.shown.steps,  # its table may keep none
            step_time=self._step_times(first.step_time),
            accuracy=self._accuracy(),
            latency_s=latency,
            ttft_s=ttft,
            tpot_s=self._three("tpot_s", "s/token", {}),
            tokens_per_problem=tokens,
            flops_per_problem=self._flops(first.flops_per_problem),
            cost_per_token_device_s=per_token,
            policies=self._fewer(first.policies),
            throughput_tokens_per_s=self._ends_scattered(self._estimate("throughput", "tokens/s")),
            energy_j=self._energy(first.energy_j),
            errors=self.errors,
            right=self._right,
            device_s_per_problem=device,
            cost_usd_per_problem=None
            if price is None or device is None
            else device.scaled(price / 3600, "USD"),
        )

    @cached_property
    def _numbers(self) -> list[dict[str, float]]:
        """What each draw gave at the usual speed."""
        return [self._statistics(run) for run in self.runs]

    @cached_property
    def _fresh_numbers(self) -> list[dict[str, float]]:
        """What each fresh run gave."""
        return [self._statistics(run, fresh=True) for run in self.fresh]

    @cached_property
    def _exact_tokens(self) -> float | None:
        """The tokens of a problem over all draws, where those can be counted."""
        return self._of_any(lambda _, made: made) if self._whole else None

    def _estimate(
        self, name: str, unit: str, *, sigma: float = 0.0, wider: bool = False
    ) -> Estimate | None:
        """Return a number over all draws and speeds; `sigma` is how far off it may be beside."""
        values = np.array([each[name] for each in self._numbers])
        if not np.isfinite(values).all():
            return None
        mean = float(values.mean())
        exact = self._exact_tokens if name == "tokens" else None
        value = mean if exact is None else exact
        outside = (self.outside or wider) and exact is None
        if self.times.sigma is None or mean <= 0:
            return Estimate(value=value, unit=unit, extrapolated=outside)
        again = np.array([each[name] for each in self._fresh_numbers])
        drawn = self._fresh_draw(name, values, again)
        ends, others = (
            [float(np.mean([each[name] for each in side])) / mean for side in sides]
            for sides in self.sides
        )
        ends += [each.get(name, 1.0) for each in self.otherwise]
        others.append(1.0)

        def around(spreads: tuple[float | None, float | None]) -> Interval:
            low, high = (
                None
                if spread is None
                else float(np.hypot(np.hypot(spread, Z95 * sigma), np.log(of(others))))
                for spread, of in zip(spreads, (min, max), strict=True)
            )
            return _apart(value, (min(ends), max(ends)), (low, high))

        fresh = around((drawn, drawn))
        if self.alone and name.startswith(("latency_s", "ttft_s")):
            least = min(value, *(each[name] for each in self.alone))
            fresh = replace(fresh, low=max(fresh.low or 0.0, least))
        if name in _QUANTILES:  # by the law of order statistics, as advice has it
            bounds = around((0.0, 0.0))
            law = [abs(math.log(end / value)) / Z95 for end in (bounds.low, bounds.high) if end]
            latency = np.array([run.latency_s for run in self.runs])
            off = quantile_of_others(latency, _QUANTILES[name], (law[0], law[1]))
            low, high = (None if end is None else value * end for end in (off.low, off.high))
            among = Interval(low=low, high=high).holding(fresh)
        else:
            of_problems = self._of_other_problems(name)
            below, above = (None if each is None else max(each, drawn) for each in of_problems)
            among = around((below, above))
        return Estimate.predicted(
            value,
            unit,
            fresh=fresh,
            others=among,
            of="fresh",
            runs=self.times.runs,
            extrapolated=outside,
        )

    def _of_other_problems(self, name: str) -> tuple[float | None, float | None]:
        """Return how far, in logs, a run of as many other problems lies off for its problems.

        Below and above, by what the first draw's problems differ, times sqrt(2): an interval of the
        mean holds that of as many others only 75.5 % of the time. None where so few problems do not
        tell that end.
        """
        if name not in self._of_all_problems:
            return 0.0, 0.0
        found = self._of_all_problems[name]
        if found is None or found.value <= 0:
            return None, None
        half, wider = 0.0, math.sqrt(2)
        if self._needs_no_replay(name):
            own = exact_half_width(found.value, self._of_samples[name], self.drawn)
            half = of_other_draws(own, self._draws_of_samples[0])
        below, above = (
            None
            if end is None or end <= 0
            else math.hypot(wider * math.log(end / found.value), half)
            for end in (found.low, found.high)
        )
        return below, above

    @cached_property
    def _of_all_problems(self) -> dict[str, Estimate | None]:
        """The first draw's numbers with the interval of all problems like its own.

        Tokens and FLOPs that need no replay are those that all recorded samples let expect.
        """
        run = self.runs[0]
        owners = np.repeat(np.arange(len(self.ids)), np.diff(self.first))
        drawn = np.bincount(owners, weights=run.generated_tokens, minlength=len(self.ids))
        found: dict[str, Estimate | None] = {}
        for name, values in _times(run).items():
            parts = spread(values, "s", None if name == "latency_s" else owners)
            found |= {f"{name}.{part}": estimate for part, estimate in parts.items()}
        tokens: Floats = drawn.astype(np.float64)
        flops: Floats = np.zeros(len(self.ids))
        if self._needs_no_replay("tokens"):
            expected = np.array([each.mean() for each in self._of_samples["tokens"]])
            tokens = self.drawn * expected
        if self._counts_flops and self._needs_no_replay("flops"):
            own = np.array([each.mean() for each in self._of_samples["flops"]])
            cached = np.bincount(owners, weights=self._cached_flops(run))
            flops = self.drawn * own - cached
        elif self._counts_flops:
            own_flops = self._flops_of_samples(run)
            flops = np.asarray(np.bincount(owners, weights=own_flops), dtype=np.float64)
        found["tokens"] = mean(tokens, "tokens")
        found["device_s"] = found["joules"] = mean(run.busy_share_s, "device-s")
        at_rate = self.concurrency is None
        found["throughput"] = (
            found["tokens"] if at_rate else ratio(drawn, run.busy_share_s, "tokens/s")
        )
        if self._counts_flops:
            found["flops"] = mean(flops, "FLOP")
        return found

    def _step_times(self, of_one: Mapping[str, Estimate | None]) -> dict[str, Estimate | None]:
        """Return the mean times of steps of each kind, with what the law is off by.

        Which steps there are varies from run to run too, as the first draw's stretches do, and
        between other problems twice as much (the variance).
        """
        alone = self.question.replicas.count == 1
        found = of_one if alone else step_times(self.tables["steps"])  # of all replicas
        sigma = None if self.times.sigma is None else self.times.sigma[int(self.outside)]
        off = [1.0]
        if sigma is not None and self.others:
            usual = _means(self._numbers)["device_s"]
            off += [_means(each)["device_s"] / usual for each in self.sides[1]]

        def with_error(each: Estimate) -> Estimate:
            if sigma is None or each.value <= 0:
                return replace(each, low=None, high=None, of=None, extrapolated=self.outside)
            law = (min(off) * math.exp(-Z95 * sigma), max(off) * math.exp(Z95 * sigma))
            ends = [each.value if end is None else end for end in (each.low, each.high)]
            low, high = (abs(math.log(end / each.value)) if end > 0 else 0.0 for end in ends)
            wider = math.sqrt(2)
            return Estimate.predicted(
                each.value,
                each.unit,
                fresh=_apart(each.value, law, (low, high)),
                others=_apart(each.value, law, (wider * low, wider * high)),
                of="fresh",
                runs=self.times.runs,
                extrapolated=self.outside,
            )

        return {kind: None if each is None else with_error(each) for kind, each in found.items()}

    def _three(
        self, name: str, unit: str, beyond: Mapping[str, float]
    ) -> dict[str, Estimate | None]:
        estimates = {
            which: self._estimate(f"{name}.{which}", unit, sigma=beyond.get(which, 0.0))
            for which in ("mean", "p50", "p95")
        }
        estimates["p50"], estimates["p95"] = _in_order(estimates["p50"], estimates["p95"])
        return estimates

    def _energy(self, without_law: Energy) -> Energy:
        """Return the energy by the law of power, `without_law` where there is none."""
        if self.power is None:
            return without_law
        spent = np.mean([self._spent(run) for run in self.runs], axis=0)
        seen = bool(self.power.within(*spent.tolist()))
        sigma = self.power.sigma
        drawn, by_token = (
            self._of_any_law(self._estimate(figure, "J", sigma=sigma, wider=not seen))
            for figure in ("joules", "joules_a_token")
        )
        if drawn is None:
            return without_law
        by_problem = drawn.scaled(1 / len(self.ids), "J")
        return Energy(total=drawn, per_token=by_token, per_problem=by_problem, method="law")

    def _ends_scattered(self, found: Estimate | None) -> Estimate | None:
        """Return the throughput of arrivals at given times, whose run ends with its last problem.

        Latencies are moved as far off as those recorded were. The recorded problems are taken in
        their order, from each of them on, since what disturbs one disturbs its neighbours.
        """
        off = self.scatter
        if found is None or self.concurrency is not None or not off.size:
            return found
        ratios = []
        for run in self.runs:
            came, took = run.arrival_s, run.latency_s
            begun, smooth = came.min(), (came + took).max()
            least = (came + took * np.exp(off.min())).max()
            last = np.flatnonzero(came + took * np.exp(off.max()) >= least)  # that may be
            for first in np.linspace(0, off.size, SHIFTS, endpoint=False).astype(int):
                moved = took[last] * np.exp(off[(last + first) % off.size])
                ratios.append((smooth - begun) / ((came[last] + moved).max() - begun))
        slow, fast = np.quantile(ratios, ENDS)
        return _farther(found, (max(-float(np.log(slow)), 0.0), max(float(np.log(fast)), 0.0)))

    def _fresh_draw(self, name: str, values: Floats, fresh: Floats) -> float:
        """Return the half-width, in logs, of the 90 % interval of one draw more around `values`.

        Tokens and FLOPs of samples that all end need no replay for it.
        """
        if self._needs_no_replay(name):
            return exact_half_width(float(values.mean()), self._of_samples[name], self.drawn)
        if not fresh.size:
            return half_width(values.size, values)
        share, too_little = self._draws_of_samples if self.samples_drawn else (0.0, 1.0)
        return half_width(values.size, fresh, share=share, too_little=too_little)

    def _needs_no_replay(self, name: str) -> bool:
        """Whether all recorded samples tell what draws of them have."""
        return name in ("tokens", "flops") and self.samples_drawn and self._whole

    @cached_property
    def _of_samples(self) -> dict[str, list[Floats]]:
        """Tokens and FLOPs [problems] of each recorded sample, the FLOPs where they are counted."""
        made = [
            np.array([float(each.output_tokens) for each in load.samples])
            for load in self.recorded_loads[0]
        ]
        if not self._counts_flops:
            return {"tokens": made}
        loads = zip(self.recorded_loads[0], made, strict=True)
        flops = [self._forwarded(load.prompt_tokens + own - 1) for load, own in loads]
        return {"tokens": made, "flops": flops}

    @cached_property
    def _draws_of_samples(self) -> tuple[float, float]:
        """The share of the recorded samples that is drawn, and N / (N - 1), in the mean."""
        problems = [self.sources[0].problems[name] for name in self.ids]
        drawn = [_most_drawn(self.question.policy, problem.group) for problem in problems]
        return part_drawn([len(problem.samples) for problem in problems], drawn)

    @property
    def _whole(self) -> bool:
        """Whether every sample ends, so that what is generated does not depend on when."""
        return self.stop == Stop()

    def _of_any(self, value: Callable[[Floats, Floats], Floats]) -> float:
        """Return a problem's mean of n samples' `value`, exact over all choices of n of them.

        `value` takes the tokens of samples' prompts, and those that they generated [samples].
        """
        problems = [source.problems[name] for source in self.sources for name in self.ids]
        counts = np.array([len(each.samples) for each in problems])
        prompts = np.array([float(each.prompt_tokens) for each in problems])
        made = np.array([float(s.output_tokens) for each in problems for s in each.samples])
        values = value(np.repeat(prompts, counts), made)
        sums = np.add.reduceat(values, np.cumsum(counts) - counts)
        return float(np.mean(sums)) if self.as_sent else self.drawn * float(np.mean(sums / counts))

    def _flops(self, first: Estimate | None) -> Estimate | None:
        """Return the first draw's FLOPs, moved to the mean over all draws.

        What samples feed back is exact where all end, what the cache held is the draws' mean.
        """
        found = self._estimate("flops", "FLOP") if self._counts_flops else None
        if first is None or found is None:
            return first
        value = found.value
        if self._whole:
            cached = [self._cached_flops(run).sum() / len(self.ids) for run in self.runs]
            value = self._of_any(lambda prompt, made: self._forwarded(prompt + made - 1))
            value -= float(np.mean(cached))
        moved = first.value * value / self._statistics(self.shown)["flops"]
        return replace(
            found.scaled(moved / found.value, first.unit),
            extrapolated=self.outside and not self._whole,
        )

    @cached_property
    def _counts_flops(self) -> bool:
        facts = self.facts.get(self.engine.model)
        return facts is not None and facts.counts_flops(self.engine.max_model_len)

    def _forwarded(self, tokens: npt.NDArray[np.floating]) -> Floats:
        """Return the FLOPs of forwarding so many tokens, from the first on."""
        return self.facts[self.engine.model].forward_flops(0.0, tokens)

    def _flops_of_samples(self, run: Replayed) -> Floats:
        """Return the FLOPs of each sample of a run, without what was cached."""
        fed = self._forwarded(run.prompt_tokens + run.generated_tokens - 1.0)
        return np.where(run.generated_tokens > 0, fed, 0.0) - self._cached_flops(run)

    def _cached_flops(self, run: Replayed) -> Floats:
        """Return the FLOPs that the cache saved each sample that ran."""
        saved = self._forwarded(run.cached_tokens.astype(float))
        return np.where(run.generated_tokens > 0, saved, 0.0)

    def _fewer(self, first: tuple[PolicyOutcome, ...]) -> tuple[PolicyOutcome, ...]:
        """Return maj@k and pass@k of all recorded samples, where the replay drew some of them."""
        if not self._whole or self.drawn == self.recorded or not first:
            return first
        problems = [self.sources[0].problems[name] for name in self.ids]
        rows = [
            (number, index, each.answer, each.correct, 0, each.output_tokens)
            for number, problem in enumerate(problems)
            for index, each in enumerate(problem.samples[: self.recorded])
        ]
        integer, text = pl.Int64, pl.String
        columns = {
            "problem": integer,
            "sample_index": integer,
            "answer": text,
            "correct": pl.Boolean,
        }
        columns |= {"end": integer, "output_tokens": integer}
        frame = pl.DataFrame(rows, schema=columns, orient="row")
        return policies_within(frame, self.recorded, most=self.drawn)

    def _spent(self, run: Replayed, *, fresh: bool = False) -> tuple[float, float, float]:
        """Return seconds, seconds of steps and request-seconds, over all replicas.

        At a rate the seconds are those in which so many problems come, as in advice. Those of a
        `fresh` run are its own.
        """
        replicas, rate = self.question.replicas.count, self.question.rate_per_s
        elapsed_s = run.makespan_s - float(run.arrival_s.min())
        if rate is not None and self.arrivals_drawn and not fresh:
            elapsed_s = max(len(self.ids) / rate, run.busy_s / replicas)
        held = float(np.nansum(run.end_s - run.scheduled_s))
        return elapsed_s * replicas, run.busy_s, held

    def _joules(self, run: Replayed, *, fresh: bool = False) -> float:
        """Return the energy of a run by the mean of the laws. There is a power law."""
        assert self.power is not None
        seconds, busy_s, request_s = self._spent(run, fresh=fresh)
        return float(self.power.joules(seconds, busy_s, request_s / max(busy_s, 1e-12)))

    def _statistics(self, run: Replayed, *, fresh: bool = False) -> dict[str, float]:
        figures = _statistics(run, len(self.ids), self.engine)
        if self.power is not None:
            figures["joules"] = self._joules(run, fresh=fresh)
            figures["joules_a_token"] = figures["joules"] / float(run.generated_tokens.sum())
        if self._counts_flops:
            figures["flops"] = float(self._flops_of_samples(run).sum()) / len(self.ids)
        return figures

    @cached_property
    def evenly(self) -> dict[str, float] | None:
        """Return a closed loop's times with its arrivals spread evenly, where these decide TTFT.

        Requests of one length end and come together, as the first did. A client's or a server's
        jitter draws them apart, so that both are possible. None where lengths differ.
        """
        workload, run = self.workloads[0], self.runs[0]
        count = len(self.ids)
        if self.concurrency is None or not 1 < self.concurrency < count:
            return None
        for tokens in (workload.prompt_tokens, workload.output_tokens):
            if np.std(tokens) > ALIKE * np.mean(tokens):
                return None
        apart = float(np.mean(run.latency_s)) / self.concurrency
        arrivals = np.asarray(np.arange(count) * apart, dtype=np.float64)
        spread = replace(workload, arrivals=arrivals)
        alone = replay(
            spread,
            self.times.cost,
            self.limits,
            stop=self.stop,
            replicas=self.question.replicas,
            pace=None if self.pace is None else Pace.constant(self.pace.mean),
        )
        return _statistics(alone, count, self.engine)

    def _undetermined(self, found: dict[str, Estimate | None]) -> dict[str, Estimate | None]:
        """Return TTFT with an interval that holds it in lock-step and spread evenly.

        Where only others measured it, as much longer as theirs usually was, and at both ends.
        """
        other, (least, usual, most) = self.evenly, self.times.ttft
        wide = dict(found)
        for part, each in found.items():
            if each is None or (other is None and each.low is None):
                continue
            value = each.value if other is None else other[f"ttft_s.{part}"]
            again = [each.value, value] if np.isfinite(value) else [each.value]
            reach = Interval(low=least * min(again), high=most * max(again))
            wide[part] = each.scaled(usual, each.unit).each_interval(reach.holding)
        return wide

    @property
    def uncapped(self) -> bool:
        """Whether energy is of larger batches than recorded, with no known limit of the boards."""
        law = self.power
        if law is None or law.limit_w is not None:
            return False
        spent = [self._spent(run) for run in self.runs]
        return any(request_s > law.batch[1] * busy_s for _, busy_s, request_s in spent)

    def _of_any_law(self, drawn: Estimate | None) -> Estimate | None:
        """Return the energy with an interval that holds what the power law leaves open."""
        if drawn is None or self.power is None:
            return drawn
        value, laws, chance = drawn.value, self._by_power_law, self.power.chance

        def farther(ends: Interval) -> Interval:
            off = [
                None
                if end is None
                else off_together(laws, abs(math.log(end / value)) / Z95, level, weights=chance)
                for end, level in zip((ends.low, ends.high), ENDS, strict=True)
            ]
            low, high = (None if each is None else value * each for each in off)
            return Interval(low=low, high=high).holding(Interval(low=value, high=value))

        return drawn.each_interval(farther)

    @property
    def _judged(self) -> bool:
        """Whether it is known which answers are given, and whether they are right."""
        source, policy = self.sources[0], self.question.policy
        samples = [s for name in self.ids for s in source.problems[name].samples]
        has_answers = source.tells_answers
        complete = all(s.correct is not None or (has_answers and s.answer is None) for s in samples)
        judged = any(s.correct is not None for s in samples)
        votes = policy.spec.plurality and (policy.n == 1 or source.answers_told)
        return complete and judged and votes

    def _accuracy(self) -> Estimate | None:
        if not self._judged:
            return None
        policy = self.question.policy
        exact = decides_as_vote(policy.stop, policy.n)
        samples = [self.sources[0].problems[name].samples for name in self.ids]
        return (
            OneMoreRun(samples)
            .accuracy(self._right_shares, policy, extrapolated=self.outside and not exact)
            .which("fresh")
        )

    @cached_property
    def _right_shares(self) -> Floats:
        """How often each problem is answered right: exact where nothing asks who ended first.

        Else by the expectation over many orders, and what the load changed in the draws (which
        may lie beyond 0 and 1 for a problem, and is right in their mean).
        """
        policy, source = self.question.policy, self.sources[0]
        if decides_as_vote(policy.stop, policy.n):
            return np.array([source.vote_curve(name)[self.drawn - 1] for name in self.ids])
        samples = [source.problems[name].samples for name in self.ids]
        routes = policy.routes
        tables = None
        if routes is not None:
            groups = [source.problems[name].group for name in self.ids]
            tables = {policy: [table_for(routes, group) for group in groups]}
        expected, _ = expected_right(samples, [policy], [self.question.seed, 4], tables)[policy]
        reads = reads_of(self.facts.get(self.engine.model))
        limits = self.limits.unlimited()
        alone = [replay_alone(load, limits, self.stop, reads).right for load in self.workloads]
        changed = [run.right - own for run, own in zip(self.runs, cycle(alone), strict=False)]
        return np.asarray(expected + np.mean(changed, axis=0))


def _name_of(what: object) -> str:
    """Return a short name, the same for what is written alike."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _most_drawn(policy: Policy, group: str | None) -> int:
    """Return how many samples a policy draws for a problem of a class at most."""
    routes = policy.routes
    return policy.n if routes is None else most_samples({OTHERS: table_for(routes, group)})


def poisson_arrivals(rate_per_s: float, count: int, seed: int, *, draw: int = 0) -> Floats:
    """Return the seconds at which problems arrive, ascending."""
    rng = np.random.default_rng([seed, MOST + draw])
    gaps: Floats = rng.exponential(1 / rate_per_s, count)
    return np.cumsum(gaps)


def _with_blocks(evidence: Evidence, engine: EngineConfig) -> EngineConfig:
    """Return the engine with the KV blocks that a recorded one of its kind was given."""
    if engine.num_gpu_blocks is not None and any(t.engine == engine for t in evidence.steps):
        return engine
    for table in evidence.steps:
        if law_key(table.engine) == law_key(engine) and engine.num_gpu_blocks is None:
            return replace(engine, num_gpu_blocks=table.engine.num_gpu_blocks)
    return engine


def _apart(
    value: float, ratios: tuple[float, float], spreads: tuple[float | None, float | None]
) -> Interval:
    """Return an interval whose ends lie off by ratios to the value and by independent log spreads.

    These add up as squares in logs, so that no end of what is positive comes near to zero alone.
    An end whose spread is not known is not known.
    """
    below, above = (
        None if spread is None else float(np.exp(np.hypot(np.log(ratio), spread)))
        for ratio, spread in zip(ratios, spreads, strict=True)
    )
    return Interval(
        low=None if below is None else value / below, high=None if above is None else value * above
    )


def _farther(found: Estimate, beyond: tuple[float, float]) -> Estimate:
    """Return an estimate whose ends lie off by independent log spreads more, below and above."""

    def farther(ends: Interval) -> Interval:
        spreads = [
            None if end is None else float(np.hypot(np.log(end / found.value), more))
            for end, more in zip((ends.low, ends.high), beyond, strict=True)
        ]
        return _apart(found.value, (1.0, 1.0), (spreads[0], spreads[1]))

    return found.each_interval(farther)


def _in_order(
    less: Estimate | None, more: Estimate | None
) -> tuple[Estimate | None, Estimate | None]:
    """Return two estimates, of which one is known to be no more than the other.

    Where the less is above its lower end so is the more, and the other way round. That holds of
    what lies in one interval of both.
    """
    if less is None or more is None:
        return less, more
    least, most = more.value, less.value

    def lower(own: Interval, of_more: Interval) -> Interval:
        if own.high is None or of_more.high is None:
            return own
        return replace(own, high=max(most, min(own.high, of_more.high)))

    def higher(own: Interval, of_less: Interval) -> Interval:
        if own.low is None or of_less.low is None:
            return own
        return replace(own, low=min(least, max(of_less.low, own.low)))

    return less.beside(more, lower), more.beside(less, higher)


def _means(statistics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in statistics])) for name in statistics[0]}


def _times(run: Replayed) -> dict[str, Floats]:
    """Return latency of each problem, TTFT and TPOT of each sample, nan where it has none."""
    more = (run.generated_tokens > 1) & ~run.cancelled
    decoded_s = run.end_s - run.first_token_s
    return {
        "latency_s": run.latency_s,
        "ttft_s": run.first_token_s - run.queued_s + run.front_end_s,
        "tpot_s": np.where(more, decoded_s / np.maximum(run.generated_tokens - 1, 1), np.nan),
    }


def _statistics(run: Replayed, problems: int, engine: EngineConfig) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, values in _times(run).items():
        numbers = values[np.isfinite(values)]
        figures[f"{name}.mean"] = float(numbers.mean()) if numbers.size else np.nan
        p50, p95 = np.quantile(numbers, (0.5, 0.95)) if numbers.size else (np.nan, np.nan)
        figures |= {f"{name}.p50": float(p50), f"{name}.p95": float(p95)}
    tokens = float(run.generated_tokens.sum())
    figures["tokens"] = tokens / problems
    figures["throughput"] = tokens / (run.makespan_s - float(run.arrival_s.min()))
    figures["device_s"] = float(run.busy_share_s.mean()) * engine.num_devices
    return figures
