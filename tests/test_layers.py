"""Light imports stay light, and the layers hold at run time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "vllm", "scipy", "textual", "transformers", "pynvml", "httpx", "rich")
PACKAGES = ("traces", "profiler", "advisor", "tui")


def loaded_by(*statements):
    """Which modules a fresh interpreter has after each of some statements."""
    told = "\nimport sys\nprint(*sorted(sys.modules))\n"
    code = "".join(statement + told for statement in statements)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "absent",  # after each statement, in one interpreter
    [
        {
            "import ttscope": {*HEAVY, "polars", "numpy", "typer", *PACKAGES},
            "import traces": {*HEAVY, "polars", "numpy", "opentelemetry"},
            "import traces.recording.reader, traces.recording.writer, traces.summary.run": {
                *HEAVY, "profiler", "advisor", "tui",
            },
            "import advisor.advice.advisor": {*HEAVY, "profiler", "tui"},
        },
        {
            "import profiler.demo.task": {*HEAVY, "numpy", "polars"},
            "import profiler.runs.record": {
                "torch", "vllm", "scipy", "textual", "pynvml", "advisor", "tui",
            },
        },
        {
            "import tui.cli": {*HEAVY[:-1], "polars", "numpy", "opentelemetry"},
            "import tui.app.app": {*HEAVY, "numba", "opentelemetry"} - {"textual", "rich"},
        },
        {"import tui.screens.entries, tui.text.recordings.show": {"textual", "scipy", "torch"}},
    ],
    ids=lambda absent: next(iter(absent)),
)  # fmt: skip
def test_imports_stay_light(absent):
    for loaded, heavy in zip(loaded_by(*absent), absent.values(), strict=True):
        assert loaded & heavy == set()


def test_no_benchmark_and_no_script_imports_a_test():
    root = Path(__file__).parents[1]
    for folder in ("benchmarks", "scripts"):
        for path in (root / folder).rglob("*.py"):
            assert not re.search(r"^\s*(from|import) tests\b", path.read_text(), re.M), path
