"""`ttscope record`: run a workload on vLLM and keep a recording."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.engines.options import EngineOptions, parse_speculative
from traces.errors import UsageError
from traces.recording.manifest import CheckpointCost, check_free, read_manifest
from traces.schema.formats import integer
from traces.schema.tts.policy import Policy
from tui.options import (
    OPTIONS,
    PROMPTS,
    SAMPLES,
    Concurrency,
    Json,
    Measures,
    Output,
    Price,
    Problems,
    RawPrompts,
    RecordText,
    RuleOptions,
    Sampling,
    Seed,
    SystemPrompt,
    Verifier,
    check_price,
    option,
    takes,
    verifier_for,
)  # fmt: skip
from tui.terminal import say_all, tell
from tui.text.words import strange_questions
from tui.verbs.interrupted import says_what_is_kept
from tui.verbs.progress import own_stdout, progress_bar

if TYPE_CHECKING:
    from profiler.workload.problems import Workload


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is asked, and of whom."""

    model: str | None = option(None, "Hugging Face folder or name, or demo/s, demo/m, demo/l.")
    endpoint: str | None = option(None, "A running OpenAI-compatible server instead.")
    workload: str = option("demo", "demo, demo:preamble, or a JSONL file.")
    problems: Problems = None
    seed: Seed = 0
    concurrency: Concurrency = 8


@dataclass(frozen=True, kw_only=True)
class Keep(Measures):
    """What is measured and kept, and the engine's own options."""

    kernels: str | None = option(None, "Profile the kernels of M steps every N.", metavar="M/N")
    power_hz: float = option(20.0, "Readings of the devices' power a second, 10 to 50.")
    otlp: str | None = option(None, "Also send spans and metrics to this OTLP/HTTP URL.")
    price: Price = None
    tensor_parallel_size: int | None = option(None, "As vLLM's.")
    max_num_seqs: int | None = option(None, "As vLLM's.")
    max_num_batched_tokens: int | None = option(None, "As vLLM's.")
    max_model_len: int | None = option(None, "As vLLM's.")
    dtype: str | None = option(None, "As vLLM's.")
    speculative: str | None = option(None, "vLLM's --speculative-config, as JSON.")
    raw_prompts: RawPrompts = False
    chat_template: str | None = option(
        None, "A Jinja template instead of the model's.", metavar="FILE"
    )
    system_prompt: SystemPrompt = None
    verifier: Verifier = None
    record_text: RecordText = False
    api_key_env: str | None = option(None, "Environment variable that holds the server's key.")
    output: Output = None
    as_json: Json = False


@takes(
    Ask,
    Sampling,
    RuleOptions,
    Keep,
    panels={
        "policy": SAMPLES,
        "window": "Parameters of methods",
        "timeout": "What is measured",
        "tensor_parallel_size": "vLLM's options",
        "raw_prompts": PROMPTS,
        "api_key_env": OPTIONS,
    },
)
def record(ask: Ask, sampling: Sampling, rule: Any, asked: Keep) -> None:
    """Run a test-time-scaling workload on vLLM and keep a recording."""
    from tui.verbs.show import after_show, print_show

    with own_stdout() as out:
        folder = run_workload(ask, sampling, rule, asked)
        print_show([folder], price=None, as_json=asked.as_json, out=out)
        if not asked.as_json:
            lines = checkpoint_lines(read_manifest(folder).checkpoints)
            say_all([*lines, f"kept in {folder}", *after_show([folder])], file=out)


def run_workload(
    ask: Ask,
    sampling: Sampling,
    rule: Any,
    asked: Keep,
    *,
    policy: Policy | None = None,
    rate_per_s: float | None = None,
    check: Callable[[Workload], None] | None = None,
    may_fail: bool = False,
) -> Path:
    """Start the engine, run the workload, and return the recording's folder. Raises UsageError.

    The policy is that of the options, unless one is given. With a rate the problems arrive at it,
    however many are in flight. `check` may refuse the problems before the engine starts. Raises
    EngineError where every sample failed, unless the run `may_fail`.
    """
    from profiler.engines.start import start_engine
    from profiler.probes.power import check_hz
    from profiler.runs.checkpoints import check_budgets
    from profiler.runs.record import check_answered
    from profiler.runs.record import record as run_and_keep
    from profiler.runs.telemetry import check_settings
    from profiler.workload.problems import load_workload
    from profiler.workload.scorers import scorer_of

    policy, options = policy or sampling.chosen(vars(rule)), _engine_options(ask, asked)
    check_price(asked.price)
    check_hz(asked.power_hz)
    check_settings(asked.otlp)
    if ask.concurrency < 1:
        raise UsageError(f"--concurrency must be at least 1, not {ask.concurrency}")
    if asked.timeout is not None and not asked.timeout > 0:
        raise UsageError(f"--timeout must be above 0, not {asked.timeout}")
    scorer_of(policy, None)
    measured = asked.settings()
    if budgets := measured["budget_checkpoints"]:
        check_budgets(budgets, asked.checkpoint_samples, policy)
    if options.chat_template is not None and asked.raw_prompts:
        raise UsageError("--chat-template and --raw-prompts exclude each other")
    loaded = load_workload(
        source=ask.workload,
        problems=ask.problems,
        seed=ask.seed,
        chat=not asked.raw_prompts,
        verifier=verifier_for(sampling, ask.workload, asked.verifier),
        system_prompt=asked.system_prompt,
    )
    if check is not None:
        check(loaded)
    folder = asked.output or default_output(options, policy)
    check_free(folder)
    if warning := strange_questions(ask.model, loaded.name):
        tell(warning)
    with progress_bar() as bar:
        task = bar.add_task("starting the engine", total=None)
        engine = start_engine(
            options,
            thinking_budget=policy.thinking_token_budget is not None,
            kernels=asked.kernels,
        )
        from traces.live.engine_names import VLLM, software_of

        unknown = options.tensor_parallel_size is None and software_of(engine.config) == VLLM
        if options.endpoint is not None and unknown:
            tell(
                "the server does not report its tensor_parallel_size, which is taken as 1 (set it "
                "with --tensor-parallel-size)"
            )
        for note in engine.notes:
            tell(note)
        if ask.model is None and (warning := strange_questions(engine.config.model, loaded.name)):
            tell(warning)
        bar.update(task, description=f"{engine.config.model} {policy.label()}")
        with says_what_is_kept(folder), contextlib.closing(engine):
            run_and_keep(
                loaded,
                policy,
                engine,
                folder,
                concurrency=ask.concurrency,
                arrivals_s=None
                if rate_per_s is None
                else arrivals_at(rate_per_s, len(loaded.problems)),
                **measured,
                otlp=asked.otlp,
                record_text=asked.record_text,
                price_usd_per_device_hour=asked.price,
                power_hz=asked.power_hz,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        if not may_fail:
            check_answered(folder, engine)
    return folder


def _engine_options(ask: Ask, asked: Keep) -> EngineOptions:
    return EngineOptions(
        model=ask.model,
        endpoint=ask.endpoint,
        api_key_env=asked.api_key_env,
        dtype=asked.dtype,
        max_model_len=asked.max_model_len,
        tensor_parallel_size=asked.tensor_parallel_size,
        max_num_seqs=asked.max_num_seqs,
        max_num_batched_tokens=asked.max_num_batched_tokens,
        speculative=parse_speculative(asked.speculative),
        chat_template=asked.chat_template,
    )


def arrivals_at(rate_per_s: float, count: int) -> tuple[float, ...]:
    """Return seconds [count] at which problems arrive at random, from 0, at just this rate.

    Those of a Poisson process whose count in its time is given are as many uniform draws, so that
    it may be stretched to the rate.
    """
    from advisor.what_if.replayed import poisson_arrivals

    drawn = poisson_arrivals(rate_per_s, count, seed=0)
    span = drawn[-1] - drawn[0]
    scale = (count - 1) / rate_per_s / span if count > 1 else 1.0
    return tuple(((drawn - drawn[0]) * scale).tolist())


def checkpoint_lines(cost: CheckpointCost | None) -> list[str]:
    """Return what forced answers took, which is in none of the run's numbers."""
    if cost is None:
        return []
    budgets = ", ".join(f"{budget:,}" for budget in cost.budgets)
    lines = [
        f"checkpoints at {budgets} tokens of thought, {cost.samples:,} samples per problem: "
        f"{cost.requests:,} answers",
        f"forced after the run in {cost.seconds:.1f} s, {integer(cost.prompt_tokens)} prompt "
        f"tokens, {integer(cost.output_tokens)} generated, in no number above",
    ]
    return [*lines, *([f"of these failed: {cost.failed:,}"] if cost.failed else [])]


def default_output(options: EngineOptions, policy: Policy) -> Path:
    """Name a new folder in ./runs after what is run and when."""
    label = re.sub(r"[^A-Za-z0-9.@-]+", "-", f"{options.label()} {policy.label()}")[:100]
    return Path("runs") / f"{label}-{time.strftime('%Y%m%d-%H%M%S')}"
