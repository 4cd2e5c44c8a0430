"""What `record()` of the plugin takes on vLLM's thread, of a step of 64 requests, while it sends.

Needs vLLM: taskset -c 1 python -m benchmarks.plugin_record.
"""

import os
import time
from types import SimpleNamespace

from profiler.attach.receiver.receiver import Receiver

STEPS = 20_000


def main() -> None:
    """Print median and p99 in nanoseconds, the two clock readings included."""
    from vllm.v1.metrics.stats import IterationStats, SchedulerIterationDetails, SchedulerStats

    from profiler.plugin.step_logger import VARIABLE, StepLogger

    receiver = Receiver("127.0.0.1", 0)
    receiver.start()
    os.environ[VARIABLE] = f"http://127.0.0.1:{receiver.port}"
    logger = StepLogger(SimpleNamespace(), 0)
    iteration = IterationStats()
    iteration.num_generation_tokens, iteration.inter_token_latencies_iter = 64, [0.01] * 64
    details = SchedulerIterationDetails(1, 0, 0, 64, 64, 9.9)
    scheduler = SchedulerStats(num_running_reqs=64, iteration_details=details)
    costs = []
    for step in range(STEPS):
        begun = time.perf_counter_ns()
        logger.record(scheduler, iteration)
        costs.append(time.perf_counter_ns() - begun)
        if step % 100 == 0:
            time.sleep(0.002)
            receiver.take_batches()
    costs.sort()
    median, p99 = costs[STEPS // 2], costs[STEPS * 99 // 100]
    print(f"record(): median {median:,} ns, p99 {p99:,} ns; dropped {logger.dropped}")
    logger.on = False


if __name__ == "__main__":
    main()
