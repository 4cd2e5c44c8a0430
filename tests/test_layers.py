"""Light imports stay light, and the layers hold at run time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "vllm", "scipy", "textual", "transformers", "pynvml", "httpx", "rich")


def loaded_by(statement):
    """Which modules a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import traces", {*HEAVY, "polars", "numpy", "opentelemetry"}),
        (
            "import traces.recording.reader, traces.recording.writer, traces.summary.run",
            {*HEAVY, "profiler", "advisor", "tui"},
        ),
        ("import advisor.advice.advisor", {*HEAVY, "profiler", "tui"}),
        (
            "import profiler.runs.record",
            {"torch", "vllm", "scipy", "textual", "pynvml", "advisor", "tui"},
        ),
        ("import profiler.demo.task", {*HEAVY, "numpy", "polars"}),
        ("import tui.cli", {*HEAVY[:-1], "polars", "numpy", "opentelemetry"}),
        ("import tui.app.app", {*HEAVY, "numba", "opentelemetry"} - {"textual", "rich"}),
        ("import tui.screens.entries, tui.text.recordings.show", {"textual", "scipy", "torch"}),
    ],
)
def test_imports_stay_light(statement, absent):
    assert loaded_by(statement) & absent == set()


def test_no_benchmark_and_no_script_imports_a_test():
    root = Path(__file__).parents[1]
    for folder in ("benchmarks", "scripts"):
        for path in (root / folder).rglob("*.py"):
            assert not re.search(r"^\s*(from|import) tests\b", path.read_text(), re.M), path
