"""A stream of problems at a rate has the load of a server that has been running for long."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from advisor.evidence.features import FEATURES
from advisor.evidence.runs import RecordedProblem, Sample
from advisor.forecast.stream import RepeatedProblems, Stream
from advisor.replay.draws import MOST
from advisor.replay.limits import Limits
from advisor.replay.replay import replay
from advisor.replay.workload import ReplayWorkload
from advisor.step_time.cost import linear_cost

STEP_S = 0.01
COST = linear_cost(np.array([{"step": STEP_S}.get(name, 0.0) for name in FEATURES]))
ONE_AT_A_TIME = Limits(max_num_seqs=1, max_num_batched_tokens=8192, block_size=16, num_blocks=None)
RUN = partial(replay, cost=COST, limits=ONE_AT_A_TIME)


def problem(tokens, prompt=100, blocks=()):
    sample = Sample(output_tokens=tokens, answer="1", correct=True)
    return RecordedProblem(
        prompt_tokens=prompt, cached_tokens=0, samples=(sample,), prompt_blocks=blocks
    )


def stream_at(load, served_s, seed=0, *, in_order=False):
    capacity = 1 / served_s
    return Stream(rate_per_s=load * capacity, capacity_per_s=capacity, seed=seed, in_order=in_order)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_one_place_of_equal_answers_waits_as_the_queue_of_one_server_does(load):
    """M/D/1: a mean wait of load / (2 (1 - load)) services (Pollaczek and Khinchine)."""
    problems = RepeatedProblems([[problem(20)] * 60])
    served_s = 20 * STEP_S
    means = [
        run.latency_s.mean()
        for seed in range(30)
        for run in stream_at(load, served_s, seed).runs(problems, RUN)
    ]
    expected = served_s * (1 + load / (2 * (1 - load)))
    assert np.mean(means) == pytest.approx(expected, rel=0.06)  # the rate is exact


def test_each_pass_is_a_run_of_the_problems_in_their_order():
    lengths = np.arange(10, 60)
    problems = RepeatedProblems([[problem(int(tokens)) for tokens in lengths]])
    for fresh, number in ((False, MOST), (True, 2 * MOST)):
        runs = stream_at(0.5, lengths.mean() * STEP_S).runs(problems, RUN, fresh=fresh)
        assert len(runs) == number
        for run in runs:
            assert run.generated_tokens.tolist() == lengths.tolist()
            assert (run.latency_s >= lengths * STEP_S - 1e-9).all()
            assert run.busy_s == pytest.approx(run.busy_share_s.sum())
            assert run.busy_s == pytest.approx(lengths.sum() * STEP_S)
            assert run.makespan_s == pytest.approx((run.arrival_s + run.latency_s).max())


def test_passes_come_at_the_rate_and_fresh_ones_otherwise():
    problems, stream = RepeatedProblems([[problem(10)] * 40]), stream_at(0.4, 0.1)
    runs, again = (stream.runs(problems, RUN, fresh=fresh) for fresh in (False, True))
    spans = [
        max(run.arrival_s.max() for run in each) - each[0].arrival_s.min() for each in (runs, again)
    ]
    assert spans[0] == pytest.approx(len(runs) * 40 / stream.rate_per_s, rel=0.01)
    assert spans[1] == pytest.approx(len(again) * 40 / stream.rate_per_s, rel=0.01)
    assert not np.allclose(np.diff(runs[0].arrival_s), np.diff(again[0].arrival_s))
    same = stream.runs(problems, RUN)
    assert [run.latency_s.tolist() for run in same] == [run.latency_s.tolist() for run in runs]


def test_a_long_stay_meets_those_who_came_long_before():
    """A problem that lasts for many passes is there in each of them."""
    long, short = problem(4000), problem(10)
    problems = RepeatedProblems([[long, *[short] * 9]])
    limits = Limits(max_num_seqs=64, max_num_batched_tokens=8192, block_size=16, num_blocks=None)
    batches = []

    def run(workload):
        replayed = replay(workload, COST, limits)
        batches.append(len(workload.first) - 1)
        return replayed

    stream = Stream(rate_per_s=2.0, capacity_per_s=100.0, seed=0)
    (first, *_) = stream.runs(problems, run)
    assert batches[-1] > batches[0]  # more came before and after than half a pass
    assert first.latency_s[0] == pytest.approx(40.0, rel=0.01)


@pytest.mark.parametrize("speed", [1.0, 1.5])
def test_where_waits_grow_each_speed_has_as_many_passes(speed):
    problems, stream = RepeatedProblems([[problem(20)] * 50]), stream_at(0.7, 20 * STEP_S)
    slow = replay_at(speed)
    assert len(stream.runs(problems, slow, speed=speed)) == len(stream.runs(problems, RUN))
    full = stream_at(0.95, 20 * STEP_S)
    assert len(full.runs(problems, slow, speed=speed)) == 2
    assert full.keeps_up
    assert not stream_at(1.3, 20 * STEP_S).keeps_up


def replay_at(speed):
    seconds = np.array([{"step": speed * STEP_S}.get(name, 0.0) for name in FEATURES])
    return partial(replay, cost=linear_cost(seconds), limits=ONE_AT_A_TIME)


def test_traffic_keeps_its_order_and_a_prompt_that_comes_again_is_another():
    """A turn begins with the turn before, and shares no more than the first block with itself."""
    turns = [problem(5, prompt=64, blocks=(0, 1)), problem(5, prompt=96, blocks=(0, 1, 2))]
    problems = RepeatedProblems([turns], prompt_block_tokens=32)
    limits = Limits(
        max_num_seqs=4, max_num_batched_tokens=8192, block_size=16, num_blocks=None,
        prefix_caching=True,
    )  # fmt: skip
    stream = Stream(rate_per_s=0.5, capacity_per_s=100.0, seed=3, in_order=True)
    for run in stream.runs(problems, partial(replay, cost=COST, limits=limits)):
        assert run.cached_tokens.tolist()[1] >= 48
        assert run.cached_tokens.tolist()[0] <= 64
        assert run.arrival_s[0] < run.arrival_s[1]


@pytest.mark.parametrize("seed", range(6))
def test_problems_that_come_again_are_replayed_as_if_they_were_written_out(seed):
    """Blocks that several problems begin with stay the same ones, all others are new each time."""
    rng = np.random.default_rng(seed)
    draws = [[], []]
    for place in range(6):
        common = tuple(range(int(rng.integers(0, 4))))
        blocks = (*common, *(100 * place + each for each in range(10, 12 + place % 3)))
        prompt = 16 * len(blocks) - int(rng.integers(0, 3))
        for draw in draws:
            draw.append(problem(int(rng.integers(2, 40)), prompt, blocks))
    problems = RepeatedProblems(draws, prompt_block_tokens=16)
    turns, places = rng.integers(0, 4, 40), rng.integers(0, 6, 40)
    seen = dict.fromkeys(range(6), 0)
    written = []
    for turn, place in zip(turns.tolist(), places.tolist(), strict=True):
        written.append(problems.again(draws[turn % 2][place], seen[place]))
        seen[place] += 1
    limits = Limits(
        max_num_seqs=4, max_num_batched_tokens=64, block_size=16, num_blocks=40,
        prefix_caching=True,
    )  # fmt: skip
    one, other = (
        replay(workload, COST, limits, concurrency=5)
        for workload in (
            problems.at(turns, places),
            ReplayWorkload.from_loads(written, prompt_block_tokens=16),
        )
    )
    assert one.cached_tokens.tolist() == other.cached_tokens.tolist()
    np.testing.assert_allclose(one.latency_s, other.latency_s)
    assert one.cached_tokens.any()
