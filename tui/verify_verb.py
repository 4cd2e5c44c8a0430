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
from tui.advice_text import ROWS, estimate_cell
from tui.advise_verb import experiment_of
from tui.run_verbs import run_shown

COMPARED = ("accuracy", "latency_s", "latency_p95_s", "device_s", "energy_j", "tokens")


def verify_picks(
    answer: Recommendation, evidence: Any, folder: Path, *, as_json: bool
) -> list[dict[str, Any]]:
    """Run the system-optimal and the compute-optimal pick, print and return the comparison.

    Raises UsageError for picks that cannot be run here, TtscopeError when a run fails.
    """
    import yaml

    from advisor.experiments import sweep_plan
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
        measured = _measured(run)
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
                print(line)
    if not as_json:
        print(f"ttscope: recordings in {folder}", file=sys.stderr)
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


def _measured(run: Run) -> dict[str, Estimate | None]:
    return {
        "accuracy": run.accuracy,
        "latency_s": run.latency_s["mean"],
        "latency_p95_s": run.latency_s["p95"],
        "device_s": run.device_s_per_problem,
        "energy_j": run.energy_j.per_problem,
        "tokens": run.tokens_per_problem,
    }


def comparison_lines(name: str, pick: Pick, measured: dict[str, Estimate | None]) -> list[str]:
    """Return a pick's numbers as predicted and as measured, and whether these lie inside."""
    lines = ["", f"{name:<16}{'predicted':<28}{'measured':<26}within"]
    for metric in COMPARED:
        label, unit = ROWS[metric]
        predicted, found = pick.estimates.get(metric), measured[metric]
        if predicted is None and found is None:
            continue
        inside = "-"
        if predicted is not None and found is not None and predicted.low is not None:
            inside = "yes" if predicted.low <= found.value <= (predicted.high or 0.0) else "no"
        cells = [estimate_cell(predicted, unit), estimate_cell(found, unit)]
        lines.append(f"{label:<16}{cells[0]:<28}{cells[1]:<26}{inside}")
    return lines


def _json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_json()
