"""What the profiler's windows cost is taken out of a run's times, where steps alike tell it."""

import json

import numpy as np
import polars as pl
import pytest

from tests.traces.synthetic import START, engine_config, simulate, write_recording
from traces.recording.window_cost import window_cost
from traces.summary.problems import engine_steps
from traces.summary.run import summarise

STALL = 80_000_000  # ns: as long as some seventy steps
NUMBERS = ("latency_s", "ttft_s", "tpot_s")


@pytest.fixture(scope="module")
def rows():
    return simulate(problems=60, n=4, seed=1)


def stalled(rows, *windows, cost=STALL):
    """The same run in which the first step of each window of two took so much longer."""
    ends = np.array([row["end"] for row in rows["steps"]])
    begun = {place: ends[place - 1] for place in windows}  # the stall begins where a step ended

    def later(time):
        return time + sum(cost for at in begun.values() if time > at)

    times = ("arrival", "start", "queued", "scheduled", "first_token", "think_end", "end")
    times += ("decided_at",)
    made = {
        table: [
            {name: later(item) if name in times and item else item for name, item in row.items()}
            for row in rows[table]
        ]
        for table in ("problems", "samples", "steps")
    }
    for place in windows:
        made["steps"][place]["interval_ns"] += cost
        for each in (place, place + 1):
            made["steps"][each]["profiled"] = True
    return made


def summary(tmp_path, name, rows, **more):
    (run,) = summarise(write_recording(tmp_path / name, rows, **more))
    return run


def numbers(run):
    found = {
        f"{name}.{each}": getattr(run, name)[each] for name in NUMBERS for each in ("mean", "p95")
    }
    found["throughput"] = run.throughput_tokens_per_s
    found["device_s"] = run.device_s_per_problem
    return {name: each.value for name, each in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("every", [40, 9])  # some problems meet a window, or all of them do
def test_times_are_those_of_a_run_without_windows(rows, tmp_path, every):
    places = range(20, len(rows["steps"]) - 2, every)
    plain = summary(tmp_path, "plain", rows)
    run = summary(tmp_path, "windows", stalled(rows, *places))
    assert run.rows["slowed"].sum() > (0 if every == 40 else 55)
    for name, value in numbers(plain).items():
        assert numbers(run)[name] == pytest.approx(value, rel=0.02), name
    (note,) = run.notes
    assert "is taken out of its times" in note
    taken = STALL / 1e9 * len(places)
    assert float(note.split("cost, ")[1].split(" s")[0]) == pytest.approx(taken, rel=0.02)


@pytest.mark.slow
def test_the_error_of_what_is_taken_out_is_in_the_intervals(rows, tmp_path):
    """Steps that scatter say less of what a profiled one would have taken."""
    rng = np.random.default_rng(2)
    made = stalled(rows, *range(20, 400, 9))
    plain = summary(tmp_path, "plain", made).latency_s["mean"]
    for row in made["steps"]:
        if not row.get("profiled") and row["interval_ns"]:
            row["interval_ns"] += int(rng.exponential(40_000_000))
    run = summary(tmp_path, "scattered", made)
    found = run.latency_s["mean"]
    assert found.high - found.low > 1.5 * (plain.high - plain.low)


def test_what_no_step_alike_tells_is_left_out_where_it_was(rows, tmp_path):
    made = stalled(rows, 200)
    for each in (200, 201):
        made["steps"][each]["decode_requests"] = 77
    run = summary(tmp_path, "r", made)
    slowed = run.rows["slowed"].to_numpy()
    assert 0 < slowed.sum() < 10
    assert (run.rows["latency_s"].is_null().to_numpy() == slowed).all()
    assert run.notes == (f"problems slowed by the profiler, their times left out: {slowed.sum()}",)
    assert run.latency_s["mean"].value < STALL / 1e9
    assert run.throughput_tokens_per_s.extrapolated
    assert not run.latency_s["mean"].extrapolated


@pytest.mark.slow
def test_where_nothing_is_left_times_are_as_measured_and_marked(rows, tmp_path):
    """Not `-`, and not without a word."""
    made = stalled(rows, *range(3, len(rows["steps"]) - 2, 3))
    for row in made["steps"]:
        if row.get("profiled"):
            row["decode_requests"] = 77
    run = summary(tmp_path, "r", made)
    for name in NUMBERS:
        assert run.__getattribute__(name)["mean"].extrapolated
    assert run.device_s_per_problem.extrapolated and run.throughput_tokens_per_s.extrapolated
    problems = made["problems"]
    took = np.mean([row["decided_at"] - row["arrival"] for row in problems]) / 1e9
    assert run.latency_s["mean"].value == pytest.approx(took)
    assert run.notes[0].startswith("kernel windows touched every problem")


def test_windows_without_steps_are_told(rows, tmp_path):
    recording = write_recording(tmp_path / "r", {**rows, "steps": []})
    event = {"kind": "window", "engine": engine_config().key(), "detail": json.dumps({"window": 0})}
    made = write_recording(tmp_path / "w", {**rows, "steps": [], "events": [event]})
    assert summarise(recording)[0].notes == ()
    (run,) = summarise(made)
    assert run.notes[0].startswith("kernel windows were open, and without steps")
    assert run.latency_s["mean"] is not None


def test_a_cost_between_two_moments_is_a_part_of_the_whole(rows, tmp_path):
    made = stalled(rows, 100)
    recording = write_recording(tmp_path / "r", made)
    (engine,) = recording.manifest.engines
    cost = window_cost(engine_steps(recording, engine))
    end = made["steps"][100]["end"]
    whole = made["steps"][100]["interval_ns"]
    since = np.array([START, end - whole, end - whole // 2, end + 10**9])
    until = np.array([end - whole, end, end + 10**12, end + 10**12])
    found = cost.within_s(since, until)
    assert found == pytest.approx([0, 0.08, 0.04, 0], abs=1e-3)
    assert list(cost.touched(since, until)) == [False, True, True, False]


def test_nothing_is_done_where_nothing_was_profiled(rows, tmp_path):
    recording = write_recording(tmp_path / "r", rows)
    (engine,) = recording.manifest.engines
    cost = window_cost(engine_steps(recording, engine))
    assert cost.places.size == 0
    times = np.array([START, START + 10])
    assert list(cost.within_s(times, times + 5)) == [0, 0]
    assert not cost.touched(times, times + 5).any()
    everything = pl.lit(True).alias("profiled")
    none_alike = window_cost(engine_steps(recording, engine).with_columns(everything))
    assert not none_alike.known.any()


@pytest.mark.slow
def test_the_errors_of_a_window_have_steps_alike_in_common():
    """All steps of a window are held against the same 40: their mean's error adds up."""
    rng = np.random.default_rng(0)
    size, width, begins = 1_000, 100, (450, 700)
    errors, told = [], []
    for _ in range(120):
        walls = rng.normal(1e9, 0.1e9, size).astype(np.int64)
        profiled = np.zeros(size, dtype=bool)
        for begin in begins:
            profiled[begin : begin + width] = True
        ends = START + np.cumsum(walls)
        steps = pl.DataFrame(
            {"end": ends, "interval_ns": walls, "wall_ns": walls, "profiled": profiled}
        ).with_columns(prefill_tokens=0, decode_requests=4)
        cost = window_cost(steps)
        middle = (ends[500], ends[749])  # half of each
        since, until = np.array([START, middle[0]]), np.array([ends[-1], middle[1]])
        errors.append(cost.within_s(since, until))
        told.append(cost.sd_within_s(since, until))
    assert np.mean(told, axis=0) == pytest.approx(np.std(errors, axis=0), rel=0.2)
