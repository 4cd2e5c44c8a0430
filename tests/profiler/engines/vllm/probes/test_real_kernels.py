"""Profiler windows on real vLLM: one process, and two tensor-parallel ranks."""

import json
import os

import polars as pl
import pytest

from tests.profiler.command import warm_ttscope
from traces.recording.reader import Recording

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_a_run_too_short_for_a_window_says_so(tmp_path):
    run, recording = record(
        tmp_path / "r", *("--model", "demo/s", "--problems", "4", "--n", "2", "--kernels", "2/4")
    )
    assert recording.frame("kernels").height == 0 and run["time_by_family"] is None
    assert not recording.steps["profiled"].any()
    assert recording.manifest.kernel_windows_cost is None
    (note,) = recording.frame("events").filter(kind="note")["detail"]
    assert note.startswith("no kernel window was opened: one may cost")


def record(folder, *arguments, **options):
    given = ("record", *arguments, "--dtype", "float32", "--json", "-o", folder)
    done = warm_ttscope(*given, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = json.loads(done.stdout)["runs"]
    return run, Recording.open(folder)


def test_windows_tell_what_a_step_spends_its_time_on(tmp_path):
    run, recording = record(
        tmp_path / "r", *("--model", "demo/s", "--problems", "150", "--n", "8", "--kernels", "3/40")
    )
    steps, kernels = recording.frame("steps"), recording.frame("kernels")
    profiled = steps.filter("profiled")
    assert 4 <= profiled.height < steps.height / 2
    # The step after a window has none, and what runs between two steps (sampling) no step.
    assert set(kernels["step"].drop_nulls()) < set(profiled["step"])
    own = kernels.group_by("step").agg(pl.sum("self_time")).join(profiled, on="step")
    assert (own["self_time"] < own["wall_ns"]).all()
    assert (own["self_time"] > 0.1 * own["wall_ns"]).mean() > 0.8  # all but for stalls
    shares = {family["family"]: family["share"] for family in run["time_by_family"]}
    assert {"gemm", "attention", "norm", "activation", "kv-cache"} <= shares.keys()
    assert shares.get("other", 0.0) < 0.03
    assert len(run["top_kernels"]) == 5
    assert run["device_time"]["busy_s"] > 0
    assert 0 < recording.manifest.kernel_windows_cost < 0.3  # 0.03 but for stalls of the machine
    windows = recording.frame("events").filter(kind="window")
    details = [json.loads(text) for text in windows["detail"]]
    assert all(detail["skipped"] == {} for detail in details)
    # The run may end within its last window.
    assert all(detail["steps"] == 3 for detail in details[:-1]) and details[-1]["steps"] <= 3


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="tensor parallel 2 needs two cores")
def test_tensor_parallel_ranks_show_their_collectives(tmp_path):
    """Of a run that is too short for windows at their usual share of it."""
    run, recording = record(
        tmp_path / "r",
        *("--model", "demo/l", "--problems", "40", "--n", "2", "--kernels", "2/20"),
        *("--tensor-parallel-size", "2"),
        module="tests.profiler.engines.vllm.probes.dear_windows",
    )
    kernels = recording.frame("kernels")
    assert sorted(set(kernels["rank"])) == [0, 1]
    by_name = {each["name"]: each for each in run["collectives"]}
    assert by_name["all_reduce"]["group_size"] == 2
    # Two per layer and one for the embedding, in every profiled step of each rank.
    steps = kernels["step"].drop_nulls().n_unique()
    assert by_name["all_reduce"]["calls"] == pytest.approx(steps * (2 * 4 + 1))
    assert by_name["all_reduce"]["bytes"] > 0
    assert run["config"]["engine"]["tensor_parallel_size"] == 2
