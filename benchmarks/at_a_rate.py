"""How far `replay --rate` and `advise --rate` lie from a stream that goes on for long.

``python -m benchmarks.at_a_rate [--problems 24] [--passes 200]`` takes that many problems of each
shipped vote, at three shares of what the engine can serve, and replays a stream of many more
arrivals than the two verbs do. Both use the same step times, so that what is told is the load's
part of the error: percent of the mean, p50 and p95 of latency, the mean of absolute values over
seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

import profiler.demo
from advisor.advice.advisor import Advisor
from advisor.evidence.runs import RecordedProblem
from advisor.replay.limits import limits_of
from advisor.replay.replay import replay
from advisor.replay.workload import ReplayWorkload
from advisor.step_time.cost import linear_cost
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from traces.recording.reader import Held, Recording
from traces.recording.tables import TABLES
from traces.statistics import Floats
from traces.summary.run import summarise

LOADS = (0.3, 0.5, 0.7)
NAMES = ("latency_s", "latency_p50_s", "latency_p95_s")


def figures(latency_s: Floats) -> Floats:
    return np.array([latency_s.mean(), *np.quantile(latency_s, (0.5, 0.95))])


def long_stream(
    advisor: Advisor, row: int, draws: Sequence[Sequence[RecordedProblem]], rate: float, passes: int
) -> Floats:
    """Return the mean, p50 and p95 of many passes, each in an order of its own."""
    candidate = advisor.space.candidate(row)
    rng = np.random.default_rng(99)
    loads = [
        draws[number % len(draws)][place]
        for number in range(passes)
        for place in rng.permutation(len(draws[0]))
    ]
    arrivals = np.cumsum(rng.exponential(1 / rate, len(loads)))
    workload = ReplayWorkload.from_loads(loads, arrivals)
    law = advisor.model.law(candidate.engine)
    limits = limits_of(candidate.engine, candidate.facts, workload)
    run = replay(workload, linear_cost(law.seconds, law.reads, law.most), limits)
    edge = len(draws[0])
    return figures(run.latency_s[edge:-edge])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--passes", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    shipped = Path(profiler.demo.__file__).parent / "recordings"
    print(f"{'recording':14} {'load':>4}  off in percent: mean, p50, p95 of replay | of advise")
    for path in sorted(shipped.glob("*seqs64-maj*")):
        base = Recording.open(path)
        (run,) = summarise(base)
        assert run.policy is not None
        few = base.problems["problem_id"].unique().sort()[: given.problems].to_list()
        tables = {name: base.frame(name) for name in TABLES}
        tables |= {
            name: table.filter(pl.col("problem_id").is_in(few))
            for name, table in tables.items()
            if "problem_id" in table.columns
        }
        held = Held(base.path, base.manifest, tables=tables)
        off: dict[float, list[Floats]] = {load: [] for load in LOADS}
        for seed in range(given.seeds):
            advisor = Advisor.fit([held], draws=100, seed=seed)
            (row,) = advisor.space.rows_of(run.engine, run.policy)
            kind = advisor.space.kinds[advisor.space.kind[row]]
            draws = advisor.policy_work.problems(kind.pool, kind.policy)
            for load in LOADS:
                rate = load * advisor.replays.capacity_per_s(row)
                truth = long_stream(advisor, row, draws, rate, given.passes)
                question = Question(
                    engine=run.engine, policy=run.policy, rate_per_s=rate, seed=seed
                )
                told = predict(held, run, question).predicted.latency_s
                state = advisor.under(rate)
                state.replay([row])
                place = state.metrics.place[row]
                advised = [state.metrics.estimate(name, place, price=None) for name in NAMES]
                both = [told[tag] for tag in ("mean", "p50", "p95")] + advised
                values = np.array([np.nan if each is None else each.value for each in both])
                off[load].append(np.abs(values / np.tile(truth, 2) - 1))
        for load, each in off.items():
            found = 100 * np.mean(each, axis=0)
            one, other = (
                " ".join(f"{value:5.1f}" for value in half) for half in np.split(found, 2)
            )
            print(f"{path.name[:14]:14} {load:4.1f}  {one} | {other}", flush=True)


if __name__ == "__main__":
    main()
