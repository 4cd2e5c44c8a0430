"""Run a workload under a policy on an engine, watched, and keep what happened as a recording.

`record` checks what is asked for, starts the probes and the OpenTelemetry providers, has the run
go (profiler/runs/loop.py), drains the engine's step probe into the recording, and afterwards has
answers forced at budgets (profiler/runs/checkpoints.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from math import inf
from pathlib import Path

import polars as pl

from profiler.engines.interface import Engine
from profiler.probes.power import HZ, check_hz, watch_power
from profiler.runs.checkpoints import Checkpoints, check_budgets
from profiler.runs.lookup import NgramRecorder
from profiler.runs.loop import RunLoop
from profiler.runs.provenance import provenance
from profiler.runs.telemetry import Telemetry
from profiler.workload.lengths import check_lengths
from profiler.workload.problems import Workload
from profiler.workload.scorers import Scorer, ScoringThreads, scorer_of
from traces.clock import ClockWatch
from traces.errors import EngineError, UsageError
from traces.recording.manifest import Manifest
from traces.recording.reader import Recording
from traces.recording.spans import RecordingSpanProcessor
from traces.recording.writer import RecordingWriter, read_clocks
from traces.schema.engine import ModelFacts
from traces.schema.tts.parameters import complete, needs_of
from traces.schema.tts.policy import Policy
from traces.schema.tts.routes import EFFORTS

Progress = Callable[[int, int], None]
Probe = Callable[[RecordingWriter], AbstractContextManager[None]]


def record(
    workload: Workload,
    policy: Policy,
    engine: Engine,
    folder: str | Path,
    *,
    concurrency: int = 8,
    timeout_s: float | None = None,
    scorer: Scorer | None = None,
    logprobs: bool = False,
    budget_checkpoints: tuple[int, ...] = (),
    checkpoint_samples: int = 8,
    otlp: str | None = None,
    record_text: bool = False,
    price_usd_per_device_hour: float | None = None,
    power_hz: float = HZ,
    progress: Progress | None = None,
    probes: Sequence[Probe] = (),
    stop_after_s: float | None = None,
    arrivals_s: Sequence[float] | None = None,
) -> Path:
    """Run all problems, `concurrency` at a time, and return the recording's folder.

    With `arrivals_s` [problems], ascending, they come at these times instead, and the recording
    tells their rate. A problem that takes longer than `timeout_s` is answered by the votes there
    are, and none begins after `stop_after_s`. `scorer` is what the policy's parameter `scorer`
    names, where that is no URL. `logprobs` measures every sample's mean log-probability and
    confidence, whatever the policy. After the run the first `checkpoint_samples` samples of each
    problem are made to answer at `budget_checkpoints` tokens of thought. Texts and token ids are
    kept for generated workloads or with `record_text`. The devices' power is read `power_hz` times
    a second, 10 to 50. `probes` write into the recording too, while the run goes on.

    When the engine fails or the user interrupts, the recording is closed as incomplete and the
    error goes on. Raises UsageError for a policy that cannot be run, RecordingError when `folder`
    is taken.
    """
    # Refuse before anything is written.
    _check_limits(policy, concurrency, timeout_s, len(workload.problems), arrivals_s)
    check_hz(power_hz)
    policy = complete(policy)
    _check_effort(policy, workload, engine)
    needs, checkpoints = needs_of(policy, logprobs=logprobs), None
    check_lengths(
        workload.given_lengths(),
        policy,
        checkpoints=bool(budget_checkpoints),
        max_model_len=engine.config.max_model_len,
    )
    if budget_checkpoints:
        check_budgets(budget_checkpoints, checkpoint_samples, policy)
        checkpoints = Checkpoints(
            budgets=tuple(sorted(budget_checkpoints)),
            samples=min(checkpoint_samples, policy.n),
            logprobs=needs.top_logprobs is not None,
        )
    chosen = scorer_of(policy, scorer)
    keep_text = record_text or workload.generated
    manifest = Manifest(
        provenance=provenance(engine.config),
        clock_start=read_clocks(),
        engines={engine.config.key(): engine.config},
        policies={policy.key(): policy},
        models=_models(engine),
        workload=workload.facts(engine.chat_template if workload.chat else None),
        concurrency=concurrency if arrivals_s is None else None,
        rate_per_s=_rate(arrivals_s or ()),
        text_recorded=keep_text,
        price_usd_per_device_hour=price_usd_per_device_hour,
    )
    report = progress or (lambda done, total: None)
    with RecordingWriter(folder, manifest) as writer:
        writer.add_source("events", ClockWatch().drain)
        with watch_power(engine.config, writer, hz=power_hz), _all_of(probes, writer):
            recorder = RecordingSpanProcessor(writer.append)
            resource = {"tts.model": engine.config.model}
            telemetry = Telemetry(recorder, resource=resource, otlp=otlp)
            what_if = NgramRecorder(engine.config, policy.key())
            writer.add_source("drafts", what_if.drain)
            scoring = None if chosen is None else ScoringThreads(chosen)
            try:
                engine.prepare(
                    top_logprobs=needs.top_logprobs,
                    thinking_budget=policy.thinking_token_budget is not None,
                )
                if not workload.chat and policy.max_tokens is None:
                    free = (each for each in workload.problems if each.output_tokens is None)
                    engine.foresee(each.prompt for each in free if isinstance(each.prompt, str))
                run = RunLoop(
                    workload=workload,
                    policy=policy,
                    engine=engine,
                    telemetry=telemetry,
                    recorder=recorder,
                    what_if=what_if,
                    needs=needs,
                    keep_text=keep_text,
                    timeout_s=timeout_s,
                    scoring=scoring,
                    checkpoints=checkpoints,
                    stop_after_s=stop_after_s,
                    arrivals_s=arrivals_s,
                )
                with _watched(engine, writer, telemetry):
                    run.go(concurrency, report)
            finally:
                if scoring is not None:
                    scoring.close()
                telemetry.close(hurry=isinstance(sys.exception(), KeyboardInterrupt))
                what_if.finish()
                for note in engine.notes:
                    writer.event("note", note, engine=engine.config.key())
        if checkpoints is not None:
            cost = checkpoints.run(
                engine, workload, policy, writer.append, keep_text=keep_text, progress=report
            )
            writer.update(checkpoints=cost)
            if checkpoints.skipped:
                skipped = (
                    f"samples whose token ids the engine does not return: {checkpoints.skipped:,}"
                )
                writer.event("note", f"no forced answers: {skipped}", engine=engine.config.key())
        for note in workload.notes():
            writer.event("note", note, engine=engine.config.key())
        return writer.path


def check_answered(folder: Path, engine: Engine) -> None:
    """Raise EngineError where every sample of a run failed, with what the engine said."""
    errors = errors_of_all(folder)
    if not errors:
        return
    said = f"{errors[0]}, {engine.refusal}" if engine.refusal else errors[0]
    raise EngineError(
        f"all {len(errors):,} samples failed ({said}). {folder} keeps what was recorded"
    )


def errors_of_all(folder: Path) -> list[str]:
    """Return the errors of a recording's samples where every one failed, else none."""
    errors = Recording.open(folder).samples["error"].to_list()
    return [] if None in errors else errors


def _rate(arrivals_s: Sequence[float]) -> float | None:
    """Return how many problems arrive a second, None where they are too few to say."""
    if len(arrivals_s) < 2 or arrivals_s[-1] == arrivals_s[0]:
        return None
    return (len(arrivals_s) - 1) / (arrivals_s[-1] - arrivals_s[0])


def _models(engine: Engine) -> dict[str, ModelFacts]:
    """Return the facts of the model and of the one that drafts, where they are known."""
    models = {} if engine.model is None else {engine.config.model: engine.model}
    draft = engine.draft_model
    return models if draft is None else models | {draft.name: draft}


@contextmanager
def _all_of(probes: Sequence[Probe], writer: RecordingWriter) -> Iterator[None]:
    with ExitStack() as stack:
        for probe in probes:
            stack.enter_context(probe(writer))
        yield


def _check_limits(
    policy: Policy,
    concurrency: int,
    timeout_s: float | None,
    problems: int,
    arrivals_s: Sequence[float] | None,
) -> None:
    if arrivals_s is not None and len(arrivals_s) != problems:
        raise UsageError(f"{len(arrivals_s):,} arrivals for {problems:,} problems")
    if concurrency < 1:
        raise UsageError(f"--concurrency must be at least 1, not {concurrency}")
    if timeout_s is not None and not timeout_s > 0:
        raise UsageError(f"--timeout must be above 0, not {timeout_s}")
    if policy.temperature is None or policy.top_p is None:
        raise UsageError("policy: temperature and top_p must be numbers")


def _check_effort(policy: Policy, workload: Workload, engine: Engine) -> None:
    """Refuse an effort that would change nothing: it acts through the chat template alone."""
    by_class = policy.efforts or {"": policy.reasoning_effort}
    efforts = {effort for effort in by_class.values() if effort is not None}
    if efforts and not workload.chat:
        raise UsageError("reasoning_effort needs the chat template. Leave out --raw-prompts")
    template = engine.chat_template
    for effort in sorted(efforts, key=EFFORTS.index):
        reads = ["reasoning_effort"] + ["enable_thinking"] * (effort == "none")
        if template is not None and not any(name in template for name in reads):
            raise UsageError(
                f"{engine.config.model}: its chat template has no {' or '.join(reads)}, so "
                f"reasoning_effort {effort} would change nothing. Leave it out"
            )


@contextmanager
def _watched(engine: Engine, writer: RecordingWriter, telemetry: Telemetry) -> Iterator[None]:
    """Have an engine's steps and profiler windows, where it has them, come into the recording.

    What runs after the block is no part of the timed run, and its steps are not kept.
    """
    steps, kernels, kept = engine.steps, engine.kernels, inf

    def drain() -> pl.DataFrame:
        assert steps is not None
        rows = steps.drain().filter(pl.col("step") < kept)
        telemetry.observe_steps(rows)
        return rows

    if steps is not None:
        steps.reset(engine.config.key())
        writer.add_source("steps", drain)
    if kernels is not None:
        kernels.reset()
        writer.add_source("kernels", kernels.drain)
        writer.add_source("events", kernels.events)
    try:
        yield
    finally:
        if steps is not None:
            kept = steps.step
            writer.update(probe_cost_us=steps.cost_us)
            if steps.dropped:
                writer.dropped("steps", steps.dropped)
        if kernels is not None:
            kernels.finish()
            writer.at_close(kernel_windows_cost=lambda: kernels.cost_share)
        for source in (steps, kernels):
            if source is not None and source.failure:
                writer.event("drop", source.failure)
