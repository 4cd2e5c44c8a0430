"""A process that records until it is killed: python killed_child.py KIND FOLDER LEDGER."""

import os
import sys
import time

from profiler.runs.record import record
from profiler.workload.problems import load_workload
from tests.profiler.stub import StubEngine
from traces.recording.manifest import Manifest
from traces.recording.writer import RecordingWriter, read_clocks
from traces.schema.tts.policy import Policy

PROBLEMS = 100_000


def run(folder, ledger):
    """A run through the whole capture, with in-flight problems."""
    engine = StubEngine(step_s=0.001, lengths=(40, 400), ledger=ledger)
    policy = Policy(method="majority", n=4, temperature=0.8)
    record(load_workload("demo", problems=2000), policy, engine, folder, concurrency=8)


def write(folder, ledger):
    """The writer alone with very short periods, so that merges are hit by the kill."""
    writer = RecordingWriter(folder, Manifest(clock_start=read_clocks()), period_s=0.004)
    for step in range(PROBLEMS):
        now = time.time_ns()
        writer.append("steps", {"engine": "e", "step": step, "end": now})
        os.write(ledger, f"{step} {now}\n".encode())
        time.sleep(0.0005)


if __name__ == "__main__":
    kind, folder, ledger = sys.argv[1:]
    descriptor = os.open(ledger, os.O_WRONLY | os.O_CREAT)
    {"run": run, "write": write}[kind](folder, descriptor)
