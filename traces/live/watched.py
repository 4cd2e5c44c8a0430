"""What a recording of a live deployment amounts to: each engine's numbers and verdict."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
import polars as pl

from traces.forward_pass.rows import FORMAT
from traces.live.engine_names import REQUEST_LIMITS, VLLM, software_of
from traces.live.numbers import (
    MOST_SERIES,
    TRAFFIC,
    USED,
    Numbers,
    Polls,
    Window,
    cancelled_told,
    numbers_in,
)
from traces.live.verdict import STEPS_JUDGED, LiveEvidence, Verdict, judge
from traces.recording.reader import Recording, batches, begin_again
from traces.recording.tables import PROFILED, SILENT, TABLES, ProfiledDetail
from traces.schema.engine import EngineConfig
from traces.schema.formats import counted, number
from traces.schema.record import Record
from traces.statistics import quantile, spread
from traces.summary.kernels import collectives, device_time, sample_times
from traces.summary.run import Run, Spread, summarise, to_plain

_SERIES_LEFT_OUT = (f"scrapes: series beyond the first {MOST_SERIES:,} of the engine",)
EVENTS = ("restart", "counter_reset", "gap", "reconnect", "killed", "drop", "clock")


@dataclass(frozen=True, kw_only=True)
class Requests(Record):
    """The times of an engine's requests one by one: as its spans told them, or as a client saw.

    Mean, p50, p95 and p99 of each, with intervals for other problems, None where not told.
    """

    source: Literal["spans", "client"]
    count: int
    ttft_s: Spread
    prefill_s: Spread
    decode_s: Spread
    e2e_s: Spread


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One engine of a deployment; `events` counts what happened to it by kind.

    `window` holds what its polls say, each by itself, and is None where `numbers` is. `losses` say
    what the recording lacks, and `cut` why it is not complete. `requests` are None where no request
    was seen by itself: only histograms tell of times then.
    """

    recording: str
    complete: bool
    cut: str | None
    engine: EngineConfig
    numbers: Numbers | None
    verdict: Verdict
    events: dict[str, int]
    losses: tuple[str, ...]
    columns: dict[str, str]  # of `steps`: measured, inferred or null; empty without steps
    window: Window | None
    requests: Requests | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "recording": self.recording,
            "complete": self.complete,
            "engine": self.engine.to_json(),
            "numbers": None if self.numbers is None else self.numbers.to_json(),
            "requests": to_plain(self.requests),
            "verdict": self.verdict.to_json(),
            "events": self.events,
            "losses": list(self.losses),
            "step_columns": self.columns,
        }


OF_SERVERS = {"scrapes", "steps", "power", "events"}  # tables that tell of no problem by itself
ONLY_WATCHED = (
    "the traffic of others, whose policy and right answers are not known. Send "
    "problems to the server with ttscope attach URL --workload FILE"
)


def only_watched(recording: Recording) -> bool:
    """Whether a recording has others' traffic alone, as an import of forward passes has too."""
    manifest = recording.manifest
    imported = manifest.provenance.get("imported")
    return not manifest.policies and (imported is None or imported.get("format") == FORMAT)


def runs_and_servers(
    recording: Recording, price_usd_per_device_hour: float | None = None
) -> tuple[list[Run], list[Watched]]:
    """Return a recording's runs, without those that its watched servers repeat, and the servers."""
    held = {table for table in TABLES if recording.rows(table)}
    if held <= OF_SERVERS and (servers := watched_engines(recording)):
        return [], servers
    runs = summarise(recording, price_usd_per_device_hour)
    servers = watched_engines(recording, runs)
    kept = [r for r in runs if r.problems or r.problems_in_flight or r.time_by_family]
    return (kept if servers else runs), servers


def watched_engines(recording: Recording, runs: Sequence[Run] = ()) -> list[Watched]:
    """Return the engines whose /metrics a recording holds; `runs` give times of single requests."""
    windows = windows_of(recording)
    beside = _Beside(recording.frame("events"), recording.frame("kernels"), profiled(recording))
    return [
        _watched(recording, key, engine, windows[key], runs, beside)
        for key, engine in recording.manifest.engines.items()
        if key in windows
    ]


Windows = Mapping[str, Window | None]  # by engine
RANK = "engine"  # in `EngineConfig.other`: one of several on the page of a server


def servers_in(
    recording: Recording, watched: Sequence[Watched]
) -> list[tuple[EngineConfig, Numbers]]:
    """Return each watched server with its numbers, which are of all of its data-parallel ranks."""
    by_engine = {
        each.engine: each.numbers for each in watched if RANK not in dict(each.engine.other)
    }
    ranks = _ranks_of((each.engine, each.window) for each in watched)
    servers = []
    for key, engine in recording.manifest.engines.items():
        if engine in by_engine:
            numbers = by_engine[engine]
        elif windows := _ranks_in(ranks, engine):
            numbers = numbers_in(windows[0].untold().with_ranks(windows), key)
        else:
            continue
        if numbers is not None:
            servers.append((engine, numbers))
    return servers


def windows_of(recording: Recording, *, lengths: bool = False) -> Windows:
    """Return what each engine's polls say; with `lengths` what laws and traffic are made of too."""
    return begin_again(recording, lambda: _windows(recording, lengths))


def profiled(recording: Recording) -> dict[str, list[tuple[int, int]]]:
    """Return when a profiler's windows were open on each engine's server, unix ns."""
    engines, stretches = recording.manifest.engines, dict[str, list[tuple[int, int]]]()
    events = recording.frame("events").filter(pl.col("kind") == PROFILED)
    for told, detail in events.select("engine", "detail").drop_nulls("detail").iter_rows():
        stood = msgspec.json.decode(detail, type=ProfiledDetail)
        for key, engine in engines.items():
            if key == told or (told in engines and _server_of(engines[told]) == _server_of(engine)):
                stretches.setdefault(key, []).append((stood.begun_ns, stood.ended_ns))
    return stretches


def windows_for(recording: Recording, windows: Windows, engine: EngineConfig) -> list[Window]:
    """Return what the polls of an engine say, and for spans those of all servers of their model."""
    engines = recording.manifest.engines
    by_engine = {engines[key]: window for key, window in windows.items() if window is not None}
    if engine in by_engine:
        return [by_engine[engine]]
    return [window for each, window in by_engine.items() if each.model == engine.model]


def _windows(recording: Recording, lengths: bool) -> Windows:
    polls: dict[str, Polls] = {}
    used = (*USED, *TRAFFIC) if lengths else USED
    columns = ("engine", "time", "name", "labels", "le", "value")
    open_then = profiled(recording)
    where = pl.col("engine").is_in(list(recording.manifest.engines)) & pl.col("name").is_in(used)
    for rows in _read_ahead(batches(recording, "scrapes", columns, where)):
        engines = rows["engine"].unique(maintain_order=True).to_list()
        for key in engines:
            engine_rows = rows if len(engines) == 1 else rows.filter(pl.col("engine") == key)
            if key not in polls:
                polls[key] = Polls(lengths=lengths, profiled=open_then.get(key, ()))
            polls[key].add(engine_rows)
    windows = {key: each.window() for key, each in polls.items()}
    manifest_engines = recording.manifest.engines
    ranks = _ranks_of((engine, windows.get(key)) for key, engine in manifest_engines.items())
    for key, window in windows.items() if ranks else ():
        if window is not None:
            windows[key] = window.with_ranks(_ranks_in(ranks, manifest_engines[key]))
    return windows


def _ranks_of(
    engines: Iterable[tuple[EngineConfig, Window | None]],
) -> dict[EngineConfig, list[Window]]:
    """Return the windows of ranks, by their server as one of them."""
    ranks: dict[EngineConfig, list[Window]] = {}
    for engine, window in engines:
        if RANK in dict(engine.other) and window is not None:
            ranks.setdefault(_server_of(engine), []).append(window)
    return ranks


def _ranks_in(ranks: Mapping[EngineConfig, list[Window]], engine: EngineConfig) -> list[Window]:
    """Return the windows of a server's ranks; none for a rank."""
    if RANK in dict(engine.other):
        return []
    return ranks.get(_server_of(engine.one_replica()), [])


def _server_of(engine: EngineConfig) -> EngineConfig:
    """Return a rank without its name and its limit, which may be known of one of them alone."""
    other = tuple(pair for pair in engine.other if pair[0] != RANK)
    return replace(engine, max_num_seqs=None, other=other)


def _read_ahead(found: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Give what is found, and look for the next meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, found, None)
        while (rows := coming.result()) is not None:
            coming = thread.submit(next, found, None)
            yield rows


@dataclass(frozen=True)
class _Beside:
    """What all engines of a recording share, read once: a page may name hundreds of them."""

    events: pl.DataFrame
    kernels: pl.DataFrame
    profiled: Mapping[str, list[tuple[int, int]]]


def _watched(
    recording: Recording,
    key: str,
    engine: EngineConfig,
    window: Window | None,
    runs: Sequence[Run],
    beside: _Beside,
) -> Watched:
    events = beside.events
    steps, columns = begin_again(recording, lambda: _steps(recording, key))
    kernels = beside.kernels.filter(pl.col("engine") == key)
    numbers = None if window is None else numbers_in(window, key)
    mine = events.filter((pl.col("engine") == key) | pl.col("engine").is_null())
    loss_events = mine.filter(pl.col("kind").is_in([SILENT, "drop", "killed"]))
    counts = dict(mine.group_by("kind").len().iter_rows())
    is_vllm = software_of(engine) == VLLM
    cancelled = cancelled_told(window) if is_vllm and window is not None else None
    stood = _stood(beside.profiled.get(key, ()), window)
    requests = _requests([run for run in runs if run.engine == engine])
    evidence = LiveEvidence(
        numbers=numbers,
        steps=steps if steps.height else None,
        collectives=collectives(kernels),
        device_time=device_time(events, key),
        request_limit=REQUEST_LIMITS.get(software_of(engine), "max_num_seqs"),
        told=requests is not None or steps.height > 0,
    )
    return Watched(
        recording=recording.name,
        complete=recording.complete,
        cut=recording.cut,
        engine=engine,
        numbers=numbers,
        verdict=judge(key, evidence),
        events={kind: counts[kind] for kind in EVENTS if counts.get(kind)},
        losses=(
            *recording.losses,
            *(_SERIES_LEFT_OUT if window is not None and window.left_out else ()),
            *loss_events["detail"].drop_nulls().unique(maintain_order=True),
            *([] if cancelled is None else [cancelled]),
            *([] if stood is None else [stood]),
        ),
        columns=columns,
        window=window,
        requests=requests,
    )


def _stood(stretches: Sequence[tuple[int, int]], window: Window | None) -> str | None:
    """Say for how long a profiler held the server, None where it did not."""
    if not stretches:
        return None
    seconds = sum(ended - begun for begun, ended in stretches) / 1e9
    of = "" if window is None else f" of {(window.times[-1] - window.times[0]) / 1e9:,.0f} s"
    return (
        f"the profiler held the server for {number(seconds, 's')}{of} "
        f"({counted(len(stretches), 'kernel window')}). Rates, times of /metrics, steps and "
        "verdict are of the other time. Requests that ran meanwhile took longer"
    )


def _steps(recording: Recording, key: str) -> tuple[pl.DataFrame, dict[str, str]]:
    """Return the columns of an engine's steps that a verdict needs, and what each column is."""
    frames = [pl.DataFrame(schema={name: TABLES["steps"][name] for name in STEPS_JUDGED})]
    where, inferred = pl.col("engine") == key, False
    filled = _told(next(batches(recording, "steps", where=where), pl.DataFrame()))
    # Of the other columns only whether anything is told in them.
    columns = dict.fromkeys([*STEPS_JUDGED, "source", *(set(TABLES["steps"]) - filled)])
    for rows in batches(recording, "steps", tuple(columns), where):
        filled |= _told(rows)
        inferred |= bool((rows["source"] == "inferred").any())
        frames.append(rows.select(STEPS_JUDGED))
    return pl.concat(frames), step_columns(filled, inferred=inferred)


def _told(rows: pl.DataFrame) -> set[str]:
    return {name for name in rows.columns if rows[name].null_count() < rows.height}


def _requests(runs: Sequence[Run]) -> Requests | None:
    """Return the times of the requests of an engine's only run; several were told apart."""
    if len(runs) != 1:
        return None
    (run,) = runs
    if run.rows is None or run.sample_rows is None or run.windows is None:
        return None
    times = sample_times(run.rows, run.sample_rows, run.windows)
    if not times.height:
        return None
    problems = times["problem"].to_numpy()

    def of(name: str) -> Spread:
        values = times[name].to_numpy()  # nan where not known
        p99 = quantile(values, 0.99, "s", problems=problems)
        return {**spread(values, "s", problems), "p99": p99}

    names = ("ttft_s", "prefill_s", "decode_s", "e2e_s")
    return Requests(
        source="spans" if run.policy is None else "client",
        count=times.height,
        **{name: of(name) for name in names},
    )


def step_columns(told: Collection[str], *, inferred: bool) -> dict[str, str]:
    """Return of each column of `steps` whether it was measured, inferred, or is null.

    `told` are those that hold something; `inferred` says that the server does not tell what was in
    its steps.
    """
    if not told:
        return {}
    # An engine that tells what its prefills read tells it of decodes too (forward passes).
    guessed = set() if "prefill_kv_tokens" in told else {"decode_kv_tokens"}
    if inferred:
        guessed |= {"prefill_requests", "prefill_tokens", "decode_requests", "decode_tokens"}
    return {
        name: "null" if name not in told else "inferred" if name in guessed else "measured"
        for name in TABLES["steps"]
        if name not in {"engine", "source"}
    }
