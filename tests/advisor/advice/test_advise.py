import dataclasses
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from advisor.advice.advisor import Advisor
from advisor.advice.feasible import ORDER
from advisor.advice.reasons import noun
from advisor.search.metrics import CandidateMetrics
from tests.advisor.synthetic import GREEDY, VOTE16, engine_of, law_of, record
from traces.errors import UsageError
from traces.schema.advice import Budget
from traces.schema.estimate import Estimate
from traces.schema.formats import number
from traces.statistics import tied
from traces.summary.run import summarise
from tui.text.advice import verdict

QUICK = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
LATENCIES = st.floats(0.005, 1.0)
ACCURACIES = st.floats(0.1, 0.99)
OBJECTIVES = st.sampled_from(["latency", "cost", "accuracy", "throughput"])


def row_of(metrics: CandidateMetrics, engine, policy) -> int:
    (row,) = [
        i
        for i, outcome in enumerate(metrics.replayed)
        if (outcome.candidate.engine, outcome.candidate.policy) == (engine, policy)
    ]
    return row


def alone(advisor: Advisor, engine, policy, rate=None) -> tuple[CandidateMetrics, int]:
    """Replay one candidate; return the metrics and its place in them."""
    (row,) = advisor.space.rows_of(engine, policy)
    state = advisor.under(rate)
    state.replay([row])
    return state.metrics, state.metrics.place[row]


def badness(recommendation) -> float:
    """What is optimised, less being better; infinite when nothing fits."""
    pick, optimise = recommendation.system_optimal, recommendation.budget.goal
    if pick is None:
        return np.inf
    percentile = recommendation.budget.latency_percentile
    name, sign = {
        "latency": ("latency_s" if percentile is None else f"latency_p{percentile}_s", 1),
        "cost": ("device_s", 1),
        "accuracy": ("accuracy", -1),
        "throughput": ("throughput_problems_per_s", -1),
    }[optimise]
    return sign * pick.estimates[name].value


@pytest.mark.slow
def test_recorded_latency_is_predicted(recordings, advisor):
    """Runs were slowed by up to 3 % each; the law is their mean."""
    metrics = advisor.metrics(None)
    for recording in recordings:
        (engine,) = recording.manifest.engines.values()
        (policy,) = recording.manifest.policies.values()
        problems = recording.problems
        recorded = ((problems["decided_at"] - problems["arrival"]) / 1e9).to_numpy()
        row = row_of(metrics, engine, policy)
        assert metrics.values("latency_s")[row] == pytest.approx(recorded.mean(), rel=0.08)
        p95 = float(np.quantile(recorded, 0.95))
        assert metrics.values("latency_p95_s")[row] == pytest.approx(p95, rel=0.12)


@pytest.mark.slow
def test_an_engine_setting_never_run_is_predicted(tmp_path, advisor):
    """A replay at max_num_seqs 8 meets a fresh run of it, of fresh samples."""
    engine = engine_of("large", max_num_seqs=8)
    fresh = record(tmp_path / "fresh", engine, VOTE16)
    metrics = advisor.metrics(None)
    row = row_of(metrics, engine, VOTE16)
    assert not metrics.replayed[row].candidate.recorded
    recorded = ((fresh.problems["decided_at"] - fresh.problems["arrival"]) / 1e9).to_numpy()
    estimate = metrics.estimate("latency_s", row, price=None)
    assert estimate.value == pytest.approx(recorded.mean(), rel=0.06)
    assert estimate.low < recorded.mean() < estimate.high


@pytest.mark.slow
@QUICK
@given(latency=LATENCIES, accuracy=ACCURACIES, optimise=OBJECTIVES, confidence=st.floats(0.5, 0.99))
def test_the_pick_meets_its_budget(advisor, latency, accuracy, optimise, confidence):
    budget = Budget(
        max_latency_s=latency, min_accuracy=accuracy, optimise=optimise, confidence=confidence
    )
    answer = advisor.recommend(budget)
    pick = answer.system_optimal
    if pick is None:
        assert {miss.limit for miss in answer.near_misses} == {"max_latency_s", "min_accuracy"}
        return
    assert pick.probability_within_budget >= confidence
    metrics = advisor.metrics(None)
    row = row_of(metrics, pick.engine, pick.policy)
    for half in (advisor.resampling.choosing, ~advisor.resampling.choosing):
        met = (metrics.draws("latency_s")[row] <= latency) & (
            metrics.draws("accuracy", of="others")[row] >= accuracy
        )
        assert met[half].mean() >= confidence
    assert pick.estimates["latency_s"].value <= latency or confidence < 0.6


@pytest.mark.slow
@QUICK
@given(
    latency=LATENCIES, accuracy=ACCURACIES, looser=st.floats(1.0, 5.0), optimise=OBJECTIVES,
    percentile=st.sampled_from([None, 50, 90]),
)  # fmt: skip
def test_a_looser_budget_is_never_worse(advisor, latency, accuracy, looser, optimise, percentile):
    tight = Budget(
        max_latency_s=latency,
        min_accuracy=accuracy,
        optimise=optimise,
        latency_percentile=percentile,
    )
    loose = dataclasses.replace(
        tight, max_latency_s=latency * looser, min_accuracy=accuracy / looser
    )
    worse, better = advisor.recommend(tight), advisor.recommend(loose)
    assert badness(better) <= badness(worse) * (1 + 1e-9 * np.sign(badness(worse)))
    assert sum(better.infeasible.values()) <= sum(worse.infeasible.values())


def estimates_in(recommendation) -> list[Estimate]:
    picks = [recommendation.system_optimal, recommendation.compute_optimal, *recommendation.pareto]
    found = [e for pick in picks if pick is not None for e in pick.estimates.values()]
    found += [*recommendation.regret.values(), *(m.nearest for m in recommendation.near_misses)]
    return [estimate for estimate in found if estimate is not None]


@pytest.mark.slow
@pytest.mark.parametrize(
    "budget",
    [
        Budget(),
        Budget(min_accuracy=0.75),
        Budget(max_latency_s=0.1, latency_percentile=90, optimise="accuracy"),
        Budget(optimise="cost", price_usd_per_device_hour=3.0, min_accuracy=0.6),
        Budget(max_latency_s=1e-6, min_accuracy=0.99, max_gpus=1),
        Budget(rate_per_s=2.0, min_accuracy=0.5),
    ],
)
def test_estimates_are_intervals(advisor, budget):
    found = estimates_in(advisor.recommend(budget))
    assert found
    for estimate in found:
        assert np.isfinite(estimate.value)
        if estimate.low is not None:
            assert estimate.low <= estimate.value
        if estimate.high is not None:
            assert estimate.value <= estimate.high


@pytest.mark.slow
def test_the_wanted_accuracy_decides_the_model(advisor):
    fast = advisor.recommend(Budget())
    assert fast.system_optimal.engine.model == "small"
    accurate = advisor.recommend(Budget(min_accuracy=0.8))
    assert accurate.system_optimal.engine.model == "large"
    best = advisor.recommend(Budget(optimise="accuracy"))
    assert best.system_optimal.policy.n == 16


def test_the_right_pick_comes_out_of_the_truth(advisor):
    """By the true law: which recorded engine serves 16 votes of the large model fastest."""
    answer = advisor.recommend(Budget(min_accuracy=0.8, optimise="cost"))
    assert answer.system_optimal.engine.tensor_parallel_size == 1  # two devices, not twice as fast
    one, two = law_of(engine_of("large")), law_of(engine_of("large", tensor_parallel_size=2))
    assert 2 * two[0] > one[0]


@pytest.mark.slow
def test_compute_optimal_needs_the_fewest_flops(advisor):
    answer = advisor.recommend(Budget(min_accuracy=0.6))
    metrics = advisor.metrics(None)
    compute = answer.compute_optimal
    drawn = metrics.draws("accuracy", of="others")
    accurate = metrics.chance(drawn >= 0.6) >= answer.budget.confidence
    flops, latency = metrics.values("flops"), metrics.values("latency_s")
    fastest = {}  # of each policy, whose FLOPs it has
    for row in sorted(np.flatnonzero(accurate), key=lambda row: -latency[row]):
        fastest[metrics.candidate(row).policy] = row
    fewest = min(flops[row] for row in fastest.values())
    assert flops[fastest[compute.policy]] <= fewest * (1 + ORDER)
    as_few = np.flatnonzero(accurate & (flops <= flops[fastest[compute.policy]] * (1 + ORDER)))
    own = [row for row in as_few if metrics.candidate(row).policy == compute.policy]
    assert compute.estimates["flops"].value in flops[own]
    assert compute.estimates["latency_s"].value == latency[own].min()
    for name, regret in answer.regret.items():
        if regret is not None:
            mine = answer.system_optimal.estimates[name].value
            assert regret.value == pytest.approx(compute.estimates[name].value - mine)
    assert answer.regret["latency_s"].value >= 0  # the same limits bind both


@pytest.mark.parametrize("accuracy", [0.4, 0.65, 0.7])
def test_what_needs_the_fewest_flops_hangs_on_the_accuracy_alone(two_models, accuracy):
    """Engines that run one sample at a time save samples of a rule, and are not what one serves."""
    plain = Budget(min_accuracy=accuracy)
    changes = ({}, {"latency_percentile": 95}, {"max_latency_s": 0.2}, {"max_gpus": 1},
               {"max_latency_s": 0.3, "latency_percentile": 95}, {"optimise": "cost"})  # fmt: skip
    budgets = [dataclasses.replace(plain, **each) for each in changes]
    picks = [two_models.recommend(budget).compute_optimal for budget in budgets]
    assert len({(pick.engine.model, pick.policy) for pick in picks}) == 1
    flops = [pick.estimates["flops"].value for pick in picks]
    assert max(flops) <= min(flops) * (1 + ORDER)
    assert {pick.engine.max_num_seqs for pick in picks} == {32}


def test_flops_are_those_of_the_definition(tmp_path):
    """2 x parameters x tokens forwarded, and attention, for one greedy sample."""
    recording = record(tmp_path / "r", engine_of(), GREEDY, problems=10)
    metrics = Advisor.fit([recording], draws=20).metrics(None)
    (facts,) = recording.manifest.models.values()
    (steps,) = [recording.steps]
    tokens = steps["prefill_tokens"].sum() + steps["decode_tokens"].sum()
    context = steps["prefill_query_context"].sum() + steps["decode_kv_tokens"].sum()
    total = facts.matmul_flops(tokens) + facts.attention_flops(context)
    row = row_of(metrics, engine_of(), GREEDY)
    assert metrics.values("flops")[row] * 10 == pytest.approx(total, rel=1e-9)


def test_a_limit_on_what_was_not_measured_is_refused(advisor):
    with pytest.raises(UsageError, match="no recording holds power"):
        advisor.recommend(Budget(max_energy_j=5.0))
    with pytest.raises(UsageError, match="no recording holds power"):
        advisor.recommend(Budget(optimise="energy"))
    with pytest.raises(UsageError, match="needs --price"):
        advisor.recommend(Budget(max_cost_usd=0.01))
    answer = advisor.recommend(Budget(max_device_s=1.0))
    assert answer.system_optimal.estimates["cost_usd"] is None
    assert answer.system_optimal.estimates["energy_j"] is None


def test_devices_are_limited(advisor):
    answer = advisor.recommend(Budget(max_gpus=1))
    assert all(pick.engine.num_devices == 1 for pick in answer.pareto)
    assert answer.infeasible["needs more devices than allowed"] > 0


def test_cost_is_device_seconds_at_the_price(advisor):
    answer = advisor.recommend(Budget(price_usd_per_device_hour=3.6))
    estimates = answer.system_optimal.estimates
    assert estimates["cost_usd"].value == pytest.approx(estimates["device_s"].value * 0.001)


@pytest.mark.slow
def test_shares_of_device_time_sum_to_the_busy_time(advisor):
    for outcome in advisor.metrics(None).replayed:
        busy = float(outcome.law.seconds @ np.array(outcome.totals))
        engine = outcome.candidate.engine
        shared = outcome.device_s.sum(axis=-1).mean() / engine.num_devices
        shared *= engine.data_parallel_size  # the replicas' steps are not of one engine
        assert shared == pytest.approx(busy, rel=1e-9)


def test_the_front_trades_accuracy_for_latency(advisor):
    front = advisor.recommend(Budget()).pareto
    latency = [pick.estimates["latency_s"].value for pick in front]
    accuracy = [pick.estimates["accuracy"].value for pick in front]
    assert len(front) > 2
    assert latency == sorted(latency)
    assert all(later > earlier for earlier, later in pairwise(accuracy))


def test_a_device_time_that_the_rate_fixes_hangs_on_no_step_that_was_not_measured(advisor):
    budget = Budget(rate_per_s=2.0, optimise="cost", min_accuracy=0.3, confidence=0.5)
    advisor.recommend(budget)
    metrics = advisor.under(2.0).metrics
    metrics.replayed[0] = dataclasses.replace(metrics.replayed[0], extrapolated=True)
    assert metrics.estimate("latency_s", 0, price=None).extrapolated
    device = metrics.estimate("device_s", 0, price=None)
    assert device.cannot_differ and not device.extrapolated


def test_at_equal_cost_the_surest_is_the_pick(advisor):
    """At a rate devices cost the same whatever they run."""
    loose = Budget(rate_per_s=2.0, optimise="cost", min_accuracy=0.3, confidence=0.5)
    advisor.recommend(loose)
    limit = float(np.median(advisor.under(2.0).metrics.values("latency_p95_s")))
    budget = dataclasses.replace(loose, max_latency_s=limit, latency_percentile=95)
    advisor.recommend(budget)
    check = advisor.check(budget)
    best = check.best()
    cost = tied(check.cost)
    percents = np.round(check.chance, 2)  # another rule decides between equal percents
    equals = percents[check.fits & (cost == cost[best])]
    assert percents[best] == equals.max() > equals.min()


BOUNDS = {"min_accuracy": 0.3, "max_latency_s": 1e3}


@pytest.mark.parametrize(
    ("limited", "accurate"),
    [((), True), (("min_accuracy",), False), (("max_latency_s",), True), (tuple(BOUNDS), True)],
)
def test_at_equal_cost_what_is_not_limited_is_best(advisor, limited, accurate):
    """And accuracy where both are, or neither."""
    limits = {name: BOUNDS[name] for name in limited}
    budget = Budget(rate_per_s=2.0, optimise="cost", confidence=0.5, **limits)
    answer = advisor.recommend(budget)
    check = advisor.check(budget)
    best, cost, sure = check.best(), tied(check.cost), np.round(check.chance, 2)
    alike = np.flatnonzero(check.fits & (cost == cost[best]) & (sure == sure[best]))
    accuracy, latency = (tied(check.metrics.values(n)) for n in ("accuracy", "latency_s"))
    assert len({*accuracy[alike]}) > 2 and len({*latency[alike]}) > 2
    if accurate:
        assert accuracy[best] == accuracy[alike].max()
        assert latency[best] == latency[alike][accuracy[alike] == accuracy[best]].min()
    else:
        assert latency[best] == latency[alike].min()
    other, name = ("faster", "latency_s") if accurate else ("more accurate", "accuracy")
    (line,) = (each for each in answer.alternatives if f" costs the same and is {other}: " in each)
    assert f"{line}." in " ".join(verdict(answer))
    alike = np.flatnonzero(check.fits & (cost == cost[best]))  # however sure
    row = (np.argmin if accurate else np.argmax)(check.metrics.values(name)[alike])
    found = {each: check.metrics.values(each) for each in ("accuracy", "latency_s")}
    for each, values in found.items():
        value, unit = values[alike[row]], "1" if each == "accuracy" else "s"
        assert f"{noun(each)} {number(value, unit)} against {number(values[best], unit)}" in line


def test_what_costs_the_same_and_is_no_better_is_not_named(fresh):
    answer = fresh.recommend(Budget(optimise="latency"))
    assert answer.alternatives == ()


def test_a_rate_beyond_every_engine_fits_none(advisor):
    answer = advisor.recommend(Budget(rate_per_s=1e5))
    assert answer.system_optimal is None
    assert [miss.limit for miss in answer.near_misses] == ["rate"]
    assert answer.infeasible["may not keep up with the rate"] > 0


@pytest.mark.slow
def test_latency_grows_with_the_rate(advisor):
    slow, quick = (
        metrics.values("latency_s")[place]
        for metrics, place in (alone(advisor, engine_of("large"), VOTE16, r) for r in (2.0, 8.0))
    )
    assert slow < quick
    answer = advisor.recommend(Budget(rate_per_s=2.0))
    # An engine is paid for while it waits.
    assert answer.system_optimal.estimates["device_s"].value == pytest.approx(0.5, rel=1e-6)


@pytest.mark.slow
def test_an_edit_of_the_budget_only_filters(fresh_advisor):
    asked, spent = fresh_advisor(), []
    limits = [(0.2, 0.6), *((0.1 + number / 20, 0.7) for number in range(5))]
    for latency_s, accuracy in limits:
        budget = Budget(max_latency_s=latency_s, latency_percentile=90, min_accuracy=accuracy)
        begun = time.process_time()
        asked.recommend(budget)
        spent.append(time.process_time() - begun)
    assert min(spent[1:]) < spent[0] / 5


def test_energy_is_the_power_over_the_device_time(tmp_path):
    engine = engine_of("large", tensor_parallel_size=2)
    recording = record(tmp_path / "r", engine, GREEDY, problems=8, watts=300.0)
    advisor = Advisor.fit([recording], draws=40)
    answer = advisor.recommend(Budget(optimise="energy", max_energy_j=1e6))
    estimates = answer.system_optimal.estimates
    assert estimates["energy_j"].value == pytest.approx(300 * estimates["device_s"].value)
    assert advisor.recommend(Budget(max_energy_j=1e-9)).system_optimal is None


@pytest.mark.parametrize("kind", ["nvml", "rapl"])
def test_energy_by_a_counter_reaches_the_advice(tmp_path, kind):
    recording = record(
        tmp_path / "r", engine_of("large"), GREEDY, problems=8, watts=75.0, power=(kind, "energy_j")
    )
    advisor = Advisor.fit([recording], draws=40)
    estimates = advisor.recommend(Budget(optimise="energy")).system_optimal.estimates
    assert estimates["energy_j"].value == pytest.approx(75 * estimates["device_s"].value)
    (run,) = summarise(recording)
    assert run.energy_j.method == "counter" and run.energy_j.kind == kind
    (law,) = advisor.space.power.values()
    drawn = float(law.joules(1.0, 1.0, law.batch[0]))
    assert drawn == pytest.approx(run.energy_j.mean_w.value, rel=0.01)


def test_a_recorded_rate_is_the_load(tmp_path):
    recording = record(
        tmp_path / "r", engine_of(), GREEDY, problems=8, concurrency=2, rate_per_s=3.0
    )
    answer = Advisor.fit([recording], draws=40).recommend(Budget())
    assert any("load: 3.00 problems/s arrive at random" in reason for reason in answer.reasons)


def test_one_problem_is_enough_to_answer(tmp_path):
    recording = record(tmp_path / "r", engine_of(max_num_seqs=None), VOTE16, problems=1)
    answer = Advisor.fit([recording], draws=40).recommend(Budget(min_accuracy=0.01, confidence=0.5))
    estimates = answer.system_optimal.estimates
    one = estimates["accuracy"]  # another problem is right or wrong
    assert (one.low, one.high) == (0, 1) and 0.5 < one.value < 1
    assert answer.system_optimal.engine.max_num_seqs is None
    # Another problem may be of any length: one tells no interval.
    assert {estimates[name].low for name in ("tokens", "flops", "latency_s")} == {None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "budget",
    [
        Budget(min_accuracy=0.7),
        Budget(max_latency_s=0.08, latency_percentile=90, optimise="accuracy"),
        Budget(min_accuracy=0.6, optimise="cost"),
        Budget(min_accuracy=0.9999, max_latency_s=1e-5),
    ],
)
def test_the_leaders_answer_as_all_candidates_do(advisor, fresh, budget):
    """The two stages find what replaying every candidate finds."""
    advisor.metrics(None)
    told = [each.recommend(budget).to_json() for each in (fresh, advisor)]
    assert told[0]["stages"]["replayed"] < told[0]["stages"]["screened"] / 2
    assert told[0]["system_optimal"] == told[1]["system_optimal"]
    assert told[0]["regret"] == told[1]["regret"]
    nearest = [[miss["nearest"] for miss in each["near_misses"]] for each in told]
    assert nearest[0] == nearest[1]


@pytest.mark.slow
def test_intervals_hold_fresh_accuracy(tmp_path):
    """A fresh run of the same problems lies in the interval of nearly all predictions."""
    hits = 0
    for seed in range(8):
        one = record(tmp_path / f"a{seed}", engine_of(), VOTE16, problems=25, seed=seed)
        metrics, place = alone(Advisor.fit([one], draws=200), engine_of(), VOTE16)
        estimate = metrics.estimate("accuracy", place, price=None)
        fresh = record(tmp_path / f"b{seed}", engine_of(), VOTE16, problems=25, seed=100 + seed)
        truth, place = alone(Advisor.fit([fresh], draws=20), engine_of(), VOTE16)
        value = truth.values("accuracy")[place]
        hits += estimate.low <= value <= estimate.high
    assert hits >= 7


@pytest.mark.parametrize(("percentile", "told"), [(50, True), (75, True), (95, False), (99, False)])
def test_a_percentile_beyond_what_few_problems_tell_has_no_upper_end(advisor, percentile, told):
    assert len(advisor.space.problem_ids) < 59  # .95^58 is above 5 %
    found = advisor.recommend(Budget(optimise="latency", latency_percentile=percentile))
    latency = found.system_optimal.estimates[f"latency_p{percentile}_s"]
    assert (latency.high is not None) == told
