"""All candidates at once, in closed form, before the replay looks at the best.

By Little's law the latency with c problems in flight is c times the busy time that one takes. What
a problem takes is known but for its steps: requests, tokens and context are those of its samples
(`policy_work.Work.totals`). The c problems share steps, D / c each with D those of a problem alone,
until a limit binds: `max_num_seqs`, the KV blocks, or `max_num_batched_tokens`. At a rate one meets
as many others as are there on average (arrivals see time averages), a fixed point.
`ClosedForm.learn` measures how far this lies from the replay.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from advisor.accuracy.models.together import luck_by_name
from advisor.evidence.features import FEATURES, Features
from advisor.evidence.keys import DEFAULT_BLOCK
from advisor.search.metrics import ALL, EXACT, Metrics, Rows, quantile_of
from advisor.search.policy_work import PolicyWork, ProblemWork
from advisor.search.resampling import Resampling, farther
from advisor.search.space import Space
from advisor.step_time.fit import StepTimeModel
from advisor.step_time.law import FEWER
from traces.schema.estimate import Of
from traces.statistics import (
    LEVEL,
    Bools,
    Floats,
    Ints,
    order_of_draws,
    quantile_law,
    skew_of_mean,
    tied,
    weighted_quantiles,
    widened,
)

DRAWS = 64  # of the joint draws, for all candidates
SHARP = 4.0  # of the smooth maximum where a limit begins to bind
FULL = 8.0  # times the problems that engines have room for, which keep them full
ROUNDS = 14  # of the fixed point
STEPS = ("step", "prefill_step", "draft_step", "experts")  # shared by the problems in flight


class Demands:
    """What candidates take, whatever the load: arrays over candidates, works and kinds.

    `works` are those that differ; `work` [kinds] is the place of a kind's. Relative draws
    `latency`, `device` [works, DRAWS] are what resampling the problems does to a mean.
    """

    def __init__(
        self, space: Space, policy_work: PolicyWork, model: StepTimeModel, resampling: Resampling
    ) -> None:
        self.space, self.weights = space, resampling.weights[:DRAWS]
        self.choosing, self.power = resampling.choosing[:DRAWS], resampling.power[:DRAWS]
        errors = resampling.power_errors(space.power.values())
        self.power_errors = [each[:DRAWS] for each in errors]
        self.unlike = resampling.unlike[:DRAWS]
        works: list[ProblemWork] = []
        places: dict[tuple[Hashable, ...], int] = {}
        work, prompts = [], []
        for kind in space.kinds:
            engine = kind.engine
            limits = (engine.block_size, engine.enable_prefix_caching, engine.async_scheduling)
            name = (kind.pool.key, kind.policy, kind.facts, *limits)
            if name not in places:
                places[name] = len(works)
                works.append(policy_work.work(kind))
                first = policy_work.problems(kind.pool, kind.policy)[0]
                prompts.append(np.mean([p.prompt_tokens - p.cached_tokens for p in first]))
            work.append(places[name])
        self.works, self.work = works, np.array(work, dtype=np.int64)
        self.prompt_tokens = np.array(prompts)
        self.totals = np.array([work.totals for work in works])
        self.totals_one = np.array([work.totals_one for work in works])
        self.steps, self.right, self.right_one, self.tokens, self.flops = (
            np.array([getattr(work, name).mean() for work in works])
            for name in ("steps", "right", "right_one", "tokens", "flops")
        )
        self._judged = {
            name[:2]: works[place]
            for name, place in places.items()
            if space.judged and works[place].right.ndim == 1
        }
        self.luck = self.luck_among(ALL)
        lucks = [self.luck.get(name[:2], 0.0) for name in places]
        self.accuracy, self.accuracy_one = (
            np.array(
                [
                    resampling.run_accuracy(getattr(work, name), luck)[:DRAWS]
                    for work, luck in zip(works, lucks, strict=True)
                ]
            )
            for name in ("right", "right_one")
        )
        self.varies = (self.accuracy != self.accuracy_one).any(axis=1)
        self.latency = np.array([self._relative(work.steps.mean(axis=0)) for work in works])
        self.device = np.array([self._relative(work.tokens) for work in works])
        laws = [model.law(kind.engine) for kind in space.kinds]
        self.seconds = np.array([law.seconds for law in laws])
        self.high = np.array([law.high for law in laws])
        self.fewest = np.array([law.fewest for law in laws])
        self.visited = np.array([law.reads.experts for law in laws])
        self.factors = np.array(  # [kinds, inside or outside, DRAWS]
            [
                [resampling.factor(kind.engine, law, outside=out)[:DRAWS] for out in (False, True)]
                for kind, law in zip(space.kinds, laws, strict=True)
            ]
        )
        self._quantiles: dict[tuple[float, Of], tuple[Floats, Floats]] = {}

    def luck_among(self, members: Rows) -> dict[Hashable, float]:
        """Return the `own_luck` of accuracies by pool and policy on some of the problems."""
        return luck_by_name(
            {name: each.right[members] for name, each in self._judged.items()},
            {name: _cost(each) for name, each in self._judged.items()},
        )

    def _relative(self, values: Floats) -> Floats:
        drawn = self.weights @ values / values.size
        mean = max(values.mean(), 1e-12)
        if values.size == 1:
            drawn = drawn * self.unlike
        skew = skew_of_mean(values)
        return np.asarray(widened(mean, drawn, values.size, skew=skew, positive=True) / mean)

    def quantile(self, q: float, of: Of) -> tuple[Floats, Floats]:
        """Return a quantile of the steps over problems: [works], and relative draws of it.

        Of all problems like these, or of a run of as many `others`. As in `Resampling.quantile`,
        the draws say in which it is larger, and order statistics by how much.
        """
        if (q, of) not in self._quantiles:
            values, draws = [], []
            for work in self.works:
                flat = work.steps.ravel()
                order = np.argsort(flat, kind="stable")
                weights = np.tile(self.weights, len(work.steps))
                values.append(float(np.mean([np.quantile(row, q) for row in work.steps])))
                drawn = weighted_quantiles(flat[order], order, weights, q)
                place = np.argsort(order_of_draws(drawn, weights, flat))
                ordered = np.sort(work.steps, axis=1).mean(axis=0)
                quantiles = quantile_law(ordered, q, (place + 0.5) / place.size, of=of)
                draws.append(quantiles / max(values[-1], 1e-12))
            self._quantiles[q, of] = np.array(values), np.array(draws)
        return self._quantiles[q, of]


def _cost(work: ProblemWork) -> float:
    """Return the FLOPs of a problem, or its tokens where these are not known."""
    flops = float(work.flops.mean())
    return flops if np.isfinite(flops) else float(work.tokens.mean())


class ClosedForm(Metrics):
    """Metrics of all candidates of a space under one load.

    `spreads` are by how much, as a logarithm, nine in ten replays lie off at most, where a problem
    is slowed no more than its steps are. `off` is by how much, as a share, the latency of nine in
    ten replays lay off at most. It is None before any was compared.
    """

    rows = ALL

    def __init__(
        self, demands: Demands, *, concurrency: int | None, rate_per_s: float | None
    ) -> None:
        self.demands, self.space, self.rate_per_s = demands, demands.space, rate_per_s
        self.choosing, self.power_draws = demands.choosing, demands.power
        self.power_errors = demands.power_errors
        self._in_flight = concurrency or 1
        self._gather()
        if rate_per_s is None:
            in_flight = np.full(len(self.space), float(concurrency or 1))
            self.slowing = np.ones(len(self.space))
        else:
            in_flight = self._at_rate(rate_per_s)
        busy, steps = self._busy(in_flight)
        serving = self._serving(in_flight)
        self.part = part = self._at_once(in_flight, serving)
        self.run = part + (1 - part) * self.v_one / self.v  # of the work where all run at once
        self.latency_s = in_flight * busy
        self.step_s = busy / steps
        requests = self.v_one + part * (self.v - self.v_one)
        self._batch: Floats = np.maximum(requests / serving / steps, 1.0)
        self.waited = np.maximum(in_flight * steps - self.d, 0.0)
        self.device_s = busy * serving * self.space.devices / self.space.replicas
        self.outside = self._outside(in_flight)
        self._bias = {"latency_s": 0.0, "device_s": 0.0}
        self.spreads = {"latency_s": 0.25, "device_s": 0.25}
        self.off: float | None = None

    def _gather(self) -> None:
        demands, space = self.demands, self.space
        kind, work = space.kind, demands.work[space.kind]
        alone = ~np.isin(FEATURES, STEPS)
        additive, additive_one = (
            (demands.seconds[:, alone] * totals[demands.work][:, alone]).sum(axis=1)
            for totals in (demands.totals, demands.totals_one)
        )
        seconds, totals = Features(*demands.seconds.T), Features(*demands.totals[work].T)
        drafting = np.array([k.engine.speculative is not None for k in space.kinds])
        self.a, self.a_one = additive[kind], additive_one[kind]
        self.per_step = (seconds.step + drafting * seconds.draft_step)[kind]
        self.per_prompt = seconds.prefill_step[kind]
        self.experts_s, self.visited = seconds.experts[kind], demands.visited[kind]
        self.d = demands.steps[work]
        self.v = totals.requests
        self.v_one = Features(*demands.totals_one[work].T).requests
        self.prompts_alone = totals.prefill_step
        self.n = totals.prefill_requests
        self.prompt_tokens = demands.prompt_tokens[work]
        per_step = np.maximum(self.v, 1e-9)
        self.context = totals.kv_tokens / per_step
        batched = space.max_num_batched_tokens.astype(float)
        self.batched = np.where(batched > 0, batched, np.inf)
        self.tokens = totals.tokens
        room = [
            np.inf
            if k.engine.num_gpu_blocks is None
            else (k.engine.num_gpu_blocks - 1) * float(k.engine.block_size or DEFAULT_BLOCK)
            for k in space.kinds
        ]
        seqs = np.where(space.max_num_seqs > 0, space.max_num_seqs, np.inf)
        self.room = np.minimum(seqs, np.maximum(np.array(room)[kind] / self.context, 1.0))
        self.work = work

    def _serving(self, in_flight: Floats) -> Floats:
        """Return how many replicas have a sample of so many problems in flight."""
        return np.asarray(np.minimum(self.space.replicas, np.maximum(in_flight * self.n, 1.0)))

    def _busy(self, in_flight: Floats) -> tuple[Floats, Floats]:
        """Return what a problem takes of each replica's time, and the steps it takes of it."""
        spread = self._serving(in_flight)
        part = self._at_once(in_flight, spread)
        v = self.v_one + part * (self.v - self.v_one)
        a = self.a_one + part * (self.a - self.a_one)
        free = self.d / in_flight
        bound = np.maximum(v / self.room, self.tokens / self.batched) / spread
        high = np.maximum(free, bound)
        steps = high * ((free / high) ** SHARP + (bound / high) ** SHARP) ** (1 / SHARP)
        tight = (bound / steps) ** SHARP
        prompts = self.prompts_alone + tight * np.maximum(self.n / spread - self.prompts_alone, 0)
        prompts = np.maximum(prompts, self.prompt_tokens / self.batched / spread)
        prompts = np.minimum(prompts, steps)
        experts = 1 - (1 - self.visited) ** (self.tokens / spread / steps)
        per_step = self.per_step + self.experts_s * experts
        return a / spread + per_step * steps + self.per_prompt * prompts, steps

    def _at_once(self, in_flight: Floats, spread: Floats) -> Floats:
        """Return how many of a problem's samples run at a time: 0 for one, 1 for all, by logarithm.

        Samples that wait for a slot when a rule decides are never run.
        """
        slots = np.clip(self.room * spread / in_flight, 1.0, self.n)
        part = np.log(slots) / np.log(np.maximum(self.n, 1.0 + 1e-9))
        return np.where(self.n > 1, part, 1.0)

    def _at_rate(self, rate_per_s: float) -> Floats:
        """Return how many problems are in flight, the one that arrives among them."""
        most = float(len(self.space.problem_ids))
        low, high = np.ones(len(self.space)), np.full(len(self.space), most)
        for _ in range(ROUNDS):
            middle = np.sqrt(low * high)
            wanted = 1 + rate_per_s * middle * self._busy(middle)[0]
            fewer = wanted < middle
            high, low = np.where(fewer, middle, high), np.where(fewer, low, middle)
        # How much more than a slower step a problem is slowed: 1 / (1 - load), as queues grow.
        load = np.clip(rate_per_s * self._busy(high)[0], 0.0, 0.9)
        self.slowing = 1 / (1 - load)
        return high

    def _outside(self, in_flight: Floats) -> npt.NDArray[np.bool_]:
        """Return whether batches or contexts go beyond those recorded, as far as can be told."""
        high = Features(*self.demands.high[self.space.kind].T)
        requests = np.minimum(self.room, np.ceil(in_flight * self.n / self.space.replicas))
        if self.rate_per_s is not None:
            requests = np.minimum(self.room, 2 * requests)
        fewest = self.demands.fewest[self.space.kind]
        beyond = (requests > 1.1 * high.requests) | (FEWER * requests < fewest)
        return np.asarray(beyond | (requests * self.context > 1.1 * high.kv_tokens))

    @property
    def batch(self) -> Floats:
        return self._batch

    # -- metrics -------------------------------------------------------------------------------

    @cached_property
    def capacity_per_s(self) -> Floats:
        bound = np.maximum(self.v / self.room, self.tokens / self.batched) / self.space.replicas
        full = FULL * self.d / np.where(bound > 0, bound, np.inf)  # problems that fill the engines
        return np.asarray(1 / self._busy(np.maximum(full, len(self.space.problem_ids)))[0])

    def _values(self, name: str, rows: Rows = ALL) -> Floats:
        demands = self.demands
        if name == "accuracy":
            one = demands.right_one[self.work]
            values = one + self.part * (demands.right[self.work] - one)
        elif name in ("tokens", "flops"):
            per_work = demands.tokens if name == "tokens" else demands.flops
            values = per_work[self.work] * self.run
        elif name in ("device_s", "on_s"):
            values = self._paid()
            if self.rate_per_s is not None:
                values = np.maximum(values, self.space.devices / self.rate_per_s)
        elif name == "busy_s":
            values = self.device_s * np.exp(self._bias["device_s"])
        elif name == "load_per_s":
            values = np.full(len(self.space), self.rate_per_s or 0.0)
        else:
            values = self.latency_s
            if name != "latency_s":
                steps = demands.quantile(quantile_of(name), "all")[0][self.work]
                values = self.step_s * (steps + self.waited)
            values = values * np.exp(self._bias["latency_s"])
        return np.asarray(values[rows])

    def _paid(self) -> Floats:
        """Return device-seconds of a problem, idle ones with them, as `CandidateMetrics` does.

        At a rate they are those at the capacity, the fewest that there can be.
        """
        busy = np.exp(self._bias["device_s"])
        if self.rate_per_s is not None:
            return np.asarray(self.space.devices / self.capacity_per_s * busy)
        shared = self.space.devices * self.latency_s / self._in_flight
        shared = shared * np.exp(self._bias["latency_s"])
        return np.asarray(np.where(self.space.replicas > 1, shared, self.device_s * busy))

    def _draws(self, name: str, rows: Rows, of: Of) -> Floats:
        demands, work = self.demands, self.work[rows]
        if name == "accuracy":
            accuracy = demands.accuracy[work]
            # Only a rule's accuracy depends on how many samples run at a time.
            part = self.part[rows]
            some = np.flatnonzero(demands.varies[work] & (part < 1))
            if len(some):
                one = demands.accuracy_one[work[some]]
                accuracy[some] = one + part[some][:, None] * (accuracy[some] - one)
            return np.asarray(accuracy)
        if name in EXACT:
            values = self._values(name)[rows][:, None]
            return np.broadcast_to(values, (len(values), DRAWS))
        return self._drawn(name, rows, of, lambda draws: draws)

    def _drawn(self, name: str, rows: Rows, of: Of, some: Callable[[Floats], Floats]) -> Floats:
        """Return a metric [rows, draws] from `some` of the draws of what it is made of."""
        demands = self.demands
        factor = some(demands.factors)[self.kind[rows], self.outside[rows].astype(np.int64)]
        if name.startswith("latency") and self.rate_per_s is not None:
            factor = factor ** self.slowing[rows][:, None]
        if name.startswith("latency_p"):
            relative = demands.quantile(quantile_of(name), of)[1]
        else:
            means = demands.latency if name == "latency_s" else demands.device
            relative = farther(1.0, means, of)
        paid = name in ("device_s", "on_s")
        values = self._paid() if paid else self._values(name)
        drawn = values[rows][:, None] * factor * some(relative)[self.work[rows]]
        if paid and self.rate_per_s is not None:
            drawn = np.maximum(drawn, (self.space.devices[rows] / self.rate_per_s)[:, None])
        return np.asarray(drawn)

    def extremes(self, name: str, rows: Ints, of: Of) -> tuple[Floats, Floats]:
        demands, work = self.demands, self.work[rows]
        if name == "accuracy":
            both = np.concatenate([demands.accuracy, demands.accuracy_one], axis=1)
            return np.asarray(both.min(axis=1)[work]), np.asarray(both.max(axis=1)[work])
        if name == "energy_j":
            return super().extremes(name, rows, of)
        if name in EXACT:
            return (self.values(name)[rows],) * 2
        low, high = (
            self._drawn(name, rows, of, partial(pick, axis=-1, keepdims=True))[:, 0]
            for pick in (np.min, np.max)
        )
        return low, high

    def chance(self, met: Bools) -> Floats:
        return np.asarray(met.mean(axis=-1))

    def ties(self) -> list[Floats]:
        """Return better metrics, then what was run, then its engine, then fewer replicas.

        Latencies within a ten-thousandth are equal, as those of limits that never bind.
        """
        latency = np.round(np.log(np.maximum(self.latency_s, 1e-12)) * 1e4)
        return [latency, tied(-self.values("accuracy")), self.space.preferred]

    def spread(self, name: str) -> Floats:
        if name in EXACT:
            return np.zeros(len(self.space))
        if name.startswith("latency"):
            return np.minimum(self.spreads["latency_s"] * self.slowing, 2.0)
        return np.full(len(self.space), min(self.spreads["device_s"], 2.0))

    def learn(self, rows: Sequence[int], replayed: dict[str, Floats]) -> None:
        """Compare with the replay: its median log ratio is the bias, the rest the spread."""
        compared = np.array(rows, dtype=np.int64)
        for name, values in replayed.items():
            closed = self.latency_s if name == "latency_s" else self.device_s
            errors = np.log(values / closed[compared])
            if name == "latency_s":
                errors = errors / self.slowing[compared]
            errors = errors[np.isfinite(errors)]
            if len(errors):
                self._bias[name] = float(np.median(errors))
                rest = np.abs(errors - self._bias[name])
                self.spreads[name] = float(np.quantile(rest, 0.9))
        off = np.abs(np.log(replayed["latency_s"] / self._values("latency_s")[compared]))
        off = off[np.isfinite(off)]
        if off.size:
            self.off = float(np.expm1(np.quantile(off, min(LEVEL * (1 + 1 / off.size), 1.0))))
