"""What the plugin costs a server's steps: ``python -m benchmarks.plugin_cost [--steps 20000]``.

A server (CPU, the small reasoner) decodes 64 requests at a time while the plugin is taken out and
put in again every 50 steps, the sending of what it has seen included; a receiver here takes the
steps. It gives the difference in time of neighbouring blocks, whose batch is equal and whose
contexts differ by 50 tokens: by the clock, and in CPU time of the front-end process, in which the
plugin runs. Pin it to a core (``taskset -c 0``); the load is printed.
"""

import argparse
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.servers.vllm_server import running, with_probe
from benchmarks.step_probe import machine, print_longer
from profiler.attach.receiver.receiver import Receiver

BATCH, BLOCK, TOKENS = 64, 50, 950
TOGGLED = """
import os, time
_out = os.open("{path}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_record, _send = plugin.StepLogger.record, plugin.StepLogger._send
_count, _in = 0, True
def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0):
    global _count, _in
    if not self.on or scheduler_stats is None:
        return
    _count += 1
    if _count % {block} == 0:
        running = scheduler_stats.num_running_reqs
        times = time.perf_counter_ns(), time.process_time_ns()
        os.write(_out, b"%d %d %d %d\\n" % (_in, running, *times))
        _in = not _in
    if _in:
        _record(self, scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)
def _sending(self):
    return _send(self) if _in else True
plugin.StepLogger.record, plugin.StepLogger._send = record, _sending
"""


def differences(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return what blocks with the plugin take more than their neighbours without, as shares.

    One column by the clock, one in CPU time. A row is the end of a block: whether the plugin was
    in, the requests that ran, both times in ns.
    """
    found = []
    spent = np.diff(rows[:, 2:], axis=0).astype(float)
    whole = (rows[1:, 1] == BATCH) & (rows[:-1, 1] == BATCH)  # constant batch all through
    for place in range(1, len(spent) - 1):
        if whole[place - 1 : place + 2].all():
            around = (spent[place - 1] + spent[place + 1]) / 2
            sign = 1 if rows[place + 1, 0] else -1
            found.append((spent[place] / around - 1) * sign)
    return np.array(found)


def decode(url: str) -> None:
    """Have the server decode `BATCH` requests of `TOKENS` tokens together."""
    body = {"prompt": "1", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}

    def ask(_: int) -> None:
        httpx.post(f"{url}/v1/completions", json=body, timeout=1200).raise_for_status()

    with ThreadPoolExecutor(BATCH) as pool:
        list(pool.map(ask, range(BATCH)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20_000)
    steps = parser.parse_args().steps
    receiver = Receiver("127.0.0.1", 0)
    receiver.start()
    came, stop = [0], threading.Event()

    def take() -> None:
        while not stop.wait(1.0):
            came[0] += sum(len(batch.rows) for batch in receiver.take_batches())

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as root:
        times = Path(root) / "times"
        path = with_probe(Path(root) / "site", TOGGLED.format(path=times, block=BLOCK))
        variables = {"PYTHONPATH": path, "TTSCOPE_PLUGIN": f"http://127.0.0.1:{receiver.port}"}
        # In bf16 some processors lack an instruction that the CPU build takes at this batch.
        flags = ("--dtype", "float32", "--max-num-seqs", str(BATCH), "--disable-log-stats")
        with running(Path(root) / "server", *flags, **variables) as server:
            for _ in range(max(steps // TOKENS, 1)):
                decode(server.url)
        rows = np.array([line.split() for line in times.read_text().splitlines()], dtype=np.int64)
    stop.set()
    taking.join()
    receiver.close()
    values = differences(rows)
    step_ms = np.median(np.diff(rows[:, 2])) / BLOCK / 1e6
    print(
        f"{len(rows) * BLOCK:,} steps of {BATCH} requests, {step_ms:.1f} ms each, the plugin "
        f"toggled every {BLOCK}; {came[0]:,} steps received; 95 % intervals; load "
        f"{os.getloadavg()[0]:.1f}"
    )
    print_longer(values)
    wall, cpu = np.median(np.diff(rows[:, 2:], axis=0), axis=0)
    print(f"  that is {np.median(values[:, 1]) * cpu / wall:.2%} of a core in the front end")


if __name__ == "__main__":
    main()
