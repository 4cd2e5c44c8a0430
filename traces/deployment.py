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
Spread = Mapping[str, Estimate | None]
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
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
_HISTOGRAMS = (TTFT, ITL, QUEUE, E2E, PREFILL, DECODE, STEP_TOKENS)
USED = (
    *(f"{name}_{part}" for name in _HISTOGRAMS for part in ("bucket", "count", "sum")),
    *(RUNNING, WAITING, KV, PROMPT, GENERATED, FINISHED, PREEMPTED, HIT_TOKENS, ASKED_TOKENS),
    *(DRAFTS, DRAFTED, ACCEPTED_AT, FLOPS, READ_BYTES),
)


@dataclass(frozen=True)
class Window:
    """Increases of counters and readings of gauges over a stretch of one engine's polls.

    `increase` and `gauges` (one number per poll) are by name and labels; `buckets` has for each
    histogram its upper bounds and the increase up to each. `seconds` leaves out the intervals of
    `resets`.
    """

    start_ns: int
    end_ns: int
    seconds: float
    polls: int
    resets: int
    increase: Mapping[Key, float]
    buckets: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
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
    sums = (
        grown.filter(~pl.col("time").is_in(resets.implode())).group_by(series).agg(pl.sum("grown"))
    )
    lengths = pl.DataFrame({"time": times[1:], "length": times.diff()[1:]})
    kept = lengths.filter(~pl.col("time").is_in(resets.implode()))["length"]
    gauges = rows.filter(~cumulative).sort("time").group_by("name", "labels").agg("value")
    return Window(
        start_ns=int(times[0]),
        end_ns=int(times[-1]),
        seconds=float(kept.sum()) / 1e9,
        polls=times.len(),
        resets=resets.len(),
        increase={
            (name, labels): value for name, labels, le, value in sums.iter_rows() if le is None
        },
        buckets=_buckets(sums),
        gauges={
            (name, labels): np.asarray(values, dtype=float)
            for name, labels, values in gauges.iter_rows()
        },
    )


def _buckets(sums: pl.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    found = sums.drop_nulls("le").group_by("name", "le").agg(pl.sum("grown")).sort("name", "le")
    return {
        str(name).removesuffix("_bucket"): (part["le"].to_numpy(), part["grown"].to_numpy())
        for (name,), part in found.group_by("name")
    }


def histogram_mean(window: Window, name: str, unit: str = "s") -> Estimate | None:
    """Return a histogram's mean over the window, exactly: its sum over its count."""
    count, total = window.total(f"{name}_count"), window.total(f"{name}_sum")
    return None if not count or total is None else Estimate(value=total / count, unit=unit)


def histogram_quantile(window: Window, name: str, q: float, unit: str = "s") -> Estimate | None:
    """Return a quantile of what a histogram took in over the window.

    A histogram tells the bucket that holds it, which is the interval [low, high]; the value lies
    in it as if the bucket were evenly filled (Prometheus' histogram_quantile). Above the last
    finite bound there is no upper end: the value is then that bound, marked `extrapolated`.
    """
    bounds, counts = window.buckets.get(name, (np.empty(0), np.empty(0)))
    if not bounds.size or counts[-1] <= 0:
        return None
    counts = np.maximum.accumulate(counts)
    place = int(np.searchsorted(counts, q * counts[-1]))
    low = float(bounds[place - 1]) if place else 0.0
    high = float(bounds[place])
    if not np.isfinite(high):
        return Estimate(value=low, low=low, unit=unit, extrapolated=True)
    before = float(counts[place - 1]) if place else 0.0
    share = (q * counts[-1] - before) / (counts[place] - before)
    return Estimate(value=low + float(share) * (high - low), low=low, high=high, unit=unit)


def _spread(window: Window, name: str) -> Spread:
    quantiles = {key: histogram_quantile(window, name, q) for key, q in QUANTILES.items()}
    return {"mean": histogram_mean(window, name), **quantiles}


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
    of tokens given in it); an interval of theirs is a histogram's bucket. `accepted_per_position`
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
    ttft_s: Spread = field(default_factory=dict)
    itl_s: Spread = field(default_factory=dict)
    queue_s: Spread = field(default_factory=dict)
    prefill_s: Spread = field(default_factory=dict)
    decode_s: Spread = field(default_factory=dict)
    e2e_s: Spread = field(default_factory=dict)
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
            for each in plain[name].values():
                if each is not None:
                    each.pop("runs")
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
        ttft_s=_spread(window, TTFT),
        itl_s=_spread(window, ITL),
        queue_s=_spread(window, QUEUE),
        prefill_s=_spread(window, PREFILL),
        decode_s=_spread(window, DECODE),
        e2e_s=_spread(window, E2E),
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
