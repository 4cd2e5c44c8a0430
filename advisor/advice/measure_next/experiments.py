"""What to measure next: the runs after which the pick is expected to lose least.

What the pick loses against a joint draw's best candidate is its regret there, as a share of what is
optimised (all of it where it breaks a limit). A run of a candidate shows its engine's step time but
for the run-to-run spread, and its accuracy as well as its samples do now. In draws in which both
come out alike the best candidate is chosen. What that loses is the regret after the run (expected
value of sample information; Raiffa and Schlaifer 1961). Half of the draws choose, the others state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advisor.advice.feasible import ReplayedCheck
from advisor.evidence.measured import Under
from advisor.search.replayed import ReplayedCandidate
from traces.errors import TtscopeError, UsageError
from traces.schema.advice import Experiment, Pick, Recommendation
from traces.schema.engine import in_words
from traces.schema.tts.policy import AS_SENT
from traces.statistics import ROUNDING, Bools, Floats, Ints, largest, tied
from traces.summary.comparison import RUN_TO_RUN

if TYPE_CHECKING:
    from advisor.advice.measure_next.forward_shapes import Forwards
    from advisor.evidence.gather import Evidence
    from traces.recording.reader import Recording


TRIED = 16  # candidates that a run of is considered
BINS = 3  # groups of draws by step time, and by accuracy
MOST = 3  # runs proposed
WORTH = 0.05  # share of the regret that a run must save
LEAST = 0.001  # of regret that it must save, as it is shown to a tenth of a percent
PLANNED = (  # fields of an engine in a plan
    "model", "dtype", "max_model_len", "tensor_parallel_size", "max_num_seqs",
    "max_num_batched_tokens", "block_size", "gpu_memory_utilization", "enforce_eager",
)  # fmt: skip


def experiments(check: ReplayedCheck, system: int, *, load: Under, seed: int) -> list[Experiment]:
    """Return the runs that save most of the expected regret, the best first; none may be worth it.

    Of runs of the same law or samples the best is proposed. What was run under the `load` of the
    answer is no news, nor with other limits where its steps are like those recorded.
    """
    rows, regret = regrets(check, system)
    choosing = check.metrics.choosing
    before = float(regret[0, ~choosing].mean())
    worth = []
    for row in rows[:TRIED]:
        if _is_known(check, check.metrics.replayed[row], load):
            continue
        after = _told(regret, _learned(check, row, seed), choosing)
        if before - after > max(WORTH * before, LEAST):
            worth.append((after, int(row)))
    chosen, seen = [], set[object]()
    afters = tied(np.array([after for after, _ in worth])).tolist()
    for after, row in sorted(zip(afters, [row for _, row in worth], strict=True)):
        replayed = check.metrics.replayed[row]
        candidate, names = replayed.candidate, {id(replayed.law), *replayed.candidate.pool.sources}
        if names <= seen:
            continue
        seen |= names
        named = in_words(candidate.engine, candidate.policy, prior=candidate.prior, limits=False)
        reason = f"there may be a better one: {named}"
        if row == system:
            ran = candidate.recorded
            reason = "the pick was run under another load" if ran else "the pick was never run"
        chosen.append(
            Experiment(
                engine=candidate.engine,
                policy=candidate.policy,
                reason=reason,
                regret=before,
                regret_after=after,
            )
        )
    return chosen[:MOST]


def _is_known(check: ReplayedCheck, replayed: ReplayedCandidate, load: Under) -> bool:
    """Return whether a run of a candidate would show nothing that runs have not shown."""
    made, candidate = check.metrics.space.made, replayed.candidate
    if not replayed.extrapolated and made.has_sibling(candidate.engine, candidate.policy):
        return True
    return made.has_under(candidate.engine, candidate.policy, load)


def missed(check: ReplayedCheck, system: int) -> float:
    """Return what of the pick's expected regret is that it breaks a limit, all of it in a draw."""
    _, regret = regrets(check, system)
    met = np.all([*check.met_by_all.values()], axis=0)[system] if check.limits else True
    return float((regret[0] * ~met)[~check.metrics.choosing].mean())


def after_speed(check: ReplayedCheck, row: int, regret: Floats, seed: int) -> float:
    """Return the expected regret once a candidate's step times are known, but for a run's spread.

    `regret` is that of `regrets`.
    """
    speed = _speed(check, row, np.random.default_rng([seed, 7, int(check.sequence[row])]))
    return _told(regret, _bins(speed), check.metrics.choosing)


def regrets(check: ReplayedCheck, system: int) -> tuple[Ints, Floats]:
    """Return the candidates that may be best, the pick first, and [them, draws] their regrets.

    What is lost by the luck of a run, no other choice and no run saves.
    """
    cost = check.cost_draws()
    joint = np.all([*check.met_by_all.values(), np.isfinite(cost)], axis=0) & check.asked[:, None]
    able = np.where(joint, cost, np.inf)
    best = able.min(axis=0)
    has_best = np.isfinite(best)
    scale = np.maximum(np.abs(best), 1e-12)
    with np.errstate(invalid="ignore"):
        regret = np.where(joint, (cost - best) / scale, 1.0)
    regret = np.where(has_best, np.minimum(regret, 1.0), 0.0)
    # Best somewhere in the draws, each once: equal rows show the same.
    wins = (able <= best + ROUNDING * scale) & has_best
    rows, seen = [system], {regret[system].tobytes()}
    for row in np.lexsort((check.sequence, tied(regret.mean(axis=1)))):
        name = regret[row].tobytes()
        if name not in seen and wins[row].any():
            rows.append(int(row))
            seen.add(name)
    chosen = np.array(rows, dtype=np.int64)
    return chosen, regret[chosen]


def _learned(check: ReplayedCheck, row: int, seed: int) -> Ints:
    """Return the group of each draw that a run of a candidate would tell apart."""
    rng = np.random.default_rng([seed, 6, int(check.sequence[row])])
    speed = _speed(check, row, rng)
    right = check.metrics.draws("accuracy")[row]
    right = right + rng.normal(0, right.std() + 1e-12, len(right))
    return _bins(speed) * BINS + _bins(right)


def _speed(check: ReplayedCheck, row: int, rng: np.random.Generator) -> Floats:
    speed = np.log(check.metrics.factors[row])
    return np.asarray(speed + rng.normal(0, RUN_TO_RUN, len(speed)))


def _bins(values: Floats) -> Ints:
    edges = np.quantile(values, np.arange(1, BINS) / BINS)
    return np.asarray(np.searchsorted(edges, values), dtype=np.int64)


def _told(regret: Floats, groups: Ints, choosing: Bools) -> float:
    """Return the pick's mean regret less what telling the groups apart saves.

    With nothing told the best of the choosing half is not always the pick, which is sure of its
    limits. What another choice saves without a run is no merit of the run.
    """
    before = float(regret[0, ~choosing].mean())
    saved = _after(regret, np.zeros_like(groups), choosing) - _after(regret, groups, choosing)
    return before - min(max(saved, 0.0), before)


def _after(regret: Floats, groups: Ints, choosing: Bools) -> float:
    """Return the mean regret of the stating draws when each group's best is taken."""
    total, count = 0.0, 0
    for group in np.unique(groups):
        choose, state = choosing & (groups == group), ~choosing & (groups == group)
        if not choose.any() or not state.any():
            continue
        best = int(largest(-regret[:, choose].mean(axis=1)))
        total += float(regret[best, state].sum())
        count += int(state.sum())
    return total / max(count, 1)


def sweep_plan(chosen: Sequence[Experiment], evidence: Evidence) -> dict[str, Any]:
    """Return runs under the recorded load as the document of a plan for `ttscope sweep`."""
    workload = evidence.workload
    document = {
        "workload": evidence.posable or "demo",
        "problems": None if workload is None else workload.problems,
        "seed": None if workload is None else workload.seed,
        "concurrency": evidence.load[0] or 1,
    }
    engines: dict[str, dict[str, Any]] = {}
    for run in chosen:
        settings = _given({name: getattr(run.engine, name) for name in PLANNED})
        if run.engine.speculative is not None:
            settings["speculative"] = _given(run.engine.speculative.to_json())
        policy = _given(run.policy.to_json() | {"rule": None}) | dict(run.policy.rule)
        if run.policy.temperature is None:  # outcomes do not tell it, and 0 is another policy
            policy["temperature"] = None
        name = repr(sorted(settings.items(), key=str))
        policies = engines.setdefault(name, settings | {"policies": []})["policies"]
        if policy not in policies:
            policies.append(policy)
    return _given(document) | {"engines": list(engines.values())}


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def write_plan(
    path: Path,
    answer: Recommendation,
    evidence: Evidence,
    recordings: Sequence[Recording] = (),
) -> Forwards:
    """Write what to measure next, or the pick where nothing else is worth it.

    Beside it, for each model and size on a GPU that was not recorded, shapes of steps for `vllm
    bench forward`, those of the `recordings` where they have any. Return these files and the
    commands that measure them. Raises TtscopeError where nothing fits, UsageError where a file
    cannot be written.
    """
    import yaml

    from advisor.advice.measure_next.forward_shapes import write_forwards

    chosen = answer.experiments
    if not chosen and answer.system_optimal is not None:
        chosen = (experiment_of(answer.system_optimal, "the pick"),)
    if not chosen:
        why = "nothing fits" if answer.budget.required else "no limit is set"
        raise TtscopeError(f"--plan: {why}, so there is nothing to measure for it")
    if all(run.policy == AS_SENT for run in chosen):
        raise UsageError("--plan: traffic that was only watched has no policy that a plan can run")
    if any(run.engine.shares_experts for run in chosen):
        raise UsageError(
            "--plan: ttscope sweep starts one data-parallel rank, and those of this mixture share "
            "its experts. Serve it and record it with --endpoint"
        )
    document = sweep_plan(chosen, evidence)
    there = [run for run in chosen if run.engine.gpu not in evidence.gpus]
    notes = [
        f"on {run.engine.gpu}: {run.engine.model} {run.engine.label()}, {run.policy.label()}"
        for run in there
    ]
    notes += [
        f"one of {run.engine.replica_words()}, for {run.policy.label()}"
        for run in chosen
        if run.engine.by_server()[0] > 1
    ]
    try:
        forwards = write_forwards(path, [run.engine for run in there], evidence, recordings)
        head = "".join(f"# {line}\n" for line in [*notes, *forwards.commands])
        path.write_text(head + yaml.safe_dump(document, sort_keys=False))
    except OSError as error:
        raise UsageError(f"--plan {path}: cannot be written ({error.strerror})") from None
    return forwards


def experiment_of(pick: Pick, reason: str) -> Experiment:
    """Return the run of a pick."""
    return Experiment(
        engine=pick.engine, policy=pick.policy, reason=reason, regret=0.0, regret_after=0.0
    )
