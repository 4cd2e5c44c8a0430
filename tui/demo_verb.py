"""`ttscope demo`: the whole loop on the bundled reasoners."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from traces.errors import TtscopeError
from traces.recording import Recording, find_recordings
from traces.schema import Budget
from tui.advise_verb import print_advice
from tui.run_verbs import progress_bar, stderr, sweep_progress

DEMO = Path(__file__).parent.parent / "profiler" / "demo"
SHIPPED = DEMO / "recordings"
BUDGET = Budget(min_accuracy=0.75, optimise="latency")


def run_demo(output: Path | None, *, once: bool, shipped: bool, as_json: bool) -> None:
    """Measure, fit, recommend; then open the terminal app unless `once` or no terminal.

    Where vLLM cannot run, the shipped recordings stand in and one line says why.
    """
    reason = "--shipped was given" if shipped else _vllm_is_missing()
    folder = SHIPPED
    if reason is None:
        folder = output or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
        reason = _measure(folder)
    if reason is not None:
        folder = SHIPPED
        stderr.print(
            f"no measurement here ({reason}); going on with the recordings that ttscope ships",
            highlight=False,
            soft_wrap=True,
        )
    paths = find_recordings(folder)
    recordings = [each for each in map(Recording.open, paths) if each.complete]
    if not recordings:
        raise TtscopeError(f"{folder}: no complete recording to advise from")
    extra = {"recordings": [str(path) for path in paths]}
    print_advice(recordings, BUDGET, as_json=as_json, extra=extra)
    if not as_json:
        print(f"\nrecordings in {folder}; ttscope tui {folder} opens them")
    if not once and sys.stdin.isatty() and sys.stdout.isatty():
        from tui.app import TtscopeApp

        TtscopeApp([folder], limits={"min_accuracy": str(BUDGET.min_accuracy)}).run()


def _vllm_is_missing() -> str | None:
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    return None


def _measure(folder: Path) -> str | None:
    """Run the bundled plan; returns why nothing could be measured, None when something was."""
    from profiler.sweep import load_plan, run_plan

    plan = load_plan(DEMO / "plan.yaml")
    with progress_bar() as bar:
        outcomes = run_plan(plan, folder, on_line=sweep_progress(bar, plan))
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(failed) == len(outcomes):
        return failed[0].error
    for outcome in failed:
        stderr.print(f"{outcome.name} failed: {outcome.error}", highlight=False, soft_wrap=True)
    return None
