"""A recording killed with -9 at random moments loses at most the last 2 s, nothing twice.

`benchmarks/durability.py` kills 500.
"""

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from traces.recording.reader import Recording
from traces.summary.run import summarise

ROOT = Path(__file__).parents[3]
ALLOWED_NS = 2_000_000_000


def kill_once(kind, folder, seconds):
    """Start a recording child, kill it so many seconds after its first step; its ledger."""
    ledger = folder.with_suffix(".ledger")
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.profiler.runs.killed_child", kind, str(folder), str(ledger)],
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


def check(folder, killed, ledger):
    """Compare the recording with the engine's own account."""
    recording = Recording.open(folder)
    assert not recording.complete
    steps = recording.steps["step"].to_list()
    assert steps == list(range(len(steps))), "a step is lost, doubled or out of order"
    due = [step for step, at in ledger if at < killed - ALLOWED_NS]
    assert len(steps) >= len(due)
    assert len(steps) <= len(ledger) + 1
    return recording


@pytest.mark.parametrize("kind", ["run", "write"])
def test_killed_at_random_moments(tmp_path, kind):
    draw = random.Random(f"{kind}-2026")
    moments = [draw.uniform(0, 3.2) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(kill_once, kind, tmp_path / f"r{i}", s) for i, s in enumerate(moments)]
        outcomes = [job.result() for job in jobs]
    in_flight = 0
    for index, (killed, ledger) in enumerate(outcomes):
        recording = check(tmp_path / f"r{index}", killed, ledger)
        if kind == "run":
            problems = recording.problems
            keys = problems.select("problem_id", "span_id")
            assert keys.n_unique() == problems.height
            ended = problems.filter(problems["end"].is_not_null())
            assert ended["decided_at"].null_count() == 0
            in_flight += problems.height - ended.height
    if kind == "run":
        assert in_flight > 0, "no problem in flight was ever seen"


def test_show_says_incomplete(tmp_path):
    kill_once("run", tmp_path / "r", 2.5)
    run = summarise(Recording.open(tmp_path / "r"))[0].to_json()
    assert run["complete"] is False
    assert run["problems_in_flight"] > 0
    done = subprocess.run(
        [sys.executable, "-c", "from tui.cli import main; main()", "show", str(tmp_path / "r")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "incomplete" in done.stdout
