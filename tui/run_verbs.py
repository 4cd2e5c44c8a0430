"""The verbs that run engines: record and sweep."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from profiler.launch import EngineOptions
from traces.errors import Interrupted, TtscopeError, UsageError
from traces.manifest import NAME, CheckpointCost, read_manifest
from traces.recording import Recording
from traces.schema import Policy, Speculative
from tui.formats import counted
from tui.progress import progress_bar, sweep_progress
from tui.terminal_text import say, say_json

if TYPE_CHECKING:
    from profiler.sweep import EngineJobs, Outcome, Runner


@contextlib.contextmanager
def own_stdout() -> Iterator[TextIO]:
    """Give the real stdout; what vLLM and its libraries print meanwhile goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w") as mine:
            yield mine
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def parse_speculative(text: str | None) -> Speculative | None:
    """Read vLLM's --speculative-config. Raises UsageError when it is not such JSON."""
    if text is None:
        return None
    example = '\'{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}\''
    try:
        data = json.loads(text)
    except ValueError:
        raise UsageError(f"--speculative: not JSON; give for example {example}") from None
    known = Speculative.__dataclass_fields__
    if not isinstance(data, dict) or not {"method", "num_speculative_tokens"} <= data.keys():
        raise UsageError(f"--speculative: needs method and num_speculative_tokens, as {example}")
    if unknown := data.keys() - known.keys():
        raise UsageError(f"--speculative: no field {sorted(unknown)[0]!r}; {', '.join(known)}")
    if not isinstance(data["num_speculative_tokens"], int):
        raise UsageError("--speculative: num_speculative_tokens must be a whole number")
    return Speculative.from_json(data)


def parse_budgets(text: str | None) -> tuple[int, ...]:
    """Read --budget-checkpoints. Raises UsageError when it is no list of whole numbers."""
    parts = [] if text is None else text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--budget-checkpoints {text}: give token counts, such as 64,128,256")
    return tuple(int(part) for part in parts)


def checkpoint_lines(cost: CheckpointCost | None) -> list[str]:
    """Return what forced answers took, which is in none of the run's numbers."""
    if cost is None:
        return []
    budgets = ", ".join(f"{budget:,}" for budget in cost.budgets)
    tokens = [
        "-" if count is None else f"{count:,}" for count in (cost.prompt_tokens, cost.output_tokens)
    ]
    lines = [
        f"checkpoints at {budgets} tokens of thought, {cost.samples:,} samples per problem: "
        f"{cost.requests:,} answers",
        f"forced after the run in {cost.seconds:.1f} s; {tokens[0]} prompt tokens, "
        f"{tokens[1]} generated, in no number above",
    ]
    return [*lines, *([f"of these failed: {cost.failed:,}"] if cost.failed else [])]


def default_output(options: EngineOptions, policy: Policy) -> Path:
    """Name a new folder in ./runs after what is run and when."""
    label = re.sub(r"[^A-Za-z0-9.@-]+", "-", f"{options.label()} {policy.label()}")
    return Path("runs") / f"{label}-{time.strftime('%Y%m%d-%H%M%S')}"


def run_record(
    options: EngineOptions,
    policy: Policy,
    *,
    workload: Mapping[str, Any],
    concurrency: int,
    timeout_s: float | None,
    checkpoints: tuple[tuple[int, ...], int],
    logprobs: bool,
    record_text: bool,
    kernels: str | None,
    otlp: str | None,
    power_hz: float,
    price: float | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Start the engine, run the workload (`load_workload`'s arguments), print what happened."""
    from profiler.capture import record
    from profiler.checkpoints import check_budgets
    from profiler.launch import start_engine
    from profiler.power import check_hz
    from profiler.scorers import scorer_of
    from profiler.telemetry import check_settings
    from profiler.workload import load_workload
    from tui.read_verbs import print_show

    if price is not None and not price > 0:
        raise UsageError(f"--price must be above 0, not {price}")
    check_hz(power_hz)
    check_settings(otlp)
    if concurrency < 1:
        raise UsageError(f"--concurrency must be at least 1, not {concurrency}")
    if timeout_s is not None and not timeout_s > 0:
        raise UsageError(f"--timeout must be above 0, not {timeout_s}")
    scorer_of(policy, None)
    budgets, samples = checkpoints
    if budgets:
        check_budgets(budgets, samples, policy)
    if options.chat_template is not None and not workload["chat"]:
        raise UsageError("--chat-template and --raw-prompts exclude each other")
    loaded = load_workload(**workload)
    folder = output or default_output(options, policy)
    if (folder / "recording.json").exists():
        raise UsageError(f"-o {folder}: already holds a recording; name another folder")
    with own_stdout() as out, progress_bar() as bar:
        task = bar.add_task("starting the engine", total=None)
        engine = start_engine(
            options,
            thinking_budget=policy.thinking_token_budget is not None,
            kernels=kernels,
        )
        if options.endpoint is not None and options.tensor_parallel_size is None:
            say(
                "ttscope: the server does not tell its tensor_parallel_size; taken as 1 "
                "(say it with --tensor-parallel-size)",
                file=sys.stderr,
            )
        for note in getattr(engine, "notes", ()):
            say(f"ttscope: {note}", file=sys.stderr)
        bar.update(task, description=f"{engine.config.model} {policy.label()}")
        with says_what_is_kept(folder), contextlib.closing(engine):
            record(
                loaded,
                policy,
                engine,
                folder,
                concurrency=concurrency,
                timeout_s=timeout_s,
                logprobs=logprobs,
                budget_checkpoints=budgets,
                checkpoint_samples=samples,
                otlp=otlp,
                record_text=record_text,
                price_usd_per_device_hour=price,
                power_hz=power_hz,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        bar.stop()
        print_show([folder], price=None, as_json=as_json, out=out)
        if not as_json:
            for line in checkpoint_lines(read_manifest(folder).checkpoints):
                say(line, file=out)
            say(f"kept in {folder}", file=out)


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Have SIGTERM, by which a service or a job is ended, interrupt as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def says_what_is_kept(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into `Interrupted`, once something of the recording is there."""
    try:
        with sigterm_as_ctrl_c():
            yield
    except KeyboardInterrupt:
        if not (folder / NAME).exists():
            raise
        ended = Recording.open(folder).problems["end"].count()
        kept = counted(ended, "whole problem")
        raise Interrupted(
            f"interrupted: {folder} keeps {kept}, as an incomplete recording"
        ) from None


def run_shown(
    plan: Sequence[EngineJobs], folder: Path, *, again: str, runner: Runner | None = None
) -> list[Outcome]:
    """Run a plan into `folder` and show its progress.

    Raises Interrupted on Ctrl-C and SIGTERM; `again` is what goes on with the rest.
    """
    from profiler.sweep import finished, run_plan

    with progress_bar() as bar:
        listen = sweep_progress(bar, plan, at_a_time=runner is not None)
        try:
            with sigterm_as_ctrl_c():
                return run_plan(plan, folder, on_line=listen, runner=runner)
        except KeyboardInterrupt:
            jobs = [job for group in plan for job in group.jobs]
            kept = sum(finished(folder / job.name) for job in jobs)
            raise Interrupted(
                f"interrupted: {kept} of {len(jobs)} runs are kept in {folder}, and {again} "
                "measures the rest"
            ) from None


def run_sweep(
    plan: Path, output: Path, *, power_hz: float | None, ray: str | None, as_json: bool
) -> None:
    """Run a plan, at `power_hz` where it is given; exits 1 when a job failed, after the others.

    `ray` is the address of a Ray cluster to run it on, None this machine.
    """
    from profiler.sweep import load_plan

    jobs = load_plan(plan, power_hz=power_hz)
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_stdout())  # Ray prints what its nodes report
        runner = None
        if ray is not None:
            from profiler.ray_sweep import RayRunner

            runner = stack.enter_context(contextlib.closing(RayRunner(ray)))
        outcomes = run_shown(jobs, output, again="the same command", runner=runner)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if as_json:
        document = [
            {"recording": str(o.path), "error": o.error, "skipped": o.skipped} for o in outcomes
        ]
        say_json({"outcomes": document})
    else:
        for outcome in outcomes:
            state = "failed" if outcome.error else "kept before" if outcome.skipped else "kept"
            say(f"{state:<12}{outcome.path}")
    if failed:
        raise TtscopeError(
            f"{len(failed)} of {len(outcomes)} runs failed; the first, {failed[0].name}: "
            f"{failed[0].error}"
        )
