"""The options of a budget, the same for every verb that takes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

MaxLatency = Annotated[
    str | None, typer.Option(help="Per problem: 5s, 250ms (mean, or --percentile).")
]
Percentile = Annotated[int | None, typer.Option(help="Which percentile --max-latency limits.")]
MaxCost = Annotated[
    str | None, typer.Option(help="Per problem: $0.002, or device-seconds as 0.5s.")
]
MaxEnergy = Annotated[str | None, typer.Option(help="Per problem: 800J, 2kJ.")]
Gpus = Annotated[int | None, typer.Option(help="Devices at most.")]
MinAccuracy = Annotated[str | None, typer.Option(help="0.8 or 80%.")]
Rate = Annotated[str | None, typer.Option(help="Problems arriving: 2/s, 30/min.")]
Price = Annotated[
    list[str] | None, typer.Option(help="USD per device-hour: 2.5, or by type H100=2.5.")
]
Optimise = Annotated[
    str | None, typer.Option(help="accuracy, latency, cost, energy or throughput.")
]
Confidence = Annotated[float, typer.Option(help="How sure every limit must be met.")]
Systems = Annotated[
    list[str] | None,
    typer.Option("--gpu", help="Offer this GPU, not measured, by the prior: h100_sxm."),
]
Seed = Annotated[int, typer.Option(help="Seed of the resampling.")]

_NAMES = (
    "max_latency", "percentile", "max_cost", "max_energy", "gpus", "min_accuracy", "rate", "price",
    "optimise", "confidence",
)  # fmt: skip


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the budget's among a verb's options, for `advisor.budget`."""
    return {name: options[name] for name in _NAMES}
