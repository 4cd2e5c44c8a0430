"""Verbs at a terminal with real engines: the demo as a new user runs it, and this machine."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from benchmarks.made.terminal import ROOT, in_terminal, ttscope
from profiler.sweep.plan import load_plan
from tests.tui.test_terminal import check
from traces.recording.reader import Recording, find_recordings
from tui.verbs.demo import DEMO, SHIPPED

INSTALLED = ROOT / ".venv" / ".installed"  # by make
FEW = 24  # of the 96 problems that the demo has
OF_PLAN = """
import sys
from pathlib import Path
from tui.cli import main
from tui.verbs import demo
demo.DEMO = Path(sys.argv.pop(1))
main()
"""


@pytest.fixture
def short_folder():
    with tempfile.TemporaryDirectory() as folder:  # a line of 80 columns holds its path
        yield Path(folder)


@pytest.mark.vllm
@pytest.mark.slow
def test_the_demo_measures_advises_and_opens_the_app(short_folder):
    """Its own plan with fewer problems, and of its engines the first, with one model."""
    plan = yaml.safe_load((DEMO / "plan.yaml").read_text()) | {"problems": FEW}
    plan["engines"] = [plan["engines"][0] | {"model": "demo/s"}]
    (short_folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    folder = short_folder / "runs"
    command = [sys.executable, "-c", OF_PLAN, short_folder, "demo", "-o", folder]
    # The app opens on the answer, `q` leaves it. One that is also compute-optimal has both names.
    seen = in_terminal(*command, cwd=ROOT, keys=[("A system-", "q")], timeout_s=1500)
    assert seen.code == 0 and "Traceback" not in seen.text, seen.text
    assert b"3/3" in seen.raw and b"%d/%d" % (FEW, FEW) in seen.raw
    assert "Run demo/" in seen.text and f"recordings in {folder}" in seen.text
    assert not [line for line in seen.wrapped if str(Path(folder)) not in line]
    assert any("accuracy of at least 0.75, lowest mean latency" in line for line in seen.app)
    assert any("3 recordings" in line for line in seen.app)
    recordings = [Recording.open(path) for path in find_recordings(folder)]
    assert len(recordings) == 3 and all(each.complete for each in recordings)


def test_its_plan_is_that_of_the_shipped_recordings():
    jobs = [job.name for group in load_plan(DEMO / "plan.yaml") for job in group.jobs]
    assert sorted(jobs) == sorted(each.name for each in SHIPPED.iterdir()) and len(jobs) == 12


@pytest.mark.skipif(not INSTALLED.exists(), reason="make has installed nothing here")
def test_make_demo_is_the_verb():
    make = ["make", "--no-print-directory", "--dry-run", "demo", "DEMO_ARGS=-o runs"]
    said = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == ".venv/bin/ttscope demo -o runs"


@pytest.mark.vllm
def test_this_machine_is_looked_at():
    seen = ttscope("doctor", fresh=True)
    check(seen)
    assert "vLLM in process" in seen.text
