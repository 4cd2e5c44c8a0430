"""What a live deployment did while it was watched, from what its /metrics said.

Counters and histograms are read as they are; here they become increases over a stretch of time.
An interval in which a counter fell (the server was restarted) is left out of the increases and
of the seconds, so that no rate mixes two lives of a server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.schema.estimate import Estimate
from traces.schema.record import Record

Key = tuple[str, str]  # name and labels
Floats = NDArray[np.float64]
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
FEW = 16  # observations between two polls, up to which they are looked at one by one
LIVE_S = 10.0  # that a live line looks back
KV_FULL = 0.95  # a cache with more of its blocks in use cannot take a new prompt of some length

TTFT = "vllm:time_to_first_token_seconds"
ITL = "vllm:inter_token_latency_seconds"
QUEUE = "vllm:request_queue_time_seconds"
E2E = "vllm:e2e_request_latency_seconds"
PREFILL = "vllm:request_prefill_time_seconds"
DECODE = "vllm:request_decode_time_seconds"
STEP_TOKENS = "vllm:iteration_tokens_total"
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
KV = "vllm:kv_cache_usage_perc"
PROMPT, GENERATED = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
CACHED = "vllm:prompt_tokens_cached_total"
PROMPT_LENGTH = "vllm:request_prompt_tokens"
OUTPUT_LENGTH = "vllm:request_generation_tokens"
FINISHED, PREEMPTED = "vllm:request_success_total", "vllm:num_preemptions_total"
HIT_TOKENS, ASKED_TOKENS = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
DRAFTS, DRAFTED = (
    "vllm:spec_decode_num_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total",
)
ACCEPTED_AT = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
FLOPS, READ_BYTES = (
    "vllm:estimated_flops_per_gpu_total",
    "vllm:estimated_read_bytes_per_gpu_total",
)
ACCEPTED_LENGTH = "sglang:spec_accept_length"  # a gauge, of which vLLM tells the counts
GAUGES = (RUNNING, WAITING, KV, ACCEPTED_LENGTH)
MOST_SERIES = 50_000  # of a page, and of an engine in all its pages; more are left out
_CELLS = 500_000  # of a table of polls and series in memory
_LOWER = 1 - 1e-9  # times a sum, which may be rounded otherwise
_PART = re.compile(r"_(?:bucket|count|sum)\Z")
_TIMES = (TTFT, ITL, QUEUE, E2E, PREFILL, DECODE)
_LENGTHS = (PROMPT_LENGTH, OUTPUT_LENGTH)
_COUNTED = (PROMPT, CACHED, f"{STEP_TOKENS}_count")  # from poll to poll, where lengths are too


def _parts_of(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}_{part}" for name in names for part in ("bucket", "count", "sum"))


USED = (
    *(*_parts_of(_TIMES), f"{STEP_TOKENS}_count", f"{STEP_TOKENS}_sum"),
    *(*GAUGES, PROMPT, GENERATED, FINISHED, PREEMPTED, HIT_TOKENS, ASKED_TOKENS),
    *(DRAFTS, DRAFTED, ACCEPTED_AT, FLOPS, READ_BYTES),
)
TRAFFIC = (*_parts_of(_LENGTHS), CACHED)  # beside `USED`, for `Polls(lengths=True)`
_USED = frozenset((*USED, *TRAFFIC))


def tells(name: str) -> bool:
    """Whether a series, under vLLM's name, is what a server's numbers are computed of."""
    return name in _USED or name.startswith("vllm:")


@dataclass(frozen=True, kw_only=True)
class Bounds(Record):
    """Where a number lies that only a histogram tells: above `low`, and at `high` at most.

    `high` is None above the last bound of the histogram.
    """

    low: float
    high: float | None
    unit: str

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
        number = self.counts.sum(axis=1)
        above = self.sums - self.counts @ begins
        ends = np.where(self.counts > 0, self.bounds, 0.0)
        below = (self.counts * ends).sum(axis=1) - self.sums
        near = 1e-6 * np.maximum(np.abs(self.sums), 1.0)
        # A page may tell an observation's sum and not yet its bucket; the next page mends it.
        odd = ~((above >= -near) & (below >= -near))
        torn = bool(odd.any())
        odd[1:], odd[:-1] = odd[1:] | odd[:-1], odd[:-1] | odd[1:]
        few = ~odd & (number <= FEW)
        interval, bucket = np.nonzero(self.counts * few[:, None])
        alike = self.counts[interval, bucket].astype(int)
        interval, bucket = np.repeat(interval, alike), np.repeat(bucket, alike)
        order = np.arange(interval.size) - np.repeat(np.cumsum(alike) - alike, alike) + 1
        parts = [(bucket, order, np.ones(order.size), above[interval], below[interval])]
        rest = ~few
        for place, count in enumerate(
            self.counts[rest].sum(axis=0, dtype=float)
        ):  # together, in groups
            edges = np.unique(np.geomspace(1, count + 1, 65).round()) if count else np.ones(1)
            each = np.ones(edges.size - 1)
            over, under = (np.inf if torn else told[rest].sum() for told in (above, below))
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
        found = np.searchsorted(self.weights, place, side="right")
        return float(self.values[min(found, self.values.size - 1)])


@dataclass(frozen=True)
class Window:
    """Increases of counters and readings of gauges over a stretch of one engine's polls.

    `times` are those of the polls, `increase` is by name and labels, `histograms` of times by
    name. `gauges` by name and `counted`, what counters gained since the poll before, have one
    number per poll, nan where it was not told. `seconds` leaves out the intervals of `resets`.
    `left_out` says that the pages had more than `MOST_SERIES` series.
    """

    times: NDArray[np.int64]
    seconds: float
    resets: int
    increase: Mapping[Key, float]
    histograms: Mapping[str, Histogram]
    gauges: Mapping[str, Floats]
    counted: Mapping[str, Floats]
    left_out: bool = False

    def total(self, name: str) -> float | None:
        """Return a counter's increase over all its labels, None where it was not told."""
        found = [value for key, value in self.increase.items() if key[0] == name]
        return sum(found) if found else None

    def by_label(self, name: str) -> dict[str, float]:
        return {key[1]: value for key, value in self.increase.items() if key[0] == name}

    def rate(self, name: str) -> float | None:
        total = self.total(name)
        return None if total is None or self.seconds <= 0 else total / self.seconds

    def gauge(self, name: str) -> Floats:
        """Return a gauge's readings, empty where it was not told."""
        told = self.gauges[name]
        known: Floats = told[~np.isnan(told)]
        return known


class Polls:
    """Adds up the polls of one engine's server, page after page, without keeping the pages.

    A row that a poll lacks has the value of the poll before; a null ends a series that the page no
    longer has. A counter that comes back goes on from where it ended, since a page may lack a line
    for a while. A lower one counts from 0: after a restart a server makes some at their first use.
    Of each poll the buckets of times, the gauges and the generated tokens stay in memory, 4 bytes a
    bucket. With `lengths` so do those of requests' lengths and the counters of steps and prompts,
    from which a law and traffic are made. Series beyond `MOST_SERIES` are left out.
    """

    def __init__(self, *, lengths: bool = False) -> None:
        self._places: dict[tuple[str, str, float | None], int] = {}
        self._left_out = False
        # Of each series, nan before the first, and of a gauge that is gone.
        self._last = np.empty(0)
        self._ended = np.empty(0)  # the poll at which a counter ended, -1 where it is there
        self._increase = np.empty(0)
        self._times: list[NDArray[np.int64]] = []
        self._resets: list[NDArray[np.bool_]] = []
        self._still: list[NDArray[np.bool_]] = []  # polls at which no counter grew
        self._late: list[int] = []  # polls with a reset that only a later one told
        self._last_reset = -1
        self._counted = (GENERATED, *_COUNTED) if lengths else (GENERATED,)
        histograms = (*_TIMES, *_LENGTHS) if lengths else _TIMES
        self._told: dict[str, list[Floats]] = {name: [] for name in (*GAUGES, *self._counted)}
        self._grown: dict[str, list[_Grown]] = {name: [] for name in histograms}
        self._held = pl.DataFrame()  # of a poll that may go on in the next rows

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows of `scrapes` of one engine and of names in `USED`, poll after poll.

        With `lengths` those of `TRAFFIC` are taken too.
        """
        if self._held.height:
            rows = pl.concat([self._held, rows])
        if not rows.height:
            return
        starts = rows["time"].rle_id().to_numpy()
        whole = int(np.searchsorted(starts, starts[-1]))
        self._held = rows[whole:]
        self._take(rows[:whole], starts[:whole])

    def window(self) -> Window | None:
        """Return what happened between the first and the last poll; None without two."""
        held, self._held = self._held, pl.DataFrame()
        self._take(held, np.zeros(held.height, dtype=int))
        if not self._times or sum(map(len, self._times)) < 2:
            return None
        times, resets = np.concatenate(self._times), np.concatenate(self._resets)
        resets[self._late] = True
        lengths = np.maximum(np.diff(times), 0)[~resets[1:]]
        sums = {
            (name, labels): float(self._increase[place])
            for (name, labels, le), place in self._places.items()
            if le is None and name not in GAUGES
        }
        told = {name: np.concatenate(each) for name, each in self._told.items()}
        for name in self._counted:
            told[name][self._late] = np.nan
        return Window(
            times=times,
            seconds=float(lengths.sum()) / 1e9,
            resets=int(resets.sum()),
            increase=sums,
            histograms={
                name: found
                for name, each in self._grown.items()
                if (found := _histogram(each)) is not None
            },
            gauges={name: told[name] for name in GAUGES},
            counted={name: told[name] for name in self._counted},
            left_out=self._left_out,
        )

    def _take(self, rows: pl.DataFrame, poll: NDArray[Any]) -> None:
        """Add whole polls, so many at a time that the table of all series stays small."""
        if not rows.height:
            return
        series = ["name", "labels", "le"]
        asked = rows.select(series)
        places = self._places_of(asked)
        if places.null_count():
            for each in asked.filter(places.is_null()).unique(maintain_order=True).iter_rows():
                if len(self._places) >= MOST_SERIES:
                    self._left_out = True
                    break
                self._places[each] = len(self._places)
            places = self._places_of(asked)
        new = len(self._places) - self._last.size
        self._last = np.append(self._last, np.full(new, np.nan))
        self._ended = np.append(self._ended, np.full(new, -1.0))
        self._increase = np.append(self._increase, np.zeros(new))
        poll = poll - poll[0]
        polls = np.arange(poll[-1] + 1)
        times = rows["time"].to_numpy()[np.searchsorted(poll, polls)]
        kept = places.is_not_null()
        poll, place = poll[kept.to_numpy()], places.filter(kept).to_numpy()
        values = rows["value"].filter(kept)
        value, gone = values.to_numpy(), values.is_null().to_numpy()
        starts = np.searchsorted(poll, polls)
        step = max(_CELLS // len(self._places), 1)
        for first in range(0, starts.size, step):
            begin = starts[first]
            end = starts[first + step] if first + step < starts.size else poll.size
            part = slice(begin, end)
            self._add_table(
                times[first : first + step],
                *(poll[part] - first, place[part], value[part], gone[part]),
            )

    def _places_of(self, asked: pl.DataFrame) -> pl.Series:
        """Return the place of each row's series, null where it is new."""
        known = pl.DataFrame(list(self._places), schema=asked.schema, orient="row")
        known = known.with_row_index("place")
        joined = asked.join(
            known, on=asked.columns, how="left", nulls_equal=True, maintain_order="left"
        )
        return joined["place"]

    def _add_table(
        self,
        times: NDArray[np.int64],
        poll: NDArray[Any],
        place: NDArray[Any],
        value: Floats,
        gone: NDArray[np.bool_],
    ) -> None:
        """Add polls as a table of all series, [polls, series]."""
        names = [name for name, _, _ in self._places]
        told = np.full((times.size, len(names)), np.nan)
        told[poll, place] = value
        gauge = np.array([name in GAUGES for name in names])
        known = ~np.isnan(told)
        unset = gone & gauge[place]
        known[poll[unset], place[unset]] = True
        filled = _fill(told, known, self._last)
        before = np.vstack([self._last, filled[:-1]])
        # A series that appears later began at 0; the first poll's values are where counting begins.
        new = np.isnan(before) & ~np.isnan(filled)
        if not self._times:
            new[0] = False
        ended = gone & ~gauge[place]
        anew = self._anew(told, before, poll[ended], place[ended])
        new[anew.poll, anew.place] = True
        grown = np.nan_to_num(np.where(new, filled, filled - before), nan=0.0)
        counts = ~gauge & np.array([not name.endswith("_sum") for name in names])
        resets = (grown[:, counts] < 0).any(axis=1)
        grown[resets] = 0.0
        self._still.append(~(grown[:, ~gauge] > 0).any(axis=1))
        self._restart(anew, resets, grown)
        self._increase += grown.sum(axis=0)
        self._times.append(times)
        self._resets.append(resets)
        self._last = filled[-1].copy()
        for name in GAUGES:
            self._told[name].append(self._readings(name, filled))
        for counter in self._counted:
            own = [at for at, name in enumerate(names) if name == counter]
            gained = grown[:, own].sum(axis=1)
            gained[resets | np.isnan(filled[:, own]).all(axis=1)] = np.nan
            self._told[counter].append(gained)
        for name, kept in self._grown.items():
            kept.append(self._grown_of(name, grown))

    def _anew(self, told: Floats, before: Floats, poll: NDArray[Any], place: NDArray[Any]) -> _Anew:
        """Return the counters that come back lower; at each `poll` the one at `place` ends.

        A histogram counts from 0 where one of its parts is lower.
        """
        first = sum(map(len, self._times))
        some = np.union1d(np.flatnonzero(self._ended >= 0), place).astype(int)
        told, last = told[:, some], self._ended[some]
        is_told = ~np.isnan(told)
        marks = np.where(is_told, -1.0, np.nan)
        marks[poll, np.searchsorted(some, place)] = first + poll
        since = _fill(marks, ~np.isnan(marks), last)
        marks[(marks >= 0) & (np.vstack([last, since[:-1]]) >= 0)] = np.nan  # it had ended before
        since = _fill(marks, ~np.isnan(marks), last)
        was = np.vstack([last, since[:-1]])
        self._ended[some] = since[-1]
        back = (was >= 0) & is_told
        series, families = list(self._places), dict[Key, int]()
        family = np.array(
            [
                families.setdefault((_PART.sub("", name), labels), len(families))
                for name, labels, _ in map(series.__getitem__, some)
            ],
            dtype=int,
        )
        lower = np.zeros((len(told), len(families)), dtype=bool)
        at, which = np.nonzero(back & (told < before[:, some] * _LOWER))
        lower[at, family[which]] = True
        at, which = np.nonzero(back & lower[:, family])
        return _Anew(at, some[which], was[at, which].astype(int))

    def _restart(self, anew: _Anew, resets: NDArray[np.bool_], grown: Floats) -> None:
        """Note the restarts that counters tell which come back lower, one reset for each.

        That is where they ended, unless other counters grew there. Then it is where they are back,
        and of that interval only what counts from 0 is kept.
        """
        first = sum(map(len, self._times))
        still = np.concatenate(self._still) if anew.poll.size else None
        for at, ended in sorted(set(zip(anew.poll, -anew.ended, strict=True))):
            seen = np.flatnonzero(resets[: at + 1])
            last = max(self._last_reset, first + seen[-1] if seen.size else -1)
            if last >= -ended:
                continue
            if still is not None and still[-ended]:
                self._late.append(-ended)
                self._last_reset = max(self._last_reset, -ended)
                continue
            mine = anew.place[anew.poll == at]
            kept = grown[at, mine]
            grown[at] = 0.0
            grown[at, mine] = kept
            resets[at] = True
        if resets.any():
            self._last_reset = max(self._last_reset, first + int(np.flatnonzero(resets)[-1]))

    def _readings(self, name: str, filled: Floats) -> Floats:
        """Return a gauge at each poll, nan where the page has none, or several.

        A relabelled page gives its only one labels, others after a restart.
        """
        values = filled[:, [at for (each, *_), at in self._places.items() if each == name]]
        one = (~np.isnan(values)).sum(axis=1) == 1
        found: Floats = np.where(one, np.nansum(values, axis=1), np.nan)
        plain = self._places.get((name, "", None))
        if plain is not None:
            found = np.where(np.isnan(filled[:, plain]), found, filled[:, plain])
        return found

    def _grown_of(self, name: str, grown: Floats) -> _Grown:
        """Return by how much a histogram's buckets and its sum grew at each poll."""
        buckets = [
            (le, at)
            for (each, _, le), at in self._places.items()
            if le is not None and each == f"{name}_bucket"
        ]
        bounds = np.unique([le for le, _ in buckets])
        counts = np.zeros((len(grown), bounds.size), dtype=np.float32)
        for le, at in buckets:
            counts[:, np.searchsorted(bounds, le)] += grown[:, at]
        sums = [at for (each, *_), at in self._places.items() if each == f"{name}_sum"]
        total = grown[:, sums].sum(axis=1) if sums else np.full(len(grown), np.nan)
        return _Grown(bounds, counts, total)


def _fill(values: Floats, known: NDArray[np.bool_], last: Floats) -> Floats:
    """Return a table [polls, series] in which what is not known is as at the poll before."""
    at = np.where(known, np.arange(len(values))[:, None], -1)
    np.maximum.accumulate(at, axis=0, out=at)
    found: Floats = np.where(at < 0, last, np.take_along_axis(values, np.maximum(at, 0), axis=0))
    return found


class _Anew(NamedTuple):
    """Counters that come back lower than they ended: at which poll, and at which they ended."""

    poll: NDArray[np.int64]
    place: NDArray[np.int64]
    ended: NDArray[np.int64]  # from the first poll of all


class _Grown(NamedTuple):
    """By how much a histogram grew at each poll: its cumulative buckets, by bound, and its sum."""

    bounds: Floats
    counts: NDArray[np.float32]
    sums: Floats


def _histogram(grown: Sequence[_Grown]) -> Histogram | None:
    bounds = np.unique(np.concatenate([each.bounds for each in grown]))
    if not bounds.size:
        return None
    counts = np.zeros((sum(len(each.counts) for each in grown), bounds.size), dtype=np.float32)
    first = 0
    for each in grown:
        rows = counts[first : first + len(each.counts)]
        rows[:, np.searchsorted(bounds, each.bounds)] = each.counts
        first += len(rows)
    np.maximum.accumulate(counts, axis=1, out=counts)
    counts[:, 1:] = np.diff(counts, axis=1)
    sums = np.concatenate([each.sums for each in grown])
    return Histogram(bounds, counts, sums if np.isnan(sums).all() else np.nan_to_num(sums))


def window_of(scrapes: pl.DataFrame, engine: str) -> Window | None:
    """Return what happened between the first and the last poll of an engine; None without two.

    The rows are in the order of the polls.
    """
    polls = Polls()
    polls.add(scrapes.filter(pl.col("engine") == engine, pl.col("name").is_in(USED)))
    return polls.window()


def _times(window: Window, name: str) -> Times:
    found = window.histograms.get(name)
    quantiles = {key: None if found is None else found.quantile(q) for key, q in QUANTILES.items()}
    count, total = window.total(f"{name}_count"), window.total(f"{name}_sum")
    mean = None if not count or total is None else Estimate(value=total / count, unit="s")
    return Times(mean=mean, **quantiles)


@dataclass(frozen=True, kw_only=True)
class Numbers(Record):
    """An engine over a window; None is what its server does not tell. `to_json` is a contract.

    `polls` were answered, `resets` are restarts among them. Tokens and requests are per second;
    `steps_per_s` counts engine steps that gave an output, `tokens_per_step` prompt and generated
    tokens of one. `running`, `waiting` and `kv_share` (of the cache's blocks) are means over the
    polls, `busy_share` the share of polls at which requests ran, `kv_full_share` that at which
    more than `KV_FULL` of the blocks were in use, `waiting_share` that at which requests waited,
    `capped_share`, of the latter, that at which as many ran as ever did. `finished` counts
    requests by reason. Seconds are of requests that finished in the window (`ttft_s` and `itl_s`:
    of tokens given in it); of quantiles bounds are known. `accepted_per_position`
    is accepted drafts over drafts made, `acceptance_length` 1 + its sum, or the mean of SGLang's
    gauge. FLOPs and bytes read per GPU are the engine's estimates, told only with
    --enable-mfu-metrics.
    """

    engine: str
    start_ns: int
    end_ns: int
    seconds: float
    polls: int
    resets: int
    prompt_tokens_per_s: float | None = None
    generated_tokens_per_s: float | None = None
    requests_per_s: float | None = None
    finished: Mapping[str, int] = field(default_factory=dict)
    steps_per_s: float | None = None
    tokens_per_step: float | None = None
    running: float | None = None
    running_max: float | None = None
    waiting: float | None = None
    waiting_max: float | None = None
    busy_share: float | None = None
    waiting_share: float | None = None
    capped_share: float | None = None
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

    def to_json(self) -> dict[str, Any]:
        """Return the document; estimates without the count of runs they rest on."""
        plain = super().to_json()
        for name in ("ttft_s", "itl_s", "queue_s", "prefill_s", "decode_s", "e2e_s"):
            if plain[name]["mean"] is not None:
                plain[name]["mean"].pop("runs")
        return plain


def numbers_of(scrapes: pl.DataFrame, engine: str) -> Numbers | None:
    """Return an engine's numbers over all polls in `scrapes`; None where there are not two."""
    window = window_of(scrapes, engine)
    return None if window is None else numbers_in(window, engine)


def numbers_in(window: Window, engine: str) -> Numbers:
    """Return an engine's numbers over a window."""
    running, waiting, kv = (window.gauge(name) for name in (RUNNING, WAITING, KV))
    steps, tokens = window.total(f"{STEP_TOKENS}_count"), window.total(f"{STEP_TOKENS}_sum")
    finished = _by_value(window.by_label(FINISHED), "finished_reason")
    asked, hit = window.total(ASKED_TOKENS), window.total(HIT_TOKENS)
    preempted, drafts = window.total(PREEMPTED), window.total(DRAFTS)
    per_position = _per_position(window, drafts)
    drafted = window.total(DRAFTED)
    length = window.gauge(ACCEPTED_LENGTH)
    kept = _mean(length[length >= 1]) if per_position is None else 1.0 + sum(per_position)
    waits = waiting > 0
    capped = None
    if waits.any() and running.size == waiting.size:
        capped = _mean(running[waits] >= running.max())
    return Numbers(
        engine=engine,
        start_ns=int(window.times[0]),
        end_ns=int(window.times[-1]),
        seconds=window.seconds,
        polls=window.times.size,
        resets=window.resets,
        prompt_tokens_per_s=window.rate(PROMPT),
        generated_tokens_per_s=window.rate(GENERATED),
        requests_per_s=window.rate(FINISHED),
        finished={reason: round(count) for reason, count in finished.items() if round(count)},
        steps_per_s=window.rate(f"{STEP_TOKENS}_count"),
        tokens_per_step=tokens / steps if steps and tokens is not None else None,
        running=_mean(running),
        running_max=_max(running),
        waiting=_mean(waiting),
        waiting_max=_max(waiting),
        busy_share=_mean(running > 0),
        waiting_share=_mean(waits),
        capped_share=capped,
        kv_share=_mean(kv),
        kv_share_max=_max(kv),
        kv_full_share=_mean(kv > KV_FULL),
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
    )


def _by_value(counts: Mapping[str, float], label: str) -> dict[str, float]:
    """Add up counts by the value of one label: a page may give its lines others, such as instance.

    What lacks the label is left out.
    """
    found: dict[str, float] = {}
    named = re.compile(rf'(?:^|,){label}="([^"]*)"')
    for labels, count in counts.items():
        if (match := named.search(labels)) is not None:
            found[match[1]] = found.get(match[1], 0.0) + count
    return found


def _per_position(window: Window, drafts: float | None) -> tuple[float, ...] | None:
    if not drafts:
        return None
    counts = _by_value(window.by_label(ACCEPTED_AT), "position")
    if not counts or not all(each.isdecimal() for each in counts):
        return None
    return tuple(counts[position] / drafts for position in sorted(counts, key=int))


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None


def _max(values: NDArray[np.float64]) -> float | None:
    return float(values.max()) if values.size else None
