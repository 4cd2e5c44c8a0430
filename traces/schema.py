"""The types that every part of ttscope speaks in; units are in the fields' names.

A `Config` (engine + policy) is the join key of everything: it is hashable, and `key()` is its
short, stable name in a recording.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from traces.errors import UsageError
from traces.record import Record

__all__ = [
    "EFFORTS",
    "SCHEMA_VERSION",
    "Budget",
    "Config",
    "EngineConfig",
    "Estimate",
    "Experiment",
    "Measured",
    "Method",
    "ModelFacts",
    "NearMiss",
    "Objective",
    "Pick",
    "Policy",
    "Present",
    "Recommendation",
    "Record",
    "Speculative",
    "Stages",
    "Turning",
]

SCHEMA_VERSION = 1

Method = Literal[
    "greedy",
    "majority",
    "best_of_n",
    "weighted",
    "confidence",
    "early_stopping",
    "adaptive",
    "agreement",
    "first_finish",
    "budget_forcing",
    "sequential",
    "beam",
]
Objective = Literal["accuracy", "latency", "cost", "energy", "throughput"]


LOOKUPS = ("ngram", "ngram_gpu", "suffix")  # methods of speculation without a model that drafts


@dataclass(frozen=True, kw_only=True)
class Speculative(Record):
    """Speculative decoding, in the names of vLLM's `--speculative-config`."""

    method: str
    num_speculative_tokens: int
    model: str | None = None
    prompt_lookup_min: int | None = None
    prompt_lookup_max: int | None = None

    def __post_init__(self) -> None:
        if self.num_speculative_tokens < 1:
            raise UsageError("speculative: num_speculative_tokens must be at least 1")


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Record):
    """What an engine was started with, in vLLM's own names; None where it is not known."""

    model: str
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    num_gpu_blocks: int | None = None
    gpu_memory_utilization: float | None = None
    enable_prefix_caching: bool | None = None
    enforce_eager: bool | None = None
    async_scheduling: bool | None = None
    speculative: Speculative | None = None
    gpu: str | None = None
    num_gpus: int | None = None
    mode: Literal["in_process", "server"] = "in_process"
    vllm_version: str | None = None
    other: tuple[tuple[str, str], ...] = ()

    @property
    def num_devices(self) -> int:
        """Devices that the engine occupies: GPUs, or worker processes where there is none."""
        if self.num_gpus is not None:
            return self.num_gpus
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    def one_replica(self) -> EngineConfig:
        """Return the engine of one data-parallel rank: with its limits, blocks and devices."""
        count = self.data_parallel_size
        gpus = None if self.num_gpus is None else max(self.num_gpus // count, 1)
        return self if count == 1 else replace(self, data_parallel_size=1, num_gpus=gpus)

    def label(self) -> str:
        """Return the short form shown in tables, such as `tp2 seqs64 ngram k3`."""
        parts = [f"tp{self.tensor_parallel_size}"]
        if self.data_parallel_size > 1:
            parts.append(f"dp{self.data_parallel_size}")
        if self.max_num_seqs is not None:
            parts.append(f"seqs{self.max_num_seqs}")
        if self.speculative is not None:
            parts.append(f"{self.speculative.method} k{self.speculative.num_speculative_tokens}")
        return " ".join(parts)


EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

# Method -> its short name, and the parameter that its label shows before n.
_SHORT: dict[str, tuple[str, str | None]] = {
    "majority": ("maj", None),
    "best_of_n": ("best", None),
    "confidence": ("conf", "keep"),
    "early_stopping": ("esc", "window"),
    "adaptive": ("asc", "threshold"),
    "agreement": ("agree", "agree"),
    "first_finish": ("first", "first"),
    "budget_forcing": ("wait", "extend"),
    "sequential": ("revise", None),
    "beam": ("beam", "width"),
}


@dataclass(frozen=True, kw_only=True)
class Policy(Record):
    """How many samples a problem gets, how they are drawn, and how the answer is chosen.

    `rule` has the parameters of the method, by name; they are in profiler/policies/rules.py.
    `reasoning_effort` is vLLM's: the chat template makes of it what the model was trained on.
    `temperature` and `top_p` are None only in recordings made by others, which may not tell.
    """

    method: Method = "greedy"
    n: int = 1
    thinking_token_budget: int | None = None
    reasoning_effort: str | None = None
    max_tokens: int | None = None
    temperature: float | None = 0.0
    top_p: float | None = 1.0
    rule: tuple[tuple[str, float | str], ...] = ()

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UsageError(
                f"policy: no method {self.method!r}; one of {', '.join(get_args(Method))}"
            )
        if self.n < 1:
            raise UsageError(f"policy: n must be at least 1, not {self.n}")
        if self.method == "greedy" and self.n != 1:
            raise UsageError(f"policy: greedy draws one sample, not {self.n}; use majority")
        if self.temperature is not None and self.temperature < 0:
            raise UsageError(f"policy: temperature must not be negative, not {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"policy: top_p must lie in (0, 1], not {self.top_p}")
        if self.reasoning_effort is not None and self.reasoning_effort not in EFFORTS:
            known = ", ".join(EFFORTS)
            raise UsageError(
                f"policy: no reasoning_effort {self.reasoning_effort!r}; one of {known}"
            )
        for name in ("thinking_token_budget", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"policy: {name} must be at least 1, not {value}")

    def label(self) -> str:
        """Return the short form shown in tables, such as `maj@16 128` or `esc 4/16 high`.

        One sample is called greedy where each of its tokens is the likeliest: at temperature 0.
        """
        name, decisive = _SHORT.get(self.method, (self.method, None))
        given = dict(self.rule).get(decisive or "")
        if self.method == "greedy":
            drawn = "1 sample" if self.temperature is None else f"1 sample T={self.temperature:g}"
            label = name if self.temperature == 0 else drawn
        elif given is None or isinstance(given, str):
            label = f"{name}@{self.n}"
        else:
            label = f"{name} {given:g}/{self.n}"
        parts = (label, self.reasoning_effort, self.thinking_token_budget)
        return " ".join(str(part) for part in parts if part is not None)

    def label_with_temperature(self) -> str:
        """Return the label and the temperature, once, where it is known and not 0."""
        label = self.label()
        return (
            f"{label} T={self.temperature:g}" if self.temperature and " T=" not in label else label
        )


@dataclass(frozen=True, kw_only=True)
class Config(Record):
    """An engine configuration and a policy: what is run, replayed and recommended."""

    engine: EngineConfig
    policy: Policy


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Record):
    """What the cost of a model depends on, so that a recording replays without the model.

    `attention` names the kinds of its layers that mix tokens, in the words of transformers'
    `layer_types` (full_attention, sliding_attention, linear_attention, ...) and `latent_attention`
    for MLA; `sliding_window` is in tokens; `quantization` is that of the checkpoint's weights.
    None: not known, as in older recordings, or not counted.
    """

    name: str
    architecture: str | None = None
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int | None
    vocab_size: int
    num_experts: int | None = None
    experts_per_token: int | None = None
    total_parameters: int | None
    active_parameters: int | None
    weight_bytes: int | None
    kv_bytes_per_token: int | None
    attention: tuple[str, ...] | None = None
    sliding_window: int | None = None
    quantization: str | None = None

    def reads_all(self, max_model_len: int | None) -> bool:
        """Whether no layer is known to read less than a context of up to `max_model_len`."""
        window = self.sliding_window
        if self.attention == ("sliding_attention",) and window and max_model_len:
            return max_model_len <= window
        return self.attention is None or not set(self.attention) - {"full_attention"}

    def other_layers(self) -> str:
        """Return the kinds of layers that mix tokens by other than full attention, in words."""
        kinds = (kind for kind in self.attention or () if kind != "full_attention")
        return ", ".join(kinds).replace("_", " ")

    def matmul_flops(self, tokens: float) -> float:
        """FLOPs of forwarding tokens through the weights: 2 x active parameters, if known, each."""
        if self.active_parameters is None:
            raise ValueError(f"{self.name}: its active parameters are not known")
        return 2.0 * self.active_parameters * tokens

    def attention_flops(self, query_context: float) -> float:
        """FLOPs of attention, `query_context` being the sum over tokens of the context read.

        QK^T and AV are 2 x heads x head_dim multiply-adds each per token of context and layer.
        """
        width = self.num_attention_heads * self.head_dim
        return 4.0 * self.num_hidden_layers * width * query_context


@dataclass(frozen=True, kw_only=True)
class Estimate(Record):
    """A number with its interval; no bare float leaves the advisor.

    `low` and `high` are None where no interval is known; `runs` is how many recorded runs it
    rests on; `extrapolated` says that it lies outside what was measured.
    """

    value: float
    low: float | None = None
    high: float | None = None
    unit: str
    runs: int | None = None
    extrapolated: bool = False

    def scaled(self, factor: float, unit: str) -> Estimate:
        """Return the number and its interval times a factor above 0, in another unit."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return replace(self, value=self.value * factor, low=low, high=high, unit=unit)

    def at_least(self, floor: float) -> Estimate:
        """Return the number and its interval, none of them below a floor."""
        low, high = (None if end is None else max(end, floor) for end in (self.low, self.high))
        return replace(self, value=max(self.value, floor), low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Budget(Record):
    """What a problem may take; what is None is not limited.

    `latency_percentile` is which latency is limited and optimised, None the mean. `required` is
    False where neither a limit nor what to optimise was given: nothing is recommended then.
    """

    max_latency_s: float | None = None
    latency_percentile: int | None = None
    max_device_s: float | None = None
    max_cost_usd: float | None = None
    max_energy_j: float | None = None
    max_gpus: int | None = None
    min_accuracy: float | None = None
    rate_per_s: float | None = None
    price_usd_per_device_hour: float | None = None
    prices: tuple[tuple[str, float], ...] = ()  # (type of device, USD per device-hour)
    optimise: Objective = "latency"
    confidence: float = 0.9
    required: bool = True

    def limits(self) -> dict[str, float]:
        """Return the limits that are given, by field name."""
        names = ("max_latency_s", "max_device_s", "max_cost_usd", "max_energy_j", "max_gpus")
        given = {name: getattr(self, name) for name in (*names, "min_accuracy")}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Measured(Record):
    """What a run of a configuration measured, under the names of a pick's estimates.

    `at_load` says that it ran under the load of the answer, and not under another one, which is
    `concurrency` problems in flight or `rate_per_s`. `runs` counts the runs under that load.
    """

    recording: str
    problems: int
    concurrency: int | None
    rate_per_s: float | None
    estimates: Mapping[str, Estimate | None]
    at_load: bool = True
    runs: int = 1


@dataclass(frozen=True, kw_only=True)
class Pick(Record):
    """A candidate with what is expected of it.

    `prior` is the system of whose tables its step times are; None where they were recorded.
    `measured` is what a run of it gave, None where it was not run.
    """

    engine: EngineConfig
    policy: Policy
    command: str | None = None
    estimates: Mapping[str, Estimate | None]
    probability_within_budget: float
    prior: str | None = None
    measured: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class NearMiss(Record):
    """The candidate that comes closest to a limit of those that nothing meets together.

    `sure` is the probability that it meets this limit, which may be met where the others are not.
    """

    limit: str
    wanted: float
    nearest: Estimate
    sure: float
    pick: Pick


@dataclass(frozen=True, kw_only=True)
class Turning(Record):
    """The value of a limit, rate or price at which the answer changes, and to what.

    `direction` is "above" or "below" the value; without `pick` nothing known fits there. `exact`:
    the pick drops out there; else another is better there, and one not looked at may be earlier.
    `replayed` says that the value is of replayed candidates, not of the closed form.
    """

    name: str
    value: float
    unit: str
    direction: Literal["above", "below"]
    pick: str | None
    exact: bool = True
    replayed: bool = True


@dataclass(frozen=True, kw_only=True)
class Stages(Record):
    """How the answer came about: candidates by closed form, and those that were replayed.

    `spread` is what nine tenths of the replays lay within of the closed form, a share. `first` is
    the closed form's pick where the replay changed it.
    """

    screened: int
    replayed: int
    spread: float | None
    first: str | None


@dataclass(frozen=True, kw_only=True)
class Present(Record):
    """The configuration that runs today, and what it has more than the pick: `difference`.

    `best` says that it is the pick, or cannot be told apart from it on what is optimised.
    """

    pick: Pick
    best: bool
    difference: Mapping[str, Estimate | None]


@dataclass(frozen=True, kw_only=True)
class Experiment(Record):
    """A run that would make the answer surer.

    `regret` is what the pick is expected to lose against the best, as a share of what is optimised,
    and `regret_after` the same once this run is known.
    """

    engine: EngineConfig
    policy: Policy
    reason: str
    regret: float
    regret_after: float


@dataclass(frozen=True, kw_only=True)
class Recommendation(Record):
    """What to run for a budget; picks are None when nothing fits.

    `pareto` is the front of accuracy against what is optimised (against latency where that is
    accuracy), `compute_pareto` against FLOPs.
    """

    budget: Budget
    system_optimal: Pick | None
    compute_optimal: Pick | None
    regret: Mapping[str, Estimate | None]
    pareto: tuple[Pick, ...]
    reasons: tuple[str, ...]
    near_misses: tuple[NearMiss, ...]
    measure_next: tuple[str, ...]
    candidates: int
    infeasible: Mapping[str, int]
    compute_pareto: tuple[Pick, ...] = ()
    equals: tuple[Pick, ...] = ()
    sensitivity: tuple[Turning, ...] = ()
    stages: Stages | None = None
    present: Present | None = None
    experiments: tuple[Experiment, ...] = ()

    @property
    def missed(self) -> tuple[NearMiss, ...]:
        """The near misses of limits that are missed; all where each is met, but not all at once."""
        sure = self.budget.confidence
        return tuple(each for each in self.near_misses if each.sure < sure) or self.near_misses
