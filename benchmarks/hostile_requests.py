"""What hostile senders can do to `ttscope attach`: 20,000 requests, and 1,000 good ones among them.

``python -m benchmarks.hostile_requests`` starts an attach on a stub of a server, with spans taken
from everybody, so that nothing is refused for its token alone. Eight hostile senders have the token
too. Beside them 64 sockets drip a byte a second, and half of the good requests are spans, half are
batches of steps. Good senders try again at 503 and where a connection ends, as exporters and the
plugin do. It prints what was kept of the good, the answers to the others by kind, the greatest
memory of attach's process (VmRSS, read 20 times a second) and how long it took to end at SIGTERM.
"""

import argparse
import gzip
import http.client
import json
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

os.environ["TTSCOPE_TOKEN"] = secrets.token_urlsafe(32)

from benchmarks.made.spans import T0, as_protobuf, request, span, value
from benchmarks.servers.clients import until, verb
from benchmarks.servers.metrics_server import metrics_server
from benchmarks.servers.vllm_server import free_port
from profiler.plugin.batches import COLUMNS, STEPS_PATH
from traces.recording.reader import Recording

HOSTILE, GOOD, SENDERS, DRIPPING = 20_000, 1_000, 8, 64
TRACES, JSON, PROTOBUF = "/v1/traces", "application/json", "application/x-protobuf"
TOKEN = f"Bearer {os.environ['TTSCOPE_TOKEN']}"
ROW = dict.fromkeys(COLUMNS[1:13], 0) | dict.fromkeys(COLUMNS[13:]) | {"kv_usage": 0.0}
Sent = tuple[str, str, bytes, dict[str, str]]  # path, content type, body, more headers


def now_s() -> float:
    return (time.time_ns() - T0) / 1e9


def spans(*made: dict, **more: str) -> Sent:
    return TRACES, JSON, json.dumps(request(*made)).encode(), more


def one(**attributes: object) -> Sent:
    """Return a span with attributes in JSON's own words, whatever they are."""
    made = span(random.getrandbits(60) + 1, start=now_s())
    names = {each["key"]: each for each in made["attributes"]}
    for key, told in attributes.items():
        name = key.replace("__", ".")
        names[name] = {"key": name, "value": told}
    return spans(made | {"attributes": list(names.values())})


def at(start: str, end: str) -> Sent:
    times = {"startTimeUnixNano": start, "endTimeUnixNano": end}
    return spans(span(random.getrandbits(60) + 1) | times)


def steps(*rows: dict, instance: str = "hostile", **more: object) -> Sent:
    told = [[(ROW | {"end": time.time_ns()} | row)[name] for name in COLUMNS] for row in rows]
    batch = {"v": 1, "instance": instance, "engine": 0, "columns": COLUMNS, "rows": told}
    batch |= {"process_start_s": 1.0} | more  # another server's
    return STEPS_PATH, JSON, json.dumps(batch).encode(), {}


def zipped(kind: str, body: bytes) -> Sent:
    return TRACES, kind, gzip.compress(body, 1), {"Content-Encoding": "gzip"}


def field(number: int, body: bytes) -> bytes:
    """Return a field of protobuf that holds bytes."""
    size, length = bytearray(), len(body)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2]) + bytes(size) + bytes([length]) + body


def model(name: str) -> dict:
    return {"stringValue": name}


def named(name: str) -> Sent:
    return one(gen_ai__request__model=model(name))


BOMB = zipped(PROTOBUF, field(1, field(2, b"\x12\x00" * 7_500_000)))
WIDE = zipped(PROTOBUF, field(1, field(2, field(2, b"\x4a\x00" * 7_500_000))))
OBJECTS = zipped(
    JSON, b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 5_000_000 + b"{}]}]}]}"
)
MANY = zipped(JSON, b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 199_000 + b"{}]}]}]}")
SPACES = zipped(JSON, b" " * 200_000_000)
DEEP = (TRACES, JSON, b"[" * 1_000_000, {})
LONG = named("m" * 7_000_000)
CONFIG = {"model": "m", "mode": "server"}


def flood(size: int) -> Sent:
    """Return spans that are as they should be, of models that nobody has."""
    made = [span(random.getrandbits(60) + 1, start=now_s()) for _ in range(size)]
    for each in made:
        attribute = {"key": "gen_ai.request.model", "value": value(secrets.token_hex(120))}
        each["attributes"].append(attribute)
    document = request(*made, service=secrets.token_hex(100))
    return TRACES, PROTOBUF, as_protobuf(document), {}


def flood_of_engines() -> Sent:
    name = secrets.token_hex(8)
    config = CONFIG | {"model": name * 60, "other": [[name * 30, name * 30]] * 16}
    return steps(*[{"running": 1}] * 50, instance=name, config=config)


KINDS: dict[str, Callable[[], Sent]] = {
    "NaN": lambda: one(gen_ai__latency__e2e={"doubleValue": "NaN"}),
    "infinite": lambda: one(gen_ai__latency__e2e={"doubleValue": "Infinity"}),
    "1e30": lambda: one(gen_ai__latency__e2e={"doubleValue": 1e30}),
    "2^63": lambda: one(gen_ai__usage__prompt_tokens={"doubleValue": float(2**63)}),
    "negative tokens": lambda: one(gen_ai__usage__completion_tokens={"intValue": "-5"}),
    "a dict for a model": lambda: one(gen_ai__request__model={"kvlistValue": {"values": []}}),
    "a number for a model": lambda: one(gen_ai__request__model={"intValue": "5"}),
    "control characters": lambda: named("\x1b]0;owned\x07\x1b[2J"),
    "bidi override": lambda: named("a\u202eb"),
    "before 1970": lambda: at("-5", "-4"),
    "after 2100": lambda: at(str(5 * 10**18), str(5 * 10**18)),
    "2^63 for a time": lambda: at("1", str(2**63)),
    "null": lambda: (TRACES, JSON, b"null", {}),
    "a null for spans": lambda: (TRACES, JSON, b'{"resourceSpans":[null]}', {}),
    "random bytes": lambda: (TRACES, PROTOBUF, b"\x0a\xff" + random.randbytes(500), {}),
    "cut protobuf": lambda: (TRACES, PROTOBUF, as_protobuf(request(span(1)))[:-3], {}),
    "step: a null": lambda: steps({"kv_usage": None}),
    "step: 1e30": lambda: steps({"end": 1e30}),
    "step: 2^63": lambda: steps({"running": 2**63}),
    "step: negative": lambda: steps({"generated": -1}),
    "step: text": lambda: steps({"running": "1"}),
    "step: details in part": lambda: steps({"gen_requests": 1}),
    "batch: a dict for a model": lambda: steps(config={"model": {"a": 1}, "mode": "server"}),
    "batch: a list for a number": lambda: steps(config=CONFIG | {"num_gpu_blocks": [1]}),
    "batch: 10^30 blocks": lambda: steps(config=CONFIG | {"num_gpu_blocks": 10**30}),
    "batch: odd name": lambda: steps(config=CONFIG | {"gpu": "\x1b[31m"}),
    "batch: odd instance": lambda: steps(instance="\x1b[2J"),
    "batch: other columns": lambda: steps(columns=["x"] * 5_000),
    "batch: too many rows": lambda: steps(*[{}] * 6_000),
    "another site": lambda: spans(span(1), Origin="https://evil.example"),
    "another host": lambda: spans(span(1), Host="evil.example:4318"),
    "another path": lambda: ("/v1/logs", JSON, b"{}", {}),
    "two lengths": lambda: (TRACES, JSON, b"{}", {"Content-Length": "9", "content-length": "2"}),
    "a wrong token": lambda: (STEPS_PATH, JSON, b"{}", {"Authorization": "Bearer no"}),
    "head of 1 MB": lambda: (TRACES, JSON, b"{}", {"X": "x" * 60_000}),
    "flood: spans": lambda: flood(50),
    "flood: engines": flood_of_engines,
}
HEAVY: dict[str, Callable[[], Sent]] = {
    "bomb of spans": lambda: BOMB,
    "bomb of attributes": lambda: WIDE,
    "bomb of objects": lambda: OBJECTS,
    "199,000 spans": lambda: MANY,
    "bomb of spaces": lambda: SPACES,
    "deep": lambda: DEEP,
    "a name of 7 MB": lambda: LONG,
    "a config of 4 MB": lambda: steps(config=CONFIG | {"model": "m" * 4_000_000}),
}
EVERY = 25  # of so many requests one is heavy


class Sender:
    """Sends on one connection while it lasts."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def send(self, sent: Sent) -> int:
        """Return the status; 0 where the connection ended first."""
        path, kind, body, more = sent
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"Content-Type": kind, "Authorization": TOKEN} | more
        try:
            self._connection.request("POST", path, body, headers)
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return 0
        if answer.will_close:
            self.close()
        return answer.status

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def attack(port: int, share: int, seed: int, answers: dict[str, Counter[int]]) -> None:
    draw, sender = random.Random(seed), Sender(port)
    for number in range(share):
        kinds = HEAVY if number % EVERY == 0 else KINDS
        name = draw.choice(list(kinds))
        answers[name][sender.send(kinds[name]())] += 1
    sender.close()


def send_good(port: int, count: int, tries: Counter[int], done: threading.Event) -> None:
    sender = Sender(port)
    for number in range(count):
        if number % 2:
            row = {"running": 1, "generated": 1, "end": time.time_ns()}
            sent = steps(row, instance="good", first=number // 2)
        else:
            sent = spans(span((1 << 62) + number, start=now_s()))
        status = 0
        while status != 200:
            status = sender.send(sent)
            tries[status] += 1
            assert status in {0, 200, 503}, status
            if status != 200:
                time.sleep(0.05)
        time.sleep(0.01)
    sender.close()
    done.set()


def drip(port: int, stop: threading.Event, opened: Counter[str]) -> list[socket.socket]:
    """Keep sockets open that send a byte a second of a head or a body; return those left."""
    head = f"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nAuthorization: {TOKEN}\r\n"
    body = f"{head}Content-Type: {JSON}\r\nContent-Length: 8000000\r\n\r\n".encode()
    held: list[socket.socket] = []
    while True:
        for each in held[:]:
            try:
                each.sendall(b"x")
            except OSError:
                each.close()
                held.remove(each)
                opened["ended by attach"] += 1
        while len(held) < DRIPPING:
            made = socket.create_connection(("127.0.0.1", port), timeout=30)
            made.sendall(body if len(held) % 2 else b"POST /v1/tr")
            held.append(made)
            opened["opened"] += 1
        if stop.wait(1.0):
            return held


def watch_memory(pid: int, stop: threading.Event, most: list[float]) -> None:
    while not stop.wait(0.05):
        told = Path(f"/proc/{pid}/statm").read_text()
        most[0] = max(most[0], int(told.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hostile", type=int, default=HOSTILE)
    parser.add_argument("--good", type=int, default=GOOD)
    asked = parser.parse_args()
    port, stop, dripped = free_port(), threading.Event(), threading.Event()
    answers: dict[str, Counter[int]] = {name: Counter() for name in KINDS | HEAVY}
    tries, opened, most, good = Counter[int](), Counter[str](), [0.0], threading.Event()
    with ExitStack() as stack, metrics_server() as server:
        root = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(root) / "r"
        options = ("--listen", port, "--spans-without-token", "-o", folder, "--json")
        process = verb("attach", server.url, *options)
        until((folder / "recording.json").exists)
        sampling = threading.Thread(target=watch_memory, args=(process.pid, stop, most))
        share = asked.hostile // SENDERS
        stack.callback(process.kill)
        threads = [
            threading.Thread(target=attack, args=(port, share, seed, answers))
            for seed in range(SENDERS)
        ]
        threads.append(threading.Thread(target=send_good, args=(port, asked.good, tries, good)))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        dripping = pool.submit(drip, port, dripped, opened)
        begun = time.monotonic()
        for each in (sampling, *threads):
            each.start()
        for each in threads:
            each.join()
        took = time.monotonic() - begun
        dripped.set()
        held = dripping.result()  # attach has to end while they are open
        stop.set()
        sampling.join()
        ended = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        ended = time.monotonic() - ended
        for each in held:
            each.close()
        print(f"{sum(map(Counter.total, answers.values())):,} hostile requests in {took:.0f} s")
        for name, statuses in answers.items():
            told = ", ".join(f"{count:,} x {each}" for each, count in sorted(statuses.items()))
            print(f"    {name}: {told}")
        print(f"answers to the good: {dict(sorted(tries.items()))}")
        print(f"dripping sockets: {dict(opened)}")
        print(f"greatest memory of attach: {most[0]:.0f} MB")
        print(f"ended {ended:.1f} s after SIGTERM with {process.returncode}")
        print_kept(folder, asked.good)
    if process.returncode:
        sys.exit(said)


def print_kept(folder: Path, good: int) -> None:
    """Say what the recording has of the good requests, and of the others."""
    recording = Recording.open(folder)
    engines = recording.manifest.engines.items()
    own = [key for key, each in engines if dict(each.other).get("instance") == "good"]
    spans_of_good = {f"{(1 << 62) + number:016x}" for number in range(0, good, 2)}
    kept = spans_of_good & set(recording.samples["span_id"])
    steps_kept = sum(engine in own for engine in recording.steps["engine"])
    size = (folder / "recording.json").stat().st_size
    print(f"good spans kept: {len(kept)} of {len(spans_of_good)}")
    print(f"good steps kept: {steps_kept} of {good // 2}")
    print(
        f"recording: {recording.samples.height:,} samples, {recording.steps.height:,} steps, "
        f"{len(engines)} engines, recording.json of {size / 1e3:.0f} kB, "
        f"dropped {recording.manifest.dropped}"
    )
    for line in recording.frame("events").filter(kind="drop")["detail"]:
        print(f"    {line}")


if __name__ == "__main__":
    main()
