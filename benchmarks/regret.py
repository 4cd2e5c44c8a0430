"""Regret against the truth: what advice from half of a measured sweep loses to the whole sweep.

    ttscope sweep PLAN -o RUNS/r0 ... RUNS/r2      # the same plan in several rounds
    python benchmarks/regret.py RUNS [--splits 12] [--seed 0] [--plan]

RUNS holds a folder per round, each a complete sweep of the same configurations; `--plan` prints the
plan that was used. For every split the advisor sees one round of half of the configurations, drawn
at random, and is asked budgets that the measured range suggests. It may pick any measured
configuration that it knows samples of. What the pick then does is looked up in the other rounds:
its objective against the best configuration measured there among those that meet the budget, and
whether it meets the budget. Beside it the same for the compute-optimal pick. A round's own spread
gives the noise floor: how far the objective of a configuration in one round lies from the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from advisor.advice.advisor import Advisor
from advisor.evidence.gather import gather
from advisor.search.resampling import Resampling
from advisor.search.space import Space, explore
from advisor.step_time.fit import StepTimeModel
from traces.errors import TtscopeError
from traces.recording.reader import Recording, find_recordings
from traces.schema.advice import Budget
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy
from traces.statistics import jeffreys
from traces.summary.run import summarise

PLAN = """\
workload: demo
problems: 96
seed: 4711
concurrency: 2
engines:
  - model: [demo/s, demo/m, demo/l]
    dtype: float32
    max_num_seqs: [4, 64]
    policies:
      - {method: majority, n: [1, 4, 16], temperature: 0.8, max_tokens: 400}
      - {method: greedy, reasoning_effort: high, max_tokens: 400}
"""
Name = tuple[EngineConfig, Policy]
CONFIDENCES = (0.9, 0.5)
OBJECTIVES = {"latency": "latency_s", "cost": "device_s", "accuracy": "accuracy"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a configuration gave in one round."""

    recording: Recording
    accuracy: float
    latency_s: float
    latency_p95_s: float
    device_s: float


def read_rounds(folder: Path) -> list[dict[Name, Measured]]:
    """Return the rounds' configurations; only those that every round has."""
    rounds: list[dict[Name, Measured]] = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        found: dict[Name, Measured] = {}
        for recording in map(Recording.open, find_recordings(place)):
            for run in summarise(recording) if recording.complete else ():
                assert run.policy is not None and run.accuracy and run.device_s_per_problem
                mean, p95 = run.latency_s["mean"], run.latency_s["p95"]
                assert mean is not None and p95 is not None
                found[_bare(run.engine), run.policy] = Measured(
                    recording=recording,
                    accuracy=run.accuracy.value,
                    latency_s=mean.value,
                    latency_p95_s=p95.value,
                    device_s=run.device_s_per_problem.value,
                )
        if found:
            rounds.append(found)
    if len(rounds) < 2:
        raise SystemExit(f"{folder}: needs at least two rounds; see --plan")
    common = set.intersection(*(set(each) for each in rounds))
    return [{name: each[name] for name in rounds[0] if name in common} for each in rounds]


def _bare(engine: EngineConfig) -> EngineConfig:
    return replace(engine, num_gpu_blocks=None)


def budgets(first: dict[Name, Measured], rng: np.random.Generator) -> Iterator[Budget]:
    """Yield budgets with limits drawn evenly from the measured range, each at both confidences."""

    def between(name: str, *, ratio: bool) -> float:
        values = [getattr(each, name) for each in first.values()]
        low, high = min(values), max(values)
        if ratio:
            return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))), 5)
        return round(float(rng.uniform(low, high)), 4)

    drawn: list[Budget] = []
    for _ in range(2):
        for optimise in ("latency", "cost"):
            wanted = between("accuracy", ratio=False)
            drawn.append(Budget(min_accuracy=wanted, optimise=optimise))
        for name in ("latency_s", "device_s"):
            limit = {f"max_{name}": between(name, ratio=True)}
            drawn.append(Budget(optimise="accuracy", **limit))
    for budget in drawn:
        for confidence in CONFIDENCES:
            yield replace(budget, confidence=confidence)


def meets(budget: Budget, found: Measured) -> bool:
    return (
        (budget.min_accuracy is None or found.accuracy >= budget.min_accuracy)
        and (budget.max_latency_s is None or found.latency_s <= budget.max_latency_s)
        and (budget.max_device_s is None or found.device_s <= budget.max_device_s)
    )


def mean_of(rounds: Sequence[dict[Name, Measured]], name: Name) -> Measured:
    each = [found[name] for found in rounds]
    numbers = ("accuracy", "latency_s", "latency_p95_s", "device_s")
    return replace(each[0], **{n: float(np.mean([getattr(m, n) for m in each])) for n in numbers})


def only(space: Space, names: set[Name]) -> Space:
    """Return a space of measured configurations alone."""
    rows = np.array(
        [
            row
            for row in np.flatnonzero(space.replicas == 1)
            for candidate in (space.candidate(int(row)),)
            if (_bare(candidate.engine), candidate.policy) in names
        ],
        dtype=np.int64,
    )
    names_ = ("kind", "max_num_seqs", "max_num_batched_tokens", "replicas")
    return replace(space, **{name: getattr(space, name)[rows] for name in names_})


def lost(budget: Budget, pick: Measured, best: Measured) -> float:
    """Return how much worse the pick's objective is, a share; for accuracy the difference."""
    name = OBJECTIVES[budget.goal]
    mine, other = getattr(pick, name), getattr(best, name)
    return float(other - mine if budget.goal == "accuracy" else mine / other - 1)


def noise_floor(rounds: Sequence[dict[Name, Measured]]) -> dict[str, float]:
    """Return the median distance of one round's objective from the others' mean."""
    found: dict[str, float] = {}
    for optimise, name in OBJECTIVES.items():
        gaps = []
        for number, one in enumerate(rounds):
            others = [each for place, each in enumerate(rounds) if place != number]
            for key in one:
                mine, theirs = getattr(one[key], name), getattr(mean_of(others, key), name)
                gaps.append(
                    abs(mine - theirs) if optimise == "accuracy" else abs(mine / theirs - 1)
                )
        found[optimise] = float(np.median(gaps))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--splits", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plan", action="store_true")
    given = parser.parse_args()
    if given.plan or given.folder is None:
        print(PLAN, end="")
        return
    rounds = read_rounds(given.folder)
    names = list(rounds[0])
    floor = noise_floor(rounds)
    print(f"{len(names)} configurations, {len(rounds)} rounds; noise floor "
          + ", ".join(f"{k} {v:.1%}" for k, v in floor.items()))  # fmt: skip
    rng = np.random.default_rng(given.seed)
    rows: list[dict[str, object]] = []
    for split in range(given.splits):
        seen_round = split % len(rounds)
        others = [each for place, each in enumerate(rounds) if place != seen_round]
        chosen = rng.permutation(len(names))[: len(names) // 2]
        seen = [names[i] for i in chosen]
        evidence = gather([rounds[seen_round][name].recording for name in seen])
        model = StepTimeModel().fit(evidence.steps)
        space = only(explore(evidence), set(names))
        advisor = Advisor(evidence, space, model, Resampling(len(space.problem_ids), seed=split))
        truth = {name: mean_of(others, name) for name in names}
        for budget in budgets(rounds[seen_round], rng):
            rows.append(_ask(advisor, budget, truth, others))
    _print(rows, floor)


def _ask(
    advisor: Advisor,
    budget: Budget,
    truth: dict[Name, Measured],
    others: Sequence[dict[Name, Measured]],
) -> dict[str, object]:
    able = [found for found in truth.values() if meets(budget, found)]
    row: dict[str, object] = {"budget": budget, "possible": bool(able)}
    try:
        answer = advisor.recommend(budget)
    except TtscopeError:
        return row
    if not able or answer.system_optimal is None:
        return row
    best = _best(budget, able)
    for kind, pick in (("system", answer.system_optimal), ("compute", answer.compute_optimal)):
        if pick is None:
            continue
        key = _bare(pick.engine), pick.policy
        row[kind] = lost(budget, truth[key], best)
        row[f"{kind}_met"] = [meets(budget, each[key]) for each in others]
        row[f"{kind}_promised"] = pick.probability_within_budget
        row[f"{kind}_name"] = f"{pick.engine.model} {pick.engine.label()} {pick.policy.label()}"
    return row


def _best(budget: Budget, found: Sequence[Measured]) -> Measured:
    name = OBJECTIVES[budget.goal]
    choose = max if budget.goal == "accuracy" else min
    return choose(found, key=lambda each: float(getattr(each, name)))


def _print(rows: Sequence[dict[str, object]], floor: dict[str, float]) -> None:
    told = [row for row in rows if "system" in row]
    possible = sum(bool(row["possible"]) for row in rows)
    print(f"{len(rows)} (budget, split) pairs; {possible} can be met by a measured configuration, "
          f"{len(told)} were answered with a pick")  # fmt: skip
    print(f"{'sure':<5}{'optimised':<10}{'pairs':>6}  {'pick':<8}{'lost, median':>13}"
          f"{'p90':>8}{'budget met':>22}{'promised':>10}")  # fmt: skip
    for confidence in CONFIDENCES:
        for optimise in OBJECTIVES:
            mine = [r for r in told if _asked(r) == (optimise, confidence)]
            for kind in ("system", "compute"):
                _line(mine, optimise, confidence, kind)
    for kind in ("system", "compute"):
        _line(told, "all", "", kind)
    differ = [r for r in told if r.get("system_name") != r.get("compute_name")]
    print(f"the picks differ in {len(differ)} of {len(told)}")
    print("max(5 %, noise floor) is the aim: " + ", ".join(
        f"{name} {max(0.05, value):.1%}" for name, value in floor.items()))  # fmt: skip


def _asked(row: dict[str, object]) -> tuple[str, float]:
    budget = row["budget"]
    assert isinstance(budget, Budget)
    return budget.goal, budget.confidence


def _line(rows: Sequence[Any], optimise: str, confidence: float | str, kind: str) -> None:
    some = [row for row in rows if kind in row]
    if not some:
        return
    losses = np.array([row[kind] for row in some], dtype=float)
    met = [flag for row in some for flag in row[f"{kind}_met"]]
    low, high = jeffreys(sum(met), len(met))
    promised = float(np.mean([row[f"{kind}_promised"] for row in some]))
    interval = f"{np.mean(met):.0%} [{low:.0%}, {high:.0%}]"
    print(f"{confidence:<5}{optimise:<10}{len(some):>6}  {kind:<8}{np.median(losses):>13.1%}"
          f"{np.quantile(losses, 0.9):>8.1%}"
          f"{interval:>22}{promised:>10.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
