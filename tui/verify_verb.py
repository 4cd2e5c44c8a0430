"""`ttscope advise --verify`: the picks run for real, predicted beside measured."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from traces.errors import TtscopeError, UsageError
from traces.recording import Recording
from traces.schema import Estimate, Pick, Recommendation
from traces.summary import Run, summarise
from tui.advice_text import COMPARED, comparison_lines
from tui.advise_verb import experiment_of
from tui.run_verbs import run_shown
from tui.terminal_text import say


def verify_picks(
    answer: Recommendation, evidence: Any, folder: Path, *, as_json: bool
) -> list[dict[str, Any]]:
    """Run the system-optimal and the compute-optimal pick, print and return the comparison.

    Raises UsageError for picks that cannot be run here, TtscopeError when a run fails.
    """
    import yaml

    from advisor.experiments import sweep_plan
    from advisor.ran import measured_estimates
    from profiler.sweep import load_plan

    named = {"system-optimal": answer.system_optimal, "compute-optimal": answer.compute_optimal}
    picks = {name: pick for name, pick in named.items() if pick is not None}
    for name, pick in picks.items():
        _check(name, pick)
    workload, (concurrency, rate) = evidence.workload, evidence.load
    if rate is not None or answer.budget.rate_per_s is not None:
        raise UsageError("--verify runs so many problems in flight; it sends none at a --rate")
    document = sweep_plan(
        [experiment_of(pick, name) for name, pick in picks.items()],
        workload=None if workload is None else workload.name,
        problems=None if workload is None else workload.problems,
        seed=None if workload is None else workload.seed,
        concurrency=concurrency,
    )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(document, file)
        file.flush()
        plan = load_plan(Path(file.name))
    outcomes = run_shown(plan, folder, again="the same command")
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        raise TtscopeError(f"--verify: {failed[0].name} failed: {failed[0].error}")
    runs = [run for outcome in outcomes for run in summarise(Recording.open(outcome.path))]
    told = []
    for name, pick in picks.items():
        run = next(run for run in runs if run.policy == pick.policy and _same_engine(run, pick))
        measured = measured_estimates(run)
        told.append(
            {
                "pick": name,
                "recording": run.recording,
                "metrics": {
                    metric: {
                        "predicted": _json(pick.estimates.get(metric)),
                        "measured": _json(measured[metric]),
                    }
                    for metric in COMPARED
                },
            }
        )
        if not as_json:
            for line in comparison_lines(name, pick, measured):
                say(line)
    if not as_json:
        say(f"ttscope: recordings in {folder}", file=sys.stderr)
    return told


def _check(name: str, pick: Pick) -> None:
    if pick.engine.mode == "server":
        raise UsageError(
            f"--verify: the {name} engine was a server; start it as the command says and "
            "record it with --endpoint"
        )
    if pick.engine.data_parallel_size > 1:
        raise UsageError(
            f"--verify: the {name} pick has {pick.engine.data_parallel_size} replicas, which are "
            "not run here; serve it and record it with --endpoint"
        )


def _same_engine(run: Run, pick: Pick) -> bool:
    names = ("model", "max_num_seqs", "tensor_parallel_size", "speculative")
    return all(getattr(run.engine, name) == getattr(pick.engine, name) for name in names)


def _json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_json()
