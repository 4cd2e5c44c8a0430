"""`make demo` at a terminal, as a new user runs it, with real engines."""

import tempfile
from pathlib import Path

import pytest

from benchmarks.made.terminal import ROOT, TTSCOPE, in_terminal
from traces.recording.reader import Recording, find_recordings

INSTALLED = ROOT / ".venv" / ".installed"  # by make


@pytest.fixture
def short_folder():
    with tempfile.TemporaryDirectory() as folder:  # a line of 80 columns holds its path
        yield Path(folder)


@pytest.mark.vllm
def test_the_demo_measures_advises_and_opens_the_app(short_folder):
    folder = short_folder / "runs"
    if INSTALLED.exists():
        command = ["make", "demo", f"DEMO_ARGS=-o {folder}"]
    else:
        command = [*TTSCOPE, "demo", "-o", folder]
    # The app opens on the answer, `q` leaves it.
    seen = in_terminal(*command, cwd=ROOT, keys=[("A system-optimal", "q")], timeout_s=2400)
    assert seen.code == 0 and "Traceback" not in seen.text, seen.text
    assert b"12/12" in seen.raw and b"96/96" in seen.raw
    assert "Run demo/" in seen.text and f"recordings in {folder}" in seen.text
    assert not [line for line in seen.wrapped if str(Path(folder)) not in line]
    assert any("accuracy of at least 0.75, lowest mean latency" in line for line in seen.app)
    assert any("12 recordings" in line for line in seen.app)
    recordings = [Recording.open(path) for path in find_recordings(folder)]
    assert len(recordings) == 12 and all(each.complete for each in recordings)
