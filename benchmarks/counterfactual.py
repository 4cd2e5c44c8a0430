"""One run of N samples against real runs of k, and 64 foretold from 8, on recordings of yours.

    python -m benchmarks.counterfactual --whole runs/s64 runs/m64 --runs runs/s1 runs/s4 runs/m4

`--whole` are runs of the majority vote with many samples per problem; `--runs` separate runs on
the same problems with fresh samples, matched by model and temperature. The first table has the
difference of each real run from what the whole run says of its k, and whether it lies in the 90 %
prediction interval (both runs' sampling variance, the same problems). Real runs with a thinking
budget are held against the whole run's checkpoints. The others foretell votes over all samples
from 8 of them, against two rivals (benchmarks/votes_ahead.py). `--halves` tests the intervals for
other problems instead, on halves of each whole run's problems.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from advisor.accuracy.counterfactual import evaluate
from advisor.accuracy.samples import SampledRun, read_samples
from benchmarks.votes_ahead import Task, make_task, score, table
from traces.recording.reader import Recording, find_recordings
from traces.schema.estimate import Estimate
from traces.statistics import others as law_of_others
from traces.statistics import proportion
from traces.summary.run import Run, summarise
from traces.summary.votes import PolicyOutcome, majority_curve

SEEN = 8


def read(paths: Sequence[Path]) -> list[tuple[Recording, Run]]:
    """Return every run of the recordings, or of all recordings in folders."""
    folders = [each for path in paths for each in find_recordings(path) or [path]]
    recordings = [Recording.open(folder) for folder in folders]
    return [(recording, run) for recording in recordings for run in summarise(recording)]


def matches(whole: Run, other: Run) -> bool:
    """Whether a run asked the same model the same problems, as warm."""
    if whole.policy is None or other.policy is None or whole.workload is None:
        return False
    same = other.workload is not None and other.workload.hash == whole.workload.hash
    model = whole.engine.model == other.engine.model
    return same and model and whole.policy.temperature == other.policy.temperature


def real_accuracy(samples: SampledRun) -> tuple[float, float]:
    """Return maj@k, ties shared, and pass@k of a real run with all its samples."""
    votes = [majority_curve(p.answers, p.correct)[-1] for p in samples.problems]
    return float(np.mean(votes)), float(np.mean([any(p.correct) for p in samples.problems]))


def line(name: str, said: PolicyOutcome, real: float, fresh: Estimate) -> bool:
    """Print one comparison; return whether the real run lies in the interval."""
    assert said.accuracy is not None
    assert fresh.low is not None
    assert fresh.high is not None
    inside = fresh.low - 1e-9 <= real <= fresh.high + 1e-9
    print(
        f"| {name:<28} | {said.accuracy.value:.3f} | {real:.3f} | "
        f"{real - said.accuracy.value:+.3f} | [{fresh.low - said.accuracy.value:+.3f}, "
        f"{fresh.high - said.accuracy.value:+.3f}] | {'yes' if inside else 'NO'} |"
    )
    return inside


def against_real_runs(
    wholes: Sequence[tuple[Recording, Run]], others: Sequence[tuple[Recording, Run]]
) -> None:
    """Print the table of differences and how many lie in their interval."""
    print("| run | foretold | real | difference | 90 % prediction interval | inside |")
    print("|---|---|---|---|---|---|")
    inside = {"maj": [], "pass": []}
    for recording, run in wholes:
        mine = [(r, o) for r, o in others if matches(run, o)]
        fixed = [(r, o) for r, o in mine if o.policy and o.policy.thinking_token_budget is None]
        counts = sorted({o.policy.n for _, o in fixed if o.policy is not None})
        found = evaluate(run, recording.frame("answers"), counts=counts or None)
        table_ = {
            (o.method, o.n): o for o in found.outcomes if o.budget_tokens is None and not o.rule
        }
        for _, other in fixed:
            real = read_samples(other)
            for method, value in zip(("maj", "pass"), real_accuracy(real), strict=True):
                said = table_["majority" if method == "maj" else "pass_at_k", real.n]
                if said.fresh_run is not None:
                    name = f"{run.engine.model} {method}@{real.n}"
                    inside[method].append(line(name, said, value, said.fresh_run))
        budgets(run, found.outcomes, mine)
    for method, held in inside.items():
        if held:
            print(f"\n{method}@k: {sum(held)} of {len(held)} inside")


def budgets(
    run: Run, outcomes: Sequence[PolicyOutcome], others: Sequence[tuple[Recording, Run]]
) -> None:
    """Print real runs with a thinking budget against the checkpoints at that budget."""
    for _, other in others:
        policy = other.policy
        if policy is None or policy.thinking_token_budget is None:
            continue
        said = next(
            (
                o
                for o in outcomes
                if (o.n, o.budget_tokens) == (policy.n, policy.thinking_token_budget)
            ),
            None,
        )
        if said is None or said.accuracy is None:
            print(f"| {run.engine.model} {policy.label()} | no checkpoint | | | | |")
            continue
        if said.fresh_run is not None:
            value, _ = real_accuracy(read_samples(other))
            line(f"{run.engine.model} {policy.label()}", said, value, said.fresh_run)


def ahead(wholes: Sequence[tuple[Recording, Run]]) -> None:
    """Print log scores and coverage of votes over all samples, predicted from each block of 8."""
    every = []
    for _, run in wholes:
        samples = read_samples(run)
        if samples.n <= SEEN or run.policy is None:
            continue
        name = f"{run.engine.model} t{run.policy.temperature:g}"
        blocks = [score(_task(samples, block), block) for block in range(samples.n // SEEN)]
        every.append((name, blocks))
    if every:
        print(f"log score (higher is better), 90 % intervals that held; from every block of {SEEN}")
        table(every)


def _task(samples: SampledRun, block: int) -> Task:
    """Return the task with this block of samples before all others."""
    order = np.roll(np.arange(samples.n), -block * SEEN)
    answers = [[p.answers[i] for i in order] for p in samples.problems]
    return make_task(answers, [[p.correct[i] for i in order] for p in samples.problems], SEEN)


def halves(wholes: Sequence[tuple[Recording, Run]], splits: int = 200) -> None:
    """Print how often the intervals of one half of the problems hold a run of the other half.

    `mean` is the interval of the mean, which does not claim that; `others` is that of one run of as
    many other problems (`traces.statistics.others`).
    """
    print(f"| run | policy | mean, of {splits} | others, of {splits} |")
    print("|---|---|---|---|")
    for _, run in wholes:
        rng = np.random.default_rng(0)
        found = evaluate(run, counts=[c for c in (1, 4, 16) if run.policy and c <= run.policy.n])
        for column in found.columns:
            if column.outcome.basis != "subsets" or column.outcome.rule:
                continue
            held = np.zeros(2, dtype=int)
            for _ in range(splits):
                order = rng.permutation(column.right)
                one, two = order[: order.size // 2], order[order.size // 2 :]
                law = law_of_others(float(one.mean()), float(one.var()), one.size, of=two.size)
                run_of_two = float((rng.random(two.size) < two).mean())
                held += [_within(each, run_of_two) for each in (proportion(one), law.interval())]
            name = f"{column.outcome.method}@{column.outcome.n}"
            print(f"| {run.engine.model} | {name} | {held[0]} | {held[1]} |")


def _within(interval: Estimate | None, value: float) -> bool:
    if interval is None or interval.low is None or interval.high is None:
        return False
    return bool(interval.low <= value <= interval.high)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--whole", type=Path, nargs="+", required=True)
    options.add_argument("--runs", type=Path, nargs="*", default=[])
    options.add_argument("--halves", action="store_true", help="split the problems instead")
    given = options.parse_args()
    wholes = read(given.whole)
    if given.halves:
        halves(wholes)
        return
    if given.runs:
        against_real_runs(wholes, read(given.runs))
        print()
    ahead(wholes)


if __name__ == "__main__":
    main()
