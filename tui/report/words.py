"""Configurations and budgets in words."""

from __future__ import annotations

from advisor.limits import latency_words
from traces.schema import Budget, EngineConfig, Policy
from tui.advice_text import LIMITS
from tui.formats import number
from tui.report.markup import Html, join, tag

UNITS = {
    "max_latency_s": "s",
    "max_device_s": "device-s",
    "max_cost_usd": "USD",
    "max_energy_j": "J",
    "min_accuracy": "1",
    "max_gpus": "",
    "rate": "problems/s",
}


def model_words(model: str) -> str:
    """Return a model's name; of a path in the file system its last part."""
    name = model.rstrip("/")
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1
    return name.rpartition("/")[2] if is_path else name or model


def policy_words(policy: Policy | None) -> str:
    """Return what a policy does, such as `8 samples, majority vote`."""
    if policy is None:
        return "policy not known"
    if policy.method == "greedy":
        words = "one sample, greedy" if policy.temperature == 0 else "one sample"
    elif policy.method == "majority":
        words = "one sample" if policy.n == 1 else f"{policy.n} samples, majority vote"
    elif policy.method == "agreement":
        agree = dict(policy.rule).get("agree")
        enough = f"{agree:g}" if isinstance(agree, int | float) else "enough"
        words = f"up to {policy.n} samples until {enough} agree"
    else:
        words = f"up to {policy.n} samples, {policy.method.replace('_', ' ')}"
    if policy.reasoning_effort is not None:
        words += f", {policy.reasoning_effort} reasoning effort"
    if policy.thinking_token_budget is not None:
        words += f", at most {policy.thinking_token_budget:,} tokens of thought"
    if policy.temperature:
        words += f", temperature {policy.temperature:g}"
    return words


def engine_words(engine: EngineConfig, *, imported: bool = False, prior: str | None = None) -> str:
    """Return how an engine is started, such as `1 device, 64 samples at once`.

    With a `prior` it says that nobody has measured it.
    """
    if imported:
        return "engine not known"
    count = engine.num_devices
    words = [f"{count} {engine.gpu or 'device'}{'s' if count > 1 and not engine.gpu else ''}"]
    if engine.tensor_parallel_size > 1:
        words.append(f"tensor parallel {engine.tensor_parallel_size}")
    if engine.max_num_seqs is not None:
        words.append(f"up to {engine.max_num_seqs} samples at once")
    if engine.speculative is not None:
        drafts = engine.speculative
        method = drafts.method.replace("_", " ")
        words.append(f"speculation by {method}, {drafts.num_speculative_tokens} tokens ahead")
    words += [each for each in (engine.quantization,) if each]
    words += [] if prior is None else [f"times by the prior of {prior}, not measured"]
    return ", ".join(words)


def configuration(
    engine: EngineConfig,
    policy: Policy | None,
    *,
    lead: str = "",
    imported: bool = False,
    prior: str | None = None,
) -> Html:
    """Return a configuration in two lines: the model and its policy, and the engine."""
    mark = tag("span", f"{lead} ", class_="letter") if lead else None
    return join(
        [
            tag(
                "span", mark, f"{model_words(engine.model)}: {policy_words(policy)}", class_="what"
            ),
            tag("span", engine_words(engine, imported=imported, prior=prior), class_="how"),
        ]
    )


def plain(
    engine: EngineConfig,
    policy: Policy | None,
    *,
    imported: bool = False,
    prior: str | None = None,
) -> str:
    """Return a configuration in one line of text."""
    how = engine_words(engine, imported=imported, prior=prior)
    return f"{model_words(engine.model)}: {policy_words(policy)}; {how}"


def limit_words(name: str, value: float, percentile: int | None = None) -> str:
    """Return a limit, such as `accuracy of at least 0.75`."""
    noun = LIMITS[name][0]
    if name == "max_latency_s":
        noun = latency_words(percentile)
    least = name in ("min_accuracy", "rate")
    told = f"{value:g}" if name in ("min_accuracy", "max_gpus") else number(value, UNITS[name])
    return f"{noun} of at {'least' if least else 'most'} {told}"


def budget_words(budget: Budget) -> str:
    """Return every limit of a budget; empty without one."""
    limits = dict(budget.limits())
    if budget.rate_per_s is not None:
        limits["rate"] = budget.rate_per_s
    return ", ".join(
        limit_words(name, value, budget.latency_percentile) for name, value in limits.items()
    )
