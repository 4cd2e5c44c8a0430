"""A process that records until it is killed, and what its recording must hold.

`python -m benchmarks.made.killed KIND FOLDER LEDGER [unsynced]` is the process. A kill takes
nothing from what a file was given, synced or not, and a busy disk makes syncing slow.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.made.stub import StubEngine
from profiler.runs.record import record
from profiler.workload.problems import load_workload
from traces.recording.manifest import Manifest
from traces.recording.reader import Recording
from traces.recording.writer import RecordingWriter, read_clocks
from traces.schema.tts.policy import Policy

ROOT = Path(__file__).parents[2]
ROWS = 100_000
ALLOWED_NS = 2_000_000_000


def run(folder, ledger):
    """A run through the whole capture, with in-flight problems."""
    engine = StubEngine(step_s=0.001, lengths=(40, 400), ledger=ledger)
    policy = Policy(method="majority", n=4, temperature=0.8)
    record(load_workload("demo", problems=2000), policy, engine, folder, concurrency=8)


def write(folder, ledger):
    """The writer alone with very short periods, so that merges are hit by the kill."""
    writer = RecordingWriter(folder, Manifest(clock_start=read_clocks()), period_s=0.004)
    for step in range(ROWS):
        now = time.time_ns()
        writer.append("steps", {"engine": "e", "step": step, "end": now})
        os.write(ledger, f"{step} {now}\n".encode())
        time.sleep(0.0005)


def kill_once(kind, folder, seconds, *options):
    """Start a recording child, kill it so many seconds after its first step; its ledger."""
    ledger = folder.with_suffix(".ledger")
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.made.killed", kind, str(folder), str(ledger), *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not (ledger.exists() and ledger.stat().st_size):
        assert child.poll() is None, child.stderr.read().decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(seconds)
    child.kill()
    killed = time.time_ns()
    child.communicate()
    lines = ledger.read_text().split("\n")[:-1]
    return killed, [tuple(map(int, line.split())) for line in lines]


def check(folder, killed, ledger, *, allowed_ns=ALLOWED_NS):
    """Compare the recording with the engine's own account."""
    recording = Recording.open(folder)
    assert not recording.complete
    steps = recording.steps["step"].to_list()
    assert steps == list(range(len(steps))), "a step is lost, doubled or out of order"
    due = [step for step, at in ledger if at < killed - allowed_ns]
    assert len(steps) >= len(due)
    assert len(steps) <= len(ledger) + 1
    return recording


if __name__ == "__main__":
    kind, folder, ledger, *options = sys.argv[1:]
    if options:
        os.fsync = lambda file: None
    descriptor = os.open(ledger, os.O_WRONLY | os.O_CREAT)
    {"run": run, "write": write}[kind](folder, descriptor)
