"""What asks a server, the command in a process of its own, and what a recording holds of it."""

import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import httpx

from benchmarks.servers.vllm_server import ROOT

CANARY = "canary 31415"


@contextmanager
def asking(url, **more):
    """Have a client ask for tokens again and again; it does not mind a server that ends.

    It pauses between, as an engine that is never idle may leave two cores to nobody else.
    """
    stop = threading.Event()
    body = {"prompt": CANARY, "max_tokens": 200, "ignore_eos": True} | more

    def ask():
        with httpx.Client(timeout=10) as client:
            while not stop.is_set():
                with suppress(httpx.HTTPError):
                    client.post(f"{url}/v1/completions", json=body)
                stop.wait(0.5)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def verb(*arguments, **options):
    code = "from tui.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@contextmanager
def attached(url, port, output, settle_s):
    """Record a server that tells its steps and spans to the port, and for so long afterwards."""
    attach = verb("attach", url, "--listen", port, "-o", output, "--json")
    while not (output / "recording.json").exists():
        time.sleep(0.1)
    time.sleep(1.0)
    try:
        yield
        time.sleep(settle_s)  # exporters send every 5 s
    finally:
        attach.terminate()
        attach.communicate()


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def everything_in(path):
    """All bytes of a recording, its tables as text."""
    import polars as pl  # not before servers are forked

    kept = (path / "recording.json").read_text()
    for part in path.glob("*.parquet"):
        kept += pl.read_parquet(part).write_ndjson()
    return kept
