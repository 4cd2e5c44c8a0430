"""How fast the replay is: ``python benchmarks/replay_speed.py azure_2023_conv.csv``.

The first 1,024 requests of the trace; a million requests (the trace over and over) and the memory
that takes, and processor seconds of the same for each kind of model (`--kinds`: these alone); the
first call of a new version, which compiles, and the first call of a process. Beside it Vidur 0.1's
620 requests/s, as measured once on two shared cores (it is on no package index), and the naive twin
of the tests in the same run.
Step times are the published fit for Llama-3.1-8B on an H100 under vLLM (5.886 ms + 39.3 ns x KV
tokens + 21 us x batched tokens), with 30,000 blocks of 16 tokens, 256 sequences and 8,192 tokens.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numba
import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).parent.parent))

from advisor.evidence.features import ALL, ZERO, Reads
from advisor.evidence.runs import RecordedProblem, Sample
from advisor.replay.limits import Limits
from advisor.replay.replay import Replicas, replay
from advisor.replay.workload import ReplayWorkload
from advisor.step_time.cost import linear_cost
from benchmarks.twin.replay_twin import naive_replay

VIDUR = 620.0  # requests/s
LAW = np.array(ZERO._replace(step=5.886e-3, tokens=2.10e-5, kv_tokens=3.93e-8))
READING = {"experts": 3e-3, "window_tokens": 1e-8, "window_context": 1e-9}  # of other kinds
KINDS = {
    "dense, MLA and states": (ALL, 1),  # what they read is in proportion to the context
    "mixture, 8 of 128 experts": (Reads(8 / 128), 1),
    "windows of 4,096": (Reads(window=4096.0), 1),
    "mixture, windows of 128": (Reads(4 / 128, 128.0), 1),
    "chunks of 8,192": (Reads(window=8192.0, chunked=True), 1),
    "4 data-parallel ranks": (ALL, 4),
    "mixture, 2 data-parallel ranks": (Reads(8 / 128), 2),
}
LIMITS = Limits(block_size=16, max_num_seqs=256, max_num_batched_tokens=8192, num_blocks=30_000)
FIRST = (
    "import time; begun = time.perf_counter(); import numpy as np\n"
    "from advisor.evidence.features import FEATURES\n"
    "from advisor.replay.limits import Limits\nfrom advisor.step_time.cost import linear_cost\n"
    "from advisor.replay.replay import replay\nfrom advisor.replay.workload import ReplayWorkload\n"
    "loaded = time.perf_counter()\n"
    "w = ReplayWorkload.from_requests([10], [3], arrivals=[0.0])\n"
    "replay(w, linear_cost(np.ones(len(FEATURES))), Limits())\n"
    "print(loaded - begun, time.perf_counter() - loaded)"
)


def requests(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return arrivals in seconds, prompt and output tokens."""
    table = pl.read_csv(path)
    times = table["TIMESTAMP"].str.to_datetime(strict=False).dt.epoch("us").to_numpy() / 1e6
    return (
        times - times[0],
        table["ContextTokens"].to_numpy(),
        table["GeneratedTokens"].to_numpy(),
    )


def workload(trace: tuple[np.ndarray, ...], count: int) -> ReplayWorkload:
    """Return the first `count` requests, the trace repeated where it is too short."""
    times, prompts, outputs = trace
    turns = -(-count // len(times))
    whole = np.concatenate([times + turn * (times[-1] + 0.2) for turn in range(turns)])
    return ReplayWorkload.from_requests(
        np.tile(prompts, turns)[:count],
        np.tile(outputs, turns)[:count],
        arrivals=whole[:count],
    )


def timed(what: ReplayWorkload, repeats: int) -> tuple[float, float, object]:
    """Return the median and the spread (half the middle 50 %) of seconds, and the result."""
    cost, spent, found = linear_cost(LAW), [], None
    for _ in range(repeats):
        found = None  # a result holds as much memory as the replay that made it
        begun = time.perf_counter()
        found = replay(what, cost, LIMITS)
        spent.append(time.perf_counter() - begun)
    low, _, high = statistics.quantiles(spent, n=4) if repeats > 1 else (0.0, 0.0, 0.0)
    return statistics.median(spent), (high - low) / 2, found


def million_of_each_kind(what: ReplayWorkload) -> None:
    """Print the processor seconds of a million requests by kind, the median of three."""
    law = ZERO._replace(step=5.886e-3, tokens=2.10e-5, kv_tokens=3.93e-8)
    for name, (reads, ranks) in KINDS.items():
        seconds = law if reads == ALL else law._replace(**READING)
        cost = linear_cost(np.array(seconds), reads)
        replicas = Replicas(count=ranks, routing="least-outstanding")
        spent = []
        for _ in range(3):
            begun = time.process_time()
            found = replay(what, cost, LIMITS, replicas=replicas)
            spent.append(time.process_time() - begun)
            steps = found.steps
            del found
        print(f"{name:<32}{statistics.median(spent):6.2f} s of CPU, {steps:,} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace")
    parser.add_argument("--million", type=int, default=1_000_000)
    parser.add_argument("--kinds", action="store_true")
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"Python {platform.python_version()}, numba {numba.__version__}")  # fmt: skip
    if given.kinds:
        trace = requests(given.trace)
        replay(workload(trace, 8), linear_cost(LAW), LIMITS)
        million_of_each_kind(workload(trace, given.million))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first call of a version", "first call of a process"):
            done = subprocess.run(
                [sys.executable, "-c", FIRST],
                env=os.environ | {"XDG_CACHE_HOME": folder},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            loading, first = map(float, done.stdout.split())
            print(f"{name:<26}{first:8.2f} s, and {loading:.2f} s of imports")
    trace = requests(given.trace)
    replay(workload(trace, 8), linear_cost(LAW), LIMITS)
    seconds, spread, found = timed(workload(trace, 1024), 41)
    print(
        f"1,024 requests {seconds * 1e3:8.3f} ms +- {spread * 1e3:.3f}, "
        f"{1024 / seconds:12,.0f} requests/s, {1024 / seconds / VIDUR:8,.0f} x Vidur, "
        f"{found.steps:,} steps, {found.preemptions:,} preemptions"
    )
    small = [
        RecordedProblem(
            prompt_tokens=int(p), cached_tokens=0,
            samples=(Sample(output_tokens=int(o), answer=None, correct=None, by_length=True),),
        )
        for p, o in zip(trace[1][:128], trace[2][:128], strict=True)
    ]  # fmt: skip
    begun = time.perf_counter()
    naive_replay(small, LAW, LIMITS, arrivals=trace[0][:128])
    naive = time.perf_counter() - begun
    ours, _, _ = timed(workload(trace, 128), 41)
    print(f"128 requests against the naive twin: {naive / ours:,.0f} times as fast")
    what = workload(trace, given.million)
    seconds, _, found = timed(what, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{given.million:,} requests{seconds:12.2f} s, "
        f"{given.million / seconds:12,.0f} requests/s, {found.steps:,} steps, "
        f"peak memory {peak:,.0f} MB"
    )
    million_of_each_kind(what)


if __name__ == "__main__":
    main()
