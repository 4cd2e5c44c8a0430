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
    RANKS,
    engine_named,
    engine_of,
    known_name,
    vllm_names,
)

_PROCESS = "process_start_time_seconds"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
MOST_SERIES = 50_000  # distinct lines of a server; more than that are counted and left out
LONGEST_LINE = 8192
MOST_ENGINES = 256  # of one server; the series of more are left out
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

    `model_names`, `cache_config` and `engines`, the kinds of engines whose lines there are, are
    filled on the way.
    """

    left_out: int = 0
    model_names: set[str] = field(default_factory=set)
    cache_config: dict[str, dict[str, str]] = field(default_factory=dict)  # by engine
    engines: set[str] = field(default_factory=set)
    _engines: set[str] = field(default_factory=set)
    _known: dict[str, tuple[Series, ...]] = field(default_factory=dict)
    _ranks: dict[str, tuple[str | None, ...]] = field(
        default_factory=dict
    )  # by engine: whose lines

    def read(self, page: str) -> dict[Series, float]:
        """Return the values of a page. Lines that are not understood are left out.

        Raises ValueError when nothing of it looks like a metrics page.
        """
        values: dict[Series, float] = {}
        lines = 0
        for line in page.splitlines():
            if not line or line[0] == "#":
                continue
            if len(line) > LONGEST_LINE:
                self.left_out += 1
                continue
            cut = line.rfind("}") + 1 or line.find(" ")
            head, known = line[:cut], self._known
            if head in known:
                named = known[head]
            elif len(known) >= MOST_SERIES:
                self.left_out += 1
                continue
            else:
                named = known[head] = self._parse(head)
            lines += 1
            if not named:
                continue
            try:
                value = float(line[cut:].split()[0])
            except (ValueError, IndexError):
                continue
            if 0.0 <= value <= MOST_VALUE:  # as all of vLLM's are
                for series in named:
                    values[series] = values.get(series, 0.0) + value
        if not lines:
            raise ValueError("no metrics")
        return values

    def _parse(self, head: str) -> tuple[Series, ...]:
        """Return what a line measures, nothing for one that is not kept."""
        whole, _, rest = head.partition("{")
        name = known_name(whole.strip())
        if name is None:
            return (Series("", _PROCESS),) if whole.strip() == _PROCESS else ()
        labels = {
            key: _ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], text)
            for key, text in _LABEL.findall(rest)
        }
        engine = engine_of(labels)
        self._engines.add(engine)
        if len(self._engines) > MOST_ENGINES:
            self._engines.discard(engine)
            return ()
        self.engines.add(engine_named(whole.strip()) or "")
        labels.pop("engine", None)
        labels.pop("dp_rank", None)
        if "model_name" in labels:
            self.model_names.add(labels["model_name"])
        if name == "vllm:cache_config_info":
            self.cache_config[engine] = {k: v for k, v in labels.items() if k != "model_name"}
            return ()
        rank = tuple(labels.get(each) for each in RANKS)
        if any(rank) and self._ranks.setdefault(engine, rank) != rank:
            return ()  # every rank of an engine says the same
        try:
            le = float(labels.pop("le")) if "le" in labels else None
        except ValueError:
            return ()
        return tuple(Series(engine, own, text, le) for own, text in vllm_names(name, labels))
