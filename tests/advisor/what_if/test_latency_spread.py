"""Spread of latencies beyond that of the total time: measured on the runs there are."""

import dataclasses

import numpy as np
import pytest

from advisor.evidence.gather import gather
from advisor.evidence.runs import read_runs
from advisor.step_time.fit import StepTimeModel
from advisor.what_if.latency_spread import BEYOND, latency_spread
from tests.advisor.asking import predicted
from tests.advisor.synthetic import VOTE16, engine_of, record
from tests.traces.recording.test_window_cost import stalled
from tests.traces.synthetic import engine_config, simulate, write_recording

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Six runs, in each of which every problem has a speed of its own."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        record(folder / f"r{n}", engine_of(max_num_seqs=seqs), VOTE16, concurrency=c, noise=0.3)
        for n, (seqs, c) in enumerate([(8, 1), (16, 4), (32, 8), (8, 4), (16, 1), (32, 16)])
    ]


def spread_of(runs, warp=None):
    evidence = gather(runs)
    model = StepTimeModel().fit(evidence.steps)
    found = evidence.runs
    if warp is not None:
        found = [
            dataclasses.replace(
                run,
                problems={
                    name: dataclasses.replace(each, latency_s=warp(n, each.latency_s))
                    for n, (name, each) in enumerate(run.problems.items())
                },
            )
            for run in found
        ]
    return latency_spread(found, evidence.steps, model)


def test_without_a_model_it_is_what_was_measured_before():
    assert latency_spread([], [], None) == BEYOND


def test_runs_that_agree_make_it_narrower(runs):
    found = spread_of(runs)
    assert set(found) == set(BEYOND)
    for name, value in found.items():
        assert 0 < value < BEYOND[name]


def test_a_run_slower_as_a_whole_is_no_spread_beyond_and_a_bent_one_is(runs):
    usual = spread_of(runs)
    bent = spread_of(runs, lambda n, latency: latency * (1.3 if n % 2 else 1 / 1.3))
    assert bent["p50"] > 2 * usual["p50"]


def test_intervals_of_quantiles_are_wider_than_that_of_the_throughput(runs):
    found = predicted(runs[1], others=runs[:1] + runs[2:]).predicted

    def width(estimate):
        return np.log(estimate.high / estimate.low)

    total = width(found.throughput_tokens_per_s)
    assert width(found.latency_s["p95"]) > total * 1.001
    assert width(found.latency_s["p95"]) < total * 2


def test_what_windows_cost_is_in_no_latency_that_is_learned_from(tmp_path):
    """The step law leaves profiled steps out: latencies that had their cost would not fit it."""
    rows = simulate(problems=60, n=4, seed=1)
    event = {"kind": "window", "engine": engine_config().key(), "detail": "{}"}
    made = stalled(rows, *range(20, len(rows["steps"]) - 2, 9)) | {"events": [event]}
    latencies = []
    for name, each in (("plain", rows), ("windows", made)):
        (run,), *_ = read_runs(write_recording(tmp_path / name, each))
        latencies.append([problem.latency_s for problem in run.problems.values()])
    assert np.mean(latencies[1]) == pytest.approx(np.mean(latencies[0]), rel=0.02)


def test_a_run_that_the_cache_has_no_room_for_is_left_out(runs):
    evidence = gather(runs)
    model = StepTimeModel().fit(evidence.steps)

    def small(each):
        return dataclasses.replace(
            each, engine=dataclasses.replace(each.engine, num_gpu_blocks=1, block_size=1)
        )

    found, steps = map(small, evidence.runs), map(small, evidence.steps)
    assert latency_spread(list(found), list(steps), model) == pytest.approx(BEYOND)


@pytest.mark.filterwarnings("error")
def test_a_run_that_ended_before_it_began_is_left_out(runs):
    assert spread_of(runs, lambda _, latency: -latency) == pytest.approx(BEYOND)
