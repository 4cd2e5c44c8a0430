"""What a live deployment did while it was watched, from what its /metrics said.

Counters and histograms are read as they are; here they become increases over a stretch of time.
An interval in which a counter fell or another process began to answer (the server was restarted)
is left out of the increases and of the seconds, so that no rate mixes two lives of a server.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.recording.tables import TABLES
from traces.schema.estimate import Estimate
from traces.schema.formats import ABSENT, digits, number, scale
from traces.schema.record import Record
from traces.summary.prefix_hits import CACHED, HIT_TOKENS

Key = tuple[str, str]  # name and labels
Floats = NDArray[np.float64]
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
FEW = 16  # observations between two polls, up to which they are looked at one by one
SAME_REPORT = 0.5  # of the time between reports, in which changes of a page are one report's
LIVE_S = 10.0  # that a live line looks back
STALLED_S = 10.0  # without a token while requests run, from which an engine is stalled
STALLED_GAPS = 50  # usual gaps between tokens that this lasts at least: some engines are slow
PROFILER_NS = 500_000_000  # after a profiler's window, until the tokens that it held back are told
KV_FULL = 0.95  # a cache with more of its blocks in use cannot take a new prompt of some length

TTFT = "vllm:time_to_first_token_seconds"
ITL = "vllm:inter_token_latency_seconds"
QUEUE = "vllm:request_queue_time_seconds"
E2E = "vllm:e2e_request_latency_seconds"
PREFILL = "vllm:request_prefill_time_seconds"
DECODE = "vllm:request_decode_time_seconds"
STEP_TOKENS = "vllm:iteration_tokens_total"
STEPS = f"{STEP_TOKENS}_count"
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
KV = "vllm:kv_cache_usage_perc"
PROMPT, GENERATED = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
PROMPT_LENGTH = "vllm:request_prompt_tokens"
OUTPUT_LENGTH = "vllm:request_generation_tokens"
FINISHED, PREEMPTED = "vllm:request_success_total", "vllm:num_preemptions_total"
ASKED_TOKENS = "vllm:prefix_cache_queries_total"
DRAFTS = "vllm:spec_decode_num_drafts_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED_AT = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
FLOPS = "vllm:estimated_flops_per_gpu_total"
READ_BYTES = "vllm:estimated_read_bytes_per_gpu_total"
PER_GPU = (FLOPS, READ_BYTES)
ACCEPTED_LENGTH = "sglang:spec_accept_length"  # a gauge, of which vLLM tells the counts
STARTED = "engine_process_start_time_seconds"  # of the page's process, with each engine of it
REPORTED = "engine_report_interval_seconds"  # of a page that is written so often (Ray's)
ADDED = (STARTED, REPORTED)  # by ttscope, to each engine of a page
GAUGES = (RUNNING, WAITING, KV, ACCEPTED_LENGTH, *ADDED)
MOST_SERIES = 50_000  # of a page, and of an engine in all its pages; more are left out
_CELLS = 500_000  # of a table of polls and series in memory
_LARGEST = 2.0**63  # of a counter
_LOWER = 1 - 1e-9  # times a sum, which may be rounded otherwise
_COUNTER, _GAUGE = 0, 1  # kinds of series
_LINE = {name: TABLES["scrapes"][name] for name in ("name", "labels", "le")}
# 64 bits of a series: no two of an engine share them.
_NAMED = pl.col("name").hash(1) ^ pl.col("labels").hash(2) ^ pl.col("le").hash(3)
_END = np.uint64(0xFFFF)
_PART = re.compile(r"_(?:bucket|count|sum)\Z")
_TIMES = (TTFT, ITL, QUEUE, E2E, PREFILL, DECODE)
_LENGTHS = (PROMPT_LENGTH, OUTPUT_LENGTH)
# Counted from poll to poll where lengths are too.
_COUNTED = (PROMPT, CACHED, HIT_TOKENS)


def _parts_of(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}_{part}" for name in names for part in ("bucket", "count", "sum"))


USED = (
    *(*_parts_of(_TIMES), STEPS, f"{STEP_TOKENS}_sum"),
    *(*GAUGES, PROMPT, GENERATED, FINISHED, PREEMPTED, HIT_TOKENS, ASKED_TOKENS),
    *(DRAFTS, DRAFTED, ACCEPTED_AT, *PER_GPU),
)
TRAFFIC = (*_parts_of(_LENGTHS), CACHED)  # beside `USED`, for `Polls(lengths=True)`
_USED = frozenset((*USED, *TRAFFIC))


def tells(name: str) -> bool:
    """Whether a series, under vLLM's name, is what a server's numbers are computed of."""
    return (name in _USED and name not in ADDED) or name.startswith("vllm:")


@dataclass(frozen=True, kw_only=True)
class Bounds(Record):
    """Where a histogram's number lies: above `low`, at most `high`, None above its last bound."""

    low: float
    high: float | None
    unit: str

    def words(self) -> str:
        """Return `5.00 to 10.0 s`, `up to 10.0 ms`, `over 60.0 s`, or one number if they agree."""
        if self.high is None:
            return f"over {number(self.low, self.unit)}"
        high = number(self.high, self.unit)
        factor, unit = scale(self.high, self.unit)
        low = digits(self.low / factor)
        if f"{low} {unit}" == high:
            return high
        return f"up to {high}" if self.low <= 0 else f"{low} to {high}"

    def to_json(self) -> dict[str, Any]:
        """Return the document of an estimate whose value is not known."""
        return {"value": None, **super().to_json(), "extrapolated": self.high is None}


@dataclass(frozen=True, kw_only=True)
class Times(Record):
    """A mean, which a histogram's sum and count tell exactly, and the bounds of quantiles."""

    mean: Estimate | None = None
    p50: Bounds | None = None
    p95: Bounds | None = None
    p99: Bounds | None = None


@dataclass(frozen=True)
class Histogram:
    """What a histogram took in from poll to poll.

    `bounds` are the upper ones of its buckets, `counts` [intervals, buckets] what fell into each,
    `sums` [intervals] their sum, nan where it was not told.
    """

    bounds: Floats
    counts: NDArray[np.float32]
    sums: Floats

    def quantile(self, q: float, unit: str = "s") -> Bounds | None:
        """Return what is known of a quantile; None where nothing was taken in."""
        lows, highs = self._in_order
        total = lows.weights[-1] if lows.weights.size else 0
        if total < 1:
            return None
        # What stands at a place of the lows (or the highs) in order is below (above) the
        # observation at that place. By nearest rank and between two ranks: both are usual.
        ends = []
        for values, widest in ((lows, min), (highs, max)):
            rank, share = divmod((total - 1) * q, 1)
            nearest, under, over = (
                values.at(place) for place in (np.ceil(total * q) - 1, rank, rank + (share > 0))
            )
            between = under if under == over else under + share * (over - under)
            ends.append(float(widest(nearest, between)))
        low, high = ends
        return Bounds(low=low, high=high if np.isfinite(high) else None, unit=unit)

    @cached_property
    def _in_order(self) -> tuple[_InOrder, _InOrder]:
        """The lower and the upper ends of the observations."""
        lows, highs, weights = self._observations()
        return _InOrder.of(lows, weights), _InOrder.of(highs, weights)

    def _observations(self) -> tuple[Floats, Floats, Floats]:
        """Return what each observation lies above, what it is at most, and how many are alike.

        Their sum tells more than their buckets: all that it has beyond the buckets' lower ends may
        be one observation's, half of it that of each of two. So from poll to poll where few fell
        in between, and of the others together.
        """
        begins = np.concatenate(([0.0], self.bounds[:-1]))
        bucket, interval = np.nonzero(self.counts.T > 0)  # few of a day's cells
        count = self.counts[interval, bucket].astype(float)
        number, lowest, highest = (
            np.bincount(interval, each, len(self.counts))
            for each in (count, count * begins[bucket], count * self.bounds[bucket])
        )
        above, below = self.sums - lowest, highest - self.sums
        near = 1e-6 * np.maximum(np.abs(self.sums), 1.0)
        # A page may tell an observation's sum and not yet its bucket; the next page mends it.
        odd = ~((above >= -near) & (below >= -near))
        torn = bool(odd.any())
        odd[1:], odd[:-1] = odd[1:] | odd[:-1], odd[:-1] | odd[1:]
        few = ~odd & (number <= FEW)
        together = np.bincount(bucket, count * ~few[interval], self.bounds.size)
        one = few[interval]
        alike = count[one].astype(int)
        interval, bucket = np.repeat(interval[one], alike), np.repeat(bucket[one], alike)
        order = np.arange(interval.size) - np.repeat(np.cumsum(alike) - alike, alike) + 1
        parts = [(bucket, order, np.ones(order.size), above[interval], below[interval])]
        over, under = (np.inf if torn else told[~few].sum() for told in (above, below))
        for place, size in enumerate(together):  # in groups
            edges = np.unique(np.geomspace(1, size + 1, 65).round()) if size else np.ones(1)
            each = np.ones(edges.size - 1)
            parts.append(
                (each.astype(int) * place, edges[:-1], np.diff(edges), each * over, each * under)
            )
        bucket, order, weights, over, under = (
            np.concatenate(each) for each in zip(*parts, strict=True)
        )
        lows, highs = begins[bucket], self.bounds[bucket]
        with np.errstate(invalid="ignore"):  # of a last bucket without an end
            more = highs - np.maximum(under, 0) / order - 1e-6
            less = lows + np.maximum(over, 0) / order + 1e-6
        return np.fmax(lows, more), np.fmin(highs, less), weights


class _InOrder(NamedTuple):
    """Values that ascend, and how many observations there are up to each."""

    values: Floats
    weights: Floats

    @classmethod
    def of(cls, values: Floats, weights: Floats) -> _InOrder:
        """Return values, each of which stands as often as its weight."""
        order = np.argsort(values)
        return cls(values[order], np.cumsum(weights[order]))

    def at(self, place: float) -> float:
        """Return the value at a place in order, the last one where rounding goes beyond it."""
        index = int(np.searchsorted(self.weights, place, side="right"))
        return float(self.values[min(index, self.values.size - 1)])


@dataclass(frozen=True)
class Window:
    """Increases of counters and readings of gauges over a stretch of one engine's polls.

    `times` are those of the polls, or where a page is written now and then those of its reports.
    Then `until_ns` is when the last poll was. `increase` is by name and labels, `histograms` of
    times by name. `gauges` by name and `counted`, what counters gained since the poll before, have
    one number per poll, nan where it was not told. `seconds` leaves out the intervals of `apart`.
    `apart` are the polls whose interval before them is left out: of `resets`, and of profiler
    windows. `left_out` says that the pages had more than `MOST_SERIES` series.
    """

    times: NDArray[np.int64]
    seconds: float
    resets: int
    increase: Mapping[Key, float]
    histograms: Mapping[str, Histogram]
    gauges: Mapping[str, Floats]
    counted: Mapping[str, Floats]
    left_out: bool = False
    until_ns: int | None = None
    apart: NDArray[np.bool_] | None = None

    @cached_property
    def intervals_s(self) -> Floats:
        """The seconds before each poll, 0 for the first one and where they are left out."""
        seconds = np.maximum(np.diff(self.times, prepend=self.times[:1]), 0) / 1e9
        return seconds if self.apart is None else np.where(self.apart, 0.0, seconds)

    @cached_property
    def stands_for_s(self) -> Floats:
        """The seconds that each poll stands for: half of the intervals before and after it.

        A loaded server is polled less often, so that polls alone count its load too seldom.
        """
        before = self.intervals_s
        return np.asarray((before + np.append(before[1:], 0.0)) / 2)

    def mean(self, values: NDArray[Any], between: Floats | None = None) -> float | None:
        """Return the mean over time of what polls say [polls]; None where it is nan in all.

        Where `between`, the mean of the interval before each poll, is known, it counts in place of
        what the polls at its ends say.
        """
        known = ~np.isnan(values)
        if not known.any():
            return None
        weights = self.stands_for_s[known]
        mean = np.average(values[known], weights=weights if weights.any() else None)
        mean = np.clip(mean, values[known].min(), values[known].max())
        if between is not None and weights.any():
            more = np.nan_to_num((between - _at_ends(values)) * self.intervals_s)
            mean = np.clip(mean + more.sum() / weights.sum(), 0, None)
        return float(mean)

    @cached_property
    def between(self) -> Between | None:
        """What requests that ended tell of the time from one poll without any to the next.

        A front end that is busy answers when it has done its work, so that polls fall into the
        pauses of a load. What ran from one such pause to another began and ended there, so that by
        Little's law (Little 1961) its seconds are how many ran or waited on average, times the
        seconds that passed. Steps last as long as tokens are apart, and where a page does not count
        them as many ran as ever did. None where a page lacks these times. What a client left has
        no times, so nothing is known where fewer ended than began.
        """
        ended, queued, gaps, began = (self.histograms.get(n) for n in (E2E, QUEUE, ITL, TTFT))
        if ended is None or queued is None or gaps is None or began is None:
            return None
        prefill, decode = self.histograms.get(PREFILL), self.histograms.get(DECODE)
        ran = ended.sums - queued.sums
        if prefill is not None and decode is not None:  # without what a front end takes
            ran = prefill.sums + decode.sums
        running, waiting = self.gauges[RUNNING], self.gauges[WAITING]
        idle, most = (running == 0) & ~(waiting > 0), np.nan_to_num(running).argmax()
        pauses = np.flatnonzero(idle)
        if pauses.size < 2:
            return None
        inside = slice(pauses[0] + 1, pauses[-1] + 1)
        starts = pauses[:-1] - pauses[0]
        busy, waits = _busy(running, waiting), _where(waiting > 0, waiting)
        seconds = np.add.reduceat(self.intervals_s[inside], starts)

        def total(each: Floats) -> Floats:
            """Return what came in each stretch, of what came in the interval before each poll."""
            return np.asarray(np.add.reduceat(each[inside], starts))

        ran_s, queued_s = total(ran), total(queued.sums)
        count, tokens = total(ended.counts.sum(axis=1)), total(gaps.counts.sum(axis=1))
        cut = np.logical_or.reduceat(~(self.intervals_s[inside] > 0), starts)
        tell = ~cut & (count >= total(began.counts.sum(axis=1)))
        polled_s = total(np.nan_to_num(_at_ends(busy) * self.intervals_s))
        waited_s = total(np.nan_to_num(_at_ends(waits) * self.intervals_s))
        with np.errstate(divide="ignore", invalid="ignore"):
            stepped_s = total(self.counted[STEPS]) * total(gaps.sums) / tokens
            stepped_s = np.where(np.isnan(stepped_s), ran_s / max(running[most], 1), stepped_s)
            busy_s = np.fmin(np.fmin(np.fmax(stepped_s, polled_s), ran_s), seconds)
            share = np.where(polled_s > 0, waited_s / polled_s, 1.0)
            waits_s = np.fmin(share * busy_s, queued_s)
            told = [np.where(tell, s / seconds, np.nan) for s in (ran_s, queued_s, busy_s, waits_s)]
        stretch = np.cumsum(idle) - idle - 1  # that the interval before each poll belongs to
        known = (stretch >= 0) & (stretch < starts.size)
        at = np.clip(stretch, 0, starts.size - 1)
        return Between(*(np.where(known, each[at], np.nan) for each in told))

    @cached_property
    def stalls(self) -> NDArray[np.bool_] | None:
        """Polls in a stretch in which requests ran for long and no token came.

        A prompt that is computed for long gives no token, but takes blocks of the KV cache. None of
        an engine that does not tell each token as it comes, but with its request.
        """
        tokens, gaps = self.counted[GENERATED], self.histograms.get(ITL)
        if gaps is None or np.isnan(tokens).all():
            return None
        usual, reports = gaps.quantile(0.5), self.gauge(REPORTED)
        longest = max(STALLED_S, STALLED_GAPS * (usual.low if usual else 0.0))
        longest = max(longest, 1.5 * float(reports.max())) if reports.size else longest
        ran, kv = self.gauges[RUNNING] > 0, self.gauges[KV]
        still = ran & (tokens == 0) & (np.nan_to_num(np.diff(kv, prepend=kv[:1])) == 0)
        still[1:] &= ran[:-1]
        still &= self.intervals_s > 0
        stretch = np.cumsum(~still)
        lasted = np.bincount(stretch, np.where(still, self.intervals_s, 0.0))
        return np.asarray(still & (lasted[stretch] >= longest))

    def total(self, name: str) -> float | None:
        """Return a counter's increase over all its labels, None where it was not told."""
        values = [value for key, value in self.increase.items() if key[0] == name]
        return sum(values) if values else None

    def by_label(self, name: str) -> dict[str, float]:
        return {key[1]: value for key, value in self.increase.items() if key[0] == name}

    def rate(self, name: str) -> float | None:
        total = self.total(name)
        return None if total is None or self.seconds <= 0 else total / self.seconds

    def with_ranks(self, ranks: Sequence[Window]) -> Window:
        """Return the window of a server with what its page tells of each rank alone (SGLang).

        Requests and counters are the sums over ranks. Shares, lengths and numbers of one GPU are
        their means.
        """
        if not ranks or any(not np.array_equal(each.times, self.times) for each in ranks):
            return self
        server_names, gauges, counted = {name for name, _ in self.increase}, {}, {}
        increase, histograms = dict(self.increase), dict(self.histograms)
        for name, of_server in self.gauges.items():
            lacks = np.isnan(of_server).all()
            each = np.array([rank.gauges[name] for rank in ranks])
            of_all = each.sum(axis=0) if name in (RUNNING, WAITING) else each.mean(axis=0)
            gauges[name] = of_all if lacks else of_server
        for name, of_server in self.counted.items():
            each = np.array([rank.counted[name] for rank in ranks])
            counted[name] = each.sum(axis=0) if np.isnan(of_server).all() else of_server
        telling = {  # how many ranks a number of one GPU is the mean of
            name: sum(rank.total(name) is not None for rank in ranks) for name in PER_GPU
        }
        for rank in ranks:
            for key, value in rank.increase.items():
                if key[0] not in server_names:
                    increase[key] = increase.get(key, 0.0) + value / telling.get(key[0], 1)
            for name in rank.histograms.keys() - self.histograms.keys():
                had, new = histograms.get(name), rank.histograms[name]
                if had is not None and np.array_equal(had.bounds, new.bounds):
                    new = Histogram(new.bounds, had.counts + new.counts, had.sums + new.sums)
                histograms[name] = new
        return replace(
            self, increase=increase, histograms=histograms, gauges=gauges, counted=counted
        )

    def untold(self) -> Window:
        """Return the window of a page that tells of no rank, and of nothing else."""
        gauges, counted = (
            {name: np.full_like(told, np.nan) for name, told in each.items()}
            for each in (self.gauges, self.counted)
        )
        return replace(self, increase={}, histograms={}, gauges=gauges, counted=counted)

    def gauge(self, name: str) -> Floats:
        """Return a gauge's readings, empty where it was not told."""
        polled = self.gauges[name]
        readings: Floats = polled[~np.isnan(polled)]
        return readings


class Between(NamedTuple):
    """Means of the interval before each poll [polls], nan where its ends tell more.

    `busy` is the share of it in which requests ran or waited, `waits` that in which some waited.
    """

    running: Floats
    waiting: Floats
    busy: Floats
    waits: Floats


def _at_ends(values: Floats) -> Floats:
    """Return the means of what the polls at both ends of each interval say, nan for the first."""
    return np.append(np.nan, (values[1:] + values[:-1]) / 2)


def _busy(running: Floats, waiting: Floats) -> Floats:
    return _where((running > 0) | (waiting > 0), running)


Stretches = Sequence[tuple[int, int]]  # of time, unix ns


class Polls:
    """Adds up the polls of one engine's server, page after page, without keeping the pages.

    A row that a poll lacks has the value of the poll before; a null ends a series that the page no
    longer has. A counter that comes back goes on from where it ended, since a page may lack a line
    for a while. A lower one counts from 0, and so does one that was away at a restart: a server
    makes some counters at their first use.
    Of each poll the buckets of times, the gauges, the generated tokens and the steps stay in
    memory, 4 bytes a bucket. With `lengths` so do those of requests' lengths and the counters of
    prompts, from which a law and traffic are made. Series beyond `MOST_SERIES` are left out. So is
    what came while a profiler's window was open, `profiled` (unix ns): the server stands still
    for it.
    """

    def __init__(self, *, lengths: bool = False, profiled: Stretches = ()) -> None:
        self._profiled = [(begun, ended + PROFILER_NS) for begun, ended in profiled]
        self._apart: list[NDArray[np.bool_]] = []  # polls after which a window was open
        self._places: dict[Line, int] = {}
        self._left_out = False
        # Of each series, nan before the first, and of a gauge that is gone.
        self._last = np.empty(0)
        self._ended = np.empty(0)  # the poll at which a counter ended, -1 where it is there
        self._increase = np.empty(0)
        self._times: list[NDArray[np.int64]] = []
        self._resets: list[NDArray[np.bool_]] = []
        self._still: list[NDArray[np.bool_]] = []  # polls at which no counter grew
        self._late: list[int] = []  # polls with a reset that only a later one told
        self._first_ns: int | None = None  # when the first poll was
        self._partly_ns: int | None = None  # until when counters tell of what came before it too
        self._last_reset = -1
        self._last_restart = -1  # that a poll told at once
        self._began = np.nan  # when the process began that answered last, unix s
        self._counted = (GENERATED, STEPS, *_COUNTED) if lengths else (GENERATED, STEPS)
        histograms = (*_TIMES, *_LENGTHS) if lengths else _TIMES
        self._told: dict[str, list[Floats]] = {name: [] for name in (*GAUGES, *self._counted)}
        self._grown: dict[str, list[_Grown]] = {name: [] for name in histograms}
        self._make_room()
        self._held = pl.DataFrame()  # of a poll that may go on in the next rows

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows of `scrapes` of an engine and of `USED` (`lengths`: and `TRAFFIC`), in order."""
        if self._held.height:
            rows = pl.concat([self._held, rows])
        if not rows.height:
            return
        starts = rows["time"].rle_id().to_numpy()
        last_start = int(np.searchsorted(starts, starts[-1]))
        self._held = rows[last_start:]
        self._take(rows[:last_start], starts[:last_start])

    def window(self) -> Window | None:
        """Return what happened between the first and the last poll; None without two."""
        held, self._held = self._held, pl.DataFrame()
        self._take(held, np.zeros(held.height, dtype=int))
        if not self._times or sum(map(len, self._times)) < 2:
            return None
        times, resets = np.concatenate(self._times), np.concatenate(self._resets)
        resets[self._late] = True
        apart = np.concatenate(self._apart) | resets
        sums = {
            (name, labels): float(self._increase[place])
            for (name, labels, le), place in self._places.items()
            if le is None and name not in GAUGES
        }
        readings = {name: np.concatenate(each) for name, each in self._told.items()}
        for name in self._counted:
            readings[name][self._late] = np.nan
        histograms = {
            name: found
            for name, each in self._grown.items()
            if (found := _histogram(each)) is not None
        }
        until_ns = None
        if np.isfinite(readings[REPORTED]).any():
            until_ns, every_ns = int(times[-1]), round(float(np.nanmax(readings[REPORTED])) * 1e9)
            polls = _reports(times, np.concatenate(self._still), every_ns)
            starts, end = np.append(0, polls[:-1] + 1), int(polls[-1]) + 1

            def gained(each: NDArray[Any]) -> NDArray[Any]:
                """Return what came at polls [polls, ...], that of others with the next."""
                return np.asarray(np.add.reduceat(each[:end], starts, axis=0))

            times, resets, apart = times[polls], gained(resets) > 0, gained(apart) > 0
            readings = {
                name: each[polls] if name in GAUGES else gained(each)
                for name, each in readings.items()
            }
            histograms = {
                name: Histogram(each.bounds, gained(each.counts), gained(each.sums))
                for name, each in histograms.items()
            }
        lengths = np.maximum(np.diff(times), 0)[~apart[1:]]
        return Window(
            times=times,
            seconds=float(lengths.sum()) / 1e9,
            resets=int(resets.sum()),
            increase=sums,
            histograms=histograms,
            gauges={name: readings[name] for name in GAUGES},
            counted={name: readings[name] for name in self._counted},
            left_out=self._left_out,
            until_ns=until_ns,
            apart=apart,
        )

    def _take(self, rows: pl.DataFrame, poll: NDArray[Any]) -> None:
        """Add whole polls, so many at a time that the table of what is kept stays small."""
        if not rows.height:
            return
        places = self._places_of(rows)
        poll = poll.astype(int) - int(poll[0])
        starts = np.searchsorted(poll, np.arange(poll[-1] + 1))
        times = rows["time"].to_numpy()[starts]
        value, gone = rows["value"].to_numpy(), rows["value"].is_null().to_numpy()
        # What no counter can hold is no reading: sums of it would overflow.
        value = np.where(np.abs(value) <= _LARGEST, value, np.nan)
        step = max(_CELLS // max(self._columns.most, 1), 1)
        for first in range(0, starts.size, step):
            end = starts[first + step] if first + step < starts.size else poll.size
            part = slice(starts[first], end)
            events = _Events(places[part], poll[part] - first, value[part], gone[part])
            self._add_events(times[first : first + step], events)

    def _places_of(self, rows: pl.DataFrame) -> NDArray[np.uint16]:
        """Return the place of each row's series, the number of places of one too many."""
        asked = rows.select(_NAMED).to_series().to_numpy()
        places = self._known.places(asked)
        new = np.flatnonzero(places == len(self._places))
        if new.size and not self._left_out:
            lines = rows[new].select(_LINE.keys()).unique(maintain_order=True)
            for each in lines.iter_rows():
                if len(self._places) >= MOST_SERIES:
                    self._left_out = True
                    break
                self._places[each] = len(self._places)
            self._make_room()
            places = self._known.places(asked)
        return places

    def _make_room(self) -> None:
        """Have room for every series that is known by now."""
        lines = pl.DataFrame(list(self._places), schema=_LINE, orient="row")
        self._known = _Known.of(lines.select(_NAMED).to_series().to_numpy())
        new = len(self._places) - self._last.size
        self._last = np.append(self._last, np.full(new, np.nan))
        self._ended = np.append(self._ended, np.full(new, -1.0))
        self._increase = np.append(self._increase, np.zeros(new))
        self._columns = _Columns.of(self._places, self._counted, self._grown)

    def _add_events(self, times: NDArray[np.int64], events: _Events) -> None:
        """Add polls by what they tell, poll after poll."""
        columns = self._columns
        kind = columns.kind[events.place]
        kind[np.isnan(events.value) & ~events.gone] = -1
        filled = self._filled(times.size, events.chosen(kind == _GAUGE))
        events = events.by_series(np.flatnonzero(kind == _COUNTER))
        present = events.chosen(~events.gone) if events.gone.any() else events
        before = _before(present.place, present.value, self._last)
        back = self._back(events, present, before)
        # A series that appears later began at 0; the first poll's values are where counting begins.
        new = np.isnan(before)
        if not self._times:
            new &= present.poll > 0
        new[back.at[back.lower]] = True
        grown = present.value - before
        grown[new] = present.value[new]
        np.nan_to_num(grown, copy=False, nan=0.0)
        resets = self._began_anew(_reading(columns.gauges, STARTED, filled))
        fell = (grown < 0) & (columns.only_grows[present.place] | (present.value < before * _LOWER))
        resets[present.poll[fell]] = True
        away = self._away_at_a_restart(present.poll[back.at], back.ended, resets)
        anew = back.chosen(back.lower | away)
        grown[anew.at] = present.value[anew.at]
        left_out = resets | self._while_profiled(times)
        if left_out.any():
            grown[left_out[present.poll]] = 0.0
        still = np.ones(times.size, dtype=bool)
        still[present.poll[grown > 0]] = False
        self._still.append(still)
        partly = self._in_first_report(times, still, _reading(columns.gauges, REPORTED, filled))
        if partly.any():
            grown[partly[present.poll]] = 0.0
        emptied = self._restart(present.poll[anew.at], anew.ended, resets)
        if emptied.any():
            left = emptied[present.poll]
            left[anew.at] = False
            grown[left] = 0.0
        self._increase += np.bincount(present.place, grown, self._increase.size)
        since = {name: self._first_told(present, name, times.size) for name in self._counted}
        self._last[present.place] = present.value  # the last of each stays
        self._times.append(times)
        self._resets.append(resets)
        self._apart.append(left_out)
        for name in GAUGES:
            self._told[name].append(_reading(columns.gauges, name, filled))
        table = columns.table(present, grown, times.size)
        for counter in self._counted:
            at = columns.kept.get((counter, 0.0))
            gained = np.full(times.size, np.nan) if at is None else table[at].copy()
            gained[: since[counter]] = gained[left_out | resets] = np.nan
            self._told[counter].append(gained)
        for name, kept in self._grown.items():
            kept.append(columns.histogram(name, table))

    def _while_profiled(self, times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the polls before which a window was open since the poll before."""
        before = np.append(self._times[-1][-1:] if self._times else times[:1], times[:-1])
        open_then = np.zeros(times.size, dtype=bool)
        for begun, ended in self._profiled:
            open_then |= (begun <= times) & (before <= ended)
        return open_then

    def _in_first_report(
        self, times: NDArray[np.int64], still: NDArray[np.bool_], every_s: Floats
    ) -> NDArray[np.bool_]:
        """Return the polls of a page's first report, if it began before the first poll."""
        none = np.zeros(times.size, dtype=bool)
        self._first_ns = int(times[0]) if self._first_ns is None else self._first_ns
        if not np.isfinite(every_s).any() or (self._partly_ns is None and still.all()):
            return none
        if self._partly_ns is None:
            first, every_ns = int(times[~still][0]), float(np.nanmax(every_s)) * 1e9
            is_partly = first - self._first_ns < every_ns
            self._partly_ns = first + round(every_ns * SAME_REPORT) if is_partly else 0
        return times <= self._partly_ns

    def _filled(self, polls: int, events: _Events) -> Floats:
        """Return the gauges at each poll [polls, gauges], nan where there is none."""
        places = self._columns.gauge_places
        filled = np.full((polls, places.size), np.nan)
        has_event = np.zeros(filled.shape, dtype=bool)
        cell = events.poll, np.searchsorted(places, events.place)
        filled[cell] = events.value
        has_event[cell] = events.gone | ~np.isnan(events.value)
        at = np.where(has_event, np.arange(polls)[:, None], -1)
        np.maximum.accumulate(at, axis=0, out=at)
        before = self._last[places]
        filled = np.where(at < 0, before, np.take_along_axis(filled, np.maximum(at, 0), axis=0))
        self._last[places] = filled[-1]
        return filled

    def _began_anew(self, began: Floats) -> NDArray[np.bool_]:
        """Return the polls of another process than the one before, whose counters may be higher."""
        polls = np.flatnonzero(~np.isnan(began))
        values = np.append(self._began, began[polls])
        self._began = float(values[-1])
        anew = np.zeros(began.size, dtype=bool)
        anew[polls[(np.diff(values) != 0) & ~np.isnan(values[:-1])]] = True
        return anew

    def _first_told(self, told: _Events, counter: str, polls: int) -> int:
        """Return the first of so many polls at which a counter is there, or had been."""
        places = self._columns.places[counter]
        if not np.isnan(self._last[places]).all():
            return 0
        return int(told.poll[np.isin(told.place, places)].min(initial=polls))

    def _away_at_a_restart(
        self, back: NDArray[np.int64], ended: NDArray[np.int64], resets: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Return which counters that come back were not there at a poll with a reset."""
        polls = sum(map(len, self._times)) + np.arange(resets.size)
        last = np.append(self._last_restart, np.where(resets, polls, -1))
        np.maximum.accumulate(last, out=last)
        self._last_restart = int(last[-1])
        return np.asarray(last[back] >= ended)

    def _back(self, events: _Events, told: _Events, before: Floats) -> _Back:
        """Return the counters that come back among those `told`, with the values `before`.

        A histogram is lower where one of its parts is.
        """
        if not events.gone.any() and not (self._ended >= 0).any():
            none = np.empty(0, dtype=int)
            return _Back(none, none, none.astype(bool))
        place, gone, rows = events.place, events.gone, np.arange(events.place.size)
        starts = _starts(place)
        was = np.append(False, gone[:-1])
        was[starts] = self._ended[place[starts]] >= 0
        begins = np.maximum.accumulate(np.where(gone & ~was, rows, -1))
        mine = begins >= np.maximum.accumulate(np.where(starts, rows, 0))
        first = sum(map(len, self._times))
        ended = np.where(mine, first + events.poll[begins], self._ended[place]).astype(int)
        self._ended[place] = np.where(gone, ended, -1)  # the last of each stays
        at = np.flatnonzero(was[~gone])
        if not at.size:
            return _Back(at, at, at.astype(bool))
        series, families = list(self._places), dict[Key, int]()
        family = np.empty(len(series), dtype=int)
        for each in np.unique(told.place[at]):
            name, labels, _ = series[each]
            key = _PART.sub("", name), labels
            family[each] = families.setdefault(key, len(families))
        which = told.poll[at] * len(families) + family[told.place[at]]
        lower = np.isin(which, which[told.value[at] < before[at] * _LOWER])
        return _Back(at, ended[~gone][at], lower)

    def _restart(
        self, back: NDArray[np.int64], ended: NDArray[np.int64], resets: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Note the restarts that counters tell which come back lower, one reset for each.

        That is where they `ended`, unless other counters grew there. Then it is where they are
        `back`: of those polls, which are returned, only what counts from 0 is kept.
        """
        first = sum(map(len, self._times))
        still = np.concatenate(self._still) if back.size else np.empty(0, dtype=bool)
        emptied = np.zeros(resets.size, dtype=bool)
        for at, minus in sorted(set(zip(back.tolist(), (-ended).tolist(), strict=True))):
            seen = np.flatnonzero(resets[: at + 1])
            last = max(self._last_reset, first + int(seen[-1]) if seen.size else -1)
            if last >= -minus:
                continue
            if still[-minus]:
                self._late.append(-minus)
                self._last_reset = max(self._last_reset, -minus)
            else:
                emptied[at] = resets[at] = True
        if resets.any():
            self._last_reset = max(self._last_reset, first + int(np.flatnonzero(resets)[-1]))
        return emptied


def _reports(
    times: NDArray[np.int64], still: NDArray[np.bool_], every_ns: int
) -> NDArray[np.int64]:
    """Return the polls at which a report was there whole, and those long after the last.

    A page that stands still until its next report does not say that nothing happened.
    """
    changes = np.flatnonzero(~still)
    after = np.searchsorted(changes, np.arange(times.size), side="right")
    ahead = np.append(times[changes], times[-1] + 1)[after] - times
    polls = np.flatnonzero(ahead >= np.where(still, every_ns, every_ns * SAME_REPORT))
    last = changes[-1:] if changes.size else np.zeros(1, dtype=int)
    return np.unique(np.concatenate((polls, last)))


Line = tuple[str, str, float | None]  # name, labels and bound


class _Events(NamedTuple):
    """What polls tell of series: a value, nan where it is `gone`."""

    place: NDArray[np.uint16]
    poll: NDArray[np.int64]
    value: Floats
    gone: NDArray[np.bool_]

    def chosen(self, which: NDArray[Any]) -> _Events:
        return _Events(*(each[which] for each in self))

    def by_series(self, which: NDArray[np.int64]) -> _Events:
        """Return some in the order of series, of what a poll tells of one series the last."""
        ordered = self.chosen(which[np.argsort(self.place[which], kind="stable")])
        again = (ordered.poll[1:] == ordered.poll[:-1]) & (ordered.place[1:] == ordered.place[:-1])
        return ordered.chosen(~np.append(again, False)) if again.any() else ordered


class _Back(NamedTuple):
    """Counters that come back: where they are told, when they ended, and whether they are lower."""

    at: NDArray[np.int64]
    ended: NDArray[np.int64]  # the poll, from the first of all
    lower: NDArray[np.bool_]

    def chosen(self, which: NDArray[np.bool_]) -> _Back:
        return _Back(self.at[which], self.ended[which], self.lower[which])


class _Known(NamedTuple):
    """The places of series by 64 bits of each. The last 16 of them say which place may be one's."""

    bits: NDArray[np.uint64]  # by place, and something else at the end
    by_end: NDArray[np.uint16]
    order: NDArray[np.int64]  # of ascending bits

    @classmethod
    def of(cls, bits: NDArray[np.uint64]) -> _Known:
        by_end = np.full(1 << 16, bits.size, dtype=np.uint16)
        by_end[bits & _END] = np.arange(bits.size)
        return cls(np.append(bits, np.uint64(0)), by_end, np.argsort(bits))

    def places(self, bits: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """Return the place of each series, the number of places of one that is not known."""
        series_places: NDArray[np.uint16] = self.by_end[bits & _END]
        rest = np.flatnonzero(self.bits[series_places] != bits)
        if rest.size:
            at = np.searchsorted(self.bits[self.order], bits[rest])
            series_places[rest] = np.append(self.order, self.order.size)[at]
            series_places[rest[self.bits[series_places[rest]] != bits[rest]]] = self.order.size
        return series_places


class _Columns(NamedTuple):
    """Where what is told of each series goes.

    By place `kind` is a counter's or a gauge's, and neither's of a series too many. `kept_at` is
    the column in the table of what counters grew by from poll to poll, the one after the last where
    there is none. That table has a column for each of `kept`: of histograms the buckets by bound
    and the sum, and counters. `places` are those of a name.
    """

    kind: NDArray[np.int8]
    gauges: Sequence[Line]
    gauge_places: NDArray[np.int64]
    kept: Mapping[tuple[str, float], int]
    kept_at: NDArray[np.int64]
    only_grows: NDArray[np.bool_]
    places: Mapping[str, NDArray[np.int64]]

    @classmethod
    def of(
        cls, lines: Collection[Line], counted: Collection[str], histograms: Collection[str]
    ) -> _Columns:
        buckets = {f"{name}_bucket" for name in histograms}
        others = {*counted, *(f"{name}_sum" for name in histograms)}
        keys = [
            (name, le)
            if name in buckets and le is not None and not np.isnan(le)
            else ((name, 0.0) if name in others else None)
            for name, _, le in lines
        ]
        kept = {key: at for at, key in enumerate(sorted({key for key in keys if key is not None}))}
        names = np.array([name for name, *_ in lines], dtype=object)
        gauge = np.isin(names, GAUGES)
        return cls(
            kind=np.append(np.where(gauge, _GAUGE, _COUNTER), -1).astype(np.int8),
            gauges=[line for line in lines if line[0] in GAUGES],
            gauge_places=np.flatnonzero(gauge),
            kept=kept,
            kept_at=np.array([len(kept) if key is None else kept[key] for key in keys], dtype=int),
            only_grows=~gauge & np.array([not name.endswith("_sum") for name in names], dtype=bool),
            places={name: np.flatnonzero(names == name) for name in counted},
        )

    @property
    def most(self) -> int:
        """The columns of the wider table."""
        return max(len(self.gauges), len(self.kept))

    def table(self, told: _Events, grown: Floats, polls: int) -> Floats:
        """Return by how much what is `kept` grew at each poll [columns, polls]."""
        # What is not kept goes to a last column, which is left out.
        cell = self.kept_at[told.place] * polls + told.poll
        size = len(self.kept) * polls
        flat = np.bincount(cell, grown, size + polls)[:size]
        return flat.astype(float, copy=False).reshape(len(self.kept), polls)  # int of none

    def histogram(self, name: str, table: Floats) -> _Grown:
        """Return by how much a histogram's buckets and its sum grew at each poll."""
        buckets = [(le, at) for (each, le), at in self.kept.items() if each == f"{name}_bucket"]
        first = buckets[0][1] if buckets else 0
        total = self.kept.get((f"{name}_sum", 0.0))
        return _Grown(
            np.array([le for le, _ in buckets], dtype=float),
            table[first : first + len(buckets)].astype(np.float32),
            np.full(table.shape[1], np.nan) if total is None else table[total].copy(),
        )


def _starts(place: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Return where another series begins."""
    starts = np.ones(place.size, dtype=bool)
    starts[1:] = place[1:] != place[:-1]
    return starts


def _before(place: NDArray[np.uint16], value: Floats, last: Floats) -> Floats:
    """Return the value of the same series before each, from `last` for its first."""
    before = np.empty(value.size)
    before[1:] = value[:-1]
    starts = _starts(place)
    before[starts] = last[place[starts]]
    return before


def _reading(gauges: Sequence[Line], name: str, filled: Floats) -> Floats:
    """Return a gauge at each poll, nan where the page has none, or several.

    A relabelled page gives its only one labels, others after a restart.
    """
    columns = [at for at, (each, *_) in enumerate(gauges) if each == name]
    values = filled[:, columns]
    one = (~np.isnan(values)).sum(axis=1) == 1
    readings: Floats = np.where(one, np.nansum(values, axis=1), np.nan)
    plain = [at for at in columns if gauges[at][1:] == ("", None)]
    if plain:
        readings = np.where(np.isnan(filled[:, plain[0]]), readings, filled[:, plain[0]])
    return readings


class _Grown(NamedTuple):
    """By how much a histogram grew at each poll: its buckets [bounds, polls], and its sum."""

    bounds: Floats
    counts: NDArray[np.float32]
    sums: Floats


def _histogram(grown: Sequence[_Grown]) -> Histogram | None:
    bounds = np.unique(np.concatenate([each.bounds for each in grown]))
    if not bounds.size:
        return None
    sums = np.concatenate([each.sums for each in grown])
    counts = np.zeros((bounds.size, sums.size), dtype=np.float32)
    first = 0
    for each in grown:
        last = first + each.sums.size
        counts[np.searchsorted(bounds, each.bounds), first:last] = each.counts
        first = last
    np.maximum.accumulate(counts, axis=0, out=counts)
    for bucket in range(len(counts) - 1, 0, -1):
        counts[bucket] -= counts[bucket - 1]
    return Histogram(bounds, counts.T, sums if np.isnan(sums).all() else np.nan_to_num(sums))


def window_of(
    scrapes: pl.DataFrame, engine: str, *, lengths: bool = False, profiled: Stretches = ()
) -> Window | None:
    """Return what happened between the first and the last poll of an engine; None without two.

    The rows are in the order of the polls. `lengths` and `profiled` are as in `Polls`.
    """
    polls = Polls(lengths=lengths, profiled=profiled)
    used = (*USED, *TRAFFIC) if lengths else USED
    polls.add(scrapes.filter(pl.col("engine") == engine, pl.col("name").is_in(used)))
    return polls.window()


def _times(window: Window, name: str) -> Times:
    histogram = window.histograms.get(name)
    quantiles = {
        key: None if histogram is None else histogram.quantile(q) for key, q in QUANTILES.items()
    }
    count, total = window.total(f"{name}_count"), window.total(f"{name}_sum")
    mean = None if not count or total is None else Estimate(value=total / count, unit="s")
    return Times(mean=mean, **quantiles)


@dataclass(frozen=True, kw_only=True)
class Reading(Record):
    """What the last poll said.

    `still_s` is for how long the engine had been stalled by then, `tokens` how many were generated
    since the poll before.
    """

    running: float | None
    waiting: float | None
    kv_share: float | None
    still_s: float
    tokens: float | None = None


@dataclass(frozen=True, kw_only=True)
class Numbers(Record):
    """An engine over a window; None is what its server does not tell. `to_json` is a contract.

    `polls` were answered, `resets` are restarts among them. Tokens and samples are per second;
    `steps_per_s` counts engine steps that gave an output, `tokens_per_step` prompt and generated
    tokens of one. `running`, `waiting` and `kv_share` (of the cache's blocks) are means over time,
    `busy_share` the share of the time in which requests ran or waited, `kv_full_share` that in
    which more than `KV_FULL` of the blocks were in use, `waiting_share` that in which requests
    waited, `capped_share`, of the latter, that in which as many ran as ever did, `stalled_share`
    that in which requests ran and no token came for `STALLED_S` or more. `finished` counts
    samples by reason: a server counts a request of n samples n times, also as running or waiting.
    Seconds are of requests that finished in the window (`ttft_s` and `itl_s`: of tokens given in
    it); of quantiles bounds are known. `cancelled` are those that clients left after the first
    token (`cancelled_in`). `accepted_per_position` is accepted drafts over drafts made,
    `acceptance_length` 1 + its sum, or the mean of SGLang's gauge. FLOPs and bytes read per GPU are
    the engine's estimates, told only with --enable-mfu-metrics.
    """

    engine: str
    start_ns: int
    end_ns: int
    seconds: float
    polls: int
    resets: int
    prompt_tokens_per_s: float | None = None
    generated_tokens_per_s: float | None = None
    samples_per_s: float | None = None
    first_tokens_per_s: float | None = None
    finished: Mapping[str, int] = field(default_factory=dict)
    cancelled: Bounds | None = None
    steps_per_s: float | None = None
    tokens_per_step: float | None = None
    running: float | None = None
    running_max: float | None = None
    waiting: float | None = None
    waiting_max: float | None = None
    busy_share: float | None = None
    waiting_share: float | None = None
    capped_share: float | None = None
    stalled_share: float | None = None
    kv_share: float | None = None
    kv_share_max: float | None = None
    kv_full_share: float | None = None
    preemptions: int | None = None
    prefix_hit_share: float | None = None
    ttft_s: Times = Times()
    itl_s: Times = Times()
    queue_s: Times = Times()
    prefill_s: Times = Times()
    decode_s: Times = Times()
    e2e_s: Times = Times()
    drafts: int | None = None
    drafted_tokens: int | None = None
    accepted_per_position: tuple[float, ...] | None = None
    acceptance_length: float | None = None
    flops_per_gpu_per_s: float | None = None
    read_bytes_per_gpu_per_s: float | None = None
    last: Reading | None = None

    @property
    def load_s(self) -> float | None:
        """The seconds in which requests ran or waited."""
        return None if self.busy_share is None else self.busy_share * self.seconds

    def of_load(self, amount: float | None) -> float | None:
        """Return of the time under load what is told of all: nothing runs or waits in the rest."""
        return None if amount is None or not self.busy_share else amount / self.busy_share

    def to_json(self) -> dict[str, Any]:
        """Return the document; estimates without the count of runs they rest on."""
        plain = super().to_json()
        for name in ("ttft_s", "itl_s", "queue_s", "prefill_s", "decode_s", "e2e_s"):
            if plain[name]["mean"] is not None:
                plain[name]["mean"].pop("runs")
        return plain


def numbers_of(scrapes: pl.DataFrame, engine: str, *, profiled: Stretches = ()) -> Numbers | None:
    """Return an engine's numbers over all polls in `scrapes`; None where there are not two."""
    window = window_of(scrapes, engine, profiled=profiled)
    return None if window is None else numbers_in(window, engine)


def numbers_in(window: Window, engine: str) -> Numbers:
    """Return an engine's numbers over a window."""
    running, waiting, kv = (window.gauges[name] for name in (RUNNING, WAITING, KV))
    steps, tokens = window.total(STEPS), window.total(f"{STEP_TOKENS}_sum")
    finished = by_value(window.by_label(FINISHED), "finished_reason")
    asked, hit = window.total(ASKED_TOKENS), window.total(HIT_TOKENS)
    preempted, drafts = window.total(PREEMPTED), window.total(DRAFTS)
    per_position = _per_position(window, drafts)
    drafted = window.total(DRAFTED)
    length = window.gauges[ACCEPTED_LENGTH]
    drafting = window.mean(np.where(length >= 1, length, np.nan))
    kept = drafting if per_position is None else 1.0 + sum(per_position)
    waits, full = _where(waiting > 0, waiting), _where(kv > KV_FULL, kv)
    between = window.between or Between(*[np.full(window.times.size, np.nan)] * 4)
    most = _most(running)
    at_most = _where(running >= (np.inf if most is None else most), running)
    return Numbers(
        engine=engine,
        start_ns=int(window.times[0]),
        end_ns=int(window.times[-1]) if window.until_ns is None else window.until_ns,
        seconds=window.seconds,
        polls=window.times.size,
        resets=window.resets,
        prompt_tokens_per_s=window.rate(PROMPT),
        generated_tokens_per_s=window.rate(GENERATED),
        samples_per_s=window.rate(FINISHED),
        first_tokens_per_s=window.rate(f"{TTFT}_count"),
        finished={reason: round(count) for reason, count in finished.items() if round(count)},
        cancelled=cancelled_in(window) if _ABORTED in finished else None,
        steps_per_s=window.rate(STEPS),
        tokens_per_step=tokens / steps if steps and tokens is not None else None,
        running=window.mean(running, between.running),
        running_max=most,
        waiting=window.mean(waiting, between.waiting),
        waiting_max=_most(waiting),
        busy_share=window.mean(_busy(running, waiting), between.busy),
        waiting_share=window.mean(waits, between.waits),
        capped_share=window.mean(np.where(waiting > 0, at_most, np.nan)),
        stalled_share=_stalled_share(window),
        kv_share=window.mean(kv),
        kv_share_max=_most(kv),
        kv_full_share=window.mean(full),
        preemptions=None if preempted is None else round(preempted),
        prefix_hit_share=hit / asked if asked and hit is not None else None,
        ttft_s=_times(window, TTFT),
        itl_s=_times(window, ITL),
        queue_s=_times(window, QUEUE),
        prefill_s=_times(window, PREFILL),
        decode_s=_times(window, DECODE),
        e2e_s=_times(window, E2E),
        drafts=None if drafts is None else round(drafts),
        drafted_tokens=None if drafts is None or drafted is None else round(drafted),
        accepted_per_position=per_position,
        acceptance_length=kept,
        # vLLM has these families always, and leaves them at 0 unless told to estimate.
        flops_per_gpu_per_s=window.rate(FLOPS) or None,
        read_bytes_per_gpu_per_s=window.rate(READ_BYTES) or None,
        last=_last(window),
    )


def _last(window: Window) -> Reading:
    running, waiting, kv = (_known(window.gauges[name][-1]) for name in (RUNNING, WAITING, KV))
    still_s = 0.0
    if window.stalls is not None:
        going = np.flatnonzero(~window.stalls)
        still_s = float(window.intervals_s[going[-1] + 1 if going.size else 0 :].sum())
    tokens = _known(window.counted[GENERATED][-1])
    return Reading(running=running, waiting=waiting, kv_share=kv, still_s=still_s, tokens=tokens)


def _stalled_share(window: Window) -> float | None:
    seconds = float(window.intervals_s.sum())
    if window.stalls is None or not seconds:
        return None
    return float(window.intervals_s[window.stalls].sum()) / seconds


_ABORTED = "abort"  # a reason of vLLM's page alone, which counts no client that left
MOST_CANCELLED = 0.05  # of requests, which is not said


def cancelled_in(window: Window) -> Bounds | None:
    """Return how many requests of vLLM's page clients cancelled; None where unknown.

    It counts no request that its client left. But such a one got a first token, does not run any
    more, and never ended. Some that ran at the first or the last poll may have had no first
    token yet. Requests that were left before it are on no page.
    """
    began, ended = window.total(f"{TTFT}_count"), window.total(FINISHED)
    running = window.gauge(RUNNING)
    left_out = window.apart is not None and bool(window.apart.any())
    if left_out or not began or ended is None or not running.size:
        return None
    gone = began - ended + running[0] - running[-1]
    low, high = (max(round(each), 0) for each in (gone - running[0], gone + running[-1]))
    return Bounds(low=low, high=high, unit="requests")


def cancelled_told(window: Window) -> str | None:
    """Say how many requests of vLLM's page were cancelled; None for few, or where unknown."""
    found, began = cancelled_in(window), window.total(f"{TTFT}_count")
    if found is None or not began or found.low <= MOST_CANCELLED * began:
        return None
    return (
        f"{cancelled_words(found)} of {began:,.0f} requests got a first token and never ended, as "
        "clients cancelled them. A replay has the others alone, so its load is lower"
    )


def cancelled_words(found: Bounds) -> str:
    """Return `5`, or `5 to 13` where the polls leave the number open."""
    low, high = f"{found.low:,.0f}", ABSENT if found.high is None else f"{found.high:,.0f}"
    return low if low == high else f"{low} to {high}"


def by_value(counts: Mapping[str, float], label: str) -> dict[str, float]:
    """Add up counts by the value of one of their labels; what lacks it is left out."""
    totals: dict[str, float] = {}
    named = re.compile(rf'(?:^|,){label}="([^"]*)"')
    for labels, count in counts.items():
        if (match := named.search(labels)) is not None:
            totals[match[1]] = totals.get(match[1], 0.0) + count
    return totals


def _per_position(window: Window, drafts: float | None) -> tuple[float, ...] | None:
    if not drafts:
        return None
    counts = by_value(window.by_label(ACCEPTED_AT), "position")
    if not counts or not all(each.isdecimal() for each in counts):
        return None
    return tuple(counts[position] / drafts for position in sorted(counts, key=int))


def _where(holds: NDArray[np.bool_], told: Floats) -> Floats:
    """Return 1 where something holds and 0 where it does not, nan where that was not told."""
    return np.where(np.isnan(told), np.nan, holds.astype(float))


def _most(values: Floats) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmax(values))


def _known(value: np.floating[Any]) -> float | None:
    return None if np.isnan(value) else float(value)
