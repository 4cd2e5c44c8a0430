"""The metrics: one row per number of a run, from which text, JSON and terminal app render."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from traces.schema.estimate import Estimate
from traces.summary.run import Run


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of a run: its tag (as in the JSON), header, unit, formula, and which way is better.

    `column` names the number per problem, `sample_column` the one per sample, that it is the mean
    or, with `q`, the quantile of: paired differences exist for those. Numbers that are `timed`
    differ from run to run with the machine.
    """

    tag: str
    header: str
    unit: str
    formula: str
    get: Callable[[Run], Estimate | None]
    better: str | None = "lower"
    column: str | None = None
    sample_column: str | None = None
    q: float | None = None
    timed: bool = True


def _of(name: str, part: str) -> Callable[[Run], Estimate | None]:
    def get(run: Run) -> Estimate | None:
        found: Estimate | None = getattr(run, name)[part]
        return found

    return get


def _spread_metrics(
    tag: str,
    header: str,
    unit: str,
    formula: str,
    *,
    column: str | None = None,
    sample_column: str | None = None,
) -> list[Metric]:
    parts = (("mean", None), ("p50", 0.5), ("p95", 0.95))
    return [
        Metric(
            tag=f"{tag}.{part}",
            header=f"{header} {part}",
            unit=unit,
            formula=formula,
            get=_of(tag, part),
            q=q,
            column=column,
            sample_column=sample_column,
        )
        for part, q in parts
    ]


METRICS: tuple[Metric, ...] = (
    Metric(
        tag="accuracy",
        header="accuracy",
        unit="1",
        formula="problems answered right / problems decided or timed out",
        get=lambda run: run.accuracy,
        better="higher",
        column="correct",
        timed=False,
    ),
    *_spread_metrics(
        "latency_s", "latency", "s", "decided_at - arrival per problem", column="latency_s"
    ),
    *_spread_metrics(
        "ttft_s", "TTFT", "s", "first_token - arrival per sample", sample_column="ttft_s"
    ),
    *_spread_metrics(
        "tpot_s",
        "TPOT",
        "s/token",
        "(end - first_token) / (output_tokens - 1) per sample",
        sample_column="tpot_s",
    ),
    *_spread_metrics(
        "sample_latency_s", "sample latency", "s", "latency_s per sample of an imported file"
    ),
    Metric(
        tag="tokens_per_problem",
        header="tokens",
        unit="tokens",
        formula="generated tokens of a problem's samples, every role",
        get=lambda run: run.tokens_per_problem,
        column="tokens",
        timed=False,
    ),
    Metric(
        tag="flops_per_problem",
        header="FLOPs",
        unit="FLOP",
        formula="2 x active parameters x (uncached prompt + generated tokens) + attention",
        get=lambda run: run.flops_per_problem,
        column="flops",
        timed=False,
    ),
    Metric(
        tag="throughput_tokens_per_s",
        header="throughput",
        unit="tokens/s",
        formula="generated tokens / (last end - first arrival)",
        get=lambda run: run.throughput_tokens_per_s,
        better="higher",
    ),
    Metric(
        tag="device_s_per_problem",
        header="device-seconds",
        unit="device-s",
        formula="the problem's share of each step by tokens x devices; idle is not charged",
        get=lambda run: run.device_s_per_problem,
        column="device_s",
    ),
    Metric(
        tag="cost_usd_per_problem",
        header="cost",
        unit="USD",
        formula="device-seconds x price per device-hour / 3600",
        get=lambda run: run.cost_usd_per_problem,
        column="cost_usd",
    ),
    Metric(
        tag="cost_per_token_device_s",
        header="cost per token",
        unit="device-s/token",
        formula="devices x latency / generated tokens (Zhao et al. 2025)",
        get=lambda run: run.cost_per_token_device_s,
    ),
    Metric(
        tag="energy_j.per_problem",
        header="energy",
        unit="J",
        formula="energy from the first arrival to the last end / problems",
        get=lambda run: run.energy_j.per_problem,
        column="energy_j",
    ),
)

BY_TAG = {metric.tag: metric for metric in METRICS}


def estimate_of(run: Run | None, tag: str) -> Estimate | None:
    """Return a number of a run by its tag; None without a run, or where it was not measured."""
    return None if run is None else BY_TAG[tag].get(run)
