"""What one reading of the power sampler costs: the bindings and our own part, not a driver's.

    python benchmarks/power_tick.py [--count 5000]

NVML is the tests' library (benchmarks/made/fake_nvml.c), which answers at once, so that what is
measured is ttscope, nvidia-ml-py and ctypes; a real driver adds a few microseconds per query.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.made.fake_nvml import FakeNvml, build
from profiler.probes.nvml import open_gpus
from profiler.probes.power import HZ, PowerSampler
from profiler.runs.provenance import cpu_name, usable_cpus


def times_us(read: Callable[[], object], count: int) -> list[float]:
    """Return the sorted times of `count` calls in microseconds."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter_ns()
        read()
        taken.append((time.perf_counter_ns() - begun) / 1e3)
    return sorted(taken)


def report(what: str, taken: list[float]) -> None:
    median, high = statistics.median(taken), taken[int(0.99 * len(taken))]
    print(f"{what:<34} median {median:7.1f} us   p99 {high:7.1f} us")


def sampler_cpu_us(seconds: float) -> tuple[float, int]:
    """Return the CPU time of the sampler's thread per tick of one GPU, and the ticks."""
    sampler = PowerSampler(partial(open_gpus, 1, {}), hz=50)
    spent: list[float] = []
    work = sampler._read_on

    def watched(sensors: list) -> None:  # type: ignore[type-arg]
        begun = time.thread_time_ns()
        work(sensors)
        spent.append((time.thread_time_ns() - begun) / 1e3)

    sampler._read_on = watched  # type: ignore[method-assign]
    sampler.start()
    threading.Event().wait(seconds)
    sampler.stop()
    ticks = len(sampler.drain())
    return spent[0] / ticks, ticks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    count = parser.parse_args().count
    print(f"{cpu_name()}, {usable_cpus()} usable CPUs, {platform.system()} {platform.release()}")
    bindings = importlib.metadata.version("nvidia-ml-py")
    print(f"Python {platform.python_version()}, nvidia-ml-py {bindings}, {count} readings each")
    with tempfile.TemporaryDirectory() as name:
        import pynvml

        fake = FakeNvml(build(Path(name)))
        fake.lend(pynvml)
        fake.reset(1)
        with open_gpus(1, {}) as (gpu,):
            report("NVML, energy and power", times_us(partial(gpu.read, state=False), count))
        cpu, ticks = sampler_cpu_us(3.0)
        print(f"{'sampler thread, one GPU':<34} CPU    {cpu:7.1f} us per tick ({ticks} ticks)")
        print(f"at {HZ:g} readings a second that is {cpu * HZ / 1e6:.2%} of a core per GPU")


if __name__ == "__main__":
    main()
