"""Configurations, budgets and policies in words: the one voice of command line, app and report."""

from __future__ import annotations

from advisor.advice.command import policy_request
from traces.schema.advice import Budget
from traces.schema.engine import EngineConfig
from traces.schema.formats import counted, written
from traces.schema.quantities import LIMITS, limited, objective
from traces.schema.tts.policy import Policy


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
    elif policy.n == 1 and policy.method == "majority":
        words = "one sample"
    else:
        spec = policy.spec
        template = spec.words or f"up to {{n}} samples, {policy.method.replace('_', ' ')}"
        words = spec.describe(template, policy.n, dict(policy.rule))
    if policy.reasoning_effort is not None:
        words += f", {policy.reasoning_effort} reasoning effort"
    if policy.thinking_token_budget is not None:
        words += f", at most {policy.thinking_token_budget:,} tokens of thought"
    if policy.temperature:
        words += f", temperature {policy.temperature:g}"
    return words


def engine_words(
    engine: EngineConfig, *, imported: bool = False, prior: str | None = None, limits: bool = True
) -> str:
    """Return how an engine is started, such as `1 device, up to 64 samples at once`.

    With a `prior` it says that nobody has measured it. Without `limits` only what it runs on.
    """
    if imported:
        return "engine not known"
    count = engine.num_devices
    words = [f"{count} {engine.gpu or 'device'}{'s' if count > 1 and not engine.gpu else ''}"]
    if engine.tensor_parallel_size > 1:
        words.append(f"tensor parallel {engine.tensor_parallel_size}")
    if engine.data_parallel_size > 1:
        words.append(f"{engine.data_parallel_size} replicas")
    if engine.max_num_seqs is not None and limits:
        words.append(f"up to {engine.max_num_seqs} samples at once")
    if engine.speculative is not None:
        drafts = engine.speculative
        method = drafts.method.replace("_", " ")
        words.append(f"speculation by {method}, {drafts.num_speculative_tokens} tokens ahead")
    words += [each for each in (engine.quantization,) if each]
    words += [] if prior is None else [f"times by the prior of {prior}, not measured"]
    return ", ".join(words)


def plain(
    engine: EngineConfig,
    policy: Policy | None,
    *,
    imported: bool = False,
    prior: str | None = None,
) -> str:
    """Return a configuration in one line of text."""
    how = engine_words(engine, imported=imported, prior=prior)
    return f"{model_words(engine.model)}: {policy_words(policy)}, {how}"


def limit_words(field: str, value: float, percentile: int | None = None) -> str:
    """Return a limit, such as `accuracy of at least 0.75`."""
    subject = limited(field, percentile)
    bound = "least" if LIMITS[field].at_least else "most"
    return f"{subject.noun} of at {bound} {written(value, subject.unit)}"


def budget_words(budget: Budget) -> str:
    """Return every limit of a budget; empty without one."""
    return ", ".join(
        limit_words(field, value, budget.latency_percentile)
        for field, value in given_limits(budget).items()
    )


def given_limits(budget: Budget) -> dict[str, float]:
    """Return what is limited, by field; the rate that must be kept up with is a limit too."""
    rate = {} if budget.rate_per_s is None else {"rate": budget.rate_per_s}
    return budget.limits() | rate


def goal_words(budget: Budget) -> str:
    """Return what is optimised, such as `lowest p95 latency` or `highest accuracy`."""
    goal = objective(budget.optimise, budget.latency_percentile)
    return f"{'highest' if goal.higher_is_better else 'lowest'} {goal.noun}"


def request_words(policy: Policy) -> tuple[str, str, str]:
    """Return how many requests a policy sends a problem, what each holds, and which answer wins."""
    request = policy_request(policy)
    count, at_a_time = request["requests"], request["at_a_time"]
    many = counted(count, "request") + (f", {at_a_time} at a time," if at_a_time < count else "")
    usual = {"n": 1, "top_p": 1.0}  # what an API takes where nothing is said
    told = (item for item in request["body"].items() if item not in usual.items())
    body = ", ".join(f"{name} {value}" for name, value in told)
    wins = "" if request["answer"] == "the only answer" else f", and {request['answer']} wins"
    cancel = ". Cancel the rest then" if request["cancel_the_rest"] else ""
    return many, body, wins + cancel
