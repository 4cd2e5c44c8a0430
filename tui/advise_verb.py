"""`ttscope advise`: a budget in, a recommendation out; on request checked by real runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.errors import RecordingError, TtscopeError, UsageError
from traces.recording import Recording, measured
from traces.schema import Budget, EngineConfig, Experiment, Pick, Policy, Recommendation
from tui.read_verbs import open_all, print_document
from tui.terminal_text import say

if TYPE_CHECKING:
    from advisor.evidence import Evidence


def run_advise(
    paths: Sequence[Path],
    given: Mapping[str, Any],
    *,
    seed: int,
    present: Path | None = None,
    plan: Path | None = None,
    models: Path | None = None,
    verify: bool = False,
    output: Path | None = None,
    systems: Sequence[str] = (),
    as_json: bool,
) -> None:
    """Print the recommendation for a budget; `systems` of the prior are offered too."""
    from advisor.budget import is_given, parse_budget

    if not is_given(given):
        raise UsageError(
            "the budget is empty, so nothing can be recommended: set a limit, for example "
            "--min-accuracy 0.75 (or --max-latency, --max-cost, --max-energy, --gpus), or say what "
            "to --optimise"
        )
    budget = parse_budget(given)
    if plan is not None and plan.exists():
        raise UsageError(f"--plan {plan}: is there already; name another file")
    if output is not None and not verify:
        raise UsageError("-o is where --verify keeps its recordings; give both")
    if verify and systems:
        raise UsageError("--verify runs the picks on this machine, not on a --gpu; give one")
    opened = open_all(paths)
    predicted = [each.name for each in opened if each.replay_of is not None]
    recordings = [each for each in measured(opened) if each.complete]
    if predicted:
        say(f"ttscope: left out, being predictions: {', '.join(predicted)}", file=sys.stderr)
    if not recordings:
        raise RecordingError("none of the recordings is complete; run ttscope record to the end")
    today = None if present is None else configuration_of(present)
    print_advice(
        recordings,
        budget,
        seed=seed,
        present=today,
        plan=plan,
        models=models,
        verify=(output or Path("runs") / "verify") if verify else None,
        systems=systems,
        as_json=as_json,
    )


def configuration_of(path: Path) -> tuple[EngineConfig, Policy]:
    """Return the engine and policy of what `--present` names.

    Raises RecordingError where that is no recording, UsageError where it holds not one of each.
    """
    manifest = Recording.open(path).manifest
    if len(manifest.engines) != 1 or len(manifest.policies) != 1:
        raise UsageError(
            f"--present {path}: holds several configurations; name one of a single run"
        )
    (engine,), (policy,) = manifest.engines.values(), manifest.policies.values()
    return engine, policy


def print_advice(
    recordings: Sequence[Recording],
    budget: Budget,
    *,
    seed: int = 0,
    present: tuple[EngineConfig, Policy] | None = None,
    plan: Path | None = None,
    models: Path | None = None,
    verify: Path | None = None,
    systems: Sequence[str] = (),
    as_json: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Fit the models, choose, and print; `extra` goes into the JSON document."""
    from advisor.advise import Advisor
    from tui.advice_text import advice_json, advice_lines, nearest_line
    from tui.commands import here, own_name
    from tui.progress import progress_bar

    with progress_bar() as bar:
        task = bar.add_task("learning from the recordings", total=None)
        advisor = Advisor.fit(recordings, seed=seed, saved=models, gpus=systems)
        for note in advisor.evidence.lost:
            say(f"ttscope: {note}", file=sys.stderr)

        def heard(done: int, total: int) -> None:
            bar.update(task, description="replayed", completed=done, total=total)

        answer = advisor.recommend(budget, **here(), present=present, progress=heard)
    if plan is not None:
        write_plan(plan, answer, advisor.evidence)
    document = advice_json(answer) | dict(extra or {})
    if not as_json:
        for line in advice_lines(answer):
            say(line)
        if plan is not None:
            say()
            say(f"plan in {plan}, measured by:")
            say(f"{own_name()} sweep {shlex.quote(str(plan))} -o runs")
    if verify is not None and answer.system_optimal is not None:
        from tui.verify_verb import verify_picks

        document["verified"] = verify_picks(answer, advisor.evidence, verify, as_json=as_json)
    if as_json:
        print_document(document)
    if answer.system_optimal is None:
        raise TtscopeError(f"nothing fits the budget; {nearest_line(answer)}")


def write_plan(path: Path, answer: Recommendation, evidence: Evidence) -> None:
    """Write what to measure next, or the pick where nothing else is worth it.

    Raises TtscopeError where nothing fits, UsageError where the file cannot be written.
    """
    import yaml

    from advisor.experiments import sweep_plan

    chosen = answer.experiments
    if not chosen and answer.system_optimal is not None:
        chosen = (experiment_of(answer.system_optimal, "the pick"),)
    if not chosen:
        why = "nothing fits" if answer.budget.required else "no limit is set"
        raise TtscopeError(f"--plan: {why}, so there is nothing to measure for it")
    workload, (concurrency, _) = evidence.workload, evidence.load
    document = sweep_plan(
        chosen,
        workload=None if workload is None else workload.name,
        problems=None if workload is None else workload.problems,
        seed=None if workload is None else workload.seed,
        concurrency=concurrency,
    )
    known = evidence.gpus
    elsewhere = [
        f"# on {engine.gpu}: {engine.model} {engine.label()}, {each.policy.label()}\n"
        for each in chosen
        if (engine := each.engine).gpu not in known
    ]
    try:
        path.write_text("".join(elsewhere) + yaml.safe_dump(document, sort_keys=False))
    except OSError as error:
        raise UsageError(f"--plan {path}: cannot be written ({error.strerror})") from None


def experiment_of(pick: Pick, reason: str) -> Experiment:
    """Return the run of a pick."""
    return Experiment(
        engine=pick.engine, policy=pick.policy, reason=reason, regret=0.0, regret_after=0.0
    )
