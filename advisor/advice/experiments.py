"""What to measure next: the runs after which the pick is expected to lose least.

In a joint draw the best candidate is known; what the pick loses against it is its regret there, as
a share of what is optimised (all of it where the pick breaks a limit). A run of a candidate tells
its engine's step time but for the run-to-run spread, and its accuracy as well as its samples do
now. Draws in which both come out alike are put together, and among each of these groups the best
candidate is chosen anew: what it then loses is the regret after the run (the expected value of
sample information; Raiffa and Schlaifer 1961). Half of the draws choose, the others state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from advisor.advice.feasible import ReplayedCheck
from advisor.evidence.measured import Under
from advisor.search.space import Candidate
from traces.errors import TtscopeError, UsageError
from traces.schema.advice import Experiment, Pick, Recommendation
from traces.summary.comparison import RUN_TO_RUN

if TYPE_CHECKING:
    from advisor.evidence.gather import Evidence


Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TRIED = 16  # candidates that a run of is considered
BINS = 3  # groups of draws by step time, and by accuracy
MOST = 3  # runs proposed
WORTH = 0.05  # share of the regret that a run must save


def experiments(check: ReplayedCheck, system: int, *, load: Under, seed: int) -> list[Experiment]:
    """Return the runs that save most of the expected regret, the best first; none may be worth it.

    Candidates of the same engine kind and samples tell the same; the one nearest to the pick is
    proposed. What was run under the `load` of the answer is no news, nor
    is it with other limits where its steps are like those recorded.
    """
    rows, regret = _regrets(check, system)
    if not len(rows):
        return []
    choosing = check.metrics.choosing
    mine = int(np.flatnonzero(rows == system)[0])
    before = float(regret[mine, ~choosing].mean())
    # With nothing learned the best of the choosing half is not always the pick.
    still = _after(regret, np.zeros(regret.shape[1], dtype=np.int64), choosing)
    found = []
    for place, groups in _learned(check, rows[:TRIED], seed):
        if _is_known(check, place, load):
            continue
        saved = max(still - _after(regret, groups, choosing), 0.0)
        if saved > WORTH * before:
            found.append((before - min(saved, before), place))
    found.sort()
    chosen, seen = [], set[object]()
    for after, row in found:
        candidate = check.metrics.replayed[row].candidate
        name = (check.metrics.replayed[row].law, candidate.pool.key)
        if id(name[0]) in seen and candidate.pool.key in seen:
            continue
        seen |= {id(name[0]), candidate.pool.key}
        chosen.append(
            Experiment(
                engine=candidate.engine,
                policy=candidate.policy,
                reason=_reason(candidate, pick=row == system),
                regret=before,
                regret_after=after,
            )
        )
    return chosen[:MOST]


def _is_known(check: ReplayedCheck, row: int, load: Under) -> bool:
    """Return whether a run of a candidate would tell nothing that runs have not told."""
    outcome = check.metrics.replayed[row]
    engine, policy = outcome.candidate.engine, outcome.candidate.policy
    if not outcome.extrapolated and check.metrics.space.made.has_sibling(engine, policy):
        return True
    return check.metrics.space.made.has_under(engine, policy, load)


def _reason(candidate: Candidate, *, pick: bool) -> str:
    if not pick:
        return "it may be better"
    return "the pick was run under another load" if candidate.recorded else "the pick was never run"


def _regrets(check: ReplayedCheck, system: int) -> tuple[Ints, Floats]:
    """Return the candidates that may be best, the pick first, and [them, draws] their regrets."""
    cost = check.cost_draws()
    joint = np.ones(cost.shape, dtype=bool)
    for met in check.met.values():
        joint &= met
    joint &= check.asked[:, None] & np.isfinite(cost)
    able = np.where(joint, cost, np.inf)
    best = able.min(axis=0)
    known = np.isfinite(best)
    scale = np.maximum(np.abs(best), 1e-12)
    with np.errstate(invalid="ignore"):
        regret = np.where(joint, (cost - best) / scale, 1.0)
    regret = np.where(known, np.minimum(regret, 1.0), 0.0)
    # Best somewhere in the draws, each once: equal rows tell the same.
    wins = (able <= best + 1e-9 * scale) & known
    rows, seen = [system], {regret[system].tobytes()}
    for row in np.lexsort((check.sequence, regret.mean(axis=1))):
        name = regret[row].tobytes()
        if name not in seen and wins[row].any():
            rows.append(int(row))
            seen.add(name)
    chosen = np.array(rows, dtype=np.int64)
    return chosen, regret[chosen]


def _learned(check: ReplayedCheck, rows: Ints, seed: int) -> list[tuple[int, Ints]]:
    """Return by candidate the group of each draw that a run of it would tell apart."""
    metrics, found = check.metrics, []
    for row in rows:
        rng = np.random.default_rng([seed, 6, int(check.sequence[row])])
        speed = np.log(metrics.factors[row]) + rng.normal(
            0, RUN_TO_RUN, len(check.metrics.choosing)
        )
        right = metrics.draws("accuracy")[row]
        right = right + rng.normal(0, right.std() + 1e-12, len(right))
        groups = _bins(speed) * BINS + _bins(right)
        found.append((int(row), groups))
    return found


def _bins(values: Floats) -> Ints:
    edges = np.quantile(values, np.arange(1, BINS) / BINS)
    return np.asarray(np.searchsorted(edges, values), dtype=np.int64)


def _after(regret: Floats, groups: Ints, choosing: Bools) -> float:
    """Return the mean regret of the stating draws when each group's best is taken."""
    total, count = 0.0, 0
    for group in np.unique(groups):
        choose, state = choosing & (groups == group), ~choosing & (groups == group)
        if not choose.any() or not state.any():
            continue
        best = int(regret[:, choose].mean(axis=1).argmin())
        total += float(regret[best, state].sum())
        count += int(state.sum())
    return total / max(count, 1)


def sweep_plan(
    chosen: Sequence[Experiment],
    *,
    workload: str | None,
    problems: int | None,
    seed: int | None,
    concurrency: int | None,
    repeats: int = 1,
) -> dict[str, object]:
    """Return runs as the document of a plan that `ttscope sweep` executes."""
    document: dict[str, object] = {"workload": workload or "demo"}
    if problems is not None:
        document["problems"] = problems
    if seed is not None:
        document["seed"] = seed
    document["concurrency"] = concurrency or 1
    if repeats > 1:
        document["repeats"] = repeats
    engines: dict[str, dict[str, object]] = {}
    for each in chosen:
        settings = {
            name: getattr(each.engine, name)
            for name in (
                "model", "dtype", "max_model_len", "tensor_parallel_size", "max_num_seqs",
                "max_num_batched_tokens", "block_size", "gpu_memory_utilization", "enforce_eager",
            )
        }  # fmt: skip
        speculative = each.engine.speculative
        settings["speculative"] = None if speculative is None else speculative.to_json()
        given = {name: value for name, value in settings.items() if value is not None}
        if speculative is not None:
            drafts = speculative.to_json().items()
            given["speculative"] = {name: value for name, value in drafts if value is not None}
        policy = {k: v for k, v in each.policy.to_json().items() if v is not None and k != "rule"}
        policy |= dict(each.policy.rule)
        entry = engines.setdefault(repr(sorted(given.items(), key=str)), given | {"policies": []})
        listed = entry["policies"]
        assert isinstance(listed, list)
        if policy not in listed:
            listed.append(policy)
    document["engines"] = list(engines.values())
    return document


def write_plan(path: Path, answer: Recommendation, evidence: Evidence) -> None:
    """Write what to measure next, or the pick where nothing else is worth it.

    Raises TtscopeError where nothing fits, UsageError where the file cannot be written.
    """
    import yaml

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
