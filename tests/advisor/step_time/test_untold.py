"""Laws of steps that were all alike: what each request adds is not told, and both ends are held."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import profiler.demo
from advisor.advice.advisor import Advisor
from advisor.evidence.features import ZERO, Features
from advisor.evidence.gather import StepTable
from advisor.search.resampling import Resampling
from advisor.step_time.fit import StepTimeModel
from advisor.what_if.predict import UNTOLD
from tests.advisor.step_time.prior.kinds_files import layer, matrix, model
from tests.advisor.synthetic import engine_of
from tests.advisor.what_if.test_predict import asked
from traces.recording.reader import Recording
from traces.schema.advice import Budget

SHIPPED = Path(profiler.demo.__file__).parent / "recordings"
ON_GPU = {64: 9e-3, 32: 8e-3, 16: 7.4e-3, 1: 7e-3}  # seconds of a step by its requests


def decoding(requests, seconds, gpu="NVIDIA H100", steps=200):
    work = ZERO._replace(step=1.0, requests=requests, tokens=requests, kv_tokens=500.0 * requests)
    return StepTable(
        recording=str(requests), configuration=str(requests), engine=engine_of(gpu=gpu), facts=None,
        composition=np.tile(np.array(work), (steps, 1)), seconds=np.full(steps, seconds),
    )  # fmt: skip


@pytest.mark.parametrize("told", ON_GPU)
def test_one_batch_gives_an_interval_that_holds_the_others(told):
    table = decoding(told, ON_GPU[told])
    law = StepTimeModel().fit([table]).law(table.engine)
    for requests, seconds in ON_GPU.items():
        row = decoding(requests, seconds).composition[0]
        ends = sorted(law.ends @ row)
        assert 0.99 * ends[0] <= seconds <= 1.01 * ends[1]
        if requests == told:  # as recorded, whatever it is made of
            assert ends == pytest.approx([seconds] * 2, rel=0.01)


def test_a_processor_is_taken_to_grow_more_with_requests_than_a_gpu():
    laws = [
        StepTimeModel().fit([table]).law(table.engine)
        for table in (decoding(1, 7e-3, gpu) for gpu in (None, "NVIDIA H100"))
    ]
    row = decoding(64, 1.0).composition[0]
    assert laws[0].predict(row) > 1.5 * laws[1].predict(row)


WATCHED = {"mode": "server", "vllm_version": "0.32.0"}  # without the plugin


def of(table, engine, seconds=None, facts=None):
    """Return steps as if another engine had made them."""
    given = table.seconds if seconds is None else np.full_like(table.seconds, seconds)
    return dataclasses.replace(table, engine=engine, seconds=given, facts=facts)


def test_a_device_that_nobody_names_grows_as_a_gpu_and_may_as_a_processor():
    gpu, processor = (decoding(1, 7e-3, name) for name in ("NVIDIA H100", None))
    unnamed = of(gpu, engine_of(gpu=None, enforce_eager=None, **WATCHED))
    told = of(gpu, engine_of(gpu=None, enforce_eager=True, **WATCHED))  # by the plugin
    counted = of(gpu, engine_of(gpu=None, enforce_eager=None, num_gpus=1, **WATCHED))
    row = decoding(64, 1.0).composition[0]
    tables = (gpu, unnamed, told, counted, processor)
    laws = [StepTimeModel().fit([t]).law(t.engine) for t in tables]
    on_gpu, either, by_plugin, by_watts, on_processor = laws
    assert by_watts.ends == pytest.approx(on_gpu.ends)
    assert either.predict(row) == pytest.approx(on_gpu.predict(row))
    assert by_plugin.predict(row) == pytest.approx(on_processor.predict(row))
    ends = either.ends @ row
    assert ends.min() == pytest.approx((on_gpu.ends @ row).min())
    assert ends.max() == pytest.approx((on_processor.ends @ row).max())


@pytest.mark.parametrize(("seconds", "ends"), [(7e-3, 2), (5e-2, 3)])
def test_steps_that_no_processor_makes_were_a_gpus(seconds, ends):
    plain = (matrix("mlp.up_proj", 512, 1024), matrix("mlp.down_proj", 1024, 512))
    facts = model(layer(after=plain), num_experts=None, kv_bytes_per_token=4096)
    times = 16e9 / facts.read_weight_bytes(1.0)  # as long as the weights of 8B would take
    engine = engine_of(gpu=None, enforce_eager=None, **WATCHED)
    table = of(decoding(1, 1.0), engine, seconds / times, facts)
    assert len(StepTimeModel().fit([table]).law(engine).ends) == ends


def test_draws_of_uneven_ends_have_the_law_as_their_mean():
    engine = engine_of(gpu=None, enforce_eager=None, **WATCHED)
    law = StepTimeModel().fit([of(decoding(1, 7e-3), engine)]).law(engine)
    many = Features(*decoding(64, 1.0).composition[0])
    sure = dataclasses.replace(law, sigma=0.0, sigma_outside=0.0)
    draws = Resampling(20, count=4000).factor(engine, sure, outside=False, totals=many)
    ends = law.ends @ np.array(many) / (law.seconds @ np.array(many))
    assert draws.mean() == pytest.approx(1.0, rel=1e-3)
    assert ends.min() <= draws.min() < 0.7
    assert ends.max() >= draws.max() > 1.4


def test_two_batches_tell_what_requests_add():
    tables = [decoding(requests, ON_GPU[requests]) for requests in (1, 64)]
    law = StepTimeModel().fit(tables).law(tables[0].engine)
    low, high = sorted(law.ends @ decoding(32, 1.0).composition[0])
    assert high / low < 1.05
    assert low * 0.97 < ON_GPU[32] < high * 1.03


@pytest.mark.slow
def test_a_recording_of_one_load_predicts_what_others_took():
    """Its steps had 16 and 32 requests, those of one sample a problem have 2."""
    many, one = (
        Recording.open(SHIPPED / f"demo-l-tp1-seqs64-{name}")
        for name in ("maj@16-t0.8-09e0005e", "greedy-t0-09e07ae0")
    )
    alone, both = (asked(many, others, policy={"n": 1}) for others in ((), (one,)))
    for name in ("mean", "p50", "p95"):
        latency, better = (each.predicted.latency_s[name] for each in (alone, both))
        assert latency.extrapolated and not better.extrapolated
        assert latency.low < better.value < latency.high
        assert better.high - better.low < latency.high - latency.low
    assert UNTOLD in alone.notes and UNTOLD not in both.notes
    assert any("requests in the mean step, 32 and more recorded" in each for each in alone.notes)


@pytest.mark.slow
def test_advice_holds_what_its_replay_holds():
    (recording,) = (Recording.open(each) for each in SHIPPED.glob("demo-l-tp1-seqs64-maj*"))
    replayed = asked(recording, policy={"n": 1}, rate_per_s=20.0).predicted.latency_s["mean"]
    answer = Advisor.fit([recording]).recommend(Budget(rate_per_s=20.0, min_accuracy=0.6))
    found = answer.system_optimal.estimates["latency_s"]
    assert answer.system_optimal.policy.n == 1 and found.extrapolated
    for ours, theirs in zip(
        (found.low, found.value, found.high),
        (replayed.low, replayed.value, replayed.high),
        strict=True,
    ):
        assert ours == pytest.approx(theirs, rel=0.1)
