"""What `ttscope serve` adds to a request: pairs of one to an engine and one through it.

    python -m benchmarks.serve_overhead [--rate 50] [--seconds 20] [--n 1 4 8]

An engine without a model answers each request in the same time. Questions arrive at random. Of each
pair one goes to the engine itself (one request) and one through the endpoint (n of them), which has
a core of its own. What is added is the difference of the quantiles, its interval by the bootstrap
over pairs. CPU ms is the processor time of the endpoint for a question.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks.servers.vllm_server import free_port

WARM = 20  # pairs before those that count
BODY = {"model": "fake", "messages": [{"role": "user", "content": "What is 3 x 4?"}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=50.0, help="questions a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--n", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--tokens", type=int, default=8)
    asked = parser.parse_args()
    print(f"{'n':>3} {'pairs':>6} {'added p50':>22} {'added p99':>22} {'CPU ms':>7}")
    for n in asked.n:
        direct, served, cpu = measure(asked, n)
        print(f"{n:>3} {len(direct):>6} {added(direct, served, 0.5):>22} "
              f"{added(direct, served, 0.99):>22} {cpu:>7.2f}")  # fmt: skip


def added(direct: np.ndarray, served: np.ndarray, q: float) -> str:
    rng = np.random.default_rng(0)
    picks = rng.integers(0, direct.size, (500, direct.size))
    draws = np.quantile(served[picks], q, axis=1) - np.quantile(direct[picks], q, axis=1)
    low, high = np.quantile(draws, [0.05, 0.95]) * 1e3
    value = (np.quantile(served, q) - np.quantile(direct, q)) * 1e3
    return f"{value:.2f} ms [{low:.2f}, {high:.2f}]"


def measure(asked: argparse.Namespace, n: int) -> tuple[np.ndarray, np.ndarray, float]:
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = free_port(), free_port()
        engine = [sys.executable, "-m", "benchmarks.servers.fake_engine", "--spread", "0"]
        engine += ["--port", str(ports[0]), "--tokens", str(asked.tokens), "--token-s", "0.01"]
        start(stack, engine, cores[-1:])
        policy = {"method": "greedy" if n == 1 else "majority", "n": n, "temperature": 0.8}
        url = f"http://127.0.0.1:{ports[0]}"
        asyncio.run(ready(f"{url}/v1/models"))
        process = start(stack, serving(folder, policy, *ports), cores[:1])
        through = f"http://127.0.0.1:{ports[1]}"
        asyncio.run(ready(f"{through}/health"))
        os.sched_setaffinity(0, cores[-1:])
        try:
            before = cpu_s(process.pid)
            direct, served = asyncio.run(load(url, through, asked.rate, asked.seconds))
            cpu_ms = (cpu_s(process.pid) - before) * 1e3 / (len(direct) + WARM)
        finally:
            os.sched_setaffinity(0, cores)
        return direct, served, cpu_ms


def serving(folder: Path, policy: dict[str, object], engine: int, port: int) -> list[str]:
    """Return the command that serves a policy before an engine, both by their ports."""
    document = {"ttscope_policy": 1, "verifier": "numeric", "policy": policy}
    (folder / "policy.json").write_text(json.dumps(document))
    serve = [str(Path(sys.executable).parent / "ttscope"), "serve", str(folder / "policy.json")]
    serve += ["--upstream", f"http://127.0.0.1:{engine}", "--port", str(port)]
    return [*serve, "-o", str(folder / "kept")]


def start(stack: ExitStack, command: list[str], cores: list[int] | None) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if cores is not None:
        os.sched_setaffinity(process.pid, cores)  # before its first thread
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


def cpu_s(pid: int) -> float:
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


async def ready(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            try:
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


async def load(
    direct: str, through: str, rate: float, seconds: float
) -> tuple[np.ndarray, np.ndarray]:
    """Send pairs at a rate of questions through the endpoint; return the times of both."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(url: str, body: dict) -> float:
            begun = time.perf_counter()
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                await answer.read()
                assert answer.status == 200, answer.status
            return time.perf_counter() - begun

        async def pair() -> tuple[float, float]:
            times = {}
            for url in random.sample([direct, through], 2):
                # The engine is asked for a stream, as the endpoint asks it.
                times[url] = await one(url, BODY | {"stream": url == direct})
            return times[direct], times[through]

        await asyncio.gather(*(pair() for _ in range(WARM)))  # connections and imports
        pairs, until = [], time.monotonic() + seconds
        while time.monotonic() < until:
            pairs.append(asyncio.create_task(pair()))
            await asyncio.sleep(random.expovariate(rate))
        times = np.array(await asyncio.gather(*pairs))
        return times[:, 0], times[:, 1]


if __name__ == "__main__":
    main()
