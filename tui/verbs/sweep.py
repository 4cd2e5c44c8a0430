"""`ttscope sweep`: several configurations, one after the other, here or on Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from traces.errors import Interrupted, TtscopeError
from tui.options import Json, argument, option, takes
from tui.terminal import say, say_all, say_json, tell
from tui.text.commands import next_lines
from tui.text.words import strange_questions
from tui.verbs.interrupted import signals_as_ctrl_c
from tui.verbs.progress import own_stdout, progress_bar, sweep_progress

if TYPE_CHECKING:
    from profiler.sweep.plan import EngineJobs, JobOutcome, Runner


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which plan, where to, and with what."""

    plan: Path = argument("A YAML plan, see docs/record.md.")
    output: Path = option(Path("runs"), "Folder of recordings.", "-o", "--output")
    power_hz: float | None = option(None, "Readings of power a second, 10 to 50, for all runs.")
    ray: str | None = option(
        None, "Run engines on this Ray cluster: auto or host:port.", metavar="ADDRESS"
    )
    as_json: Json = False


@takes(Sweep)
def sweep(asked: Sweep) -> None:
    """Measure a list or grid of configurations, each once."""
    # A job that fails ends no other; the exit code is 1 then.
    from profiler.sweep.plan import load_plan

    jobs = load_plan(asked.plan, power_hz=asked.power_hz)
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_stdout())  # Ray prints what its nodes report
        runner = None
        if asked.ray is not None:
            from profiler.sweep.ray import RayRunner

            runner = stack.enter_context(contextlib.closing(RayRunner(asked.ray)))
        outcomes = run_shown(jobs, asked.output, again="the same command", runner=runner)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if asked.as_json:
        document = [
            {"recording": str(o.path), "error": o.error, "skipped": o.skipped} for o in outcomes
        ]
        say_json({"outcomes": document})
    else:
        for outcome in outcomes:
            state = "failed" if outcome.error else "kept before" if outcome.skipped else "kept"
            say(f"{state:<12}{outcome.path}")
        if len(failed) < len(outcomes):
            say_all(next_lines("tui", asked.output, "--screen", "advice"))
    if failed:
        raise TtscopeError(
            f"{len(failed)} of {len(outcomes)} runs failed. The first, {failed[0].name}: "
            f"{failed[0].error}"
        )


def run_shown(
    plan: Sequence[EngineJobs], folder: Path, *, again: str, runner: Runner | None = None
) -> list[JobOutcome]:
    """Run a plan into `folder` and show its progress.

    Raises Interrupted on Ctrl-C, SIGTERM and SIGHUP; `again` is what goes on with the rest.
    """
    from profiler.sweep.plan import finished, run_plan

    asked = {(group.engine.model, job.workload): None for group in plan for job in group.jobs}
    for warning in filter(None, (strange_questions(*each) for each in asked)):
        tell(warning)
    with progress_bar() as bar:
        listen = sweep_progress(bar, plan, at_a_time=runner is not None)
        try:
            with signals_as_ctrl_c():
                return run_plan(plan, folder, on_line=listen, runner=runner)
        except KeyboardInterrupt:
            jobs = [job for group in plan for job in group.jobs]
            kept = sum(finished(folder / job.name) for job in jobs)
            raise Interrupted(
                f"interrupted: {kept} of {len(jobs)} runs are kept in {folder}, and {again} "
                "measures the rest"
            ) from None
