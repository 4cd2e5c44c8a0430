"""What each candidate would give: replayed latency and device time, resampled accuracy, FLOPs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advisor.evidence import Evidence, Run, Sample
from advisor.load import Limits, Load, Replayed
from advisor.models.step_time import Z95, StepLaw, StepTimeModel
from advisor.space import Candidate, Pool, Space
from advisor.workload import Workload
from traces.schema import ModelFacts, Policy
from traces.votes import majority_curve

Floats = npt.NDArray[np.float64]

REPLAYS = 3  # draws of n of the N recorded samples
PASSES = 2  # over the problems that arrive at a rate, each with its own draw
LEAD, TAIL = 0.5, 0.25  # of a pass, before and after, so that the load is steady in between
OVERLOAD = 1.25  # beyond this much of its capacity an engine is not replayed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One candidate, per problem: [problems], or [speeds, replays, problems] for what is replayed.

    `speeds` are the factors on step time at which it was replayed; with a number of problems in
    flight there is one, since all times scale with it. `device_s` is of the busy time.
    `capacity_per_s` is how many problems per second it can serve; without `keeps_up` it was not
    replayed at the rate, and its latency is that of all problems at once.
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
    totals: Floats
    requests_per_step: float


class Outcomes:
    """Computes outcomes for a load; replays that cannot differ are made once."""

    def __init__(self, evidence: Evidence, space: Space, model: StepTimeModel, seed: int) -> None:
        self.evidence, self.space, self.model, self.seed = evidence, space, model, seed
        self._votes: dict[int, Floats] = {}
        self._loads: dict[Hashable, list[Load]] = {}
        self._draws: dict[Hashable, list[list[Load]]] = {}
        self._flat: dict[Hashable, list[Workload]] = {}
        self._replays: dict[Hashable, list[tuple[int, list[Replayed]]]] = {}
        self._accuracy: dict[Hashable, Floats] = {}
        self._work: dict[Hashable, tuple[Floats, Floats]] = {}

    def compute(self, *, concurrency: int | None, rate_per_s: float | None) -> list[Outcome]:
        """Return the outcome of every candidate at a load."""
        return [
            self._outcome(candidate, concurrency, rate_per_s) for candidate in self.space.candidates
        ]

    def _outcome(
        self, candidate: Candidate, concurrency: int | None, rate_per_s: float | None
    ) -> Outcome:
        law = self.model.law(candidate.engine)
        devices = candidate.engine.num_devices
        count = len(self.space.problem_ids)
        speeds = np.ones(1)
        keeps_up = True
        if rate_per_s is None:
            runs = [self._closed(candidate, law, concurrency or 1)]
            busy = float(np.mean([r.busy_s for r in runs[0]]))
            capacity = count / busy
            device = [[r.busy_share_s * devices for r in runs[0]]]
        else:
            full = self._closed(candidate, law, count)
            capacity = count / float(np.mean([r.busy_s for r in full]))
            keeps_up = rate_per_s <= OVERLOAD * capacity
            if keeps_up:
                speeds = np.array([1.0, np.exp(law.sigma * Z95)])
                runs = [self._open(candidate, law, rate_per_s, float(s)) for s in speeds]
            else:
                runs = [full]
            device = [[r.busy_share_s * devices for r in each] for each in runs]
        first = runs[0]
        peaks = {name: max(r.peak[name] for r in first) for name in first[0].peak}
        tokens, flops = self._tokens_and_flops(candidate)
        totals = np.mean([r.totals for r in first], axis=0)
        return Outcome(
            candidate=candidate,
            law=law,
            accuracy=self._correctness(candidate.pool, candidate.policy),
            tokens=tokens,
            flops=flops,
            speeds=speeds,
            latency_s=np.array([[r.latency_s for r in each] for each in runs]),
            device_s=np.array(device),
            capacity_per_s=capacity,
            keeps_up=keeps_up,
            extrapolated=not law.within(peaks),
            totals=totals,
            requests_per_step=float(totals[3] / totals[0]),
        )

    # -- replays -------------------------------------------------------------------------------

    def _drawn(self, candidate: Candidate) -> list[list[Load]]:
        """Return the problems with n of their recorded samples each, several times."""
        name = (candidate.pool.key, candidate.policy.n)
        if name not in self._draws:
            self._draws[name] = self._draw(candidate)
        return self._draws[name]

    def _draw(self, candidate: Candidate) -> list[list[Load]]:
        loads = self._pool_loads(candidate)
        n = candidate.policy.n
        if all(len(load.samples) == n for load in loads):
            return [loads]
        drawn = []
        for number in range(REPLAYS):
            rng = np.random.default_rng([self.seed, 2, n, number])
            whole = []
            for load in loads:
                chosen = np.sort(rng.permutation(len(load.samples))[:n])
                samples = tuple(load.samples[i] for i in chosen)
                whole.append(dataclasses.replace(load, samples=samples))
            drawn.append(whole)
        return drawn

    def _workloads(self, candidate: Candidate) -> list[Workload]:
        name = (candidate.pool.key, candidate.policy.n)
        if name not in self._flat:
            self._flat[name] = [Workload.from_loads(loads) for loads in self._drawn(candidate)]
        return self._flat[name]

    def _pool_loads(self, candidate: Candidate) -> list[Load]:
        key = candidate.pool.key
        if key not in self._loads:
            loads = candidate.pool.loads(self.space.problem_ids)
            assert loads is not None  # space drops such a candidate
            self._loads[key] = loads
        return self._loads[key]

    def _closed(self, candidate: Candidate, law: StepLaw, in_flight: int) -> list[Replayed]:
        """Replay with a number of problems in flight."""
        limits = candidate.limits()

        def run() -> list[Replayed]:
            return [
                _replay(workload, law.seconds, limits, concurrency=in_flight)
                for workload in self._workloads(candidate)
            ]

        return self._once(candidate, ("closed", in_flight), run)

    def _once(
        self, candidate: Candidate, load: Hashable, run: Callable[[], list[Replayed]]
    ) -> list[Replayed]:
        """Replay unless an engine with a higher limit never ran more than this one may.

        The candidates come with the highest `max_num_seqs` first.
        """
        engine = dataclasses.replace(candidate.engine, max_num_seqs=None)
        name = (candidate.pool.key, candidate.policy.n, engine, load)
        known = self._replays.setdefault(name, [])
        seqs = candidate.engine.max_num_seqs or sys.maxsize
        for highest, results in known:
            if max(each.peak["requests"] for each in results) <= seqs <= highest:
                return results
        known.append((seqs, run()))
        return known[-1][1]

    def _open(
        self, candidate: Candidate, law: StepLaw, rate_per_s: float, speed: float
    ) -> list[Replayed]:
        """Replay with problems arriving at random, at the same times for all candidates."""
        return self._once(
            candidate,
            ("open", rate_per_s, speed),
            lambda: self._replay_open(candidate, law, rate_per_s, speed),
        )

    def _replay_open(
        self, candidate: Candidate, law: StepLaw, rate_per_s: float, speed: float
    ) -> list[Replayed]:
        count = len(self.space.problem_ids)
        lead, tail = int(np.ceil(LEAD * count)), int(np.ceil(TAIL * count))
        rng = np.random.default_rng([self.seed, 3])
        passes = [rng.permutation(count) for _ in range(PASSES)]
        order = np.concatenate([rng.permutation(count)[:lead], *passes, passes[0][:tail]])
        arrivals = np.cumsum(rng.exponential(1 / rate_per_s, len(order)))
        drawn = self._drawn(candidate)
        loads = [drawn[max(i - lead, 0) // count % len(drawn)][p] for i, p in enumerate(order)]
        whole = _replay(
            Workload.from_loads(loads, arrivals), law.seconds * speed, candidate.limits()
        )
        return [
            _pass(whole, problems, lead + number * count) for number, problems in enumerate(passes)
        ]

    # -- accuracy ------------------------------------------------------------------------------

    def _correctness(self, pool: Pool, policy: Policy) -> Floats:
        """Return each problem's expected correctness, the mean over the runs that can say."""
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
            rows = [i for i, name in enumerate(self.space.problem_ids) if name in run.problems]
            for row in rows:
                samples = run.problems[self.space.problem_ids[row]].samples
                found[row] = majority_curve(
                    [s.answer for s in samples], [s.correct for s in samples]
                )
            self._votes[id(run)] = found
        return self._votes[id(run)]

    # -- tokens and FLOPs ----------------------------------------------------------------------

    def _tokens_and_flops(self, candidate: Candidate) -> tuple[Floats, Floats]:
        """Return generated tokens and FLOPs of each problem, expected over its samples."""
        limits, setting = candidate.limits(), candidate.engine.speculative
        draft = None if setting is None or setting.model is None else setting.model
        size = limits.block_size if limits.prefix_caching else 0
        name = (candidate.pool.key, candidate.policy.n, candidate.facts, setting, size)
        if name not in self._work:
            facts = candidate.facts
            helper = self.evidence.models.get(draft) if draft else None
            pairs = [
                _work(load, candidate.policy.n, size, facts, helper)
                for load in self._pool_loads(candidate)
            ]
            tokens, flops = np.array(pairs).T
            self._work[name] = tokens, flops
        return self._work[name]


def _replay(
    workload: Workload, seconds: Floats, limits: Limits, *, concurrency: int | None = None
) -> Replayed:
    from advisor.models.step_cost import linear_cost
    from advisor.replay import replay  # numba takes a third of a second to load

    return replay(workload, linear_cost(seconds), limits, concurrency=concurrency)


def _pass(whole: Replayed, problems: npt.NDArray[np.int64], start: int) -> Replayed:
    """Return one pass over the problems, in their own order."""
    latency, share = np.empty(len(problems)), np.empty(len(problems))
    latency[problems] = whole.latency_s[start : start + len(problems)]
    share[problems] = whole.busy_share_s[start : start + len(problems)]
    return dataclasses.replace(whole, latency_s=latency, busy_share_s=share)


def _work(
    load: Load, n: int, block_size: int, facts: ModelFacts, draft: ModelFacts | None
) -> tuple[float, float]:
    """Return generated tokens and FLOPs of a problem with n samples like the recorded ones.

    Forwarded are the prompt that is not cached (once, and its last partial block for the other
    samples), every generated token but the last, and with speculation the rejected drafts too.
    """
    prompt = load.prompt_tokens
    first = min(load.cached_tokens, prompt - 1) if block_size else 0
    shared = max(first, (prompt - 1) // block_size * block_size) if block_size else 0
    starts = np.array([first] + [shared] * (n - 1))
    tokens = float((prompt - starts).sum())
    query = float((prompt * (prompt + 1) / 2 - starts * (starts + 1) / 2).sum())
    decoded = [_decoded(sample, prompt) for sample in load.samples]
    forwarded, context, drafted = np.mean(decoded, axis=0) * n
    flops = facts.matmul_flops(tokens + forwarded) + facts.attention_flops(query + context)
    if draft is not None:
        flops += draft.matmul_flops(tokens + drafted)
    generated = n * float(np.mean([sample.output_tokens for sample in load.samples]))
    return generated, flops


def _decoded(sample: Sample, prompt: int) -> tuple[float, float, float]:
    """Return tokens forwarded after the prompt, the context they attend to, tokens drafted."""
    if sample.scheduled is None or sample.advance is None:
        count = sample.output_tokens - 1
        return count, count * prompt + count * (count + 1) / 2, 0.0
    scheduled = sample.scheduled
    before = prompt + np.cumsum(sample.advance) - sample.advance
    context = scheduled * before + scheduled * (scheduled + 1) / 2
    return float(scheduled.sum()), float(context.sum()), float((scheduled - 1).sum())
