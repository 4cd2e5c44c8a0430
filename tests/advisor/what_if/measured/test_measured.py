"""Measured times of a GPU against the prior: said in a line, or in an import."""

import dataclasses
import re

import numpy as np
import pytest

from advisor.evidence.live.servers import replayable
from advisor.replay.limits import limits_of
from advisor.replay.replay import Replicas
from advisor.step_time.prior.drafting import VerifyStep
from advisor.step_time.prior.recalibration import PriorTimes, Recalibration
from advisor.step_time.prior.tables import read_prior
from advisor.what_if import predict as predicting
from advisor.what_if.measured import factors
from advisor.what_if.measured.factors import PricedEngine
from advisor.what_if.measured.points import imported_point, said_points
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from benchmarks.made.foreign_files import aiperf, guidellm, vllm_bench
from tests.advisor.step_time.prior.kinds_files import HEADS, layer, matrix, model
from tests.advisor.step_time.prior.prior_files import TINY
from tests.advisor.synthetic import GREEDY, NGRAM, VOTE16, engine_of, record
from tests.advisor.watched import deployed
from traces.errors import UsageError
from traces.foreign.requests.importer import import_requests
from traces.recording.reader import Recording
from traces.schema.engine import Speculative
from traces.schema.tts.policy import AS_SENT
from traces.summary.run import summarise

pytestmark = pytest.mark.usefixtures("prior")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("cpu") / "cpu", engine_of(), VOTE16, problems=12)


MLP = (matrix("mlp.up_proj", 512, 1024), matrix("mlp.down_proj", 1024, 512))
WINDOWS = dataclasses.replace(  # half of the layers have a window: blocks of two kinds
    model(
        layer(2, after=MLP),
        layer(2, dataclasses.replace(HEADS, kind="sliding_attention", window=64), after=MLP),
    ),
    num_experts=None,
    architecture="LlamaForCausalLM",
)


def asked(recording, others=(), *, engine=None, facts=TINY, **changes):
    run = replayable(recording)[0]
    wanted = {"enforce_eager": True, "max_num_seqs": 64, "max_num_batched_tokens": 2048}
    question = Question(
        engine=dataclasses.replace(run.engine, **wanted | (engine or {})),
        policy=run.policy or AS_SENT,
        gpu="test_gpu",
        model_facts=dataclasses.replace(facts, name=run.engine.model),
        **changes,
    )
    return predict(recording, run, question, others)


def tpot(found):
    return found.predicted.tpot_s["mean"]


def said(found):
    (note,) = [note for note in found.notes if note.startswith("recalibrated by")]
    return note


@pytest.mark.slow
def test_a_line_of_what_was_measured_moves_the_prior(recorded):
    prior = asked(recorded, concurrency=1)
    (engine,) = prior.manifest.engines.values()
    (was,) = times_of(recorded, engine, ["itl=1ms@4:64+200"])
    point = f"itl={was * 1.5e3:.4f}ms@4:64+200"
    found = asked(recorded, concurrency=1, measured=(point,))
    assert tpot(found).low < tpot(found).value < tpot(found).high
    assert 1.3 * tpot(prior).value < tpot(found).value < 1.6 * tpot(prior).value
    assert said(found).startswith(f"recalibrated by {point} (itl {was * 1.5e3:.2f} ms measured, ")
    assert f"{was * 1e3:.2f} by the prior, " in said(found)
    assert any("one load does not tell kernels and host apart" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize("scheduling", [False, True])
def test_two_loads_bring_back_an_engine_whose_factors_are_known(recorded, monkeypatch, scheduling):
    """A made GPU with 1.15 times the kernels and 1.5 times the host's part."""
    monkeypatch.setattr(factors, "NOISE", 0.003)  # what is measured here has none
    prior = asked(recorded, engine={"async_scheduling": scheduling})
    (engine,) = prior.manifest.engines.values()
    read = said_points(["itl=1ms@1:64+100", "itl=1ms@64:3000+300"], recorded)
    times = prior_times(recorded)
    plain = PricedEngine.of(times, engine)
    real = [dataclasses.replace(p, seconds=plain.seconds(p, 1.15, 1.5)) for p in read]
    fitted = factors.fit_points(times, engine, real)
    if not scheduling:  # a part that kernels hide cannot be told from the times
        assert fitted.found.step == pytest.approx(1.15, abs=0.07)
        assert fitted.found.host == pytest.approx(1.5, abs=0.12)
    np.testing.assert_allclose(fitted.after, [p.seconds for p in real], rtol=0.01)
    # A third load that was not learned from comes out too, and the prior alone is far off.
    (other,) = said_points(["itl=1ms@16:1000+300"], recorded)
    learned = fitted.found.step, fitted.found.host
    truth, ours, alone = (
        plain.seconds(other, *each) for each in ((1.15, 1.5), learned, (1.0, 1.0))
    )
    assert ours == pytest.approx(truth, rel=0.03)
    assert alone < 0.9 * truth


def test_what_was_measured_has_the_cache_that_is_replayed(recorded):
    """Layers with windows take fewer blocks than the whole context has."""
    wanted = {"num_gpu_blocks": 80}
    found = asked(recorded, engine=wanted, facts=WINDOWS)
    (engine,) = found.manifest.engines.values()
    (point,) = said_points(["itl=1ms@16:300+600"], recorded)
    times = dataclasses.replace(prior_times(recorded), facts=WINDOWS)
    limits = PricedEngine.of(times, engine).limits(point.workload)
    assert limits == limits_of(engine, WINDOWS, point.workload)
    assert limits.several_kinds
    assert limits.num_blocks != engine.num_gpu_blocks - 1


def test_the_model_that_is_asked_about_counts_its_own_work(recorded):
    """FLOPs and the kept manifest are those of the config that was given, not of the recorded."""
    (engine,) = recorded.manifest.engines.values()
    found, twice = (
        asked(recorded, facts=dataclasses.replace(TINY, active_parameters=parameters))
        for parameters in (9_000_000, 18_000_000)
    )
    assert twice.predicted.flops_per_problem.value > 1.5 * found.predicted.flops_per_problem.value
    assert twice.manifest.models[engine.model].active_parameters == 18_000_000
    assert found.replayed.flops_per_problem.value == twice.replayed.flops_per_problem.value


def factors_of(found):
    """Factors of kernels and of the host that a note tells."""
    return [float(each) for each in re.findall(r"x(\d\.\d\d)", said(found))]


def itl_of(found):
    (row,) = [each for each in found.compared if (each.name, each.part) == ("ITL", "mean")]
    return row.predicted_s


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ran", "engine", "note"),
    [
        ({}, {"data_parallel_size": 2}, "is the load of 2 data-parallel ranks together"),
        ({"speculative": NGRAM}, {}, "measured with drafts that give "),
    ],
)
def test_what_a_replay_predicts_leaves_the_prior_as_it_is(tmp_path, ran, engine, note):
    """A load that the replay itself predicts is not split, nor run without drafts."""
    recording = record(tmp_path / "run", engine_of(**ran), GREEDY, concurrency=16)
    prior = asked(recording, engine=engine)
    tpots = tpot(prior).value, itl_of(prior)
    for what, seconds in zip(("tpot", "itl"), tpots, strict=True):
        point = f"{what}={seconds * 1e3:.5f}ms@16"
        found = asked(recording, engine=engine, measured=(point,))
        assert factors_of(found) == pytest.approx([1.0, 1.0], abs=0.03)
        assert any(note in each for each in found.notes)


@pytest.mark.slow
def test_what_is_measured_of_several_servers_is_the_load_of_one(tmp_path):
    recording = record(tmp_path / "run", engine_of(), GREEDY, concurrency=16)
    point = f"itl={itl_of(asked(recording)) * 1e3:.5f}ms@16"
    found = asked(recording, replicas=Replicas(count=2), measured=(point,))
    assert factors_of(found) == pytest.approx([1.0, 1.0], abs=0.03)
    assert "what was measured is the load of one server of the 2" in found.notes


SERVERS = {"mode": "server", "other": (("urls", "http://a http://b"),)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "asked_for", "whose"),
    [
        (2, 2, ["one server of the 2"]),
        (4, 4, ["2 data-parallel ranks together", "one server of the 2"]),
        (4, 2, ["2 data-parallel ranks together"]),
        (3, 3, ["all 3 replicas together"]),
    ],
)
def test_servers_that_took_problems_in_turn_are_no_ranks_of_one(tmp_path, ranks, asked_for, whose):
    """As `attach URL URL --workload` keeps them: an engine with the ranks of both."""
    together = {2: 1, 4: 2, 3: 3}[ranks]
    one = record(tmp_path / "one", engine_of(data_parallel_size=together), GREEDY, concurrency=16)
    point = f"itl={itl_of(asked(one)) * 1e3:.5f}ms@16"
    servers = engine_of(data_parallel_size=ranks, **SERVERS)
    recording = record(tmp_path / "both", servers, GREEDY, concurrency=16)
    found = asked(recording, engine={"data_parallel_size": asked_for}, measured=(point,))
    assert factors_of(found) == pytest.approx([1.0, 1.0], abs=0.03)
    start = "what was measured is the load of "
    assert [n.removeprefix(start) for n in found.notes if n.startswith(start)] == whose


@pytest.mark.slow
@pytest.mark.parametrize(
    ("named", "whose"),
    [("url", "one server of the 2"), ("engine", "2 data-parallel ranks together")],
)
def test_of_servers_that_were_watched_it_is_the_load_of_one_and_of_ranks_that_of_all(
    tmp_path, named, whose
):
    base = record(tmp_path / "base", engine_of(), GREEDY, concurrency=16)
    (run,) = summarise(base)
    truth = predict(base, run, Question(engine=run.engine, policy=run.policy, rate_per_s=20.0))
    seen = deployed([truth, truth], tmp_path, named=named)
    found = asked(seen, measured=("itl=2ms@16:64+200",))
    assert f"what was measured is the load of {whose}" in found.notes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("was", "asked_for", "forms"),
    [
        ({"kv_cache_dtype": "auto"}, {"kv_cache_dtype": "bfloat16"}, None),
        ({"kv_cache_dtype": "bfloat16"}, {"kv_cache_dtype": None}, None),
        ({}, {"kv_cache_dtype": "fp8"}, None),
        ({"dtype": None}, {"quantization": "fp8", "kv_cache_dtype": "fp8"}, None),
        ({"kv_cache_dtype": "auto"}, {"kv_cache_dtype": "fp8"},
         "kv_cache_dtype bfloat16 and the steps are those of fp8"),
        ({}, {"quantization": "fp8"}, "quantization none and the steps are those of fp8"),
        ({"kv_cache_dtype": "fp8"}, {"kv_cache_dtype": "auto"},
         "kv_cache_dtype fp8 and the steps are those of bfloat16"),
    ],
)  # fmt: skip
def test_a_form_that_is_not_known_of_the_samples_is_not_said(tmp_path, was, asked_for, forms):
    recording = record(tmp_path / "run", engine_of(**was), GREEDY, problems=4)
    found = asked(recording, engine=asked_for)
    told = [note for note in found.notes if "were recorded with" in note]
    note = f"the samples were recorded with {forms}: such a server may answer otherwise"
    assert told == ([] if forms is None else [note])


@pytest.mark.parametrize("scheduling", [False, True])
def test_drafting_is_of_the_kernels(recorded, scheduling):
    times = prior_times(recorded)
    engine = engine_of(
        model=recorded_model(recorded), async_scheduling=scheduling, enforce_eager=True,
        speculative=Speculative(method="eagle", num_speculative_tokens=3), gpu="NVIDIA Test 1",
    )  # fmt: skip
    (point,) = said_points(["tpot=1ms@4:64+200"], recorded)
    point = point.drafted(VerifyStep(computed=4.0, kept=2.5))
    assert point.workload.verify_steps.tolist() == [80] * 16  # of 199 tokens
    once = PricedEngine.of(times, engine)
    alone = dataclasses.replace(engine, speculative=None)
    assert once.seconds(point) > 1.05 * PricedEngine.of(times, alone).seconds(point)
    twice = Recalibration(
        families={}, step=2.0, host=1.0, sigma=0.1, checked=frozenset(), recordings=()
    )
    again = PricedEngine.of(dataclasses.replace(times, found=twice), engine)
    assert again.seconds(point) == pytest.approx(once.seconds(point, kernels=2.0), rel=1e-6)


@pytest.mark.slow
def test_drafts_that_no_recording_tells_of_are_refused(recorded, monkeypatch):
    (engine,) = recorded.manifest.engines.values()
    wanted = dataclasses.replace(engine, speculative=NGRAM)
    question = Question(engine=wanted, policy=VOTE16, gpu="test_gpu", measured=("itl=1ms@4",))
    with pytest.raises(UsageError, match="does not say how many tokens of a draft are kept"):
        predicting._measured(prior_times(recorded), question, recorded, (), (Replicas(), ()), ())


def times_of(recorded, engine, points):
    """Seconds of points by the prior as it comes."""
    priced = PricedEngine.of(prior_times(recorded), engine)
    return [priced.seconds(point) for point in said_points(points, recorded)]


def prior_times(recorded):
    facts = dataclasses.replace(TINY, name=recorded_model(recorded))
    return PriorTimes(tables=read_prior("test_gpu"), facts=facts, found=None)


def recorded_model(recorded):
    (engine,) = recorded.manifest.engines.values()
    return engine.model


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (("itl=12ms",), "is not understood. Write itl=12.3ms@32"),
        (("itl=12@4",), "needs a unit, one of s, ms, us"),
        (("ttft=12ms@4",), "ttft does not tell how long a step takes"),
        (("itl=-2ms@4",), "a time must be above 0 and finite"),
        (("itl=1e999ms@4",), "a time must be above 0 and finite"),
        (("itl=0ms@4",), "a time must be above 0"),
        (("itl=2ms@0",), "requests in flight are from 1 to 8,192"),
        (("itl=2ms@1.5",), "is not understood"),
        (("itl=2ms@4:10+1",), "outputs of one token have no time between tokens"),
        (("itl=2ms@4:0+9",), "tokens are from 1 to"),
        (("itl=2ms@4", "itl=3ms@4"), "itl=2ms@4 and --measured itl=3ms@4: two times of one load"),
        (("itl=2ms@4:64+9", "itl=3ms@04:064+9"), "two times of one load. Give one"),
        (("itl=40s@4",), "itl 40.0 s is "),
        (("itl=1us@4",), "Check the time, the model and the GPU"),
        (("itl=4ms@2:64+200", "itl=1.8ms@64:64+200"),
         "itl=4ms@2:64+200 and itl=1.8ms@64:64+200 contradict one another"),
        (("itl=2ms@4:64+200", "tpot=2.4ms@4:64+200"),
         "2 ms and 2.4 ms were measured of what the prior takes for one load"),
        (("itl=2ms@4:64+200", "itl=2.4ms@4:65+200"), "takes for one load"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(recorded, points, message):
    with pytest.raises(UsageError) as error:
        asked(recorded, measured=points)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("write", [vllm_bench, aiperf, guidellm])
def test_an_import_that_is_named_corrects_the_prior(recorded, tmp_path, write):
    """Requests as the prior has them, 1.3 times as slow, come back from the file of a client."""
    load = asked(recorded, rate_per_s=400.0)
    samples = load.tables["samples"].filter(load.tables["samples"]["sample_index"] == 0)
    begun = samples["arrival"].min()
    sent = sorted(
        (
            (a - begun) / 1e9 * 1.3, p, o, 1.3 * (f - a) / 1e9, 1.3 * (e - a) / 1e9,
        )
        for a, p, o, f, e in samples.select(
            "arrival", "prompt_tokens", "output_tokens", "first_token", "end"
        ).iter_rows()
        if o > 1
    )  # fmt: skip
    path = tmp_path / "client.json"
    write(path, sent)
    import_requests(path, tmp_path / "import")
    imported = Recording.open(tmp_path / "import")
    point = imported_point(
        imported, [engine.model for engine in imported.manifest.engines.values()]
    )
    assert point.what == "tpot"
    each = [(e - f) / (o - 1) for _, _, o, f, e in sent]
    assert point.seconds == pytest.approx(np.mean(each), rel=1e-3)
    model = next(iter(imported.manifest.engines.values())).model
    found = asked(recorded, [imported], engine={"model": recorded_model(recorded)})
    prior = asked(recorded)
    if model in ("imported", recorded_model(recorded)):
        assert "import (tpot" in said(found)
        assert tpot(found).value != tpot(prior).value
    else:
        assert tpot(found).value == tpot(prior).value
        told = [note for note in found.notes if "teaches no step times" in note]
        assert told == [
            f"import teaches no step times: it is of {model}, not of {recorded_model(recorded)}"
        ]


@pytest.mark.slow
def test_an_import_says_why_it_teaches_nothing(recorded, tmp_path):
    vllm_bench(tmp_path / "client.json", [(0.0, 700, 1, 0.05, 0.05)])
    import_requests(tmp_path / "client.json", tmp_path / "import")
    imported = Recording.open(tmp_path / "import")
    run = summarise(recorded)[0]
    plain = predict(recorded, run, Question(engine=run.engine, policy=run.policy), [imported])
    assert (
        "import teaches no step times: it has no steps. With --gpu its requests correct the prior"
        in plain.notes
    )


@pytest.mark.slow
def test_what_was_measured_beside_cases_says_both_and_checks_its_own_size_alone(recorded):
    times = prior_times(recorded)
    cases = Recalibration(
        families={"gemm": 1.2}, step=1.0, host=1.0, sigma=0.02, checked=frozenset(),
        recordings=("cases",), cases=3,
    )  # fmt: skip
    times = dataclasses.replace(times, found=cases)
    (engine,) = asked(recorded, concurrency=1).manifest.engines.values()
    (was,) = times_of(recorded, engine, ["itl=1ms@4:64+200"])
    point = f"itl={was * 1.5e3:.4f}ms@4:64+200"
    question = Question(engine=engine, policy=VOTE16, gpu="test_gpu", measured=(point,))
    fitted, told = predicting._measured(times, question, recorded, (), (Replicas(), ()), ())
    assert told == []
    assert fitted.told[0] == (
        "kernels recalibrated by 3 cases of vllm bench forward (cases): gemm x1.20. With these "
        "factors they are 2 % off on average (root mean square)"
    )
    assert fitted.told[1].startswith(f"recalibrated by {point}")
    assert fitted.found.checked == {times.shape(engine)}
    assert fitted.found.families == {"gemm": 1.2}
    assert fitted.found.recordings == question.measured
