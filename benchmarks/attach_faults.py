"""What `ttscope attach` keeps when a real server hangs, ends, is killed or restarted.

``python -m benchmarks.attach_faults`` runs one attach that waits, with the plugin's steps, while
two clients keep a server busy (CPU, the small reasoner): it is stopped for 7 s, ended by SIGTERM
and started again three times, and killed. A second attach, with --on-loss end, ends at the kill. A
third one is killed while a profiler window is open. The time of every step is noted in the server
as well, so that what did not arrive can be counted.
"""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks.servers.clients import asking, until, verb
from benchmarks.servers.vllm_server import (
    NOTED,
    Server,
    end,
    free_port,
    launch,
    wait_for,
    with_probe,
)
from traces.recording.reader import Recording

TIMES = 3


class Bench:
    """The folder, the ports and the variables that every server here has."""

    def __init__(self, root: Path) -> None:
        self.root, self.port, self.listen = root, free_port(), free_port()
        self.noted, self.traces = root / "noted", root / "traces"
        self.traces.mkdir()
        self.variables = {
            "TTSCOPE_PLUGIN": f"http://127.0.0.1:{self.listen}",
            "PYTHONPATH": with_probe(root / "site", NOTED.format(path=self.noted)),
        }

    def serve(self) -> Server:
        profiler = {"profiler": "torch", "torch_profiler_dir": str(self.traces)}
        profiler |= {"ignore_frontend": True, "torch_profiler_with_stack": False}
        flags = ("--profiler-config", json.dumps(profiler))
        server = launch(self.root / "server", *flags, port=self.port, **self.variables)
        wait_for(server)
        return server

    def steps_noted(self) -> np.ndarray:
        """Return the ends of all steps, unix ns, as the servers noted them."""
        return np.array(self.noted.read_text().split(), dtype=np.int64)

    def wait_for_steps(self, folder: Path, after_ns: int) -> None:
        """Wait until the recording has steps from after a time."""
        until(lambda: _last(folder) > after_ns, 120)


def _last(folder: Path) -> int:
    if not list(folder.glob("steps-*.parquet")):  # its recording.json is empty at first
        return 0
    return int(Recording.open(folder).steps["end"].max())


def lost(bench: Bench, recording: Recording, begun: int, ended: int) -> str:
    """Say which of the steps noted between two times are not in the recording.

    A recording has no steps from before it began.
    """
    noted = bench.steps_noted()
    noted = noted[(noted > max(begun, recording.manifest.clock_start.unix_ns)) & (noted <= ended)]
    missing = ~np.isin(noted, recording.steps["end"].to_numpy())
    count, said = int(missing.sum()), f"{len(noted):,} steps"
    if not count:
        return f"{said}, none lost"
    if not missing[-count:].all():
        return f"{said}, {count} lost, not only the last ones"
    return f"{said}, {count} lost, those of the last {(noted[-1] - noted[-count - 1]) / 1e9:.2f} s"


def waiting(bench: Bench) -> None:
    """Hang, end, restart and kill a server under an attach that waits."""
    server, folder = bench.serve(), bench.root / "waiting"
    url = server.url
    attach = verb("attach", url, "--listen", bench.listen, "--period", "500ms", "-o", folder)
    marks: list[tuple[str, int, int]] = []
    second = None
    with asking(url):
        for turn in range(TIMES + 1):
            begun = time.time_ns()
            bench.wait_for_steps(folder, begun)
            if turn == 0:
                server.signal(signal.SIGSTOP)
                time.sleep(7)
                server.signal(signal.SIGCONT)
                time.sleep(3)
            if turn < TIMES:
                os.kill(server.process.pid, signal.SIGTERM)
                server.process.wait(timeout=120)
                marks.append(("SIGTERM", begun, time.time_ns()))
                end(server)
                server = bench.serve()
                continue
            second = ending(bench, url)
            bench.wait_for_steps(folder, time.time_ns())
            server.signal(signal.SIGKILL)
            marks.append(("SIGKILL", begun, time.time_ns()))
            second.wait(timeout=120)
            time.sleep(4)
    attach.send_signal(signal.SIGINT)
    attach.communicate(timeout=120)
    recording = Recording.open(folder)
    for what, begun, ended in marks:
        print(f"{what}: {lost(bench, recording, begun, ended)}")
    kinds = recording.frame("events")["kind"].to_list()
    print(f"waiting: exit code {attach.returncode}, complete: {recording.complete}")
    print(f"    events: {', '.join(kinds)}")
    assert second is not None
    other = Recording.open(bench.root / "ending")
    polls = other.frame("scrapes")["time"].n_unique()
    print(f"--on-loss end: exit code {second.returncode}, complete: {other.complete}")
    print(f"    events: {', '.join(other.frame('events')['kind'])}; {polls} polls kept")
    sys.stdout.flush()


def ending(bench: Bench, url: str):  # noqa: ANN201
    """Start an attach that ends when the server is gone, and wait until it polls."""
    folder = bench.root / "ending"
    second = verb("attach", url, "--on-loss", "end", "--period", "500ms", "-o", folder)
    until(lambda: list(folder.glob("scrapes-*.parquet")), 120)
    return second


def killed_in_a_window(bench: Bench) -> None:
    """Kill an attach while its window of 100 steps is open, and watch the window end."""
    server, folder = bench.serve(), bench.root / "window"
    try:
        with asking(server.url):
            attach = verb(
                *("attach", server.url, "--kernels", bench.traces, "--kernel-windows", "100/60s"),
                *("--yes", "-o", folder),
            )
            said = lambda: server.log.read_text().count("Profiler started.")  # noqa: E731
            before = said()
            until(lambda: said() >= before + 2, 120)  # the rehearsal's, and the window's
            attach.kill()
            attach.wait()
            opened = time.monotonic()
            until(lambda: any(bench.traces.glob("ttscope-*-1_*.json*")), 120)
            took = time.monotonic() - opened
            again = httpx.post(f"{server.url}/start_profile", json={"max_iterations": 1})
            ended = httpx.post(f"{server.url}/stop_profile", timeout=60)
            model = httpx.get(f"{server.url}/v1/models").status_code
        print(
            f"attach killed in a window of 100 steps: it ended by itself after {took:.1f} s; then "
            f"/start_profile answers {again.status_code}, /stop_profile {ended.status_code}, "
            f"the server {model}"
        )
        recording = Recording.open(folder)
        polls = recording.frame("scrapes")["time"].n_unique()
        print(f"    the killed attach's recording: complete: {recording.complete}, {polls} polls")
    finally:
        end(server)


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root))
        waiting(bench)
        killed_in_a_window(bench)


if __name__ == "__main__":
    main()
