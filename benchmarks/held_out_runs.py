"""Runs to fit step times on and to try a replay on: 24 configurations, repeated, interleaved.

    taskset -c 0 python benchmarks/held_out_runs.py FOLDER [--repeats 5] [--seed 5]

vLLM's CPU build runs the bundled reasoners with output lengths that the workload gives, so that
the repeats of a configuration do the same work and differ in time alone. The configurations are
balanced: every size with every max_num_seqs twice, and over these 18 every concurrency with every
n twice (two orthogonal Latin squares), and demo/l with a draft model and with n-gram lookup, three
times each at temperature 0. Configurations of one engine share its process, in an order that is
drawn anew in every round, as is the order of the engines; no two have a prompt in common. All
sample with vLLM's sampler at temperature 0.8, but those with drafts.

FOLDER keeps `plan.json` (the configurations), `workloads/` and a recording NAME-rREPEAT for each
run. Started again, it runs what is missing. At the end, or with --spread alone, it prints how far
the repeats of a configuration lie apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from profiler.demo import task
from profiler.engines.options import EngineOptions
from profiler.sweep.plan import EngineJobs, Job, run_plan
from traces.recording.manifest import NAME, read_manifest
from traces.recording.reader import Recording
from traces.schema.engine import Speculative
from traces.schema.record import Record
from traces.schema.tts.policy import Policy

SIZES, SEQS, CONCURRENCIES, NS = ("s", "m", "l"), (8, 16, 64), (1, 4, 16), (1, 4, 16)
DRAFT_MODEL = Speculative(method="draft_model", model="demo/s", num_speculative_tokens=3)
NGRAM = Speculative(
    method="ngram", num_speculative_tokens=3, prompt_lookup_min=2, prompt_lookup_max=4
)
# demo/l with drafts: (speculation, max_num_seqs, [(concurrency, n)])
DRAFTED = (
    (DRAFT_MODEL, 64, ((1, 4), (4, 4), (16, 1))),
    (NGRAM, 16, ((1, 16), (4, 4), (16, 1))),
)
BLOCK_SIZE = 32
BATCHED_TOKENS = 2048
MODEL_LEN = 1024
# Lengths: log-normal, a problem's samples around its own median.
MEDIAN_TOKENS, PROBLEM_SIGMA, SAMPLE_SIGMA, MOST_TOKENS = 40, 0.7, 0.35, 480
# Problems by concurrency and n: enough for a p95, in some ten seconds.
PROBLEMS = {
    **{(1, 1): 128, (1, 4): 48, (1, 16): 40},
    **{(4, 1): 160, (4, 4): 64, (4, 16): 48},
    **{(16, 1): 192, (16, 4): 96, (16, 16): 48},
}


@dataclass(frozen=True, kw_only=True)
class Configuration(Record):
    """An engine, how many problems are in flight, and how many samples each has."""

    name: str
    engine: EngineOptions
    concurrency: int
    n: int
    temperature: float

    def policy(self) -> Policy:
        """Return what draws the samples; a single one too, so that all have the same sampler."""
        return Policy(method="majority", n=self.n, temperature=self.temperature)


def configurations() -> list[Configuration]:
    made = []
    for i, size in enumerate(SIZES):
        for j, seqs in enumerate(SEQS):
            for shift in (0, 1):
                concurrency = CONCURRENCIES[(i + j + shift) % 3]
                n = NS[(i + 2 * j) % 3]
                made.append(_configuration(size, seqs, concurrency, n, None))
    for speculative, seqs, loads in DRAFTED:
        made += [_configuration("l", seqs, *load, speculative) for load in loads]
    return made


def _configuration(
    size: str, seqs: int, concurrency: int, n: int, speculative: Speculative | None
) -> Configuration:
    drafted = "" if speculative is None else f"-{speculative.method}"
    return Configuration(
        name=f"{size}-seqs{seqs}-c{concurrency}-n{n}{drafted}",
        engine=EngineOptions(
            model=f"demo/{size}",
            dtype="float32",
            max_model_len=MODEL_LEN,
            max_num_seqs=seqs,
            max_num_batched_tokens=BATCHED_TOKENS,
            block_size=BLOCK_SIZE,
            speculative=speculative,
        ),
        concurrency=concurrency,
        n=n,
        temperature=0.8 if speculative is None else 0.0,
    )


def workload(one: Configuration, seed: int) -> Iterator[dict[str, object]]:
    """Yield the lines of a configuration's workload.

    Half of the prompts are a row of the demo's task alone, three tenths have 30 to 150 letters
    before it, two tenths 150 to 400. Half of those with letters begin with the same 64.
    """
    draw = random.Random(f"{seed} {one.name}")
    shared = _letters(draw, 64)
    for index in range(PROBLEMS[one.concurrency, one.n]):
        row = task.row_text([draw.choice(task.TERMS) for _ in range(draw.choice(task.LEVELS))])
        kind = draw.random()
        before = 0
        if kind >= 0.5:
            before = draw.randint(30, 150) if kind < 0.8 else draw.randint(150, 400)
        letters = _letters(draw, before)
        if before and draw.random() < 0.5:
            letters = (shared + letters)[: max(before, 64)]
        middle = draw.gauss(math.log(MEDIAN_TOKENS), PROBLEM_SIGMA)
        lengths = [math.exp(draw.gauss(middle, SAMPLE_SIGMA)) for _ in range(one.n)]
        yield {
            "id": index,
            "prompt": letters + row,
            "output_tokens": [min(max(round(each), 4), MOST_TOKENS) for each in lengths],
        }


def _letters(draw: random.Random, count: int) -> str:
    return "".join(draw.choices(task.PREAMBLE_LETTERS, k=count))


def run(
    folder: Path,
    chosen: Sequence[Configuration],
    repeats: int,
    seed: int,
    lines_of: Callable[[Configuration, int], Iterator[dict[str, object]]] = workload,
) -> None:
    """Run what is missing, round by round."""
    (folder / "workloads").mkdir(parents=True, exist_ok=True)
    plan = []
    for one in chosen:
        lines = [json.dumps(line) + "\n" for line in lines_of(one, seed)]
        _write(folder / "workloads" / f"{one.name}.jsonl", "".join(lines))
        plan.append(one.to_json() | {"problems": len(lines)})
    _write(folder / "plan.json", json.dumps({"seed": seed, "configurations": plan}, indent=1))
    order = random.Random(seed)
    for repeat in range(repeats):
        by_engine: dict[EngineOptions, list[Configuration]] = {}
        for one in chosen:
            by_engine.setdefault(one.engine, []).append(one)
        engines = list(by_engine)
        order.shuffle(engines)
        for engine in engines:
            order.shuffle(by_engine[engine])
            jobs = tuple(_job(folder, one, repeat) for one in by_engine[engine])
            begun, before = time.time(), _ticks()
            outcomes = run_plan([EngineJobs(engine=engine, jobs=jobs)], folder)
            told = {
                "repeat": repeat,
                "jobs": [job.name for job in jobs],
                "begun": begun,
                "seconds": time.time() - begun,
                "cpu_seconds_by_state": {k: v - before[k] for k, v in _ticks().items()},
                "errors": [each.error for each in outcomes if each.error is not None],
            }
            if not all(each.skipped for each in outcomes):
                with (folder / "processes.jsonl").open("a") as file:
                    file.write(json.dumps(told) + "\n")
                print(json.dumps(told), flush=True)


def _job(folder: Path, one: Configuration, repeat: int) -> Job:
    return Job(
        name=f"{one.name}-r{repeat}",
        policy=one.policy(),
        workload=str(folder / "workloads" / f"{one.name}.jsonl"),
        problems=None,
        seed=0,
        concurrency=one.concurrency,
        repeat=repeat,
    )


def _write(path: Path, text: str) -> None:
    """Write a file, or refuse where it holds something else: the runs beside it are of that."""
    if path.exists() and path.read_text() != text:
        sys.exit(f"{path}: made with other settings; give another FOLDER")
    path.write_text(text)


def _ticks() -> dict[str, float]:
    """Return seconds by state (/proc/stat) of the cores that this process may use."""
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    total = dict.fromkeys(names, 0.0)
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name in mine:
            for state, count in zip(names, ticks, strict=False):
                total[state] += int(count) / os.sysconf("SC_CLK_TCK")
    return total


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """What one run came to. `work` is a digest of what its steps did, times apart."""

    p50_s: float
    p95_s: float
    run_s: float
    tokens: int
    steps: int
    work: str

    @classmethod
    def of(cls, path: Path) -> Repeat:
        recording = Recording.open(path)
        rows, steps = recording.problems, recording.steps
        taken = (rows["decided_at"] - rows["start"]).to_numpy() / 1e9
        p50, p95 = np.quantile(taken, (0.5, 0.95))
        whole = (rows["decided_at"].to_numpy().max() - rows["start"].to_numpy().min()) / 1e9
        did = steps.sort("step").select(*_DONE, "drafted", "accepted").rows()
        return cls(
            p50_s=float(p50),
            p95_s=float(p95),
            run_s=float(whole),
            tokens=int(recording.samples["output_tokens"].sum()),
            steps=steps.height,
            work=hashlib.sha256(repr(did).encode()).hexdigest(),
        )


_DONE = (
    "prefill_requests",
    "prefill_tokens",
    "decode_requests",
    "decode_tokens",
    "decode_kv_tokens",
    "waiting",
)


def spread(folder: Path, chosen: Sequence[Configuration], repeats: int) -> None:
    """Print a line per configuration: medians over its repeats, and how far they lie apart."""
    print(
        f"{'configuration':<28}{'runs':>5}{'work':>8}{'steps':>7}{'tokens':>8}{'run s':>7}"
        f"{'p50 ms':>9}{'sd %':>6}{'p95 ms':>9}{'sd %':>6}"
    )
    deviations = []
    for one in chosen:
        paths = [folder / f"{one.name}-r{repeat}" for repeat in range(repeats)]
        runs = [
            Repeat.of(path)
            for path in paths
            if (path / NAME).exists() and read_manifest(path).complete
        ]
        if not runs:
            continue
        work = "same" if len({each.work for each in runs}) == 1 else "differs"
        line = f"{one.name:<28}{len(runs):>5}{work:>8}{runs[0].steps:>7,}{runs[0].tokens:>8,}"
        line += f"{statistics.median(each.run_s for each in runs):>7.1f}"
        pair = []
        for taken in ([each.p50_s for each in runs], [each.p95_s for each in runs]):
            pair.append(_sd_of_log(taken))
            shown = "-" if math.isnan(pair[-1]) else f"{100 * pair[-1]:.1f}"
            line += f"{1e3 * statistics.median(taken):>9.1f}{shown:>6}"
        deviations.append(pair)
        print(line)
    for name, each in zip(("p50", "p95"), zip(*deviations, strict=True), strict=False):
        known = [value for value in each if not math.isnan(value)]
        if known:
            print(
                f"noise floor of {name}: {100 * statistics.median(known):.1f} % (median), "
                f"{100 * math.hypot(*known) / math.sqrt(len(known)):.1f} % (pooled), "
                f"{100 * max(known):.1f} % (worst)"
            )


def _sd_of_log(values: Sequence[float]) -> float:
    return statistics.stdev(map(math.log, values)) if len(values) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--only", help="configurations whose name holds this")
    parser.add_argument("--spread", action="store_true", help="run nothing")
    given = parser.parse_args()
    chosen = [one for one in configurations() if (given.only or "") in one.name]
    if not given.spread:
        run(given.folder, chosen, given.repeats, given.seed)
    spread(given.folder, chosen, given.repeats)


if __name__ == "__main__":
    main()
