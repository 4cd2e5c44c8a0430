"""The verbs that run engines: record and sweep."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from profiler.launch import EngineOptions
from traces.errors import TtscopeError, UsageError
from traces.manifest import CheckpointCost, read_manifest
from traces.schema import Policy, Speculative

stderr = Console(stderr=True)
_STATES = {"starting": "starting vLLM for", "lost": "its worker was lost:"}  # of a job


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show progress on stderr; nothing where stderr is not a terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        yield bar


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
        task = bar.add_task("starting the engine", total=len(loaded.problems))
        engine = start_engine(
            options,
            thinking_budget=policy.thinking_token_budget is not None,
            kernels=kernels,
        )
        if options.endpoint is not None and options.tensor_parallel_size is None:
            stderr.print(
                "the server does not tell its tensor_parallel_size; taken as 1 "
                "(say it with --tensor-parallel-size)",
                highlight=False,
            )
        for note in getattr(engine, "notes", ()):
            stderr.print(note, highlight=False)
        bar.update(task, description=f"{engine.config.model} {policy.label()}")
        try:
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
        finally:
            engine.close()
        bar.stop()
        print_show([folder], price=None, as_json=as_json, out=out)
        if not as_json:
            for line in checkpoint_lines(read_manifest(folder).checkpoints):
                print(line, file=out)
            print(f"kept in {folder}", file=out)


def run_sweep(
    plan: Path, output: Path, *, power_hz: float | None, ray: str | None, as_json: bool
) -> None:
    """Run a plan, at `power_hz` where it is given; exits 1 when a job failed, after the others.

    `ray` is the address of a Ray cluster to run it on, None this machine.
    """
    from profiler.sweep import load_plan, run_plan

    jobs = load_plan(plan, power_hz=power_hz)
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_stdout())  # Ray prints what its nodes report
        runner = None
        if ray is not None:
            from profiler.ray_sweep import RayRunner

            runner = stack.enter_context(contextlib.closing(RayRunner(ray)))
        bar = stack.enter_context(progress_bar())
        listen = sweep_progress(bar, jobs, at_a_time=runner is not None)
        outcomes = run_plan(jobs, output, on_line=listen, runner=runner)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if as_json:
        document = [
            {"recording": str(o.path), "error": o.error, "skipped": o.skipped} for o in outcomes
        ]
        print(json.dumps({"outcomes": document}, indent=1))
    else:
        for outcome in outcomes:
            state = "failed" if outcome.error else "kept before" if outcome.skipped else "kept"
            print(f"{state:<12}{outcome.path}")
    if failed:
        raise TtscopeError(
            f"{len(failed)} of {len(outcomes)} runs failed; the first, {failed[0].name}: "
            f"{failed[0].error}"
        )


def sweep_progress(bar: Progress, plan: Any, *, at_a_time: bool = False) -> Any:
    """Return a listener for `run_plan` that says which run is going on, or runs `at_a_time`."""
    total = sum(len(group.jobs) for group in plan)
    whole = bar.add_task("runs", total=total)
    state = {"done": 0}
    bars: dict[str, TaskID] = {}
    current = None if at_a_time else bar.add_task("starting", total=1)

    def shown(job: str) -> TaskID:
        if current is not None:
            return current
        if job not in bars:
            bars[job] = bar.add_task(job, total=1)
        return bars[job]

    def listen(line: Mapping[str, Any]) -> None:
        if "finished" in line or line.get("state") == "skipped":
            state["done"] += 1
            bar.update(whole, completed=state["done"])
            if (done := bars.pop(line.get("finished", ""), None)) is not None:
                bar.remove_task(done)
        elif what := _STATES.get(line.get("state", "")):
            bar.update(shown(line["job"]), description=f"{what} {line['job']}", completed=0)
        elif "total" in line:
            bar.update(
                shown(line["job"]),
                description=line["job"],
                completed=line["done"],
                total=line["total"],
            )

    return listen
