"""Several traces to one recording: ranks, steps, windows, and what is refused."""

import json

import polars as pl
import pytest

from benchmarks.made.kineto_files import (
    BASE_NS,
    cpu_events,
    device_events,
    document,
    event,
    kernel,
    write,
)
from traces.errors import TraceError, UsageError
from traces.foreign.profiler_traces import import_traces
from traces.recording.reader import Recording
from traces.summary.kernels import WindowSteps, device_time
from traces.summary.run import summarise


def rank_file(folder, rank, world=2, events=None):
    info = {} if rank is None else {"rank": rank, "world_size": world}
    data = document(device_events() if events is None else events, distributedInfo=info)
    return write(folder / f"rank{rank}.json.gz", data)


def test_ranks_make_one_recording(tmp_path):
    paths = [rank_file(tmp_path, 1), rank_file(tmp_path, 0)]
    traces = import_traces(paths, tmp_path / "r").files
    assert [trace.rank for trace in traces] == [0, 1]
    recording = Recording.open(tmp_path / "r")
    assert recording.complete
    files = recording.manifest.provenance["imported"]["files"]
    assert [(file["name"], file["rank"]) for file in files] == [
        ("rank0.json.gz", 0),
        ("rank1.json.gz", 1),
    ]
    kernels = recording.frame("kernels")
    assert dict(kernels.group_by("rank").agg(pl.sum("count")).iter_rows()) == {0: 7, 1: 7}
    steps = recording.steps
    assert steps["profiled"].to_list() == [True, True]
    assert steps["end"].to_list() == [BASE_NS + 230_000, BASE_NS + 275_000]
    assert steps["wall_ns"].to_list() == [130_000, 75_000]
    assert steps["prefill_tokens"].to_list() == [20, 0]
    assert steps["decode_requests"].to_list() == [0, 4]
    (run,) = summarise(recording)
    assert run.policy is None
    assert sum(family.s for family in run.time_by_family) == pytest.approx(125e-6)
    (reduce,) = run.collectives
    assert (reduce.calls, reduce.bytes, reduce.exposed_s) == (1, 2000, pytest.approx(15e-6))
    told = device_time(recording.frame("events"), run.engine.key(), kernels=kernels)
    assert run.device_time == told
    assert told.held == (WindowSteps(window=0, first=0, last=1),)
    assert run.device_time.busy_s == pytest.approx(2 * 120e-6)
    assert run.device_time.idle_s == pytest.approx(2 * 60e-6)


def test_files_without_a_rank_take_the_free_ones(tmp_path):
    paths = [rank_file(tmp_path, None), rank_file(tmp_path, 0)]
    assert [t.path.name for t in import_traces(paths, tmp_path / "r").files] == [
        "rank0.json.gz",
        "rankNone.json.gz",
    ]


def test_traces_that_do_not_belong_together(tmp_path):
    a = rank_file(tmp_path, 0)
    with pytest.raises(UsageError, match="both say rank 0"):
        import_traces([a, a], tmp_path / "r")
    b = rank_file(tmp_path, 1, world=4)
    with pytest.raises(UsageError, match="different jobs"):
        import_traces([a, b], tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_ranks_with_different_steps_are_told(tmp_path):
    events = [e for e in device_events() if "generation_4" not in e["name"]]
    found = import_traces(
        [rank_file(tmp_path, 0), rank_file(tmp_path, 1, events=events)], tmp_path / "r"
    )
    assert any("different numbers of steps (rank 0 2, rank 1 1)" in line for line in found.notes)
    assert Recording.open(tmp_path / "r").steps.height == 2
    (run,) = summarise(Recording.open(tmp_path / "r"))
    assert any("different numbers of steps" in note for note in run.notes)


def test_what_was_skipped_stays_in_the_recording(tmp_path):
    bad = {**kernel("gemm", 1, 2, 1), "dur": None}
    import_traces([rank_file(tmp_path, 0, events=[*device_events(), bad])], tmp_path / "r")
    recording = Recording.open(tmp_path / "r")
    (run,) = summarise(recording)
    assert "rank0.json.gz: skipped: 1 events without dur" in run.notes
    (window,) = recording.frame("events").filter(kind="window")["detail"]
    assert json.loads(window)["skipped"] == {"events without dur": 1}


def test_a_trace_without_dates(tmp_path):
    data = document(cpu_events(), baseTimeNanoseconds=None)
    import_traces([write(tmp_path / "t.json", data)], tmp_path / "r")
    recording = Recording.open(tmp_path / "r")
    assert recording.steps["end"].to_list() == [None]
    assert recording.steps["wall_ns"].to_list() == [100_000]
    (run,) = summarise(recording)
    assert run.device_time.busy_s == pytest.approx(65.5e-6)


def test_one_bad_file_leaves_no_recording(tmp_path):
    with pytest.raises(TraceError, match="the file is empty"):
        import_traces([rank_file(tmp_path, 0), write(tmp_path / "e.json", b"")], tmp_path / "r")
    assert not (tmp_path / "r").exists()
    marks = [event("ProfilerStep#1", "user_annotation", 0, 5)]
    with pytest.raises(TraceError, match="no kernel and no operator"):
        import_traces([rank_file(tmp_path, 0, events=marks)], tmp_path / "r")
