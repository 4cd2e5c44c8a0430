"""The runs in a recording: problems that ended, with their samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, repeat
from math import isfinite
from sys import intern
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from traces.errors import RecordingError, UsageError
from traces.live.watched import only_watched
from traces.notes import Decisive
from traces.recording.reader import Recording
from traces.recording.window_cost import WindowCost
from traces.schema.engine import EngineConfig, Speculative
from traces.schema.formats import counted
from traces.schema.tts.policy import AS_SENT, Policy
from traces.schema.tts.published import PublishedCurve
from traces.statistics import Ints
from traces.summary.prefix_hits import with_hits
from traces.summary.problems import MOST_UNTOLD, Lost, engine_windows, lost_problems
from traces.summary.votes import majority_curve

_USED = (
    "engine", "policy", "problem_id", "sample_index", "prompt_tokens", "cached_tokens",
    "output_tokens", "think_tokens", "end", "error", "cancelled_by", "answer", "correct",
    "finish_reason", "drafted_per_step", "accepted_per_step", "arrival", "round",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A recorded sample: its length, its vote, and how speculation went.

    `scheduled` and `advance` are per verify step after the prompt: tokens forwarded (one plus the
    drafted) and tokens kept (one plus the accepted, summing to `output_tokens` - 1), in bytes where
    they fit, so widen them before adding up; None without speculation. `by_length`: it ended as it
    was as long as allowed. `think_tokens` end with the mark that closes thinking, None where there
    is none.
    """

    output_tokens: int
    answer: str | None
    correct: bool | None
    scheduled: npt.NDArray[np.integer] | None = None
    advance: npt.NDArray[np.integer] | None = None
    by_length: bool = False
    think_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedProblem:
    """One problem: its prompt, what of it was in the cache and others begin with, its samples.

    `cached_tokens` of its prompt came from the prefix cache for the sample that had the fewest,
    `shared_tokens` of it other problems begin with (None: what it found there, or as much as is
    usual where it found nothing). `prompt_blocks` name the prompt's blocks where these are known:
    equal names are equal prefixes. `route` is its own table of samples, packed
    (traces/schema/tts/routes.py), 0 without one. `front_end_s` is what a server's front end takes
    of it, beside its engine (live/front_end_time.py). `server` is the engine that it goes to, its
    place among those that were watched together, where that is known.
    """

    prompt_tokens: int
    cached_tokens: int
    samples: Sequence[Sample]
    shared_tokens: int | None = None
    prompt_blocks: Sequence[int] = ()
    route: float = 0.0
    front_end_s: float = 0.0
    server: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemRun(RecordedProblem):
    """One problem as one run answered it; `latency_s` is from arrival to decision.

    `arrival_ns` is unix time, None where an import does not tell it; `latency_s` is nan
    there. `indices` are the samples' own. `session` is the one that it is a turn of, if of one.
    """

    problem_id: str
    arrival_ns: int | None
    latency_s: float
    samples: tuple[Sample, ...]
    indices: tuple[int, ...]
    prompt_blocks: tuple[int, ...] = ()
    group: str | None = None
    session: str | None = None


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """The problems of one (engine, policy) in one recording.

    `drawn` says that they are drawn from what a server's histograms tell, one of several draws, or
    `inferred` from its forward passes (live/passes.py). `spread_unknown`: these tell no more of
    lengths than their mean. With a `curve` lengths are drawn, and what of votes is right it alone
    tells. `at_once` requests were in flight at most, where their clients waited for answers (None:
    they did not, or it is not known). With `texts` the answers are texts, which are the same in
    another run. Else they are numbers of this run's own. `turns` are requests that came one after
    another, as those of agents do: they are of sessions, and no problems of the run.
    """

    recording: str
    engine: EngineConfig
    policy: Policy
    problems: Mapping[str, ProblemRun]
    concurrency: int | None
    rate_per_s: float | None
    drawn: bool = False
    inferred: bool = False
    spread_unknown: bool = False
    curve: PublishedCurve | None = None
    texts: bool = False
    at_once: int | None = None
    turns: tuple[ProblemRun, ...] = ()

    @property
    def samples(self) -> Iterator[Sample]:
        """The samples of all problems."""
        return (sample for problem in self.problems.values() for sample in problem.samples)

    @property
    def drafts_untold(self) -> bool:
        """Whether the engine drafts and some sample does not say how its drafts went."""
        return self.engine.speculative is not None and any(s.advance is None for s in self.samples)

    @cached_property
    def answers_told(self) -> bool:
        """Whether every right sample has its answer. Some imports tell none, so that none votes."""
        return not any(sample.correct and sample.answer is None for sample in self.samples)

    @cached_property
    def tells_answers(self) -> bool:
        """Whether a sample without an answer gave none, and is wrong. Else nobody told answers."""
        return self.answers_told and any(sample.answer is not None for sample in self.samples)

    def judged(self, name: str) -> bool:
        """Whether all samples of a problem are right or wrong, as far as the run has it.

        With answers told, a sample that has none is wrong.
        """
        problem = self.problems.get(name)
        if problem is None:
            return True
        marked = [s.correct is not None for s in problem.samples]
        has_answers = self.tells_answers
        able = [
            s.correct is not None or (has_answers and s.answer is None) for s in problem.samples
        ]
        return any(marked) and all(able)

    def vote_curve(self, name: str) -> npt.NDArray[np.float64]:
        """Return how often votes of k of a problem's samples are right, k = 1 .. all.

        Without the answers only one sample is known, and the others are nan.
        """
        samples = self.problems[name].samples
        right = [sample.correct for sample in samples]
        if self.answers_told:
            return majority_curve([sample.answer for sample in samples], right)
        curve = np.full(len(samples), np.nan)
        curve[0] = np.mean([bool(each) for each in right])
        return curve

    def arrivals_s(self, problem_ids: Iterable[str]) -> npt.NDArray[np.float64]:
        """Return when problems arrived, in seconds since the first of them.

        Raises UsageError where an import does not tell it.
        """
        arrivals = [self.problems[name].arrival_ns for name in problem_ids]
        if None in arrivals:
            raise UsageError(
                f"{self.recording}: has no load to replay. Give --concurrency, problems in "
                "flight, or --rate, problems arriving"
            )
        times = np.array(arrivals, dtype=np.int64)
        return np.asarray((times - times.min()) / 1e9)


def arrival_rate(arrivals_ns: Iterable[int | None]) -> float | None:
    """Return how many problems arrived a second, None where they are too few to say."""
    times = [time for time in arrivals_ns if time is not None]
    span = (max(times) - min(times)) / 1e9 if times else 0.0
    return (len(times) - 1) / span if span > 0 else None


PAUSE = 10.0  # times the mean of the shorter gaps between arrivals, beyond which nothing was sent


def rate_under_load(
    arrivals_ns: Iterable[int | None], stays_s: Iterable[float | None] | float
) -> float | None:
    """Return how many arrived a second of the time in which they came; None for too few to say.

    Pauses count until all that came before them are done. Most gaps are none. `stays_s` is how long
    each stayed, None or nan where it is not known, or all of them in the mean.
    """
    each = repeat(stays_s) if isinstance(stays_s, float) else stays_s
    pairs = zip(arrivals_ns, each, strict=False)
    came = sorted(
        (time, max(stay, 0.0) if stay is not None and isfinite(stay) else 0.0)
        for time, stay in pairs
        if time is not None
    )
    times = np.array([time for time, _ in came], dtype=np.int64)
    since = (times - times[:1]) / 1e9
    gaps = np.diff(since)
    if not gaps.sum():
        return None
    ordered = np.sort(gaps)
    beyond = ordered[1:] > PAUSE * np.cumsum(ordered)[:-1] / np.arange(1, len(gaps))
    beyond[: len(gaps) // 2] = False
    if beyond.any():
        left = np.maximum.accumulate(since + [stay for _, stay in came])[:-1] - since[:-1]
        pauses = gaps >= ordered[1 + int(np.argmax(beyond))]
        gaps = np.where(pauses, np.minimum(gaps, left), gaps)
    return float(len(gaps) / gaps.sum()) if gaps.any() else None


class ReadRuns(NamedTuple):
    """The runs of a recording, and what to tell of problems that were left out.

    `in_turn` are the problems of watched engines that were left out since their requests came one
    after another: how many requests each had. They count in the rate of a run. `turns` are these
    requests, of a session each problem.
    """

    runs: list[RecordedRun]
    notes: list[str]
    in_turn: dict[EngineConfig, list[int]]
    turns: dict[EngineConfig, list[ProblemRun]]


def read_runs(recording: Recording) -> ReadRuns:
    """Return the runs of a recording and what was left out of them.

    Raises RecordingError for a run of which a timeout or errors cut off more than a few problems.
    """
    manifest, watched = recording.manifest, only_watched(recording)
    curve = PublishedCurve.told(manifest.provenance)
    if curve is not None:
        return _of_curve(recording, curve)
    imported = "imported" in manifest.provenance  # tells of what has ended, perhaps not when
    ended = (
        (pl.col("end").is_not_null() | pl.lit(imported))
        & pl.col("error").is_null()
        & ~pl.col("timed_out").fill_null(False)
    )
    kept = recording.problems.filter(ended)
    answers = recording.samples.filter(pl.col("role").fill_null("sample") == "sample")
    forced = _forced(recording.samples)
    # A problem is written once per run; the last attempt stands.
    kept = kept.unique(subset=["engine", "policy", "problem_id"], keep="last", maintain_order=True)
    samples: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in with_hits(recording, answers).select(_USED).iter_rows(named=True):
        name = (row["engine"], row["policy"], row["problem_id"])
        index = row["sample_index"]
        samples.setdefault(name, {})[index] = _with_forced(row, forced.get((*name, index), ()))
    grouped: dict[tuple[str, str], dict[str, ProblemRun]] = {}
    lacking: Counter[str] = Counter()
    in_turn: dict[EngineConfig, list[int]] = {}
    turns: dict[EngineConfig, list[ProblemRun]] = {}
    arrivals: dict[tuple[str, str], list[int | None]] = {}  # of traffic
    costs: dict[str, WindowCost] = {}
    if recording.frame("events", ["kind"])["kind"].eq("window").any():
        costs = {key: engine_windows(recording, key) for key in manifest.engines}
    for row in kept.sort("arrival", nulls_last=True, maintain_order=True).iter_rows(named=True):
        policy = AS_SENT if watched else manifest.policies.get(row["policy"])
        engine = manifest.engines.get(row["engine"])
        if policy is None or engine is None or not policy.all_samples_end or policy.sampling:
            continue
        own_rows = samples.get((row["engine"], row["policy"], row["problem_id"]), {})
        if watched:
            arrivals.setdefault((row["engine"], row["policy"]), []).append(row["arrival"])
        if watched and _in_turn(own_rows.values()):
            in_turn.setdefault(engine, []).append(len(own_rows))
            turns.setdefault(engine, []).extend(_turns_of(row, own_rows, engine.speculative))
            continue
        n = len(own_rows) if watched else policy.n
        run = _problem_run(row, list(own_rows.values()), n, engine.speculative, imported=imported)
        if isinstance(run, str):
            lacking[run] += 1
            continue
        cost = costs.get(row["engine"])
        if cost is not None and run.arrival_ns is not None and np.isfinite(run.latency_s):
            since = np.array([run.arrival_ns])
            until = since + round(run.latency_s * 1e9)
            taken = float(cost.within_s(since, until)[0])  # which the profiler's windows took
            run = replace(run, latency_s=run.latency_s - taken)
        grouped.setdefault((row["engine"], row["policy"]), {})[run.problem_id] = run
    runs = [
        RecordedRun(
            recording=recording.name,
            engine=manifest.engines[engine_key],
            policy=AS_SENT if watched else manifest.policies[policy_key],
            problems=with_beginnings(group, manifest.engines[engine_key]) if watched else group,
            concurrency=manifest.concurrency,
            rate_per_s=arrival_rate(arrivals[engine_key, policy_key])
            if watched
            else manifest.rate_per_s,
            texts=manifest.text_recorded and not imported,
            at_once=requests_at_once(
                recording.samples.filter(pl.col("engine") == engine_key),
                manifest.engines[engine_key].max_num_seqs,
            )
            if watched
            else None,
        )
        for (engine_key, policy_key), group in grouped.items()
    ]
    notes = (
        _check_left(recording, lacking, runs) if imported else _check_survivors(recording, grouped)
    )
    if any(run.policy.n > 1 and not run.answers_told for run in runs):
        notes.append(
            f"{recording.name}: right samples come without their answers, so no vote of several "
            "samples is known"
        )
    return ReadRuns(runs, notes, in_turn, turns)


AT_MOST = 0.2  # of the time in which requests wait, that the most of them are there at once
NEAR_MOST = 0.5  # of it, that nine in ten of the most or more are there
REACHED = 20  # times that one more makes the most of them: of open traffic a few more come at once


def clients_wait(at_once: int) -> str:
    """Say what a replay of clients that wait for answers, so many requests at once, shows."""
    return Decisive(
        f"{at_once} requests at most were there at once, and so many for much of the time in which "
        "any waited. Their clients wait for answers, and so they do in the replay. A faster server "
        "would get their next requests sooner, which it does not show"
    )


def requests_at_once(samples: pl.DataFrame, max_num_seqs: int | None) -> int | None:
    """Return how many requests were in flight at most, where clients waited for answers.

    Then nearly as many as can be are there while any waits for a place in the engine, as each that
    ends brings the next, time and again. Of open traffic the most are seldom there, or only once.
    None where nothing waits.
    """
    known = samples.drop_nulls(["arrival", "end"])
    if not known.height or max_num_seqs is None:
        return None
    times = np.concatenate([known["arrival"].to_numpy(), known["end"].to_numpy()])
    change = np.repeat([1, -1], known.height)
    order = np.lexsort((change, times))
    there, spans = np.cumsum(change[order])[:-1], np.diff(times[order])
    most, waits = int(there.max(initial=0)), there > max_num_seqs
    reached = ((there == most) & (change[order][:-1] > 0)).sum()
    waited = float(spans[waits].sum())
    at_most, near = (spans[waits & (there >= share * most)].sum() for share in (1.0, 0.9))
    closed = (
        waited > 0
        and reached >= REACHED
        and at_most >= AT_MOST * waited
        and near >= NEAR_MOST * waited
    )
    return most if closed else None


def with_beginnings(
    problems: Mapping[str, ProblemRun], engine: EngineConfig
) -> dict[str, ProblemRun]:
    """Return watched problems, in the order in which they came, with what others begin with too.

    That is what each found. Before any of them found something, the first on each rank may be those
    that computed what the later ones as a rule found.
    """
    found = [problem.cached_tokens for problem in problems.values()]
    prompts = [problem.prompt_tokens for problem in problems.values()]
    shared = beginnings(found, prompts, engine)
    return {
        name: replace(problem, shared_tokens=each)
        for (name, problem), each in zip(problems.items(), shared, strict=True)
    }


def beginnings(
    found: Sequence[int], prompt_tokens: Sequence[int], engine: EngineConfig
) -> list[int]:
    """Return the tokens that each prompt and others begin with, in the order in which they came.

    `found` are those that each had in the cache (`with_beginnings`).
    """
    begun = next((place for place, each in enumerate(found) if each), len(found))
    later = sorted(found[begun:])
    usual = later[len(later) // 2] if later else 0
    shared = [usual] * min(engine.data_parallel_size, begun)
    shared += found[len(shared) :]
    return [min(each, prompt - 1) for each, prompt in zip(shared, prompt_tokens, strict=True)]


MOST_DRAWN = 100_000  # samples of a curve
MOST_PROBLEMS = 1_000


def _of_curve(recording: Recording, curve: PublishedCurve) -> ReadRuns:
    """Return a run with the mean length of a published curve, drawn log-normal up to max_tokens."""
    manifest = recording.manifest
    why = f"{recording.name}: from a published curve of {curve.problems:,} problems. "
    if curve.prompt_tokens is None:
        lacking = f"{why}How long prompts are is not known. Import again with --prompt-tokens"
        return ReadRuns([], [lacking], {}, {})
    count = max(min(curve.problems, MOST_PROBLEMS, MOST_DRAWN // curve.most), 1)
    rng = np.random.default_rng([count, curve.most])
    part = curve.spread / np.sqrt(2)
    logs = part * (rng.normal(size=(count, 1)) + rng.normal(size=(count, curve.most)))
    ((engine,), (policy,)) = manifest.engines.values(), manifest.policies.values()
    lengths = np.exp(logs)
    for _ in range(20):  # what the limit cuts, the others have
        lengths = lengths / lengths.mean() * curve.tokens_per_sample
        lengths = np.minimum(lengths, policy.max_tokens or np.inf)
    lengths = np.maximum(np.rint(lengths), 1)
    problems = {
        f"drawn {place + 1}": ProblemRun(
            problem_id=f"drawn {place + 1}",
            arrival_ns=None,
            prompt_tokens=curve.prompt_tokens,
            cached_tokens=0,
            latency_s=float("nan"),
            samples=tuple(
                Sample(output_tokens=int(tokens), answer=None, correct=None) for tokens in row
            ),
            indices=tuple(range(curve.most)),
        )
        for place, row in enumerate(lengths)
    }
    note = (
        f"{why}Lengths are drawn with a spread of {curve.spread:g} of their logarithm, and "
        "accuracy is that of laws of answers weighted by its points. No pair of problems is known"
    )
    run = RecordedRun(
        recording=recording.name,
        engine=engine,
        policy=policy,
        problems=problems,
        concurrency=None,
        rate_per_s=None,
        curve=curve,
    )
    return ReadRuns([run], [note], {}, {})


def _check_left(
    recording: Recording,
    lacking: Mapping[str, int],
    runs: Sequence[RecordedRun],
) -> list[str]:
    """Return which problems of an import are left out, and why.

    Raises RecordingError where they are too many for the others to stand for all.
    """
    imported = recording.manifest.provenance.get("imported", {})
    outcomes = "identities" in imported
    failed = int(recording.problems["error"].count()) if outcomes else 0
    every = {**lacking, **({"all of whose samples failed": failed} if failed else {})}
    kept = sum(len(run.problems) for run in runs)
    count = sum(every.values())
    lost = Lost(
        timed_out=0,
        failed=int(imported.get("failed_problems") or 0),
        problems=recording.problems.height,
        imported=True,
    )
    if outcomes and kept and lost.too_many:
        raise RecordingError(f"{recording.name}: {lost.why_not}")
    if outcomes and kept and count > MOST_UNTOLD * (kept + count):
        why = max(every, key=lambda each: every[each])
        remedy = _TOKENS if "output_tokens" in why else "Import outcomes that have them"
        raise RecordingError(
            f"{recording.name}: {count:,} of {kept + count:,} problems are left out, of them "
            f"{every[why]:,} {why}. The others may be unlike them"
            + ("" if "--prompt-tokens" in why else f". {remedy}")
        )
    notes = [
        f"left out of {recording.name}: {counted(number, 'problem')} {why}"
        for why, number in sorted(every.items(), key=lambda each: -each[1])
    ]
    unjudged = 0
    if outcomes:
        unjudged = sum(not run.judged(name) for run in runs for name in run.problems)
    if unjudged in (0, kept):  # where nothing is judged, only times are asked for
        return notes
    if unjudged > MOST_UNTOLD * kept:
        facts = recording.manifest.workload
        how = "Import outcomes in which they are judged"
        if facts is None or facts.verifier != "math":
            how += ", or files with completions again with --verifier math"
        raise RecordingError(
            f"{recording.name}: {unjudged:,} of {kept:,} problems have samples that are not known "
            f"to be right or wrong, and the others may be unlike them. {how}"
        )
    return [
        *notes,
        f"left out of {recording.name} where accuracy counts: {counted(unjudged, 'problem')} with "
        "samples that are not known to be right or wrong",
    ]


_TOKENS = "Import again with the output_tokens of every sample, of one that was cut off its limit"


def _check_survivors(
    recording: Recording, found: Mapping[tuple[str, str], Mapping[str, ProblemRun]]
) -> list[str]:
    """Return which runs lack problems that a timeout or an error cut off, and how many.

    Raises RecordingError where those that are left of a run's problems are no fair draw.
    """
    manifest = recording.manifest
    names = ["engine", "policy", "problem_id"]
    failed = recording.samples.filter(pl.col("error").is_not_null()).select(names, lost="error")
    ended = (
        recording.problems.filter(pl.col("end").is_not_null())
        .unique(subset=names, keep="last")
        .join(failed.unique(subset=names), on=names, how="left")
        .with_columns(error=pl.coalesce("error", "lost"))
    )
    notes = []
    for (engine, policy), rows in ended.group_by("engine", "policy"):
        run_policy = manifest.policies.get(str(policy))
        if run_policy is None or not run_policy.all_samples_end:
            continue
        kept = pl.col("problem_id").is_in(list(found.get((str(engine), str(policy)), {})))
        lost = lost_problems(
            rows.with_columns(
                error=pl.when(~kept).then("error"), timed_out=pl.col("timed_out") & ~kept
            )
        )
        if lost.too_many:
            raise RecordingError(f"{recording.name}, {run_policy.label()}: {lost.why_not}")
        if lost.count:
            notes.append(f"left out of {recording.name}, {run_policy.label()}: {lost.text}")
    return sorted(notes)


def _forced(samples: pl.DataFrame) -> dict[tuple[str, str, str, int], list[dict[str, Any]]]:
    """Return by sample the rows that go on from it where its thought was closed at a budget."""
    rows = samples.filter(pl.col("role") == "forced").unique(
        ["engine", "policy", "problem_id", "sample_index"], keep="last", maintain_order=True
    )
    by_sample: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for row in rows.sort("sample_index").iter_rows(named=True):
        key = (row["engine"], row["policy"], row["problem_id"], row["parent_sample"])
        by_sample.setdefault(key, []).append(row)
    return by_sample


def _with_forced(row: dict[str, Any], forced: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a sample's row with the tokens and the drafts of its forced answer behind its own.

    The tokens of both are generated one after the other; what it takes to read the thought again,
    which the prefix cache holds, is not in it.
    """
    if not forced or row["output_tokens"] is None:
        return row
    joined = dict(row)
    joined["output_tokens"] = sum(each["output_tokens"] or 0 for each in (row, *forced))
    for name in ("drafted_per_step", "accepted_per_step"):
        lists = [each[name] for each in (row, *forced)]
        joined[name] = None if None in lists else list(chain.from_iterable(lists))
    return joined


def _problem_run(
    row: Mapping[str, Any],
    samples: list[dict[str, Any]],
    n: int,
    speculative: Speculative | None,
    *,
    imported: bool,
) -> ProblemRun | str:
    """Return a problem with all its samples, or what of it is lacking, in words."""
    sound = [
        s
        for s in samples
        if (s["end"] is not None or imported)
        and s["error"] is None
        and s["cancelled_by"] is None
        and (s["output_tokens"] or 0) > 0
    ]
    decided = row["end"] if row["decided_at"] is None else row["decided_at"]
    arrival = row["start"] if row["arrival"] is None else row["arrival"]
    prompts = [s["prompt_tokens"] for s in sound if s["prompt_tokens"]]
    prompt = row["prompt_tokens"] or min(prompts, default=0)
    if prompts and not imported:  # earlier recordings may name the prompt of a request that went on
        prompt = min(prompts)
    if samples and not any(s["output_tokens"] for s in samples):
        return "whose output_tokens are not known"
    if not sound or len(sound) != n:
        if imported and any(s["error"] is None and not s["output_tokens"] for s in samples):
            return "with samples whose output_tokens are not known or 0"
        return f"without {counted(n, 'sound sample')}, as others have"
    if not prompt:
        return "whose prompt_tokens are not known. Import again with --prompt-tokens N"
    timed = arrival is not None and decided is not None
    if not imported and not timed:
        return "whose times are not known"
    sound.sort(key=lambda s: s["sample_index"] or 0)
    return ProblemRun(
        problem_id=row["problem_id"],
        arrival_ns=arrival,
        prompt_tokens=prompt,
        cached_tokens=min(s["cached_tokens"] or 0 for s in sound),
        latency_s=(decided - arrival) / 1e9 if timed else float("nan"),
        samples=tuple(_sample(s, speculative) for s in sound),
        prompt_blocks=tuple(row["prompt_blocks"] or ()),
        indices=tuple(s["sample_index"] or 0 for s in sound),
        group=row["group"],
        session=row["session"],
    )


def _turns_of(
    row: Mapping[str, Any], rows: Mapping[int, dict[str, Any]], speculative: Speculative | None
) -> list[ProblemRun]:
    """Return the sound requests of a watched problem that came one after another, a turn each."""
    session = row["session"] or row["problem_id"]
    turns = []
    for index, own in rows.items():
        asked = dict.fromkeys(("group", "decided_at", "prompt_blocks")) | {
            **{"problem_id": f"{row['problem_id']}/{index}", "session": session},
            **{name: own[name] for name in ("prompt_tokens", "arrival", "end")},
            "start": own["arrival"],
        }
        turn = _problem_run(asked, [own], 1, speculative, imported=False)
        if not isinstance(turn, str):
            turns.append(turn)
    return turns


def _in_turn(samples: Iterable[Mapping[str, Any]]) -> bool:
    """Whether requests of a watched problem came in several rounds, or after others had ended."""
    rows = list(samples)
    if len(rows) < 2:
        return False
    if len({row["round"] or 0 for row in rows}) > 1:
        return True
    pairs = ((row["arrival"], row["end"]) for row in rows)
    times = sorted(pair for pair in pairs if None not in pair)
    over = np.maximum.accumulate([end for _, end in times])
    return any(begin > before for (begin, _), before in zip(times[1:], over, strict=False))


def _sample(row: Mapping[str, Any], speculative: Speculative | None) -> Sample:
    tokens = row["output_tokens"]
    scheduled = advance = None
    if speculative is not None:
        scheduled, advance = verify_steps(tokens, row["drafted_per_step"], row["accepted_per_step"])
    return Sample(
        output_tokens=tokens,
        answer=None if row["answer"] is None else intern(row["answer"]),
        correct=row["correct"],
        scheduled=_in_bytes(scheduled),
        advance=_in_bytes(advance),
        by_length=row["finish_reason"] == "length",
        think_tokens=row["think_tokens"],
    )


def _in_bytes(steps: Ints | None) -> npt.NDArray[np.integer] | None:
    """Return steps in an eighth of the memory where their counts are below 256."""
    if steps is None or steps.max(initial=0) > np.iinfo(np.uint8).max:
        return steps
    return steps.astype(np.uint8)


def cut_runs(recording: Recording, runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Return what runs would have been with less thought, where answers were forced.

    One run for each budget of the recording's `answers`; its samples are those that were cut, and
    a thought that ended within the budget is as it was. Speculation was not recorded there.
    """
    answers = recording.frame("answers")
    complete_rows = answers.drop_nulls(["problem_id", "sample_index", "budget_tokens"])
    forced: dict[tuple[str, str], dict[int, dict[str, dict[int, dict[str, Any]]]]] = {}
    for row in complete_rows.iter_rows(named=True):
        by_budget = forced.setdefault((row["engine"], row["policy"]), {})
        by_index = by_budget.setdefault(row["budget_tokens"], {}).setdefault(row["problem_id"], {})
        by_index[row["sample_index"]] = row
    shorter = []
    for run in runs if forced else ():
        if run.engine.speculative is not None or run.policy.thinking_token_budget is not None:
            continue
        by_budget = forced.get((recording.engine_key(run.engine), run.policy.key()), {})
        shorter += [_cut(run, budget, rows) for budget, rows in sorted(by_budget.items())]
    return [run for run in shorter if run is not None]


def _cut(
    run: RecordedRun, budget: int, rows: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> RecordedRun | None:
    problems = {}
    for name, problem in run.problems.items():
        places = {index: place for place, index in enumerate(problem.indices)}
        forced = {i: row for i, row in sorted(rows.get(name, {}).items()) if i in places}
        samples = [_cut_sample(problem.samples[places[i]], budget, forced[i]) for i in forced]
        if samples:
            problems[name] = replace(problem, samples=tuple(samples), indices=tuple(forced))
    n = min((len(problem.samples) for problem in problems.values()), default=0)
    if not n or (n > 1 and run.policy.method == "greedy"):
        return None
    policy = replace(run.policy, n=n, thinking_token_budget=budget, rule=())
    trimmed = {
        name: replace(problem, samples=problem.samples[:n], indices=problem.indices[:n])
        for name, problem in problems.items()
    }
    return replace(run, policy=policy, problems=trimmed)


def _cut_sample(sample: Sample, budget: int, row: Mapping[str, Any]) -> Sample:
    if not row["forced"]:
        return sample
    return Sample(
        output_tokens=budget + (row["answer_tokens"] or 0),
        answer=row["answer"],
        correct=row["correct"],
        by_length=sample.by_length,
    )


# Smaller limits of tokens: exact from lengths alone, as what is cut has no answer.


SHORTEST = 1024  # limit that is tried
TRIED = 2  # limits, the largest that cut
CUT = (0.01, 0.4)  # of the samples, at least and at most


def limited(run: RecordedRun, max_tokens: int) -> RecordedRun | None:
    """Return a run as it would have been with another `max_tokens`; what that cuts has no vote.

    None where that is not known: beyond a limit that cut samples, or of samples with drafts.
    """
    beyond = max_tokens > cut_at(run)
    if run.engine.speculative is not None or (beyond and any(s.by_length for s in run.samples)):
        return None
    judged = any(sample.correct is not None for sample in run.samples)
    problems = {
        name: replace(
            problem, samples=tuple(_limited(s, max_tokens, judged=judged) for s in problem.samples)
        )
        for name, problem in run.problems.items()
    }
    return replace(run, policy=replace(run.policy, max_tokens=max_tokens), problems=problems)


def cut_at(run: RecordedRun) -> int:
    """Return the limit of tokens that a run's samples had, the longest one's where none is told."""
    longest = max((sample.output_tokens for sample in run.samples), default=0)
    return run.policy.max_tokens or longest


def _limited(sample: Sample, most: int, *, judged: bool) -> Sample:
    """Return a sample cut at so many tokens: a wrong one, where samples were judged at all."""
    if sample.output_tokens <= most:
        return sample
    return replace(
        sample,
        output_tokens=most,
        answer=None,
        correct=False if judged else None,
        by_length=True,
        think_tokens=None,
    )


def limits_that_cut(lengths: Sequence[int]) -> list[int]:
    """Return powers of two that cut some of the lengths, and not most: the largest few."""
    longest, count = max(lengths, default=0), max(len(lengths), 1)
    powers = [2**i for i in range(SHORTEST.bit_length() - 1, longest.bit_length())]
    shares = {most: sum(length > most for length in lengths) / count for most in powers}
    return [most for most, share in shares.items() if CUT[0] <= share <= CUT[1]][-TRIED:]


def limited_runs(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Return what runs would have been with smaller limits, nothing of those with drafts."""
    shorter = []
    for run in runs:
        unknown = run.drawn or run.curve is not None or run.policy == AS_SENT
        if unknown or run.engine.speculative is not None:
            continue
        most = run.policy.max_tokens
        for limit in limits_that_cut([sample.output_tokens for sample in run.samples]):
            if most is None or limit < most:
                shorter += [each for each in [limited(run, limit)] if each is not None]
    return shorter


# The decode steps of a sample that was drafted for: tokens forwarded and kept in each.


def steps_until(advance: Ints, tokens: int) -> Ints:
    """Return the tokens kept per step, one or more each, up to so many in all: the last is cut."""
    kept = np.diff(np.minimum(np.cumsum(advance), tokens), prepend=0)
    return kept[kept > 0]


def verify_steps(
    output_tokens: int, drafted: Sequence[int] | None, accepted: Sequence[int] | None
) -> tuple[Ints | None, Ints | None]:
    """Return tokens forwarded and kept per step after the prompt, or None when not recorded.

    The first token comes from the prompt's own step. Steps in which nothing was drafted are not
    recorded: they keep one token each and are spread evenly among the others, the first of them
    ahead. The last step is cut where the sample ended.
    """
    if output_tokens <= 1:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if accepted is None:
        return None, None
    kept = np.asarray(accepted, dtype=np.int64) + 1
    forwarded = kept if drafted is None else np.asarray(drafted, dtype=np.int64) + 1
    if len(kept) != len(forwarded):
        return None, None
    wanted = output_tokens - 1
    total = int(kept.sum())
    if total < wanted:
        plain = np.ones(wanted - total, dtype=np.int64)
        place = np.concatenate(
            [(np.arange(len(kept)) + 0.5) / max(len(kept), 1), np.arange(len(plain)) / len(plain)]
        )
        order = np.argsort(place, kind="stable")
        return np.concatenate([forwarded, plain])[order], np.concatenate([kept, plain])[order]
    kept = steps_until(kept, wanted)
    return forwarded[: len(kept)].copy(), kept
