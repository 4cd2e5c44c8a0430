"""Watts of a GPU that was not measured: by how busy its steps keep it, and under a cap."""

import dataclasses

import numpy as np
import pytest

from advisor.advice.advisor import Advisor
from advisor.evidence.gather import gather
from advisor.step_time.cost import predicted_steps
from advisor.step_time.power.boards import USUAL_IDLE, board_of
from advisor.step_time.power.prior import (
    BATCHES,
    SHARES,
    SIGMA,
    Lengths,
    PowerAsked,
    lengths_of,
    slowed,
)
from advisor.step_time.prior.offers import steps_to_come
from advisor.step_time.prior.recalibration import PriorTimes
from advisor.step_time.prior.tables import read_prior
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from benchmarks import power_prior
from tests.advisor.step_time.prior.prior_files import DEVICE, LIMIT_W, TINY
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.errors import UsageError
from traces.schema.advice import Budget
from traces.schema.engine import Speculative
from traces.statistics import Z95
from traces.summary.run import summarise

pytestmark = pytest.mark.slow

IDLE_W = USUAL_IDLE * LIMIT_W
WIDE = dataclasses.replace(TINY, name="small", hidden_size=4096, intermediate_size=16384)


def times_of(**asked):
    return PriorTimes(
        tables=read_prior("test_gpu"), facts=WIDE, found=None, asked=PowerAsked(**asked)
    )


def engine(**changes):
    there = {"gpu": DEVICE, "mode": "server", "vllm_version": "0.10.0"}
    limits = {"max_num_seqs": 64, "max_num_batched_tokens": 2048, "num_gpu_blocks": 9999}
    return dataclasses.replace(engine_of(), **there | limits | changes)


@pytest.fixture
def recording(tmp_path, prior):
    made = record(tmp_path / "one", engine_of(), VOTE16, problems=12, concurrency=1)
    manifest = dataclasses.replace(made.manifest, models={"small": WIDE})
    manifest.write(made.path)
    return type(made).open(made.path)


def asked(recording, **changes):
    (run,) = summarise(recording)
    there = engine(num_gpu_blocks=None, mode=run.engine.mode, vllm_version=None)
    question = Question(engine=there, policy=VOTE16, gpu="test_gpu", concurrency=1)
    return predict(recording, run, dataclasses.replace(question, **changes)).predicted


def watts(law, batch, busy=1.0):
    return float(law.joules(1.0, busy, batch))


def test_watts_rise_with_the_batch_and_no_faster_than_it(prior):
    law = times_of().power(engine())
    by_batch = np.array([watts(law, batch) for batch in range(1, 65)])
    assert (np.diff(by_batch) >= -1e-9).all()
    assert (np.diff(by_batch, 2) <= 1e-9).all()
    assert IDLE_W < by_batch[0] < by_batch[-1] <= LIMIT_W
    assert watts(law, 8.0, busy=0.0) == pytest.approx(IDLE_W, rel=0.06)


def test_the_law_is_that_of_the_steps_bytes_and_flops(prior):
    times = times_of(lengths=Lengths(16.0, 64.0))
    busy, law = times.busy(engine()), times.power(engine())
    wanted = np.minimum(busy.wanted(times.cost(engine()), BATCHES[:7]), LIMIT_W)
    told = [np.median(law.each(1.0, 1.0, batch)) for batch in BATCHES[:7].tolist()]
    np.testing.assert_allclose(told, wanted, rtol=0.06)


def test_boards_together_draw_as_many_times_as_much(prior):
    one, four = (times_of().power(engine(tensor_parallel_size=n)) for n in (1, 4))
    assert four.limit_w == 4 * one.limit_w
    assert watts(four, 4.0, busy=0.0) == pytest.approx(4 * watts(one, 4.0, busy=0.0))


def test_the_interval_holds_what_is_not_known_and_no_board_beats_its_limit(prior):
    law = times_of().power(engine())
    low, high = law.ends(1.0, 1.0, 4.0)
    assert low < 0.85 * watts(law, 4.0)
    assert 1.1 * watts(law, 4.0) < high <= LIMIT_W


def test_replay_and_advice_foretell_the_same_joules(recording):
    run = asked(recording)
    assert run.energy_j.method == "law"
    joules = run.energy_j.per_problem
    assert 0 < joules.low < joules.value < joules.high
    tokens = run.tokens_per_problem.value
    assert run.energy_j.per_token.value == pytest.approx(joules.value / tokens, rel=0.05)
    advisor = Advisor.fit([recording], gpus=["test_gpu"])
    advice = advisor.recommend(Budget(optimise="energy", max_gpus=1))
    (pick,) = [each for each in advice.pareto if each.engine.gpu == DEVICE][:1]
    there = dataclasses.replace(pick.engine, num_gpus=None)
    again = asked(recording, engine=there, policy=pick.policy).energy_j.per_problem
    assert pick.estimates["energy_j"].value == pytest.approx(again.value, rel=0.05)


def test_a_board_that_nobody_knows_has_no_watts(recording, monkeypatch):
    monkeypatch.setattr("advisor.step_time.prior.recalibration.board_of", lambda *_: None)
    assert asked(recording).energy_j.total is None


def test_a_cap_that_binds_takes_time_and_saves_energy(recording):
    plain = asked(recording)
    runs = {cap: asked(recording, power_cap_w=cap) for cap in (LIMIT_W, 250.0, 150.0)}
    latency = {cap: run.latency_s["mean"].value for cap, run in runs.items()}
    joules = {cap: run.energy_j.per_problem.value for cap, run in runs.items()}
    assert latency[LIMIT_W] == pytest.approx(plain.latency_s["mean"].value, rel=0.05)
    assert latency[LIMIT_W] <= latency[250.0] < latency[150.0]
    assert joules[LIMIT_W] > joules[250.0] > joules[150.0]


def test_a_cap_takes_more_of_steps_that_verify_drafts(prior):
    drafts = Speculative(method="ngram", num_speculative_tokens=4, prompt_lookup_max=4)
    plain = times_of()
    busy = plain.busy(engine(speculative=drafts))
    assert busy.tokens == 5
    one, more = (
        dataclasses.replace(busy, tokens=n).wanted(plain.cost(engine()), np.full(1, 8.0))
        for n in (1, 5)
    )
    assert slowed(more, 200.0) > slowed(one, 200.0) > 1


def test_a_cap_above_what_a_step_draws_changes_nothing(prior):
    plain, capped = times_of(), times_of(cap_w=LIMIT_W)
    wanted = plain.busy(engine()).wanted(plain.cost(engine()), BATCHES)
    np.testing.assert_array_equal(slowed(wanted[wanted <= LIMIT_W], LIMIT_W), 1.0)
    assert capped.cost(engine()).values[0] >= plain.cost(engine()).values[0]


@pytest.mark.parametrize(
    ("cap", "message"),
    [(501.0, f"above the 500 W that {DEVICE} may draw"), (60.0, "not above the 70 W")],
)
def test_a_cap_that_no_board_has_is_one_line(recording, cap, message):
    with pytest.raises(UsageError, match=message):
        asked(recording, power_cap_w=cap)


def test_one_measured_wattage_scales_the_law(prior):
    plain, scaled = times_of(), times_of(measured=(300.0, 8))
    law, before = scaled.power(engine()), plain.power(engine())
    assert watts(law, 8.0) == pytest.approx(300.0, rel=0.05)
    apart = [np.subtract(*each.ends(1.0, 1.0, 8.0)[::-1]) for each in (law, before)]
    assert apart[0] < apart[1]


def test_published_watts_are_within_the_interval_with_the_gpu_left_out():
    off, held, count = [], 0, 0
    for gpu in power_prior.GPUS:
        shares = power_prior.fitted(gpu)
        logs = np.concatenate([
            np.log(power_prior.watts_of(each, shares) / power_prior.busy(each)[2])
            for each in power_prior.PUBLISHED
            if each.gpu == gpu
        ])  # fmt: skip
        off.append(np.abs(np.expm1(logs)).mean())
        held, count = held + int((np.abs(logs) < Z95 * SIGMA).sum()), count + len(logs)
    assert max(off) < 0.25
    assert np.mean(off) < 0.1
    assert held > 0.95 * count
    found = power_prior.fitted()
    np.testing.assert_allclose(found, SHARES, rtol=0.06)


def test_the_lengths_are_those_of_the_models_samples(recording):
    evidence = gather([recording])
    found = lengths_of(evidence.runs, "small")
    steps = steps_to_come(engine(), evidence)
    assert found.prompt == pytest.approx(steps["prefill_tokens"].max(), rel=0.5)
    assert lengths_of(evidence.runs, "another") == Lengths()
    assert predicted_steps(times_of().cost(engine()), steps).min() > 0


def test_boards_are_known_by_name_or_by_what_the_tables_state():
    assert board_of("NVIDIA L40S").gddr
    assert board_of("NVIDIA A100-SXM4-80GB").idle_w == 62
    assert board_of("NVIDIA Test 1") is None
    assert board_of("NVIDIA Test 1", 300.0).idle_w == pytest.approx(42.0)
