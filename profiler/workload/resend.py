"""A recorded run posed again: the same problems, arrivals and lengths, for another server.

Prompts are not in a recording. Generated problems are made again from their seed; others come from
the file that they were posed from, which the recorded hash proves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from profiler.workload.problems import Workload, load_workload
from profiler.workload.verifiers import NAMES
from traces.errors import UsageError
from traces.recording.manifest import WorkloadFacts
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Resent:
    """What is sent: problems in the order of their arrival, each sample's length given.

    `policy` says only what a server needs: lengths stand for its limits. `arrivals_s` [problems]
    are the recorded times from the first; `left_out` problems had not all their samples.
    """

    workload: Workload
    policy: Policy
    arrivals_s: tuple[float, ...]
    left_out: int


def pose_again(
    recording: Recording,
    engine: EngineConfig,
    recorded: Policy,
    policy: Policy,
    *,
    source: str | None,
    chat: bool = True,
) -> Resent:
    """Return the problems of a run (its engine and policy as recorded), to be drawn by `policy`.

    `source` is the file that they were posed from, None for generated ones. Raises UsageError when
    the prompts cannot be had or are others, and for policies whose requests depend on answers,
    which samples of a given length do not have.
    """
    if not policy.all_samples_end:
        raise UsageError(
            f"--against: {policy.method} decides by answers, and samples of the recorded lengths "
            "have others. Set policy.method=majority"
        )
    loaded = _load(recording, source, chat=chat)
    lengths, arrivals = _recorded(recording, recording.engine_key(engine), recorded.key(), policy.n)
    by_name = {problem.problem_id: problem for problem in loaded.problems}
    order = sorted((name for name in lengths if name in by_name), key=lambda name: arrivals[name])
    if not order:
        raise UsageError(
            f"{recording.name}: no problem ended with all its {policy.n} samples, so "
            "there is nothing to send"
        )
    first = arrivals[order[0]]
    return Resent(
        workload=replace(
            loaded, problems=[replace(by_name[name], output_tokens=lengths[name]) for name in order]
        ),
        policy=replace(
            policy, method="majority" if policy.n > 1 else "greedy", rule=(), max_tokens=None,
            thinking_token_budget=None,
        ),
        arrivals_s=tuple((arrivals[name] - first) / 1e9 for name in order),
        left_out=len(loaded.problems) - len(order),
    )  # fmt: skip


def _load(recording: Recording, source: str | None, *, chat: bool) -> Workload:
    facts = recording.manifest.workload
    if facts is None:
        raise UsageError(f"{recording.name}: does not name its workload, so it cannot be sent")
    generated = facts.name.partition(":")[0] == "demo" and facts.seed is not None
    if source is None and not generated:
        raise UsageError(
            f"{recording.name}: its prompts are not in it. Give the file they came from, "
            f"--workload {facts.name}"
        )
    loaded = load_workload(
        source or facts.name,
        problems=facts.problems,
        seed=facts.seed or 0,
        chat=chat,
        verifier=_verifier(facts, source),
    )
    given = loaded.facts(None).hash
    if given != facts.hash:
        raise UsageError(
            f"--workload {source or facts.name}: other problems than were recorded (hash {given}, "
            f"recorded {facts.hash}). Give the very file, as it was"
        )
    return loaded


def _verifier(facts: WorkloadFacts, source: str | None) -> str | None:
    """Return the verifier that was named for all lines, which the hash covers."""
    named = (facts.verifier or "").split("+")
    if source is None or source.partition(":")[0] == "demo" or len(named) != 1:
        return None
    return named[0] if named[0] in NAMES else None


def _recorded(
    recording: Recording, engine: str, policy: str, n: int
) -> tuple[Mapping[str, tuple[int, ...]], Mapping[str, int]]:
    """Return by problem the lengths of its first n samples, and when it arrived (ns)."""
    mine = pl.col("engine").eq(engine) & pl.col("policy").eq(policy)
    samples = recording.samples.filter(mine)
    forced: dict[tuple[str, int], int] = defaultdict(int)
    for name, parent, tokens in (
        samples.filter(pl.col("role") == "forced")
        .select("problem_id", "parent_sample", pl.col("output_tokens").fill_null(0))
        .iter_rows()
    ):
        forced[name, parent] += tokens
    first_samples = samples.filter(
        pl.col("role").fill_null("sample").eq("sample")
        & pl.col("end").is_not_null()
        & pl.col("error").is_null()
        & pl.col("cancelled_by").is_null()
        & (pl.col("output_tokens") > 0)
    ).unique(["problem_id", "sample_index"], keep="last", maintain_order=True)
    lengths: dict[str, list[int]] = defaultdict(list)
    for name, index, tokens in (
        first_samples.sort("problem_id", "sample_index")
        .select("problem_id", "sample_index", "output_tokens")
        .iter_rows()
    ):
        lengths[name].append(tokens + forced[name, index])
    begun = recording.problems.filter(mine).select("problem_id", pl.coalesce("arrival", "start"))
    arrivals = dict(begun.drop_nulls().iter_rows())
    kept = {
        name: tuple(each[:n])
        for name, each in lengths.items()
        if len(each) >= n and name in arrivals
    }
    return kept, arrivals
