"""Servers and ranks of one model that were watched together, as the replicas of one engine.

Each of them tells its own /metrics, so that its traffic and its steps are known by itself. Spans
need not say which of them a request was on. Those that are set up alike are one engine here, with
one law of all their steps and one load, and `Placing` says what is known of who served whom.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from advisor.evidence.gather import Evidence
from advisor.evidence.keys import URL, WORKER, law_key, of_spans
from advisor.evidence.live.drafts import with_drafts, with_lengths
from advisor.evidence.live.front_end_time import with_front_end
from advisor.evidence.live.histograms import drawn_traffic
from advisor.evidence.live.ranks import server_of
from advisor.evidence.runs import ProblemRun, RecordedRun
from traces.live.numbers import (
    E2E,
    FINISHED,
    GENERATED,
    QUANTILES,
    TTFT,
    USED,
    Bounds,
    Window,
)
from traces.live.watched import RANK, Windows, only_watched, windows_for, windows_of
from traces.recording.reader import Recording
from traces.schema.engine import RANKS, EngineConfig
from traces.schema.estimate import Estimate
from traces.statistics import Floats, mean, ratio, spread
from traces.summary.comparison import BLOCKS_DIFFER
from traces.summary.energy import run_window
from traces.summary.kernels import sample_times
from traces.summary.problems import mostly_told
from traces.summary.run import Run, summarise

SURELY = 3.0  # standard deviations of chance, beyond which servers' shares of requests differ


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Servers that are set up alike: `engine` is all of them, `members` each by its key."""

    engine: EngineConfig
    members: Mapping[str, EngineConfig]

    @property
    def replicas(self) -> int:
        """How many engines of the replay they are."""
        return self.engine.data_parallel_size

    def has(self, engine: EngineConfig) -> bool:
        return engine in self.members.values()


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Which server a problem goes to.

    `told` says that it is known of each. Else it is drawn by the servers' shares of the requests
    that ended, and `even` says whether these are as a router's that spreads them evenly.
    """

    told: bool
    even: bool


def servers_of(recording: Recording) -> list[Servers]:
    """Return the engines whose /metrics a watch holds, those that are set up alike together.

    A limit that one of them does not tell is that of the others. Empty where there is one engine,
    and for what was not only watched.
    """
    engines = recording.manifest.engines
    if len(engines) < 2 or not only_watched(recording):
        return []
    polled = recording.table("scrapes").filter(pl.col("name").is_in(USED)).select("engine")
    keys = set(polled.unique().collect()["engine"])
    groups: dict[EngineConfig, list[dict[str, EngineConfig]]] = {}
    for key in (key for key in engines if key in keys):
        engine = engines[key]
        alike = groups.setdefault(
            _setup(replace(engine, max_num_seqs=None, num_gpu_blocks=None)), []
        )
        group = next((each for each in alike if _as_large(engine, each.values())), None)
        if group is None:
            alike.append(group := {})
        group[key] = engine
    servers = []
    for setup, members in [(setup, each) for setup, alike in groups.items() for each in alike]:
        limits = sorted({each.max_num_seqs or 0 for each in members.values()} - {0}) or [0]
        for limit in limits:
            last = limit == limits[-1]
            group = {
                key: each
                for key, each in members.items()
                if each.max_num_seqs == (limit or None) or (last and each.max_num_seqs is None)
            }
            if group:
                servers.append(Servers(engine=_whole(setup, limit or None, group), members=group))
    order = list(engines)
    return sorted(servers, key=lambda each: order.index(next(iter(each.members))))


def run_with_length(recording: Recording, run: Run) -> tuple[Recording, Run]:
    """Return a recording and a run of it, whose engine says how far ahead it drafts.

    Raises RecordingError as `with_lengths` does.
    """
    completed = with_lengths(recording)
    if completed is recording:
        return recording, run
    of_run = (each.members for each in servers_of(recording) if each.engine == run.engine)
    keys = next(of_run, (recording.engine_key(run.engine),))
    engines = completed.manifest.engines
    settings = {engines[key].speculative for key in keys if key in engines}
    if len(settings) == 1:
        run = replace(run, engine=replace(run.engine, speculative=settings.pop()))
    return completed, run


def _as_large(engine: EngineConfig, others: Iterable[EngineConfig]) -> bool:
    """Whether engines' caches differ no more than that of one does from start to start."""
    sizes = [each.num_gpu_blocks for each in (engine, *others)]
    known = [blocks for blocks in sizes if blocks is not None]
    if not known:
        return True
    return len(known) == len(sizes) and min(known) >= (1 - BLOCKS_DIFFER) * max(known)


def _whole(
    setup: EngineConfig, max_num_seqs: int | None, members: Mapping[str, EngineConfig]
) -> EngineConfig:
    """Return all servers as one engine, whose replicas they are, with the smallest cache.

    Ranks on the page of one server are no servers, replicas of Ray's are.
    """
    each = list(members.values())
    if len(each) == 1:
        return each[0]
    ranks: Counter[tuple[tuple[str, str], ...]] = Counter()
    for one in _counted(each):
        ranks[server_of(one)] += one.data_parallel_size
    count = ranks.total()
    if len(ranks) > 1:
        listing = " ".join(map(str, sorted(set(ranks.values()))))
        setup = replace(setup, other=(*setup.other, (RANKS, listing)))
    return replace(
        setup,
        max_num_seqs=max_num_seqs,
        num_gpu_blocks=min((n for one in each if (n := one.num_gpu_blocks)), default=None),
        num_gpus=None if setup.num_gpus is None else setup.num_gpus * count,
        data_parallel_size=count,
    )


def _counted(engines: Sequence[EngineConfig]) -> list[EngineConfig]:
    """Return the engines that count: ranks, and servers that tell nothing of their ranks.

    A server may tell some numbers of its ranks and others of all (SGLang).
    """
    by_page: dict[tuple[tuple[str, str], ...], list[EngineConfig]] = {}
    for one in engines:
        page = tuple(pair for pair in one.other if pair[0] != RANK)
        by_page.setdefault(page, []).append(one)
    return [
        one
        for own in by_page.values()
        for one in [rank for rank in own if RANK in dict(rank.other)] or own
    ]


def _setup(engine: EngineConfig) -> EngineConfig:
    """Return a server as one replica, wherever it is."""
    other = tuple(pair for pair in engine.other if pair[0] not in WORKER | {URL})
    return replace(engine.one_replica(), other=other)


def told_by(engine: EngineConfig, servers: Servers, among: Sequence[Servers]) -> bool:
    """Whether an engine is one of the servers, or of spans that are of no others' of `among`."""
    of_model = [each for each in among if each.engine.model == engine.model]
    return servers.has(engine) or (of_spans(engine) and of_model == [servers])


def as_one(evidence: Evidence, recording: Recording, servers: Servers) -> tuple[Evidence, Placing]:
    """Return the evidence with a watch's servers as one engine, and what is known of who served.

    Spans that may be of others than these do not stand for them: their traffic is then drawn.
    """
    among, windows = servers_of(recording), windows_of(recording, lengths=True)
    own_runs = [
        run
        for run in evidence.runs
        if run.recording == recording.name and told_by(run.engine, servers, among)
    ]
    if not own_runs:
        drawn = [
            run
            for key, engine in servers.members.items()
            if (window := windows.get(key)) is not None
            for run in drawn_traffic(window, engine, recording.name, key)
        ]
        polls = {run.engine: windows_for(recording, windows, run.engine) for run in drawn}
        own_runs, _ = with_drafts(with_front_end(recording, drawn, windows), polls)
    runs, placing = together(own_runs, servers, windows)
    taken = set(map(id, own_runs))
    tables = (
        replace(each, engine=servers.engine)
        if each.recording == recording.name and servers.has(each.engine)
        else each
        for each in evidence.steps
    )
    rest = (each for each in evidence.runs if id(each) not in taken)
    own_ranks = (evidence.ranks.get(law_key(e), frozenset()) for e in servers.members.values())
    ranks = {**evidence.ranks, law_key(servers.engine): frozenset[int | None]().union(*own_ranks)}
    return replace(evidence, steps=tuple(tables), runs=(*runs, *rest), ranks=ranks), placing


def together(
    runs: Sequence[RecordedRun], servers: Servers, windows: Windows
) -> tuple[list[RecordedRun], Placing]:
    """Return the runs of servers, or of the spans that stand for them, as those of one engine.

    Traffic that was drawn for each of them is one run a draw. Each problem says on which of them it
    is (`Placing`).
    """
    places = {engine: place for place, engine in enumerate(servers.members.values())}
    drawn: dict[EngineConfig, list[RecordedRun]] = {}
    for run in runs:
        drawn.setdefault(run.engine, []).append(run)
    rates = [each[0].rate_per_s for each in drawn.values() if each[0].rate_per_s is not None]
    is_placed = drawn.keys() <= places.keys()
    if not is_placed and len(drawn) == len(places):  # each server's spans name themselves otherwise
        places, is_placed = {engine: place for place, engine in enumerate(drawn)}, True
    polled = [windows.get(key) for key in servers.members]
    ended = np.array([0.0 if w is None else w.total(FINISHED) or 0.0 for w in polled])
    shares = ended / ended.sum() if ended.any() else np.full(len(ended), 1 / len(ended))
    merged = []
    for number in range(max(map(len, drawn.values()), default=0)):
        problems: list[ProblemRun] = []
        for engine, several in drawn.items():
            server_problems = list(several[number % len(several)].problems.values())
            at = np.full(len(server_problems), places.get(engine, 0))
            if not is_placed:
                at = np.random.default_rng([len(server_problems), number]).choice(
                    len(shares), len(server_problems), p=shares
                )
            problems += [
                replace(each, server=int(place))
                for each, place in zip(server_problems, at, strict=True)
            ]
        problems.sort(key=lambda each: each.arrival_ns or 0)
        merged.append(
            replace(
                next(iter(drawn.values()))[0],
                engine=servers.engine,
                problems={each.problem_id: each for each in problems},
                rate_per_s=sum(rates) if rates else None,
            )
        )
    return merged, Placing(told=is_placed, even=_even(ended))


def _even(ended: Floats) -> bool:
    """Whether servers' counts of requests differ by no more than chance would have them.

    That is Pearson's statistic, whose mean is its degrees of freedom and whose variance is twice
    these.
    """
    mean, freedom = float(ended.mean()), len(ended) - 1
    if not mean or not freedom:
        return True
    statistic = float(((ended - mean) ** 2).sum()) / mean
    return bool(statistic <= freedom + SURELY * np.sqrt(2 * freedom))


def replayable(
    recording: Recording,
    runs: Sequence[Run] | None = None,
    among: Sequence[Servers] | None = None,
) -> Sequence[Run]:
    """Return a recording's runs as a replay takes them: servers that were watched together as one.

    Others as they are. The order is that of the servers. `runs` and `among` are the recording's
    runs and servers, where these are known already.
    """
    runs = summarise(recording) if runs is None else runs
    among = servers_of(recording) if among is None else among
    return [_summary(recording, each, runs, among) for each in among] or runs


def deployed(recording: Recording, run: Run) -> Run:
    """Return the run of the servers that a watched one is of, or whose requests its spans tell."""
    among = servers_of(recording)
    for place, servers in enumerate(among):
        if told_by(run.engine, servers, among):
            return replayable(recording, among=among)[place]
    return run


def _summary(
    recording: Recording, servers: Servers, runs: Sequence[Run], among: Sequence[Servers]
) -> Run:
    own_runs = [
        each
        for each in runs
        if each.rows is not None and each.rows.height and told_by(each.engine, servers, among)
    ]
    own_steps = recording.step_times["engine"].cast(pl.Utf8).is_in(list(servers.members))
    steps = int(own_steps.sum() or 0)
    if len(own_runs) == 1:
        cost = own_runs[0].cost_per_token_device_s  # on all devices, as of a replay
        more = servers.engine.num_devices / own_runs[0].engine.num_devices
        return replace(
            own_runs[0],
            engine=servers.engine,
            steps=steps or None,
            cost_per_token_device_s=None if cost is None else cost.scaled(more, cost.unit),
        )
    summary = Run(
        recording=recording.name,
        complete=recording.complete,
        cut=recording.cut,
        engine=servers.engine,
        policy=None,
        steps=steps or None,
        conditions=runs[0].conditions if runs else (),
        notes=tuple(dict.fromkeys(note for each in own_runs for note in each.notes)),
    )
    return (
        _pooled(summary, own_runs)
        if own_runs
        else as_metrics_say(summary, recording, servers.members)
    )


def _pooled(found: Run, own: Sequence[Run]) -> Run:
    """Return the requests that several processes' spans tell, each problem of one of them."""
    rows, times, samples, first = [], [], [], 0
    for each in own:
        if each.rows is None or each.sample_rows is None or each.windows is None:
            continue
        shift = pl.col("problem") + first
        rows.append(each.rows.with_columns(shift))
        samples.append(each.sample_rows.with_columns(shift))
        times.append(sample_times(each.rows, each.sample_rows, each.windows).with_columns(shift))
        first += each.rows.height
    all_rows, timed, asked = (
        pl.concat(each, how="vertical_relaxed") for each in (rows, times, samples)
    )
    decided = all_rows.filter(pl.col("state") == "decided")
    problem = timed["problem"].to_numpy()
    latency, tokens = (_floats(decided[name]) for name in ("latency_s", "tokens"))
    window, speed, has_tokens = run_window(all_rows, asked), None, mostly_told(tokens)
    if window is not None and window[1] > window[0] and not asked["output_tokens"].null_count():
        made = float(asked["output_tokens"].sum())
        speed = Estimate(value=made / (window[1] - window[0]) * 1e9, unit="tokens/s")
    return replace(
        found,
        problems=decided.height,
        problems_in_flight=sum(each.problems_in_flight for each in own),
        problems_failed=sum(each.problems_failed for each in own),
        latency_s=spread(latency, "s"),
        ttft_s=spread(timed["ttft_s"].to_numpy(), "s", problem),
        tpot_s=spread(timed["tpot_s"].to_numpy(), "s/token", problem),
        tokens_per_problem=mean(tokens, "tokens") if has_tokens else None,
        cost_per_token_device_s=ratio(latency * found.engine.num_devices, tokens, "device-s/token")
        if has_tokens
        else None,
        throughput_tokens_per_s=speed,
        rows=all_rows,
        sample_rows=asked,
        windows=own[0].windows,
    )


def _floats(column: pl.Series) -> Floats:
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def as_metrics_say(found: Run, recording: Recording, keys: Iterable[str]) -> Run:
    """Return a run with the means of its servers' /metrics, where these were polled."""
    windows = _polled(recording, keys)
    if not windows:
        return found

    def mean_of(name: str) -> dict[str, Estimate | None]:
        count, total = (
            sum(window.total(f"{name}_{part}") or 0.0 for window in windows)
            for part in ("count", "sum")
        )
        value = Estimate(value=total / count, unit="s") if count and total else None
        return {"mean": value, "p50": None, "p95": None}

    rate = _busy_rate(windows)
    return replace(
        found,
        latency_s=mean_of(E2E),
        ttft_s=mean_of(TTFT),
        throughput_tokens_per_s=None if rate is None else Estimate(value=rate, unit="tokens/s"),
    )


def _polled(recording: Recording, keys: Iterable[str]) -> list[Window]:
    polls = windows_of(recording)
    return [window for key in keys if (window := polls.get(key)) is not None]


def _busy_rate(windows: Sequence[Window]) -> float | None:
    """Return the tokens a second of servers from the first to the last that was generated.

    A replay has no time before its requests or behind them.
    """
    made = [np.nan_to_num(window.counted[GENERATED]) for window in windows]
    spans = [
        (window.times[max(places[0] - 1, 0)], window.times[places[-1]])
        for window, tokens in zip(windows, made, strict=True)
        if (places := np.flatnonzero(tokens)).size
    ]
    if not spans:
        return None
    begin, end = min(first for first, _ in spans), max(last for _, last in spans)
    rate = 0.0
    for window, tokens in zip(windows, made, strict=True):
        inside = (window.times > begin) & (window.times <= end)
        inside &= np.isfinite(window.counted[GENERATED])  # none over a restart
        lengths = np.diff(window.times, prepend=window.times[0])
        rate += float(tokens[inside].sum() / max(lengths[inside].sum() / 1e9, 1e-9))
    return rate


def time_bounds(recording: Recording, keys: Sequence[str]) -> dict[str, Bounds]:
    """Return between what /metrics have the quantiles of a server's latency and TTFT, by tag.

    Empty of several servers, whose quantiles do not add up, and where /metrics do not tell them.
    """
    windows = _polled(recording, keys)
    if len(windows) != 1:
        return {}
    quantiles = {
        f"{tag}.{which}": histogram.quantile(q)
        for tag, name in (("latency_s", E2E), ("ttft_s", TTFT))
        if (histogram := windows[0].histograms.get(name)) is not None
        for which, q in QUANTILES.items()
    }
    return {tag: bounds for tag, bounds in quantiles.items() if bounds is not None}
