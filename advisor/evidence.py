"""Recordings -> what the models learn from: step tables, and samples by problem.

Only what ended is evidence: problems in flight, problems with an error or a missing sample, steps
that were profiled and samples that are not answers (scorers, drafts) are left out. Recordings of
the same configuration are repeats of one another; recordings of different workloads are refused,
because their problems cannot be paired.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from advisor.composition import composition_matrix
from advisor.host_work import with_host_work
from advisor.models.architectures import refusal
from advisor.verify_steps import verify_steps
from traces.energy import mean_power_w
from traces.errors import RecordingError, UsageError
from traces.manifest import WorkloadFacts
from traces.recording import Recording
from traces.schema import EngineConfig, ModelFacts, Policy, Speculative
from traces.tables import COMPOSITION

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_USED = (
    "engine", "policy", "problem_id", "sample_index", "prompt_tokens", "cached_tokens",
    "output_tokens", "end", "error", "cancelled_by", "answer", "correct", "finish_reason",
    "drafted_per_step", "accepted_per_step",
)  # fmt: skip
FIXED_N = ("greedy", "majority", "best_of_n")  # every sample runs to its end: nothing is selected


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """The steps of one engine in one recording: `composition` [steps, features] and seconds.

    `configuration` names what was run there (engines, policies, load): recordings of the same are
    repeats.
    """

    recording: str
    configuration: str
    engine: EngineConfig
    facts: ModelFacts
    composition: Floats
    seconds: Floats


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A recorded sample: its length, its vote, and how speculation went.

    `scheduled` and `advance` are per verify step after the prompt: tokens forwarded (one plus the
    drafted) and tokens kept (one plus the accepted, summing to `output_tokens` - 1); None without
    speculation. `by_length`: it ended because it was as long as allowed. `think_tokens` end with
    the mark that closes thinking, None where there is none.
    """

    output_tokens: int
    answer: str | None
    correct: bool | None
    scheduled: Ints | None = None
    advance: Ints | None = None
    by_length: bool = False
    think_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProblemRun:
    """One problem as one run answered it; `latency_s` is from arrival to decision.

    `cached_tokens` of its prompt came from the prefix cache for the sample that had the fewest,
    which is what it shares with other problems; `prompt_blocks` name its blocks where an import
    tells them. `arrival_ns` is unix time. `latency_s` is nan where an import does not tell it.
    `indices` are the samples' own.
    """

    problem_id: str
    arrival_ns: int
    prompt_tokens: int
    cached_tokens: int
    latency_s: float
    samples: tuple[Sample, ...]
    indices: tuple[int, ...]
    prompt_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """The problems of one (engine, policy) in one recording."""

    recording: str
    engine: EngineConfig
    policy: Policy
    problems: Mapping[str, ProblemRun]
    concurrency: int | None
    rate_per_s: float | None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that the advisor knows, from all recordings."""

    recordings: tuple[str, ...]
    workload: WorkloadFacts | None
    models: Mapping[str, ModelFacts]
    steps: tuple[StepTable, ...]
    runs: tuple[Run, ...]
    problem_ids: tuple[str, ...]
    watts: Mapping[EngineConfig, float]
    price_usd_per_device_hour: float | None
    left_out: int

    @property
    def load(self) -> tuple[int | None, float | None]:
        """The load most recorded: (problems in flight, None) or (None, problems per second)."""
        loads = Counter((run.concurrency, run.rate_per_s) for run in self.runs)
        top = max(loads.values())
        in_flight, rate = max(
            (load for load, count in loads.items() if count == top),
            key=lambda load: (load[0] or 0, load[1] or 0.0),
        )
        if in_flight is None and rate is None:
            return 1, None
        return (None, rate) if rate is not None else (in_flight, None)


def law_key(engine: EngineConfig) -> EngineConfig:
    """Return what the time of a step depends on beside its composition.

    The limits of the scheduler and of the cache decide which steps are made, not how long one of
    a given composition takes; they are cleared.
    """
    return dataclasses.replace(
        engine,
        max_model_len=None,
        max_num_seqs=None,
        max_num_batched_tokens=None,
        num_gpu_blocks=None,
        gpu_memory_utilization=None,
        enable_prefix_caching=None,
    )


def gather(recordings: Sequence[Recording], *, judged: bool = True, timed: bool = True) -> Evidence:
    """Read what the recordings hold.

    `judged` says that samples must be right or wrong, `timed` that there must be steps.

    Raises UsageError when there are none or they answer different workloads, and RecordingError
    when there is nothing to learn from or a model is of a kind that no replay was checked for.
    """
    if not recordings:
        raise UsageError("advise: name at least one recording")
    workload = _same_workload(recordings)
    steps: list[StepTable] = []
    runs: list[Run] = []
    models: dict[str, ModelFacts] = {}
    watts: dict[EngineConfig, list[float]] = {}
    left_out = 0
    for recording in recordings:
        models.update(recording.manifest.models)
        for key, engine in recording.manifest.engines.items():
            steps.extend(_steps(recording, key, engine))
            power = mean_power_w(recording, key)
            if power is not None:
                watts.setdefault(law_key(engine), []).append(power)
        found, dropped = _runs(recording)
        runs.extend(found)
        left_out += dropped
    names = ", ".join(recording.name for recording in recordings)
    if timed and not steps:
        tables = "" if judged else ", or give operator tables to replay on (--operators)"
        raise RecordingError(
            f"{names}: no engine step to learn from; record with the step probe{tables}"
        )
    if not runs:
        raise RecordingError(f"{names}: no finished problem with all its samples; record again")
    if judged and not any(s.correct is not None for run in runs for s in _samples(run)):
        raise RecordingError(f"{names}: no sample is marked right or wrong; record with answers")
    prices = [r.manifest.price_usd_per_device_hour for r in recordings]
    given = {price for price in prices if price is not None}
    return Evidence(
        recordings=tuple(recording.name for recording in recordings),
        workload=workload,
        models=models,
        steps=tuple(steps),
        runs=tuple(runs),
        problem_ids=tuple(sorted({name for run in runs for name in run.problems})),
        watts={key: float(np.mean(values)) for key, values in watts.items()},
        price_usd_per_device_hour=given.pop() if len(given) == 1 else None,
        left_out=left_out,
    )


def _samples(run: Run) -> Iterable[Sample]:
    return (sample for problem in run.problems.values() for sample in problem.samples)


def _same_workload(recordings: Sequence[Recording]) -> WorkloadFacts | None:
    first = recordings[0]
    for other in recordings[1:]:
        ours, theirs = first.manifest.workload, other.manifest.workload
        if (ours and ours.hash) != (theirs and theirs.hash):
            raise UsageError(
                f"{first.name} and {other.name} answer different problems "
                f"({ours.name if ours else 'unknown'} and {theirs.name if theirs else 'unknown'}); "
                "advise on recordings of one workload"
            )
    return first.manifest.workload


def _steps(recording: Recording, key: str, engine: EngineConfig) -> list[StepTable]:
    facts = recording.manifest.models.get(engine.model)
    refused = None if facts is None else refusal(facts, engine)
    if refused is not None:
        raise RecordingError(f"{recording.name}: {refused}")
    steps = recording.steps.filter(pl.col("engine") == key)
    frame = (
        with_host_work(steps, recording, key, engine)
        .filter(~pl.col("profiled").fill_null(False))
        .drop_nulls(["seconds", *COMPOSITION])
        .filter(pl.col("seconds") > 0, pl.col("prefill_requests") + pl.col("decode_requests") > 0)
    )
    if frame.is_empty():
        return []
    if facts is None:
        raise RecordingError(f"{recording.name}: holds no facts of the model {engine.model}")
    return [
        StepTable(
            recording=recording.name,
            configuration=_configuration(recording),
            engine=engine,
            facts=facts,
            composition=composition_matrix(frame, speculative=engine.speculative is not None),
            seconds=frame["seconds"].to_numpy().astype(float),
        )
    ]


def _configuration(recording: Recording) -> str:
    manifest = recording.manifest
    parts = [*sorted(manifest.engines), *sorted(manifest.policies)]
    workload = None if manifest.workload is None else manifest.workload.hash
    return " ".join(map(str, [*parts, manifest.concurrency, manifest.rate_per_s, workload]))


def _runs(recording: Recording) -> tuple[list[Run], int]:
    """Return the runs of a recording and how many problems were left out."""
    manifest = recording.manifest
    imported = "imported" in manifest.provenance  # tells of what has ended, perhaps not when
    ended = (
        (pl.col("end").is_not_null() | pl.lit(imported))
        & pl.col("error").is_null()
        & ~pl.col("timed_out").fill_null(False)
    )
    problems = recording.problems
    kept = problems.filter(ended)
    answers = recording.samples.filter(pl.col("role").fill_null("sample") == "sample")
    forced = _forced(recording.samples)
    # A problem is written once per run; the last attempt stands.
    kept = kept.unique(subset=["engine", "policy", "problem_id"], keep="last", maintain_order=True)
    samples: dict[tuple[str, str, str], dict[int, dict[str, object]]] = {}
    for row in answers.select(_USED).iter_rows(named=True):
        name = (row["engine"], row["policy"], row["problem_id"])
        index = row["sample_index"]
        samples.setdefault(name, {})[index] = _with_forced(row, forced.get((*name, index), ()))
    found: dict[tuple[str, str], dict[str, ProblemRun]] = {}
    for row in kept.sort("arrival").iter_rows(named=True):
        policy = manifest.policies.get(row["policy"])
        engine = manifest.engines.get(row["engine"])
        if policy is None or engine is None or policy.method not in FIXED_N:
            continue
        own = samples.get((row["engine"], row["policy"], row["problem_id"]), {})
        run = _problem_run(row, list(own.values()), policy.n, engine.speculative, imported=imported)
        if run is not None:
            found.setdefault((row["engine"], row["policy"]), {})[run.problem_id] = run
    runs = [
        Run(
            recording=recording.name,
            engine=manifest.engines[engine_key],
            policy=manifest.policies[policy_key],
            problems=group,
            concurrency=manifest.concurrency,
            rate_per_s=manifest.rate_per_s,
        )
        for (engine_key, policy_key), group in found.items()
    ]
    total = problems.select("engine", "policy", "problem_id").n_unique() if len(problems) else 0
    return runs, total - sum(len(run.problems) for run in runs)


def _forced(samples: pl.DataFrame) -> dict[tuple[str, str, str, int], list[dict[str, object]]]:
    """Return by sample the rows that go on from it where its thought was closed at a budget."""
    rows = samples.filter(pl.col("role") == "forced").unique(
        ["engine", "policy", "problem_id", "sample_index"], keep="last", maintain_order=True
    )
    found: dict[tuple[str, str, str, int], list[dict[str, object]]] = {}
    for row in rows.sort("sample_index").iter_rows(named=True):
        key = (row["engine"], row["policy"], row["problem_id"], row["parent_sample"])
        found.setdefault(key, []).append(row)
    return found


def _with_forced(
    row: dict[str, object], forced: Sequence[Mapping[str, object]]
) -> dict[str, object]:
    """Return a sample's row with the tokens and the drafts of its forced answer behind its own.

    The tokens of both are generated one after the other; what it takes to read the thought again,
    which the prefix cache holds, is not in it.
    """
    if not forced or _int(row["output_tokens"]) is None:
        return row
    whole = dict(row)
    whole["output_tokens"] = sum(_int(each["output_tokens"]) or 0 for each in (row, *forced))
    for name in ("drafted_per_step", "accepted_per_step"):
        lists = [each[name] for each in (row, *forced)]
        known = [each for each in lists if isinstance(each, list)]
        whole[name] = [n for each in known for n in each] if len(known) == len(lists) else None
    return whole


def _problem_run(
    row: Mapping[str, object],
    samples: list[dict[str, object]],
    n: int,
    speculative: Speculative | None,
    *,
    imported: bool,
) -> ProblemRun | None:
    whole = [
        s
        for s in samples
        if (s["end"] is not None or imported)
        and s["error"] is None
        and s["cancelled_by"] is None
        and (_int(s["output_tokens"]) or 0) > 0
    ]
    decided = next((t for t in (row["decided_at"], row["end"]) if t is not None), None)
    arrival = next((t for t in (row["arrival"], row["start"]) if t is not None), None)
    prompt = _int(row["prompt_tokens"]) or max(
        (_int(s["prompt_tokens"]) or 0 for s in whole), default=0
    )
    if len(whole) != n or not prompt or arrival is None or (decided is None and not imported):
        return None
    arrived, latency = _int(arrival) or 0, float("nan")
    if decided is not None:
        latency = ((_int(decided) or 0) - arrived) / 1e9
    blocks = row["prompt_blocks"]
    whole.sort(key=lambda s: _int(s["sample_index"]) or 0)
    return ProblemRun(
        problem_id=str(row["problem_id"]),
        arrival_ns=arrived,
        prompt_tokens=prompt,
        cached_tokens=min(_int(s["cached_tokens"]) or 0 for s in whole),
        latency_s=latency,
        samples=tuple(_sample(s, speculative) for s in whole),
        prompt_blocks=tuple(blocks) if isinstance(blocks, list) else (),
        indices=tuple(_int(s["sample_index"]) or 0 for s in whole),
    )


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _sample(row: Mapping[str, object], speculative: Speculative | None) -> Sample:
    tokens = _int(row["output_tokens"]) or 0
    answer, correct = row["answer"], row["correct"]
    scheduled = advance = None
    if speculative is not None:
        scheduled, advance = verify_steps(tokens, row["drafted_per_step"], row["accepted_per_step"])
    return Sample(
        output_tokens=tokens,
        answer=None if answer is None else str(answer),
        correct=correct if isinstance(correct, bool) else None,
        scheduled=scheduled,
        advance=advance,
        by_length=row["finish_reason"] == "length",
        think_tokens=_int(row["think_tokens"]),
    )
