"""A live deployment: its replicas, the engines behind them, and the pollers that watch them."""

from __future__ import annotations

import dataclasses
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from profiler.attach.scraper import (
    EACH,
    OF_ROUTER,
    PERIOD_S,
    SEVERAL,
    PolledPage,
    ScrapeError,
    Scraper,
    Silence,
)
from profiler.engines.server.access import Access
from profiler.engines.server.identity import identify
from profiler.engines.server.served import ask_model, cache_settings, describe
from traces.clock import now_ns
from traces.errors import EngineError, TtscopeError, UsageError
from traces.live.engine_names import (
    RAY_REPORTS_S,
    ROUTER,
    TENSORRT_LLM_HOST,
    TENSORRT_LLM_LIMITS,
    engine_of,
    is_on_ray,
)
from traces.live.metrics_page import MOST_ENGINES
from traces.live.numbers import (
    ACCEPTED_AT,
    DRAFTED,
    DRAFTS,
    FINISHED,
    KV,
    RUNNING,
    WAITING,
    Numbers,
    by_value,
    numbers_of,
    tells,
)
from traces.live.verdict import TAKEN, SeenLimit
from traces.recording.tables import SCRAPES, SILENT
from traces.recording.writer import RecordingWriter
from traces.schema.engine import EXPERTS, UNKNOWN_METHOD, EngineConfig, ModelFacts, Speculative
from traces.schema.formats import counted
from traces.summary.comparison import BLOCKS_DIFFER

_LIVE_PAGES = 61  # kept of each replica for the live line
REPORTS = 2.5  # A live line looks back on so many reports of Ray's page.
_ADOPTED = (  # of what a plugin tells
    *("dtype", "quantization", "kv_cache_dtype", "max_model_len", "tensor_parallel_size"),
    *("pipeline_parallel_size", "max_num_seqs", "max_num_batched_tokens", "block_size"),
    *("num_gpu_blocks", "gpu_memory_utilization", "enable_prefix_caching", "enforce_eager"),
    *("async_scheduling", "speculative", "gpu", "vllm_version"),
)
ENGINES_PAGE = (
    "the engine's own host and port, not a router's, or its --metrics-url (Dynamo "
    "http://POD:8081, NIM http://HOST:8000/v1/metrics, Ray Serve the node's metrics port, which "
    "has an engine's once it has served a request). Start vLLM without --disable-log-stats, "
    "SGLang with --enable-metrics, trtllm-serve with return_perf_metrics and "
    "enable_iter_perf_stats in its --config"
)


@dataclass
class ProfilerWindow:
    """When a window of a server's profiler was asked for, answered and closed, unix ns."""

    begun: int
    answered: int | None = None
    ended: int | None = None


@dataclass(eq=False)
class Replica:
    """One server of a deployment: `config` is the server's, `keys` those of its engines."""

    access: Access
    config: EngineConfig
    facts: ModelFacts | None
    scraper: Scraper
    keys: dict[str, str] = field(default_factory=dict)
    started: float | None = None  # when its process began, unix seconds
    described: EngineConfig | None = None  # as it tells itself, without what a plugin told
    drafts: bool = False  # whether its metrics count drafts
    ahead: dict[str, Speculative | None] = field(default_factory=dict)  # by engine label
    adopted: bool = False  # whether a plugin told its configuration
    joined: bool = False  # whether it is of one server with others, whose ranks are elsewhere
    ahead_ns: int = 0  # its host's clock, where that is off by seconds
    pages: deque[pl.DataFrame] = field(default_factory=lambda: deque(maxlen=_LIVE_PAGES))
    finished: float = 0.0  # requests that ended, as far as pages of the watch tell
    counted: float | None = None  # those that ended so far, as the last page has it
    polled_ns: int = 0  # when that was, unix
    windows: deque[ProfilerWindow] = field(default_factory=lambda: deque(maxlen=64))

    @property
    def is_profiled(self) -> bool:
        """Whether a window is open now."""
        return any(each.ended is None for each in list(self.windows))

    @property
    def profiled(self) -> list[tuple[int, int]]:
        """When windows were open, unix ns."""
        return [(each.begun, each.ended or now_ns()) for each in list(self.windows)]

    def key_of(self, rank: int, replica: str | None) -> str | None:
        """Return the key of the engine that a plugin tells of; None where it is not on the page.

        A page of Ray Serve has several replicas, each with ranks from 0.
        """
        keys = dict(self.keys)
        engine = engine_of({"engine": str(rank), "ReplicaId": replica or ""})
        of_rank = {key for label, key in keys.items() if label.partition(" ")[0] == str(rank)}
        only = of_rank.pop() if len(of_rank) == 1 and replica is None else None
        return keys.get(engine) or keys.get(str(rank)) or only


def _speculation_on(page: PolledPage | None, label: str | None = None) -> Speculative | None:
    """Return how a server drafts as its page tells: a counter for each position of a draft.

    With a `label`, only that engine of the page. Where there is no such counter the drafts so far
    have a mean length. None where the page tells no length.
    """
    values = {} if page is None else page.values
    if label is not None:
        values = {series: value for series, value in values.items() if series.engine == label}
    positions = {series.labels: 1.0 for series in values if series.name == ACCEPTED_AT}
    tokens = len(by_value(positions, "position"))
    drafts, drafted = (
        sum(value for series, value in values.items() if series.name == name)
        for name in (DRAFTS, DRAFTED)
    )
    tokens = tokens or (round(drafted / drafts) if drafts else 0)
    if not tokens:
        return None
    return Speculative(method=UNKNOWN_METHOD, num_speculative_tokens=tokens)


def _differ(one: EngineConfig, other: EngineConfig) -> bool:
    """Whether configurations differ by more than the cache of one from start to start."""
    sizes = [each.num_gpu_blocks for each in (one, other)]
    known = [blocks for blocks in sizes if blocks is not None]
    if len(known) == 1 or min(known, default=0) < (1 - BLOCKS_DIFFER) * max(known, default=0):
        return True
    one, other = (dataclasses.replace(each, num_gpu_blocks=None) for each in (one, other))
    return one != other


def _labels_of(replica: Replica, page: PolledPage | None) -> list[str]:
    """Return the engines of a server's page, and note how each of them drafts."""
    labels = sorted({series.engine for series in page.values} - {""}) if page else []
    replica.ahead = {label: _speculation_on(page, label) for label in labels}
    return labels


def _limits_on(page: PolledPage | None) -> dict[str, int]:
    """Return the limits that TensorRT-LLM has on its page, in the names of EngineConfig."""
    values = {} if page is None else {series.name: v for series, v in page.values.items()}
    limits = {
        field: round(values[name])
        for field, name in TENSORRT_LLM_LIMITS.items()
        if values.get(name, 0.0) >= 1
    }
    blocks = limits.pop("num_gpu_blocks", None)
    if blocks is not None and TENSORRT_LLM_HOST not in values:
        limits["num_gpu_blocks"] = blocks + 1  # vLLM keeps one of its blocks for itself
    return limits


class Deployment:
    """The servers at `accesses`, after `connect`.

    Parameters
    ----------
    model: which of the models a server serves; the first by default.
    declared: engine settings that servers do not tell, such as tensor_parallel_size.
    period_s: seconds between polls.
    reconnect: wait for a server that is gone; else `lost` says that one is.
    facts: what the served model costs, whatever the servers tell of it.
    say: takes a line that the user must see while the servers are watched.

    """

    def __init__(
        self,
        accesses: Sequence[Access],
        *,
        model: str | None = None,
        declared: Mapping[str, Any] | None = None,
        period_s: float = PERIOD_S,
        reconnect: bool = True,
        facts: ModelFacts | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not 0.1 <= period_s <= 3600:
            raise UsageError(f"--period must be 0.1 s to an hour, not {period_s:g} s")
        if len({access.where for access in accesses}) != len(accesses):
            raise UsageError("the same URL is named twice")
        self._accesses, self._model, self._declared = list(accesses), model, dict(declared or {})
        self._period_s, self._reconnect, self._facts = period_s, reconnect, facts
        self.say, self._lock = say, threading.Lock()
        self._writer: RecordingWriter | None = None
        self._keys_kept = False  # by a recording, whose rows have them
        self._scrapers: list[Scraper] = []
        self.replicas: list[Replica] = []
        self.engines: dict[str, EngineConfig] = {}
        self.shown: dict[str, str] = {}  # engine key -> what a person calls it
        self.models: dict[str, ModelFacts] = {}
        self._seen: defaultdict[str, SeenLimit] = defaultdict(SeenLimit)  # by engine

    def connect(self, *, metrics_needed: bool = True) -> None:
        """Ask every server what it serves. Raises EngineError where one does not answer."""
        try:
            for access in self._accesses:
                self.replicas.append(self._look(access, metrics_needed))
            self._join_ranks()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections of what was connected and never watched."""
        for scraper in self._scrapers:
            scraper.close()

    @property
    def lost(self) -> bool:
        """Whether a server is gone for good."""
        return any(replica.scraper.lost.is_set() for replica in self.replicas)

    def _look(self, access: Access, metrics_needed: bool) -> Replica:
        def note(kind: str, detail: str) -> None:
            if kind == SILENT:
                self.say(detail)
            self._event(kind, detail, replica.keys[""])

        # It calls nothing of these before it is started, when the replica is there.
        scraper = Scraper(
            access,
            lambda label: self._key(replica, label),
            on_event=note,
            on_page=lambda page: self._keep(replica, page),
            on_restart=lambda page: self._again(replica, page),
            period_s=self._period_s,
            reconnect=self._reconnect,
        )
        self._scrapers.append(scraper)
        try:
            page: PolledPage | None = scraper.poll(leave=True)
        except ScrapeError as error:
            page = None
            if metrics_needed:
                with access.client() as client:
                    ask_model(client, access.url, self._model)  # says it better, if it fails too
                elsewhere = str(error).startswith(("HTTP 3", "HTTP 404", "no metrics page"))
                hint = f". Name {ENGINES_PAGE}" if elsewhere else ""
                why = f"/metrics cannot be read ({error})"
                raise EngineError(f"{access.where}: {why}{hint}") from None
        if metrics_needed and ROUTER in scraper.reader.engines:
            raise EngineError(f"{access.where}: {OF_ROUTER}. Name {EACH}")
        has_metrics = page is not None and any(tells(series.name) for series in page.values)
        if metrics_needed and not has_metrics:
            raise EngineError(
                f"{access.where}: /metrics has nothing of an engine: name {ENGINES_PAGE}"
            )
        if scraper.reader.engines_cut:
            what = f"/metrics names {scraper.reader.engines_cut:,} engines too many"
            self.say(f"{access.where}: {what}. The first {MOST_ENGINES} are watched")
        if metrics_needed and page is not None and scraper.meets_others(page):
            raise EngineError(f"{access.where}: {SEVERAL}. Name {EACH}")
        config, facts = self._describe(access, scraper, page)
        replica = Replica(access, config, facts, scraper, described=config)
        if page is not None:
            replica.started, replica.ahead_ns = page.started, page.ahead_ns
            replica.drafts = any(each.name == DRAFTS for each in page.values)
        self._register(replica, _labels_of(replica, page))
        return replica

    def _describe(
        self, access: Access, scraper: Scraper, page: PolledPage | None
    ) -> tuple[EngineConfig, ModelFacts | None]:
        with access.client() as client:
            card = ask_model(client, access.url, self._model)
            identity = identify(client, card).with_page(scraper.reader.engines)
        settings = {**identity.settings, **cache_settings(scraper.reader.cache_config)}
        settings |= _limits_on(page)
        settings["speculative"] = settings.get("speculative") or _speculation_on(page)
        url = (("url", access.where),) if len(self._accesses) > 1 else ()
        settings["other"] = tuple(sorted((*identity.other, *settings.get("other", ()), *url)))
        config, facts = describe(
            card, identity.vllm_version, name=None, told=settings, declared=self._declared
        )
        if self._facts is not None:
            facts = dataclasses.replace(self._facts, name=config.model)
        return config, facts

    def _join_ranks(self) -> None:
        """Take servers for one whose data-parallel ranks are each behind a URL of its own.

        vLLM numbers the engines of a page by their rank (`engine_ranks_managed` of its
        v1/engine/core_client.py), so that ranks behind an external balancer have numbers of their
        own, 0 to N - 1 over all pages. Servers that share nothing are each a 0.
        """
        for model in {replica.config.model for replica in self.replicas}:
            of_model = [each for each in self.replicas if each.config.model == model]
            labels_of = [[label for label in each.keys if label] for each in of_model]
            numbers = [label for labels in labels_of for label in labels]
            ranks = len(numbers)
            if (
                len(of_model) < 2
                or not all(labels_of)
                or set(numbers) != set(map(str, range(ranks)))
            ):
                continue
            for replica, labels in zip(of_model, labels_of, strict=True):
                with self._lock:
                    for key in replica.keys.values():
                        self.engines.pop(key, None)
                other = tuple(pair for pair in replica.config.other if pair[0] != "url")
                config = dataclasses.replace(replica.config.one_replica(), other=other)
                gpus = config.num_gpus and config.num_gpus * ranks
                replica.config = dataclasses.replace(
                    config, data_parallel_size=ranks, num_gpus=gpus
                )
                replica.joined = True
                self._register(replica, labels)

    def _register(self, replica: Replica, labels: Sequence[str]) -> None:
        """Give each engine label of a server the key of its configuration."""
        ranks = [label for label in labels if label]
        alone = ranks != ["0"] and all(map(str.isdigit, ranks))  # a rank whose others are elsewhere
        several = replica.joined or len(ranks) > 1 or (bool(ranks) and alone)
        where = replica.access.where if len(self._accesses) > 1 else ""
        keys = dict[str, str]()
        with self._lock:
            for label in ["", *labels]:
                config = replica.config
                if label and several:
                    extra = (*config.other, ("engine", label))
                    config = dataclasses.replace(config.one_replica(), other=tuple(sorted(extra)))
                    drafts = config.speculative
                    if drafts is not None and drafts.method == UNKNOWN_METHOD:  # of the page
                        ahead = replica.ahead.get(label)
                        config = dataclasses.replace(config, speculative=ahead)
                # What it is again after two restarts has the key that it had.
                had = (key for key, each in self.engines.items() if not _differ(each, config))
                key = keys[label] = next(had, config.key())
                self.engines[key] = config
                self.shown[key] = " ".join(p for p in (where, label if several else "") if p)
            replica.keys = keys
            if replica.facts is not None:
                self.models[replica.facts.name] = replica.facts
        self._tell()

    def adopt(self, key: str, told: EngineConfig, model: ModelFacts | None = None) -> str:
        """Take over what an engine's own process tells of its configuration; return its key.

        That is a new one before the deployment is watched. Afterwards it stays, so that an engine
        has one key in a recording, and the manifest has the configuration under it. A server that
        was restarted with another one is another engine. `model` is what its model costs.
        """
        for replica in self.replicas:
            labels = sorted(label for label, own in replica.keys.items() if own == key)
            if not labels:
                continue
            config = self._with_told(replica.config, told)
            is_another = self._keys_kept and replica.adopted and _differ(replica.config, config)
            replica.config, replica.adopted = config, True
            if model is not None and self._facts is None:
                replica.facts = dataclasses.replace(model, name=replica.config.model)
                self.models[replica.facts.name] = replica.facts
            if is_another or not self._keys_kept:
                for own in set() if is_another else set(replica.keys.values()):
                    self.engines.pop(own, None)
                self._register(replica, sorted(set(replica.keys) - {""}))
                if is_another:
                    note = f"{replica.access.where}: another configuration"
                    self._event("note", note, replica.keys[""])
                return replica.keys[labels[-1]]
            with self._lock:
                for own in set(replica.keys.values()):
                    self.engines[own] = self._with_told(self.engines[own], told)
            self._tell()
            return key
        return key

    def _with_told(self, engine: EngineConfig, told: EngineConfig) -> EngineConfig:
        """Return an engine with what a plugin tells, whose GPUs are those of one replica."""
        names = {field: getattr(told, field) for field in _ADOPTED}
        if told.expert_parallel and not engine.expert_parallel:
            names["other"] = tuple(sorted((*engine.other, (EXPERTS, "true"))))
        names["speculative"] = told.speculative or engine.speculative  # of a plugin older than it
        names |= {name: value for name, value in self._declared.items() if value is not None}
        if told.num_gpus is not None:
            names["num_gpus"] = told.num_gpus * engine.data_parallel_size
        return dataclasses.replace(engine, **names)

    def add(self, config: EngineConfig) -> str:
        """Add an engine that no server of ours tells of; return its key."""
        key = config.key()
        with self._lock:
            self.engines[key] = config
        self._tell()
        return key

    def _key(self, replica: Replica, label: str) -> str:
        if label not in replica.keys:  # an engine that was added while we watch
            self._register(replica, sorted({*replica.keys, label} - {""}))
        return replica.keys[label]

    def _again(self, replica: Replica, page: PolledPage) -> None:
        """Ask a server that was restarted what it serves now."""
        replica.started = page.started
        try:
            config, facts = self._describe(replica.access, replica.scraper, page)
        except TtscopeError:
            return
        if config != replica.described:
            replica.config, replica.described, replica.facts = config, config, facts
            replica.adopted = replica.joined = False
            self._register(replica, _labels_of(replica, page))
            self._join_ranks()
            note = f"{replica.access.where}: another configuration"
            self._event("note", note, replica.keys[""])

    def finished_since(self) -> tuple[float, int]:
        """Return how many requests ended during the watch, and until when that is known, unix ns.

        Of several servers until the one that was polled longest ago. One that is polled no more is
        known.
        """
        here = [each.polled_ns for each in self.replicas if not each.scraper.ended]
        return sum(each.finished for each in self.replicas), min(here, default=now_ns())

    def _keep(self, replica: Replica, page: pl.DataFrame) -> None:
        replica.pages.append(page)
        counted = float(page.filter(pl.col("name") == FINISHED)["value"].sum())
        before = counted if replica.counted is None else replica.counted
        replica.finished += counted - before if counted >= before else counted
        replica.counted, replica.polled_ns = counted, page["time"][0] if page.height else 0
        if replica.config.max_num_seqs is not None:
            return
        values_of: defaultdict[str, defaultdict[str, float]] = defaultdict(
            lambda: defaultdict(float)
        )
        gauges = page.filter(pl.col("name").is_in([RUNNING, WAITING, KV]))
        for key, name, value in gauges.select("engine", "name", "value").drop_nulls().iter_rows():
            had = values_of[key][name]
            values_of[key][name] = max(had, value) if name == KV else had + value
        for key, each in values_of.items():
            # Of a cache that is not told it may be the cache that requests wait for.
            self._seen[key].take(each[RUNNING], each[WAITING], each.get(KV, 1.0))

    def _keep_limits(self) -> None:
        """Give engines that do not tell their max_num_seqs the one that was seen, and say so."""
        for key, seen in list(self._seen.items()):  # a slow poll may come yet
            engine = self.engines.get(key)
            if engine is not None and engine.max_num_seqs is None and seen.limit is not None:
                with self._lock:
                    self.engines[key] = dataclasses.replace(engine, max_num_seqs=seen.limit)
                self._event("note", f"{TAKEN} {seen.limit}. So many ran while others waited", key)

    def _event(self, kind: str, detail: str, engine: str) -> None:
        if self._writer is not None:
            self._writer.event(kind, detail, engine=engine)

    @contextmanager
    def watched(self, writer: RecordingWriter) -> Iterator[None]:
        """Have a recording take what `polled` and others tell of the servers while the block runs.

        A probe.
        """
        self._writer, self._keys_kept = writer, True
        self._begun = writer.manifest
        self._tell()
        # The last rows, which the writer takes behind the block, may tell of engines too.
        writer.at_close(
            engines=lambda: self._manifest()["engines"], models=lambda: self._manifest()["models"]
        )
        try:
            yield
        finally:
            self._keep_limits()
            self._writer = None

    @contextmanager
    def polled(self, writer: RecordingWriter) -> Iterator[None]:
        """Poll the servers into a `watched` recording from the block's begin to its end; a probe.

        The rates of /metrics are of this time. So a workload of ours has it next to its run, and
        what is awaited afterwards, such as the last spans, is no part of it.
        """
        for replica in self.replicas:
            writer.add_source("scrapes", replica.scraper.drain)
            replica.scraper.start()
        try:
            yield
        finally:
            for replica in self.replicas:
                replica.scraper.stop()
                if replica.scraper.dropped:
                    writer.dropped("scrapes", replica.scraper.dropped)
                reader = replica.scraper.reader
                if reader.pages_cut:
                    what = f"up to {reader.left_out:,} lines of each of {reader.pages_cut:,} pages"
                    cut = reader.engines_cut
                    of = f", those of {counted(cut, 'engine')} too many included" if cut else ""
                    writer.event("drop", f"{replica.access.where}: {what} of /metrics{of}")
                if reader.odd_shares:
                    what = (
                        "of /metrics have a use of the KV cache outside 0 to 1, which is left out"
                    )
                    writer.event(
                        "note", f"{replica.access.where}: {reader.odd_shares:,} lines {what}"
                    )

    def _tell(self) -> None:
        """Have the recording, where there is one, name the engines and models."""
        if self._writer is not None:
            self._writer.update(**self._manifest())

    def _manifest(self) -> dict[str, Any]:
        """Return the engines and models of a recording, which may be a run's, with the servers'."""
        begun = self._begun
        with self._lock:
            return {
                "engines": {**begun.engines, **self.engines},
                "models": {**begun.models, **self.models},
            }

    def silences(self, engines: Collection[str]) -> dict[str, Silence]:
        """Return for how long each of some engines owes an answer, by key."""
        with self._lock:
            return {
                key: replica.scraper.silence
                for replica in self.replicas
                for key in replica.keys.values()
                if key in engines
            }

    def numbers(self, seconds: float, *, fewest: int = 2) -> dict[str, Numbers | None]:
        """Return each engine's numbers over about the last so many seconds, by key.

        A server whose page is slow is polled less often: over the `fewest` last polls at least.
        """
        by_engine: dict[str, Numbers | None] = {}
        for replica in self.replicas:
            pages = list(replica.pages)
            on_ray = is_on_ray(replica.scraper.reader.engines)
            back = max(seconds, REPORTS * RAY_REPORTS_S) if on_ray else seconds
            since = pages[-1]["time"][0] - round((back + 0.5) * 1e9) if pages else 0
            recent = [page for page in pages if page["time"][0] >= since]
            frames = recent if len(recent) >= fewest else pages[-fewest:]
            scrapes = pl.concat([pl.DataFrame(schema=SCRAPES), *frames])
            with self._lock:
                keys = dict(replica.keys)
            for key in dict.fromkeys(keys[label] for label in sorted(keys)):
                of_engine = numbers_of(scrapes, key, profiled=replica.profiled)
                # Beside its engines a server tells nothing (vLLM), or what is of all (SGLang).
                if of_engine is not None or key != keys[""] or len(set(keys.values())) == 1:
                    by_engine[key] = of_engine
        return by_engine
