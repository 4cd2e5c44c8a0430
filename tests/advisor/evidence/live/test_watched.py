"""What is not seen of a server's steps and traffic, inferred, against runs whose truth is known."""

import dataclasses

import polars as pl
import pytest

from advisor.advice.advisor import Advisor
from advisor.evidence.gather import gather
from advisor.evidence.live.front_end import with_prompt_context
from advisor.what_if.predict import predict
from advisor.what_if.question import Question, changed
from advisor.what_if.suggest import suggest
from tests.advisor.synthetic import VOTE16, engine_of, record
from tests.advisor.watched import front_end, watched
from traces.errors import UsageError
from traces.schema.advice import Budget
from traces.schema.tts.policy import AS_SENT
from traces.summary.run import summarise

pytestmark = pytest.mark.slow

VOTE4 = dataclasses.replace(VOTE16, n=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of 300 problems of 4 samples, as recorded in the engine's own process."""
    folder = tmp_path_factory.mktemp("truth") / "base"
    return record(folder, engine_of(), VOTE4, problems=300, concurrency=8)


def at_rate(base, rate, *changes):
    """The same problems arriving at random: what would really happen."""
    (run,) = summarise(base)
    engine, policy, _ = changed(run, changes)
    return predict(base, run, Question(engine=engine, policy=policy, rate_per_s=rate))


@pytest.fixture(scope="module")
def truth(base):
    return at_rate(base, 60.0)


def test_chunks_and_context_of_prompts_are_inferred(base):
    tables = at_rate(
        base, 60.0, "engine.max_num_batched_tokens=48", "engine.max_num_seqs=32"
    ).tables
    steps = tables["steps"]
    assert ((steps["prefill_tokens"] > 0).sum()) > (tables["samples"]["first_token"].n_unique())
    seen = with_prompt_context(front_end(steps, tables["samples"], "e"), 48)
    for name, most in (("prefill_tokens", 1e-9), ("prefill_kv_tokens", 0.05),
                       ("prefill_query_context", 0.1)):  # fmt: skip
        assert seen[name].sum() == pytest.approx(steps[name].sum(), rel=most), name
    off = (seen["prefill_tokens"] - steps["prefill_tokens"]).abs().sum()
    assert off < 0.3 * steps["prefill_tokens"].sum()
    assert seen["prefill_requests"].null_count() == 0


def test_steps_that_tell_their_context_stay(base):
    steps = base.frame("steps")
    assert with_prompt_context(steps, 512).equals(steps)


def test_measured_chunks_get_the_context_before_them():
    rows = {
        "prefill_requests": [1, 1, 0], "prefill_tokens": [100, 50, 0], "running": [1, 1, 1],
        "decode_requests": [0, 0, 1], "decode_tokens": [0, 0, 1], "finished": [0, 0, 0],
        "cached_prompt_tokens": [0, 0, 0], "interval_ns": [None, 5, 5],
        "prefill_kv_tokens": [None] * 3, "prefill_query_context": [None] * 3,
        "source": ["measured"] * 3,
    }  # fmt: skip
    schema = dict.fromkeys(rows, pl.Int64) | {"source": pl.Utf8}
    seen = with_prompt_context(pl.DataFrame(rows, schema=schema), 100)
    assert seen["prefill_kv_tokens"].to_list() == [100, 150, 0]
    assert seen["prefill_query_context"].to_list() == [5050, 50 * 100 + 1275, 0]


def predicted(recording, *changes, **load):
    (run,) = summarise(recording)
    engine, policy, _ = changed(run, changes)
    return predict(recording, run, Question(engine=engine, policy=policy, **load))


def relative(found, wanted, name, which=None):
    values = [getattr(each, name) for each in (found, wanted)]
    values = [each if which is None else each[which] for each in values]
    return values[0].value / values[1].value - 1


@pytest.mark.parametrize("steps", [True, "passes"])
@pytest.mark.parametrize("change", ["engine.max_num_seqs=8", "engine.max_num_seqs=64"])
def test_spans_and_steps_predict_other_limits(base, truth, tmp_path, change, steps):
    recording = watched(truth, tmp_path / "seen", steps=steps)
    found = predicted(recording, change)
    wanted = at_rate(base, 60.0, change).predicted
    assert found.recorded.policy is None and found.predicted.policy == AS_SENT
    assert found.predicted.accuracy is None
    for name, which, most in (
        ("latency_s", "mean", 0.05), ("latency_s", "p95", 0.08), ("ttft_s", "p50", 0.12),
        ("throughput_tokens_per_s", None, 0.05), ("device_s_per_problem", None, 0.05),
    ):  # fmt: skip
        assert abs(relative(found.predicted, wanted, name, which)) < most, (name, which)
    assert found.predicted.tokens_per_problem.value == pytest.approx(
        truth.predicted.tokens_per_problem.value
    )


def test_metrics_alone_predict_within_a_wide_interval(base, truth, tmp_path):
    recording = watched(truth, tmp_path / "seen", spans=False, steps=False)
    found = predicted(recording, "engine.max_num_seqs=8")
    wanted = at_rate(base, 60.0, "engine.max_num_seqs=8").predicted
    for name, which in (("ttft_s", "mean"), ("throughput_tokens_per_s", None)):
        estimate = getattr(found.predicted, name)
        estimate = estimate if which is None else estimate[which]
        real = getattr(wanted, name)
        real = real if which is None else real[which]
        assert estimate.low <= real.value <= estimate.high, (name, estimate, real)
    assert found.recorded.latency_s["mean"] is not None and found.recorded.latency_s["p95"] is None
    assert any("/metrics" in note for note in found.notes)


def test_spans_of_a_part_do_not_stand_for_all(truth, tmp_path):
    keep = truth.tables["problems"]["problem_id"][::2].to_list()
    half = dataclasses.replace(
        truth,
        tables={
            name: frame.filter(pl.col("problem_id").is_in(keep)) if name != "steps" else frame
            for name, frame in truth.tables.items()
        },
    )
    recording = watched(half, tmp_path / "half", polled=truth)
    evidence = gather([recording], judged=False)
    assert all(run.drawn for run in evidence.runs)
    assert "600 of 1,200 requests" in evidence.lost[0]


def test_a_model_whose_facts_are_not_here_has_a_law_of_its_own(truth, tmp_path):
    blind = dataclasses.replace(truth, manifest=dataclasses.replace(truth.manifest, models={}))
    recording = watched(blind, tmp_path / "seen")
    found = predicted(recording, "engine.max_num_seqs=8")
    known = predicted(watched(truth, tmp_path / "known"), "engine.max_num_seqs=8")
    assert abs(relative(found.predicted, known.predicted, "latency_s", "mean")) < 0.05
    assert any("not known here" in note for note in found.notes)


def test_the_policy_of_others_cannot_be_changed(truth, tmp_path):
    recording = watched(truth, tmp_path / "seen")
    with pytest.raises(UsageError, match="replayed as it was sent"):
        predicted(recording, "policy.n=2")


def test_a_queue_behind_max_num_seqs_is_answered_with_more(base, tmp_path):
    slow = at_rate(base, 120.0, "engine.max_num_seqs=8")
    recording = watched(slow, tmp_path / "seen", period_s=0.1)
    found = suggest(recording)
    assert found.arguments == ("--set", "engine.max_num_seqs=16")
    before, after = (found.prediction.replayed, found.prediction.predicted)
    assert after.latency_s["mean"].value < before.latency_s["mean"].value


def test_the_watch_of_nothing_says_so(truth, tmp_path):
    recording = watched(truth, tmp_path / "seen", spans=False, steps=False, metrics=False)
    assert suggest(recording) == "nothing was watched"


def advice(recordings, **budget):
    return Advisor.fit(recordings).recommend(Budget(**budget))


@pytest.mark.parametrize("steps", [True, "passes"])
def test_advice_for_the_traffic_of_others_has_no_accuracy(truth, tmp_path, steps):
    recording = watched(truth, tmp_path / "seen", steps=steps)
    slow = advice([recording], max_device_s=1.0, optimise="latency")
    pick = slow.system_optimal
    assert pick.policy == AS_SENT
    assert pick.estimates["accuracy"] is None
    latency, measured = pick.estimates["latency_s"], summarise(recording)[0].latency_s["mean"]
    assert latency.low <= measured.value <= latency.high
    assert pick.engine.max_num_seqs == 32  # fewer would queue
    assert not any("workload" in line for line in slow.reasons)
    assert any("ttscope attach" in line for line in slow.measure_next)


def test_advice_at_another_rate_says_what_keeps_up(truth, tmp_path):
    recording = watched(truth, tmp_path / "seen")
    calm = advice([recording], rate_per_s=20.0, optimise="cost")
    assert calm.system_optimal is not None
    assert advice([recording], rate_per_s=2_000.0).system_optimal is None


def test_accuracy_cannot_be_asked_of_what_is_not_judged(truth, tmp_path):
    recording = watched(truth, tmp_path / "seen")
    for budget in ({"min_accuracy": 0.5}, {"optimise": "accuracy"}):
        with pytest.raises(UsageError, match="not judged"):
            advice([recording], **budget)


def test_watched_traffic_beside_ones_own_runs_teaches_steps_alone(base, truth, tmp_path):
    recording = watched(truth, tmp_path / "seen")
    evidence = gather([base, recording])
    assert {run.policy for run in evidence.runs} == {VOTE4}
    assert {table.engine.mode for table in evidence.steps} == {"in_process", "server"}


def test_metrics_alone_are_advised_on(truth, tmp_path):
    recording = watched(truth, tmp_path / "seen", spans=False, steps=False)
    pick = advice([recording], optimise="latency").system_optimal
    assert pick.policy == AS_SENT and pick.estimates["latency_s"].value > 0


def test_the_replay_says_what_the_front_end_took(truth, tmp_path):
    """Spans with a queue tell it; nothing is said of it where they have none."""
    seen = watched(truth, tmp_path / "live")
    (run,) = summarise(seen)
    engine, policy, _ = changed(run, ["engine.max_num_seqs=8"])
    asked = Question(engine=engine, policy=policy)

    def said():
        (note,) = [each for each in predict(seen, run, asked).notes if "front end takes" in each]
        return note

    assert "as the spans" not in said()
    arrival = seen.samples["arrival"]
    took = pl.Series([30_000_000] * (len(arrival) - 1) + [90_000_000])
    samples = seen.samples.with_columns(queued=arrival + took)
    vars(seen)["samples"] = samples
    assert "30.0 ms of a request's time to first token at the median" in said()
    assert f"as the spans of {len(arrival):,} requests say" in said()
