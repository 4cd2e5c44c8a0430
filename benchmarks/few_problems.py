"""What few problems can tell: how often intervals hold, chances come true, and picks meet limits.

Problems are drawn from known laws and judged by the code of `advise`. Times are log-normal (sigma
0.5 or 1), heavy-tailed (Pareto, index 2.5), or one in twenty takes eight times as long. Answers are
right with a chance of 0.8, or shares of 16 samples that a problem of beta-distributed difficulty
has right. Intervals and chances are held against a run of as many other problems, picks and jumps
against a million draws, all with a step time that is off by 5 %.

    python -m benchmarks.few_problems [intervals] [chances] [picks] [jumps] [shared/data]

A folder has real requests of others (workloads, vllm_runs). Few of these are drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import numpy as np
import polars as pl

from advisor.advice.feasible import ReplayedCheck
from advisor.evidence.features import ZERO
from advisor.search.budget import Prices
from advisor.search.metrics import CandidateMetrics
from advisor.search.replayed import FreshRuns, ReplayedCandidate
from advisor.search.resampling import Resampling
from advisor.search.space import Candidate, Space
from advisor.step_time.law import StepLaw
from traces.schema.advice import Budget
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy
from traces.statistics import Floats, quantile_law

SETS = 200
SIZES = (5, 10, 20, 50, 100, 200)
METRICS = ("latency_s", "latency_p50_s", "latency_p95_s", "latency_p99_s", "accuracy")
BINS = (0.0, 0.1, 0.5, 0.8, 0.9, 1.01)  # of a chance
MODEL = 0.05  # spread (sd of the log) of step times
CANDIDATES = 24
Draw = Callable[[np.random.Generator, int], Floats]


def one_in_twenty(rng: np.random.Generator, size: int) -> Floats:
    return rng.lognormal(0, 0.3, size) * np.where(rng.random(size) < 0.05, 8.0, 1.0)


TIMES: dict[str, Draw] = {
    "log-normal 0.5": lambda rng, size: rng.lognormal(0, 0.5, size),
    "log-normal 1": lambda rng, size: rng.lognormal(0, 1.0, size),
    "Pareto 2.5": lambda rng, size: rng.pareto(2.5, size) + 1,
    "one in twenty": one_in_twenty,
}
RIGHT: dict[str, Draw] = {
    "right or wrong": lambda rng, size: (rng.random(size) < 0.8).astype(float),
    "shares of 16": lambda rng, size: rng.binomial(16, rng.beta(1.2, 0.5, size)) / 16,
}


class Stub(SimpleNamespace):
    """The parts of a space that a budget is read against."""

    def __len__(self) -> int:
        return len(self.kind)


@cache
def resampling(problems: int) -> Resampling:
    return Resampling(problems)


def metrics_of(
    times: Floats, right: Floats, luck: Mapping[Hashable, float] | None = None
) -> CandidateMetrics:
    """Return the metrics of candidates, each of one replay: [candidates, problems] of both.

    `luck` is by the candidate's place and its policy.
    """
    engines = [
        EngineConfig(model=f"m{place}", dtype="bfloat16", max_model_len=1024)
        for place in range(len(times))
    ]
    count = len(times)
    space = Stub(
        kinds=[
            SimpleNamespace(engine=each, policy=Policy(method="greedy"), prior=None)
            for each in engines
        ],
        kind=np.arange(count),
        replicas=np.ones(count, dtype=np.int64),
        max_num_seqs=np.zeros(count, dtype=np.int64),
        max_num_batched_tokens=np.zeros(count, dtype=np.int64),
        usual=np.ones((count, 2), dtype=np.int64),
        unusual=np.zeros(count),
        devices=np.ones(count, dtype=np.int64),
        power={},
        powered=np.full(count, -1),
        alone=np.ones(count, dtype=bool),
        made=SimpleNamespace(has_engine=lambda _: True),
        judged=True,
    )
    found = CandidateMetrics(
        cast(Space, space), resampling(times.shape[1]), rate_per_s=None, luck=luck
    )
    law = StepLaw(
        seconds=np.zeros(len(ZERO)), fewest=0.0, high=np.zeros(len(ZERO)), sigma=MODEL,
        sigma_outside=MODEL, runs=3, repeats=3, repeats_outside=3,
    )  # fmt: skip
    for place, engine in enumerate(engines):
        pool = SimpleNamespace(runs=[1], curve="published", key=place)
        candidate = Candidate(
            engine=engine, policy=Policy(method="greedy"), pool=cast(Any, pool), facts=None,
            recorded=True,
        )  # fmt: skip
        own = times[place][None, None]
        found.add(
            place,
            ReplayedCandidate(
                candidate=candidate,
                law=law,
                accuracy=right[place],
                tokens=times[place],
                flops=times[place],
                speeds=np.ones(1),
                latency_s=own,
                device_s=own,
                capacity_per_s=1.0,
                keeps_up=True,
                extrapolated=False,
                beyond=0.0,
                totals=ZERO,
                paid=1.0,
                step_s=1.0,
                requests_per_step=1.0,
                batch=1.0,
                one_more=unasked,
                spreads_of=lambda _: {},
                replay_again=partial(none_again, times.shape[1]),
            ),
        )
    return found


def none_again(problems: int) -> FreshRuns:
    """Return no run of the same problems, which no limit asks about."""
    none = np.empty((0, problems))
    return FreshRuns(latency_s=none, device_s=none, tokens=none, share=0.0, too_little=1.0)


def unasked() -> NoReturn:
    """Stand for what tells one more run's accuracy, which no limit asks about."""
    raise AssertionError("the accuracy of one more run was asked about")


@cache
def truth(draw: Draw, metric: str) -> float:
    return true_value(metric, draw(np.random.default_rng(0), 1_000_000))


def true_value(name: str, values: Floats) -> float:
    if not name.startswith("latency_p"):
        return float(values.mean())
    return float(np.quantile(values, int(name[9:11]) / 100))


def laws() -> Iterator[tuple[str, Draw, tuple[str, ...]]]:
    for name, draw in TIMES.items():
        yield name, draw, METRICS[:-1]
    for name, draw in RIGHT.items():
        yield name, draw, METRICS[-1:]


def off(rng: np.random.Generator, count: int = 1) -> Floats:
    """Return by how much steps take longer than predicted."""
    return np.asarray(np.exp(MODEL * rng.normal(size=count) - MODEL**2 / 2))


def row_of(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def budget_of(metric: str, limit: float, **more: Any) -> Budget:
    if metric == "accuracy":
        return Budget(min_accuracy=limit, **more)
    q = int(metric[9:11]) if metric != "latency_s" else None
    return Budget(max_latency_s=limit, latency_percentile=q, **more)


def intervals() -> None:
    """Print in how many sets a run of as many others lies below and above its 90 % interval."""
    row_of("a run lies below, above", "", *SIZES)
    row_of(*["---"] * (2 + len(SIZES)))
    for name, draw, metrics in laws():
        for metric in metrics:
            cells = []
            for size in SIZES:
                rng = np.random.default_rng([size, 1])
                told = np.zeros(3)
                for _ in range(SETS):
                    values = draw(rng, size)
                    drawn = metrics_of(values[None], values[None])
                    true = true_value(metric, draw(rng, size))
                    true *= 1.0 if metric == "accuracy" else float(off(rng)[0])
                    found = drawn.estimate(metric, 0, price=None)
                    assert found is not None
                    told += (
                        found.low is not None and true < found.low - 1e-12,
                        found.high is not None and true > found.high + 1e-12,
                        found.high is None,
                    )
                low, high, never = told / SETS
                cells.append(f"{low:.1%}, {'-' if never > 0.5 else f'{high:.1%}'}")
            row_of(name, metric, *cells)


def chances() -> None:
    """Print how often a run of as many others meets limits, by the chance that was said of it."""
    bins = list(pairwise(BINS))
    row_of("said, came true", "problems", *(f"{a:.0%} to {min(b, 1):.0%}" for a, b in bins))
    row_of(*["---"] * (2 + len(bins)))
    for metric in METRICS:
        for size in (1, 2, *SIZES):
            rng = np.random.default_rng([size, 2])
            said, met = [], []
            for _, draw, metrics in laws():
                for _ in range(SETS if metric in metrics else 0):
                    values, true = draw(rng, size), truth(draw, metric)
                    drawn = metrics_of(values[None], values[None])
                    came = true_value(metric, draw(rng, size))
                    if metric == "accuracy":
                        limit = float(rng.uniform(0, 1))
                        met.append(came >= limit)
                    else:
                        limit = true * float(np.exp(rng.uniform(-1.2, 1.2)))
                        met.append(came * float(off(rng)[0]) <= limit)
                    budget = budget_of(metric, limit)
                    said.append(ReplayedCheck(drawn, budget, Prices(budget, None)).chance[0])
            told, true_ones, cells = np.array(said), np.array(met), []
            for low, high in bins:
                some = (told >= low) & (told < high)
                shares = [f"{each[some].mean():.0%}" for each in (told, true_ones) if some.any()]
                cells.append(f"{', '.join(shares)} of {some.sum()}" if shares else "")
            row_of(metric, size, *cells)


def picks() -> None:
    """Print how often the limits of picks are met, and what picks lose against the best.

    Problems are as hard for all candidates as for one, but for a part of their own. The most
    accurate candidate within the limit is wanted.
    """
    row_of("limited", "problems", "no pick", "said", "met", "lost, median", "p90")
    row_of(*["---"] * 7)
    for metric in ("latency_s", "latency_p95_s", "latency_p99_s"):
        for size in SIZES:
            rng = np.random.default_rng([size, 3])
            said, met, lost = [], [], []
            for number in range(SETS // 2):
                draw = list(TIMES.values())[number % len(TIMES)]
                speed = np.exp(rng.uniform(-0.7, 0.7, CANDIDATES))
                skill = 0.5 + 0.3 * np.log(speed) + rng.normal(0, 0.1, CANDIDATES)
                skill = np.clip(skill, 0.05, 0.95)
                apart = np.exp(rng.normal(0, 0.3, (CANDIDATES, size)))
                many = draw(rng, 50_000) * np.exp(rng.normal(0, 0.3, 50_000))
                true = speed * true_value(metric, many) * off(rng, CANDIDATES)
                right = (rng.random((CANDIDATES, size)) < skill[:, None]).astype(float)
                drawn = metrics_of(speed[:, None] * draw(rng, size) * apart, right)
                limit = float(rng.uniform(*np.quantile(true, (0.2, 1.0)))) * 1.3
                budget = budget_of(metric, limit, optimise="accuracy")
                check = ReplayedCheck(drawn, budget, Prices(budget, None))
                if (pick := check.best()) is not None:
                    able = true <= limit
                    said.append(check.chance[pick])
                    met.append(able[pick])
                    lost.append(max(skill[able].max(initial=0.0) - skill[pick], 0.0))
            none = f"{1 - len(said) / (SETS // 2):.0%}"
            if not said:
                row_of(metric, size, none, "", "", "", "")
                continue
            shares = f"{np.mean(said):.0%}", f"{np.mean(met):.0%}"
            losses = f"{np.median(lost):.3f}", f"{np.quantile(lost, 0.9):.3f}"
            row_of(metric, size, none, *shares, *losses)


def jumps() -> None:
    """Print how often 90 % sure limits on p95 are met where some problems run into max_tokens.

    They take eight times the usual time, the others are log-normal (sigma 0.5).
    """
    row_of("run into it", *SIZES)
    row_of(*["---"] * (1 + len(SIZES)))
    for share in (0.03, 0.05, 0.07, 0.1):

        def draw(rng: np.random.Generator, size: int, share: float = share) -> Floats:
            return np.where(rng.random(size) < share, 8.0, rng.lognormal(0, 0.5, size))

        cells, true = [], truth(draw, "latency_p95_s")
        for size in SIZES:
            rng = np.random.default_rng([size, 4])
            sets = [np.sort(draw(rng, size)) for _ in range(10 * SETS)]
            limits = [quantile_law(each, 0.95, np.array([0.9]))[0] for each in sets]
            cells.append(f"{np.mean(np.array(limits) >= true):.0%}")
        row_of(f"{share:.0%}", *cells)


def requests_of(folder: Path) -> dict[str, Floats]:
    """Return real tokens and seconds by name, of vLLM on a GPU and of two services."""
    runs = folder / "vllm_runs" / "RTX4090_Llama-3.1-8B" / "requests.jsonl"
    llama = pl.read_ndjson(runs)
    azure = pl.read_csv(folder / "workloads" / "azure_2023_conv.csv")
    mooncake = pl.read_ndjson(folder / "workloads" / "mooncake_conversation_3000.jsonl")
    found = {
        "Llama tokens": llama["output_toks"],
        "Llama latency": llama["last_token_ts"] - llama["queued_ts"],
        "Mooncake tokens": mooncake["output_length"],
        "Azure tokens": azure["GeneratedTokens"],
        "Azure prompts": azure["ContextTokens"],
        "Mooncake prompts": mooncake["input_length"],
    }
    return {name: values.to_numpy().astype(float) for name, values in found.items()}


def real(folder: Path) -> None:
    """Print in how many sets the mean of all requests lies below and above the 90 % interval.

    Also the interval's half-width, and how often a limit on the mean is met if `advise` is 90 %
    sure of it.
    """
    sizes = SIZES[:4]
    row_of("requests", "sd", *(f"{size}: below, above, half-width, limit met" for size in sizes))
    row_of(*["---"] * (2 + len(sizes)))
    for name, values in requests_of(folder).items():
        cells, true = [], values.mean()
        for size in sizes:
            rng, told, widths = np.random.default_rng([size, 5]), np.zeros(3), []
            for _ in range(5 * SETS):
                some = rng.choice(values, size)
                low, sure, high = np.quantile(resampling(size).mean(some), (0.05, 0.9, 0.95))
                told += (true < low, true > high, true <= sure)
                widths.append((high - low) / 2 / some.mean())
            below, above, met = told / (5 * SETS)
            cells.append(f"{below:.0%}, {above:.0%}, {np.median(widths):.0%}, {met:.0%}")
        row_of(name, f"{values.std() / true:.0%}", *cells)


def main() -> None:
    parts = {"intervals": intervals, "chances": chances, "picks": picks, "jumps": jumps}
    for name in sys.argv[1:] or parts:
        parts[name]() if name in parts else real(Path(name))
        print()


if __name__ == "__main__":
    main()
