"""Candidates at a rate: a few problems are loaded as many are."""

import dataclasses

import numpy as np
import pytest

from advisor.advice.advisor import Advisor
from advisor.evidence.gather import gather
from advisor.replay.limits import limits_of
from advisor.replay.replay import Replicas, replay
from advisor.search.metrics import CandidateMetrics
from advisor.search.resampling import Resampling
from advisor.search.space import explore
from advisor.step_time.cost import linear_cost
from advisor.step_time.fit import StepTimeModel
from tests.advisor.synthetic import GREEDY, VOTE16, engine_of, record


def copied(evidence, times):
    """The same problems so many times, under other names."""
    runs = [
        dataclasses.replace(
            run,
            problems={
                f"{name}-{copy}": problem
                for copy in range(times)
                for name, problem in run.problems.items()
            },
        )
        for run in evidence.runs
    ]
    return dataclasses.replace(evidence, runs=tuple(runs))


@pytest.mark.slow
def test_a_few_problems_wait_as_long_as_copies_of_them(tmp_path):
    """More are in flight at this rate than there are: they come before and after, too."""
    few = gather([record(tmp_path / "few", engine_of("large"), GREEDY, problems=6)])
    model, latency = StepTimeModel().fit(few.steps), []
    for evidence in (few, copied(few, 50)):
        space = explore(evidence)
        advisor = Advisor(evidence, space, model, Resampling(len(space.problem_ids)))
        (row,) = space.rows_of(engine_of("large"), GREEDY)
        found = advisor.replays.of(int(row), concurrency=None, rate_per_s=80.0)
        assert found.keeps_up
        latency.append(float(np.mean(found.latency_s[0])))
    assert latency[0] == pytest.approx(latency[1], rel=0.08)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_few_problems_come_as_often_as_asked(tmp_path, seed):
    """An engine that never idles is busy for all of the time between two problems."""
    few = gather([record(tmp_path / "few", engine_of("large"), GREEDY, problems=24)])
    space = explore(few)
    model, draws = StepTimeModel().fit(few.steps), Resampling(24, seed=seed)
    advisor = Advisor(few, space, model, draws)
    (row,) = space.rows_of(engine_of("large"), GREEDY)
    rate = 0.6 * advisor.replays.capacity_per_s(int(row))
    found = advisor.replays.of(int(row), concurrency=None, rate_per_s=rate)
    assert rate * np.mean(found.device_s[0]) == pytest.approx(1.0, abs=0.08)


@pytest.mark.slow
def test_a_rule_at_a_rate_takes_the_tokens_of_that_load(tmp_path):
    """Samples that wait for a slot when the rule decides are never run, which saves tokens."""
    engine = engine_of(max_num_seqs=16)
    advisor = Advisor.fit([record(tmp_path / "r", engine, VOTE16)], draws=40)
    rules = [kind.policy for kind in advisor.space.kinds if kind.policy.method == "first_finish"]
    rule = max(rules, key=lambda each: each.n)
    (row,) = advisor.space.rows_of(engine, rule)
    capacity = advisor.replays.capacity_per_s(row)
    found = {}
    for share in (0.01, 1.2):
        at = advisor.replays.of(row, concurrency=4, rate_per_s=share * capacity)
        passes = next(
            runs
            for name, made in advisor.replays._replays.items()
            if name[1] == rule.method and name[3] == rule.rule and name[2] == rule.n
            and name[-1][:3] == ("open", share * capacity, 1.0)
            for *_, runs in made
        )  # fmt: skip
        made = np.mean([run.generated_tokens.sum() for run in passes])
        assert at.tokens.sum() == pytest.approx(made)
        found[share] = at
    alone = advisor.replays.of(row, concurrency=1, rate_per_s=None)
    assert found[0.01].tokens.mean() == pytest.approx(alone.tokens.mean(), rel=0.02)
    assert found[0.01].flops.mean() == pytest.approx(alone.flops.mean(), rel=0.02)
    assert found[1.2].tokens.mean() < 0.99 * alone.tokens.mean()


def test_replicas_are_paid_for_until_the_last_is_done_as_one_engine_is(tmp_path):
    """Fewer problems than may be in flight: their number says nothing of what they take."""
    made = record(tmp_path / "r", engine_of(), GREEDY, problems=6, concurrency=16)
    advisor = Advisor.fit([made], draws=40)
    space = advisor.space
    metrics = CandidateMetrics(space, advisor.resampling, rate_per_s=None)
    for place, count in enumerate((1, 2)):
        row = int(np.flatnonzero(space.replicas == count)[0])
        found = advisor.replays.of(row, concurrency=16, rate_per_s=None)
        metrics.add(row, found)
        (workload,) = advisor.policy_work.workloads(found.candidate.pool, GREEDY)
        run = replay(
            workload,
            linear_cost(found.law.seconds, found.law.reads),
            limits_of(found.candidate.engine),
            concurrency=16,
            replicas=Replicas(count=count, routing="least-outstanding"),
        )
        whole, devices = run.makespan_s, found.candidate.engine.num_devices
        assert metrics.values("device_s")[place] == pytest.approx(devices * whole / 6)
        assert metrics.draws("device_s")[place].mean() == pytest.approx(
            devices * whole / 6, rel=0.1
        )
    assert metrics.devices.tolist() == [1, 2]


def test_equal_latencies_of_other_capacities_are_not_one(tmp_path):
    engine = engine_of()
    advisor = Advisor.fit([record(tmp_path / "r", engine, GREEDY, problems=6)], draws=40)
    (row,) = advisor.space.rows_of(engine, GREEDY)
    metrics = CandidateMetrics(advisor.space, advisor.resampling, rate_per_s=50.0)
    first = advisor.replays.of(row, concurrency=None, rate_per_s=50.0)
    for capacity in (1.0, 2.0):
        metrics.add(row, dataclasses.replace(first, capacity_per_s=capacity))
    assert metrics.values("device_s") == pytest.approx([1.0, 0.5])
    metrics.add(row, dataclasses.replace(first, keeps_up=False))  # its queue grows for ever
    for name in ("latency_s", "latency_p95_s"):
        assert np.isposinf(metrics.values(name)).all()
        assert np.isposinf(metrics.draws(name)[2]).all()
        assert metrics.estimate(name, 2, price=None) is None


def test_a_queue_that_grows_has_no_latency(tmp_path):
    engine = engine_of()
    advisor = Advisor.fit([record(tmp_path / "r", engine, GREEDY, problems=6)], draws=40)
    (row,) = advisor.space.rows_of(engine, GREEDY)
    first = advisor.replays.of(row, concurrency=None, rate_per_s=50.0)
    metrics = CandidateMetrics(advisor.space, advisor.resampling, rate_per_s=50.0)
    for capacity in (49.9, 50.1, 5000.0):
        metrics.add(row, dataclasses.replace(first, capacity_per_s=capacity))
    for name in ("latency_s", "latency_p95_s"):
        assert np.isfinite(metrics.values(name)).tolist() == [False, True, True]
        some, none = np.isposinf(metrics.draws(name)[1:]).mean(axis=1)
        assert 0.2 < some < 0.8 and none == 0
        near = metrics.estimate(name, 1, price=None)  # the surest draws have no upper end
        assert near.low is not None and near.high is None
        none = name == "latency_p95_s"  # six problems do not bound it
        assert (metrics.estimate(name, 2, price=None).high is None) == none
    first, second = (metrics.draws("latency_s")[[place]] for place in (1, 1))
    metrics.draws = lambda name, rows: {1: first, 2: second / 5}[int(rows[0])]
    found = metrics.difference("latency_s", 1, 2, prices=(None, None))
    assert found.low == 0 < found.high  # draws in which both queues grow differ by nothing


@pytest.mark.parametrize("load", [None, 0.5, 0.88])
def test_samples_over_the_time_of_a_step_are_the_tokens_of_a_busy_second(two_models, load):
    """At a rate the start and the end of the stream are left out, where few samples run."""
    space = two_models.space
    row = max(
        np.flatnonzero(space.alone),
        key=lambda each: (
            space.kinds[space.kind[each]].engine.model == "large",
            space.kinds[space.kind[each]].policy.n == 4,
            space.kinds[space.kind[each]].policy.all_samples_end,
            space.max_num_seqs[each],
        ),
    )
    rate = None if load is None else load * two_models.replays.capacity_per_s(int(row))
    pick = two_models.replays.of(int(row), concurrency=4, rate_per_s=rate)
    tokens = pick.tokens.mean() / pick.device_s[0].mean()
    assert pick.requests_per_step / pick.step_s == pytest.approx(tokens, rel=0.02)
