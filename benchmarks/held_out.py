"""Configurations the model never saw: ``python benchmarks/held_out.py RUNS``.

RUNS is a folder that `benchmarks/held_out_runs.py` filled: configurations, each run several times
with the same tokens. Each configuration is left out with all its repeats, the step-time laws are
fitted on the others, its runs are replayed, and predicted problem latency is held against each
repeat. The noise floor is the spread between repeats of the same work. Intervals are
cross-conformal: the 90 % quantile of the errors of the other configurations, each of which was
left out as well. With --levels a whole level of a factor is left out, and reported apart. With
--told the intervals are tried that `ttscope replay` tells: those of the spread that the law has of
the runs left out of its own fit, and of what latencies lie off beyond it (some minutes).
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from advisor.evidence.gather import Evidence, gather
from advisor.evidence.keys import law_key
from advisor.replay.result import Replayed
from advisor.step_time.fit import StepTimeModel
from advisor.what_if.latency_spread import latency_spread, replay_recorded
from traces.recording.reader import Recording
from traces.statistics import Z95, jeffreys

Errors = Mapping[str, np.ndarray]
STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": lambda values: float(values.mean()),
    "p50": lambda values: float(np.quantile(values, 0.5)),
    "p95": lambda values: float(np.quantile(values, 0.95)),
}


def read(folder: Path) -> dict[str, list[Evidence]]:
    """Return what each configuration's repeats recorded."""
    found: dict[str, list[Evidence]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"(.+)-r\d+", path.name)
        if match and (path / "recording.json").exists():
            found[match.group(1)].append(gather([Recording.open(path)], judged=False))
    return dict(found)


def replayed(repeats: Sequence[Evidence], others: Sequence[Evidence]) -> Replayed | None:
    """Return the configuration as the others foretell it; None where they teach no law of it."""
    laws = StepTimeModel().fit_laws([table for each in others for table in each.steps])
    run = repeats[0].runs[0]
    if law_key(run.engine) not in laws:
        return None
    return replay_recorded(run, laws[law_key(run.engine)], repeats[0].models.get(run.engine.model))


def latencies(evidence: Evidence) -> np.ndarray:
    """Return the recorded seconds per problem."""
    return np.array([problem.latency_s for problem in evidence.runs[0].problems.values()])


def left_out(data: dict[str, list[Evidence]], names: Sequence[str]) -> dict[str, Errors]:
    """Leave out configurations together; return log(predicted / recorded) per repeat of each."""
    others = [each for name, repeats in data.items() if name not in names for each in repeats]
    found = {}
    for name in names:
        result = replayed(data[name], others)
        if result is None:
            print(f"{name:<30}no other configuration teaches its steps: refused")
            continue
        steps = {len(each.steps[0].seconds) for each in data[name]}
        errors, noise = {}, {}
        for statistic, of in STATISTICS.items():
            real = np.array([of(latencies(each)) for each in data[name]])
            errors[statistic] = np.log(of(result.latency_s) / real)
            noise[statistic] = np.log(real).std(ddof=1)
        found[name] = errors | {f"noise {each}": value for each, value in noise.items()}
        print(
            f"{name:<30}{result.steps:>7,} {min(steps):>7,} "
            + " ".join(
                f"{100 * errors[each].mean():>+7.1f} ({100 * noise[each]:4.1f})"
                for each in STATISTICS
            ),
            flush=True,
        )
    return found


def pooled(errors: Mapping[str, Errors], statistic: str) -> None:
    """Print mean absolute errors and how the intervals of the left-out configurations did."""
    each = {name: values[statistic] for name, values in errors.items()}
    whole = np.concatenate(list(each.values()))
    floor = np.sqrt(np.mean([values[f"noise {statistic}"] ** 2 for values in errors.values()]))
    middles = np.array([values.mean() for values in each.values()])
    inside, half, score, plain = [], [], [], []
    for name, values in each.items():
        rest = np.abs(np.concatenate([other for key, other in each.items() if key != name]))
        level = min(0.9 * (1 + 1 / (len(each) - 1)), 1.0)
        bound = float(np.quantile(rest, level))
        relative = float(np.quantile(np.exp(rest) - 1, 0.9))
        inside += list(np.abs(values) <= bound)
        half.append((np.exp(bound) - np.exp(-bound)) / 2)
        for error in values:
            truth = np.exp(-error)  # recorded / predicted
            score.append(interval_score(truth, np.exp(-bound), np.exp(bound)))
            plain.append(interval_score(truth, 1 - relative, 1 + relative))
    hits = int(np.sum(inside))
    low, high = jeffreys(hits, len(inside))
    print(
        f"{statistic}: mean absolute error {100 * np.abs(whole).mean():.1f} % of a run, "
        f"{100 * np.abs(middles).mean():.1f} % of the mean of its repeats; noise floor "
        f"{100 * floor:.1f} %\n    90 % intervals hold {hits} of {len(inside)} = "
        f"{hits / len(inside):.3f} [{low:.3f}, {high:.3f}], half-width {100 * np.median(half):.1f}"
        f" %, interval score {np.mean(score):.3f} (a plain +-x % rule {np.mean(plain):.3f})"
    )


def told(data: Mapping[str, Sequence[Evidence]]) -> None:
    """Print how the intervals do that are told of a configuration that was left out."""
    inside: dict[str, list[bool]] = defaultdict(list)
    half: dict[str, list[float]] = defaultdict(list)
    score: dict[str, list[float]] = defaultdict(list)
    for name, repeats in data.items():
        others = [each for key, rest in data.items() if key != name for each in rest]
        tables = [table for each in others for table in each.steps]
        model = StepTimeModel().fit(tables)
        run = repeats[0].runs[0]
        law = model.laws_.get(law_key(run.engine))
        if law is None:
            continue
        facts = repeats[0].models.get(run.engine.model)
        found = replay_recorded(run, law.seconds, facts, most=law.most)
        beyond = latency_spread([run for each in others for run in each.runs], tables, model)
        sigma = law.sigma if law.within([found]) else law.sigma_outside
        for statistic, of in STATISTICS.items():
            bound = Z95 * float(np.hypot(sigma, beyond[statistic]))
            half[statistic].append(float(np.sinh(bound)))
            for each in repeats:
                truth = of(latencies(each)) / of(found.latency_s)
                inside[statistic].append(abs(np.log(truth)) <= bound)
                score[statistic].append(interval_score(truth, np.exp(-bound), np.exp(bound)))
    for statistic, held in inside.items():
        low, high = jeffreys(sum(held), len(held))
        print(
            f"told of {statistic}: 90 % intervals hold {sum(held)} of {len(held)} [{low:.3f}, "
            f"{high:.3f}], half-width {100 * np.median(half[statistic]):.1f} %, interval score "
            f"{np.mean(score[statistic]):.3f}"
        )


def interval_score(truth: float, low: float, high: float) -> float:
    """Return width + 2 / 0.1 x what the truth lies outside (Gneiting and Raftery 2007)."""
    return high - low + 20 * max(low - truth, 0.0) + 20 * max(truth - high, 0.0)


def _part(pattern: str, otherwise: str = "") -> Callable[[str], str]:
    """Return what reads a level from a configuration's name."""

    def level(name: str) -> str:
        found = re.search(pattern, name)
        return found.group(1) if found else otherwise

    return level


FACTORS: dict[str, Callable[[str], str]] = {
    "max_num_seqs": _part(r"-seqs(\d+)-"),
    "in flight": _part(r"-c(\d+)-"),
    "samples": _part(r"-n(\d+)"),
    "draft": _part(r"-n\d+-(\w+)$", "none"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--levels", action="store_true", help="leave out whole levels of factors")
    parser.add_argument("--told", action="store_true", help="the intervals that replay tells")
    given = parser.parse_args()
    data = read(given.runs)
    print(f"{len(data)} configurations, {sum(map(len, data.values()))} runs")
    print(f"{'configuration':<30}{'replayed':>7} {'steps':>7}  error % of latency mean, p50, p95 "
          "(noise floor)")  # fmt: skip
    errors: dict[str, Errors] = {}
    for name in data:
        errors |= left_out(data, [name])
    for statistic in STATISTICS:
        pooled(errors, statistic)
    if given.told:
        told(data)
    for factor, level_of in FACTORS.items() if given.levels else ():
        for level in sorted(set(map(level_of, data))):
            names = [name for name in data if level_of(name) == level]
            print(f"\n{factor}: {level} left out whole")
            apart = left_out(data, names)
            for statistic in ("p50", "p95"):
                values = [each[statistic] for each in apart.values()]
                if values:
                    middles = [np.mean(each) for each in values]
                    print(
                        f"    {statistic}: {100 * np.abs(middles).mean():.1f} % of the mean of its "
                        "repeats"
                    )


if __name__ == "__main__":
    main()
