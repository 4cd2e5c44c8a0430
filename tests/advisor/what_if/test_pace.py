"""A prediction at the pace of a recorded machine is that of a machine as slow as it was."""

import dataclasses
import heapq
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from advisor.advice.advisor import Advisor
from advisor.evidence.features import ZERO
from advisor.evidence.gather import StepTable, gather
from advisor.evidence.runs import RecordedProblem, Sample, requests_at_once
from advisor.replay.limits import Limits
from advisor.replay.replay import replay
from advisor.replay.workload import ReplayWorkload
from advisor.search.budget import parse_budget
from advisor.step_time.cost import linear_cost
from advisor.step_time.fit import StepTimeModel, learned
from advisor.step_time.pace import WINDOW_S, Pace, pace_of_run
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from advisor.what_if.replayed import Replays
from tests.advisor.synthetic import GREEDY, VOTE16, engine_of, record
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.statistics import Z95
from traces.summary.run import summarise
from tui.text.advice import verdict

WATCHED = Path(__file__).parents[3] / "scripts" / "watched"

SLOWER = 1.4
BASE = engine_of(max_num_seqs=16)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("pace") / "before", BASE, VOTE16, problems=30)


def asked(before, after, **limits):
    (run,) = summarise(before)
    engine = dataclasses.replace(run.engine, **limits)
    return predict(before, run, Question(engine=engine, policy=run.policy, pace_of=after))


@pytest.mark.parametrize("limits", [{}, {"max_num_seqs": 4}])
def test_what_is_predicted_at_the_pace_of_a_slower_machine_comes_there(recorded, tmp_path, limits):
    changed = dataclasses.replace(BASE, **limits)
    after = record(tmp_path / "before", changed, VOTE16, problems=30, drift=np.log(SLOWER))
    found, (took,) = asked(recorded, after, **limits), summarise(after)
    for name in ("mean", "p50", "p95"):
        predicted, came = found.predicted.latency_s[name], took.latency_s[name]
        assert predicted.value == pytest.approx(came.value, rel=0.02), name
        assert predicted.low <= came.value <= predicted.high
    (kind, *_) = (name for name, each in took.step_time.items() if each is not None)
    of_kind = (run.step_time[kind].value for run in (found.predicted, took))
    assert next(of_kind) == pytest.approx(next(of_kind), rel=0.02)
    assert (
        found.predicted.accuracy.value == asked(recorded, None, **limits).predicted.accuracy.value
    )
    assert any("1.40 times as long" in note for note in found.notes)


def test_the_run_as_it_was_keeps_its_own_pace(recorded, tmp_path):
    after = record(tmp_path / "before", BASE, VOTE16, problems=30, drift=np.log(SLOWER))
    paced, plain = asked(recorded, after), asked(recorded, None)
    assert paced.replayed.latency_s["mean"] == plain.replayed.latency_s["mean"]
    assert paced.predicted.latency_s["mean"].value == pytest.approx(
        SLOWER * plain.predicted.latency_s["mean"].value, rel=0.01
    )


def test_a_recording_of_another_engine_has_no_pace_of_this_one(recorded, tmp_path):
    other = record(tmp_path / "other", engine_of("large", max_num_seqs=16), GREEDY, problems=20)
    with pytest.raises(UsageError, match="has no step of small as it is asked about"):
        asked(recorded, other)


LAW = np.array(ZERO._replace(step=2e-3, requests=1e-4, prefill_requests=1e-3))
LIMITS = Limits(max_num_seqs=4, max_num_batched_tokens=256, block_size=16, prefix_caching=False)


def loads_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        RecordedProblem(
            prompt_tokens=int(rng.integers(5, 60)),
            cached_tokens=0,
            samples=[Sample(output_tokens=int(rng.integers(5, 90)), answer=None, correct=None)],
            front_end_s=0.004,
        )
        for _ in range(count)
    ]


def uneven(seed=0):
    """A pace that goes from 0.5 to 3, and its steps: ends, what they took, and by the law."""
    rng = np.random.default_rng(seed)
    law = np.full(6000, 0.004)
    paces = np.repeat(rng.uniform(0.5, 3.0, 60), 100)
    took = law * paces
    return np.cumsum(took), took, law


def test_the_steps_that_told_a_pace_take_as_long_at_it():
    ends, took, law = uneven()
    pace = Pace.of(ends, took, law)
    machine = np.cumsum(law)
    assert pace.mean == pytest.approx(took.sum() / law.sum())
    assert np.abs(pace.by_clock(machine) - ends).max() < 0.5 * WINDOW_S
    assert pace.by_clock(pace.in_machine_time(ends)) == pytest.approx(ends)
    assert pace.by_clock(np.array([np.nan, machine[-1]]))[0] != 0.0


def test_a_constant_pace_is_a_cost_that_much_higher():
    loads, arrivals = loads_of(40), np.cumsum(np.full(40, 0.03))
    slower = replay(
        ReplayWorkload.from_loads(
            [dataclasses.replace(load, front_end_s=SLOWER * load.front_end_s) for load in loads],
            arrivals,
        ),
        linear_cost(SLOWER * LAW),
        LIMITS,
    )
    paced = replay(
        ReplayWorkload.from_loads(
            [dataclasses.replace(load, front_end_s=SLOWER * load.front_end_s) for load in loads],
            arrivals,
        ),
        linear_cost(LAW),
        LIMITS,
        pace=Pace.constant(SLOWER),
    )
    for name in ("latency_s", "ttft_s", "end_s", "queued_s", "front_end_s", "busy_share_s"):
        assert getattr(paced, name) == pytest.approx(getattr(slower, name), rel=1e-6), name
    assert (paced.makespan_s, paced.busy_s) == pytest.approx((slower.makespan_s, slower.busy_s))


def test_requests_of_a_slow_hour_take_longer_than_those_of_a_fast_one():
    ends = np.arange(1, 5001) * 0.004
    law = np.full(5000, 0.004)
    pace = Pace.of(
        np.cumsum(np.where(ends < 10, 1.0, 3.0) * law), np.where(ends < 10, 1.0, 3.0) * law, law
    )
    arrivals = np.array([1.0, 2.0, 25.0, 30.0])
    loads = [loads_of(1)[0]] * 4
    plain = replay(ReplayWorkload.from_loads(loads, arrivals), linear_cost(LAW), LIMITS)
    paced = replay(ReplayWorkload.from_loads(loads, arrivals), linear_cost(LAW), LIMITS, pace=pace)
    assert paced.arrival_s == pytest.approx(arrivals)
    assert paced.latency_s / plain.latency_s == pytest.approx([1, 1, 3, 3], rel=0.1)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_clients_that_wait_are_a_closed_loop(most):
    """All want to send at once, and only so many may: that is so many problems in flight."""
    loads = [dataclasses.replace(load, front_end_s=0.0) for load in loads_of(50)]
    waiting = replay(
        ReplayWorkload.from_loads(loads, np.zeros(50)), linear_cost(LAW), LIMITS, at_once=most
    )
    closed = replay(ReplayWorkload.from_loads(loads), linear_cost(LAW), LIMITS, concurrency=most)
    assert waiting.latency_s.mean() == pytest.approx(closed.latency_s.mean(), rel=0.02)
    step_s = 0.004
    assert np.sort(waiting.latency_s) == pytest.approx(np.sort(closed.latency_s), abs=step_s)
    assert waiting.makespan_s == pytest.approx(closed.makespan_s, rel=0.02)
    free = replay(ReplayWorkload.from_loads(loads, np.zeros(50)), linear_cost(LAW), LIMITS)
    assert free.latency_s.mean() > 1.5 * waiting.latency_s.mean()


@pytest.mark.parametrize(("closed", "most"), [(True, 12), (False, None)])
def test_clients_that_wait_are_told_from_open_traffic(closed, most):
    """Twelve clients without a pause, or requests at random that come as fast as can be served."""
    loads = [dataclasses.replace(load, front_end_s=0.0) for load in loads_of(300)]
    rng = np.random.default_rng(2)
    arrivals = None if closed else np.cumsum(rng.exponential(0.055, 300))
    ran = replay(
        ReplayWorkload.from_loads(loads, arrivals),
        linear_cost(LAW),
        LIMITS,
        concurrency=12 if closed else None,
    )
    times = (np.concatenate([ran.arrival_s, ran.end_s]) * 1e9).astype(np.int64)
    rows = pl.DataFrame({"arrival": times[:300], "end": times[300:]})
    assert (ran.scheduled_s - ran.queued_s > 0.01).mean() > 0.3  # many wait
    assert requests_at_once(rows, LIMITS.max_num_seqs) == most


@pytest.mark.parametrize("load", [0.2, 0.4, 0.6])
def test_open_traffic_that_waited_now_and_then_is_no_closed_loop(load):
    """Its few that were there at most are all that ever waited: 37 of 120 such were told closed."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        arrivals = np.cumsum(rng.exponential(1 / (8 * load), 400))
        free, ends = [0.0] * 8, []
        for arrival, service in zip(arrivals, rng.exponential(1, 400), strict=True):
            ends.append(max(arrival, heapq.heappop(free)) + service)
            heapq.heappush(free, ends[-1])
        times = (np.concatenate([arrivals, ends]) * 1e9).astype(np.int64)
        rows = pl.DataFrame({"arrival": times[:400], "end": times[400:]})
        assert requests_at_once(rows, 8) is None


def test_the_pace_of_a_second_is_seen():
    """One at 2.0 and one at 0.7, in turn: a busy second may have most of the load."""
    took = np.tile(np.repeat([0.02, 0.007], [50, 143]), 40)
    pace = Pace.of(np.cumsum(took), took, np.full(len(took), 0.01))
    assert pace.ends() == pytest.approx((0.7, 2.0), rel=0.05)


def test_steps_far_apart_take_no_memory_for_the_time_between():
    ends = np.array([0.1, 0.2, 3e9])
    pace = Pace.of(ends, np.full(3, 0.02), np.full(3, 0.01))
    assert len(pace.clock_s) < 10
    assert pace.at(ends) == pytest.approx(np.full(3, 2.0))
    assert pace.by_clock(pace.in_machine_time(ends)) == pytest.approx(ends)


def test_larger_batches_at_slow_hours_do_not_make_the_law_uncertain():
    """The law is right at each moment: only the machine is slower while more requests run."""
    rng = np.random.default_rng(0)
    slow = np.repeat(rng.random(100) < 0.5, 200)
    requests = np.where(slow, rng.integers(4, 17, len(slow)), rng.integers(1, 10, len(slow)))
    rows = np.array([ZERO._replace(step=1.0, requests=each, tokens=each) for each in requests])
    even = rows @ LAW
    took = even * np.where(slow, 2.0, 1.0) * np.exp(rng.normal(0, 0.02, len(even)))
    ends = (np.cumsum(took) * 1e9).astype(np.int64)
    table = StepTable(
        recording="r", configuration="c", engine=engine_of(), facts=None,
        composition=rows, seconds=took, ends=ends,
    )  # fmt: skip
    (law,) = StepTimeModel().fit([table]).laws_.values()
    (same,) = StepTimeModel().fit([dataclasses.replace(table, ends=None)]).laws_.values()
    assert law.sigma == same.sigma
    assert law.sigma_outside < 1.5 * law.sigma < same.sigma_outside


@pytest.fixture(scope="module")
def watch():
    evidence = gather([Recording.open(WATCHED)], judged=False)
    (run,) = evidence.runs
    return evidence, run


@pytest.mark.parametrize("at_once", [None, 5])
def test_clients_that_wait_send_sooner_where_answers_come_sooner(watch, at_once):
    """So all of a run takes so much longer or less, and nothing else changes."""
    evidence, run = watch
    run = dataclasses.replace(run, at_once=at_once)
    model = learned(evidence.steps)
    base = Recording.open(WATCHED)
    question = Question(engine=run.engine.one_replica(), policy=run.policy)
    pace = pace_of_run(run, evidence.steps, model.law(run.engine))
    replays = Replays(base, evidence, model, run, (run,), question, pace=pace, own_pace=pace)
    usual, slow = replays.runs[0].latency_s, replays.slow[0].latency_s
    factor = np.exp(Z95 * replays.times.sigma[int(replays.outside)])
    if at_once is not None:
        assert slow == pytest.approx(factor * usual, rel=1e-6)
    advisor = Advisor.of(dataclasses.replace(evidence, runs=(run,)))
    sent = advisor.sent
    candidate = advisor.space.candidate(0)
    waits = [note for note in advisor.notes(None) if "Their clients wait" in note]
    assert len(waits) == (at_once is not None)
    assert not any("Their clients wait" in note for note in advisor.notes(9.0))  # at random
    on, left = sent.on(candidate, 1.3)
    assert (on.arrivals[-1] / sent.arrivals[-1], left) == pytest.approx(
        (1.0, 1.3) if at_once is None else (1.3, 1.0)
    )


def test_two_errors_are_told_apart(recorded, watch):
    """That of the law at this pace, and that of a machine whose pace differs from run to run."""
    base, (_, run) = Recording.open(WATCHED), watch
    (was,) = summarise(base)
    found = predict(base, was, Question(engine=was.engine, policy=run.policy))
    at, table = found.pace, found.predicted.latency_s["mean"]
    mean = at.latency_s["mean"]
    assert mean.value == table.value
    assert table.low < mean.low < mean.value < mean.high < table.high
    assert at.low < at.mean < at.high
    assert at.run_low < 1 < at.run_high
    assert at.capacity_per_s > 0
    assert found.replayed is not None
    assert asked(recorded, None).pace is None  # a closed loop: nothing came by the clock


@pytest.mark.parametrize(("times", "warned"), [(1.0, False), (4.0, True)])
def test_advice_warns_where_the_replay_of_a_watch_is_far_off(times, warned):
    evidence = gather([Recording.open(WATCHED)], judged=False)
    (run,) = evidence.runs
    slower = {
        name: dataclasses.replace(each, latency_s=times * each.latency_s)
        for name, each in run.problems.items()
    }
    runs = (dataclasses.replace(run, problems=slower),)
    advisor = Advisor.of(dataclasses.replace(evidence, runs=runs))
    assert advisor.sent is not None and advisor.sent.pace is not None
    answer = advisor.recommend(parse_budget({"max_latency": "60s"}))
    assert (answer.warning is not None) == warned
    assert any("as recorded. Do not rely on this" in part for part in verdict(answer)) == warned
