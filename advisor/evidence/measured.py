"""Which configurations were run, and what was measured of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import polars as pl

from advisor.evidence.keys import DEFAULT_BLOCK, any_worker
from advisor.evidence.runs import RecordedRun
from traces.errors import TtscopeError
from traces.live.watched import only_watched
from traces.recording.reader import Recording
from traces.schema.advice import Load, Measured
from traces.schema.engine import Config, EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.tts.policy import AS_SENT, Policy
from traces.summary.run import Run, at_price, summarise


@lru_cache(maxsize=4096)
def run_key(engine: EngineConfig, policy: Policy) -> Config:
    """Return what all runs of a configuration share, however its settings were written.

    Cleared is what the machine's memory decides (blocks, the context allowed), as it changes no
    step. A setting that is not known counts as vLLM's default. One sample is chosen by any method.
    """
    drafts = engine.speculative
    if drafts is not None and drafts.model is not None:
        drafts = dataclasses.replace(drafts, model=_place(drafts.model))
    same = dataclasses.replace(
        engine,
        model=_place(engine.model),
        dtype=engine.dtype or "auto",
        kv_cache_dtype=engine.kv_cache_dtype or "auto",
        max_model_len=None,
        block_size=engine.block_size or DEFAULT_BLOCK,
        num_gpu_blocks=None,
        gpu_memory_utilization=None,
        enable_prefix_caching=engine.enable_prefix_caching is not False,
        enforce_eager=engine.enforce_eager is True,
        speculative=drafts,
        num_gpus=engine.num_devices,
        other=any_worker(engine),
    )
    if policy.n == 1 and policy.method in ("greedy", "majority"):
        policy = dataclasses.replace(policy, method="greedy")
    return Config(engine=same, policy=dataclasses.replace(policy, rule=tuple(sorted(policy.rule))))


def _one_of_any(engine: EngineConfig) -> EngineConfig:
    return dataclasses.replace(engine.one_replica(), other=any_worker(engine))


def _without_limits(key: Config) -> Config:
    engine = dataclasses.replace(
        key.engine,
        max_num_seqs=None,
        max_num_batched_tokens=None,
        data_parallel_size=1,
        num_gpus=None,
    )
    return dataclasses.replace(key, engine=engine)


def _place(model: str) -> str:
    """Return a model's folder in one spelling; a name stays as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model.rstrip("/")


ALIKE = 0.02  # by which rates of one load differ
Under = tuple[int | None, float | None]  # a load: problems in flight, or problems per second


@dataclass(frozen=True, kw_only=True)
class Made:
    """One engine and one policy with which a recording decided problems.

    `rate_per_s` is that of traffic that was watched, None for problems of one's own. `problem_ids`
    are those of it that a problem of the advice is like, None for all: none where its traffic is
    drawn, so that nothing measured can stand beside what is predicted.
    """

    recording: Recording
    engine: EngineConfig
    policy: Policy
    rate_per_s: float | None = None
    problem_ids: frozenset[str] | None = None

    @property
    def load(self) -> Under:
        """Problems in flight (one where that is not told), or problems per second."""
        manifest = self.recording.manifest
        if self.rate_per_s is not None or only_watched(self.recording):
            return None, self.rate_per_s
        if manifest.rate_per_s is not None:
            return None, manifest.rate_per_s
        return manifest.concurrency or 1, None


def runs_watched(
    recording: Recording, runs: Sequence[RecordedRun], rate_per_s: float | None
) -> list[Made]:
    """Return what ran while a deployment was watched, of the runs that are learned from.

    `rate_per_s` is that of its traffic: spans may tell of a part alone.
    """
    kept: dict[EngineConfig, frozenset[str]] = {}
    for run in runs:
        kept[run.engine] = frozenset() if run.drawn else frozenset(run.problems)
    return [
        Made(
            recording=recording.afresh(),
            engine=engine,
            policy=AS_SENT,
            rate_per_s=rate_per_s,
            problem_ids=names,
        )
        for engine, names in kept.items()
    ]


def runs_in(recording: Recording) -> list[Made]:
    """Return the configurations with which a recording decided problems."""
    manifest = recording.manifest
    policies = manifest.policies
    decided = pl.col("decided_at").is_not_null() | pl.lit("imported" in manifest.provenance)
    problems = recording.problems.filter(decided, pl.col("error").is_null())
    keys = problems.select("engine", "policy").unique(maintain_order=True).iter_rows()
    return [
        Made(
            recording=recording.afresh(),
            engine=manifest.engines[engine],
            policy=policies[policy],
        )
        for engine, policy in keys
        if engine in manifest.engines and policy in policies
    ]


class RunsMade:
    """All that was run, by any method, also by those whose samples no replay can draw."""

    def __init__(self, made: Sequence[Made] = ()) -> None:
        self.engines = frozenset(each.engine for each in made)
        self._one_of_any = frozenset(map(_one_of_any, self.engines))
        self._made: dict[Config, list[Made]] = {}
        for each in made:
            self._made.setdefault(run_key(each.engine, each.policy), []).append(each)
        self._whatever_limits = {_without_limits(key) for key in self._made}
        self._read: dict[tuple[Path, EngineConfig, Policy], Run | None] = {}

    def has(self, engine: EngineConfig, policy: Policy) -> bool:
        return run_key(engine, policy) in self._made

    def has_engine(self, engine: EngineConfig) -> bool:
        """Return whether an engine ran with its limits, by any number of replicas, any worker."""
        return _one_of_any(engine) in self._one_of_any

    def has_sibling(self, engine: EngineConfig, policy: Policy) -> bool:
        """Return whether it was run with any limits of the scheduler, by any number of replicas."""
        return _without_limits(run_key(engine, policy)) in self._whatever_limits

    def has_under(self, engine: EngineConfig, policy: Policy, load: Under) -> bool:
        """Return whether a run of a configuration would tell nothing new.

        At a rate any run counts, as `ttscope record` sends problems in flight.
        """
        if load[1] is not None:
            return self.has(engine, policy)
        made = self._made.get(run_key(engine, policy), ())
        return any(same_load(each.load, load) for each in made)

    def served(self, model: str) -> list[Made]:
        """Return the runs of servers of a model."""
        every = [made for several in self._made.values() for made in several]
        return [
            made
            for made in every
            if made.engine.mode == "server" and _place(made.engine.model) == _place(model)
        ]

    def measured(
        self, engine: EngineConfig, policy: Policy, load: Under, price: float | None
    ) -> Measured | None:
        """Return what the newest run of a configuration measured, one at the load if there is any.

        Its cost is at a price, in USD per device-hour. None where it was not run, or its recording
        cannot be read any more.
        """
        made = self._made.get(run_key(engine, policy), [])
        at_load = [each for each in made if same_load(each.load, load)]
        for each in sorted(at_load or made, key=_begun, reverse=True):
            run = self._run(each)
            if run is not None:
                in_flight, rate = each.load
                return Measured(
                    recording=run.recording,
                    problems=run.problems,
                    concurrency=in_flight,
                    rate_per_s=rate,
                    estimates=measured_estimates(at_price(run, price, rate)),
                    at_load=bool(at_load),
                    runs=len(at_load or made),
                )
        return None

    def _run(self, made: Made) -> Run | None:
        name = (made.recording.path, made.engine, made.policy)
        if name not in self._read:
            run = _run_of(made)
            if run is not None:
                run = dataclasses.replace(run, rows=None, sample_rows=None, step_rows=None)
            self._read[name] = run
        return self._read[name]


def _begun(made: Made) -> int:
    return made.recording.manifest.clock_start.unix_ns


def same_load(one: Under, two: Under) -> bool:
    """Whether two loads are the same, or rates near each other."""
    (in_flight, rate), (wanted, at) = one, two
    if rate is None or at is None:
        return (in_flight, rate) == (wanted, at)
    return abs(rate / at - 1) < ALIKE


def _run_of(made: Made) -> Run | None:
    if made.problem_ids is not None and not made.problem_ids:
        return None
    try:
        runs = summarise(made.recording.afresh())
    except TtscopeError:
        return None
    pair = (made.engine, made.policy)
    run = next((each for each in runs if (each.engine, each.policy or AS_SENT) == pair), None)
    if run is not None and made.problem_ids is not None:
        run = run.among(made.problem_ids)
    return run if run is not None and run.problems else None


def latencies(made: Made) -> dict[str, float] | None:
    """Return the seconds of each problem, None where they are not known any more."""
    run = _run_of(made)
    if run is None or run.rows is None:
        return None
    rows = run.rows.drop_nulls("latency_s").select("problem_id", "latency_s")
    return {str(name): float(seconds) for name, seconds in rows.iter_rows()}


def measured_estimates(run: Run) -> Mapping[str, Estimate | None]:
    """Return what was measured of a run under the names of a pick's estimates."""
    return {
        "accuracy": run.accuracy,
        "latency_s": run.latency_s["mean"],
        "latency_p95_s": run.latency_s["p95"],
        "cost_usd": run.cost_usd_per_problem,
        "device_s": run.device_s_per_problem,
        "energy_j": run.energy_j.per_problem,
        "tokens": run.tokens_per_problem,
        "flops": run.flops_per_problem,
    }


OF_LOAD = ("latency_s", "latency_p95_s", "cost_usd", "device_s", "energy_j")


def measured_beside(run: Run, load: Load | None, price: float | None) -> Measured:
    """Return what was measured of a run, as it stands beside what is predicted for a load.

    Its device time is what is paid at its rate, and its cost is at a price, in USD per device-hour.
    What depends on the load is None where it ran under another one. An unknown load is no other.
    """
    own = run.load or Load(concurrency=None, rate_per_s=None)
    in_flight = own.concurrency if own.rate_per_s is None else None
    at_load = load is None or (in_flight, own.rate_per_s) == (None, None)
    if load is not None and not at_load:
        at_load = same_load((in_flight, own.rate_per_s), (load.concurrency, load.rate_per_s))
    estimates = measured_estimates(at_price(run, price, own.rate_per_s))
    return Measured(
        recording=run.recording,
        problems=run.problems,
        concurrency=in_flight,
        rate_per_s=own.rate_per_s,
        estimates=estimates if at_load else {**estimates, **dict.fromkeys(OF_LOAD)},
        at_load=at_load,
    )
