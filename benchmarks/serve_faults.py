"""`ttscope serve` under what goes wrong: bad bodies, clients that vanish, an engine that is killed.

    python -m benchmarks.serve_faults [--bodies 10000] [--clients 300] [--kills 5] [--soak 60]
        [--rate 20] [--files 16384] [--only silent drips large hostile]

After each part a question must be answered, nothing may be in flight, and the recording at the end
must be whole. `--soak` asks for so many seconds, at most `--rate` questions a second. The memory is
that of the process after each part, and the greatest so far.

The last parts are of clients that attack: 1,300 sockets that say nothing (worst with `--files
1024`), 320 bodies that drip, and 64 questions of 64 samples with bodies of 4 MB. Meanwhile good
questions are asked one by one, and it prints how long the slowest took. `unread` has 300 clients
that read nothing of long answers, and `long` 25 answers of 10 MB while /health is asked. `hostile`
puts an engine there that answers 100 for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import resource
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import aiohttp

from benchmarks.serve_overhead import BODY, ready, serving, start
from benchmarks.servers.hostile_server import hostile
from benchmarks.servers.vllm_server import free_port
from traces.recording.reader import Recording

PARTS = (
    *("bodies", "clients", "kills", "soak", "silent", "drips", "large", "unread", "long"),
    "hostile",
)
SILENT, DRIPS, LARGE, LARGE_BYTES, GOOD = 1_300, 320, 64, 4_000_000, 20
UNREAD, UNREAD_BYTES, LONG, LONG_BYTES = 300, 4_200_000, 25, 10_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--soak", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--files", type=int, default=16_384, help="that serve may open")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
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
        policy: dict[str, object] = {"method": "agreement", "n": 4, "agree": 2, "temperature": 0.8}
        command = [*serving(folder, policy, engine, port), "--drain", "5"]
        document = json.loads((folder / "policy.json").read_text())
        (folder / "policy.json").write_text(json.dumps({**document, "most_n": 64}))
        self.process = start(stack, command, None)
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (asked.files, asked.files))
        self.port = port

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
            for name in self.asked.only:
                begun = time.monotonic()
                told = await getattr(self, f"_{name}")()
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
        most = f"at most {self._mb('VmHWM:'):.0f}"
        print(f"{told}: in flight {in_flight}, {self._mb():.0f} MB, {most}", flush=True)

    def _mb(self, name: str = "VmRSS:") -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(name)[2].split()[0]) / 1024

    async def _good(self) -> str:
        """Ask good questions on connections of their own; return how they were answered."""
        counts, slowest = dict[object, int](), 0.0
        for _ in range(GOOD):
            begun, how = time.monotonic(), "no answer"
            limit = aiohttp.ClientTimeout(total=10)
            try:
                async with (
                    aiohttp.ClientSession(timeout=limit) as own,
                    own.post(f"{self.url}/v1/chat/completions", json=BODY) as answer,
                ):
                    await answer.read()
                    how = str(answer.status)
            except (aiohttp.ClientError, TimeoutError):
                pass
            counts[how] = counts.get(how, 0) + 1
            slowest = max(slowest, time.monotonic() - begun)
            await asyncio.sleep(0.05)
        return f"good questions answered {counts}, the slowest in {slowest:.2f} s"

    async def _silent(self) -> str:
        opened = await self._opened(SILENT, b"")
        told = await self._good()
        _closed(opened)
        return f"{SILENT:,} silent sockets: {told}"

    async def _drips(self) -> str:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 4000000\r\n\r\n"
        opened = await self._opened(DRIPS, head.encode())

        async def drip() -> None:
            while True:
                for _, writer in opened:
                    writer.write(b" ")
                await asyncio.sleep(1)

        dripping = asyncio.create_task(drip())
        told = await self._good()
        dripping.cancel()
        _closed(opened)
        return f"{DRIPS} dripping bodies: {told}"

    async def _opened(
        self, count: int, sent: bytes
    ) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        opened = []
        for _ in range(count):
            try:
                made = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self.port), 2)
            except (OSError, TimeoutError):
                continue
            made[1].write(sent)
            opened.append(made)
        return opened

    async def _large(self) -> str:
        content = "\U0001f600" + "x" * LARGE_BYTES  # as wide in memory as a text can be
        body = {**BODY, "messages": [{"role": "user", "content": content}], "ttscope": {"n": 64}}
        raw, counts = json.dumps(body).encode(), dict[object, int]()
        connector = aiohttp.TCPConnector(limit=0)

        async def ask(session: aiohttp.ClientSession) -> None:
            try:
                async with session.post(
                    f"{self.url}/v1/chat/completions", data=io.BytesIO(raw)
                ) as answer:
                    await answer.read()
                    how: object = answer.status
            except (aiohttp.ClientError, TimeoutError):
                how = "no answer"
            counts[how] = counts.get(how, 0) + 1

        limit = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
            asked = [asyncio.create_task(ask(session)) for _ in range(LARGE)]
            await asyncio.sleep(0.5)
            told = await self._good()
            meanwhile = sum(not each.done() for each in asked)
            await asyncio.gather(*asked)
        return (
            f"{LARGE} questions of 64 samples and 4 MB, answered {counts}, {meanwhile} of them "
            f"later than the good ones: {told}"
        )

    async def _unread(self) -> str:
        """Have clients ask for long answers and read nothing."""
        opened = []
        for at in range(UNREAD):
            body = {**BODY, "user": str(UNREAD_BYTES), "stream": at % 2 == 1, "ttscope": {"n": 2}}
            raw = json.dumps(body).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
            made = socket.create_connection(("127.0.0.1", self.port))
            made.sendall(head.encode() + raw)
            opened.append(made)
        told = await self._good()
        for _ in range(600):
            async with self.session.get(f"{self.url}/health") as answer:
                if not (await answer.json())["in_flight"]:
                    break
            await asyncio.sleep(0.1)
        told += f", later {await self._good()}"
        for made in opened:
            made.close()
        return f"{UNREAD} clients that read none of {UNREAD_BYTES / 1e6:g} MB: {told}"

    async def _long(self) -> str:
        """Have the engine send long answers, and ask meanwhile whether it is well."""
        slowest, done = 0.0, 0
        body = {"user": str(LONG_BYTES), "ttscope": {"n": 2}}
        asked = [asyncio.create_task(self._ask(**body)) for _ in range(LONG)]
        while not all(each.done() for each in asked):
            begun = time.monotonic()
            async with self.session.get(f"{self.url}/health") as answer:
                await answer.read()
            slowest = max(slowest, time.monotonic() - begun)
            done += 1
            await asyncio.sleep(0.05)
        counts = Counter(await asyncio.gather(*asked))
        return (
            f"{LONG} answers of {LONG_BYTES / 1e6:g} MB, answered {dict(counts)}: /health answered "
            f"{done} times, the slowest in {slowest:.2f} s"
        )

    async def _hostile(self) -> str:
        self.engines.close()
        with hostile("continue", self.engine):
            begun = time.monotonic()
            asked = [asyncio.create_task(self._ask()) for _ in range(20)]
            await asyncio.wait(asked, timeout=20)
            took = time.monotonic() - begun
            done = sum(each.done() for each in asked)
            told = f"{done} of 20 questions answered in {took:.1f} s, {self._mb():.0f} MB"
            for each in asked:
                each.cancel()
        self._start_engine()
        await ready(f"http://127.0.0.1:{self.engine}/v1/models")
        return f"an engine that answers 100 for ever: {told}"

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


def _closed(opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    for _, writer in opened:
        writer.close()


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
