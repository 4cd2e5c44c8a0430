"""Regret of choosing by predicted speed, on runs whose work is given: no accuracy, quiet machine.

    python benchmarks/regret_held_out.py FOLDER [--splits 12] [--seed 0]

FOLDER is that of benchmarks/held_out_runs.py: 24 configurations with a workload each, repeated. For
every split the step laws see one repeat of half of the configurations, drawn at random; the other
half is replayed with its own samples' lengths. Asked is the least device time a token within a mean
latency, or the least mean latency within a device time a token, the limits drawn evenly from the
measured range; a configuration may be picked when the law's spread makes it nine tenths sure. Lost
is what the pick has more than the best measured in the other repeats, among those that meet the
limit there. Beside it the same for the pick of fewest FLOPs a token.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from advisor.evidence.gather import StepTable, gather
from advisor.evidence.keys import law_key
from advisor.evidence.runs import RecordedProblem, Run
from advisor.replay.limits import limits_of
from advisor.replay.replay import replay
from advisor.replay.workload import Workload
from advisor.step_time.cost import linear_cost
from advisor.step_time.fit import StepTimeModel
from traces.recording.reader import Recording
from traces.statistics import jeffreys

CONFIDENCE = 0.9
REPEATS = 3  # that are read
Point = dict[str, float]  # latency_s, device_s a token, flops a token


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A configuration in one repeat."""

    run: Run
    steps: tuple[StepTable, ...]
    found: Point


def read(folder: Path) -> dict[str, list[Measured]]:
    plan = json.loads((folder / "plan.json").read_text())
    found: dict[str, list[Measured]] = {}
    for name in (each["name"] for each in plan["configurations"]):
        for repeat in range(REPEATS):
            evidence = gather([Recording.open(folder / f"{name}-r{repeat}")], judged=False)
            (run,) = evidence.runs
            tokens = sum(s.output_tokens for p in run.problems.values() for s in p.samples)
            facts = evidence.models[run.engine.model]
            point = {
                "latency_s": float(np.mean([p.latency_s for p in run.problems.values()])),
                "device_s": float(sum(t.seconds.sum() for t in evidence.steps)) / tokens,
                "flops": facts.matmul_flops(1),
            }
            found.setdefault(name, []).append(Measured(run=run, steps=evidence.steps, found=point))
    return found


def predicted(one: Measured, model: StepTimeModel) -> tuple[Point, float] | None:
    """Return what the replay says of a configuration and the law's spread, None if unknown."""
    run = one.run
    if law_key(run.engine) not in model.laws_:
        return None
    law = model.law(run.engine)
    loads = [
        RecordedProblem(
            prompt_tokens=p.prompt_tokens, cached_tokens=p.cached_tokens, samples=p.samples
        )
        for p in run.problems.values()
    ]
    done = replay(
        Workload.from_loads(loads),
        linear_cost(law.seconds, law.reads),
        limits_of(run.engine),
        concurrency=run.concurrency,
    )
    tokens = sum(sample.output_tokens for load in loads for sample in load.samples)
    point = {
        "latency_s": float(done.latency_s.mean()),
        "device_s": done.busy_s / tokens,
        "flops": one.found["flops"],
    }
    return point, law.sigma if law.within(done.peak) else law.sigma_outside


def mean_of(others: Sequence[Measured]) -> Point:
    return {name: float(np.mean([o.found[name] for o in others])) for name in others[0].found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    runs = read(given.folder)
    names = list(runs)
    gaps = [
        abs(each.found["latency_s"] / mean_of(repeats)["latency_s"] - 1)
        for repeats in runs.values()
        for each in repeats
    ]
    print(f"{len(names)} configurations, {REPEATS} repeats; a repeat lies from their mean by "
          f"{np.median(gaps):.1%} in the median")  # fmt: skip
    rng = np.random.default_rng(given.seed)
    told: list[tuple[str, str, float, list[bool], float]] = []
    unmet = 0
    why = Counter[str]()
    for split in range(given.splits):
        seen = split % REPEATS
        half = [names[i] for i in rng.permutation(len(names))[: len(names) // 2]]
        model = StepTimeModel().fit([t for name in half for t in runs[name][seen].steps])
        known = {name: predicted(runs[name][seen], model) for name in names}
        others = {n: [m for i, m in enumerate(runs[n]) if i != seen] for n in names}
        truth = {name: mean_of(others[name]) for name in names}
        for goal, limited in (("device_s", "latency_s"), ("latency_s", "device_s")) * 5:
            values = [truth[name][limited] for name in names]
            bound = math.exp(rng.uniform(math.log(min(values)), math.log(max(values))))
            first = min(
                (n for n, p in truth.items() if p[limited] <= bound), key=lambda n: truth[n][goal]
            )
            best = truth[first][goal]
            sure = {
                name: NormalDist().cdf(math.log(bound / each[0][limited]) / each[1])
                for name, each in known.items()
                if each is not None
            }
            able = [name for name in sure if sure[name] >= CONFIDENCE]
            if not able:
                unmet += 1
                continue
            if truth[min(able, key=lambda n: known[n][0][goal])][goal] > 1.1 * best:
                known_best = "not sure enough of it" if first in sure else "no run of its engine"
                why[known_best if first not in able else "taken for slower"] += 1
            points = {n: each[0] for n, each in known.items() if each is not None}
            pick = min(able, key=lambda name: points[name][goal])
            fewest = min(points[name]["flops"] for name in points)
            cheap = [name for name in points if points[name]["flops"] <= fewest]
            compute = min(cheap, key=lambda name: points[name][goal])
            for kind, name in (("system", pick), ("compute", compute)):
                met = [m.found[limited] <= bound for m in others[name]]
                told.append((goal, kind, truth[name][goal] / best - 1, met, sure[name]))
    print(f"{len(told) // 2} (limit, split) pairs; {unmet} had no sure pick")
    causes = ", ".join(f"{cause} {count}" for cause, count in why.most_common())
    print(f"the best was missed by more than a tenth {why.total()} times: {causes}")
    print(f"{'optimised':<12}{'pick':<9}{'pairs':>6}{'lost, median':>14}{'p90':>9}"
          f"{'limit met':>22}{'promised':>10}")  # fmt: skip
    for goal in ("device_s", "latency_s"):
        for kind in ("system", "compute"):
            some = [each for each in told if each[:2] == (goal, kind)]
            losses = [each[2] for each in some]
            met = [flag for each in some for flag in each[3]]
            low, high = jeffreys(sum(met), len(met))
            interval = f"{np.mean(met):.0%} [{low:.0%}, {high:.0%}]"
            print(f"{goal:<12}{kind:<9}{len(some):>6}{np.median(losses):>14.1%}"
                  f"{np.quantile(losses, 0.9):>9.1%}{interval:>22}"
                  f"{np.mean([each[4] for each in some]):>10.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
