"""The text format of a Prometheus /metrics page, read once a second without parsing it anew.

A page repeats its lines and only their values change, so what stands before a value is parsed
the first time it is seen. Format: prometheus.io/docs/instrumenting/exposition_formats.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

# vLLM's own families and what tells of the process; `_created` repeats when a series began.
_KEPT = re.compile(r"vllm:(?!.*_created[{ ])|process_start_time_seconds[{ ]")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
MOST_SERIES = 50_000  # distinct lines of a server; more than that are counted and left out
LONGEST_LINE = 8192
MOST_ENGINES = 256  # of one server; the series of more are left out
MOST_VALUE = 1e30


class Series(NamedTuple):
    """What a line measures. `labels` is text like `reason="stop"`, sorted, the others left out.

    `engine` is the label of that name; `le` the upper bound of a histogram's bucket.
    """

    engine: str
    name: str
    labels: str = ""
    le: float | None = None


@dataclass
class PageReader:
    """Reads the pages of one server; `model_names` and `cache_config` are filled on the way."""

    left_out: int = 0
    model_names: set[str] = field(default_factory=set)
    cache_config: dict[str, dict[str, str]] = field(default_factory=dict)  # by engine
    _engines: set[str] = field(default_factory=set)
    _known: dict[str, Series | None] = field(default_factory=dict)

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
                series = known[head]
            elif len(known) >= MOST_SERIES:
                self.left_out += 1
                continue
            else:
                series = known[head] = self._parse(head)
            lines += 1
            if series is None:
                continue
            try:
                value = float(line[cut:].split()[0])
            except (ValueError, IndexError):
                continue
            if 0.0 <= value <= MOST_VALUE:  # as all of vLLM's are
                values[series] = value
        if not lines:
            raise ValueError("no metrics")
        return values

    def _parse(self, head: str) -> Series | None:
        """Return what a line measures, None for one that is not kept."""
        if not _KEPT.match(head + " "):
            return None
        name, _, rest = head.partition("{")
        labels = {key: _ESCAPED.sub(_unescape, text) for key, text in _LABEL.findall(rest)}
        engine = labels.pop("engine", "")
        self._engines.add(engine)
        if len(self._engines) > MOST_ENGINES:
            self._engines.discard(engine)
            return None
        model = labels.pop("model_name", None)
        if model is not None:
            self.model_names.add(model)
        if name == "vllm:cache_config_info":
            self.cache_config[engine] = labels
            return None
        try:
            le = float(labels.pop("le")) if "le" in labels else None
        except ValueError:
            return None
        text = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
        return Series(engine, name.strip(), text, le)


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
