"""A pick as files: the command that serves it, its policy, and what is promised of it.

Replays know an engine's steps, and nothing of what HTTP adds to them. How many times as long that
makes a problem is learned from runs of a server that the advice rests on too. Without one no
latency is promised for a server: a factor of another machine or model is a guess.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import hypot
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from advisor.advice.advisor import Advisor
from advisor.advice.command import command_note
from advisor.advice.feasible import LIMITED
from advisor.evidence.gather import Evidence
from advisor.evidence.measured import Under, latencies, same_load
from advisor.evidence.runs import ProblemRun, RecordedRun, Sample
from traces.deployment.documents import (
    EXPECT,
    POLICY,
    SERVE,
    Expectations,
    PolicyFile,
    VerifierName,
    names_hash,
    write_document,
)
from traces.errors import RecordingError, UsageError
from traces.files import whole_file
from traces.live.watched import only_watched
from traces.plain_text import clean
from traces.recording.manifest import WorkloadFacts
from traces.recording.reader import Recording
from traces.schema.advice import Pick, Recommendation
from traces.schema.engine import RANKS, EngineConfig
from traces.schema.estimate import Estimate, Interval
from traces.schema.tts.policy import Policy
from traces.schema.tts.routes import table_for
from traces.schema.tts.stop_rules import DECIDE, NO_ANSWER, Votes, begin, take
from traces.statistics import Z95, Ints, mean, ratio
from traces.summary.comparison import RUN_TO_RUN

FEWEST: Final = 8  # problems of a run of a server that tells what HTTP adds
_ONE_ENGINE: Final = (  # what a step's time depends on
    *("dtype", "quantization", "kv_cache_dtype", "tensor_parallel_size", "pipeline_parallel_size"),
    *("enforce_eager", "async_scheduling", "enable_prefix_caching", "gpu"),
)
UNLIKE: Final = 0.5  # by how much that may differ under another policy or load, of what is not 1


def check_folder(folder: Path) -> None:
    """Raise UsageError where a file that would be written is there already."""
    for name in (SERVE, POLICY, EXPECT):
        if (folder / name).exists():
            raise UsageError(f"-o {folder}: already holds {name}. Name another folder")


def check_has_policy(recordings: Sequence[Recording], option: str) -> None:
    """Raise UsageError where all traffic was only watched, so that there is no policy to write."""
    if all(map(only_watched, recordings)):
        raise UsageError(
            f"{option}: traffic that was only watched has no policy to write. Leave out {option}. "
            "The answer has the command of the server"
        )


def write_config(folder: Path, answer: Recommendation, advisor: Advisor) -> Expectations:
    """Write the three files of the system-optimal pick; returns what is promised.

    Raises RecordingError where the folder cannot be written.
    """
    pick = answer.system_optimal
    assert pick is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordingError(f"-o {folder}: cannot be made ({error.strerror})") from None
    named = " ".join(f"{pick.engine.model} {pick.engine.label()}, {pick.policy.label()}".split())
    command = pick.command or ""
    exec_ = "exec env" if "=" in command.split()[0] else "exec"
    with whole_file(folder / SERVE) as partial:
        lines = [
            "#!/bin/sh",
            f"# {named}, as ttscope advises. Options go to the server: --port 8001",
            *([f"# {note}"] if (note := command_note(pick)) else ()),
            f'{exec_} {command} "$@"',
        ]
        partial.write_text("".join(f"{clean(line)}\n" for line in lines))
        os.chmod(partial, 0o755)  # noqa: PTH101
    policy = PolicyFile(
        policy=pick.policy,
        model=pick.engine.model,
        verifier=verifier_of(advisor.evidence.workload),
        most_n=pick.policy.n,
    )
    write_document(folder / POLICY, policy)
    expected = expectations(answer, advisor)
    write_document(folder / EXPECT, expected)
    return expected


def expectations(answer: Recommendation, advisor: Advisor) -> Expectations:
    """Return what is promised of the pick, and what of its traffic that rests on."""
    pick, evidence = answer.system_optimal, advisor.evidence
    assert pick is not None
    asked_rate = answer.budget.rate_per_s
    in_flight, rate = evidence.load if asked_rate is None else (None, asked_rate)
    price = advisor.check(answer.budget).prices.of(pick.engine)
    served = served_factor(advisor, pick, (in_flight, rate))
    promised = {
        name: _served(each, served) if name.startswith("latency") else each
        for name, each in pick.estimates.items()
    }
    return Expectations(
        engine=pick.engine,
        policy=pick.policy,
        served=served,
        promised=promised,
        assumed=_assumed(pick, evidence),
        concurrency=in_flight,
        rate_per_s=rate,
        workload=evidence.workload,
        problem_names=_names_of_outcomes(evidence, advisor.space.problem_ids),
        budget=answer.budget
        if answer.budget.prices
        else replace(answer.budget, price_usd_per_device_hour=price),
        probability_within_budget=_probability(advisor, answer, served),
    )


def _probability(advisor: Advisor, answer: Recommendation, served: Estimate | None) -> float | None:
    """Return how surely the pick meets all limits through a server; None where it is not known."""
    pick = answer.system_optimal
    assert pick is not None
    if served is None or answer.budget.max_latency_s is None:
        return pick.probability_within_budget
    check = advisor.check(answer.budget)
    metrics = check.metrics
    place = [metrics.place.get(row) for row in advisor.space.rows_of(pick.engine, pick.policy)]
    row = next((each for each in place if each is not None), None)
    if row is None or served.low is None or served.high is None:
        return None
    spread = (served.high - served.low) / (2 * Z95)
    factor = served.value + spread * metrics.resampling.scores("served")
    met = np.ones(metrics.resampling.count, dtype=bool)
    for limit in check.limits.values():
        draws = metrics.draws(limit.metric, of=LIMITED)[row]
        if limit.metric.startswith("latency"):
            draws = draws * factor
        bound = limit.bound[row]
        met &= draws >= bound if limit.above else draws <= bound
    return float(metrics.chance(met))


def _names_of_outcomes(evidence: Evidence, judged: Sequence[str]) -> str | None:
    """Return the hash of the problems' names where outcomes alone have them, all judged."""
    workload, curve = evidence.workload, any(run.curve is not None for run in evidence.runs)
    if evidence.posed or workload is None or curve or len(judged) != workload.problems:
        return None
    return names_hash(judged)


# What a server adds to an engine's steps.


def served_factor(advisor: Advisor, pick: Pick, load: Under) -> Estimate | None:
    """Return how many times as long a problem takes through a server as its replay says.

    From runs of a server like the pick's engine but for limits, problem by problem, each against a
    replay under its own limits. None without one. The interval holds the spread from run to run,
    and `UNLIKE` where no run had the pick's limits, policy and load.
    """
    factors, direct = [], False
    for made in advisor.evidence.made.served(pick.engine.model):
        under = made.load
        engine = _as_served(pick.engine, made.engine)
        rows = [] if engine is None else advisor.space.rows_of(engine, made.policy)
        times = latencies(made)
        if not rows or times is None:
            continue
        replayed = advisor.replays.of(rows[0], concurrency=under[0], rate_per_s=under[1])
        if not replayed.keeps_up or (under[1] or 0.0) > replayed.capacity_per_s:
            continue
        names = advisor.space.problem_ids
        measured_s = np.array([times.get(name, np.nan) for name in names])
        each = ratio(measured_s, replayed.latency_s[0].mean(axis=0), "1")
        if each is not None and each.low is not None and np.isfinite(measured_s).sum() >= FEWEST:
            same = (engine, made.policy) == (pick.engine, pick.policy)
            alike = same and same_load(under, load)
            factors.append((each, 0.0 if alike else UNLIKE * abs(each.value - 1)))
            direct |= alike
    if direct:
        factors = [(each, unlike) for each, unlike in factors if not unlike]
    if not factors:
        return None
    ends = [end for each in factors for end in _ends(*each)]
    value = float(np.mean([each.value for each, _ in factors]))
    return Estimate(value=value, low=min(ends), high=max(ends), unit="1", runs=len(factors))


def _as_served(pick: EngineConfig, served: EngineConfig) -> EngineConfig | None:
    """Return the pick's engine with a server's limits and replicas, None where it is another one.

    None counts as the pick's, but for speculation (none) and parallel sizes (1).
    """

    def told(name: str) -> Any:
        value = getattr(served, name)
        return getattr(pick, name) if value is None else value

    if any(told(name) != getattr(pick, name) for name in _ONE_ENGINE):
        return None
    if served.speculative != pick.speculative:
        return None
    if RANKS in dict(pick.other) and served.ranks != pick.ranks:  # that share the experts
        return None
    replicas, gpus = served.data_parallel_size, pick.one_replica().num_gpus
    return replace(
        pick,
        max_num_seqs=told("max_num_seqs"),
        max_num_batched_tokens=told("max_num_batched_tokens"),
        data_parallel_size=replicas,
        num_gpus=None if gpus is None else gpus * replicas,
    )


def _ends(factor: Estimate, unlike: float) -> tuple[float, float]:
    assert factor.low is not None and factor.high is not None
    spread = Z95 * RUN_TO_RUN * factor.value
    low, high = (hypot(end - factor.value, spread, unlike) for end in (factor.low, factor.high))
    return factor.value - low, factor.value + high


def _served(promised: Estimate | None, factor: Estimate | None) -> Estimate | None:
    if promised is None or factor is None:
        return promised
    was, value = promised.value, promised.value * factor.value

    def through(ends: Interval) -> Interval:
        off = [
            None if end is None or other is None else hypot(end / was - 1, other / factor.value - 1)
            for end, other in ((ends.low, factor.low), (ends.high, factor.high))
        ]
        if off[0] is None or off[1] is None:
            return Interval()
        return Interval(low=value * max(1 - off[0], 0), high=value * (1 + off[1]))

    return replace(promised.each_interval(through), value=value)


def verifier_of(workload: WorkloadFacts | None) -> VerifierName | None:
    """Return how answers were compared; several in one workload are told by none."""
    if workload is None:
        return None
    name = workload.verifier
    if name is None and workload.name.partition(":")[0] == "demo":
        return "demo"
    return next((each for each in get_args(VerifierName) if each == name), None)


def _assumed(pick: Pick, evidence: Evidence) -> dict[str, Estimate | None]:
    """Return what the traffic must be like; a problem of several runs counts once."""
    runs = [run for run in evidence.runs if _samples_alike(run, pick)]
    problems = (problem for run in evidence.runs for problem in run.problems.values())
    groups = {
        problem.problem_id: problem.group for problem in problems if problem.group is not None
    }
    asked: dict[str, list[ProblemRun]] = {}
    drafted: dict[str, list[Ints]] = {}
    for run in runs:
        for name, problem in run.problems.items():
            if run.policy.reasoning_effort != pick.policy.effort_for(groups.get(name)):
                continue
            asked.setdefault(name, []).append(problem)
            if run.engine.speculative == pick.engine.speculative:
                drafted.setdefault(name, []).append(_kept(problem.samples))
    kept = [np.concatenate(each) for each in drafted.values()]
    agreed = [
        [
            share
            for each in several
            if (share := _agreement(each, pick.policy, groups.get(name))) is not None
        ]
        for name, several in asked.items()
    ]
    lengths = [
        np.mean([np.mean([s.output_tokens for s in each.samples]) for each in several])
        for several in asked.values()
    ]
    prompts = [np.mean([each.prompt_tokens for each in several]) for several in asked.values()]
    return {
        "prompt_tokens": mean(prompts, "tokens"),
        "output_tokens": mean(lengths, "tokens"),
        "acceptance_length": ratio(
            [each.sum() for each in kept], [each.size for each in kept], "tokens/step"
        ),
        "agreement": mean([np.mean(each) for each in agreed if each], "1"),
    }


def _samples_alike(run: RecordedRun, pick: Pick) -> bool:
    """Whether a run drew its samples as the pick does, but for the reasoning effort."""
    names = ("temperature", "top_p", "thinking_token_budget", "max_tokens")
    same = all(getattr(run.policy, name) == getattr(pick.policy, name) for name in names)
    return same and run.engine.model == pick.engine.model and not run.drawn


def _kept(samples: Sequence[Sample]) -> Ints:
    """Return the tokens that each drafted step of some samples gave."""
    steps = [
        sample.advance[sample.scheduled > 1].astype(np.int64)
        for sample in samples
        if sample.advance is not None and sample.scheduled is not None
    ]
    return np.concatenate(steps) if steps else np.array([], dtype=np.int64)


def _agreement(problem: ProblemRun, policy: Policy, group: str | None) -> float | None:
    """Return which share of the answers by the decision is the one that is given, None if unknown.

    The first n samples, or as many as its class has at most, end as their lengths say.
    """
    stop, routes = policy.stop_for(group), policy.routes
    most = policy.n if routes is None else max(table_for(routes, group))
    samples = problem.samples[:most]
    if stop is None or policy.n == 1 or len(samples) < most:
        return None
    votes, tallies, numbers = Votes(samples=most), Counter[int](), dict[str, int]()
    begin(votes, stop.drawn_first)
    running = [(samples[index].output_tokens, index) for index in range(votes.wanted)]
    heapq.heapify(running)
    while running:
        now, index = heapq.heappop(running)
        text, answer, drawn = samples[index].answer, NO_ANSWER, votes.wanted
        if text is not None:
            answer = numbers.setdefault(text, len(numbers))
            tallies[answer] += 1
        if take(votes, stop.rule, stop.value, index, answer, tallies[answer]) == DECIDE:
            break
        for more in range(drawn, votes.wanted):
            heapq.heappush(running, (now + samples[more].output_tokens, more))
    return votes.first / votes.answered if votes.answered else None
