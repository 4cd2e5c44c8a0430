"""`ttscope import REC --power FILE`: what it prints, and one line for what it refuses."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from tests.traces.synthetic import simulate, write_recording
from traces.foreign import written
from traces.recording.manifest import NAME
from traces.summary.energy import run_window


@pytest.fixture
def joined(tmp_path):
    """The recording `rec`, and the log `power.csv` of its GPU, which drew 250 W."""
    recording = write_recording(
        tmp_path / "rec", {**simulate(problems=20, n=3, seed=5), "power": []}
    )
    start, end = run_window(recording.problems, recording.samples)
    rows = [
        f"{datetime.fromtimestamp(float(at), UTC):%Y/%m/%d %H:%M:%S.%f}"[:-3] + ", 0, 250.00 W"
        for at in np.arange(start / 1e9 - 1, end / 1e9 + 1, 0.1)
    ]
    log = tmp_path / "power.csv"
    log.write_text("\n".join(["timestamp, index, power.draw [W]", *rows, "2023/11/14 22:1"]))
    return recording


@pytest.mark.slow
def test_power_is_joined_and_shown(run, joined, tmp_path):
    asked = ("import", "rec", "--power", "power.csv", "--power-zone", "UTC")
    out = run.clean(*asked, "-o", "out")
    assert max(map(len, out.splitlines())) <= 80
    for wanted in (
        "nvidia-smi CSV",
        "GPU 0",
        "250 W",
        "taken as +00:00, as given",
        "it may be cut",
    ):
        assert wanted in out, wanted
    _, out, _ = run("show", "out")
    assert "power of 1 GPU imported from nvidia-smi CSV" in out
    assert "of the GPUs, by power" in out
    _, out, _ = run(*asked, "-o", "json", "--json")
    told = json.loads(out)
    assert told["mean_w"] == pytest.approx(250, rel=1e-3)
    assert told["energy_j"] == pytest.approx(250 * told["run_s"], rel=1e-3)
    assert run("show", "rec", "--json")[1].count('"no power was recorded"') == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("power.csv",), "Join them with the recording of the run: ttscope import REC --power"),
        (("power.csv", "--power", "power.csv"), "Import the file first"),
        (("rec", "rec", "--power", "power.csv"), "with one recording"),
        (("power.csv", "--power-zone", "UTC"), "--power-zone is for power readings"),
        (("rec", "--power", "power.csv", "--power-gpus", ","), "name the engine's GPUs"),
        (("rec", "--power", "power.csv", "--model", "x"), "--model is for files of others"),
        (("rec", "--power", "rec/recording.json"), "holds no power readings"),
        (("rec", "--power", "nothing.csv"), "nothing.csv"),
        (("rec", "--power", "power.csv", "--power-zone", "+99:00"), "no zone"),
    ],
)
def test_what_cannot_be_joined_is_one_line(run, joined, tmp_path, given, said):
    assert said in run.refused("import", *given, "-o", "new")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_nothing(run, joined, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    asked = ("import", "rec", "--power", "power.csv", "--power-zone", "UTC", "-o", "new")
    with monkeypatch.context() as patched:
        patched.setattr(written, "write_part", full)
        code, _, err = run(*asked)
    assert code == 1 and "cannot be written (No space left" in err
    assert list((tmp_path / "new").iterdir()) == []
    assert run(*asked)[0] == 0
    assert (tmp_path / "new" / NAME).exists()
