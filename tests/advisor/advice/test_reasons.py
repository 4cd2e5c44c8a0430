"""Sentences of an answer: each only where it is true and tells something."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest

from advisor.advice.measure_next.experiments import after_speed
from advisor.advice.measure_next.gpu_runs import ShortRun
from advisor.advice.reasons import EXPECTED_LOSS, _short, _small_steps, name_of
from tests.advisor.synthetic import FACTS, VOTE16, engine_of
from traces.schema.advice import Budget

BUDGETS = [
    Budget(),
    Budget(min_accuracy=0.5),
    Budget(min_accuracy=0.6, optimise="cost"),
    Budget(min_accuracy=0.7, optimise="throughput"),
    Budget(min_accuracy=0.75, latency_percentile=90, max_latency_s=1.0),
    Budget(max_latency_s=0.08, optimise="accuracy"),
    Budget(min_accuracy=0.5, rate_per_s=2.0, optimise="cost", max_gpus=2),
    Budget(min_accuracy=0.5, rate_per_s=8.0),
]


def same(one, other):
    return (one.engine, one.policy) == (other.engine, other.policy)


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_twin_of_the_pick_is_not_called_another(fresh, budget):
    answer = fresh.recommend(budget)
    apart = [line for line in answer.reasons if line.startswith("statistically tied with")]
    outcomes = fresh.under(budget.rate_per_s).metrics.replayed
    (mine,) = (o.candidate for o in outcomes if same(o.candidate, answer.system_optimal))
    for line in apart:
        named = line.partition(": ")[2].split(" | ")
        told = [re.sub(" and [0-9]+ more$", "", name) for name in named]
        assert name_of(mine, limits=False) not in told


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS)
def test_an_early_stop_that_saves_nothing_is_not_the_pick(fresh, budget):
    answer = fresh.recommend(budget)
    pick, check = answer.system_optimal, fresh.check(budget)
    metrics = check.metrics
    mine = row_of(metrics, pick)
    told = [line for line in answer.reasons if line.startswith("an early stop saves no time")]
    alike = [
        row
        for row in map(int, check.order)
        if check.fits[row]
        and row != mine
        and metrics.candidate(row).engine == pick.engine
        and metrics.candidate(row).policy.n == pick.policy.n
        and metrics.candidate(row).policy.stops_early != pick.policy.stops_early
        and all(
            metrics.values(name)[row] == pytest.approx(metrics.values(name)[mine], rel=1e-10)
            for name in ("accuracy", "latency_s", "device_s")
        )
    ]
    assert not (alike and pick.policy.stops_early)
    assert bool(told) == bool(alike)


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS)
def test_few_batched_tokens_have_a_reason(fresh, budget):
    answer = fresh.recommend(budget)
    engine = answer.system_optimal.engine
    most = max(
        each.candidate.engine.max_num_batched_tokens
        for each in fresh.under(budget.rate_per_s).metrics.replayed
        if dataclasses.replace(
            each.candidate.engine, max_num_batched_tokens=engine.max_num_batched_tokens
        )
        == engine
    )
    told = [line for line in answer.reasons if line.startswith("max_num_batched_tokens ")]
    assert bool(told) == (engine.max_num_batched_tokens < most)


@pytest.mark.parametrize(
    ("goal", "accuracy", "latency_s", "said"),
    [
        ("accuracy", (0.902, 0.901), (2.0, 1.7), "its accuracy is 0.901 against 0.902"),
        ("accuracy", (0.902, 0.902), (2.0, 1.7), "it has 15.0 % less mean latency"),
        ("latency_s", (0.9, 0.9), (2.0, 2.3), "it has 15.0 % more mean latency"),
    ],
)
def test_what_larger_steps_change_has_its_sign(goal, accuracy, latency_s, said):
    candidates = [
        SimpleNamespace(engine=engine_of(max_num_batched_tokens=limit), policy=VOTE16)
        for limit in (1024, 8192)
    ]
    values = {"accuracy": np.array(accuracy), "latency_s": np.array(latency_s)}
    check = SimpleNamespace(
        metrics=SimpleNamespace(candidate=candidates.__getitem__, values=values.__getitem__),
        goal=SimpleNamespace(metric=goal),
        order=np.arange(2),
        asked=np.ones(2, dtype=bool),
        fits=np.ones(2, dtype=bool),
    )
    (line,) = _small_steps(check, 0)
    assert line == f"max_num_batched_tokens is 1,024: with 8,192 {said}"


def short_lines(count=1, *, eager=False, after=0.1):
    """What is said of so many short runs of an engine on a GPU."""
    engine = engine_of(gpu="NVIDIA H100 80GB HBM3", enforce_eager=eager)
    run = ShortRun(
        engine=engine, policy=VOTE16, device_s=9.0, cost_usd=None, regret=0.2, regret_after=after
    )
    evidence = SimpleNamespace(workload=None, posable="sums", posed=True, models=FACTS)
    return _short(evidence, [run] * count, 0.07)


@pytest.mark.parametrize("eager", [True, False])
def test_a_short_run_is_of_the_engine_that_is_offered(eager):
    line, then = short_lines(eager=eager)
    folder = "runs/nvidia-h100-80gb-hbm3-small-tp1"
    if eager:  # `record` would capture CUDA graphs
        assert "ttscope record" not in line and "2 problems, one after the other, of small" in line
        end = f"by a plan for ttscope sweep -o {folder}, as record has no option for "
        assert line.endswith(f"{end}enforce_eager: true")
    else:
        assert "ttscope record --model small" in line and line.endswith(f"-o {folder}")
    assert then.endswith(f"--with {folder}")
    assert f"the pick's expected loss ({EXPECTED_LOSS}) falls from 20.0 % to 10.0 %" in line
    assert "7.0 % is for the chance that it breaks a limit, and 13.0 % for others that" in line
    _, second, _ = short_lines(2, eager=eager)
    assert "the pick's expected loss falls from" in second  # it is said once


def test_a_run_that_saves_nothing_is_not_sold_as_one_that_does():
    line, _ = short_lines(after=0.2)
    assert line.startswith("no run is expected to lead to a better pick, and this one checks its")
    assert "expected loss" not in line and "ttscope record --model small" in line


def row_of(metrics, pick):
    (row,) = (n for n, o in enumerate(metrics.replayed) if same(o.candidate, pick))
    return row


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_compute_optimal_one_is_said_to_be_worse_only_where_it_surely_is(fresh, budget):
    answer = fresh.recommend(budget)
    ours, theirs = answer.system_optimal, answer.compute_optimal
    lines = [line for line in answer.reasons if line.startswith("the compute-optimal one ")]
    if same(ours, theirs):
        assert not lines
        return
    (line,) = lines
    metrics = fresh.under(budget.rate_per_s).metrics
    metric = {"cost": "device_s", "throughput": "throughput_problems_per_s"}.get(
        budget.goal, "latency_p90_s" if budget.latency_percentile else "latency_s"
    )
    rows = row_of(metrics, theirs), row_of(metrics, ours)
    found = metrics.difference(metric, *rows, prices=(None, None))
    low, high = found.low, found.high  # None where some draws cannot keep up
    if (low is None or low <= 0) and (high is None or high >= 0):
        assert "cannot be told apart" in line and " has " not in line
        return
    assert (" more " in line) == (found.value > 0)
    assert (" yet " in line) == ((found.value > 0) != (metric == "throughput_problems_per_s"))
    for told, against in re.findall(r"(?:lasts|takes) ([\d.]+) steps against ([\d.]+)", line):
        assert float(told) > float(against)
    for told, against in re.findall(r"of ([\d.]+) samples each against ([\d.]+)", line):
        assert float(told) * 1.09 < float(against)
    for told, against in re.findall(r"Its steps take ([\d.]+) ms against ([\d.]+) ms", line):
        assert float(told) > float(against)


def test_steps_times_their_length_are_the_latency(fresh):
    answer = fresh.recommend(Budget(min_accuracy=0.5))
    metrics = fresh.under(None).metrics
    (line,) = (line for line in answer.reasons if "A problem lasts" in line)
    told = [
        float(each) for each in re.search(r"lasts ([\d.]+) steps against ([\d.]+)", line).groups()
    ]
    for steps, pick in zip(told, (answer.compute_optimal, answer.system_optimal), strict=True):
        outcome = metrics.replayed[row_of(metrics, pick)]
        step_s = outcome.step_s
        assert steps * step_s == pytest.approx(outcome.latency_s.mean(), rel=0.01)


@pytest.mark.slow
def test_the_fewest_tokens_are_fewer(fresh):
    lines = [line for budget in BUDGETS for line in fresh.recommend(budget).reasons]
    told = [each for each in lines if each.startswith("the fewest tokens: ")]
    assert told
    for line in told:
        numbers = re.search(r"needs ([\d.,]+), the compute-optimal one ([\d.,]+)", line).groups()
        few, many = (float(each.replace(",", "")) for each in numbers)
        assert few < many


def test_a_run_gets_no_credit_for_what_another_choice_saves_without_it():
    """The pick is sure of its limits, so that another may lose less with nothing learned."""
    slow = np.arange(40) % 4 < 2
    check = SimpleNamespace(
        metrics=SimpleNamespace(
            choosing=np.arange(40) % 2 == 0, factors=np.exp(np.where(slow, 3.0, -3.0))[None]
        ),
        sequence=np.arange(1),
    )
    better_anyway = np.stack([np.full(40, 0.5), np.zeros(40)])
    assert after_speed(check, 0, better_anyway, 0) == 0.5
    better_if_slow = np.stack([np.where(slow, 1.0, 0.0), np.where(slow, 0.0, 1.0)])
    assert after_speed(check, 0, better_if_slow, 0) < 0.3  # of three groups one is mixed
