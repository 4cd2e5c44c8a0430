"""Real vLLM servers on loopback."""

import contextlib
import itertools
import os
import random
import signal
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.servers.warm import Warm
from profiler.engines.options import model_path
from profiler.plugin.shared_token import shared_token

ROOT = Path(__file__).parents[2]


@dataclass
class Server:
    """A server that runs; `log` is what it has said."""

    url: str
    process: Warm
    log: Path

    def signal(self, number):
        """Send a signal to all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


# Below those that a system gives to clients, for each process of the tests others, each once.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_PORTS = itertools.count(random.SystemRandom().randrange(1000))


def free_port():
    """Return a port for a server that is started later, or started again."""
    while True:
        port = 10_000 + 1000 * (_WORKER % 20) + next(_PORTS) % 1000
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def launch(folder, *arguments, port=None, **variables):
    """Start a server of the small reasoner and return before it answers (see `wait_for`)."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = port or free_port(), folder / "log"
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    options = ["--model", model_path("demo/s"), "--port", port, "--host", "127.0.0.1"]
    options += ["--enforce-eager", "--max-num-seqs", "16", "--enable-prompt-tokens-details"]
    process = Warm(
        [*options, *arguments],
        module="vllm.entrypoints.openai.api_server",
        stdout=log,
        stderr=log,
        env=environment | variables,
    )
    return Server(f"http://127.0.0.1:{port}", process, log)


def wait_for(server):
    """Wait until it answers."""
    deadline = time.monotonic() + 400
    while True:
        assert server.process.poll() is None and time.monotonic() < deadline, server.log.read_text()
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{server.url}/health", timeout=2).status_code == 200:
                return
        time.sleep(0.2)


def end(server):
    """End it and all of its processes."""
    server.signal(signal.SIGCONT)
    server.signal(signal.SIGTERM)
    try:
        server.process.wait(timeout=60)
    finally:
        server.signal(signal.SIGKILL)
        server.process.wait(timeout=60)


def telling(port):
    """Return the flags and the variables of a server that tells its steps and spans to a port."""
    here = f"http://127.0.0.1:{port}"
    variables = {
        "TTSCOPE_PLUGIN": here,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{shared_token()}",
    }
    return ("--otlp-traces-endpoint", f"{here}/v1/traces"), variables


@contextmanager
def running(folder, *arguments, **variables):
    """Serve the small reasoner; gives the `Server`."""
    server = launch(folder, *arguments, **variables)
    try:
        wait_for(server)
        yield server
    finally:
        end(server)


@contextmanager
def vllm_server(folder, *arguments):
    """Serve the small reasoner; gives the URL."""
    with running(folder, *arguments) as server:
        yield server.url


def entry_point(folder, value=None):
    """Announce a plugin as an installed ttscope does, by default ours, whatever is installed."""
    info = folder / "ttscope_plugin-0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ttscope-plugin\nVersion: 0.0\n")
    text = (ROOT / "pyproject.toml").read_text()
    line = next(one for one in text.splitlines() if "ttscope_plugin:" in one)
    value = value or line.split('"')[1]
    (info / "entry_points.txt").write_text(f"[vllm.stat_logger_plugins]\nlive = {value}\n")


def with_probe(folder, code):
    """Return PYTHONPATH for a server whose plugin is ours after `code` has changed its module.

    `code` is the body of a module that has the plugin's as `plugin`.
    """
    folder.mkdir(parents=True)
    source = f"import profiler.plugin.step_logger as plugin\n{code}\nLogger = plugin.StepLogger\n"
    (folder / "changed_probe.py").write_text(source)
    entry_point(folder, "changed_probe:Logger")
    return f"{ROOT}:{folder}"


NOTED = """
import os
from profiler.plugin.batches import COLUMNS, computed
_noted = os.open("{path}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_made = plugin._row
def _row(*told):
    row = _made(*told)
    if computed(dict(zip(COLUMNS, row))):
        os.write(_noted, b"%d\\n" % row[0])
    return row
plugin._row = _row
"""  # for `with_probe`: the end of each step that a recording has in a file, at once
