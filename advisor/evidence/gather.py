"""Recordings -> what the models learn from: step tables, and samples by problem.

Only what ended is evidence: problems in flight, problems with an error or a missing sample, steps
that were profiled and samples that are not answers (scorers, drafts) are left out. Recordings of
the same configuration are repeats of one another; recordings of different workloads are refused,
because their problems cannot be paired.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import polars as pl

from advisor.evidence.features import Work, feature_matrix, reads_of
from advisor.evidence.keys import DECODER, decoder_of, law_key, learned_as, of_spans
from advisor.evidence.live.drafts import with_drafts, with_lengths
from advisor.evidence.live.front_end import (
    NEEDED,
    with_context_of_several,
    with_decode_context,
    with_prompt_context,
)
from advisor.evidence.live.front_end_time import with_front_end
from advisor.evidence.live.histograms import drawn_traffic, mean_steps
from advisor.evidence.live.passes import MOST as MOST_INFERRED
from advisor.evidence.live.passes import NEEDED as OF_PASSES
from advisor.evidence.live.passes import inferred_traffic, ran_at_ends
from advisor.evidence.live.ranks import ranks_by_law, ranks_in
from advisor.evidence.measured import Made, RunsMade, runs_in, runs_watched
from advisor.evidence.runs import ProblemRun, RecordedRun, Sample, cut_runs, limited_runs, read_runs
from advisor.evidence.steps import MOST_STEPS, most_of_each, places, with_host_work
from advisor.evidence.unrecorded import refusal, unchecked
from traces.errors import RecordingError, TtscopeError, UsageError, WorkloadsError
from traces.foreign.values import UNKNOWN_MODEL
from traces.live.engine_names import VLLM, software_of
from traces.live.numbers import FINISHED, ITL, Window, cancelled_told
from traces.live.verdict import TAKEN
from traces.live.watched import Windows, only_watched, windows_for, windows_of
from traces.recording.manifest import WorkloadFacts
from traces.recording.reader import Recording, both_told_apart
from traces.recording.tables import COMPOSITION, FORWARD, WINDOWED
from traces.schema.engine import EngineConfig, ModelFacts
from traces.schema.formats import counted
from traces.schema.tts.policy import AS_SENT
from traces.schema.tts.published import PublishedCurve
from traces.statistics import Floats, Ints
from traces.summary.energy import PowerTable, power_table
from traces.summary.problems import MOST_UNTOLD

TOO_LITTLE = (
    "too little of the server was seen to learn from. Watch it under load for at least 10 polls, "
    "or with the plugin (docs/attach.md)"
)
UNTIMED = (
    "the server's /metrics lack the mean time between tokens, so that they teach no law of "
    "its steps. Steps come from forward passes, and from vLLM's plugin (docs/attach.md)"
)
INFERRED = (
    "requests are inferred from the sums of forward passes, to a step, with lengths. What the sums "
    "leave open is drawn, and intervals hold each draw. Recorded latencies are of the first, or of "
    "/metrics"
)
NO_CACHE = (
    "forward passes lack the KV cache, which is taken to have room. For a replay --set "
    "engine.num_gpu_blocks says it"
)
UNNAMED = "names no requests, and none can be inferred"
NAMED_BY = (
    "Watch the server with ttscope attach URL --fpm, whose /metrics have requests and lengths "
    "(docs/attach.md)"
)
PROBLEMS_FILE = "problems.jsonl"  # of a workload that others sent: an import has no prompts
MOST_SEEN = 0.9  # share of the ended requests that spans must tell to stand for all
MOST_KEPT = 0.75  # share of them that is left without those in turn, or the load is another
USED = (  # of steps
    *("engine", "step", "end", "interval_ns", "wall_ns", "profiled", "source"),
    *Work._fields,
    *NEEDED,
)

__all__ = ["Evidence", "ProblemRun", "RecordedRun", "Sample", "StepTable", "gather", "law_key"]


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """The steps of one engine in one recording: `composition` [steps, features] and seconds.

    `configuration` names what was run there (engines, policies, load): recordings of the same are
    repeats. Where there were too many steps to keep, some stand for all (steps.py), and
    `most_of_all` [features] are the most of all of them. `facts` are None where a
    server's model is not known here. `coarse` says that each step is the mean of many, else they
    ended at `ends` [steps], unix ns.
    """

    recording: str
    configuration: str
    engine: EngineConfig
    facts: ModelFacts | None
    composition: Floats
    seconds: Floats
    most_of_all: Floats | None = None
    coarse: bool = False
    ends: Ints | None = None

    @property
    def most(self) -> Floats:
        """The most of each feature in the engine's steps, [features]."""
        if self.most_of_all is not None:
            return self.most_of_all
        return np.asarray(self.composition.max(axis=0))


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that the advisor knows, from all recordings."""

    recordings: tuple[str, ...]
    workload: WorkloadFacts | None
    models: Mapping[str, ModelFacts]
    steps: tuple[StepTable, ...]
    runs: tuple[RecordedRun, ...]
    power: Mapping[EngineConfig, Sequence[PowerTable]]
    price_usd_per_device_hour: float | None
    cut: tuple[RecordedRun, ...] = ()  # runs as they would have been with less thought
    lost: tuple[str, ...] = ()  # what was cut off, inferred or never checked, in words
    posed: bool = True  # by ttscope, so that `workload` can be posed again by its name
    made: RunsMade = field(default_factory=RunsMade, compare=False)  # by any method
    ranks: Mapping[EngineConfig, frozenset[int | None]] = field(default_factory=dict)  # by law

    @property
    def posable(self) -> str | None:
        """The workload that a run poses again: its name, or a file to write its problems into."""
        if not self.posed:
            return PROBLEMS_FILE
        return None if self.workload is None else self.workload.name

    def ranks_of(self, engine: EngineConfig) -> int | None:
        """Return the data-parallel ranks of a server that share the experts of an engine's law.

        None of models that are not known for mixtures of experts, one of engines that were not
        recorded. Raises UsageError where servers had different numbers of ranks, as the steps of
        one do not tell those of another.
        """
        facts, ranks = self.models.get(engine.model), self.ranks.get(law_key(engine)) or {1}
        if facts is None or not facts.num_experts:
            return None
        if len(ranks) > 1 or None in ranks:
            raise UsageError(
                f"{engine.model}: the data-parallel ranks of a server share the experts, and the "
                "recorded servers had different numbers of ranks, or not all were watched. Take "
                "recordings of one number"
            )
        return next(iter(ranks))

    @property
    def gpus(self) -> frozenset[str | None]:
        """The GPUs that the runs were on, None for a processor."""
        return frozenset(run.engine.gpu for run in self.runs)

    @property
    def load(self) -> tuple[int | None, float | None]:
        """The load most recorded: (problems in flight, None) or (None, problems per second).

        Watched replicas of a model share theirs.
        """
        # Several draws of one server's traffic are one load.
        each = {(r.recording, r.engine, r.policy): (r.concurrency, r.rate_per_s) for r in self.runs}
        loads = Counter(load for (*_, policy), load in each.items() if policy != AS_SENT)
        watched: dict[tuple[str, str], list[RecordedRun]] = {}
        for run in self.runs:
            if run.policy == AS_SENT:
                watched.setdefault((run.recording, run.engine.model), []).append(run)
        loads.update((None, _rate(runs)) for runs in watched.values())
        top = max(loads.values())
        in_flight, rate = max(
            (load for load, count in loads.items() if count == top),
            key=lambda load: (load[0] or 0, load[1] or 0.0),
        )
        if in_flight is None and rate is None:
            return 1, None
        return (None, rate) if rate is not None else (in_flight, None)


def gather(
    recordings: Sequence[Recording],
    *,
    judged: bool = True,
    timed: bool = True,
    others: Sequence[Recording] = (),
) -> Evidence:
    """Read what the recordings hold, and the steps of `others`, which are of other problems.

    `judged` says that samples must be right or wrong, `timed` that there must be steps.

    Raises UsageError when there are none or they answer different workloads, and RecordingError
    when there is nothing to learn from or a model is of a kind that no replay was checked for.
    """
    if not recordings:
        raise UsageError("advise: name at least one recording")
    recordings, others = (
        [with_lengths(each) for each in several] for several in both_told_apart(recordings, others)
    )
    watched = all(map(only_watched, recordings))
    judged = judged and not watched
    recordings, apart, lost = _set_apart(recordings, watched=watched, judged=judged)
    others = [*others, *apart]
    workload = _same_workload(recordings)
    _check_models(recordings)
    steps: list[StepTable] = []
    runs: list[RecordedRun] = []
    cut: list[RecordedRun] = []
    models: dict[str, ModelFacts] = {}
    power: dict[EngineConfig, list[PowerTable]] = {}
    made: list[Made] = []
    untimed: list[bool] = []
    most = most_of_each([each.rows("steps") for each in (*recordings, *others)], MOST_STEPS)
    kept = len(recordings) + len(others) == 1 and recordings[0].in_memory
    for recording in recordings if kept else (each.afresh() for each in recordings):
        windows, polled = _polled(recording)
        steps += _steps(recording, windows, most)
        models.update(recording.manifest.models)
        _add_power(recording, power)
        recorded, notes, in_turn, turns = read_runs(recording)
        if windows is not None:
            untimed.append(_untimed(windows))
            recorded, more = _with_drawn(recording, windows, recorded, in_turn)
            recorded, why = _with_inferred(recording, windows, recorded)
            recorded = _with_turns(recorded, turns)
            recorded = with_front_end(recording, recorded, windows)
            recorded = _with_decoders(recorded, windows, recording)
            notes += [*more, *why, *_seen_limits(recording), *_cancelled(recording, windows)]
            notes += _counted_as(recorded) if watched else ()
        polls = {run.engine: windows_for(recording, polled, run.engine) for run in recorded}
        recorded, drafted = with_drafts(recorded, polls)
        notes += drafted
        runs.extend(recorded)
        made.extend(
            runs_in(recording)
            if windows is None
            else runs_watched(recording, recorded, _rate(recorded))
        )
        cut.extend([*cut_runs(recording, recorded), *limited_runs(recorded)])
        unlike = recording.manifest.provenance.get("imported", {}).get("unlike", ())
        lost += [*(f"{recording.name}: {why}" for why in unlike), *notes, *_model_notes(recording)]
    for recording in (each.afresh() for each in others):
        steps += _steps(recording, _polled(recording)[0], most)
        _add_power(recording, power)
    _check_enough(recordings, steps, runs, lost, judged=judged, timed=timed, untimed=all(untimed))
    names = {name for run in runs for name in run.problems}
    lost += [ONE_PROBLEM] if judged and len(names) == 1 else []
    prices = [r.manifest.price_usd_per_device_hour for r in recordings]
    given = {price for price in prices if price is not None}
    return Evidence(
        recordings=tuple(recording.name for recording in recordings),
        workload=workload,
        models=models,
        steps=tuple(steps),
        runs=tuple(runs),
        cut=tuple(cut),
        power=power,
        price_usd_per_device_hour=given.pop() if len(given) == 1 else None,
        lost=tuple(dict.fromkeys(lost)),
        posed=not any("imported" in each.manifest.provenance for each in recordings),
        made=RunsMade(made),
        ranks=ranks_by_law([*recordings, *others]),
    )


def _polled(recording: Recording) -> tuple[Windows | None, Windows]:
    """Return what polls of servers that were only watched say, and those of any servers."""
    windows = windows_of(recording, lengths=True) if only_watched(recording) else None
    polled = windows
    if polled is None:
        polled = windows_of(recording) if recording.rows("scrapes") else {}
    return windows, polled


def _add_power(recording: Recording, power: dict[EngineConfig, list[PowerTable]]) -> None:
    """Add a recording's stretches with power, by the law of its engines."""
    if not recording.rows("power"):
        return
    for key, engine in learned_as(recording.manifest.engines).items():
        table = power_table(recording, key)
        if table is not None:
            power.setdefault(law_key(engine), []).append(table)


def _check_enough(
    recordings: Sequence[Recording],
    steps: Sequence[StepTable],
    runs: Sequence[RecordedRun],
    lost: Sequence[str],
    *,
    judged: bool,
    timed: bool,
    untimed: bool,
) -> None:
    """Raise RecordingError where there is nothing to learn from.

    `untimed` says that requests ran, and that no server that was watched tells times of tokens.
    """
    names = ", ".join(recording.name for recording in recordings)
    unnamed = [] if runs else [each for each in lost if UNNAMED in each]
    if unnamed:
        raise RecordingError(f"{unnamed[0]}. {NAMED_BY}")
    lacking = timed and not steps
    if all(map(only_watched, recordings)) and (lacking or not runs):
        dropped = [f". L{each[1:]}" for each in lost if each.startswith("left out of")]
        why = UNTIMED if lacking and untimed else TOO_LITTLE
        raise RecordingError(f"{names}: {why}{''.join(dropped)}")
    if lacking:
        tables = "a GPU (--gpu)" if judged else "a GPU (--gpu) or operator tables (--operators)"
        how = "Run ttscope record --model"
        if all(map(_asked_a_server, recordings)):
            how = (
                "A server does not show its steps to clients. Start it with ttscope's plugin, as "
                "ttscope doctor URL says, and run ttscope attach URL --workload FILE --listen 4318 "
                "instead"
            )
        raise RecordingError(
            f"{names}: no engine step to learn from. {how}, or take times from {tables}"
        )
    if not runs:
        raise _no_run(recordings, names, lost)
    curves = [run for run in runs if run.curve is not None]
    names_of = [run.engine.model for run in curves]
    twice = next((name for name in names_of if names_of.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{names}: hold more than one curve of {twice}. Give one, or import each with a "
            "--model NAME of its own"
        )
    has_judged = curves or any(s.correct is not None for run in runs for s in run.samples)
    if judged and not has_judged:
        raise RecordingError(
            f"{names}: no sample is marked right or wrong. Record with answers. Requests without "
            "any are for ttscope replay"
        )


def _asked_a_server(recording: Recording) -> bool:
    """Whether a workload was sent to a server, which was not an import of another tool's."""
    manifest = recording.manifest
    servers = [engine.mode == "server" for engine in manifest.engines.values()]
    return "imported" not in manifest.provenance and bool(servers) and all(servers)


def _model_notes(recording: Recording) -> list[str]:
    """Return what to say of a recording's models whose steps ask for more than dense ones."""
    notes, ranks = [], ranks_in(recording.manifest.engines.values())
    for key, engine in recording.manifest.engines.items():
        facts = recording.manifest.models.get(engine.model)
        if facts is None and engine.mode == "server" and only_watched(recording):
            notes.append(
                f"{recording.name}: what {engine.model} costs a token is not known here. Its steps "
                "are taken for those of a dense model and of this size alone, and its FLOPs are "
                "not known. ttscope attach --model-config says what it costs"
            )
        note = None if facts is None else unchecked(facts, engine, ranks.get(engine, engine.ranks))
        notes += [] if note is None else [note]
        if facts is not None and reads_of(facts).window:
            steps = recording.frame("steps", ("engine", *WINDOWED)).filter(pl.col("engine") == key)
            if steps[WINDOWED[0]].null_count():
                notes.append(
                    f"{recording.name}: how much of the context layers with a window read is "
                    "inferred, as if the requests of a step had equal contexts"
                )
    return notes


def _untimed(windows: Windows) -> bool:
    """Whether requests ended, and no server tells the times between their tokens."""
    each = [window for window in windows.values() if window is not None]
    times = [window.histograms[ITL] for window in each if ITL in window.histograms]
    has_times = any(np.isfinite(histogram.sums).any() for histogram in times)
    return any(window.total(FINISHED) for window in each) and not has_times


def _same_workload(recordings: Sequence[Recording]) -> WorkloadFacts | None:
    """Return the workload of those that have one: of others only the steps are learned from."""
    answering = [
        each
        for each in recordings
        if each.rows("problems") or PublishedCurve.told(each.manifest.provenance) is not None
    ] or list(recordings)
    first = answering[0]
    for other in answering[1:]:
        ours, theirs = first.manifest.workload, other.manifest.workload
        if (ours and ours.hash) != (theirs and theirs.hash):
            why = f"({_told(ours, theirs)} and {_told(theirs, ours)}). Advise on recordings of one "
            why += "workload"
            if all("imported" in each.manifest.provenance for each in (first, other)):
                why = _unlike(first, other)
            raise WorkloadsError(f"{first.name} and {other.name} answer different problems {why}")
    return first.manifest.workload


def _unlike(first: Recording, other: Recording) -> str:
    """Return in what the problems of two imports differ."""
    of_curves = [PublishedCurve.told(each.manifest.provenance) for each in (first, other)]
    if any(of_curves):
        remedy = "Import each with the same --benchmark NAME, if they are of the same problems"
        if not all(of_curves):
            remedy = "A published curve names no problem, so it stands beside other curves alone"
        return f"(nothing says otherwise). {remedy}"
    ours, theirs = (set(each.problems["problem_id"]) for each in (first, other))
    if ours == theirs:
        return (
            f"({len(ours):,} of the same names, whose prompts or expected answers differ or are in "
            "one of the files alone). Give both files the same"
        )
    return (
        f"({len(ours & theirs):,} names are the same of {len(ours):,} and {len(theirs):,}). Import "
        "files of the same problems"
    )


def _check_models(recordings: Sequence[Recording]) -> None:
    """Raise UsageError where imports of different models would be taken for those of one."""
    of_name: dict[str, tuple[str, ModelFacts | None]] = {}
    for each in recordings:
        manifest = each.manifest
        if "imported" not in manifest.provenance:
            continue
        for name in {engine.model for engine in manifest.engines.values()}:
            facts = manifest.models.get(name)
            first, first_facts = of_name.setdefault(name, (each.name, facts))
            if first == each.name:
                continue
            if name == UNKNOWN_MODEL:
                raise UsageError(
                    f"{first} and {each.name}: neither says which model it is of. Import each "
                    "again with --model NAME"
                )
            if facts is None or first_facts is None:
                of_name[name] = (first, first_facts or facts)
            elif _shape(facts) != _shape(first_facts):
                raise UsageError(
                    f"{first} and {each.name}: hold different models of the name {name}. Import "
                    "each again with a --model NAME of its own"
                )


def _shape(facts: ModelFacts) -> tuple[int, ...]:
    return (facts.num_hidden_layers, facts.hidden_size, facts.num_attention_heads)


def _told(workload: WorkloadFacts | None, other: WorkloadFacts | None) -> str:
    """Return a workload's name, and what tells it from another of the same name."""
    if workload is None:
        return "unknown"
    if other is None or workload.name != other.name:
        return workload.name
    text = f"{workload.problems:,} problems of {workload.name}"
    if workload.seed != other.seed:
        text += f" with seed {'unknown' if workload.seed is None else workload.seed}"
    same = (workload.problems, workload.seed) == (other.problems, other.seed)
    return f"{text}, hash {workload.hash}" if same else text


def _no_run(recordings: Sequence[Recording], names: str, lost: Sequence[str]) -> TtscopeError:
    """Return why there is no run with all samples of a problem."""
    imported = all("imported" in each.manifest.provenance for each in recordings)
    if lost and any(PublishedCurve.told(each.manifest.provenance) for each in recordings):
        return RecordingError(". ".join(lost))
    if imported and not any(each.rows("problems") for each in recordings):
        return UsageError(f"{names}: names no requests, so there is nothing to replay or to judge")
    return RecordingError(". ".join(lost) if lost and imported else _unfinished(recordings, names))


def _unfinished(recordings: Sequence[Recording], names: str) -> str:
    policies = {policy for each in recordings for policy in each.manifest.policies.values()}
    labels = ", ".join(sorted(policy.label() for policy in policies))
    if policies and all(policy.stops_early for policy in policies):
        return (
            f"{names}: run as {labels}, which stops early, so that the samples that ended are no "
            "fair draw. Record with majority, which can be replayed under that rule"
        )
    if policies and not any(policy.all_samples_end for policy in policies):
        return f"{names}: run as {labels}, whose samples no replay can draw. Record with majority"
    return f"{names}: no finished problem with all its samples. Record again"


def _steps(recording: Recording, windows: Windows | None, most: int | None) -> list[StepTable]:
    """Return the steps of all engines, of watched ones whose steps did not come their means."""
    tables = []
    for key, engine in learned_as(recording.manifest.engines).items():
        tables += _steps_of(recording, key, engine, most)
    taught = {table.engine for table in tables}
    for key, window in (windows or {}).items():
        engine = recording.manifest.engines[key]
        facts = recording.manifest.models.get(engine.model)
        if window is None or engine in taught:
            continue
        means = mean_steps(window, engine, reads_of(facts))
        if means is not None:
            table = StepTable(
                recording=recording.name,
                configuration=_configuration(recording),
                engine=engine,
                facts=facts,
                composition=means.composition,
                seconds=means.seconds,
                most_of_all=means.most,
                coarse=True,
            )
            tables.append(table)
    return tables


def _steps_of(
    recording: Recording, key: str, engine: EngineConfig, most: int | None
) -> list[StepTable]:
    facts = recording.manifest.models.get(engine.model)
    server = engine.mode == "server"
    refused = None if facts is None else refusal(facts, engine)
    if refused is not None:
        raise RecordingError(f"{recording.name}: {refused}")
    read = recording.frame("steps", USED)
    is_step = pl.col("source").fill_null("measured") != FORWARD  # of the forward alone: no steps
    steps = read.filter(pl.col("engine") == key, is_step)
    if server:
        steps = with_prompt_context(steps.sort("step"), engine.max_num_batched_tokens)
        steps = with_decode_context(with_context_of_several(steps), engine.block_size)
    frame = (
        with_host_work(steps, recording, key, engine)
        .filter(~pl.col("profiled").fill_null(False))
        .drop_nulls(["seconds", *COMPOSITION])
        .filter(pl.col("seconds") > 0, pl.col("prefill_requests") + pl.col("decode_requests") > 0)
    )
    if frame.is_empty():
        return []
    if facts is None and not server:
        raise RecordingError(
            f"{recording.name}: holds no facts of the model {engine.model}, so that no law can be "
            "learned from its steps. ttscope show still says what was measured. Record again"
        )
    composition = feature_matrix(
        frame, speculative=engine.speculative is not None, reads=reads_of(facts)
    )
    seconds, high = frame["seconds"].to_numpy().astype(float), None
    ends = None if frame["end"].null_count() else frame["end"].to_numpy()
    if most is not None and read.height > most:
        kept = places(len(frame), round(len(frame) * most / read.height), recording.name)
        high = composition.max(axis=0)
        composition, seconds = composition[kept], seconds[kept]
        ends = None if ends is None else ends[kept]
    table = StepTable(
        recording=recording.name,
        configuration=_configuration(recording),
        engine=engine,
        facts=facts,
        composition=composition,
        seconds=seconds,
        most_of_all=high,
        ends=ends,
    )
    return [table]


def _cancelled(recording: Recording, windows: Windows) -> list[str]:
    """Return which of vLLM's requests are in no traffic, as clients cancelled them."""
    engines = recording.manifest.engines
    notes = [
        cancelled_told(window)
        for key, window in windows.items()
        if window is not None and software_of(engines[key]) == VLLM
    ]
    return [f"{recording.name}: {told}" for told in notes if told is not None]


def _seen_limits(recording: Recording) -> list[str]:
    """Return what a watch noted of limits that its servers did not tell."""
    notes = recording.frame("events", ["kind", "detail"]).filter(kind="note")["detail"]
    return [f"{recording.name}: {text}" for text in notes.drop_nulls() if text.startswith(TAKEN)]


def stand_for_all(kept: int, in_turn: int, ended: float) -> bool:
    """Whether requests that spans tell stand for all that ended, without those sent in turn."""
    return kept + in_turn >= MOST_SEEN * ended and kept >= MOST_KEPT * ended


def _with_drawn(
    recording: Recording,
    windows: Windows,
    runs: list[RecordedRun],
    in_turn: Mapping[EngineConfig, Sequence[int]],
) -> tuple[list[RecordedRun], list[str]]:
    """Return runs of watched servers, and why some are drawn: spans tell too little of these.

    Spans do not say which of several servers of a model a request was on, so they are held against
    what ended on all of them. They do not stand for servers that do not draw samples alike.
    `in_turn` are problems that are in no run, by how many requests they had. Where traffic is
    drawn, spans of no server's model are left out, since they may be of the same requests.
    """
    engines = recording.manifest.engines
    polled: dict[str, dict[EngineConfig, tuple[str, Window]]] = {}  # by model
    for key, window in windows.items():
        if window is not None:
            polled.setdefault(engines[key].model, {})[engines[key]] = key, window
    models = {
        engine.model
        for key, engine in engines.items()
        if windows.get(key) is not None or not of_spans(engine)
    }
    notes, left_out, any_drawn = list[str](), dict(in_turn), False
    for model, model_servers in polled.items():
        servers = _Servers(model=model, polled=model_servers, any_name=len(models) == 1)
        seen = [run for run in runs if servers.are(run.engine)]
        after = sum(sum(each) for of, each in in_turn.items() if servers.are(of))
        drawn = [] if servers.are_told_by(seen, after) else servers.drawn(recording.name)
        if drawn:
            any_drawn = True
            notes += servers.notes(recording.name, seen, after)
            runs = [run for run in runs if not servers.are(run.engine)] + drawn
            left_out = {of: each for of, each in left_out.items() if not servers.are(of)}

    def is_strange(engine: EngineConfig) -> bool:
        return any_drawn and of_spans(engine) and engine.model not in models

    strange = sorted({run.engine.model for run in runs if is_strange(run.engine)})
    runs = [run for run in runs if not is_strange(run.engine)]
    if strange:
        names = ", ".join(strange)
        notes.append(f"left out of {recording.name}: spans of {names}, which no watched server has")
    if lengths := [n for of, each in left_out.items() if not is_strange(of) for n in each]:
        notes.append(
            f"left out of {recording.name}: {counted(len(lengths), 'problem')} whose "
            f"{sum(lengths):,} requests came one after another, as the replay sends those of a "
            "problem at once. Its load is lower by these. replay --agents takes them as sessions"
        )
    return runs, notes


def _with_turns(
    runs: Sequence[RecordedRun], turns: Mapping[EngineConfig, Sequence[ProblemRun]]
) -> list[RecordedRun]:
    """Return runs with the turns that spans tell of their engine, or of the only one there is."""
    every = tuple(chain.from_iterable(turns.values()))
    alone = len({run.engine for run in runs}) == 1
    return [
        replace(run, turns=tuple(turns.get(run.engine, every if alone else ()))) for run in runs
    ]


def _with_inferred(
    recording: Recording, windows: Windows, runs: list[RecordedRun]
) -> tuple[list[RecordedRun], list[str]]:
    """Return runs with those that forward passes tell of servers, and which tell none and why.

    Spans stand before them. Histograms of /metrics tell less: they are of no request by itself.
    """
    why, lost = [], recording.manifest.dropped.get("steps", 0)
    for key, engine in recording.manifest.engines.items():
        engine_runs = [run for run in runs if run.engine == engine] or runs
        if not all(run.drawn for run in engine_runs):
            continue
        steps = recording.frame("steps", OF_PASSES).filter(pl.col("engine") == key)
        if steps.is_empty():
            continue
        steps = steps.sort("step")
        inferred = inferred_traffic(steps, engine, recording.name, key, lost)
        begun = int(steps["prefill_requests"].sum())
        if not isinstance(inferred, str):
            runs = [run for run in runs if run.engine != engine] + inferred
            if begun > MOST_INFERRED:
                why.append(
                    f"{recording.name}: the last {MOST_INFERRED:,} of {begun:,} requests are "
                    "inferred"
                )
            cut, kept = ran_at_ends(steps), len(inferred[0].problems)
            if cut > MOST_UNTOLD * (cut + kept):
                why.append(
                    f"{recording.name}: of {cut + kept:,} requests {cut:,} ran as its steps began "
                    "or ended, and are left out. The others are shorter"
                )
        elif windows.get(key) is None:
            why.append(f"{recording.name}: {UNNAMED}: {inferred}")
    return runs, why


@dataclass(frozen=True, kw_only=True)
class _Servers:
    """The watched servers of a model, each with its key and what was polled of it."""

    model: str
    polled: Mapping[EngineConfig, tuple[str, Window]]
    any_name: bool  # spans may call the model otherwise than the plugin

    def are(self, engine: EngineConfig) -> bool:
        """Whether an engine is one of these, by its name if spans alone tell of it."""
        return self.any_name or engine.model == self.model or engine in self.polled

    @property
    def ended(self) -> float:
        """How many requests ended on them."""
        return sum(window.total(FINISHED) or 0.0 for _, window in self.polled.values())

    def decode_as(self, runs: Sequence[RecordedRun]) -> bool:
        """Whether runs may stand for all: by another name they may be of others' requests."""
        one = len(set(map(decoder_of, self.polled))) == 1
        return one and all(run.engine.model == self.model for run in runs)

    def are_told_by(self, seen: Sequence[RecordedRun], after: int) -> bool:
        """Whether the runs that spans tell, and requests in turn, stand for all that ended."""
        requests = sum(1 for run in seen for _ in run.samples)
        return stand_for_all(requests, after, self.ended) and self.decode_as(seen)

    def drawn(self, recording: str) -> list[RecordedRun]:
        return [
            run
            for engine, (key, window) in self.polled.items()
            for run in drawn_traffic(window, engine, recording, key)
        ]

    def notes(self, recording: str, seen: Sequence[RecordedRun], after: int) -> list[str]:
        """Say what spans tell, `after` requests of them one after another; nothing without any."""
        sent = sum(1 for run in seen for _ in run.samples) + after
        if not sent:
            return []
        which = "" if self.decode_as(seen) else ", and not on which server each was"
        which += f", {after:,} of them one after another for a problem" if after else ""
        return [
            f"{recording}: spans are of {sent:,} of {self.ended:,.0f} requests that ended{which}, "
            "so that lengths and arrivals are those of /metrics"
        ]


def _with_decoders(
    runs: Sequence[RecordedRun], windows: Windows, recording: Recording
) -> list[RecordedRun]:
    """Return runs of spans with how their servers decode.

    That is known where the servers of a model decode alike.
    """
    engines = recording.manifest.engines
    servers = [engines[key] for key, window in windows.items() if window is not None]
    decoding_runs = []
    for run in runs:
        model_servers = [each for each in servers if each.model == run.engine.model]
        decoders = {tuple(getattr(each, name) for name in DECODER) for each in model_servers}
        engine = run.engine
        if of_spans(engine) and len(decoders) == 1:
            decoding = dict(zip(DECODER, decoders.pop(), strict=True))
            engine = dataclasses.replace(engine, **decoding)
        decoding_runs.append(dataclasses.replace(run, engine=engine))
    return decoding_runs


def _rate(runs: Sequence[RecordedRun]) -> float | None:
    """Return the problems a second of a watch: of all its servers, whose draws are one load."""
    each = {run.engine: run.rate_per_s for run in runs}
    rates = [rate for rate in each.values() if rate is not None]
    return sum(rates) if rates else None


ONE_PROBLEM = (
    "one problem does not show how others differ. The logarithms of their times are taken to have "
    "a standard deviation of 1"
)
NOT_OURS = (
    "is of traffic that was watched. It teaches the times of its engine's steps, and none of its "
    "requests is among the problems"
)
COUNTS_ONLY = (
    "its /metrics do not say which samples belong to one request. It teaches the times of its "
    "engine's steps, and its samples are not among the problems"
)


def _set_apart(
    recordings: Sequence[Recording], *, watched: bool, judged: bool
) -> tuple[list[Recording], list[Recording], list[str]]:
    """Return the recordings, those that teach steps alone beside them, and why."""
    apart, why = list[Recording](), ""
    if watched:
        apart, why = _without_requests(recordings), COUNTS_ONLY
    elif judged:
        apart, why = [each for each in recordings if only_watched(each)], NOT_OURS
    kept = [each for each in recordings if each not in apart]
    return kept, apart, [f"{each.name}: {why}" for each in apart]


def _without_requests(recordings: Sequence[Recording]) -> list[Recording]:
    """Return the watched recordings whose samples would not count as others' requests do.

    None where no request has several samples: a sample is a request then.
    """

    def several(recording: Recording) -> bool:
        problems = recording.frame("problems").height
        return 0 < problems < recording.frame("samples").height

    if not any(map(several, recordings)):
        return []
    return [each for each in recordings if not each.rows("problems")]


def _counted_as(runs: Sequence[RecordedRun]) -> list[str]:
    """Return what a problem is of traffic that was watched: a sample, or a request of several."""
    notes = []
    for run in runs:
        if run.inferred:
            notes.append(f"{run.recording}: {INFERRED}")
        if run.inferred and run.engine.num_gpu_blocks is None:
            notes.append(f"{run.recording}: {NO_CACHE}")
        most = max((len(each.samples) for each in run.problems.values()), default=1)
        if run.drawn:
            feed = "forward passes do" if run.inferred else "/metrics does"
            notes.append(
                f"{run.recording}: each sample counts as a problem, at a rate too, for {feed} not "
                "say which belong to one request"
            )
        elif most > 1:
            notes.append(f"{run.recording}: a request of up to {most} samples is one problem")
    return notes


def _configuration(recording: Recording) -> str:
    manifest = recording.manifest
    parts = [*sorted(manifest.engines), *sorted(manifest.policies)]
    workload = None if manifest.workload is None else manifest.workload.hash
    return " ".join(map(str, [*parts, manifest.concurrency, manifest.rate_per_s, workload]))
