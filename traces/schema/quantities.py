"""The quantities: what each number is called, its unit, what it means, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number that is measured of a run or predicted of a configuration, per problem.

    `name` is its key in the JSON of `advise`, `tag` its key in that of `show` and `replay`. A
    quantity that only one of them has goes by that key in both fields. `noun` stands in a
    sentence, `title` in a table of runs, `meaning` explains it to a reader who is new to ttscope.
    `gates` are its names in `--fail-on`.
    """

    name: str
    tag: str
    unit: str
    noun: str
    title: str
    meaning: str
    higher_is_better: bool = False
    gates: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BudgetLimit:
    """A limit that a budget can set: its field, its option, and what it limits.

    `why` says why a candidate that breaks it is ruled out.
    """

    field: str
    option: str
    quantity: Quantity
    why: str

    @property
    def at_least(self) -> bool:
        """Whether the limit is a lower bound."""
        return self.quantity.higher_is_better


def _spread(
    tag: str, unit: str, word: str, meaning: str, gate: str | None = None
) -> list[Quantity]:
    """Return mean, median and 95th percentile of a time."""
    return [
        Quantity(
            name=f"{tag}.{part}",
            tag=f"{tag}.{part}",
            unit=unit,
            noun=f"{word} {part}",
            title=f"{word} {part}",
            meaning=f"{meaning} ({statistic}).",
            gates=() if gate is None or part == "mean" else (f"{gate}_{part}",),
        )
        for part, statistic in (("mean", "mean"), ("p50", "median"), ("p95", "95th percentile"))
    ]


def statistic(percentile: int | None) -> str:
    """Return what is taken of latencies: `mean`, or a percentile such as `p95`."""
    return "mean" if percentile is None else f"p{percentile}"


def latency(percentile: int | None = None) -> Quantity:
    """Latency of a problem: its mean, or a percentile."""
    part = statistic(percentile)
    meaning = f"Seconds from arrival to answer that {percentile} of 100 problems stay below."
    if percentile is None:
        meaning = (
            "Seconds from a problem's arrival to its answer, all of its samples included (mean)."
        )
    return Quantity(
        name="latency_s" if percentile is None else f"latency_{part}_s",
        tag=f"latency_s.{part}",
        unit="s",
        noun=f"{part} latency",
        title=f"latency {part}",
        meaning=meaning,
        gates=("latency", "mean") if percentile is None else (part,),
    )


QUANTITIES: tuple[Quantity, ...] = (
    Quantity(
        name="accuracy",
        tag="accuracy",
        unit="1",
        noun="accuracy",
        title="accuracy",
        meaning="Share of the workload's problems whose final answer is right.",
        higher_is_better=True,
        gates=("accuracy",),
    ),
    latency(),
    latency(50),
    latency(95),
    *_spread(
        "ttft_s",
        "s",
        "TTFT",
        "Time to first token: from a sample's arrival to its first token",
        "ttft",
    ),
    *_spread(
        "tpot_s",
        "s/token",
        "TPOT",
        "Time per output token after the first, per sample",
        "tpot",
    ),
    *_spread(
        "sample_latency_s",
        "s",
        "sample latency",
        "Latency of a sample as the imported file has it",
    ),
    Quantity(
        name="tokens",
        tag="tokens_per_problem",
        unit="tokens",
        noun="tokens",
        title="tokens/problem",
        meaning="Tokens generated for a problem, over all of its samples.",
        gates=("tokens",),
    ),
    Quantity(
        name="flops",
        tag="flops_per_problem",
        unit="FLOP",
        noun="FLOPs",
        title="FLOPs/problem",
        meaning=(
            "Arithmetic operations for a problem: 2 x active parameters x tokens forwarded, plus "
            "attention."
        ),
        gates=("flops",),
    ),
    Quantity(
        name="throughput_problems_per_s",
        tag="throughput_problems_per_s",
        unit="problems/s",
        noun="throughput",
        title="throughput",
        meaning="Problems a second that are answered under the load that was asked for.",
        higher_is_better=True,
    ),
    Quantity(
        name="throughput_tokens_per_s",
        tag="throughput_tokens_per_s",
        unit="tokens/s",
        noun="throughput",
        title="throughput",
        meaning="Generated tokens over the time from the first arrival to the last end.",
        higher_is_better=True,
        gates=("throughput",),
    ),
    Quantity(
        name="device_s",
        tag="device_s_per_problem",
        unit="device-s",
        noun="device time",
        title="device-s/problem",
        meaning=(
            "Seconds of a device (GPU, or the machine where there is none) that a problem takes "
            "up: its share of every step that it was in, times the devices (dev-ms: "
            "device-milliseconds). In advice at a rate it is the devices over the rate, which pays "
            "for the time that they idle too, or their busy time where that is more."
        ),
        gates=("device_s",),
    ),
    Quantity(
        name="cost_usd",
        tag="cost_usd_per_problem",
        unit="USD",
        noun="cost",
        title="cost/problem",
        meaning="Device time of a problem times the price of a device-hour.",
        gates=("cost",),
    ),
    Quantity(
        name="cost_per_token_device_s",
        tag="cost_per_token_device_s",
        unit="device-s/token",
        noun="cost per token",
        title="dev x latency/token",
        meaning="Devices times latency over generated tokens (Zhao et al. 2025).",
    ),
    Quantity(
        name="energy_j",
        tag="energy_j.per_problem",
        unit="J",
        noun="energy",
        title="energy/problem",
        meaning="Joules that the devices draw for a problem, idle time included.",
        gates=("energy",),
    ),
    Quantity(
        name="devices",
        tag="devices",
        unit="devices",
        noun="devices",
        title="devices",
        meaning="Devices that the engine runs on, all replicas together.",
    ),
    Quantity(
        name="rate",
        tag="rate",
        unit="problems/s",
        noun="rate",
        title="rate",
        meaning="Problems a second that arrive.",
        higher_is_better=True,
    ),
)

_BY_KEY = {key: each for each in QUANTITIES for key in (each.name, each.tag)}

GATES = {gate: each for each in QUANTITIES for gate in each.gates}


def quantity(key: str) -> Quantity:
    """Return a quantity by its name or tag, any percentile of latency too. Raises KeyError."""
    if key not in _BY_KEY and key.startswith("latency_p"):
        return latency(int(key.removeprefix("latency_p").removesuffix("_s")))
    return _BY_KEY[key]


LIMITS: dict[str, BudgetLimit] = {
    field: BudgetLimit(field=field, option=option, quantity=quantity(name), why=why)
    for field, option, name, why in (
        ("max_gpus", "--gpus", "devices", "needs more devices than allowed"),
        ("rate", "--rate", "rate", "may not keep up with the rate"),
        ("min_accuracy", "--min-accuracy", "accuracy", "not accurate enough"),
        ("max_latency_s", "--max-latency", "latency_s", "too slow"),
        ("max_device_s", "--max-cost", "device_s", "takes too many device-seconds"),
        ("max_cost_usd", "--max-cost", "cost_usd", "too expensive"),
        ("max_energy_j", "--max-energy", "energy_j", "takes too much energy"),
    )
}

_OBJECTIVES = {
    "accuracy": "accuracy",
    "cost": "cost_usd",
    "energy": "energy_j",
    "throughput": "throughput_problems_per_s",
}


def objective(name: str, percentile: int | None = None) -> Quantity:
    """Return what a budget's `optimise` optimises; a percentile matters to latency alone."""
    return latency(percentile) if name == "latency" else quantity(_OBJECTIVES[name])


def limited(field: str, percentile: int | None = None) -> Quantity:
    """Return what a budget's field limits; a percentile matters to latency alone."""
    return latency(percentile) if field == "max_latency_s" else LIMITS[field].quantity


def which_latency(field: str, percentile: int | None) -> str:
    """Return what follows the value of a limit on latency, such as ` (mean)`; else nothing."""
    return f" ({statistic(percentile)})" if field == "max_latency_s" else ""
