"""Published serving points against the prior: ``python benchmarks/silicon.py [--runs FOLDER]``.

Needs ttscope[prior]. Every vLLM row of silicon_sample.csv, and with `--runs` two labs' runs
(shared/data/gpu_runs), priced as `ttscope replay --gpu` would with vLLM's defaults on that GPU:
the same tables, memory rule, limits and replay. Nothing is fitted here. Printed are how many points
were priced, why the others were not, and the error of TPOT by model, precision, GPU, parallelism
and requests in flight. `--out FILE` writes one line a point. `--keep TEXT` prices the points alone
whose lab, model, system or precision has it.

A closed loop is sent as its client did: all in flight at once, ten times as many in all, lengths
drawn as the client drew them (seeded), and means over all requests.
"""

import argparse
import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from serving_points import CLOSED, OPEN, ROUNDS, Point, read_points

from advisor.replay.limits import limits_of
from advisor.replay.replay import replay
from advisor.replay.result import Replayed
from advisor.replay.workload import Workload
from advisor.step_time.cost import StepCost
from advisor.step_time.host.prompts import PromptPart
from advisor.step_time.prior.defaults import BLOCK, LIMITS, as_on, with_blocks
from advisor.step_time.prior.offers import device_of, memory_on
from advisor.step_time.prior.recalibration import PriorTimes, cost_of
from advisor.step_time.prior.relatives import read_gpu
from advisor.step_time.prior.tables import PriorTables
from traces.errors import TablesError, UsageError
from traces.schema.engine import EngineConfig, ModelFacts

SEED: Final = 19
APART: Final = 3.0  # times what a run took, after which the next one on the same server begins


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A point with the prior's times, in seconds; `why` says why there are none."""

    point: Point
    tpot_s: float | None = None
    ttft_s: float | None = None
    latency_s: float | None = None
    why: str | None = None

    @property
    def ratio(self) -> float | None:
        """Predicted over measured: TPOT, or the whole batch's time where only that is known."""
        measured = self.point.tpot_s or self.point.latency_s
        told = self.latency_s if self.point.tpot_s is None else self.tpot_s
        return None if measured is None or told is None else told / measured


@cache
def tables_of(system: str) -> PriorTables:
    """Return a system's tables. Raises UsageError where there are none."""
    return read_gpu(system)


@cache
def priced_engine(
    system: str,
    facts: ModelFacts,
    engine: EngineConfig,
    *,
    truncated: bool = False,
    prompts: PromptPart | None = None,
) -> tuple[EngineConfig, StepCost]:
    """Return an engine as vLLM starts it on a GPU, and what its steps cost.

    Tokens may be drawn from `truncated` vocabularies. `prompts` stands for what was learned of
    steps with prompts.

    Raises UsageError and TablesError for what cannot be priced, with the reason.
    """
    tables = tables_of(system)
    given = ["async_scheduling", "enable_prefix_caching"]
    given += [name for name in LIMITS if getattr(engine, name) is not None]
    there, _ = as_on(device_of(tables), engine, given=given)
    there = replace(there, gpu=tables.device)
    memory = memory_on(tables, there, facts)
    if memory is not None:
        there = with_blocks(memory, there, facts)
    ranks = there.data_parallel_size
    times = PriorTimes(tables=tables, facts=facts, found=None, ranks=ranks, truncated=truncated)
    if prompts is not None:
        return there, cost_of(replace(times.prior(there), prompts=prompts), there)
    return there, times.times(there, 0).cost


def workload_of(point: Point) -> Workload:
    """Return what was asked of an engine: of one data-parallel rank, its share."""
    draw = np.random.default_rng(SEED)
    if point.load == OPEN:
        assert point.requests and point.rate_per_s
        gaps = draw.exponential(1.0, point.requests)
        come = np.cumsum(gaps) - gaps[0]
        sizes = draw.exponential(1.0, (2, point.requests))  # ShareGPT's spread is about its mean
        prompts, outputs = (
            np.maximum(np.rint(mean * size / size.mean()), 2).astype(np.int64)
            for mean, size in zip((point.prompt_tokens, point.output_tokens), sizes, strict=True)
        )
        rates = [*(rate for rate, _ in point.before), point.rate_per_s]
        starts = np.cumsum([0.0, *(APART * took for _, took in point.before)])
        names = np.cumsum(-(-prompts // BLOCK)).tolist()
        blocks = [
            range(last - -(-n // BLOCK), last) for n, last in zip(prompts, names, strict=True)
        ]
        return Workload.from_requests(
            np.tile(prompts, len(rates)),
            np.tile(outputs, len(rates)),
            arrivals=np.concatenate([s + come / r for s, r in zip(starts, rates, strict=True)]),
            prefix_blocks=blocks * len(rates),
            prefix_block_tokens=BLOCK,
        )
    count = flight_of(point)
    if point.load == CLOSED:
        count *= ROUNDS
        shape = draw.uniform(*point.drawn, (2, count))
    else:
        shape = np.ones((2, count))
    prompts, outputs = (
        np.maximum(np.rint(size * row), 2).astype(np.int64)
        for size, row in zip((point.prompt_tokens, point.output_tokens), shape, strict=True)
    )
    arrivals = None if point.load == CLOSED else np.zeros(count)
    return Workload.from_requests(prompts, outputs, arrivals=arrivals)


def flight_of(point: Point) -> int:
    """Return the requests in flight on one data-parallel rank."""
    assert point.in_flight
    return max(-(-point.in_flight // point.engine.data_parallel_size), 1)


def kept_of(point: Point, work: Workload) -> slice:
    """Return the requests that a point's times are of: not those of runs before it."""
    count = len(work.output_tokens)
    return slice(count - (point.requests or count), count)


def replayed(point: Point, engine: EngineConfig, cost: StepCost) -> tuple[Workload, Replayed]:
    """Return a point's workload and its replay."""
    work = workload_of(point)
    limits = limits_of(engine, point.facts, work)
    flight = flight_of(point) if point.load == CLOSED else None
    return work, replay(work, cost, limits, concurrency=flight)


def priced(
    point: Point, price: Callable[[Point], tuple[EngineConfig, StepCost]] | None = None
) -> Priced:
    """Return a point with its times from the prior, or from what `price` says of it."""
    if point.facts is None or point.unknown is not None:
        return Priced(point=point, why=point.unknown)
    try:
        if price is not None:
            engine, cost = price(point)
        else:
            engine, cost = priced_engine(
                point.system, point.facts, point.engine, truncated=point.truncated
            )
        work, done = replayed(point, engine, cost)
    except (UsageError, TablesError, ValueError) as error:
        return Priced(point=point, why=str(error).removeprefix("--gpu: "))
    kept = kept_of(point, work)
    spent = (done.end_s - done.first_token_s)[kept]
    tpot = spent / np.maximum(work.output_tokens[kept] - 1, 1)
    return Priced(
        point=point,
        tpot_s=float(np.mean(tpot)),
        ttft_s=float(np.mean(done.ttft_s[kept])),
        latency_s=done.makespan_s,
    )


def errors(ratios: Sequence[float]) -> str:
    """Return count, mean and median absolute error, and bias (of the log), in percent."""
    off = np.array(ratios)
    size = 100 * np.abs(off - 1)
    bias = 100 * (np.exp(np.mean(np.log(off))) - 1)
    return f"{len(off):>5}{np.mean(size):>8.1f}{np.median(size):>8.1f}{bias:>+8.1f}" + (
        f"{off.min():>8.2f}{off.max():>6.2f}"
    )


def parallel(point: Point) -> str:
    """Return a point's parallelism in short: `tp4`, `tp1 dp4 ep`."""
    engine = point.engine
    dp = f" dp{engine.data_parallel_size}" if engine.data_parallel_size > 1 else ""
    return f"tp{engine.tensor_parallel_size}{dp}" + (" ep" if engine.expert_parallel else "")


BY: Final[dict[str, Callable[[Point], object]]] = {
    "lab": lambda p: p.lab,
    "model": lambda p: f"{p.lab} {p.model}",
    "precision": lambda p: f"{p.lab} {p.precision}",
    "GPU": lambda p: f"{p.lab} {p.system}",
    "parallelism": lambda p: f"{p.lab} {parallel(p)}",
    "requests in flight": lambda p: (p.lab, p.in_flight or f"{p.rate_per_s:g}/s"),
    "vLLM": lambda p: f"{p.lab} {p.engine.vllm_version or '-'}",
}


def report(found: Sequence[Priced]) -> None:
    """Print how many were priced, why others were not, and the errors."""
    done = [(each, ratio) for each in found if (ratio := each.ratio) is not None]
    print(f"{len(done):,} of {len(found):,} points priced")
    labs = Counter(each.point.lab for each in found)
    for lab, count in labs.items():
        print(f"  {lab}: {sum(each.point.lab == lab for each, _ in done):,} of {count:,}")
    print("not priced:")
    for (lab, why), count in Counter(
        (each.point.lab, each.why) for each in found if each.why
    ).most_common():
        print(f"  {count:>5} {lab}: {why}")
    for title, key in BY.items():
        groups: dict[object, list[float]] = defaultdict(list)
        for each, ratio in done:
            groups[key(each.point)].append(ratio)
        print(f"\nTPOT by {title}: points, mean and median |error| %, bias %, least and most ratio")
        for name, ratios in sorted(groups.items(), key=lambda item: str(item[0])):
            label = " ".join(map(str, name)) if isinstance(name, tuple) else str(name)
            print(f"  {label:<42}{errors(ratios)}")


def write(path: Path, found: Iterable[Priced]) -> None:
    """Write a line a point: what ran, measured and predicted, or why there is no prediction."""
    rows = []
    for each in found:
        p, ran = each.point, each.point.engine
        times = {"tpot_ms": p.tpot_s, "prior_tpot_ms": each.tpot_s, "ttft_ms": p.ttft_s,
                 "prior_ttft_ms": each.ttft_s}  # fmt: skip
        rows.append({
            "name": p.name, "lab": p.lab, "model": p.model, "system": p.system,
            "precision": p.precision, "vllm": ran.vllm_version, "tp": ran.tensor_parallel_size,
            "dp": ran.data_parallel_size, "ep": ran.expert_parallel, "load": p.load,
            "prompt": p.prompt_tokens, "output": p.output_tokens, "in_flight": p.in_flight,
            "rate": p.rate_per_s,
            **{name: None if s is None else round(1e3 * s, 4) for name, s in times.items()},
            "latency_s": p.latency_s, "prior_latency_s": each.latency_s, "why": each.why,
        })  # fmt: skip
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, rows[0] if rows else ())
        lines.writeheader()
        lines.writerows(rows)


def chosen(given: argparse.Namespace) -> list[Point]:
    """Return the points that the options name."""
    return [
        point
        for point in read_points(given.runs, given.configs)
        if given.keep is None
        or given.keep in f"{point.lab} {point.model} {point.system} {point.precision}"
    ]


def options() -> argparse.ArgumentParser:
    """Return the options that say which points are read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder with argonne/ and iog/")
    parser.add_argument("--configs", type=Path, help="folder of config.json files of models")
    parser.add_argument("--keep", help="price the points alone whose lab, model, .. has this text")
    return parser


def main() -> None:
    parser = options()
    parser.add_argument("--out", type=Path, help="write a line a point to this CSV")
    given = parser.parse_args()
    found = [priced(point) for point in chosen(given)]
    report(found)
    if given.out is not None:
        write(given.out, found)


if __name__ == "__main__":
    main()
