"""What stopping early saves: real runs of each rule in turn with the full majority vote.

    python -m benchmarks.early_stopping --model demo/l --in-flight 24 256 -o runs/early

Runs vLLM in this process. With so many problems in flight the full vote of n samples and every rule
answer the same problems, one after the other, `--repeats` times. Tokens and accuracy are of all
repeats, paired with the full vote by problem, with 90 % intervals over problems. Seconds are of
the process's CPU, which on one core of its own are the seconds of the run and on a shared one do
not depend on the neighbours' turns, and of the clock: the median of the ratios to the full vote of
the same repeat, with the lowest and the highest.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.step_probe import machine
from profiler.engines.interface import Engine
from profiler.engines.options import EngineOptions
from profiler.engines.start import start_engine
from profiler.runs.record import record
from profiler.workload.problems import Workload, load_workload
from traces.recording.reader import Recording
from traces.schema.estimate import Estimate
from traces.schema.tts.parameters import make_policy
from traces.schema.tts.policy import Policy
from traces.statistics import paired, paired_change
from traces.summary.run import summarise

RULES: tuple[Mapping[str, float | str], ...] = (
    {"method": "majority"},
    {"method": "early_stopping", "window": 3},
    {"method": "adaptive", "threshold": 0.95, "in_flight": 4},
    {"method": "adaptive", "threshold": 0.88, "in_flight": 3},
    {"method": "adaptive", "threshold": 0.88, "in_flight": 1},
)


@dataclass
class Ran:
    """The runs of one rule, a number or an array by problem for each repeat."""

    policy: Policy
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    correct: list[np.ndarray] = field(default_factory=list)


def run(engine: Engine, workload: Workload, ran: Ran, folder: Path, in_flight: int) -> None:
    """Record one run and keep what it took."""
    cpu, wall = time.process_time(), time.monotonic()
    path = record(workload, ran.policy, engine, folder, concurrency=in_flight)
    ran.cpu_s.append(time.process_time() - cpu)
    ran.wall_s.append(time.monotonic() - wall)
    (found,) = summarise(Recording.open(path))
    rows = found.rows.sort("problem_id")
    ran.steps.append(found.steps or 0)
    ran.latency_s.append(found.latency_s["mean"].value)
    ran.tokens.append(rows["tokens"].to_numpy().astype(float))
    ran.correct.append(rows["correct"].to_numpy().astype(float))


def label(policy: Policy) -> str:
    """Return the policy with how many of its samples run at a time."""
    several = dict(policy.rule).get("in_flight")
    return policy.label() + ("" if several is None else f", {several:g} in flight")


def ratio(mine: list[float], whole: list[float]) -> str:
    """Return the median of the ratios with the lowest and the highest."""
    ratios = np.array(mine) / np.array(whole)
    return f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"


def between(found: Estimate | None, scale: float, digits: int) -> str:
    """Return a difference with its interval."""
    if found is None or found.low is None or found.high is None:
        return "-"
    value, low, high = (
        f"{part * scale:+.{digits}f}" for part in (found.value, found.low, found.high)
    )
    return f"{value} [{low}, {high}]"


def table(model: str, in_flight: int, runs: list[Ran]) -> None:
    """Print a line per rule."""
    print(f"\n{model}, {in_flight} problems in flight")
    print(
        "| policy | tokens | change, % | accuracy | difference | steps | CPU s | x | clock s | x "
        "| mean latency, x |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    whole = runs[0]
    for ran in runs:
        tokens, right = np.mean(ran.tokens, axis=0), np.mean(ran.correct, axis=0)
        cells = [
            label(ran.policy),
            f"{tokens.mean():.0f}",
            between(paired_change(np.mean(whole.tokens, axis=0), tokens), 100, 0),
            f"{right.mean():.3f}",
            between(paired(np.mean(whole.correct, axis=0), right, "1"), 1, 3),
            f"{np.median(ran.steps):,.0f}",
            f"{np.median(ran.cpu_s):.1f}",
            ratio(ran.cpu_s, whole.cpu_s),
            f"{np.median(ran.wall_s):.1f}",
            ratio(ran.wall_s, whole.wall_s),
            ratio(ran.latency_s, whole.latency_s),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", default="demo/l")
    options.add_argument("--problems", type=int, default=400)
    options.add_argument("--seed", type=int, default=20282)
    options.add_argument("--n", type=int, default=16)
    options.add_argument("--in-flight", type=int, nargs="+", default=[24])
    options.add_argument("--max-num-seqs", type=int, default=256)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("-o", "--output", type=Path, required=True)
    given = options.parse_args()
    workload = load_workload("demo", problems=given.problems, seed=given.seed)
    engine = start_engine(
        EngineOptions(model=given.model, dtype="float32", max_num_seqs=given.max_num_seqs),
        thinking_budget=False,
    )
    print(machine())
    common = {"n": given.n, "temperature": 0.8, "max_tokens": 400}
    warm = make_policy({"method": "majority", **common})
    record(workload, warm, engine, given.output / "warm", concurrency=24)
    for in_flight in given.in_flight:
        runs = [Ran(make_policy({**rule, **common})) for rule in RULES]
        for repeat in range(given.repeats):
            for index, ran in enumerate(runs):
                folder = given.output / f"{in_flight}-{index}-{repeat}"
                run(engine, workload, ran, folder, in_flight)
        table(given.model, in_flight, runs)
    engine.close()


if __name__ == "__main__":
    main()
