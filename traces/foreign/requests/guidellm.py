"""Reports of guidellm: `benchmarks.json`, one document with a list of benchmarks.

Each benchmark has its requests by how they ended (successful, incomplete, errored) with their times
in unix seconds. guidellm's own numbers are of those that overlap the time from
`measure_start_time` to `measure_end_time`. Prompts and outputs are skipped. Reports of guidellm 0.2
and 0.3 have no version, and their requests' tokens and times by other names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from traces.errors import OutcomesError
from traces.foreign.requests.reader import (
    FAILED,
    Request,
    RowReader,
    ascend,
    check_run,
    nanoseconds,
    token_count,
)
from traces.foreign.source import ArrayStream, decode
from traces.foreign.values import finite, whole_number
from traces.recording.tables import MOST_TOKENS

_S = 1_000_000_000
_CUT = "cut off by the end of the benchmark"


class _Usage(msgspec.Struct):
    text_tokens: Any = None
    cached_tokens: Any = None


class _Timings(msgspec.Struct):
    first_token_iteration: Any = None


class _Info(msgspec.Struct):
    timings: _Timings | None = None
    graph_id: Any = None  # of a conversation with its sub-agents
    conversation_id: Any = None


class _Stats(msgspec.Struct):
    request_start_time: Any = None
    request_end_time: Any = None
    info: _Info | None = None
    input_metrics: _Usage | None = None
    output_metrics: _Usage | None = None
    prompt_tokens: Any = None
    output_tokens: Any = None
    start_time: Any = None  # of 0.2 and 0.3, as those below
    end_time: Any = None
    first_token_time: Any = None


class _Requests(msgspec.Struct):
    successful: list[_Stats] | None = None
    incomplete: list[_Stats] | None = None
    errored: list[_Stats] | None = None


class _Config(msgspec.Struct):
    strategy: dict[str, Any] | None = None
    backend: dict[str, Any] | None = None


class _Worker(msgspec.Struct):
    backend_model: Any = None


class _State(msgspec.Struct):
    successful_requests: Any = None
    errored_requests: Any = None


class _Counts(msgspec.Struct):
    """Requests of 0.2 and 0.3, before a sample of them was drawn."""

    successful: Any = None
    errored: Any = None


class _Metrics(msgspec.Struct):
    measure_start_time: Any = None
    measure_end_time: Any = None


class _Benchmark(msgspec.Struct):
    requests: _Requests
    config: _Config | None = None
    args: _Config | None = None  # of 0.2 and 0.3, as the worker
    worker: _Worker | None = None
    scheduler_state: _State | None = None
    total_count: _Counts | None = None  # of 0.2 and 0.3
    scheduler_metrics: _Metrics | None = None


class GuidellmReport(RowReader):
    """Reads a report."""

    name = "guidellm report"
    unit = "request"

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        return b'"guidellm_version"' in head or b'"generative_benchmark"' in head

    def requests(self) -> Iterator[Request]:
        chosen = self._chosen()
        self._check_whole(chosen)
        self._read_load(chosen.config or chosen.args or _Config())
        if self.facts.model is None and chosen.worker is not None:
            model = chosen.worker.backend_model
            self.facts.model = model if isinstance(model, str) else None
        yield from self._requests(chosen.requests, chosen.scheduler_metrics or _Metrics())

    def _chosen(self) -> _Benchmark:
        """Return the chosen benchmark. Raises OutcomesError and UsageError as a reader does."""
        chosen: bytes | None = None
        count, run = 0, self._choices.run
        stream = ArrayStream(self._path, self._choices.limit_bytes, b"benchmarks")
        for raw in stream:
            count += 1
            if raw is None:
                raise OutcomesError(
                    f"{self._path}: benchmark {count} is too large to be held. "
                    "Save it with fewer requests"
                )
            chosen = raw if count == (run or 1) else chosen
        if stream.cut is not None:
            raise OutcomesError(f"{self._path}: {stream.cut}. Export it again")
        check_run(self._path, run, count, "benchmarks")
        if chosen is None:
            raise OutcomesError(f"{self._path}: holds no benchmark. Was it stopped early?")
        try:
            return decode(chosen, _Benchmark)
        except ValueError as error:
            raise OutcomesError(
                f"{self._path}: benchmark {run or 1} is not as guidellm writes it ({error})"
            ) from None

    def _check_whole(self, chosen: _Benchmark) -> None:
        """Raise OutcomesError where a report has a random sample of its requests alone."""
        groups, state, older = chosen.requests, chosen.scheduler_state, chosen.total_count
        state, older = state or _State(), older or _Counts()
        for group, count, option in (
            (groups.successful, state.successful_requests, "with --sample-requests {}"),
            (groups.errored, state.errored_requests, "with --sample-requests {}"),
            (groups.successful, older.successful, "without --output-sampling"),
            (groups.errored, older.errored, "without --output-sampling"),
        ):
            kept, total = len(group or ()), whole_number(count)
            if total is not None and total > kept:
                raise OutcomesError(
                    f"{self._path}: keeps {kept:,} of {total:,} requests, drawn at random, so that "
                    "its load and throughput are not known. Benchmark again "
                    f"{option.format(total)}, which keeps all"
                )

    def _read_load(self, config: _Config) -> None:
        strategy = config.strategy or {}
        model = (config.backend or {}).get("model")
        self.facts.model = model if isinstance(model, str) else None
        kind = strategy.get("type_")
        rate = strategy.get("rate")
        if kind == "synchronous":
            self.facts.concurrency = 1
        elif kind == "concurrent":
            self.facts.concurrency = token_count(strategy.get("streams"))
        elif kind == "throughput":
            self.facts.concurrency = token_count(strategy.get("max_concurrency"))
        elif isinstance(rate, int | float) and rate > 0:
            self.facts.rate_per_s = float(rate)

    def _requests(self, requests: _Requests, metrics: _Metrics) -> Iterator[Request]:
        begun, ended = finite(metrics.measure_start_time), finite(metrics.measure_end_time)
        groups = (
            (requests.successful, None),
            (requests.errored, FAILED),
            (requests.incomplete, _CUT),
        )
        rows = enumerate(((each, error) for stats, error in groups for each in stats or ()), 1)
        turns = Counter(_session(each) for stats, _ in groups for each in stats or ())

        def read(place: int, row: tuple[_Stats, str | None]) -> Request:
            if _outside(row[0], begun, ended):
                raise ValueError("of the warm-up or the cool-down")
            session = _session(row[0])
            return _request(place, *row, session if turns[session] > 1 else None)

        return self.skipped.kept(rows, read, "requests")


def _outside(stats: _Stats, begun: float | None, ended: float | None) -> bool:
    """Whether a request ended before the time that counts, or started after it; -1 is no time."""
    start, end = finite(stats.request_start_time), finite(stats.request_end_time)
    early = end is not None and begun is not None and end < begun
    return early or (start is not None and ended is not None and 0 < ended < start)


def _session(stats: _Stats) -> str | None:
    info = stats.info or _Info()
    told = _first(info.graph_id, info.conversation_id)
    return told if isinstance(told, str) else None


def _request(place: int, stats: _Stats, error: str | None, session: str | None) -> Request:
    """Return a request. Raises ValueError with why it is none."""
    usage = stats.input_metrics or _Usage()
    made = stats.output_metrics or _Usage()
    prompt = token_count(_first(stats.prompt_tokens, usage.text_tokens))  # images are in the first
    output = token_count(_first(stats.output_tokens, made.text_tokens))
    arrival = nanoseconds(_first(stats.request_start_time, stats.start_time), _S)
    if arrival is None:
        raise ValueError("without request_start_time")
    if error is not None:
        return Request(place, prompt, output, arrival, error=error, session=session)
    if prompt is None or output is None:
        raise ValueError(f"without text_tokens of prompt and output from 1 to {MOST_TOKENS:,}")
    timings = None if stats.info is None else stats.info.timings
    first_token = stats.first_token_time if timings is None else timings.first_token_iteration
    first = nanoseconds(first_token, _S)
    end = nanoseconds(_first(stats.request_end_time, stats.end_time), _S)
    if end is None or not ascend(arrival, first, end):
        raise ValueError("whose times run backwards or have no end")
    cached = token_count(usage.cached_tokens, least=0)
    return Request(place, prompt, output, arrival, first, end, cached, session=session)


def _first(value: Any, other: Any) -> Any:
    return other if value is None else value
