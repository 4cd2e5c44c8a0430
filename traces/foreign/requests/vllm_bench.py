"""Results of `vllm bench serve --save-result --save-detailed`: one JSON document per benchmark.

With `--append-result` a file has one document a line. `start_times` count from an arbitrary moment,
so that the first request is taken to arrive at 0. Generated texts and error texts are not kept.
Results of older versions, and of SGLang's benchmark, have no `start_times`. Where so many requests
were kept in flight, each is taken to start when one of those before it had ended.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

import msgspec
import numpy as np

from traces.errors import OutcomesError
from traces.files import DOCUMENT_VALUES
from traces.foreign.requests.reader import (
    FAILED,
    Request,
    RowReader,
    ascend,
    check_run,
    nanoseconds,
    token_count,
)
from traces.foreign.source import decode, decode_read, whole_text
from traces.foreign.values import finite
from traces.recording.tables import MOST_TOKENS

_S = 1_000_000_000
_ROW = re.compile(rb"\[[^][]*\]")
_MOST_LINES = 1_000_000  # a document each, else one over many lines
_LISTS = ("input_lens", "output_lens", "ttfts", "start_times")
_BEGUN_S = 1.0  # of starts that are not told: 0 is that of a request that was never sent


class _Result(msgspec.Struct):
    model_id: Any = None
    request_rate: Any = None
    max_concurrency: Any = None
    ramp_up_strategy: Any = None  # then the rate is "inf", and not told
    input_lens: list[Any] | None = None
    output_lens: list[Any] | None = None
    ttfts: list[Any] | None = None
    start_times: list[Any] | None = None
    latencies: list[Any] | None = None
    errors: list[Any] | None = None


class _Gaps(msgspec.Struct):
    """The times between tokens, read where a result has no latencies."""

    itls: msgspec.Raw = msgspec.Raw(b"null")


class VllmBench(RowReader):
    """Reads a result."""

    name = "vllm bench serve result"
    marks: ClassVar[tuple[bytes, ...]] = (b'"tokenizer_id"', b'"num_prompts"')
    unit = "request"
    details = "vllm bench serve with --save-result --save-detailed"
    sent_at_a_rate = "Benchmark again with a newer vLLM, or with a number in flight and no rate"

    def requests(self) -> Iterator[Request]:
        result = self._result()
        self._read_load(result)
        self.facts.itl_s = self._itl_s(result)
        yield from self._requests(result)

    def _result(self) -> _Result:
        """Return the chosen document. Raises OutcomesError and UsageError as a reader does."""
        documents, run = self._documents(), self._choices.run
        check_run(self._path, run, len(documents), "results")
        chosen = documents[(run or 1) - 1]
        try:
            result = decode_read(chosen, _Result, DOCUMENT_VALUES)
            self._gaps = decode(chosen, _Gaps, None).itls
        except ValueError as error:
            raise OutcomesError(
                f"{self._path}: not the whole JSON of a result ({error}). Benchmark again"
            ) from None
        absent = [name for name in _LISTS if getattr(result, name) is None]
        if absent == ["start_times"]:
            result.start_times = self._in_turn(result)
        elif absent := [name for name in absent if name != "start_times"]:
            raise OutcomesError(f"{self._path}: has no {', '.join(absent)}. Run {self.details}")
        lengths = {name: len(getattr(result, name)) for name in _LISTS}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise OutcomesError(f"{self._path}: its lists differ in length ({counts})")
        return result

    def _in_turn(self, result: _Result) -> list[float]:
        """Return the starts of so many kept in flight, in order. Raises OutcomesError at a rate."""
        rate = result.request_rate
        if result.ramp_up_strategy is not None or rate not in (None, "inf"):
            raise OutcomesError(
                f"{self._path}: has no start_times, and its requests were sent at a rate. "
                f"{self.sent_at_a_rate}"
            )
        took = _full(result.latencies, len(result.ttfts or ())) or self._latencies(result)
        most = token_count(result.max_concurrency) or max(len(took), 1)
        free, starts = [_BEGUN_S] * min(most, max(len(took), 1)), []
        for each in took:
            starts.append(heapq.heappop(free))
            heapq.heappush(free, starts[-1] + (finite(each) or 0.0))
        self.facts.notes.append(
            "the file does not say when requests were sent. Each is taken to start as one before "
            "it ended"
        )
        return starts

    def _documents(self) -> list[bytes]:
        """Return the file's documents: one a line, or a single one over many lines."""
        what = "results. Benchmark fewer requests at a time"
        text = whole_text(self._path, self._choices.limit_bytes, what)
        if text.count(b"\n") > _MOST_LINES or text.lstrip().partition(b"\n")[0].strip() == b"{":
            return [text]
        return [line for line in text.split(b"\n") if line.strip()]

    def _read_load(self, result: _Result) -> None:
        if isinstance(result.model_id, str):
            self.facts.model = result.model_id
        most = token_count(result.max_concurrency)
        rate = result.request_rate
        has_rate = isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0
        if has_rate:
            self.facts.rate_per_s = float(rate)
        if not has_rate and result.ramp_up_strategy is None:
            self.facts.concurrency = most
        elif most is not None:
            self.facts.notes.append(
                f"at most {most:,} requests were in flight, so that some were sent later than "
                "the rate says. A replay sends them when they were sent"
            )

    def _requests(self, result: _Result) -> Iterator[Request]:
        starts = [nanoseconds(each, _S) for each in result.start_times or ()]
        begun = min((start for start in starts if start), default=0)
        count = len(starts)
        columns: list[list[Any]] = [
            result.input_lens or [],
            result.output_lens or [],
            result.ttfts or [],
            _full(result.latencies, count) or self._latencies(result),
            _full(result.errors, count) or [None] * count,
        ]
        for place, (start, *row) in enumerate(zip(starts, *columns, strict=True), 1):
            prompt, output, ttft, latency, error = row
            failed = _failed(error, output)
            tokens = token_count(prompt), token_count(output)
            first, length = nanoseconds(ttft, _S), nanoseconds(latency, _S)
            if not start:  # one that was never sent has 0
                self.skipped.add("requests without a start time", place)
            elif tokens[0] is None or (tokens[1] is None and not failed):
                self.skipped.add(
                    f"requests whose tokens are no whole numbers from 1 to {MOST_TOKENS:,}", place
                )
            elif failed:
                yield Request(place, tokens[0], tokens[1], start - begun, error=FAILED)
            elif not first or not length or not ascend(first, length):
                self.skipped.add("requests whose ttft and latency are no ascending times", place)
            else:
                arrival = start - begun
                yield Request(
                    place, tokens[0], tokens[1], arrival, arrival + first, arrival + length
                )

    def _itl_s(self, result: _Result) -> dict[str, float] | None:
        """Return mean and quantiles of gaps between tokens of requests that ended, if told."""
        rows = self._rows(result)
        errors = _full(result.errors, len(rows)) or [None] * len(rows)
        ended = zip(rows, errors, result.output_lens or (), strict=False)
        gaps = np.array([gap for row, *each in ended if not _failed(*each) for gap in row])
        gaps = gaps[np.isfinite(gaps) & (gaps >= 0)]
        if not gaps.size:
            return None
        tails = {f"p{q}": float(np.quantile(gaps, q / 100)) for q in (50, 95, 99)}
        return {"mean": float(gaps.mean()), **tails}

    def _latencies(self, result: _Result) -> list[Any]:
        """Return latencies as older versions tell them: the ttft and what came between tokens."""
        ttfts = result.ttfts or []
        return [
            ttft + sum(row) if isinstance(ttft, int | float) else None
            for ttft, row in zip(ttfts, self._rows(result), strict=False)
        ] or [None] * len(ttfts)

    def _rows(self, result: _Result) -> list[list[float]]:
        """Return the times between tokens of each request; none where they are not told."""
        count = len(result.ttfts or ())
        matches = islice(_ROW.finditer(bytes(self._gaps)), count + 1)
        try:
            rows = [decode(row[0], list[float]) for row in matches]
        except ValueError:
            return []
        return rows if len(rows) == count else []


def _failed(error: Any, output_tokens: Any) -> bool:
    return bool(error) or output_tokens == 0


class SglangBench(VllmBench):
    """Reads a result of SGLang's bench_serving, a line of its file, which names no model."""

    name = "SGLang bench_serving result"
    marks = (b'"sharegpt_output_len"', b'"random_range_ratio"', b'"total_output_tokens"')
    details = "sglang.bench_serving with --output-details"
    sent_at_a_rate = "Benchmark again with --max-concurrency and no --request-rate"


def _full(values: list[Any] | None, count: int) -> list[Any] | None:
    return values if values is not None and len(values) == count else None
