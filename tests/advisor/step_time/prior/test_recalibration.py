"""The prior in a replay: recalibrated by recordings of the GPU, and what it says of itself."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from advisor.replay.recording import write_recording
from advisor.step_time.cost import predicted_steps
from advisor.step_time.host.spread import spread_of
from advisor.step_time.prior import tables as prior_tables
from advisor.step_time.prior.prior import Prior, prior_of
from advisor.step_time.prior.recalibration import cost_of, recalibrate
from advisor.step_time.prior.tables import read_prior
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from tests.advisor.step_time.prior.prior_files import DEVICE, TINY, edited, write_prior
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.recording.manifest import ClockReading
from traces.recording.reader import Recording
from traces.recording.tables import KERNELS
from traces.summary.run import summarise

pytestmark = pytest.mark.slow

ENGINE = {"enforce_eager": True}


@pytest.fixture(autouse=True)
def tables(prior):
    return read_prior("test_gpu")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("cpu") / "cpu", engine_of(), VOTE16, problems=12)


def asked(recording, others=(), *, engine=None, **changes):
    run = summarise(recording)[0]
    question = Question(
        engine=dataclasses.replace(run.engine, **ENGINE | (engine or {})),
        policy=run.policy,
        gpu="test_gpu",
        **{"model_facts": TINY} | changes,
    )
    return predict(recording, run, question, others)


def measured(prediction, folder, factor, *, kernels=None, source="measured"):
    """A recording of the GPU whose steps take `factor` times as long as the prior has them."""
    tables = dict(prediction.tables)
    tables["steps"] = tables["steps"].with_columns(
        *((pl.col(name) * factor).round().cast(pl.Int64) for name in ("wall_ns", "interval_ns")),
        source=pl.lit(source),
    )
    if kernels is not None:
        tables["steps"] = tables["steps"].with_columns(profiled=pl.col("step") % 10 == 0)
        tables["kernels"] = kernels(tables["steps"].filter("profiled"))
    (engine,) = prediction.manifest.engines.values()
    manifest = dataclasses.replace(
        prediction.manifest,
        clock_start=ClockReading(monotonic_ns=0, unix_ns=prediction.manifest.clock_start.unix_ns),
        models={engine.model: dataclasses.replace(TINY, name=engine.model)},
    )
    write_recording(folder, manifest, tables)
    return Recording.open(folder)


def mean_latency(prediction):
    return prediction.predicted.latency_s["mean"]


def test_a_gpu_that_no_run_has_checked_has_the_interval_of_published_runs_and_says_so(recorded):
    found = asked(recorded)
    latency = mean_latency(found)
    sigma = spread_of("test_gpu", TINY, next(iter(found.manifest.engines.values()))).kernels
    assert latency.high / latency.value > np.exp(1.6 * sigma)
    added = mean_latency(asked(recorded, engine={"async_scheduling": False}))
    assert added.high / added.value > np.exp(3 * sigma)  # the host is most of a tiny model's step
    assert latency.low / latency.value < np.exp(-1.5 * sigma)
    assert not latency.extrapolated
    told = " ".join(found.notes)
    assert "prior" in told
    assert "beyond its kernels a step takes" in told
    assert "left out: unequal contexts" in told
    assert "no run of this GPU has checked it" in told
    (engine,) = found.manifest.engines.values()
    assert engine.gpu == DEVICE


def test_only_what_lies_outside_the_tables_is_marked(recorded, monkeypatch):
    inside = asked(recorded)
    assert not any("marked *" in note for note in inside.notes)
    whole = Prior.domain.func  # contexts up to 15 tokens alone
    short = property(lambda self: dataclasses.replace(whole(self), context=15))
    monkeypatch.setattr(Prior, "domain", short)
    found = asked(recorded)
    assert mean_latency(found).extrapolated
    assert "outside what the tables measured: batches or contexts are larger (marked *)" in (
        found.notes
    )


def test_steps_of_more_tokens_than_any_all_reduce_that_was_measured_are_marked(
    recorded, tmp_path, monkeypatch
):
    two = {"tensor_parallel_size": 2}
    assert not mean_latency(asked(recorded, engine=two)).extrapolated
    smallest = pl.col("message_size") == pl.col("message_size").min()
    folder = write_prior(tmp_path / "systems")
    edited(folder, "custom_allreduce", lambda rows: rows.filter(smallest))
    monkeypatch.setattr(prior_tables, "tables_folder", lambda: folder)
    assert mean_latency(asked(recorded, engine=two)).extrapolated


def test_the_version_of_the_tables_is_the_engines_and_others_are_told_of(
    recorded, tmp_path, monkeypatch
):
    folder = write_prior(tmp_path / "systems")
    comm = folder / "data/test_gpu/comm/vllm"
    slow = pl.read_parquet(comm / "0.9.0/custom_allreduce_perf.parquet")
    slow = slow.with_columns(latency=pl.col("latency") * 5)
    (comm / "0.7.0").mkdir()
    slow.write_parquet(comm / "0.7.0/custom_allreduce_perf.parquet")
    monkeypatch.setattr(prior_tables, "tables_folder", lambda: folder)
    found = {}
    for version in (None, "0.32.0", "0.9.1rc1", "0.8.5", "0.1"):
        engine = {"tensor_parallel_size": 2, "vllm_version": version}
        found[version] = asked(recorded, engine=engine)
    new, old = found[None], found["0.8.5"]
    assert mean_latency(old).value > 1.3 * mean_latency(new).value
    for version, older in (("0.32.0", False), ("0.9.1rc1", False), ("0.1", True)):
        notes = " ".join(found[version].notes)
        assert ("test_gpu, vLLM 0.9.0, all-reduces of 0.7.0)" in notes) == older
    assert any("tables of vLLM 0.9.0, and those of vLLM 0.7.0 would take" in n for n in new.notes)
    assert any("test_gpu, vLLM 0.9.0, all-reduces of 0.7.0)" in n for n in old.notes)
    one = asked(recorded, engine={"vllm_version": "0.8.5"})
    assert not any("all-reduces" in note for note in one.notes)


def test_samples_within_top_p_take_an_older_engine_longer(recorded, tmp_path):
    policy = dataclasses.replace(VOTE16, top_p=0.9)
    within = record(tmp_path / "within", engine_of(), policy, problems=12)
    facts = dataclasses.replace(TINY, vocab_size=150_000)
    for version, sorts in (("0.12.0", True), ("0.32.0", False)):
        engine = {"vllm_version": version}
        plain, sorting = (
            asked(each, engine=engine, model_facts=facts) for each in (recorded, within)
        )
        longer = mean_latency(sorting).value / mean_latency(plain).value
        assert longer > 1.1 if sorts else longer == pytest.approx(1, abs=0.02)
        assert ("sorting the logits" in " ".join(sorting.notes)) == sorts


def test_two_gpus_are_two_devices(recorded):
    one, two = asked(recorded), asked(recorded, engine={"tensor_parallel_size": 2})
    shares = [p.predicted.device_s_per_problem.value / mean_latency(p).value for p in (one, two)]
    assert shares[1] == pytest.approx(2 * shares[0], rel=0.02)


def test_a_recording_of_the_gpu_recalibrates_its_steps(recorded, tmp_path):
    prior = asked(recorded)
    run = measured(prior, tmp_path / "gpu", 1.6)
    found = asked(recorded, [run])
    latency = mean_latency(found)
    assert latency.value == pytest.approx(1.6 * mean_latency(prior).value, rel=0.02)
    assert latency.low < latency.value < latency.high
    # One run: what the prior was wrong by there, it may be wrong by elsewhere.
    assert latency.high / latency.value > 1.5
    told = " ".join(found.notes)
    assert "recalibrated by gpu: no kernels were profiled: one scale, steps x1.60" in told
    assert "the rest is prior" in told


def test_a_size_that_no_run_had_is_recalibrated_with_a_wider_interval(recorded, tmp_path):
    run = measured(asked(recorded), tmp_path / "gpu", 1.6)
    own = mean_latency(asked(recorded, [run]))
    two = {"tensor_parallel_size": 2}
    found, prior = asked(recorded, [run], engine=two), asked(recorded, engine=two)
    latency = mean_latency(found)
    assert latency.value == pytest.approx(1.6 * mean_latency(prior).value, rel=0.02)
    assert latency.high / latency.value > own.high / own.value
    assert not latency.extrapolated
    assert any("no run of this GPU had tiny at tensor_parallel_size 2" in n for n in found.notes)


def test_a_second_configuration_narrows_the_interval(recorded, tmp_path):
    runs = [
        measured(asked(recorded, concurrency=c), tmp_path / f"gpu{c}", factor)
        for c, factor in ((1, 1.55), (4, 1.65))
    ]
    one, two = asked(recorded, runs[:1]), asked(recorded, runs)
    assert mean_latency(two).runs == 2
    widths = [mean_latency(p).high / mean_latency(p).low for p in (one, two)]
    assert widths[1] < 0.7 * widths[0]


def test_profiled_kernels_give_a_scale_to_each_family(recorded, tables, tmp_path):
    prior = asked(recorded)
    (engine,) = prior.manifest.engines.values()
    took = {"gemm": 2.0, "attention": 1.0, "norm": 0.5}

    def kernels(steps):
        whole = steps["wall_ns"].sum()
        rows = [
            {"engine": engine.key(), "rank": 0, "step": step, "family": family, "name": family,
             "count": 1, "time": int(whole / len(steps) * share)}
            for step in steps["step"]
            for family, share in took.items()
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=KERNELS)

    run = measured(prior, tmp_path / "gpu", 3.0, kernels=kernels)
    found = recalibrate(tables, [run])
    profiled = run.steps.filter("profiled")
    whole, share = profiled["wall_ns"].sum() / 1e9, {**took, "other": took["norm"]}
    once = dataclasses.replace(prior_of(tables, TINY, engine), host=0.0)  # kernels alone
    by_prior = predicted_steps(cost_of(once, engine), profiled).sum()
    assert set(found.families) == {"gemm", "attention", "other"}
    for family, scale in found.families.items():
        twice = predicted_steps(cost_of(once.scaled({family: 2.0}), engine), profiled).sum()
        assert scale == pytest.approx(share[family] * whole / (twice - by_prior), rel=1e-3)
    # Families are scaled first, then all that is left by one factor.
    again = asked(recorded, [Recording.open(tmp_path / "gpu")])
    assert mean_latency(again).value == pytest.approx(3.0 * mean_latency(prior).value, rel=0.1)
    assert any("gemm x" in note and "steps x" in note for note in again.notes)


@pytest.mark.parametrize("why", ["replayed", "another GPU"])
def test_what_is_no_run_of_the_gpu_does_not_recalibrate(recorded, tables, tmp_path, why):
    prior = asked(recorded)
    source = "replayed" if why == "replayed" else "measured"
    run = measured(prior, tmp_path / "gpu", 2.0, source=source)
    if why == "another GPU":
        tables = dataclasses.replace(tables, device="NVIDIA Test 2")
    assert recalibrate(tables, [run]) is None


def test_a_recording_of_other_problems_recalibrates_too(recorded, tmp_path):
    other = record(tmp_path / "other", engine_of(), VOTE16, problems=8, workload="differences")
    run = measured(asked(other), tmp_path / "gpu", 1.4)
    found = asked(recorded, [run])
    assert any("recalibrated by gpu" in note for note in found.notes)


def test_an_engine_that_does_not_tell_its_limits_is_named(recorded):
    with pytest.raises(Exception, match=r"--gpu: set engine\.max_num_seqs"):
        asked(recorded, engine={"max_num_seqs": None})
