"""Forged recordings of every kind end in an answer or in lines of ttscope."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
PROGRAM = (sys.executable, "-m", "benchmarks.forged_recordings", "--count", "30")


@pytest.mark.slow
def test_forged_recordings_break_no_verb():
    """In a process of its own, which is given little more memory than it has before."""
    root = Path(__file__).parents[3]
    seen = subprocess.run(PROGRAM, capture_output=True, text=True, cwd=root, check=False)
    assert seen.returncode == 0, seen.stdout + seen.stderr[-2000:]
    assert "report: ended" in seen.stdout and "show: refused" in seen.stdout
