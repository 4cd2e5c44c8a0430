"""A recording killed with -9 at random moments loses at most the last 2 s, nothing twice.

`benchmarks/durability.py` kills 500.
"""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.made.killed import ROOT, check, kill_once
from traces.recording.reader import Recording
from traces.summary.run import summarise

pytestmark = pytest.mark.slow


@pytest.mark.slow
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
