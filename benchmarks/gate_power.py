"""How often `gate` fails equal runs, and worse ones, beside the power that it prints.

Made-up runs answer the same problems again: each has its own chance to be right (beta-distributed)
and its own length (log-normal), each run its own draws and its own pace (7 %). Real ones are two
halves of the samples of a bundled vote, drawn anew each time: the same policy on the same problems.
Worse runs lose 5 points of accuracy, or take 20 % longer. `promise` holds them against what advice
promises of 8 such runs.

    python -m benchmarks.gate_power [REPEATS]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

import profiler.demo
from advisor.replay.draws import half_width
from traces.deployment.checks import Gate, against_baseline, against_promises
from traces.deployment.documents import Expectations
from traces.recording.reader import Recording
from traces.schema.advice import Budget
from traces.schema.estimate import Estimate, Interval
from traces.schema.tts.parameters import complete
from traces.statistics import (
    Z95,
    fresh,
    jeffreys,
    mean,
    of_single_samples,
    others,
    proportion,
    spread,
)
from traces.summary.comparison import RUN_TO_RUN, compare
from traces.summary.run import Run, summarise

SHIPPED = Path(profiler.demo.__file__).parent / "recordings"
SIZES = (20, 100, 500)
Floats = NDArray[np.float64]
COLUMNS = ("correct", "tokens", "latency_s", "device_s", "energy_j")
Draw = Callable[[np.random.Generator, float, float], dict[str, Floats]]


def made_up(rng: np.random.Generator, problems: int) -> Draw:
    """Return a law of so many problems, that gives a run which loses and which takes longer."""
    right = rng.beta(1.2, 0.4, problems)
    length = rng.lognormal(5.0, 0.6, problems)

    def draw(rng: np.random.Generator, loses: float, longer: float) -> dict[str, Floats]:
        tokens = length * rng.lognormal(0.0, 0.25, problems)
        pace = 0.01 * np.exp(rng.normal(0.0, RUN_TO_RUN)) * (1 + longer)
        latency = tokens * pace * rng.lognormal(0.0, 0.1, problems)
        chance = right * (1 - loses / right.mean())
        return {
            "correct": (rng.random(problems) < chance).astype(float),
            "tokens": tokens,
            "latency_s": latency,
            "device_s": latency / 4,
            "energy_j": latency * 30,
        }

    return draw


def bundled(run: Run, size: int) -> Draw:
    """Return runs of `size` samples of those that a vote drew, without replacement for two."""
    assert run.sample_rows is not None and run.rows is not None
    rows = run.sample_rows.join(run.rows.select("problem", "expected"), on="problem")
    rows = rows.sort("problem", "sample_index")
    of = [each.height for each in rows.partition_by("problem", maintain_order=True)]
    assert len(set(of)) == 1, "as many samples of each problem"
    shape = (len(of), of[0])
    seconds = ((rows["end"] - rows["arrival"]) / 1e9).to_numpy().reshape(shape)
    tokens = rows["output_tokens"].to_numpy().astype(float).reshape(shape)
    answers = np.array(rows["answer"].fill_null("").to_list()).reshape(shape)
    expected = np.array(rows["expected"].to_list()).reshape(shape)[:, 0]
    taken: list[NDArray[np.int64]] = []

    def draw(rng: np.random.Generator, loses: float, longer: float) -> dict[str, Floats]:
        if not taken:
            order = rng.permuted(np.tile(np.arange(shape[1]), (shape[0], 1)), axis=1)
            taken.extend([order[:, :size], order[:, size : 2 * size]])
        picked = taken.pop()
        rows_of = np.arange(shape[0])[:, None]
        votes = answers[rows_of, picked]
        right = np.array(
            [_vote(each) == wanted for each, wanted in zip(votes, expected, strict=True)], float
        )
        right *= rng.random(right.size) >= loses / right.mean()
        took = seconds[rows_of, picked].max(axis=1) * np.exp(rng.normal(0, RUN_TO_RUN))
        return {
            "correct": right,
            "tokens": tokens[rows_of, picked].sum(axis=1),
            "latency_s": took * (1 + longer),
            "device_s": took * (1 + longer) / 4,
            "energy_j": took * (1 + longer) * 30,
        }

    return draw


def _vote(answers: NDArray[np.str_]) -> str:
    given, first, counts = np.unique(answers[answers != ""], return_index=True, return_counts=True)
    return str(given[np.lexsort((first, -counts))[0]]) if given.size else ""


def run_of(template: Run, name: str, numbers: dict[str, Floats]) -> Run:
    """Return a run of so many problems with these numbers."""
    problems = numbers["correct"].size
    assert template.rows is not None and template.workload is not None
    rows = template.rows[np.arange(problems) % template.rows.height].with_columns(
        problem_id=pl.Series([f"p{each}" for each in range(problems)]),
        problem=pl.Series(range(problems), dtype=pl.UInt32),
        state=pl.lit("decided"),
        error=pl.lit(None, dtype=pl.Utf8),
        **{column: pl.Series(numbers[column]) for column in COLUMNS},
    )
    return replace(
        template,
        recording=name,
        rows=rows,
        sample_rows=None,
        step_rows=None,
        workload=replace(template.workload, problems=problems),
        problems=problems,
        problems_failed=0,
        accuracy=proportion(numbers["correct"]),
        latency_s=spread(numbers["latency_s"], "s"),
        tokens_per_problem=mean(numbers["tokens"], "tokens"),
        device_s_per_problem=mean(numbers["device_s"], "device-s"),
    )


def against_run(base: Run, run: Run) -> Gate:
    return against_baseline((), compare(base, run), base, run)


def promised_by(runs: Sequence[dict[str, Floats]]) -> dict[str, Estimate | None]:
    """Return what advice promises of single answers, of so many samples of each problem.

    The fresh run is at a pace of its own, and draws its samples (`half_width`).
    """
    shares = np.mean([each["correct"] for each in runs], axis=0)
    value, samples, problems = float(shares.mean()), len(runs), shares.size
    same = fresh(value, of_single_samples(shares, samples), problems).interval()
    other = others(value, float(shares.var()), problems).interval()
    found: dict[str, Estimate | None] = {"accuracy": both(value, "1", same, other)}
    for name, column, q, unit in (
        ("latency_s", "latency_s", None, "s"),
        ("latency_p95_s", "latency_s", 0.95, "s"),
        ("tokens", "tokens", None, "tokens"),
        ("device_s", "device_s", None, "device-s"),
        ("energy_j", "energy_j", None, "J"),
    ):
        numbers = np.array(
            [each[column].mean() if q is None else np.quantile(each[column], q) for each in runs]
        )
        paces = RUN_TO_RUN * (column != "tokens")  # of the recorded runs it is in their spread
        half = np.hypot(half_width(samples, numbers), Z95 * paces)
        value = float(numbers.mean())
        ends = [
            Estimate(value=value, low=value * np.exp(-wide), high=value * np.exp(wide), unit=unit)
            for wide in (half, np.sqrt(2) * half)
        ]
        found[name] = both(value, unit, *ends)
    return found


def both(value: float, unit: str, same: Estimate, other: Estimate) -> Estimate:
    same_ends, other_ends = (Interval(low=each.low, high=each.high) for each in (same, other))
    return Estimate.predicted(value, unit, fresh=same_ends, others=other_ends, of="others")


def against_promise(base: Run, run: Run, runs: Sequence[dict[str, Floats]]) -> Gate:
    assert base.policy is not None
    expected = Expectations(
        engine=base.engine,
        policy=complete(base.policy),
        promised=promised_by(runs),
        assumed={},
        concurrency=cast(int, base.conditions[0]),
        workload=base.workload,
        budget=Budget(),
    )
    return against_promises(expected, run, "expect.json")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Runs that are worse than the first: how they are called, and the number that tells it."""

    name: str
    metric: str | None = None
    loses: float = 0.0
    longer: float = 0.0


CASES = (
    Case(name="equal"),
    Case(name="5 points lower", metric="accuracy", loses=0.05),
    Case(name="20 % longer", metric="latency_s.p95", longer=0.2),
)
SAMPLES = 8  # of each problem, that a promise is made of
Law = Callable[[np.random.Generator], Draw]


def print_row(
    case: Case, name: str, template: Run, law: Law, repeats: int, kinds: Sequence[str]
) -> None:
    """Print how many gates failed, in how many the check did, and the power that they printed."""
    for kind in kinds:
        failed, broken, told = 0, 0, []
        for seed in range(repeats):
            rng = np.random.default_rng([seed, int(case.loses * 100), int(case.longer * 100)])
            draw = law(rng)
            first = draw(rng, 0.0, 0.0)
            base = run_of(template, "base", first)
            worse = run_of(template, "new", draw(rng, case.loses, case.longer))
            if kind == "run":
                judged = against_run(base, worse)
            else:
                more = [draw(rng, 0.0, 0.0) for _ in range(SAMPLES - 1)]
                judged = against_promise(base, worse, [first, *more])
            failed += bool(judged.broken)
            for each in judged.checks:
                if each.reach is not None and each.judged and each.reach.metric == case.metric:
                    broken += each.verdict == "broken"
                    told.append(each.reach.power(judged.judged).share)
        low, high = jeffreys(failed, repeats)
        text = f"{kind:<8} {case.name:<15} {name:<24} {failed:>4} of {repeats} "
        text += f"[{100 * low:.1f}, {100 * high:.1f}] %"
        if told:
            text += f", by it alone {broken} of {len(told)}, printed {100 * np.mean(told):.0f} %"
        print(text, flush=True)


def main(repeats: int) -> None:
    votes = [summarise(Recording.open(path))[0] for path in sorted(SHIPPED.glob("*seqs64-maj@16*"))]
    for case in CASES:
        count = repeats if case.metric is None else repeats // 2
        for size in SIZES:
            law = partial(made_up, problems=size)
            print_row(case, f"{size} made up", votes[0], law, count, ("run", "promise"))
        for run in votes:
            law = partial(_of_bundled, run)
            print_row(case, f"{run.problems} of {run.engine.model}", run, law, count, ("run",))


def _of_bundled(run: Run, _: np.random.Generator) -> Draw:
    return bundled(run, 8)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
