"""A real vLLM server on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx

from profiler.launch import model_path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def vllm_server(folder, *arguments):
    """Serve the small reasoner; gives the URL."""
    port, log = free_port(), folder / "log"
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", model_path("demo/s")]
    command += ["--port", str(port), "--host", "127.0.0.1", "--enforce-eager"]
    command += ["--max-num-seqs", "16", "--enable-prompt-tokens-details", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 400
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
