"""Whether the plugin changes what a server says or stops it, whatever is wrong with it.

``python -m benchmarks.plugin_harmless`` starts one vLLM server per condition (CPU, the small
reasoner), has each answer the same 200 prompts at temperature 0, eight at a time, and compares the
texts with those of a server without the plugin: first of a second such server, as control. The full
disk is a file system of 256 kB that `ttscope attach` writes to (needs root, else it is left out).

``python -m benchmarks.plugin_harmless --listeners`` needs no engine. Beside each kind of hostile
listener a probe gets 100 steps a second for 8 s, and then a receiver takes the listener's port. It
prints the processor time of the probe's thread, how late a thread woke that slept 1 ms at a time,
and the steps that arrived: all of them, or as many as its buffer holds, the newest.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx

from benchmarks.servers.clients import verb
from benchmarks.servers.hostile_server import KINDS
from benchmarks.servers.vllm_server import ROOT, free_port, running, with_probe
from profiler.workload.problems import load_workload

COMPLETIONS, AT_A_TIME, TOKENS = 200, 8, 48
BESIDE_S, STEPS_PER_S = 8.0, 100
RAISES = """
seen, row = 0, plugin._row
def failing(*told):
    global seen
    seen += 1
    if seen > 100:
        raise RuntimeError("made to fail")
    return row(*told)
plugin._row = failing
"""
CHANGED_FIELDS = 'plugin._SCHEDULER = (*plugin._SCHEDULER, "renamed")'


def completions(url: str) -> tuple[list[str], float]:
    """Return the texts, in the prompts' order, and the seconds they took."""
    prompts = [str(each.prompt) for each in load_workload("demo", problems=COMPLETIONS).problems]
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]

    def ask(prompt: str) -> str:
        body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=300)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["text"])

    begun = time.monotonic()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        texts = list(pool.map(ask, prompts))
    return texts, time.monotonic() - begun


@contextmanager
def silent_listener() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system of 256 kB."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def attached(folder: Path, url: str, port: int, told: list[str]) -> Iterator[None]:
    """Have `ttscope attach` watch a server into `folder`; `told` gets what it says at its end."""
    process = verb("attach", url, "--listen", port, "-o", folder / "r")
    try:
        time.sleep(8)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        told.append(f"attach ended with {process.returncode}: {said.strip().splitlines()[-1]}")


def condition(name: str, folder: Path, reference: list[str] | None) -> list[str]:
    """Run one condition, print what came of it, and return the texts."""
    variables = {"PYTHONPATH": str(ROOT)}
    told: list[str] = []
    with ExitStack() as stack:
        port = free_port()
        here = f"http://127.0.0.1:{port}"
        targets = {
            "broken configuration": "nonsense://",
            "unreachable receiver": "http://127.0.0.1:1",
            "full disk": here,
            "receiver with a disk": here,
            "receiver with another token": here,
            "probe that raises": "http://127.0.0.1:1",
            "other field names": "http://127.0.0.1:1",
        }
        if name in targets:
            variables["TTSCOPE_PLUGIN"] = targets[name]
        if name == "receiver that never answers":
            variables["TTSCOPE_PLUGIN"] = stack.enter_context(silent_listener())
        if name == "probe that raises":
            variables["PYTHONPATH"] = with_probe(folder / "site", RAISES)
        if name == "other field names":
            variables["PYTHONPATH"] = with_probe(folder / "site", CHANGED_FIELDS)
        if name == "receiver with another token":
            variables["TTSCOPE_TOKEN"] = "another-token-of-nobody"
        server = stack.enter_context(running(folder / "server", **variables))
        if name == "full disk":
            disk = stack.enter_context(small_disk(folder / "disk"))
            stack.enter_context(attached(disk, server.url, port, told))
        if name in {"receiver with a disk", "receiver with another token"}:
            stack.enter_context(attached(folder, server.url, port, told))
        texts, seconds = completions(server.url)
        alive = httpx.get(f"{server.url}/health").status_code == 200
    lines = [line for line in server.log.read_text().splitlines() if "ttscope:" in line]
    same = COMPLETIONS if reference is None else sum(map(str.__eq__, texts, reference))
    print(f"{name}: {same} of {COMPLETIONS} the same, {seconds:.1f} s, serving on: {alive}")
    for line in [*(line[line.index("ttscope:") :] for line in lines), *told]:
        print(f"    {line}")
    sys.stdout.flush()
    return texts


NAMES = (
    *("without, again", "receiver with a disk", "receiver with another token"),
    *("broken configuration", "unreachable receiver"),
    *("receiver that never answers", "full disk", "probe that raises", "other field names"),
)


@contextmanager
def hostile_listener(kind: str, port: int) -> Iterator[None]:
    """Listen in a process of its own, so that only the probe's work is counted here."""
    command = [sys.executable, "-m", "benchmarks.servers.hostile_server", kind]
    process = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT)
    try:
        time.sleep(1)
        yield
    finally:
        process.kill()
        process.wait()


def beside(kind: str, *, capacity: int | None) -> None:
    """Print what a hostile listener costs a probe, whose buffer holds so many steps."""
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    from profiler.attach.receiver.receiver import Receiver
    from profiler.plugin import step_logger

    whole, port = step_logger.CAPACITY, free_port()
    step_logger.CAPACITY = capacity or whole
    step_logger._SENDING.clear()
    os.environ[step_logger.VARIABLE] = f"http://127.0.0.1:{port}"
    ends: list[int] = []
    late: list[float] = []
    with hostile_listener(kind, port):
        probe = step_logger.StepLogger(SimpleNamespace(), 0)
        assert probe._thread is not None and probe._thread.ident is not None
        clock = time.pthread_getcpuclockid(probe._thread.ident)
        begun, used = time.monotonic(), time.clock_gettime(clock)
        while time.monotonic() - begun < BESIDE_S:
            asked = time.monotonic()
            time.sleep(0.001)
            late.append(time.monotonic() - asked - 0.001)
            if len(ends) < (time.monotonic() - begun) * STEPS_PER_S:
                probe.record(SchedulerStats(num_running_reqs=1), IterationStats())
                ends.append(probe._ring[-1][0])
        took = time.monotonic() - begun
        used = time.clock_gettime(clock) - used
    receiver, kept = Receiver("127.0.0.1", port), list[int]()
    receiver.start()
    until = time.monotonic() + 20
    while len(kept) < min(len(ends), step_logger.CAPACITY) and time.monotonic() < until:
        kept += [row[0] for batch in receiver.take_batches() for row in batch.rows]
        time.sleep(0.05)
    receiver.close()
    probe.on, step_logger.CAPACITY = False, whole
    newest = kept == ends[-len(kept) :] if kept else False
    p99 = sorted(late)[len(late) * 99 // 100]
    print(
        f"{kind}: {used:.2f} of {took:.1f} s ({used / took:.1%} of a core), 1 ms wakes "
        f"{p99 * 1e3:.1f} ms late (p99), {len(kept):,} of {len(ends):,} steps arrived, the buffer "
        f"holds {capacity or whole:,}, the newest: {newest}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--listeners", action="store_true", help="hostile listeners, no engine")
    asked = parser.parse_args()
    if asked.listeners:
        for kind in KINDS:
            beside(kind, capacity=None)
        beside("continue", capacity=300)
        return
    names = asked.names or list(NAMES)
    os.environ.pop("TTSCOPE_PLUGIN", None)
    print(f"{COMPLETIONS} completions of {TOKENS} tokens at temperature 0 by demo/s")
    with tempfile.TemporaryDirectory() as root:
        reference = condition("without", Path(root) / "0", None)
        print(f"    {len(set(reference))} different texts")
        for number, name in enumerate(names, 1):
            if name == "full disk" and os.geteuid() != 0:
                print("full disk: left out, needs root")
                continue
            condition(name, Path(root) / str(number), reference)


if __name__ == "__main__":
    main()
