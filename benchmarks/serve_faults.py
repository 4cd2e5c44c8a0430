"""`ttscope serve` under what goes wrong: bad bodies, clients that vanish, an engine that is killed.

    python -m benchmarks.serve_faults [--bodies 10000] [--clients 300] [--kills 5] [--soak 60]
        [--rate 20]

After each part a question must be answered, nothing may be in flight, and the recording at the end
must be whole. `--soak` asks for so many seconds, at most `--rate` questions a second. The memory is
that of the process after each part.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import aiohttp

from benchmarks.serve_overhead import BODY, ready, serving, start
from benchmarks.servers.vllm_server import free_port
from traces.recording.reader import Recording


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--soak", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=20.0)
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine, port = free_port(), free_port()
        with ExitStack() as parts:
            Parts(asked, folder, parts, engine, port).run()
        recording = Recording.open(folder / "kept")
        open_ = recording.problems["end"].null_count()
        print(
            f"recording: complete {recording.complete}, dropped {recording.manifest.dropped}, "
            f"{recording.problems.height:,} problems, {open_} without an end"
        )


class Parts:
    """The parts, one after another."""

    def __init__(
        self, asked: argparse.Namespace, folder: Path, stack: ExitStack, engine: int, port: int
    ) -> None:
        self.asked, self.engine, self.url = asked, engine, f"http://127.0.0.1:{port}"
        self.engines = stack.enter_context(ExitStack())
        self._start_engine()
        asyncio.run(ready(f"http://127.0.0.1:{engine}/v1/models"))
        policy = {"method": "agreement", "n": 4, "agree": 2, "temperature": 0.8}
        command = [*serving(folder, policy, engine, port), "--drain", "5"]
        self.process = start(stack, command, None)

    def _start_engine(self) -> None:
        command = [sys.executable, "-m", "benchmarks.servers.fake_engine"]
        start(self.engines, [*command, "--port", str(self.engine), "--token-s", "0.02"], None)

    def run(self) -> None:
        asyncio.run(self._all())

    async def _all(self) -> None:
        await ready(f"{self.url}/health")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=32)) as session:
            self.session = session
            await self.after("begun")
            for part in (self._bodies, self._clients, self._kills, self._soak):
                begun = time.monotonic()
                told = await part()
                await self.after(f"{told} in {time.monotonic() - begun:.0f} s")

    async def _ask(self, **more: object) -> int:
        async with self.session.post(f"{self.url}/v1/chat/completions", json=BODY | more) as answer:
            await answer.read()
            return answer.status

    async def after(self, told: str) -> None:
        """Check that it answers, that nothing is left, and say the memory."""
        assert await self._ask() == 200
        for _ in range(100):
            async with self.session.get(f"{self.url}/health") as answer:
                in_flight = (await answer.json())["in_flight"]
            if not in_flight:
                break
            await asyncio.sleep(0.1)
        print(f"{told}: in flight {in_flight}, {self._mb():.0f} MB", flush=True)

    def _mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    async def _bodies(self) -> str:
        draw, counts = random.Random(0), dict[int, int]()
        good = json.dumps(BODY).encode()

        async def send() -> None:
            for _ in range(self.asked.bodies // 16):
                body = malformed(draw, good)
                url = f"{self.url}/v1/{draw.choice(['chat/', ''])}completions"
                async with self.session.post(url, data=body) as answer:
                    await answer.read()
                    counts[answer.status] = counts.get(answer.status, 0) + 1

        await asyncio.gather(*(send() for _ in range(16)))
        return f"{sum(counts.values()):,} malformed bodies, answered {counts}"

    async def _clients(self) -> str:
        async def vanish() -> None:
            draw = random.uniform(0.001, 0.08)
            limit = aiohttp.ClientTimeout(total=draw)
            body = BODY | {"stream": random.random() < 0.5}
            try:
                async with self.session.post(
                    f"{self.url}/v1/chat/completions", json=body, timeout=limit
                ) as answer:
                    await answer.read()
            except (TimeoutError, aiohttp.ClientError):
                pass

        for _ in range(self.asked.clients // 20):
            await asyncio.gather(*(vanish() for _ in range(20)))
        return f"{self.asked.clients:,} clients that vanish"

    async def _kills(self) -> str:
        counts: dict[int, int] = {}
        for _ in range(self.asked.kills):
            asked = [asyncio.create_task(self._ask()) for _ in range(20)]
            await asyncio.sleep(0.03)
            self.engines.close()
            for status in [*await asyncio.gather(*asked), await self._ask()]:
                counts[status] = counts.get(status, 0) + 1
            self._start_engine()
            await ready(f"http://127.0.0.1:{self.engine}/v1/models")
        return f"{self.asked.kills} times the engine was killed, answered {counts}"

    async def _soak(self) -> str:
        tasks, begun = set[asyncio.Task[int]](), time.monotonic()
        count, held = 0, list[str]()
        while (gone := time.monotonic() - begun) < self.asked.soak:
            if gone >= self.asked.soak * (len(held) + 1) / 6:
                held.append(f"{self._mb():.0f}")
            if len(tasks) < 64:
                task = asyncio.create_task(self._ask(stream=random.random() < 0.5))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                count += 1
            await asyncio.sleep(random.expovariate(self.asked.rate))
        await asyncio.gather(*tasks)
        rate = f"{self.asked.rate:g}/s"
        return f"{count:,} questions at up to {rate}, MB on the way {', '.join(held)}"


def malformed(draw: random.Random, good: bytes) -> bytes:
    """Return a body that is cut, flipped, nested, of wrong types, or random."""
    kind = draw.randrange(5)
    if kind == 0:
        return good[: draw.randrange(len(good))]
    if kind == 1:
        spoilt = bytearray(good)
        for _ in range(draw.randrange(1, 8)):
            spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
        return bytes(spoilt)
    if kind == 2:
        return b"[" * draw.randrange(1, 20_000)
    if kind == 3:
        odd = [None, 1, -1, 1e400, "x", [], {}, [[]], {"n": {}}, True, "\ud800"]
        names = ["messages", "max_tokens", "stream", "seed", "ttscope", "stream_options", "prompt"]
        return json.dumps(
            BODY | {name: draw.choice(odd) for name in draw.sample(names, 3)}
        ).encode()
    return draw.randbytes(draw.randrange(2_000))


if __name__ == "__main__":
    main()
