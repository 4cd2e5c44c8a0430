"""`ttscope demo`: the whole loop on the bundled reasoners."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from traces.errors import TtscopeError
from traces.plain_text import name_word
from traces.recording.reader import Recording, find_recordings
from traces.schema.advice import Budget
from tui.options import Json, option, takes
from tui.terminal import say_all, tell
from tui.text.commands import own_name
from tui.verbs.advise import Advise, print_advice
from tui.verbs.sweep import run_shown

DEMO = Path(__file__).parents[2] / "profiler" / "demo"
SHIPPED = DEMO / "recordings"
BUDGET = Budget(min_accuracy=0.75, optimise="latency")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Where to, and how far."""

    output: Path | None = option(None, "Where to keep the recordings.", "-o", "--output")
    once: bool = option(False, "Do not open the terminal app at the end.")
    shipped: bool = option(False, "Use the shipped recordings, as where vLLM is absent.")
    as_json: Json = False


@takes(Demo)
def demo(asked: Demo) -> None:
    """Run the whole loop on the bundled reasoners with real vLLM on this machine."""
    # Measure, fit, recommend, then open the app. Where vLLM cannot run, the shipped recordings
    # stand in and one line says why.
    reason = "--shipped was given" if asked.shipped else _vllm_is_missing()
    folder = SHIPPED
    if reason is None:
        folder = asked.output or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
        reason = _measure(folder)
    if reason is not None:
        folder = SHIPPED
        tell(f"these are the shipped recordings ({reason})")
    paths = find_recordings(folder)
    recordings = [each for each in map(Recording.open, paths) if each.complete]
    if not recordings:
        raise TtscopeError(f"{folder}: no complete recording to advise from")
    extra = {"recordings": [str(path) for path in paths]}
    try:
        answer = Advise(recordings=paths, as_json=asked.as_json)
        fitted = print_advice(recordings, BUDGET, answer, extra=extra)
    finally:  # whatever the advice, what was measured is there
        lines = ["", f"recordings in {folder}, opened by:"]
        lines.append(f"{own_name()} tui {name_word(folder)}")
        say_all(lines, file=sys.stderr if asked.as_json else sys.stdout)
    if not (asked.once or asked.as_json) and sys.stdin.isatty() and sys.stdout.isatty():
        from tui.app.app import TtscopeApp

        limits = {"min_accuracy": f"{BUDGET.min_accuracy:g}"}
        TtscopeApp([folder], limits=limits, fitted=fitted, screen="advice").run()


def _vllm_is_missing() -> str | None:
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    return None


def _measure(folder: Path) -> str | None:
    """Run the bundled plan; returns why nothing could be measured, None when something was."""
    from profiler.sweep.plan import load_plan

    again = f"{own_name()} demo -o {name_word(folder)}"
    outcomes = run_shown(load_plan(DEMO / "plan.yaml"), folder, again=again)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(failed) == len(outcomes):
        return failed[0].error
    for outcome in failed:
        tell(f"{outcome.name} failed: {outcome.error}")
    return None
