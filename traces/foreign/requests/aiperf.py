"""Records of aiperf: `profile_export.jsonl`, a line of JSON per request.

A line has `metadata` (phase, wall-clock start and end in nanoseconds), `metrics` (each a value with
its unit) and `error`. Token counts are the server's where it told them, else aiperf's own. Turns of
a session have one `x_correlation_id`, those of its sub-agents the same `root_correlation_id`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from traces.foreign.requests.reader import (
    FAILED,
    Request,
    RowReader,
    ascend,
    nanoseconds,
    token_count,
)
from traces.recording.tables import MOST_TOKENS

_UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "sec": 1_000_000_000, "s": 1_000_000_000}
_PROMPT = ("usage_prompt_tokens", "input_sequence_length")
_OUTPUT = ("usage_completion_tokens", "output_sequence_length")
_CACHED = "usage_prompt_cache_read_tokens"


class _Metadata(msgspec.Struct):
    x_correlation_id: Any = None
    root_correlation_id: Any = None
    turn_index: Any = None
    agent_depth: Any = None


class _Turn(msgspec.Struct):
    metadata: _Metadata


class AiperfRecords(RowReader):
    """Reads a file of records."""

    name = "aiperf records"
    marks = (b'"metadata"', b'"benchmark_phase"', b'"metrics"')

    def requests(self) -> Iterator[Request]:
        later = (each.metadata for _, each in self._ahead(_Turn))
        sessions = {
            name
            for each in later
            if (each.turn_index or each.agent_depth)
            and (name := _session(each.root_correlation_id, each.x_correlation_id)) is not None
        }
        for each in self.skipped.kept(self._lines(), _request, "requests"):
            yield each if each.session in sessions else each._replace(session=None)


def _request(number: int, row: dict[str, Any]) -> Request:
    """Return a line's request. Raises ValueError with why it is none."""
    metadata, metrics = row.get("metadata"), row.get("metrics")
    if not isinstance(metadata, dict) or not isinstance(metrics, dict):
        raise ValueError("without metadata or metrics")
    if metadata.get("benchmark_phase") == "warmup":
        raise ValueError("of the warm-up")
    arrival = nanoseconds(metadata.get("request_start_ns"), 1)
    end = nanoseconds(metadata.get("request_end_ns"), 1)
    prompt, output = _tokens(metrics, _PROMPT), _tokens(metrics, _OUTPUT)
    cancelled = metadata.get("was_cancelled") is True
    session = _session(metadata.get("root_correlation_id"), metadata.get("x_correlation_id"))
    if arrival is None:
        raise ValueError("without request_start_ns")
    if cancelled or row.get("error") is not None:
        error = "the request was cancelled" if cancelled else FAILED
        return Request(number, prompt, output, arrival, error=error, session=session)
    if prompt is None or output is None:
        raise ValueError(f"without {_PROMPT[1]} and {_OUTPUT[1]} from 1 to {MOST_TOKENS:,}")
    ttft = _time(metrics.get("time_to_first_token"))
    first = None if ttft is None else arrival + ttft
    if end is None or not ascend(arrival, first, end):
        raise ValueError("whose times run backwards or have no end")
    cached = token_count(_value(metrics.get(_CACHED)), least=0)
    return Request(number, prompt, output, arrival, first, end, cached, session=session)


def _session(root: Any, own: Any) -> str | None:
    told = own if root is None else root
    return told if isinstance(told, str) else None


def _value(metric: Any) -> Any:
    return metric.get("value") if isinstance(metric, dict) else None


def _tokens(metrics: dict[str, Any], names: tuple[str, ...]) -> int | None:
    counts = (token_count(_value(metrics.get(name))) for name in names)
    return next((count for count in counts if count is not None), None)


def _time(metric: Any) -> int | None:
    unit = _UNITS_NS.get(str(metric.get("unit"))) if isinstance(metric, dict) else None
    return None if unit is None else nanoseconds(_value(metric), unit)
