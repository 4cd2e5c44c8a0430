"""The text format of a Prometheus /metrics page, read once a second without parsing it anew.

A page repeats its lines and only their values change, so what stands before a value is parsed
the first time it is seen. Format: prometheus.io/docs/instrumenting/exposition_formats. What other
engines say as vLLM does is read under vLLM's names (engine_names.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from traces.live.engine_names import (
    COPY,
    OLDER,
    ON_RAY,
    RANKS,
    RAY_REPORTS_S,
    ROUTER,
    VLLM,
    engine_named,
    engine_of,
    is_copy,
    is_made_up,
    known_name,
    vllm_names,
)
from traces.live.numbers import KV, MOST_SERIES, REPORTED, STARTED, STEP_TOKENS, USED

_COUNT = frozenset(USED)  # series from which an engine's numbers are computed
_PROCESS = "process_start_time_seconds"
# Each front end of a vLLM counts the steps in which it got a token, and their page adds these up.
# It has no start of a process then (prometheus_client's multiprocess mode).
_BY_FRONT_END = frozenset(f"{STEP_TOKENS}_{part}" for part in ("count", "sum", "bucket"))
_SHARES = frozenset((KV, OLDER + KV))  # of a whole: from 0 to 1
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
LONGEST_LINE = 8192
MOST_ENGINES = 128  # of a page; more would take longer to sum up than the second between polls
MOST_EVER = 1024  # engines of all pages of a server, where replicas come and go
MOST_VALUE = 1e30


class Series(NamedTuple):
    """What a line measures. `labels` is text like `reason="stop"`, sorted, the others left out.

    `engine` is the label of that name, or what stands for it; `le` the upper bound of a bucket.
    """

    engine: str
    name: str
    labels: str = ""
    le: float | None = None


@dataclass
class PageReader:
    """Reads the pages of one server.

    `cache_config` and `engines`, the kinds of engines whose lines there are, are filled on the way.
    `left_out` is the most lines that were left out of one page, `pages_cut` counts such pages.
    `engines_cut` is the most engines beyond `MOST_ENGINES` of one page, whose lines are among them.
    `odd_shares` counts lines that tell a share below 0 or above 1, which is no measurement.
    """

    left_out: int = 0
    pages_cut: int = 0
    engines_cut: int = 0
    odd_shares: int = 0
    cache_config: dict[str, dict[str, str]] = field(default_factory=dict)  # by engine
    engines: set[str] = field(default_factory=set)
    _ever: set[str] = field(default_factory=set)  # engines
    _on_ray: set[str] = field(default_factory=set)  # engines
    _known: dict[str, tuple[Series, ...]] = field(default_factory=dict)
    _ranks: dict[str, tuple[str | None, ...]] = field(default_factory=dict)  # by engine
    _started: float | None = None

    def read(self, page: str) -> dict[Series, float]:
        """Return a page's values, of lines that are understood. Raises ValueError for no page."""
        values, left_out = self._read(page)
        if self._on_ray:  # the agent's, which writes the page
            values.pop(Series("", _PROCESS), None)
        started = values.get(Series("", _PROCESS))
        if started is not None and self._started not in (None, started):
            self.forget()
            values, left_out = self._read(page)
        self._started = started if started is not None else self._started
        if started is None and self.engines == {VLLM}:
            for series in [each for each in values if each.name in _BY_FRONT_END]:
                del values[series]
        if started is not None:  # all engines of a server begin anew with it
            values |= {Series(engine, STARTED): started for engine in _counted(values)}
        if self._on_ray:
            on_ray = self._on_ray & _counted(values)
            values |= {Series(engine, REPORTED): RAY_REPORTS_S for engine in on_ray}
        self.left_out = max(self.left_out, left_out)
        self.pages_cut += left_out > 0
        return values

    def forget(self) -> None:
        """Forget what an earlier process told: the next page is another's."""
        for collection in (self.cache_config, self.engines, self._on_ray, self._ranks, self._known):
            collection.clear()

    def _read(self, page: str) -> tuple[dict[Series, float], int]:
        """Return the values of a page, and how many of its lines were left out."""
        values: dict[Series, float] = {}
        seen: dict[str, tuple[Series, ...]] = {}
        engines: set[str] = set()
        beyond: set[str] = set()
        lines = left_out = 0
        for line in page.splitlines():
            if not line or line[0] == "#":
                continue
            cut = line.rfind("}") + 1 or line.find(" ")
            head = line[:cut]
            if len(line) > LONGEST_LINE or (head not in seen and len(seen) >= MOST_SERIES):
                left_out += 1
                continue
            named = self._known.get(head)
            if named is None:
                named = self._parse(head)
            seen[head] = named
            lines += 1
            if not named:
                continue
            engine = named[0].engine
            if engine and engine not in engines and not self._takes(engine, engines):
                left_out += 1
                beyond.add(engine)
                continue
            try:
                value = float(line[cut:].split()[0])
            except (ValueError, IndexError):
                continue
            if named[0].name in _SHARES:
                if 0.0 <= value <= 1.0:  # of one cache, however many models it serves
                    values[named[0]] = max(values.get(named[0], 0.0), value)
                self.odd_shares += value < 0.0 or value > 1.0
            elif 0.0 <= value <= MOST_VALUE:  # as all of vLLM's are
                for series in named:
                    values[series] = values.get(series, 0.0) + value
        self._known = seen
        self.engines_cut = max(self.engines_cut, len(beyond))
        engines.add("")
        self._ranks = {each: rank for each, rank in self._ranks.items() if each in engines}
        if not lines:
            raise ValueError("no metrics")
        return _by_new_names(values), left_out

    def _takes(self, engine: str, engines: set[str]) -> bool:
        """Tell whether there is room for one more engine of a page, and add it."""
        room = engine in self._ever or len(self._ever) < MOST_EVER
        if not room or len(engines) >= MOST_ENGINES:
            return False
        self._ever.add(engine)
        engines.add(engine)
        return True

    def _parse(self, head: str) -> tuple[Series, ...]:
        """Return what a line measures, nothing for one that is not kept."""
        full_name, _, rest = head.partition("{")
        name = known_name(full_name.strip())
        if name is None:
            return (Series("", _PROCESS),) if full_name.strip() == _PROCESS else ()
        labels = {
            key: _ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], text)
            for key, text in _LABEL.findall(rest)
        }
        engine = engine_of(labels)
        kind = engine_named(full_name.strip(), labels) or ""
        self.engines.add(kind)
        if kind.endswith(ON_RAY):
            self._on_ray.add(engine)
        if kind == ROUTER or is_made_up(full_name.strip()):
            return ()
        labels.pop("engine", None)
        labels.pop("dp_rank", None)
        if name == "vllm:cache_config_info":
            if len(self.cache_config) < MOST_ENGINES:
                self.cache_config[engine] = {k: v for k, v in labels.items() if k != "model_name"}
            return ()
        rank = tuple(labels.get(each) for each in RANKS)
        if any(rank) and self._ranks.setdefault(engine, rank) != rank:
            return ()  # every rank of an engine says the same
        try:
            le = float(labels.pop("le")) if "le" in labels else None
        except ValueError:
            return ()
        copied = COPY if is_copy(full_name.strip()) else ""
        names = vllm_names(name, labels)
        return tuple(Series(engine, copied + own, text, le) for own, text in names)


def _counted(values: dict[Series, float]) -> set[str]:
    """Return the engines that have numbers on a page."""
    return {series.engine for series in values if series.name in _COUNT}


def _by_new_names(values: dict[Series, float]) -> dict[Series, float]:
    """Return a page's values; older names and copies stand in where the new ones are not there."""
    for prefix in (COPY, OLDER):
        older = [series for series in values if series.name.startswith(prefix)]
        there = {(series.engine, series.name) for series in values} if older else set()
        for series in older:
            name, value = series.name.removeprefix(prefix), values.pop(series)
            if (series.engine, name) not in there:
                values[series._replace(name=name)] = value
    return values
