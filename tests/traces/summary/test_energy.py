"""Energy: the integral of what was drawn, and its shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces.synthetic import START, engine_config, simulate, write_recording
from traces.foreign.written import written_into
from traces.recording.reader import Recording
from traces.recording.tables import TABLES
from traces.schema.tts.policy import Policy
from traces.summary.energy import energy_curve, run_window, share_energy
from traces.summary.run import summarise

S = 10**9


def frame(table, rows):
    return pl.from_dicts(rows, schema=TABLES[table])


def readings(times_s, *, watts=None, joules=None, device="GPU-0", kind="nvml"):
    """Rows of `power` at seconds from START."""
    return [
        {
            "host": "h",
            "device": device,
            "kind": kind,
            "time": START + round(float(time) * S),
            "watts": None if watts is None else float(watts[place]),
            "energy_j": None if joules is None else float(joules[place]),
        }
        for place, time in enumerate(times_s)
    ]


def cumulative(times, watts):
    return np.concatenate(([0.0], np.cumsum(np.diff(times) * (watts[1:] + watts[:-1]) / 2)))


@st.composite
def devices(draw, length):
    """Random devices: (times, watts, what the counter shows or None, energy by the moment)."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        rng = np.random.default_rng(draw(st.integers(0, 2**31)))
        inside = rng.uniform(-0.3 * length, 1.3 * length, draw(st.integers(0, 60)))
        times = np.concatenate(([-0.4 * length], inside, [1.4 * length]))
        times = np.unique(np.round(times, 6))
        watts = rng.uniform(1.0, 700.0, times.size)
        drawn = cumulative(times, watts)
        kind = draw(st.sampled_from(["power", "counter", "wraps", "reset"]))
        counter = None
        if kind != "power":
            counter = drawn + rng.uniform(0, 1e6)
        if kind == "wraps":
            counter = counter % rng.uniform(1.01 * np.diff(drawn).max(), 2 * drawn[-1])
        if kind == "reset":
            place = rng.integers(1, times.size)
            counter[place:] -= counter[place]

        def energy(at, times=times, drawn=drawn):  # between readings the mean of both counts
            return np.interp(at, times, drawn)

        found.append((times, watts, counter, energy))
    return found


@pytest.mark.slow
@settings(max_examples=60)
@given(data=st.data(), problems=st.integers(1, 6), n=st.integers(1, 5), seed=st.integers(0, 999))
def test_samples_and_idle_are_the_integral(data, problems, n, seed):
    rows = simulate(problems=problems, n=n, seed=seed)
    steps, samples = frame("steps", rows["steps"]), frame("samples", rows["samples"])
    # An idle stretch before the first step, one in the middle and one at the end.
    pause = data.draw(st.integers(0, 300)) * 10**6
    middle = steps.height // 2
    later = pl.int_range(pl.len()) >= middle
    steps = steps.with_columns(
        end=pl.col("end") + pl.when(later).then(pause).otherwise(0),
        interval_ns=pl.when(pl.int_range(pl.len()) == middle).then(None).otherwise("interval_ns"),
    )
    window = (START - pause, int(steps["end"][-1]) + pause // 2)
    length = (window[1] - window[0]) / S
    found = data.draw(devices(length))
    power = []
    for index, (times, watts, counter, _) in enumerate(found):
        shifted = times - pause / S
        power += readings(shifted, watts=watts, joules=counter, device=f"GPU-{index}")
    curve = energy_curve(frame("power", power), window)
    assert not isinstance(curve, str), curve
    shares = share_energy(curve, window, steps, samples)
    # Times are whole nanoseconds, which moves a reading by at most that.
    close = {"rel": 1e-6, "abs": 1e-5}
    drawn = sum(energy(length) - energy(0.0) for *_, energy in found)
    assert shares.total == pytest.approx(drawn, **close)
    assert shares.samples.sum() + shares.idle == pytest.approx(shares.total, rel=1e-9)
    assert shares.steps.sum() + shares.idle == pytest.approx(shares.total, rel=1e-9)
    assert (shares.samples >= 0).all()
    assert (shares.steps >= 0).all()
    ends = (steps["end"].to_numpy() - window[0]) / S
    walls = steps.select(pl.coalesce("interval_ns", "wall_ns")).to_series().to_numpy() / S
    place = data.draw(st.integers(0, steps.height - 1))
    begun, ended = ends[place] - walls[place], ends[place]
    one = sum(energy(ended) - energy(begun) for *_, energy in found)
    assert shares.steps[place] == pytest.approx(one, **close)
    highest = sum(watts.max() for _, watts, _, _ in found)
    assert 0 < curve.max_w <= highest * (1 + 1e-9)


def test_a_prefill_behind_a_pause_is_not_idle():
    """A front end sees its end alone: 2 s at 300 W from 3 s on, and 100 W before and behind."""
    steps = frame(
        "steps",
        [
            {"engine": "e", "step": number, "end": START + round(end * S), "interval_ns": took}
            for number, (end, took) in enumerate(((1.0, S // 2), (4.5, None), (5.0, S // 2)))
        ],
    )
    samples = frame(
        "samples",
        [
            {"engine": "e", "prompt_tokens": 9, "cached_tokens": 0, "output_tokens": 2,
             "scheduled": START + begun * S, "end": START + end * S}
            for begun, end in ((0, 1), (3, 5))
        ],
    )  # fmt: skip
    times = np.array([0.0, 3.0, 5.0, 6.0])
    power = readings(times, joules=np.array([0.0, 300.0, 900.0, 1000.0]))
    curve = energy_curve(frame("power", power), (START, START + 6 * S))
    shares = share_energy(curve, (START, START + 6 * S), steps, samples)
    assert shares.steps == pytest.approx([50.0, 450.0, 150.0])
    assert shares.idle == pytest.approx(350.0)


def run_with(tmp_path, power, *, name="e", engine=None, **rows):
    made = {**simulate(problems=6, n=3, seed=5), **rows, "power": power}
    return summarise(write_recording(tmp_path / name, made, engine=engine))


def test_problems_and_idle_are_the_total(tmp_path):
    times = np.linspace(-1, 3, 100)
    power = readings(times, watts=200 + 50 * np.sin(times), kind="rapl")
    (run,) = run_with(tmp_path, power)
    energy, rows = run.energy_j, run.rows
    total = energy.total.value
    assert rows["energy_j"].sum() == pytest.approx(total)
    assert run.sample_rows["energy_j"].sum() + energy.idle.value == pytest.approx(total)
    assert energy.per_problem.value == pytest.approx(rows["energy_j"].mean())
    assert energy.per_problem.low < energy.per_problem.value < energy.per_problem.high
    tokens = run.sample_rows["output_tokens"].sum()
    assert energy.per_token.value == pytest.approx(total / tokens)
    assert energy.per_correct.value == pytest.approx(total / rows["correct"].sum())
    assert energy.idle_share.value == pytest.approx(energy.idle.value / total)
    assert 150 < energy.mean_w.value < energy.max_w.value < 251
    assert (energy.kind, energy.method, energy.reason) == ("rapl", "power", None)


def test_an_engine_without_steps_has_a_total_only(tmp_path):
    (run,) = run_with(tmp_path, readings([-1, 3], joules=[0, 400]), steps=[])
    assert run.energy_j.total.value > 0
    assert run.energy_j.idle is None
    assert run.energy_j.per_problem.low is None
    assert run.rows["energy_j"].null_count() == 6


def test_dropped_steps_leave_no_shares(tmp_path):
    rows = {**simulate(problems=4, n=2), "power": readings([-1, 3], joules=[0, 400])}
    recording = write_recording(tmp_path / "d", rows)
    recording.manifest.dropped["steps"] = 3
    (run,) = summarise(recording)
    assert run.energy_j.total is not None
    assert run.energy_j.idle is run.device_s_per_problem is None
    assert "rows of steps lost while recording: 3" in run.notes[0]


def test_a_slowed_problem_has_no_energy(tmp_path):
    rows = simulate(problems=4, n=2)
    rows["steps"][1]["profiled"] = True
    rows["power"] = readings([-1, 3], joules=[0, 400])
    (run,) = summarise(write_recording(tmp_path / "p", rows))
    slowed = run.rows["slowed"]
    assert slowed.any()
    assert (run.rows["energy_j"].is_null() == slowed).all()
    assert run.energy_j.per_problem.low is not None  # the total is the total


def test_two_runs_in_one_recording_are_not_told_apart(tmp_path):
    rows = simulate(problems=2, n=2)
    rows["power"] = readings([-1, 3], joules=[0, 400])
    other = Policy(method="majority", n=3, temperature=0.8)
    again = [{**row, "policy": other.key(), "problem_id": "q"} for row in rows["problems"][:1]]
    recording = write_recording(tmp_path / "two", {**rows, "problems": rows["problems"] + again})
    recording.manifest.policies[other.key()] = other
    found = summarise(recording)
    assert len(found) == 2
    assert all("several runs" in run.energy_j.reason for run in found)


SMOOTH = np.arange(-3, 13, 0.05)
WINDOW = (START, START + 10 * S)


@pytest.mark.parametrize(
    ("power", "reason"),
    [
        ([], "no power was recorded"),
        (readings(SMOOTH[SMOOTH < 7], watts=SMOOTH[SMOOTH < 7] * 0 + 100), "end 3.0 s before"),
        (readings(SMOOTH[SMOOTH > 2], joules=SMOOTH[SMOOTH > 2] + 9), "begin 2.0 s after"),
        (readings([-1, 3, 6, 12], watts=[9, 9, 9, 9]), "was not read for 6.0 s"),
        (readings([-1, 4, 5, 12], joules=[50, 80, 1, 9]), "fell back"),
        (readings([-1, 4, 5, 12], joules=[50, 50, 50, 50]), "did not move"),
        (readings([-1, 4, 5, 12]), "neither energy nor power"),
        (readings([4], joules=[50]), "neither energy nor power"),
        (readings(SMOOTH, watts=SMOOTH * 0), "did not move"),
        (readings(SMOOTH, watts=SMOOTH * 0 + 9) + readings([-1, 2], joules=[1, 2], device="B"),
         "B: its readings end 8.0 s before"),
    ],
)  # fmt: skip
def test_what_is_not_known_says_why(power, reason):
    found = energy_curve(frame("power", power), WINDOW)
    assert isinstance(found, str)
    assert reason in found


def test_a_window_without_length_has_no_energy():
    assert "no duration" in energy_curve(frame("power", []), (START, START))


@pytest.mark.slow
def test_gpus_that_were_not_read_are_missed(tmp_path):
    power = readings([-1, 3], joules=[0, 400])
    (run,) = run_with(tmp_path, power, engine=engine_config(tensor_parallel_size=2))
    assert run.energy_j.total is None
    assert run.energy_j.reason == "1 devices were read, the engine has 2"
    lost = [{"time": START, "kind": "drop", "detail": "power: GPU-1: NVML: GPU is lost"}]
    engine = engine_config(tensor_parallel_size=2)
    (run,) = run_with(tmp_path, power, name="lost", engine=engine, events=lost)
    assert "GPU-1: NVML: GPU is lost" in run.energy_j.reason
    (run,) = run_with(tmp_path, [], name="none", events=lost)
    assert run.energy_j.reason == "GPU-1: NVML: GPU is lost"


def test_gpus_and_packages_are_not_added(tmp_path):
    gpu = readings([-1, 3], joules=[0, 400])
    package = readings([-1, 3], joules=[0, 9000], device="package-0", kind="rapl")
    (run,) = run_with(tmp_path, gpu + package)
    (alone,) = run_with(tmp_path, gpu, name="alone")
    assert run.energy_j.total == alone.energy_j.total
    assert run.energy_j.kind == "nvml"


def test_a_counter_is_right_over_a_pause_in_which_power_is_not():
    times = np.concatenate((SMOOTH[SMOOTH < 1], SMOOTH[SMOOTH > 8]))
    joules = 100 * times + np.where(times > 1, 500.0, 0.0) + 1000
    curve = energy_curve(
        frame("power", readings(times, watts=times * 0 + 1, joules=joules)), WINDOW
    )
    assert curve.method == "counter"
    assert curve.joules[-1] - curve.joules[0] == pytest.approx(1500)


def test_a_stuck_counter_gives_way_to_the_power():
    power = readings(SMOOTH, watts=SMOOTH * 0 + 70, joules=SMOOTH * 0 + 5)
    curve = energy_curve(frame("power", power), WINDOW)
    assert curve.method == "power"
    assert curve.joules[-1] - curve.joules[0] == pytest.approx(700)


def test_a_counter_read_more_often_than_it_moves_gives_a_line_not_stairs():
    joules = np.floor(SMOOTH / 0.1 + 1e-9) * 30  # 300 W, updated every 100 ms
    curve = energy_curve(frame("power", readings(SMOOTH, joules=joules + 1000)), WINDOW)
    starts = np.arange(0.0, 9.9, 0.02)
    assert curve.between(starts, starts + 0.02) == pytest.approx(6.0)
    assert curve.max_w == pytest.approx(300)
    assert curve.joules[-1] - curve.joules[0] == pytest.approx(3000)


def test_readings_that_just_miss_the_ends_are_extended():
    inside = SMOOTH[(SMOOTH > 0.5) & (SMOOTH < 9.5)]
    for kind in ({"watts": inside * 0 + 50}, {"joules": inside * 50}):
        curve = energy_curve(frame("power", readings(inside, **kind)), WINDOW)
        assert curve.joules[-1] - curve.joules[0] == pytest.approx(500)


def test_nonsense_readings_are_left_out():
    watts = SMOOTH * 0 + 50
    watts[[40, 80]] = [np.nan, -3.0]
    curve = energy_curve(frame("power", readings(SMOOTH, watts=watts)), WINDOW)
    assert curve.joules[-1] - curve.joules[0] == pytest.approx(500)
    twice = readings(SMOOTH, watts=SMOOTH * 0 + 50)
    assert energy_curve(frame("power", twice + twice), WINDOW).joules[-1] == pytest.approx(
        energy_curve(frame("power", twice), WINDOW).joules[-1]
    )


def test_joules_of_others_traffic_without_steps_are_nobodys(tmp_path):
    """How much of the traffic was traced is not known then. The devices drew what they drew."""
    watched = Recording.open(Path(__file__).parents[3] / "scripts" / "watched")
    since, until = run_window(watched.problems, watched.samples)
    power = frame(
        "power", readings(np.linspace(-1, (until - since) / S + 1, 600), watts=[250] * 600)
    )
    power = power.with_columns(pl.col("time") - START + since)
    for name, left in (("with", ()), ("without", ("steps",))):
        with written_into(tmp_path / name) as tables:
            for table in TABLES:
                if table not in left:
                    tables.copy(table, watched.paths(table))
            tables.add("power", power)
            watched.manifest.write(tmp_path / name)
    energies = [
        summarise(Recording.open(tmp_path / name))[0].energy_j for name in ("with", "without")
    ]
    for energy in energies:
        assert energy.total.value == pytest.approx(250 * (until - since) / S)
    told, untold = energies
    assert 0.9 < told.per_problem.value * len(watched.problems) / told.total.value <= 1
    assert (untold.per_problem, untold.per_token) == (None, None)
