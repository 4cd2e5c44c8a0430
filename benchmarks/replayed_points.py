"""Published serving points priced and replayed as `ttscope replay --gpu` would, nothing fitted.

Needs ttscope[prior]. The same tables, memory rule, limits and replay, with vLLM's defaults on that
GPU. A closed loop is sent as its client did: all in flight at once, ten times as many in all,
lengths drawn as the client drew them (seeded), and means over all requests.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from serving_points import CLOSED, OPEN, ROUNDS, Point, read_points

from advisor.replay.limits import limits_of
from advisor.replay.replay import replay
from advisor.replay.result import Replayed
from advisor.replay.workload import ReplayWorkload
from advisor.step_time.cost import StepCost
from advisor.step_time.prior.defaults import BLOCK, LIMITS, as_on, with_blocks
from advisor.step_time.prior.offers import device_of, memory_on
from advisor.step_time.prior.recalibration import PriorTimes
from advisor.step_time.prior.relatives import read_gpu
from advisor.step_time.prior.tables import PriorTables
from traces.schema.engine import EngineConfig, ModelFacts

SEED: Final = 19
APART: Final = 3.0  # times what a run took, after which the next one on the same server begins


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
) -> tuple[EngineConfig, StepCost]:
    """Return an engine as vLLM starts it on a GPU, and what its steps cost.

    Tokens may be drawn from `truncated` vocabularies. Raises UsageError and TablesError for what
    cannot be priced, with the reason.
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
    return there, times.times(there, 0).cost


def workload_of(point: Point) -> ReplayWorkload:
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
        return ReplayWorkload.from_requests(
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
    elif point.skewed:
        shape = draw.exponential(1.0, (2, count))
        shape /= shape.mean(axis=1, keepdims=True)
    else:
        shape = np.ones((2, count))
    prompts, outputs = (
        np.maximum(np.rint(size * row), 2).astype(np.int64)
        for size, row in zip((point.prompt_tokens, point.output_tokens), shape, strict=True)
    )
    arrivals = None if point.load == CLOSED else np.zeros(count)
    return ReplayWorkload.from_requests(prompts, outputs, arrivals=arrivals)


def flight_of(point: Point) -> int:
    """Return the requests in flight on one data-parallel rank."""
    assert point.in_flight
    return max(-(-point.in_flight // point.engine.data_parallel_size), 1)


def kept_of(point: Point, work: ReplayWorkload) -> slice:
    """Return the requests that a point's times are of: not those of runs before it."""
    count = len(work.output_tokens)
    return slice(count - (point.requests or count), count)


def replayed(point: Point, engine: EngineConfig, cost: StepCost) -> tuple[ReplayWorkload, Replayed]:
    """Return a point's workload and its replay."""
    work = workload_of(point)
    limits = limits_of(engine, point.facts, work)
    flight = flight_of(point) if point.load == CLOSED else None
    return work, replay(work, cost, limits, concurrency=flight)


def times_of(point: Point, work: ReplayWorkload, done: Replayed) -> tuple[float, float]:
    """Return the mean TPOT and TTFT of a point's own requests, in seconds."""
    kept = kept_of(point, work)
    spent = (done.end_s - done.first_token_s)[kept]
    tpot = spent / np.maximum(work.output_tokens[kept] - 1, 1)
    return float(np.mean(tpot)), float(np.mean(done.ttft_s[kept]))


def errors(ratios: Sequence[float]) -> str:
    """Return count, mean and median absolute error, and bias (of the log), in percent."""
    off = np.array(ratios)
    size = 100 * np.abs(off - 1)
    bias = 100 * (np.exp(np.mean(np.log(off))) - 1)
    return f"{len(off):>5}{np.mean(size):>8.1f}{np.median(size):>8.1f}{bias:>+8.1f}" + (
        f"{off.min():>8.2f}{off.max():>6.2f}"
    )


def chosen(given: argparse.Namespace) -> list[Point]:
    """Return the points that the options name."""
    return [
        point
        for point in read_points(given.runs, given.configs)
        if given.keep is None
        or given.keep in f"{point.lab} {point.model} {point.system} {point.precision}"
    ]


def options(description: str | None) -> argparse.ArgumentParser:
    """Return the options that say which points are read."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=Path, help="folder with argonne/ and iog/")
    parser.add_argument("--configs", type=Path, help="folder of config.json files of models")
    parser.add_argument("--keep", help="price the points alone whose lab, model, .. has this text")
    return parser
