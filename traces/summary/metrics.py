"""The numbers of a run by their tags, and how two runs are compared in each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from traces.schema.estimate import Estimate
from traces.schema.quantities import Quantity, latency, quantity
from traces.summary.run import Run, latency_percentile


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of a run, and where its values per problem or sample stand.

    `column` is the number per problem, `sample_column` the one per sample, of which the metric is
    the mean or the quantile `q`. Only metrics with a column have paired differences. Metrics that
    are `timed` differ from run to run with the machine.
    """

    quantity: Quantity
    column: str | None = None
    sample_column: str | None = None
    q: float | None = None
    timed: bool = True

    @property
    def tag(self) -> str:
        """Its key in the JSON of `show`."""
        return self.quantity.tag


def _metric(
    tag: str, column: str | None = None, *, timed: bool = True, per_sample: bool = False
) -> Metric:
    q = {".p50": 0.5, ".p95": 0.95}.get(tag[-4:])
    by_problem, by_sample = (None, column) if per_sample else (column, None)
    return Metric(
        quantity=quantity(tag), column=by_problem, sample_column=by_sample, q=q, timed=timed
    )


_PARTS = ("mean", "p50", "p95")

METRICS: tuple[Metric, ...] = (
    _metric("accuracy", "correct", timed=False),
    *(_metric(f"latency_s.{part}", "latency_s") for part in _PARTS),
    *(_metric(f"ttft_s.{part}", "ttft_s", per_sample=True) for part in _PARTS),
    *(_metric(f"tpot_s.{part}", "tpot_s", per_sample=True) for part in _PARTS),
    *(_metric(f"sample_latency_s.{part}") for part in _PARTS),
    _metric("tokens_per_problem", "tokens", timed=False),
    _metric("flops_per_problem", "flops", timed=False),
    _metric("throughput_tokens_per_s"),
    _metric("device_s_per_problem", "device_s"),
    _metric("cost_usd_per_problem", "cost_usd"),
    _metric("cost_per_token_device_s"),
    _metric("energy_j.per_problem", "energy_j"),
)


def latency_metric(percentile: int) -> Metric:
    """Return any percentile of latency. `METRICS` has two of them."""
    return Metric(quantity=latency(percentile), column="latency_s", q=percentile / 100)


def estimate_of(run: Run | None, tag: str) -> Estimate | None:
    """Return a number of a run by tag, also any latency percentile; None if not measured."""
    if run is None:
        return None
    name, _, part = tag.partition(".")
    value = getattr(run, name)
    if name == "latency_s" and part not in value and part[1:].isdecimal():
        return latency_percentile(run, int(part[1:]))
    if part:
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    estimate: Estimate | None = value
    return estimate
