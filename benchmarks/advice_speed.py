"""How long advice takes over 100,000 candidates, beside aiconfigurator's published figure.

    python benchmarks/advice_speed.py [RECORDINGS] [--repeats 5]

The shipped recordings of three models, as if each had also run with tensor-parallel sizes 2, 4 and
8 on four types of device, so that some 200,000 candidates come together. Printed are wall and CPU
seconds of: all candidates and their metrics in closed form; an edit of a limit; another
price; another rate; and the whole answer, the replay of the leaders included. The models' fit and
the compilation of the replay are not in it (start-up). aiconfigurator says 300 candidates in 6.5 s
(its README); the ratio is of candidates per second of a core, on other machines than theirs.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from advisor.advice.advisor import Advisor
from advisor.evidence.gather import Evidence, gather
from advisor.evidence.keys import law_key
from advisor.search.resampling import Resampling
from advisor.search.space import explore
from advisor.step_time.fit import StepTimeModel
from traces.recording.reader import Recording, find_recordings
from traces.schema.advice import Budget
from traces.schema.engine import EngineConfig

SHIPPED = Path(__file__).parent.parent / "profiler" / "demo" / "recordings"
DEVICES = ("A100", "H100", "H200", "B200")
SIZES = (1, 2, 4, 8)
THEIRS = 300 / 6.5  # candidates a second


def widened(evidence: Evidence, model: StepTimeModel) -> Evidence:
    """Return the evidence as if its plain engines had run on all devices in all sizes."""

    def of(engine: EngineConfig, gpu: str, size: int) -> EngineConfig:
        return dataclasses.replace(engine, gpu=gpu, tensor_parallel_size=size, num_gpus=size)

    plain = [run for run in evidence.runs if run.engine.speculative is None]
    steps = [table for table in evidence.steps if table.engine.speculative is None]
    places = [(gpu, size) for gpu in DEVICES for size in SIZES]
    for number, (gpu, size) in enumerate(places):
        for table in steps:
            law = model.laws_[law_key(table.engine)]
            faster = law.seconds / (1 + 0.3 * (size - 1)) / (1 + number / 50)
            model.laws_[law_key(of(table.engine, gpu, size))] = dataclasses.replace(
                law, seconds=faster
            )
    return dataclasses.replace(
        evidence,
        steps=tuple(
            dataclasses.replace(table, engine=of(table.engine, *place))
            for place in places
            for table in steps
        ),
        runs=tuple(
            dataclasses.replace(run, engine=of(run.engine, *place))
            for place in places
            for run in plain
        ),
    )


def timed(what: str, call: Callable[[int], object], repeats: int) -> float:
    """Print the median seconds of a call, and return its CPU seconds."""
    walls, cpus = [], []
    for number in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call(number)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    wall, cpu = statistics.median(walls), statistics.median(cpus)
    print(f"{what:<58} {wall * 1e3:8.0f} ms wall {cpu * 1e3:8.0f} ms CPU", flush=True)
    return cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="?", type=Path, default=SHIPPED)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    evidence = gather([Recording.open(path) for path in find_recordings(given.recordings)])
    model = StepTimeModel().fit(evidence.steps)
    evidence = widened(evidence, model)

    def fresh(_: int = 0) -> Advisor:
        space = explore(evidence)
        advisor = Advisor(evidence, space, model, Resampling(len(space.problem_ids)))
        advisor.under(None)
        return advisor

    advisor = fresh()  # compiles
    count = len(advisor.space)
    print(f"{count:,} candidates of {len(advisor.space.kinds):,} engines with a policy")
    first = timed("all candidates, from recordings in memory", fresh, given.repeats)
    prices = {"prices": tuple((name, 1.0 + i) for i, name in enumerate(DEVICES))}
    limits = {"min_accuracy": 0.8, "max_gpus": 8, "latency_percentile": 95}

    def edit(number: int) -> object:
        return advisor.shortlist(Budget(max_latency_s=0.1 + number / 50, **limits)).leaders(24)

    edit(0)
    timed("a limit edited: filtered and sorted", edit, given.repeats)

    def price(number: int) -> object:
        changed = {"prices": tuple((name, 1.0 + i + number) for i, name in enumerate(DEVICES))}
        wanted = Budget(min_accuracy=0.8, max_gpus=8, optimise="cost", **changed)
        return advisor.shortlist(wanted).leaders(24)

    timed("another price, optimising cost", price, given.repeats)

    def rate(number: int) -> object:
        return advisor.shortlist(Budget(rate_per_s=2.0 + number, **limits)).leaders(24)

    timed("another rate", rate, given.repeats)

    def whole(number: int) -> object:
        return advisor.recommend(Budget(max_latency_s=0.2 + number / 20, **limits, **prices))

    timed("a whole answer, leaders replayed", whole, given.repeats)
    timed("the same again", whole, given.repeats)
    ratio = count / first / THEIRS
    print(f"{count / first:,.0f} candidates a CPU second, {ratio:,.0f} times aiconfigurator's")


if __name__ == "__main__":
    main()
