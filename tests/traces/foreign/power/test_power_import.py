"""Power readings of nvidia-smi and aiperf, joined with a recording by its clock."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from tests.traces.synthetic import engine_config, simulate, write_recording
from traces.errors import OutcomesError, RecordingError, UsageError
from traces.foreign.kinds import kind_of
from traces.foreign.power.importer import import_power
from traces.recording.reader import Recording
from traces.summary.energy import run_window
from traces.summary.run import summarise

S = 10**9
UUIDS = ("GPU-afc3c15a-48a5-d669-0634-191c629f95fa", "GPU-0b1c2d3e-48a5-d669-0634-191c629f95fb")
HEADER = "timestamp, index, power.draw [W], uuid"


@pytest.fixture
def made(tmp_path):
    """A recording without power of an engine with two GPUs."""
    rows = {**simulate(problems=6, n=3, seed=5), "power": []}
    return write_recording(tmp_path / "rec", rows, engine=engine_config(tensor_parallel_size=2))


def window_of(recording):
    return run_window(recording.problems, recording.samples)


def lines(window, *, every_s=0.25, watts=(100.0, 200.0), zone=UTC, units=True, uuid=True, pad_s=1):
    """Rows as nvidia-smi writes them, from before the run until after it."""
    found = []
    for at in np.arange(window[0] / S - pad_s, window[1] / S + pad_s, every_s):
        when = datetime.fromtimestamp(float(at), zone).strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]
        for index, drawn in enumerate(watts):
            power = f"{drawn:.2f} W" if units else f"{drawn:.2f}"
            row = [when, str(index), power, *([UUIDS[index % 2]] if uuid else [])]
            found.append(", ".join(row))
    return found


def csv(tmp_path, rows, header=HEADER):
    path = tmp_path / "power.csv"
    path.write_text("\n".join([*([header] if header else []), *rows]) + "\n")
    return path


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("uuid", [True, False])
def test_nvidia_smi_gives_the_energy_of_the_run(made, tmp_path, units, header, uuid):
    window = window_of(made)
    head = "timestamp, index, power.draw [W]" + (", uuid" if uuid else "")
    path = csv(tmp_path, lines(window, units=units, uuid=uuid), head if header else None)
    told = import_power(made, path, tmp_path / "out", zone="UTC")
    assert told.facts["reason"] is None
    length = (window[1] - window[0]) / S
    assert told.facts["energy_j"] == pytest.approx(300 * length, rel=1e-3)
    (run,) = summarise(Recording.open(tmp_path / "out"))
    assert run.energy_j.total.value == pytest.approx(300 * length, rel=1e-3)
    assert run.energy_j.method == "power"
    assert run.rows["energy_j"].sum() == pytest.approx(run.energy_j.total.value)
    (before,) = summarise(made)
    assert before.energy_j.total is None
    assert run.rows.drop("energy_j").equals(before.rows.drop("energy_j"))


@pytest.mark.parametrize("hours", [-8, 2, 5.5])
def test_the_zone_is_said_and_one_that_does_not_fit_is_named(made, tmp_path, hours):
    zone = timezone(timedelta(hours=hours))
    path = csv(tmp_path, lines(window_of(made), zone=zone))
    offset = f"{'-' if hours < 0 else '+'}{abs(int(hours)):02d}:{int(abs(hours) % 1 * 60):02d}"
    told = import_power(made, path, tmp_path / "out", zone=offset)
    assert f"taken as {offset}, as given" in " ".join(told.notes)
    suggested = offset if float(hours).is_integer() else "+02:00"
    with pytest.raises(OutcomesError, match=f"taken at .00:00.*--power-zone .{suggested[1:]}"):
        import_power(made, path, tmp_path / "other", zone="UTC")
    assert not (tmp_path / "other" / "recording.json").exists()


def test_a_named_zone_and_an_hour_that_its_clock_has_twice(made, tmp_path):
    rows = lines(window_of(made), zone=timezone(timedelta(hours=1)))  # Berlin's, in November
    path = csv(tmp_path, [*rows, "2025/10/26 02:30:00.000, 0, 90.00 W, " + UUIDS[0]])
    told = import_power(made, path, tmp_path / "out", zone="Europe/Berlin")
    assert told.facts["reason"] is None
    assert told.skipped.counts == {
        "lines in an hour that the zone's clock has twice or not at all": 1
    }
    with pytest.raises(UsageError, match="--power-zone Mars/Base: no zone"):
        import_power(made, path, tmp_path / "mars", zone="Mars/Base")


@pytest.mark.slow
def test_a_log_that_any_zone_would_fit_says_so(made, tmp_path):
    path = csv(tmp_path, lines(window_of(made), every_s=1.0, pad_s=2 * 3600))
    told = import_power(made, path, tmp_path / "out", zone="UTC")
    assert "another zone would fit the run too" in " ".join(told.notes)
    assert told.facts["outside"] > 10_000
    assert Recording.open(tmp_path / "out").rows("power") < 200


def test_bad_lines_are_counted_and_the_rest_is_read(made, tmp_path):
    rows = lines(window_of(made))
    time, first = rows[0].split(", ")[0], UUIDS[0]
    bad = [
        f"{time}, 0, [N/A], {first}",
        f"{time}, 0, -5.00 W, {first}",
        f"{time}, 0, 99999.00 W, {first}",
        f"{time}, x, 100.00 W, {first}",
        f"{time}, 0, 100.00 W, nobody",
        f"2025/13/40 10:00:00.000, 0, 100.00 W, {first}",
        HEADER,
        f"{time}, 0",
    ]
    told = import_power(made, csv(tmp_path, [*rows, *bad]), tmp_path / "out", zone="UTC")
    assert sum(told.skipped.counts.values()) == 7
    assert told.skipped.counts["lines without a power in W"] == 3
    assert "skipped" in told.notes[-1]
    assert told.facts["reason"] is None


@pytest.mark.parametrize("units", [True, False])
def test_a_last_line_that_is_cut_is_left_out(made, tmp_path, units):
    rows = lines(window_of(made), units=units, uuid=False)
    header = "timestamp, index, power.draw [W]"
    whole = import_power(made, csv(tmp_path, rows, header), tmp_path / "whole", zone="UTC")
    path = csv(tmp_path, rows, header)
    path.write_text(path.read_text() + rows[-1].rsplit(".00", 1)[0][:-1])
    told = import_power(made, path, tmp_path / "cut", zone="UTC")
    assert "the last, has no end and is left out" in " ".join(told.notes)
    assert (told.facts["gpus"], told.facts["energy_j"], told.skipped.counts) == (
        whole.facts["gpus"],
        whole.facts["energy_j"],
        {},
    )


def test_a_pause_leaves_the_energy_null_and_is_said(made, tmp_path):
    window = window_of(made)
    middle = (window[0] + window[1]) // 2
    rows = lines((middle, middle), every_s=5.0, pad_s=5.01)
    told = import_power(made, csv(tmp_path, rows), tmp_path / "out", zone="UTC")
    assert told.facts["energy_j"] is None
    assert "its power was not read for 5.0 s" in told.notes[-1]
    (run,) = summarise(Recording.open(tmp_path / "out"))
    assert run.energy_j.total is None
    assert "was not read for 5.0 s" in run.energy_j.reason


def test_gpus_of_others_are_left_out_by_name(made, tmp_path):
    window = window_of(made)
    path = csv(
        tmp_path,
        lines(window, watts=(100.0, 200.0, 400.0, 800.0), uuid=False),
        "timestamp, index, power.draw [W]",
    )
    with pytest.raises(UsageError, match=r"4 GPUs read .* the engine has 2.*--power-gpus"):
        import_power(made, path, tmp_path / "out", zone="UTC")
    told = import_power(made, path, tmp_path / "out", gpus=["1", "3"], zone="UTC")
    assert told.facts["mean_w"] == pytest.approx(1000.0, rel=1e-3)
    assert set(told.facts["gpus"]) == {"GPU 1", "GPU 3"}
    with pytest.raises(UsageError, match="--power-gpus names 1 GPU, and the engine has 2"):
        import_power(made, path, tmp_path / "other", gpus=["0"], zone="UTC")
    with pytest.raises(UsageError, match="--power-gpus 7: no GPU is of that name"):
        import_power(made, path, tmp_path / "other", gpus=["7"], zone="UTC")


def test_a_server_of_unknown_gpus_has_those_that_are_named(tmp_path):
    rows = {**simulate(problems=6, n=3, seed=5), "power": []}
    recording = write_recording(tmp_path / "rec", rows, engine=engine_config(mode="server"))
    path = csv(tmp_path, lines(window_of(recording), watts=(100.0, 200.0, 400.0), uuid=False))
    path.write_text(path.read_text().replace(", uuid", ""))
    with pytest.raises(UsageError, match="the engine has 1, as far as is known"):
        import_power(recording, path, tmp_path / "out", zone="UTC")
    import_power(recording, path, tmp_path / "out", gpus=["0", "2"], zone="UTC")
    (run,) = summarise(Recording.open(tmp_path / "out"))
    assert run.energy_j.mean_w.value == pytest.approx(500.0, rel=1e-3)


def aiperf(window, *, names, reset_at=None):
    """Records as aiperf exports them, two GPUs of 100 and 200 W."""
    power, energy = names
    found = []
    for number, at in enumerate(np.arange(window[0] / S - 1, window[1] / S + 1, 0.2)):
        for index, watts in enumerate((100.0, 200.0)):
            passed = 0.2 * (number if reset_at is None or number < reset_at else number - reset_at)
            found.append(
                {
                    "gpu_index": index,
                    "gpu_uuid": UUIDS[index],
                    "gpu_model_name": "NVIDIA H100 80GB HBM3",
                    "hostname": "node1",
                    "timestamp_ns": round(float(at) * S),
                    "dcgm_url": "http://node1:9401/metrics",
                    "telemetry_data": {power: watts, energy: (1000.0 + watts * passed) / 1e6},
                }
            )
    return [json.dumps(each) for each in found]


@pytest.mark.parametrize(
    "names",
    [
        ("gpu_power_usage", "energy_consumption"),
        ("nvidia_power_usage", "nvidia_energy_consumption"),
    ],
)
def test_aiperf_counts_energy_and_a_counter_that_begins_again_is_bridged(made, tmp_path, names):
    window = window_of(made)
    path = tmp_path / "gpu_telemetry_export.jsonl"
    for reset in (None, 8):
        path.write_text("\n".join([*aiperf(window, names=names, reset_at=reset), '{"a": 1}', "{"]))
        told = import_power(made, path, tmp_path / f"out{reset}")
        length = (window[1] - window[0]) / S
        assert told.facts["energy_j"] == pytest.approx(300 * length, rel=1e-3)
        assert ("energy counters that began again: 2" in " ".join(told.notes)) == (reset == 8)
        assert sum(told.skipped.counts.values()) == 2
        (run,) = summarise(Recording.open(tmp_path / f"out{reset}"))
        assert run.energy_j.method == "counter"


def test_what_can_have_no_power_is_refused(made, tmp_path):
    path = csv(tmp_path, lines(window_of(made)))
    import_power(made, path, tmp_path / "out", zone="UTC")
    with pytest.raises(RecordingError, match="has power readings already"):
        import_power(Recording.open(tmp_path / "out"), path, tmp_path / "again", zone="UTC")
    with pytest.raises(UsageError, match="already holds a recording"):
        import_power(made, path, tmp_path / "out", zone="UTC")
    path.write_text("timestamp, power.draw [W]\n2025/01/01 10:00:00.000, 100.00 W\n")
    with pytest.raises(OutcomesError, match="has no column index or uuid"):
        import_power(made, path, tmp_path / "new", zone="UTC")
    path.write_text("gpu,watts\n0,100\n")
    with pytest.raises(OutcomesError, match="holds no power readings"):
        import_power(made, path, tmp_path / "new", zone="UTC")
    path.write_text(HEADER + "\n")
    with pytest.raises(OutcomesError, match="no power reading in it can be read"):
        import_power(made, path, tmp_path / "new", zone="UTC")
    with pytest.raises(UsageError, match="Join them with the recording"):
        kind_of([path])
    assert not (tmp_path / "new").exists()
