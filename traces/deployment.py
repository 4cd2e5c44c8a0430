"""What a live deployment did while it was watched, from what its /metrics said.

Counters and histograms are read as they are; here they become increases over a stretch of time.
An interval in which a counter fell (the server was restarted) is left out of the increases and
of the seconds, so that no rate mixes two lives of a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.schema import Estimate, Record

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
_CUMULATIVE = r"_(?:total|bucket|count|sum)$"
_TIMES = (TTFT, ITL, QUEUE, E2E, PREFILL, DECODE)
_HISTOGRAMS = (*_TIMES, STEP_TOKENS)
USED = (
    *(f"{name}_{part}" for name in _HISTOGRAMS for part in ("bucket", "count", "sum")),
    *(RUNNING, WAITING, KV, PROMPT, GENERATED, FINISHED, PREEMPTED, HIT_TOKENS, ASKED_TOKENS),
    *(DRAFTS, DRAFTED, ACCEPTED_AT, FLOPS, READ_BYTES),
)


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
    counts: Floats
    sums: Floats

    def quantile(self, q: float, unit: str = "s") -> Bounds | None:
        """Return what is known of a quantile; None where nothing was taken in."""
        lows, highs, weights = self._observations()
        total = weights.sum()
        if total < 1:
            return None
        # What stands at a place of the lows (or the highs) in order is below (above) the
        # observation at that place. By nearest rank and between two ranks: both are usual.
        ends = []
        for values, widest in ((lows, min), (highs, max)):
            rank, share = divmod((total - 1) * q, 1)
            nearest, under, over = (
                _at(values, weights, place)
                for place in (np.ceil(total * q) - 1, rank, rank + (share > 0))
            )
            between = under if under == over else under + share * (over - under)
            ends.append(float(widest(nearest, between)))
        low, high = ends
        return Bounds(low=low, high=high if np.isfinite(high) else None, unit=unit)

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
        for place, count in enumerate(self.counts[rest].sum(axis=0)):  # together, in groups
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


def _at(values: Floats, weights: Floats, place: float) -> float:
    """Return the value at a place in order, each standing as often as its weight."""
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), place, side="right")])


@dataclass(frozen=True)
class Window:
    """Increases of counters and readings of gauges over a stretch of one engine's polls.

    `increase` and `gauges` (one number per poll) are by name and labels, `histograms` of times by
    name. `seconds` leaves out the intervals of `resets`.
    """

    start_ns: int
    end_ns: int
    seconds: float
    polls: int
    resets: int
    increase: Mapping[Key, float]
    histograms: Mapping[str, Histogram]
    gauges: Mapping[Key, NDArray[np.float64]]

    def total(self, name: str) -> float | None:
        """Return a counter's increase over all its labels, None where it was not told."""
        found = [value for key, value in self.increase.items() if key[0] == name]
        return sum(found) if found else None

    def by_label(self, name: str) -> dict[str, float]:
        """Return a counter's increase by the text of its labels."""
        return {key[1]: value for key, value in self.increase.items() if key[0] == name}

    def rate(self, name: str) -> float | None:
        """Return a counter's increase per second."""
        total = self.total(name)
        return None if total is None or self.seconds <= 0 else total / self.seconds

    def gauge(self, name: str) -> NDArray[np.float64]:
        """Return a gauge's readings, empty where it was not told."""
        return self.gauges.get((name, ""), np.empty(0))


def window_of(scrapes: pl.DataFrame, engine: str) -> Window | None:
    """Return what happened between the first and the last poll of an engine; None without two."""
    rows = scrapes.filter(pl.col("engine") == engine, pl.col("name").is_in(USED))
    times = rows["time"].unique().sort()
    if times.len() < 2:
        return None
    series = ["name", "labels", "le"]
    cumulative = pl.col("name").str.contains(_CUMULATIVE)
    # A series that appears later began at 0; the first poll's values are where counting begins.
    grown = (
        rows.filter(cumulative)
        .sort("time")
        .with_columns(grown=pl.col("value").diff().over(series))
        .with_columns(
            grown=pl.when(pl.col("grown").is_null() & (pl.col("time") > times[0]))
            .then("value")
            .otherwise(pl.col("grown").fill_null(0.0))
        )
    )
    fell = grown.filter(pl.col("grown") < 0, ~pl.col("name").str.ends_with("_sum"))
    resets = fell["time"].unique()
    grown = grown.filter(~pl.col("time").is_in(resets.implode()))
    sums = grown.filter(pl.col("le").is_null()).group_by("name", "labels").agg(pl.sum("grown"))
    lengths = pl.DataFrame({"time": times[1:], "length": times.diff()[1:]})
    kept = lengths.filter(~pl.col("time").is_in(resets.implode()))["length"]
    gauges = rows.filter(~cumulative).sort("time").group_by("name", "labels").agg("value")
    return Window(
        start_ns=int(times[0]),
        end_ns=int(times[-1]),
        seconds=float(kept.sum()) / 1e9,
        polls=times.len(),
        resets=resets.len(),
        increase={(name, labels): value for name, labels, value in sums.iter_rows()},
        histograms=_histograms(grown, times),
        gauges={
            (name, labels): np.asarray(values, dtype=float)
            for name, labels, values in gauges.iter_rows()
        },
    )


def _histograms(grown: pl.DataFrame, times: pl.Series) -> dict[str, Histogram]:
    polls, found = times.to_numpy(), {}
    for name in _TIMES:
        rows = grown.filter(pl.col("name") == f"{name}_bucket").drop_nulls("le")
        bounds = rows["le"].unique().sort().to_numpy()
        if not bounds.size:
            continue
        counts = np.zeros((polls.size, bounds.size))
        at = tuple(np.searchsorted(*each) for each in ((polls, rows["time"]), (bounds, rows["le"])))
        np.add.at(counts, at, rows["grown"].to_numpy())
        counts = np.diff(np.maximum.accumulate(counts, axis=1), axis=1, prepend=0.0)
        told = grown.filter(pl.col("name") == f"{name}_sum")
        sums = np.full(polls.size, 0.0 if told.height else np.nan)
        np.add.at(sums, np.searchsorted(polls, told["time"].to_numpy()), told["grown"].to_numpy())
        found[name] = Histogram(bounds, counts, sums)
    return found


def histogram_mean(window: Window, name: str, unit: str = "s") -> Estimate | None:
    """Return a histogram's mean over the window, exactly: its sum over its count."""
    count, total = window.total(f"{name}_count"), window.total(f"{name}_sum")
    return None if not count or total is None else Estimate(value=total / count, unit=unit)


def _times(window: Window, name: str) -> Times:
    found = window.histograms.get(name)
    quantiles = {key: None if found is None else found.quantile(q) for key, q in QUANTILES.items()}
    return Times(mean=histogram_mean(window, name), **quantiles)


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
    is accepted drafts over drafts made, `acceptance_length` 1 + its sum. FLOPs and bytes read per
    GPU are vLLM's estimates, told only with --enable-mfu-metrics.
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
    if window is None:
        return None
    running, waiting, kv = (window.gauge(name) for name in (RUNNING, WAITING, KV))
    steps, tokens = window.total(f"{STEP_TOKENS}_count"), window.total(f"{STEP_TOKENS}_sum")
    finished = {_value(key): round(n) for key, n in window.by_label(FINISHED).items()}
    asked, hit = window.total(ASKED_TOKENS), window.total(HIT_TOKENS)
    preempted, drafts = window.total(PREEMPTED), window.total(DRAFTS)
    per_position = _per_position(window, drafts)
    waits = waiting > 0
    capped = None
    if waits.any() and running.size == waiting.size:
        capped = _mean(running[waits] >= running.max())
    return Numbers(
        engine=engine,
        start_ns=window.start_ns,
        end_ns=window.end_ns,
        seconds=window.seconds,
        polls=window.polls,
        resets=window.resets,
        prompt_tokens_per_s=window.rate(PROMPT),
        generated_tokens_per_s=window.rate(GENERATED),
        requests_per_s=window.rate(FINISHED),
        finished={reason: count for reason, count in finished.items() if count},
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
        drafted_tokens=None if drafts is None else round(window.total(DRAFTED) or 0),
        accepted_per_position=per_position,
        acceptance_length=None if per_position is None else 1.0 + sum(per_position),
        # vLLM has these families always, and leaves them at 0 unless told to estimate.
        flops_per_gpu_per_s=window.rate(FLOPS) or None,
        read_bytes_per_gpu_per_s=window.rate(READ_BYTES) or None,
    )


def _value(labels: str) -> str:
    """Return `stop` of `finished_reason="stop"`."""
    return labels.partition('"')[2].rstrip('"')


def _per_position(window: Window, drafts: float | None) -> tuple[float, ...] | None:
    if not drafts:
        return None
    counts = {int(_value(key)): n for key, n in window.by_label(ACCEPTED_AT).items()}
    return tuple(counts[position] / drafts for position in sorted(counts))


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None


def _max(values: NDArray[np.float64]) -> float | None:
    return float(values.max()) if values.size else None
