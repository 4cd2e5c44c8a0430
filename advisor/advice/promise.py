"""A pick as files: the command that serves it, its policy, and what is promised of it."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from advisor.evidence.gather import Evidence
from advisor.evidence.runs import ProblemRun, Run, Sample
from traces.deployment.documents import (
    EXPECT,
    POLICY,
    SERVE,
    Expectations,
    PolicyFile,
    VerifierName,
    write_document,
)
from traces.errors import RecordingError, UsageError
from traces.files import whole_file
from traces.recording.manifest import WorkloadFacts
from traces.schema.advice import Pick, Recommendation
from traces.schema.estimate import Estimate
from traces.schema.tts.policy import Policy
from traces.schema.tts.stop_rules import DECIDE, NO_ANSWER, Votes, begin, take
from traces.statistics import mean, ratio


def check_folder(folder: Path) -> None:
    """Raise UsageError where a file that would be written is there already."""
    for name in (SERVE, POLICY, EXPECT):
        if (folder / name).exists():
            raise UsageError(f"-o {folder}: already holds {name}. Name another folder")


def write_config(folder: Path, answer: Recommendation, evidence: Evidence) -> None:
    """Write the three files of the system-optimal pick.

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
        partial.write_text(
            f"#!/bin/sh\n# {named}, as ttscope advises. Options of its own go on: --port 8001\n"
            f'{exec_} {command} "$@"\n'
        )
        os.chmod(partial, 0o755)  # noqa: PTH101
    policy = PolicyFile(
        policy=pick.policy,
        model=pick.engine.model,
        verifier=_verifier(evidence.workload),
        most_n=pick.policy.n,
    )
    write_document(folder / POLICY, policy)
    write_document(folder / EXPECT, expectations(answer, evidence))


def expectations(answer: Recommendation, evidence: Evidence) -> Expectations:
    """Return what is promised of the pick, and what of its traffic that rests on."""
    pick = answer.system_optimal
    assert pick is not None
    in_flight, rate = evidence.load
    if answer.budget.rate_per_s is not None:
        in_flight, rate = None, answer.budget.rate_per_s
    return Expectations(
        engine=pick.engine,
        policy=pick.policy,
        promised=pick.estimates,
        assumed=_assumed(pick, evidence),
        concurrency=in_flight,
        rate_per_s=rate,
        workload=evidence.workload,
        budget=answer.budget,
        probability_within_budget=pick.probability_within_budget,
    )


def _verifier(workload: WorkloadFacts | None) -> VerifierName | None:
    """Return how answers were compared; several in one workload are told by none."""
    if workload is None:
        return None
    name = workload.verifier
    if name is None and workload.name.partition(":")[0] == "demo":
        return "demo"
    return next((each for each in get_args(VerifierName) if each == name), None)


def _assumed(pick: Pick, evidence: Evidence) -> dict[str, Estimate | None]:
    runs = [run for run in evidence.runs if _samples_alike(run, pick)]
    problems = [each for run in runs for each in run.problems.values()]
    drafted = [
        (int(kept.sum()), kept.size)
        for run in runs
        if run.engine.speculative == pick.engine.speculative
        for each in run.problems.values()
        if (kept := _kept(each.samples)).size
    ]
    agreed = [share for each in problems if (share := _agreement(each, pick.policy)) is not None]
    lengths = [np.mean([s.output_tokens for s in each.samples]) for each in problems]
    return {
        "prompt_tokens": mean([each.prompt_tokens for each in problems], "tokens"),
        "output_tokens": mean(lengths, "tokens"),
        "acceptance_length": ratio(
            [given for given, _ in drafted], [steps for _, steps in drafted], "tokens/step"
        ),
        "agreement": mean(agreed, "1"),
    }


def _samples_alike(run: Run, pick: Pick) -> bool:
    """Whether a run drew its samples as the pick does."""
    names = ("temperature", "top_p", "thinking_token_budget", "reasoning_effort", "max_tokens")
    same = all(getattr(run.policy, name) == getattr(pick.policy, name) for name in names)
    return same and run.engine.model == pick.engine.model and not run.drawn


def _kept(samples: Sequence[Sample]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the tokens that each drafted step of some samples gave."""
    steps = [
        sample.advance[sample.scheduled > 1].astype(np.int64)
        for sample in samples
        if sample.advance is not None and sample.scheduled is not None
    ]
    return np.concatenate(steps) if steps else np.array([], dtype=np.int64)


def _agreement(problem: ProblemRun, policy: Policy) -> float | None:
    """Return which share of the answers by the decision is the one that is given.

    The first n samples end as their lengths say. None where the policy goes on from answers, or
    too few samples were recorded.
    """
    stop, samples = policy.stop, problem.samples[: policy.n]
    if stop is None or policy.n == 1 or len(samples) < policy.n:
        return None
    votes, tallies, numbers = Votes(samples=policy.n), Counter[int](), dict[str, int]()
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
    del tallies[NO_ANSWER]
    return max(tallies.values()) / tallies.total() if tallies.total() else None
