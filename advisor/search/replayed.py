"""What candidates would give by the replay: latency and device time, and what a stop rule saw."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from advisor.accuracy.models.one_more import OneMoreRun
from advisor.evidence.features import Features
from advisor.evidence.runs import RecordedProblem
from advisor.forecast.stream import RepeatedProblems, Stream
from advisor.replay.capacity import capacity_per_s
from advisor.replay.limits import limits_of
from advisor.replay.result import Replayed
from advisor.replay.workload import ReplayWorkload
from advisor.search.policy_work import PolicyWork
from advisor.search.space import Candidate, Space
from advisor.step_time.fit import StepTimeModel
from advisor.step_time.law import StepLaw, beyond_share, largest
from traces.schema.tts.policy import AS_SENT, Policy
from traces.statistics import Z95, Floats, Ints

if TYPE_CHECKING:
    from advisor.step_time.cost import StepCost
    from advisor.step_time.pace import Pace


@dataclass(frozen=True, kw_only=True)
class ReplayedCandidate:
    """One candidate, per problem: [problems], or [speeds, replays, problems] for what is replayed.

    `speeds` are the factors on step time at which it was replayed: one with a number of problems in
    flight, as all times scale with it. `device_s` is of the busy time. `capacity_per_s` problems
    can be served, at a rate in a steady state. Without `keeps_up` it was not replayed at the rate,
    and its latency is that of all problems at once. `paid` are the device-seconds from the first
    arrival to the last decision for each in which a device is busy. A step takes `step_s` on
    average, with `requests_per_step` samples, and `batch` over the time in which steps run.
    `members` are the places of its problems among those of the space, None for all.
    """

    candidate: Candidate
    law: StepLaw
    accuracy: Floats
    tokens: Floats
    flops: Floats
    speeds: Floats
    latency_s: Floats
    device_s: Floats
    capacity_per_s: float
    keeps_up: bool
    extrapolated: bool
    beyond: float
    totals: Features[float]
    paid: float
    step_s: float
    requests_per_step: float
    batch: float
    one_more: Callable[[], OneMoreRun]
    spreads_of: Callable[[Ints | None], Mapping[str, tuple[float, float]]]
    replay_again: Callable[[], FreshRuns]
    members: Ints | None = None

    def among(self, members: Ints) -> ReplayedCandidate:
        """Return the same of some of the problems, by their places."""
        return dataclasses.replace(
            self,
            accuracy=self.accuracy[..., members],
            tokens=self.tokens[members],
            flops=self.flops[members],
            latency_s=self.latency_s[..., members],
            device_s=self.device_s[..., members],
            one_more=lambda: self.one_more().among(members),
            members=members,
            replay_again=lambda: self.fresh.among(members),
        )

    @cached_property
    def exact_spreads(self) -> Mapping[str, tuple[float, float]]:
        """How far tokens and FLOPs lie off (`PolicyWork.exact_spreads`)."""
        return self.spreads_of(self.members)

    @cached_property
    def fresh(self) -> FreshRuns:
        """More runs of the same problems, replayed when they are asked for."""
        return self.replay_again()


@dataclass(frozen=True, kw_only=True)
class FreshRuns:
    """Runs of the same problems with samples drawn again, [runs, problems]; none without any draw.

    Of the recorded samples each takes `share`, and the draws vary `too_little` (`half_width`).
    """

    latency_s: Floats
    device_s: Floats
    tokens: Floats
    share: float
    too_little: float

    def among(self, members: Ints) -> FreshRuns:
        """Return the same of some of the problems, by their places."""
        latency_s, device_s, tokens = (
            each[:, members] for each in (self.latency_s, self.device_s, self.tokens)
        )
        return dataclasses.replace(self, latency_s=latency_s, device_s=device_s, tokens=tokens)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How the problems of a watch came: `arrivals` [problems] in seconds since the first of them.

    `pace` is that of the machine meanwhile. Candidates on another machine are replayed without it.
    `at_once` samples were in flight at most, where clients waited for answers.
    """

    arrivals: Floats
    pace: Pace | None
    at_once: int | None

    def on(self, candidate: Candidate, speed: float) -> tuple[Sent, float]:
        """Return how they come where steps take `speed` times as long, and what is left of that.

        Clients that wait for answers send as much later.
        """
        if self.at_once is None or self.pace is None or candidate.prior is not None:
            return self, speed
        pace = self.pace.stretched(speed)
        return dataclasses.replace(self, arrivals=self.arrivals * speed, pace=pace), 1.0


class CandidateReplays:
    """Replays candidates under a load; replays that cannot differ are made once."""

    def __init__(self, space: Space, model: StepTimeModel, policy_work: PolicyWork) -> None:
        self.space, self.model, self.policy_work = space, model, policy_work
        self._replays: dict[Hashable, list[tuple[int, int, list[Replayed]]]] = {}
        self._capacities: dict[int, float] = {}
        self._models = policy_work.evidence.models

    def of(
        self,
        row: int,
        *,
        concurrency: int | None,
        rate_per_s: float | None,
        sent: Sent | None = None,
    ) -> ReplayedCandidate:
        """Return a candidate of the space, replayed at a load.

        Problems come at random at the rate, or as they were `sent`, which is of that rate.
        """
        candidate = self.space.candidate(row)
        kind = self.space.kinds[self.space.kind[row]]
        law = self.model.law(candidate.engine)
        replicas = candidate.engine.data_parallel_size
        devices = candidate.engine.num_devices / replicas  # of the engine that a step runs on
        count = len(self.space.problem_ids)
        workloads = self.policy_work.workloads(kind.pool, kind.policy)
        stream = None if rate_per_s is None else self._stream(row, rate_per_s, kind.policy)
        keeps_up = stream is None or stream.keeps_up

        def at(speed: float) -> list[Replayed]:
            cost = partial(_cost, law, candidate, speed)
            if stream is None or not keeps_up:
                in_flight = (concurrency or 1) if rate_per_s is None else count
                run = partial(self._each, workloads, cost, candidate, concurrency=in_flight)
                return self._once(candidate, ("closed", in_flight), run)
            if sent is not None:
                on, speed_left = sent.on(candidate, speed)
                cost = partial(_cost, law, candidate, speed_left)
                came = [dataclasses.replace(each, arrivals=on.arrivals) for each in workloads]
                run = partial(self._each, came, cost, candidate, sent=on)
                return self._once(candidate, ("sent", rate_per_s, speed), run)
            run = partial(self._passes, stream, kind.policy, cost, candidate, speed=speed)
            how = rate_per_s, speed, stream.settles(speed), stream.has_slack
            return self._once(candidate, ("open", *how), run)

        first = at(1.0)
        limits = limits_of(candidate.engine, candidate.facts, workloads[0], self._models)
        peaks, within = largest(first), law.within(first)
        if law.prior is not None:
            within = law.prior.holds(peaks, max(each.longest for each in workloads))
        totals = Features(*np.mean([r.totals for r in first], axis=0).tolist())
        outside = limits.crowded(peaks["kv_tokens"]) or not within
        outside |= law.smaller(totals.requests / totals.step)
        speeds = [1.0]
        if rate_per_s is not None and keeps_up:
            slow = float(np.exp((law.sigma_outside if outside else law.sigma) * Z95))
            speeds += [slow] if sent is None else [slow, 1 / slow]
        runs = [first, *map(at, speeds[1:])]
        if kind.policy.all_samples_end:
            accuracy = self.policy_work.correctness(kind.pool, kind.policy)
            tokens, flops = self.policy_work.tokens_and_flops(kind)
        else:
            accuracy, tokens, flops = self.policy_work.stopped(kind, first)
        steps, busy = totals.step, float(np.mean([r.busy_s for r in first]))
        if rate_per_s is not None and keeps_up and sent is None:
            steps, busy = _steps_of_passes(first, totals.requests)
        return ReplayedCandidate(
            candidate=candidate,
            law=law,
            accuracy=accuracy,
            tokens=tokens,
            flops=flops,
            speeds=np.array(speeds),
            latency_s=np.array([[r.latency_s for r in each] for each in runs]),
            device_s=np.array([[r.busy_share_s * devices for r in each] for each in runs]),
            capacity_per_s=count * replicas / busy if stream is None else stream.capacity_per_s,
            keeps_up=keeps_up,
            extrapolated=outside,
            beyond=beyond_share(first),
            totals=totals,
            paid=_paid(first, replicas),
            step_s=busy / steps,
            requests_per_step=totals.requests / steps,
            batch=_batch(first),
            one_more=partial(self.policy_work.one_more, kind.pool),
            spreads_of=partial(self.policy_work.exact_spreads, kind),
            replay_again=partial(
                self._fresh, candidate, kind.policy, law, concurrency, stream, sent
            ),
        )

    def _fresh(
        self,
        candidate: Candidate,
        policy: Policy,
        law: StepLaw,
        concurrency: int | None,
        stream: Stream | None,
        sent: Sent | None,
    ) -> FreshRuns:
        """Replay fresh runs of a candidate. At a rate they have other arrivals, too."""
        pool, count = candidate.pool, len(self.space.problem_ids)
        draws, cost = self.policy_work.redrawn(pool, policy), partial(_cost, law, candidate)
        share, too_little = self.policy_work.of_draws(pool, policy) if draws else (0.0, 1.0)
        runs: list[Replayed] = []
        if stream is not None and sent is None:
            draws = draws or self.policy_work.problems(pool, policy)
            runs = self._passes(stream, policy, cost, candidate, again=draws)
        elif draws:
            arrivals = None if sent is None else sent.arrivals
            loads = [ReplayWorkload.from_loads(draw, arrivals) for draw in draws]
            in_flight = None if sent is not None else concurrency or 1
            runs = self._each(loads, cost, candidate, concurrency=in_flight, sent=sent)
        devices = candidate.engine.num_devices / candidate.engine.data_parallel_size
        counts = [len(problem.samples) for problem in draws[0]] if draws else []
        first = np.cumsum([0, *counts[:-1]])

        def of(values: Callable[[Replayed], Floats]) -> Floats:
            return np.array([values(run) for run in runs]).reshape(len(runs), count)

        return FreshRuns(
            latency_s=of(lambda run: run.latency_s),
            device_s=of(lambda run: run.busy_share_s * devices),
            tokens=of(lambda run: np.add.reduceat(run.generated_tokens, first) + 0.0),
            share=share,
            too_little=too_little,
        )

    def _passes(
        self,
        stream: Stream,
        policy: Policy,
        cost: Callable[[], StepCost],
        candidate: Candidate,
        *,
        speed: float = 1.0,
        again: Sequence[Sequence[RecordedProblem]] | None = None,
    ) -> list[Replayed]:
        """Replay passes over the problems at a rate, or fresh runs of those drawn `again`."""
        fresh, run = again is not None, partial(self._replay, cost=cost(), candidate=candidate)
        problems = (
            self.policy_work.repeated(candidate.pool, policy)
            if again is None
            else RepeatedProblems(again)
        )
        return stream.runs(problems, run, speed=speed, fresh=fresh)

    def _stream(self, row: int, rate_per_s: float, policy: Policy) -> Stream:
        return Stream(
            rate_per_s=rate_per_s,
            capacity_per_s=self.capacity_per_s(row),
            seed=self.policy_work.seed,
            in_order=policy == AS_SENT,
        )

    def capacity_per_s(self, row: int) -> float:
        """Return how many problems a second a candidate serves while problems never run out."""
        if row not in self._capacities:
            candidate = self.space.candidate(row)
            pool, policy = candidate.pool, candidate.policy
            cost = _cost(self.model.law(candidate.engine), candidate)
            self._capacities[row] = capacity_per_s(
                partial(self.policy_work.repeated(pool, policy).passes, seed=self.policy_work.seed),
                partial(self._replay, cost=cost, candidate=candidate),
                problems=len(self.space.problem_ids),
                draws=len(self.policy_work.problems(pool, policy)),
                engines=candidate.engine.data_parallel_size,
                slots=candidate.engine.max_num_seqs,
            )
        return self._capacities[row]

    def _once(
        self, candidate: Candidate, load: Hashable, run: Callable[[], list[Replayed]]
    ) -> list[Replayed]:
        """Replay unless limits that were never reached, or higher ones, gave what these would."""
        engine, policy = candidate.engine, candidate.policy
        if candidate.prior is None:  # else its graphs are captured up to its own limits
            engine = dataclasses.replace(engine, max_num_seqs=None, max_num_batched_tokens=None)
        name = (candidate.pool.key, policy.method, policy.n, policy.rule, engine, load)
        made = self._replays.setdefault(name, [])
        seqs = candidate.engine.max_num_seqs or sys.maxsize
        batched = candidate.engine.max_num_batched_tokens or sys.maxsize
        for most_seqs, most_batched, results in made:
            requests = max(each.peak["requests"] for each in results)
            tokens = max(each.peak["tokens"] for each in results)
            if _same(seqs, most_seqs, requests) and _same(batched, most_batched, tokens):
                return results
        made.append((seqs, batched, run()))
        return made[-1][2]

    def _each(
        self,
        workloads: Sequence[ReplayWorkload],
        cost: Callable[[], StepCost],
        candidate: Candidate,
        *,
        concurrency: int | None = None,
        sent: Sent | None = None,
    ) -> list[Replayed]:
        run = partial(self._replay, concurrency=concurrency, sent=sent)
        made = cost()
        return [run(each, made, candidate) for each in workloads]

    def _replay(
        self,
        workload: ReplayWorkload,
        cost: StepCost,
        candidate: Candidate,
        *,
        concurrency: int | None = None,
        reserve: int | None = None,
        sent: Sent | None = None,
    ) -> Replayed:
        # numba takes a third of a second to load.
        from advisor.replay.replay import Replicas, replay, stop_of

        count = candidate.engine.data_parallel_size
        routing = "least-outstanding" if count > 1 else "round-robin"
        return replay(
            workload,
            cost,
            limits_of(candidate.engine, candidate.facts, workload, self._models),
            concurrency=concurrency,
            reserve=reserve,
            stop=stop_of(candidate.policy),
            at_once=None if sent is None else sent.at_once,
            replicas=Replicas(count=count, routing=routing),
            pace=None if sent is None or candidate.prior is not None else sent.pace,
        )


def _paid(runs: Sequence[Replayed], replicas: int) -> float:
    """Return the device-seconds of whole runs for each in which a device is busy, at least 1."""
    paid_s = sum(replicas * (run.makespan_s - float(run.arrival_s.min())) for run in runs)
    return max(paid_s / max(sum(run.busy_s for run in runs), 1e-12), 1.0)


def _batch(runs: Sequence[Replayed]) -> float:
    """Return the mean number of samples in a step over the time of steps, as `replay` has it."""
    busy_s = sum(float(run.busy_share_s.sum()) for run in runs)
    return sum(float(np.nansum(run.end_s - run.scheduled_s)) for run in runs) / max(busy_s, 1e-12)


def _steps_of_passes(runs: Sequence[Replayed], requests: float) -> tuple[float, float]:
    """Return the steps of passes at a rate and their time, without the start and end of the stream.

    By Little's law as many samples run at once as their times take of the busy time. So many are in
    a step, of the `requests` in all steps of a pass.
    """
    busy = float(np.mean([run.busy_share_s.sum() for run in runs]))
    running = float(np.mean([np.nansum(run.end_s - run.scheduled_s) for run in runs]))
    return requests * busy / max(running, 1e-12), busy


def _same(limit: int, known: int, peak: float) -> bool:
    """Whether a replay under the limit `known`, whose peak is known, is that under `limit`."""
    return limit == known or (peak <= limit and (limit <= known or peak < known))


def _cost(law: StepLaw, candidate: Candidate, speed: float = 1.0) -> StepCost:
    """Return what the steps of a candidate cost that take `speed` times as long."""
    from advisor.step_time.cost import linear_cost, scaled_cost

    if law.prior is None:
        return linear_cost(law.seconds * speed, law.reads, law.most)
    return scaled_cost(law.prior.cost(candidate.engine), speed)
