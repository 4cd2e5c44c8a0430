"""A recording killed with -9 at random moments loses at most its last seconds, nothing twice.

`benchmarks/durability.py` kills 500, and allows them 2 s.
"""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat

import pytest

from benchmarks.made.killed import ROOT, check, kill_once
from traces.recording.reader import Recording
from traces.summary.run import summarise

pytestmark = pytest.mark.slow
ALLOWED_NS = 4_000_000_000  # a part is begun each second; others use this machine too


@pytest.mark.parametrize("kind", ["run", "write"])
def test_killed_at_random_moments(tmp_path, kind):
    draw = random.Random(f"{kind}-2026")
    moments = [5.5, *(draw.uniform(0, 3.2) for _ in range(2))]
    folders = [tmp_path / f"r{index}" for index in range(len(moments))]
    with ThreadPoolExecutor(2) as pool:
        outcomes = [*pool.map(partial(kill_once, kind), folders, moments, repeat("unsynced"))]
    in_flight = 0
    for folder, (killed, ledger) in zip(folders, outcomes, strict=True):
        recording = check(folder, killed, ledger, allowed_ns=ALLOWED_NS)
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
    kill_once("run", tmp_path / "r", 2.5, "unsynced")
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
