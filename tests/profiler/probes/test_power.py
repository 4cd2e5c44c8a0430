"""The power sampler on the real NVML bindings over a library that answers as a device would."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from functools import partial

import pytest

from benchmarks.made.fake_nvml import DRIVER_NOT_LOADED, LOST, NOT_SUPPORTED, TIMEOUT
from benchmarks.made.stub import StubEngine
from profiler.doctor import _devices
from profiler.probes import rapl
from profiler.probes.nvml import open_gpus
from profiler.probes.power import PowerSampler, energy_here
from profiler.probes.sensor import SensorError
from profiler.runs.record import record
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.recording.tables import TABLES
from traces.schema.tts.policy import Policy
from traces.summary.run import summarise

STATE = ("utilisation", "memory_bytes", "sm_clock_mhz", "memory_clock_mhz", "temperature_c")


def gpu_engine(devices=1, **arguments):
    engine = StubEngine(**arguments)
    engine.config = dataclasses.replace(engine.config, gpu="Fake", num_gpus=devices)
    return engine


def run_recording(folder, engine):
    from profiler.workload.problems import load_workload

    policy = Policy(method="majority", n=2, temperature=0.8, max_tokens=9)
    workload = load_workload("demo", problems=3, seed=0)
    return Recording.open(record(workload, policy, engine, folder))


def read_once(environ=None, *, count=None, state=True):
    with open_gpus(count, environ or {}) as gpus:
        return {gpu.device: gpu.read(state=state) for gpu in gpus}


def test_a_reading_has_every_column(nvml):
    reading = read_once()["GPU-1ab0-1"]
    energy = reading.pop("energy_j")
    assert 0 <= energy < 300 * 60
    assert reading == {
        "watts": 301.0,  # now, not the mean of a second
        "utilisation": 0.87,
        "memory_bytes": 30 << 30,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "temperature_c": 61,
        "throttle_bits": 4,
        "pcie_bytes": 10_000_000_000,
        "nvlink_bytes": 6 * 1024,
    }
    known = {"host", "device", "kind", "time"}
    assert set(TABLES["power"]) == known | set(reading) | {"energy_j"}
    assert nvml.calls("INIT") == 0  # as often shut down as opened


def test_energy_alone_asks_for_nothing_slow(nvml):
    assert set(read_once(state=False)["GPU-0ab0-0"]) == {"watts", "energy_j"}
    assert nvml.calls("STATE") == nvml.calls("PCIE") == nvml.calls("NVLINK") == 0


@pytest.mark.parametrize(
    ("kind", "column", "asked"),
    [("ENERGY", "energy_j", 1), ("PCIE", "pcie_bytes", 2), ("NVLINK", "nvlink_bytes", 2)],
)
def test_what_is_not_supported_is_null_and_asked_once(nvml, kind, column, asked):
    nvml.set(kind, NOT_SUPPORTED)
    with open_gpus(1, {}) as (gpu,):
        for _ in range(3):
            reading = gpu.read(state=True)
            assert reading[column] is None
            assert reading["watts"] == 201.0
    assert nvml.calls(kind) <= asked


def test_without_power_now_there_is_power_usage(nvml):
    nvml.set("INSTANT", NOT_SUPPORTED)
    assert read_once(count=1)["GPU-0ab0-0"]["watts"] == 200.0
    nvml.set("POWER", NOT_SUPPORTED)
    assert read_once(count=1)["GPU-0ab0-0"]["watts"] is None


def test_a_passing_fault_is_null_once(nvml):
    with open_gpus(1, {}) as (gpu,):
        nvml.set("ENERGY", TIMEOUT)
        assert gpu.read(state=False)["energy_j"] is None
        nvml.set("ENERGY", 0)
        assert gpu.read(state=False)["energy_j"] is not None


def test_numbers_too_large_for_a_column_are_null(nvml):
    with open_gpus(1, {}) as (gpu,):
        gpu._throttle = lambda: 2**64 - 1
        assert gpu.read(state=True)["throttle_bits"] is None


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["GPU-0ab0-0", "GPU-1ab0-1"]),
        ("1,0", ["GPU-1ab0-1", "GPU-0ab0-0"]),
        (" 1 ", ["GPU-1ab0-1"]),
        ("0,7,1", ["GPU-0ab0-0"]),  # CUDA stops at what names nothing
        ("0,-1,1", ["GPU-0ab0-0"]),
        ("GPU-1ab0-1,GPU-0ab0-0", ["GPU-1ab0-1", "GPU-0ab0-0"]),
        ("GPU-1a", ["GPU-1ab0-1"]),
        ("GPU-0,GPU-", ["GPU-0ab0-0"]),  # the second could be either
        ("MIG-73", ["MIG-73"]),
    ],
)
def test_visible_devices_by_cudas_rules(nvml, visible, found):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert list(read_once(environ)) == found
    assert list(read_once(environ, count=1)) == found[:1]


@pytest.mark.parametrize("visible", ["", "-1", "GPU-9", "MIG-9", "none"])
def test_no_visible_gpu_is_said(nvml, visible):
    with pytest.raises(SensorError, match="leaves no GPU"):
        read_once({"CUDA_VISIBLE_DEVICES": visible})


def test_the_order_of_unlike_gpus_is_not_guessed(nvml):
    nvml.set("OTHER_NAME", 1, gpu=1)
    with pytest.raises(SensorError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        read_once({"CUDA_VISIBLE_DEVICES": "1"})
    ordered = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert list(read_once(ordered)) == ["GPU-1ab0-1"]
    assert list(read_once({"CUDA_VISIBLE_DEVICES": "GPU-1ab"})) == ["GPU-1ab0-1"]


def test_a_mig_slice_knows_its_memory_only(nvml):
    reading = read_once({"CUDA_VISIBLE_DEVICES": "MIG-73"})["MIG-73"]
    assert reading["energy_j"] is reading["watts"] is None
    assert reading["memory_bytes"] == 30 << 30


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda nvml: nvml.set("INIT", DRIVER_NOT_LOADED), "no NVIDIA driver"),
        (lambda nvml: nvml.set("INIT", 999), "NVML: Unknown Error"),
        (lambda nvml: nvml.reset(0), "there is no GPU"),
    ],
)
def test_a_machine_whose_gpus_cannot_be_read_says_why(nvml, change, told):
    change(nvml)
    with pytest.raises(SensorError, match=told):
        read_once()


def sampled(sampler, seconds):
    sampler.start()
    time.sleep(seconds)
    sampler.stop()
    return sampler.drain()


def test_the_sampler_reads_at_its_rate_and_once_more_at_the_end(nvml):
    sampler = PowerSampler(partial(open_gpus, 2, {}), hz=50)
    begun = time.time_ns()
    rows = sampled(sampler, 0.5)
    assert sampler.failures == []
    for device in ("GPU-0ab0-0", "GPU-1ab0-1"):
        own = [row for row in rows if row["device"] == device]
        times = [row["time"] for row in own]
        assert times == sorted(times)
        assert begun < times[0] < times[-1] <= time.time_ns()
        assert len(own) >= 3
        full = [row for row in own if "utilisation" in row]
        assert 2 <= len(full) < len(own)  # the state less often, and at the end
        assert own[-1] is full[-1]
        assert own[-1]["time"] - own[0]["time"] > 0.45e9
        energy = [row["energy_j"] for row in own]
        assert energy == sorted(energy)
        assert {row["kind"] for row in own} == {"nvml"}


def test_the_rate_is_bounded():
    for hz in (0.0, 9.0, 51.0, float("nan"), "20"):
        with pytest.raises(UsageError, match="10 to 50"):
            PowerSampler(rapl.open_packages, hz=hz)


def test_rows_that_nobody_drains_are_dropped_and_counted(nvml):
    sampler = PowerSampler(partial(open_gpus, 2, {}), hz=50, capacity=3)
    assert len(sampled(sampler, 0.2)) == 3
    assert sampler.dropped > 0


def test_a_slow_driver_is_asked_less_often(nvml):
    nvml.set("DELAY_US", 20_000)
    begun = time.monotonic()
    rows = sampled(PowerSampler(partial(open_gpus, 1, {}), hz=50), 1.0)
    share = nvml.calls("ENERGY") * 0.04 / (time.monotonic() - begun)
    assert share < 0.5  # energy and power take 40 ms together
    assert len(rows) >= 2


def test_a_lost_gpu_is_given_up_and_the_other_goes_on(nvml):
    sampler = PowerSampler(partial(open_gpus, 2, {}), hz=50)
    sampler.start()
    nvml.set("IS_LOST", LOST, gpu=1)
    time.sleep(0.3)
    asked = nvml.calls("ENERGY")
    time.sleep(0.2)
    sampler.stop()
    assert sampler.failures == ["GPU-1ab0-1: NVML: GPU is lost"]
    assert nvml.calls("ENERGY") > asked
    rows = sampler.drain()
    last = {row["device"]: row["time"] for row in rows}
    assert last["GPU-0ab0-0"] - last["GPU-1ab0-1"] > 0.3e9


def test_a_defect_of_a_sensor_stays_its_own(nvml, monkeypatch):
    monkeypatch.setattr("profiler.probes.nvml.Gpu._watts", lambda self: 1 / 0)
    sampler = PowerSampler(partial(open_gpus, 1, {}))
    assert sampled(sampler, 0.0) == []
    assert sampler.failures == ["GPU-0ab0-0: ZeroDivisionError: division by zero"]


def test_a_recording_has_the_energy_of_its_gpus(nvml, tmp_path):
    recording = run_recording(tmp_path / "r", gpu_engine(2, step_s=0.1))
    assert recording.frame("events").height == 0
    (run,) = summarise(recording)
    energy = run.energy_j
    seconds = (recording.problems["end"].max() - recording.problems["arrival"].min()) / 1e9
    assert energy.total.value == pytest.approx(500 * seconds, rel=0.2)
    assert energy.mean_w.value == pytest.approx(500, rel=0.2)
    assert energy.max_w.value == pytest.approx(502, rel=0.02)
    assert (energy.kind, energy.method) == ("nvml", "counter")
    assert 0 <= energy.idle.value < energy.total.value
    assert energy.per_problem.value == pytest.approx(energy.total.value / 3)


def test_a_counter_that_wraps_during_a_run_is_bridged(nvml, tmp_path):
    engine = gpu_engine(1, step_s=0.03)
    first, begun = 2**32 - 20_000, []
    nvml.set("ENERGY_MJ", first)

    def poll(poll=engine.poll):
        begun.append(time.monotonic())
        drawn = 200_000 * (begun[-1] - begun[0])  # 200 W in mJ
        nvml.set("ENERGY_MJ", (first + int(drawn)) % 2**32)
        return poll()

    engine.poll = poll
    recording = run_recording(tmp_path / "w", engine)
    counter = recording.frame("power")["energy_j"]
    assert (counter.diff().drop_nulls() < 0).any()
    (run,) = summarise(recording)
    assert run.energy_j.method == "counter"
    assert 100 < run.energy_j.mean_w.value < 300


def test_a_gpu_lost_during_a_run_leaves_null_and_the_reason(nvml, tmp_path):
    engine = gpu_engine(1, step_s=0.1)
    polls = iter(range(100))

    def poll(poll=engine.poll):
        if next(polls) == 2:
            nvml.set("IS_LOST", LOST)
        return poll()

    engine.poll = poll
    recording = run_recording(tmp_path / "l", engine)
    assert recording.complete
    assert recording.frame("events")["detail"].to_list() == ["power: GPU-0ab0-0: NVML: GPU is lost"]
    (run,) = summarise(recording)
    assert run.energy_j.total is None
    assert "GPU is lost" in run.energy_j.reason
    assert run.latency_s["mean"] is not None


def test_no_driver_costs_a_run_nothing_but_an_event(nvml, tmp_path):
    nvml.set("INIT", DRIVER_NOT_LOADED)
    recording = run_recording(tmp_path / "n", gpu_engine())
    assert recording.frame("power").height == 0
    assert recording.frame("events")["detail"].to_list() == ["power: no NVIDIA driver"]
    (run,) = summarise(recording)
    assert run.energy_j.reason == "no NVIDIA driver"


def test_a_driver_that_hangs_does_not_hold_up_a_run(nvml, tmp_path, monkeypatch):
    monkeypatch.setattr(
        PowerSampler.__init__,
        "__kwdefaults__",
        {**PowerSampler.__init__.__kwdefaults__, "patience_s": 0.2},
    )
    nvml.set("HANG", 1)
    begun = time.monotonic()
    recording = run_recording(tmp_path / "h", gpu_engine())
    assert time.monotonic() - begun < 20
    assert recording.complete
    assert "took more than 0.2 s" in recording.frame("events")["detail"][0]
    nvml.set("HANG", 0)


def test_a_driver_that_hangs_midway_is_left_behind(nvml):
    sampler = PowerSampler(partial(open_gpus, 1, {}), patience_s=0.2)
    sampler.start()
    deadline = time.monotonic() + 20
    while not sampler.drain():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    nvml.set("HANG", 1)
    begun = time.monotonic()
    sampler.stop()
    assert time.monotonic() - begun < 10
    assert sampler.failures == ["a reading took more than 0.2 s"]


def test_a_server_is_not_measured_here(nvml, tmp_path):
    engine = gpu_engine()
    engine.config = dataclasses.replace(engine.config, mode="server")
    recording = run_recording(tmp_path / "s", engine)
    assert recording.frame("power").height == 0
    assert nvml.calls("ENERGY") == 0


def test_the_bindings_find_the_library_by_its_name(library):
    code = (
        "import profiler.probes.nvml as n, sys\n"
        "with n.open_gpus(None, {}) as gpus:\n"
        "    print([(g.device, g.read(state=False)['watts']) for g in gpus])\n"
    )
    environ = os.environ | {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_GPUS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[('GPU-0ab0-0', 201.0)]"


def test_missing_bindings_are_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(SensorError, match="nvidia-ml-py is not installed"):
        read_once()


@pytest.fixture
def zones(tmp_path):
    """A powercap tree: two packages, a part of one, and the platform."""
    for zone, name, energy in (
        ("intel-rapl:0", "package-0", 5_000_000),
        ("intel-rapl:0:0", "core", 1_000_000),
        ("intel-rapl:1", "package-1", 7_000_000),
        ("intel-rapl:2", "psys", 20_000_000),
        ("intel-rapl-mmio:0", "package-0", 5_000_000),
    ):
        folder = tmp_path / zone
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{energy}\n")
        (folder / "max_energy_range_uj").write_text("10000000\n")
    return tmp_path


def test_packages_are_read(zones):
    with rapl.open_packages(zones) as packages:
        assert [each.device for each in packages] == ["package-0", "package-1"]
        assert [each.read(state=True) for each in packages] == [
            {"energy_j": 5.0},
            {"energy_j": 7.0},
        ]


def test_a_package_counter_counts_on_when_it_wraps(zones):
    (package, _), _ = rapl.examine(zones)
    found = []
    for value in (9_000_000, 1_000_000, 9_999_999, 0):
        (zones / "intel-rapl:0" / "energy_uj").write_text(str(value))
        found.append(package.read(state=False)["energy_j"])
    assert found == pytest.approx([9.0, 11.0, 19.999999, 20.0])


def test_a_package_that_vanishes_is_given_up(zones):
    (package, _), _ = rapl.examine(zones)
    (zones / "intel-rapl:0" / "energy_uj").write_text("rubbish")
    with pytest.raises(SensorError, match="RAPL"):
        package.read(state=False)
    (zones / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(SensorError, match="RAPL"):
        package.read(state=False)


def test_without_rapl_there_is_nothing(tmp_path):
    assert rapl.examine(tmp_path) == ([], "no RAPL")
    (tmp_path / "intel-rapl:0").mkdir()  # a zone without files
    assert rapl.examine(tmp_path) == ([], "no RAPL")


def forbid(monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("profiler.probes.rapl._read", refused)


def test_a_processor_run_has_the_energy_of_the_packages(zones, tmp_path, monkeypatch):
    """Each draws 40 W from its first reading on, and the counter of one wraps soon."""
    monkeypatch.setattr("profiler.probes.power.open_packages", partial(rapl.open_packages, zones))
    begun, whole = {}, 100_000_000
    starts = {"intel-rapl:0": 5_000_000, "intel-rapl:1": whole - 500_000}

    def read(file):
        if file.name == "max_energy_range_uj":
            return whole
        drawn = 40e6 * (time.monotonic() - begun.setdefault(file, time.monotonic()))
        return (starts.get(file.parent.name, 0) + int(drawn)) % whole

    monkeypatch.setattr("profiler.probes.rapl._read", read)
    recording = run_recording(tmp_path / "r", StubEngine(step_s=0.05))
    (run,) = summarise(recording)
    assert (run.energy_j.kind, run.energy_j.method) == ("rapl", "counter")
    assert run.energy_j.mean_w.value == pytest.approx(80, rel=0.2)


def test_a_host_without_sensors_records_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "profiler.probes.power.open_packages", partial(rapl.open_packages, tmp_path)
    )
    recording = run_recording(tmp_path / "r", StubEngine())
    assert recording.frame("power").height == recording.frame("events").height == 0
    (run,) = summarise(recording)
    assert run.energy_j.reason == "no power was recorded"


def test_the_doctor_on_gpus(nvml, tmp_path):
    present, detail, needs = energy_here(tmp_path)
    assert (present, needs) == (True, None)
    assert detail == "NVML: energy counter on 2 of 2 GPUs, power on 2"
    finding = list(_devices())[-1]
    told = (finding.what, finding.present, finding.detail, finding.needs)
    assert told == ("energy", True, detail, None)
    nvml.set("ENERGY", NOT_SUPPORTED, gpu=1)
    assert energy_here(tmp_path)[:2] == (True, "NVML: energy counter on 1 of 2 GPUs, power on 2")


def test_the_doctor_on_a_slice_or_a_hanging_driver(nvml, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-73")
    present, detail, needs = energy_here(tmp_path)
    assert (present, needs) == (False, "whole GPUs: NVML knows no energy of a MIG slice")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    nvml.set("HANG", 1)
    present, detail, needs = energy_here(tmp_path, patience_s=0.1)
    assert (present, detail) == (False, "NVML did not answer for 0.1 s")
    assert needs
    nvml.set("HANG", 0)


def test_the_doctor_on_a_host_with_packages(nvml, zones, monkeypatch):
    nvml.set("INIT", DRIVER_NOT_LOADED)
    assert energy_here(zones) == (True, "RAPL: package-0, package-1", None)
    forbid(monkeypatch)
    present, detail, needs = energy_here(zones)
    assert present is False
    assert detail == "no NVIDIA driver, RAPL is readable by root only, shown as '-'"
    assert "chmod a+r" in needs


def test_the_doctor_on_a_bare_host(nvml, tmp_path):
    nvml.set("INIT", DRIVER_NOT_LOADED)
    assert energy_here(tmp_path) == (False, "no NVIDIA driver, no RAPL, shown as '-'", None)
