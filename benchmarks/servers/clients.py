"""What asks a server, and the command in a process of its own."""

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


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
