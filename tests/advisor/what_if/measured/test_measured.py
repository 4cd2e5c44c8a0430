"""Measured times of a GPU against the prior: said in a line, or in an import."""

import dataclasses
import re

import numpy as np
import pytest

from advisor.evidence.live.servers import replayable
from advisor.replay.limits import limits_of
from advisor.replay.replay import Replicas, replay
from advisor.step_time.cost import scaled_cost
from advisor.step_time.prior.drafting import VerifyStep
from advisor.step_time.prior.recalibration import (
    AGAIN,
    FADES,
    MeasuredLoads,
    PriorTimes,
    Recalibration,
    StepLoad,
    cost_of,
)
from advisor.step_time.prior.tables import read_prior
from advisor.what_if import predict as predicting
from advisor.what_if.measured.correction import PricedEngine, corrected, seconds_of
from advisor.what_if.measured.points import imported_point, said_points
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from benchmarks.made.foreign_files import aiperf, guidellm, vllm_bench
from tests.advisor.asking import predicted
from tests.advisor.step_time.prior.kinds_files import HEADS, layer, matrix, model
from tests.advisor.step_time.prior.prior_files import TINY
from tests.advisor.synthetic import GREEDY, NGRAM, VOTE16, engine_of, record
from tests.advisor.watched import deployed
from traces.errors import UsageError
from traces.foreign.requests.importer import import_requests
from traces.recording.reader import Recording
from traces.schema.engine import Speculative
from traces.schema.tts.policy import AS_SENT
from traces.statistics import Z95

pytestmark = pytest.mark.usefixtures("prior")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("cpu") / "cpu", engine_of(), VOTE16, problems=12)


FULL = {"concurrency": 16, "problems": 64}  # with so many that the last few are no matter
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
    assert 1.2 * tpot(prior).value < tpot(found).value < 1.5 * tpot(prior).value
    assert said(found).startswith(f"recalibrated by {point} (itl {was * 1.5e3:.2f} ms measured, ")
    assert f"{was * 1e3:.2f} by the prior, " in said(found)
    assert "a third as much where a step has 8 times the requests" in said(found)


@pytest.mark.parametrize("scheduling", [False, True])
def test_two_loads_correct_one_between_them(recorded, scheduling):
    """A made GPU that takes 1.15 times as long with 2 requests and 1.5 times with 8."""
    prior = asked(recorded, engine={"async_scheduling": scheduling})
    (engine,), times = prior.manifest.engines.values(), prior_times(recorded)
    read = said_points(["itl=1ms@2:64+100", "itl=1ms@8:64+100", "itl=1ms@4:64+100"], recorded)
    usual = times_of(recorded, engine, read)
    real = [
        dataclasses.replace(point, seconds=was * factor)
        for point, was, factor in zip(read, usual, (1.15, 1.5, 1.3), strict=True)
    ]
    found = corrected(times, engine, real[:2])
    np.testing.assert_allclose(found.after, [p.seconds for p in real[:2]], rtol=0.02)
    steps = dataclasses.replace(times, measured=found.measured).times(engine, 0)
    priced = PricedEngine(times=times, engine=engine)
    between = steps.at_load(lambda cost: priced.run(read[2], cost))
    (ours,) = times_of(recorded, engine, read[2:], between.cost)
    assert ours == pytest.approx(real[2].seconds, rel=0.05)
    assert ours > 1.2 * usual[2]


SPREAD = np.array([0.08, 0.0])


def at(requests, log=0.0, context=512.0):
    return StepLoad(requests, context), log


def measured_at(*points, spread=SPREAD):
    loads, logs = zip(*points, strict=True)
    return MeasuredLoads(loads=loads, logs=np.array(logs), spreads=np.array([spread] * len(logs)))


@pytest.mark.parametrize("log", [0.0, 0.05, -0.2, 0.7])
def test_a_load_that_was_measured_is_predicted_as_it_was(log):
    """And as surely as it is measured again, however far the prior was off."""
    value, sigma = measured_at(at(32, log)).correction(at(32)[0], SPREAD)
    assert value == pytest.approx(log, abs=0.012)
    assert AGAIN < sigma < 1.5 * AGAIN


def test_what_was_measured_says_less_of_a_load_the_farther_it_is():
    found = measured_at(at(8, 0.1))
    loads = [at(8)[0], at(16)[0], at(64)[0], at(512)[0]]
    values, sigmas = zip(*(found.correction(load, SPREAD) for load in loads), strict=True)
    assert sorted(values, reverse=True) == list(values) and values[-1] > 0
    assert sorted(sigmas) == list(sigmas)
    assert values[2] == pytest.approx(values[0] * np.exp(-1), rel=1e-6)  # 8 times the requests
    longer = found.correction(at(8, context=512.0 * 2 ** FADES[1])[0], SPREAD)
    assert longer[0] == pytest.approx(values[2])


def test_a_measurement_as_predicted_narrows_and_one_far_off_widens_other_loads():
    far = at(256)[0]
    spread = [measured_at(at(8, log)).correction(far, SPREAD)[1] for log in (0.0, 0.08, 0.4)]
    assert spread[0] < SPREAD[0] < spread[2] and spread[0] < spread[1] < spread[2]
    assert spread[2] > 1.6 * SPREAD[0]


def test_an_engine_that_is_far_off_is_so_at_its_other_loads_too():
    """A kernel that the tables lack slows all loads: what surprises most does not fade."""
    far = at(256)[0]
    usual, surprising = (measured_at(at(8, log)).correction(far, SPREAD) for log in (0.1, 0.8))
    assert usual[0] < 0.25 * 0.1
    assert 0.5 * 0.8 < surprising[0] < 0.8
    assert surprising[0] + Z95 * surprising[1] > 0.8  # that it is the same there is not ruled out


def test_a_measured_load_runs_at_once_whatever_limit_is_asked_about(recorded):
    """32 in flight beside max_num_seqs=8 is no time of eight."""
    (engine,) = asked(recorded).manifest.engines.values()
    few = dataclasses.replace(engine, max_num_seqs=8)
    one, other = (times_of(recorded, each, ["itl=1ms@32:64+100"])[0] for each in (engine, few))
    assert one == pytest.approx(other, rel=0.01)
    assert one > 1.1 * times_of(recorded, engine, ["itl=1ms@8:64+100"])[0]


def test_what_kernels_hide_is_corrected_where_the_host_decides_alone():
    """A load of kernels says nothing of the host's part, and one of the host nothing of kernels."""
    host = np.array([0.08, 0.4])
    of_kernels = measured_at(at(8, 0.1))
    assert of_kernels.correction(at(8)[0], host)[0] < 0.1
    assert of_kernels.correction(at(8)[0], host)[1] > 0.3
    assert measured_at(at(8, 0.1), spread=host).correction(at(8)[0], SPREAD)[0] < 0.02


def test_what_was_measured_has_the_cache_that_is_replayed(recorded):
    """Layers with windows take fewer blocks than the whole context has."""
    wanted = {"num_gpu_blocks": 80}
    found = asked(recorded, engine=wanted, facts=WINDOWS)
    (engine,) = found.manifest.engines.values()
    (point,) = said_points(["itl=1ms@16:300+600"], recorded)
    times = dataclasses.replace(prior_times(recorded), facts=WINDOWS)
    limits = limits_of(engine, WINDOWS, point.workload)
    assert limits.several_kinds and limits.num_blocks != engine.num_gpu_blocks - 1
    cost = cost_of(times.prior(engine), engine)
    run = PricedEngine(times=times, engine=engine).run(point, cost)
    wanted = replay(point.workload, cost, limits, concurrency=16)
    assert (run.makespan_s, run.preemptions) == (wanted.makespan_s, wanted.preemptions)


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


def off_of(found):
    """Return measured over predicted time, as a note tells both."""
    told = re.search(r"([\d.]+) ms measured, ([\d.]+) by the prior", said(found))
    return float(told[1]) / float(told[2])


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
        assert off_of(found) == pytest.approx(1.0, abs=0.03)
        assert any(note in each for each in found.notes)


@pytest.mark.slow
def test_what_is_measured_of_several_servers_is_the_load_of_one(tmp_path):
    recording = record(tmp_path / "run", engine_of(), GREEDY, **FULL)
    point = f"itl={itl_of(asked(recording)) * 1e3:.5f}ms@16"
    found = asked(recording, replicas=Replicas(count=2), measured=(point,))
    assert off_of(found) == pytest.approx(1.0, abs=0.03)
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
    one = record(tmp_path / "one", engine_of(data_parallel_size=together), GREEDY, **FULL)
    point = f"itl={itl_of(asked(one)) * 1e3:.5f}ms@16"
    servers = engine_of(data_parallel_size=ranks, **SERVERS)
    recording = record(tmp_path / "both", servers, GREEDY, **FULL)
    found = asked(recording, engine={"data_parallel_size": asked_for}, measured=(point,))
    assert off_of(found) == pytest.approx(1.0, abs=0.03)
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
    truth = predicted(base, rate_per_s=20.0)
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
def test_drafting_is_in_what_a_client_measures(recorded, scheduling):
    times = prior_times(recorded)
    engine = engine_of(
        model=recorded_model(recorded), async_scheduling=scheduling, enforce_eager=True,
        speculative=Speculative(method="eagle", num_speculative_tokens=3), gpu="NVIDIA Test 1",
    )  # fmt: skip
    (point,) = said_points(["tpot=1ms@4:64+200"], recorded)
    point = point.drafted(VerifyStep(computed=4.0, kept=2.5))
    assert point.workload.verify_steps.tolist() == [80] * 16  # of 199 tokens
    (once,) = times_of(recorded, engine, [point])
    alone = dataclasses.replace(engine, speculative=None)
    assert once > 1.05 * times_of(recorded, alone, [point])[0]
    cost = scaled_cost(times.times(engine, 0).cost, 2.0)
    assert times_of(recorded, engine, [point], cost) == pytest.approx([2 * once])


@pytest.mark.slow
def test_drafts_that_no_recording_tells_of_are_refused(recorded, monkeypatch):
    (engine,) = recorded.manifest.engines.values()
    wanted = dataclasses.replace(engine, speculative=NGRAM)
    question = Question(engine=wanted, policy=VOTE16, gpu="test_gpu", measured=("itl=1ms@4",))
    with pytest.raises(UsageError, match="does not say how many tokens of a draft are kept"):
        predicting._measured(prior_times(recorded), question, recorded, (), (Replicas(), ()), ())


def times_of(recorded, engine, points, cost=None):
    """Seconds of points by the prior as it comes, or by another cost."""
    times = prior_times(recorded)
    priced, cost = PricedEngine(times=times, engine=engine), cost or times.times(engine, 0).cost
    read = [said_points([p], recorded)[0] if isinstance(p, str) else p for p in points]
    return [seconds_of(point, priced.run(point, cost)) for point in read]


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
        (("ttft=12ms@4",), "ttft does not say how long a step takes"),
        (("itl=-2ms@4",), "a time must be above 0 and finite"),
        (("itl=1e999ms@4",), "a time must be above 0 and finite"),
        (("itl=0ms@4",), "a time must be above 0"),
        (("itl=2ms@0",), "requests in flight are from 1 to 8,192"),
        (("itl=2ms@1.5",), "is not understood"),
        (("itl=2ms@4:10+1",), "outputs of one token have no time between tokens"),
        (("itl=2ms@4:0+9",), "tokens are from 1 to"),
        (("itl=2ms@4", "itl=3ms@4"), "itl=2ms@4 and --measured itl=3ms@4: two times of one load"),
        (("itl=2ms@4:64+9", "itl=3ms@04:064+9"), "two times of one load. Give one"),
        (
            ("itl=0.2ms@32:64+9", "itl=0.4ms@4:64+9"),
            "contradict one another: 32 requests in flight cannot take less a token than 4",
        ),
        (("itl=40s@4",), "itl 40.0 s is "),
        (("itl=1us@4",), "Check the time, the model and the GPU"),
        (("itl=4ms@4:64+200",), "itl 4.00 ms is "),
        (("itl=1ms@4:64+200", "tpot=1.2ms@4:64+200"),
         "1 ms and 1.2 ms were measured of what the prior takes for one load"),
        (("itl=1ms@4:64+200", "itl=1.2ms@4:65+200"), "takes for one load"),
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
    one = record(tmp_path / "one", engine_of(), GREEDY, problems=48)
    load = asked(one, rate_per_s=400.0)
    samples = load.tables["samples"]
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
        whose = f"it is of {model}, and {recorded_model(recorded)} is asked about"
        assert told == [f"import teaches no step times: {whose}"]


@pytest.mark.slow
def test_an_import_says_why_it_teaches_nothing(recorded, tmp_path):
    vllm_bench(tmp_path / "client.json", [(0.0, 700, 1, 0.05, 0.05)])
    import_requests(tmp_path / "client.json", tmp_path / "import")
    imported = Recording.open(tmp_path / "import")
    plain = predicted(recorded, others=[imported])
    assert (
        "import teaches no step times: it has no steps. With --gpu its requests correct the prior"
        in plain.notes
    )


@pytest.mark.slow
def test_what_was_measured_beside_cases_says_both(recorded):
    times = prior_times(recorded)
    cases = Recalibration(
        families={"gemm": 1.2}, step=1.0, sigma=0.02, checked=frozenset(),
        recordings=("cases",), cases=3,
    )  # fmt: skip
    times = dataclasses.replace(times, found=cases)
    (engine,) = asked(recorded, concurrency=1).manifest.engines.values()
    (was,) = times_of(recorded, engine, ["itl=1ms@4:64+200"])
    point = f"itl={was * 1.5e3:.4f}ms@4:64+200"
    question = Question(engine=engine, policy=VOTE16, gpu="test_gpu", measured=(point,))
    fitted, told = predicting._measured(times, question, recorded, (), (Replicas(), ()), ())
    assert told == []
    assert fitted.told[0].startswith(f"recalibrated by {point}")
    assert fitted.found is cases and fitted.measured.loads[0].requests == pytest.approx(4, rel=0.1)
    told = fitted.notes(engine)
    assert any("gemm x1.20. With these factors they are 2 % off" in note for note in told)
    assert not any("no run of this GPU has checked it" in note for note in told)
