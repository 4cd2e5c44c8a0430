"""Real runs of vLLM replayed from operator times: ``python benchmarks/real_runs.py OPS RUN...``.

Pairs of folders: operator times of a GPU and model, and a run of it (meta.json, requests.jsonl).
The prompts' prefixes come from prefix_blocks.jsonl beside the run's folder. Nothing is fitted on
the run; it gives arrivals, token counts and the engine's settings. Printed are signed errors of
the mean, the median and the 95th percentile, then the same with one effect left out at a time.
TTFT counts from the arrival; the clocks of arrivals and of the engine are laid so that the request
that was queued soonest after its arrival was queued at once.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advisor.replay.limits import Limits
from advisor.replay.replay import replay
from advisor.replay.result import Replayed
from advisor.replay.workload import ReplayWorkload
from advisor.step_time.cost import StepCost, table_cost
from advisor.step_time.host.law import host_part
from advisor.step_time.operators.files import Operators, read_operators
from advisor.step_time.operators.tables import default_capture_sizes, step_tables
from traces.schema.engine import EngineConfig

Floats = npt.NDArray[np.float64]
MEASURES = ("TTFT", "TPOT", "end to end")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run as it was: seconds per request by measure, its workload and its engine."""

    seconds: dict[str, Floats]
    workload: ReplayWorkload
    limits: Limits
    capture_sizes: list[int]
    makespan_s: float


def read_run(folder: Path) -> Run:
    meta = json.loads((folder / "meta.json").read_text())
    lines = (folder / "requests.jsonl").read_text().splitlines()
    requests = [json.loads(line) for line in lines]
    names = (folder.parent / "prefix_blocks.jsonl").read_text().splitlines()
    prefixes = [json.loads(line)["prefix_blocks"] for line in names]
    column = {
        name: np.array([request[name] for request in requests], dtype=float)
        for name in ("input_toks", "output_toks", "arrival_time", "queued_ts", "first_token_ts",
                     "last_token_ts")
    }  # fmt: skip
    arrival = column["arrival_time"] + np.min(column["queued_ts"] - column["arrival_time"])
    order = np.argsort(arrival, kind="stable")
    decoded = np.where(column["output_toks"] > 1, column["output_toks"] - 1, np.nan)
    first, last = column["first_token_ts"], column["last_token_ts"]
    seconds = {
        "TTFT": first - arrival,
        "TPOT": (last - first) / decoded,
        MEASURES[2]: last - arrival,
    }
    engine, resolved = meta["engine_kwargs"], meta.get("resolved_config") or {}
    cache = meta.get("kv_cache") or {}
    blocks = cache.get("num_gpu_blocks")
    scheduler = resolved.get("scheduler_config") or {}
    compilation = resolved.get("compilation_config") or {}
    return Run(
        seconds={name: values[order] for name, values in seconds.items()},
        workload=ReplayWorkload.from_requests(
            column["input_toks"][order].astype(np.int64),
            column["output_toks"][order].astype(np.int64),
            arrivals=arrival[order] - arrival.min(),
            prefix_blocks=[prefixes[number] for number in order],
        ),
        limits=Limits(
            max_num_seqs=engine["max_num_seqs"],
            max_num_batched_tokens=engine["max_num_batched_tokens"],
            block_size=cache.get("block_size") or 16,
            num_blocks=None if blocks is None else blocks - 1,  # one block is vLLM's null block
            prefix_caching=cache.get("enable_prefix_caching", True),
            async_scheduling=scheduler.get("async_scheduling", True),
        ),
        capture_sizes=compilation.get("cudagraph_capture_sizes")
        or default_capture_sizes(engine["max_num_seqs"]),
        makespan_s=float(last.max() - arrival.min()),
    )


def cost_of(operators: Operators, run: Run, layers: int, **settings: Any) -> StepCost:
    assert run.limits.max_num_batched_tokens is not None
    assert run.limits.max_num_seqs is not None
    return table_cost(
        step_tables(
            operators,
            num_hidden_layers=layers,
            max_num_batched_tokens=run.limits.max_num_batched_tokens,
            max_num_seqs=run.limits.max_num_seqs,
            **{"capture_sizes": run.capture_sizes, **settings},
        )
    )


def errors(run: Run, replayed: Replayed) -> str:
    """Return the signed errors in percent, as cells."""
    decoded = np.maximum(run.workload.output_tokens - 1, 1)
    found = {
        "TTFT": replayed.ttft_s,
        "TPOT": (replayed.end_s - replayed.first_token_s) / decoded,
        "end to end": replayed.latency_s,
    }
    cells = []
    for name in MEASURES:
        known = np.isfinite(run.seconds[name])
        pair = found[name][known], run.seconds[name][known]
        for statistic in (np.mean, lambda x: np.quantile(x, 0.5), lambda x: np.quantile(x, 0.95)):
            ours, real = (float(statistic(values)) for values in pair)
            cells.append(f"{100 * (ours / real - 1):>+7.1f}")
    return " ".join("".join(cells[3 * n : 3 * n + 3]) for n in range(3))


# What published runs of synchronous engines take beyond their kernels (benchmarks/RESULTS.md).
HOST = host_part(EngineConfig(model="", vllm_version="0.12.0", async_scheduling=False)).seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folders", nargs="+", type=Path, metavar="OPERATORS RUN")
    options.add_argument("--num-hidden-layers", type=int, default=32, help="Llama-3.1-8B has 32")
    given = options.parse_args()
    if len(given.folders) % 2:
        options.error("give pairs of folders: operator times, and a run")
    for tables, folder in zip(given.folders[::2], given.folders[1::2], strict=True):
        operators, run = read_operators(tables), read_run(folder)
        layers, limits = given.num_hidden_layers, run.limits
        cost = cost_of(operators, run, layers)
        done = replay(run.workload, cost, limits)
        spent = np.inf
        for _ in range(5):
            begun = time.perf_counter()
            replay(run.workload, cost, limits)
            spent = min(spent, time.perf_counter() - begun)
        blocks = "no limit known" if limits.num_blocks is None else f"{limits.num_blocks:,} blocks"
        print(f"\n{folder.name}: {len(run.workload.prompt_tokens)} requests, {blocks}")
        print(f"{done.steps:,} steps, {done.preemptions} preemptions, {done.makespan_s:.1f} s"
              f" ({run.makespan_s:.1f} real), replayed in {1e3 * spent:.1f} ms")  # fmt: skip
        means = ", ".join(f"{name} {np.nanmean(run.seconds[name]):.4g} s" for name in MEASURES)
        print(f"real means: {means}")
        print(
            f"{'signed error, %':<26}"
            + " ".join(f"{name + ': mean p50 p95':>21}" for name in MEASURES)
        )
        rows: list[tuple[str, StepCost, Limits]] = [("as the engine does", cost, limits)]
        if operators.skew is not None:
            rows.append(("without skew", cost_of(operators, run, layers, skew=False), limits))
        rows += [
            ("a host's part, hidden", cost._replace(hidden=HOST), limits),
            ("a host's part, added", cost._replace(linear=HOST), limits),
            ("without prefix caching", cost, dataclasses.replace(limits, prefix_caching=False)),
        ]
        if limits.num_blocks is not None:
            fewer = int(0.99 * limits.num_blocks)
            rows.append(("1 % fewer blocks", cost, dataclasses.replace(limits, num_blocks=fewer)))
        for name, prices, scheduler in rows:
            print(f"{name:<26}{errors(run, replay(run.workload, prices, scheduler))}")


if __name__ == "__main__":
    main()
