import dataclasses
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from advisor.evidence.gather import gather
from advisor.replay import recording as replayed_tables
from advisor.replay.replay import Replicas
from advisor.search.space import explore
from advisor.step_time.power.law import power_laws
from advisor.step_time.prior import tables as prior_tables
from advisor.what_if.predict import predict
from advisor.what_if.question import Question, changed
from tests.advisor.step_time.operators.operator_tables import (
    LAYERS,
    META,
    attention_us,
    dense_us,
    write_tables,
)
from tests.advisor.step_time.prior import prior_files
from tests.advisor.synthetic import FACTS, GREEDY, VOTE16, engine_of, record
from traces.errors import RecordingError, TablesError, UsageError
from traces.recording.reader import Held, Recording
from traces.recording.tables import TABLES
from traces.schema.tts.policy import Policy
from traces.summary.comparison import assumed, compare
from traces.summary.metrics import METRICS, estimate_of
from traces.summary.run import summarise
from tui.text.recordings.show import difference_lines, spread_lines
from tui.text.replay import replay_lines
from tui.verbs.demo import SHIPPED

pytestmark = pytest.mark.slow

RUNS = {}  # what each recording sums up to, with the recording


def asked(recording, others=(), **changes):
    if id(recording) not in RUNS:
        RUNS[id(recording)] = recording, summarise(recording)[0]
    run = RUNS[id(recording)][1]
    engine, policy = dict(changes.pop("engine", {})), dict(changes.pop("policy", {}))
    question = Question(
        engine=dataclasses.replace(run.engine, **engine),
        policy=dataclasses.replace(run.policy, **policy),
        **changes,
    )
    return predict(recording, run, question, others)


@pytest.fixture(scope="module")
def votes(recordings):
    return recordings[1]


def test_a_run_is_replayed_as_it_was_recorded(votes):
    found = asked(votes)
    recorded, replayed = found.recorded, found.replayed
    assert found.predicted == replayed
    assert replayed.steps == recorded.steps
    for name in ("mean", "p50", "p95"):
        ours, theirs = replayed.latency_s[name], recorded.latency_s[name]
        assert ours.value == pytest.approx(theirs.value, rel=0.03)
        assert ours.low < theirs.value < ours.high
    assert replayed.tokens_per_problem.value == recorded.tokens_per_problem.value
    assert not any("so far off" in note for note in found.notes)


def test_a_kept_replay_has_the_numbers_that_were_printed(votes, tmp_path):
    """Not those of the draw that its tables hold."""
    found = asked(votes, policy={"n": 5}, engine={"max_num_seqs": 8})
    found.write(tmp_path / "kept")
    kept = Recording.open(tmp_path / "kept")
    (run,) = summarise(kept)
    for metric in METRICS:
        assert estimate_of(run, metric.tag) == estimate_of(found.predicted, metric.tag), metric.tag
    assert run.policies == found.predicted.policies and run.steps == found.predicted.steps
    assert run.latency_s["mean"].low is not None
    assert "The numbers are those that it printed" in run.notes[0]
    (priced,) = summarise(kept, 3600.0)
    assert priced.cost_usd_per_problem.value == run.device_s_per_problem.value
    provenance = kept.manifest.provenance["replayed"]
    for told, message in ((7, "is damaged"), (None, None)):
        damaged = {"replayed": provenance | {"printed": told}}
        dataclasses.replace(kept.manifest, provenance=damaged).write(kept.path)
        if message is None:
            (older,) = summarise(Recording.open(kept.path))
            assert "The numbers are of one draw of it" in older.notes[0]
        else:
            with pytest.raises(RecordingError, match=message):
                summarise(Recording.open(kept.path))


def test_a_kept_replay_is_compared_as_it_was_printed(votes, tmp_path):
    """Its rows are one draw of 5 of 16 samples, and the interval holds those of a fresh run."""
    found = asked(votes, policy={"n": 5}, engine={"max_num_seqs": 8})
    found.write(tmp_path / "kept")
    (recorded,), (kept,) = summarise(votes), summarise(Recording.open(tmp_path / "kept"))
    compared = compare(recorded, kept)
    changes = {each.metric.tag: each for each in compared.changes}
    for tag in ("latency_s.mean", "latency_s.p95", "tokens_per_problem"):
        printed, was = (estimate_of(each, tag) for each in (kept, recorded))
        ours = changes[tag].difference
        assert ours.value == pytest.approx(printed.value - was.value), tag
        assert ours.high - ours.low > 0.4 * (printed.high - printed.low) > 0
    assert compared.run_to_run.printed == (kept.recording,)
    (alone,), both = (compare(recorded, kept).run_to_run.assumed, compare(kept, kept).run_to_run)
    assert alone == pytest.approx(assumed([recorded])[0]) and both.assumed == ()
    for spread, told in ((compared.run_to_run, "has the spread that it"), (both, "what each of")):
        assert told in " ".join(spread_lines(spread, 200))
    assert compare(recorded, recorded).run_to_run.printed == ()
    for change in compare(kept, kept).changes:
        if change.metric.tag == "tokens_per_problem":  # equal lengths differ by no draw
            assert change.difference.low == change.difference.high == 0 and change.all_equal


def kept_of(found, folder):
    found.write(folder)
    (run,) = summarise(Recording.open(folder))
    return run


def relative_width(first, second, tag):
    """The width of a number's relative difference in logs, and whether it is told apart."""
    (change,) = (each for each in compare(first, second).changes if each.metric.tag == tag)
    low, high = change.relative.low, change.relative.high
    return float(np.log((1 + high) / (1 + low))), change.verdict != "cannot be told apart"


def test_what_two_replays_are_both_off_by_does_not_blur_their_difference(votes, tmp_path):
    """One recording, one law and the same samples, by 2 and by 8 at once."""
    narrow, wide = (
        kept_of(asked(votes, engine={"max_num_seqs": seqs}), tmp_path / str(seqs))
        for seqs in (2, 8)
    )
    apart = [dataclasses.replace(run, errors=()) for run in (narrow, wide)]
    for tag in ("latency_s.mean", "throughput_tokens_per_s", "device_s_per_problem"):
        paired, unpaired = relative_width(narrow, wide, tag), relative_width(*apart, tag)
        assert paired[0] < 0.7 * unpaired[0] and paired[1], tag
    spread = compare(narrow, wide).run_to_run
    assert spread.shared == ("the law of step times", "the samples", DAY)
    assert "but for what both are off by together" in " ".join(spread_lines(spread, 200))
    (recorded,) = summarise(votes)
    assert compare(recorded, wide).run_to_run.shared == (DAY,)
    known, alone = (relative_width(recorded, run, "latency_s.mean")[0] for run in (wide, apart[1]))
    assert known < 0.8 * alone
    # Other samples, or another law, are other errors.
    fewer = kept_of(asked(votes, engine={"max_num_seqs": 8}, policy={"n": 4}), tmp_path / "fewer")
    assert compare(fewer, wide).run_to_run.shared == ("the law of step times", DAY)
    assert compare(recorded, recorded).run_to_run.shared == ()


DAY = "the machine's state in the recording"


def test_a_run_and_its_replay_are_compared_with_tied_votes_shared(tmp_path):
    """The run gives a tie to the first sample: .948 beside .915 is no change of the accuracy."""
    run = Recording.open(next(SHIPPED.glob("demo-s-tp1-seqs64-maj*")))
    found = asked(run, engine={"max_num_seqs": 16})
    (recorded,), replay = summarise(run), kept_of(found, tmp_path / "kept")
    assert recorded.accuracy.value > replay.accuracy.value + 0.02
    for first, second in ((recorded, replay), (replay, recorded)):
        compared = compare(first, second)
        (change,) = (each for each in compared.changes if each.metric.tag == "accuracy")
        assert change.difference.value == 0 and change.all_equal
        assert compared.tied == sum(0 < share < 1 for share in replay.right.values()) > 0
        assert change.problems == recorded.problems
        assert "votes are tied" in " ".join(" ".join(difference_lines(compared)).split())
    # Of fewer samples the difference is that of what is printed.
    fewer = kept_of(asked(run, policy={"n": 2}), tmp_path / "fewer")
    compared = compare(recorded, fewer)
    (change,) = (each for each in compared.changes if each.metric.tag == "accuracy")
    assert compared.tied == 0 and not change.all_equal
    assert change.difference.value == pytest.approx(
        fewer.accuracy.value - recorded.accuracy.value, abs=1e-6
    )


def test_a_replay_that_lies_far_off_what_was_recorded_says_so(votes):
    run = summarise(votes)[0]
    mean = run.latency_s["mean"]
    slow = {**run.latency_s, "mean": dataclasses.replace(mean, value=2 * mean.value)}
    question = Question(engine=run.engine, policy=run.policy, replicas=Replicas(count=2))
    found = predict(votes, dataclasses.replace(run, latency_s=slow), question)
    assert any("Do not rely on a change from a replay" in note for note in found.notes)
    lines = [" ".join(line.split()) for line in replay_lines(found, question, width=400)]
    (place,) = (i for i, line in enumerate(lines) if "Do not rely on a change" in line)
    assert lines[place].startswith("warning the run as it was")
    assert place < next(i for i, line in enumerate(lines) if line.startswith("latency mean"))
    narrow = [*replay_lines(found, question, width=59)]
    assert max(map(len, narrow)) <= 59
    assert [line.split()[:3] for line in narrow if " change" in line and "predicted" in line] == [
        ["predicted", "interval", "change"]
    ]


def test_a_model_of_experts_and_windows_is_foretold_with_a_note(tmp_path):
    engine = engine_of("mixed")
    few = [record(tmp_path / str(c), engine, VOTE16, concurrency=c) for c in (1, 8)]
    found = asked(few[1], [few[0]], concurrency=3, engine={"max_num_seqs": 16})
    real = summarise(
        record(
            tmp_path / "same" / "8",  # the name seeds the samples
            dataclasses.replace(engine, max_num_seqs=16),
            VOTE16,
            concurrency=3,
            noise=0.0,
        )
    )[0]
    for name in ("mean", "p50", "p95"):
        told, truth = found.predicted.latency_s[name], real.latency_s[name].value
        assert told.value == pytest.approx(truth, rel=0.02)
        assert told.low < truth < told.high
    notes = " ".join(found.notes)
    assert "mixed has sliding windows, experts" in notes
    assert "Runs of small models with such layers on a CPU have checked the replay" in notes
    assert "the KV cache has blocks of several kinds" in notes
    assert "inferred" not in notes
    flops = found.predicted.flops_per_problem
    assert flops.low < real.flops_per_problem.value < flops.high
    whole = dataclasses.replace(FACTS["mixed"], attention=None, layers=None)  # no windows
    prompt, made = (real.rows[name].to_numpy() for name in ("prompt_tokens", "tokens"))
    assert flops.value < np.mean(16 * whole.forward_flops(0, prompt + made / 16))


@pytest.mark.parametrize(
    "changes",
    [{"engine": {"max_num_seqs": 8}}, {"concurrency": 1}, {"concurrency": 12}],
    ids=["fewer slots", "alone", "crowded"],
)
def test_a_changed_run_is_foretold(votes, tmp_path, changes):
    found = asked(votes, **changes)
    run = summarise(votes)[0]
    engine = dataclasses.replace(run.engine, **changes.get("engine", {}))
    truth = record(
        tmp_path / votes.name,  # the name seeds the samples, so that they are the recorded ones
        engine,
        run.policy,
        concurrency=changes.get("concurrency", 4),
        noise=0.0,
    )
    real = summarise(truth)[0]
    for name in ("mean", "p50", "p95"):
        expected = real.latency_s[name].value
        assert found.predicted.latency_s[name].value == pytest.approx(expected, rel=0.06)
        assert found.predicted.latency_s[name].low < expected < found.predicted.latency_s[name].high
    assert found.predicted.steps == real.steps


def test_a_stop_rule_cancels_and_saves(votes):
    rule = (("in_flight", 4.0), ("threshold", 0.9))
    found = asked(votes, policy={"method": "adaptive", "rule": rule})
    assert found.predicted.tokens_per_problem.value < found.recorded.tokens_per_problem.value
    samples = found.tables["samples"]
    assert samples["cancelled_by"].drop_nulls().unique().to_list() == ["decision"]
    assert samples.filter(samples["cancelled_by"].is_not_null())["answer"].null_count() > 0


def test_fewer_samples_are_as_show_says(votes):
    """Which of the samples the replay draws changes nothing that is known of all choices."""
    told = {(each.method, each.n): each for each in summarise(votes)[0].policies}
    drawn = [asked(votes, policy={"n": 4}, seed=seed) for seed in (0, 1)]
    notes, found = drawn[0].notes, [each.predicted for each in drawn]
    assert any("4 recorded samples of each problem drawn 4 times" in note for note in notes)
    assert found[0].latency_s["mean"].value < drawn[0].replayed.latency_s["mean"].value
    for each in found:
        tokens = each.tokens_per_problem
        assert tokens.value == pytest.approx(
            told["majority", 4].tokens_per_problem.value, rel=1e-12
        )
        assert tokens.low < tokens.value < tokens.high
        assert each.accuracy.value == pytest.approx(told["majority", 4].accuracy.value)
        for one in each.policies:
            assert one.n <= 4
            assert one.accuracy.value == pytest.approx(told[one.method, one.n].accuracy.value)
    first, second = (each.flops_per_problem.value for each in found)
    assert first == pytest.approx(second, rel=2e-4)
    part = first / summarise(votes)[0].flops_per_problem.value
    assert 4 / 16 < part < 5 / 16  # the prompt is computed once


def test_more_problems_in_flight_than_there_are_is_said(votes):
    count = len(Recording.open(votes.path).frame("problems"))
    for concurrency in (count, count + 29):
        notes = asked(votes, concurrency=concurrency).notes
        told = [note for note in notes if "are never in flight" in note]
        assert len(told) == (concurrency > count)
    assert told[0].startswith(
        f"{count + 29} problems are never in flight: the recording has {count}"
    )


def test_only_what_depends_on_times_is_marked(votes):
    found = asked(votes, concurrency=40, engine={"max_num_seqs": 512}).predicted
    assert found.latency_s["mean"].extrapolated
    assert found.throughput_tokens_per_s.extrapolated
    for each in (found.tokens_per_problem, found.accuracy, found.flops_per_problem):
        assert not each.extrapolated
    policy = {"method": "first_finish", "rule": (("first", 4.0),)}
    stopped = asked(votes, concurrency=40, engine={"max_num_seqs": 512}, policy=policy).predicted
    assert stopped.latency_s["mean"].extrapolated
    assert stopped.tokens_per_problem.extrapolated
    assert stopped.accuracy.extrapolated


def test_agreement_of_more_than_half_decides_as_the_vote(votes):
    rule = (("agree", 9.0), ("in_flight", 16.0))
    found = asked(votes, policy={"method": "agreement", "rule": rule}, concurrency=12).predicted
    told = {each.n: each for each in summarise(votes)[0].policies if each.method == "majority"}
    assert found.accuracy.value == pytest.approx(told[16].accuracy.value)
    assert not found.accuracy.extrapolated


def test_arrivals_that_outrun_the_engine_are_told(votes):
    def overrun(rate, **changes):
        notes = asked(votes, rate_per_s=rate, **changes).notes
        return next((note for note in notes if note.startswith("cannot keep up")), None)

    note = overrun(1000.0)
    capacity = float(re.search(r"1,000 problems/s arrive and some (\S+) can be served", note)[1])
    assert overrun(0.9 * capacity) is None
    assert overrun(1.1 * capacity) is not None
    two = Replicas(count=2, routing="least-outstanding")
    assert overrun(1.1 * capacity, replicas=two) is None
    assert overrun(2.5 * capacity, replicas=two) is not None


def test_a_load_near_what_can_be_served_is_told(votes):
    """Waits go on growing there, in the run that is replayed as in a server's hours."""
    capacity = float(
        re.search(r"some ([\d.]+) can be", " ".join(asked(votes, rate_per_s=50).notes))[1]
    )
    for load, told in ((0.5, False), (0.95, True)):
        notes = asked(votes, rate_per_s=load * capacity).notes
        assert any("what can be served arrives" in each for each in notes) == told


def test_data_parallel_ranks_are_replicas_that_share_an_open_load(votes):
    one = asked(votes, rate_per_s=20.0)
    two = asked(votes, rate_per_s=20.0, replicas=Replicas(count=2, routing="least-outstanding"))
    assert two.predicted.latency_s["p95"].value < one.predicted.latency_s["p95"].value
    whole, *each = two.manifest.engines
    assert sorted(two.tables["steps"]["engine"].unique()) == sorted(each)
    assert set(two.tables["problems"]["engine"]) == {whole}
    ranks = asked(votes, rate_per_s=20.0, engine={"data_parallel_size": 2})
    for tag in ("latency_s.p95", "device_s_per_problem", "throughput_tokens_per_s"):
        assert estimate_of(ranks.predicted, tag) == estimate_of(two.predicted, tag)
    four = asked(
        votes, rate_per_s=20.0, engine={"data_parallel_size": 2}, replicas=Replicas(count=2)
    )
    assert len(four.manifest.engines) == 1 + 4


def test_the_interval_holds_other_arrivals(votes):
    found = asked(votes, rate_per_s=2.0).predicted
    tags = ("throughput_tokens_per_s", "latency_s.p95", "device_s_per_problem")
    inside = dict.fromkeys(tags, 0)
    for seed in range(20, 30):
        one = asked(votes, rate_per_s=2.0, arrivals_sent=True, seed=seed).predicted
        narrow = one.throughput_tokens_per_s
        assert narrow.high - narrow.low < 0.01 * narrow.value  # it is idle most of the time
        for tag in tags:
            whole = estimate_of(found, tag)
            inside[tag] += whole.low <= estimate_of(one, tag).value <= whole.high
    assert min(inside.values()) >= 7, inside
    whole = found.throughput_tokens_per_s
    assert whole.high < 2.4 * whole.low


def test_the_prediction_is_a_recording_that_sums_up(votes, tmp_path):
    found = asked(votes, engine={"max_num_seqs": 8})
    found.write(tmp_path / "kept")
    kept = Recording.open(tmp_path / "kept")
    run = summarise(kept)[0]
    assert kept.manifest.provenance["replayed"]["recording"] == votes.name
    assert run.latency_s["mean"].value == pytest.approx(
        found.predicted.latency_s["mean"].value, rel=1e-6
    )
    steps, samples = kept.steps, kept.samples
    assert set(steps["source"]) == {"replayed"}
    assert steps["decode_tokens"].sum() == (samples["output_tokens"] - 1).sum()
    assert (
        steps["prefill_tokens"].sum() == (samples["prompt_tokens"] - samples["cached_tokens"]).sum()
    )
    busy = steps["wall_ns"].sum() / 1e9
    assert busy == pytest.approx(run.device_s_per_problem.value * run.problems, rel=1e-3)
    with pytest.raises(Exception, match="already holds a recording"):
        found.write(tmp_path / "kept")


def test_who_waited_for_whom(votes):
    found = asked(votes, engine={"max_num_seqs": 8})
    assert found.waits
    longest = found.waits[0]
    assert longest.queued_s == max(each.queued_s for each in found.waits) > 0
    parts = longest.before_s + longest.queued_s + longest.prefill_s + longest.decode_s
    assert parts == pytest.approx(longest.latency_s, rel=1e-9)
    # Eight slots of which others held some: they cannot have held more than eight.
    assert 0 < sum(seconds for _, seconds in longest.behind) <= 8 * longest.queued_s * (1 + 1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": {"n": 17}}, "16 samples per problem were recorded"),
        ({"policy": {"temperature": 0.2}}, "no samples with policy.temperature=0.2"),
        ({"engine": {"model": "other"}}, "no samples of other were recorded"),
        (
            {"engine": {"tensor_parallel_size": 4}},
            r"never recorded with tensor_parallel_size 4 \(recorded: 1\). A few problems teach its "
            "steps: ttscope record --model small --tensor-parallel-size 4 --dtype bfloat16, then",
        ),
        (
            {"engine": {"block_size": 32, "enforce_eager": True}},
            r"with block_size 32 \(recorded: 16\), enforce_eager True \(recorded: none\). "
            "A few problems teach its steps: record such an engine, then give",
        ),
        (
            {"engine": {"dtype": "float16"}},
            r"no samples of small were recorded with dtype float16 \(recorded: bfloat16\), .* "
            "ttscope record --model small --dtype float16, then add",
        ),
        ({"engine": {"kv_cache_dtype": "fp8", "block_size": 32}},
         r"kv_cache_dtype fp8 \(recorded: none\), .* problems: record such an engine, then add"),
        ({"policy": {"method": "sequential"}}, "cannot be replayed from other samples"),
        ({"engine": {"num_gpu_blocks": 3, "max_model_len": None}}, "blocks of the cache's 2"),
        ({"engine": {"num_gpu_blocks": 63}}, "1,008 tokens .* max_model_len 1,024, .* Set 64 blo"),
        ({"engine": {"max_model_len": 40}}, "have up to .* tokens, which vLLM would cut"),
        ({"engine": {"max_num_batched_tokens": 8}}, "=8: vLLM needs a token for each .* 32, 32 in"),
        ({"engine": {"max_num_seqs": 1024}}, "max_num_batched_tokens=512: vLLM needs a token for"),
        ({"engine": {"gpu_memory_utilization": 0.5}}, "=0.5: .*. Set engine.num_gpu_blocks"),
    ],
)  # fmt: skip
def test_what_the_recordings_cannot_answer_is_refused(votes, changes, message):
    with pytest.raises(UsageError, match=message):
        asked(votes, **changes)


def test_a_recorded_engine_is_taken_as_it_is(tmp_path):
    odd = engine_of(max_num_batched_tokens=16, num_gpu_blocks=20)  # of 32 sequences, 1,024 long
    found = asked(record(tmp_path / "odd", odd, GREEDY, problems=8), concurrency=2).predicted
    assert found.problems == 8 and np.isfinite(found.latency_s["mean"].value)


def test_of_more_steps_than_a_recording_keeps_the_rest_is_kept(votes, tmp_path, monkeypatch):
    whole = asked(votes, engine={"max_num_seqs": 8})
    monkeypatch.setattr(replayed_tables, "MOST_STEPS", whole.predicted.steps - 1)
    found = asked(votes, engine={"max_num_seqs": 8})
    for name in ("latency_s", "ttft_s", "device_s_per_problem", "steps"):
        assert getattr(found.predicted, name) == getattr(whole.predicted, name)
    assert f"{whole.predicted.steps:,} steps are more than a recording keeps" in found.notes[-1]
    assert "more than a recording keeps" not in whole.notes[-1]
    found.write(tmp_path / "kept")
    kept = Recording.open(tmp_path / "kept")
    assert kept.steps.is_empty() and kept.samples.equals(whole.tables["samples"])
    latency = summarise(kept)[0].latency_s["mean"].value
    assert latency == pytest.approx(whole.predicted.latency_s["mean"].value, rel=1e-6)


def test_another_recording_teaches_another_model(votes, recordings):
    found = asked(votes, others=[recordings[4]], engine={"model": "large"})
    assert found.predicted.latency_s["mean"].value > found.replayed.latency_s["mean"].value
    assert found.predicted.accuracy.value > found.replayed.accuracy.value


def test_a_few_other_problems_teach_the_steps_of_another_size(votes, tmp_path):
    """Tensor parallelism: the recorded samples, at the step times of a short run of others."""
    engine = dataclasses.replace(summarise(votes)[0].engine, tensor_parallel_size=2)
    policy = summarise(votes)[0].policy
    few = record(tmp_path / "few", engine, policy, problems=6, workload="others")
    found = asked(votes, others=[few], engine={"tensor_parallel_size": 2})
    truth = record(tmp_path / votes.name, engine, policy, noise=0.0)
    latency = summarise(truth)[0].latency_s["mean"].value
    assert found.predicted.latency_s["mean"].value == pytest.approx(latency, rel=0.05)
    assert found.predicted.problems == found.recorded.problems  # those of the base, not the few
    with pytest.raises(UsageError, match="no samples of large were recorded"):
        other = record(tmp_path / "large", engine_of("large"), policy, workload="others")
        asked(votes, others=[other], engine={"model": "large"})


def test_a_run_that_stopped_early_has_no_samples_to_replay(tmp_path):
    policy = Policy(method="first_finish", n=4, temperature=0.8, rule=(("first", 2.0),))
    recording = record(tmp_path / "early", engine_of(), policy, problems=6)
    with pytest.raises(
        RecordingError, match="early: run as first 2/4, which stops early, .* majority"
    ):
        asked(recording)


def test_problems_that_timed_out_are_told(tmp_path):
    recording = record(tmp_path / "r", engine_of(), GREEDY, problems=40)
    late = pl.when(pl.col("problem_id") == "p3").then(True)
    rows = recording.problems.with_columns(timed_out=late)
    tables = {name: recording.frame(name) for name in TABLES} | {"problems": rows}
    found = asked(Held(recording.path, recording.manifest, tables=tables))
    assert "left out of r, greedy: of 40 problems 1 cut off by the timeout" in found.notes


def test_operator_tables_give_the_steps_of_another_gpu(votes, tmp_path):
    write_tables(tmp_path / "gpu")
    fast = asked(votes, operators=tmp_path / "gpu", engine={"enforce_eager": True})
    slow = asked(
        votes,
        operators=tmp_path / "gpu",
        engine={"enforce_eager": True},
        model_facts=dataclasses.replace(FACTS["small"], num_hidden_layers=400),
    )
    estimate = fast.predicted.latency_s["mean"]
    assert estimate.low is None
    assert estimate.high is None
    assert estimate.extrapolated  # the tables end at 8 decoding requests
    assert slow.predicted.latency_s["mean"].value > 50 * estimate.value
    assert fast.predicted.tokens_per_problem.value == fast.recorded.tokens_per_problem.value
    assert any("no interval" in note for note in fast.notes)
    step, expected = alone_on_tables(votes, tmp_path / "gpu")
    np.testing.assert_allclose(step, expected, rtol=2e-4)


def test_layers_that_contradict_one_another_are_refused_by_name(votes, tmp_path):
    folder = write_tables(tmp_path / "gpu")
    with pytest.raises(
        UsageError, match=r"--num-hidden-layers 8: the recorded model \(small\) has 4. Leave it out"
    ):
        asked(votes, operators=folder, num_hidden_layers=8)
    other = dataclasses.replace(FACTS["small"], name="other", num_hidden_layers=64)
    with pytest.raises(
        UsageError, match=r"--num-hidden-layers 32: --model-config \(other\) has 64. Leave it out"
    ):
        asked(votes, operators=folder, num_hidden_layers=32, model_facts=other)
    same = [
        asked(votes, operators=folder, model_facts=other, **given).predicted.latency_s["mean"]
        for given in ({}, {"num_hidden_layers": 64})
    ]
    assert same[0] == same[1]
    sliding = dataclasses.replace(other, attention=("sliding_attention",), sliding_window=16)
    with pytest.raises(UsageError, match="sliding attention, which is in no table"):
        asked(votes, operators=folder, model_facts=sliding)


def test_tables_of_a_known_gpu_limit_the_cache_by_its_memory(votes, tmp_path):
    folder = write_tables(tmp_path / "gpu", meta=META.replace("NVIDIA Test", "NVIDIA L4"))
    engine = {"num_gpu_blocks": None}
    facts = dataclasses.replace(FACTS["small"], total_parameters=8_000_000_000)
    found = asked(votes, operators=folder, engine=engine, model_facts=facts)
    blocks = found.predicted.engine.num_gpu_blocks
    room = 0.92 * 22.5 * 2**30 - 16e9 - 3.5 * 2**30
    assert blocks == int(room // (16 * facts.kv_bytes_per_token))
    assert any(f"num_gpu_blocks {blocks:,} by a rule" in note for note in found.notes)
    large = dataclasses.replace(facts, total_parameters=12_000_000_000)
    with pytest.raises(UsageError, match="on NVIDIA L4: on each GPU 0.92 x 24.2 GB of memory less"):
        asked(votes, operators=folder, engine=engine, model_facts=large)
    unknown = asked(votes, operators=write_tables(tmp_path / "x"), engine=engine)
    assert unknown.predicted.engine.num_gpu_blocks is None
    assert any("without limit, as the GPU's memory is not known" in n for n in unknown.notes)


def alone_on_tables(votes, folder, size=1, **changes):
    """Microseconds of decode steps of one request alone, replayed and written down as a sum."""
    alone = asked(
        votes,
        operators=folder,
        policy={"n": 1},
        concurrency=1,
        engine={"enforce_eager": True, "tensor_parallel_size": size},
        **changes,
    )
    step = alone.tables["steps"].filter(alone.tables["steps"]["decode_requests"] == 1)
    contexts, layers = step["decode_kv_tokens"].to_numpy() - 1, 4
    dense = sum(
        {"embedding": 1, "final_layernorm": 1}.get(name, (1 + (name == "layernorm")) * layers)
        * dense_us(name, 1)
        for name in LAYERS
    )
    expected = dense + 11 + 5 + layers * attention_us(0, 0, 1, contexts)
    known = contexts >= 16
    return step["wall_ns"].to_numpy()[known] / 1e3, expected[known]


def test_tables_of_tensor_parallelism_need_the_all_reduces(votes, tmp_path):
    folder = write_tables(tmp_path / "model_tp2", meta=META.replace("[1]", "[2]"))
    path = tmp_path / "all_reduce.csv"
    rows = [f"{0.005 + size * 1e-6},2,{size},all_reduce" for size in (256, 512, 1024, 2048)]
    path.write_text("\n".join(["time_stats.all_reduce.median,num_workers,size,collective", *rows]))
    step, expected = alone_on_tables(votes, folder, size=2, collectives=path)
    calls, message = 2 * 4 + 1, 2 * 256  # layers and hidden size of the recorded model
    np.testing.assert_allclose(step, expected + calls * (5 + message * 1e-3), rtol=2e-4)
    engine = {"tensor_parallel_size": 2, "enforce_eager": True}
    found = asked(votes, operators=folder, collectives=path, engine=engine)
    assert found.predicted.latency_s["mean"].low is None
    assert found.predicted.latency_s["mean"].extrapolated  # prompts' messages are larger
    (note,) = [note for note in found.notes if note.startswith("all-reduces of 2")]
    assert "all_reduce.csv: 4 sizes up to 2,048 bytes" in note and "in CUDA graphs" not in note
    graphs = asked(votes, operators=folder, collectives=path, engine={"tensor_parallel_size": 2})
    assert any("also where the engine runs in CUDA graphs" in note for note in graphs.notes)
    with pytest.raises(TablesError, match="Give their times with --collectives"):
        asked(votes, operators=folder, engine=engine)
    with pytest.raises(UsageError, match="--collectives: one GPU has none"):
        asked(votes, operators=write_tables(tmp_path / "gpu"), collectives=path)


def test_all_reduces_may_be_those_of_a_gpu_of_the_prior(votes, tmp_path, monkeypatch):
    systems = prior_files.write_prior(tmp_path / "systems", version="0.24.0")
    comm = systems / "data/test_gpu/comm/vllm"
    rows = pl.read_parquet(comm / "0.24.0/custom_allreduce_perf.parquet")
    (comm / "0.19.0").mkdir()
    slow = comm / "0.19.0/custom_allreduce_perf.parquet"
    rows.with_columns(latency=pl.col("latency") * 10).write_parquet(slow)
    monkeypatch.setattr(prior_tables, "tables_folder", lambda: systems)
    meta = META.replace("[1]", "[2]")
    old = write_tables(tmp_path / "old_tp2", meta=meta + "vllm_version: 0.19.1\n")
    new = write_tables(tmp_path / "new_tp2", meta=meta + "vllm_version: 0.30.0\n")
    calls, message = 2 * 4 + 1, 2 * 256
    for folder, path, times in (
        (new, Path("test_gpu"), 1),
        (old, Path("test_gpu"), 10),
        (new, slow, 10),
        (new, systems / "test_gpu", 1),
    ):
        step, expected = alone_on_tables(votes, folder, size=2, collectives=path)
        each = 1e6 * times * prior_files.all_reduce_s(message, graph=False)
        np.testing.assert_allclose(step, expected + calls * each, rtol=2e-3)
    found = asked(votes, operators=old, collectives=Path("test_gpu"), engine={
        "tensor_parallel_size": 2
    })  # fmt: skip
    (note,) = [note for note in found.notes if note.startswith("all-reduces of 2")]
    assert "are those of test_gpu (vLLM 0.19.0)" in note
    assert "in the tables of vLLM 0.24.0 0.0" in note and "in CUDA graphs" not in note
    with pytest.raises(UsageError, match="--collectives no_such: no such file, and no GPU"):
        asked(votes, operators=new, collectives=Path("no_such"), engine={"tensor_parallel_size": 2})


FOUR = Policy(method="majority", n=4, temperature=0.8, max_tokens=200)


@pytest.mark.parametrize("n", [4, 2])
def test_the_interval_holds_other_draws_of_the_samples(tmp_path, n):
    """The same problems recorded again have other lengths; the interval was a point."""
    fresh = [
        record(tmp_path / f"fresh{i}", engine_of(), dataclasses.replace(FOUR, n=n), problems=20)
        for i in range(8)
    ]
    tokens = [summarise(each)[0].tokens_per_problem.value for each in fresh]
    held, wide = 0, []
    for number in range(3):
        base = record(tmp_path / f"base{number}", engine_of(), FOUR, problems=20)
        found = asked(base, policy={"n": n}).predicted.tokens_per_problem
        held += sum(found.low <= value <= found.high for value in tokens)
        wide.append(found.high - found.low)
    assert held >= 20  # of 24
    assert max(wide) < 8 * 8 * np.sqrt(n / 20)  # samples vary by 8 tokens


def test_intervals_where_requests_wait_are_of_latencies_that_there_may_be(tmp_path):
    """Symmetric ends began at 0, and those of p95 below those of p50."""
    base = record(tmp_path / "r", engine_of(), FOUR, problems=40)
    change = {"max_num_seqs": 4}
    found = asked(base, engine=change, rate_per_s=25.0).predicted
    alone = asked(base, engine=change, concurrency=1).predicted
    lowest = found.tpot_s["p50"].low * (found.tokens_per_problem.low / FOUR.n - 1)
    for each in (found.latency_s, found.ttft_s):
        assert 0 < each["p50"].low <= each["p95"].low < each["p95"].value
        assert each["p50"].value < each["p50"].high <= each["p95"].high
    for which in ("mean", "p50", "p95"):
        latency, ttft = found.latency_s[which], found.ttft_s[which]
        assert latency.low > max(lowest, 0.95 * alone.latency_s[which].low)
        assert ttft.low < latency.low and ttft.high <= latency.high


def test_nothing_is_drawn_again_at_temperature_0_or_with_given_lengths(tmp_path):
    greedy = asked(record(tmp_path / "g", engine_of(), GREEDY, problems=8)).predicted
    assert greedy.tokens_per_problem.low == greedy.tokens_per_problem.high
    votes = record(tmp_path / "v", engine_of(), FOUR, problems=8)
    sent = asked(votes, arrivals_sent=True).predicted
    assert sent.tokens_per_problem.low == sent.tokens_per_problem.high
    one = record(tmp_path / "o", engine_of(), dataclasses.replace(FOUR, n=1), problems=8)
    alone = asked(one).predicted
    assert alone.tokens_per_problem.low < alone.tokens_per_problem.high
    assert alone.latency_s["mean"].low < alone.latency_s["mean"].high


def test_no_fresh_draw_is_longer_than_the_cache(tmp_path):
    """A long output of one problem has no room behind the long prompt of another."""
    engine = engine_of(max_model_len=640, num_gpu_blocks=41)
    base = record(tmp_path / "r", engine, dataclasses.replace(FOUR, n=1), problems=24)
    for name, column, lengths in (
        ("problems", "prompt_tokens", (480, 40)),
        ("samples", "prompt_tokens", (480, 40)),
        ("samples", "output_tokens", (40, 460)),
    ):
        (part,) = base.path.glob(f"{name}-*")
        rows = pl.read_parquet(part)
        even = pl.col("problem_id").str.slice(1).cast(pl.Int64) % 2 == 0
        long_or_short = pl.when(even).then(lengths[0]).otherwise(lengths[1])
        rows.with_columns(long_or_short.cast(rows.schema[column]).alias(column)).write_parquet(part)
    (base.path / "checksums.sha256").unlink()
    found = asked(Recording.open(base.path)).predicted
    tokens = found.tokens_per_problem
    assert tokens.value == pytest.approx(250)
    assert tokens.low < tokens.value < tokens.high


def test_replicas_are_kept_as_one_engine_with_all_problems(votes, tmp_path):
    found = asked(votes, replicas=Replicas(count=2, together=True))
    run, engine = found.predicted, found.predicted.engine
    assert (engine.data_parallel_size, run.problems) == (2, found.recorded.problems)
    assert run.flops_per_problem.value == pytest.approx(
        found.replayed.flops_per_problem.value, rel=0.01
    )
    each = run.latency_s["mean"].value * 2 / run.tokens_per_problem.value
    assert run.cost_per_token_device_s.value == pytest.approx(each)
    assert run.step_time["decode_s"] is not None
    found.write(tmp_path / "kept")
    kept = Recording.open(tmp_path / "kept")
    shown = summarise(kept)
    assert [each.problems for each in shown] == [run.problems]
    assert shown[0].policies and shown[0].flops_per_problem is not None
    steps = kept.steps.group_by("engine").len().rows()
    keys = {key for key, _ in steps}
    assert keys <= kept.manifest.engines.keys() and len(keys) == 2
    assert all(kept.manifest.engines[key] == engine.one_replica() for key in keys)


def test_a_tied_vote_is_kept_as_a_run_gives_it(votes, tmp_path):
    found = asked(votes, policy={"n": 2})
    problems, samples = found.tables["problems"], found.tables["samples"]
    right = []
    for name in problems["problem_id"]:
        votes_of = samples.filter(problem_id=name).sort("sample_index")
        counts = votes_of.group_by("answer", maintain_order=True).len()
        top = counts.sort("len", descending=True, maintain_order=True)["answer"][0]
        right.append(votes_of.filter(answer=top)["correct"][0])
    assert problems["correct"].to_list() == right
    found.write(tmp_path / "kept")
    (shown,) = summarise(Recording.open(tmp_path / "kept"))
    assert shown.accuracy.value == found.predicted.accuracy.value  # as printed, of all draws


def test_an_answer_that_no_vote_chose_is_not_judged(votes):
    found = asked(votes, policy={"method": "best_of_n"})
    assert found.predicted.accuracy is None
    assert found.tables["problems"]["correct"].null_count() == found.predicted.problems


def marked(recording, folder, correct, answer=None):
    """The run with `correct` of its samples, by default as an import that tells no answers."""
    tables = {name: getattr(recording, name) for name in ("problems", "samples", "steps")}
    samples = tables["samples"].sort("problem_id", "sample_index")
    right = pl.Series([correct[i % len(correct)] for i in range(len(samples))], dtype=pl.Boolean)
    answers = pl.lit(None, pl.Utf8) if answer is None else answer
    tables["samples"] = samples.with_columns(answer=answers, correct=right)
    replayed_tables.write_recording(folder, recording.manifest, tables)
    return Recording.open(folder)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    vote = dataclasses.replace(VOTE16, n=4)
    return record(tmp_path_factory.mktemp("few") / "r", engine_of(), vote, problems=5)


@pytest.mark.parametrize(
    ("correct", "share"),
    [([True, False, False, True, True], 0.6), ([True, None, None, None] + 16 * [True], None),
     ([False, None, None, None] + 16 * [False], None)],
)  # fmt: skip
def test_what_nobody_judged_is_not_wrong_where_no_answer_is_told(few, tmp_path, correct, share):
    found = asked(marked(few, tmp_path / "r", correct), policy={"n": 1})
    assert (found.predicted.accuracy is None) == (share is None)
    if share is not None:
        assert found.predicted.accuracy.value == pytest.approx(share)
    else:
        assert found.tables["problems"]["correct"].null_count() == 5


def test_a_sample_without_an_answer_is_wrong_where_others_tell_theirs(few, tmp_path):
    answer = pl.when(pl.col("sample_index") > 0).then(pl.lit("7"))
    found = asked(marked(few, tmp_path / "r", [None, True, True, True], answer), policy={"n": 1})
    assert found.predicted.accuracy.value == pytest.approx(0.75)


def test_a_kept_replay_of_marks_alone_has_their_accuracy(tmp_path):
    run = record(tmp_path / "greedy", engine_of(), GREEDY, problems=10)
    found = asked(marked(run, tmp_path / "r", [True, False, False, True, True]))
    found.write(tmp_path / "kept")
    (shown,) = summarise(Recording.open(tmp_path / "kept"))
    assert shown.accuracy.value == found.predicted.accuracy.value == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("sizes", "change", "gpus"),
    [((2, 1, 2), {"data_parallel_size": 2}, 4), ((2, 2, 4), {"data_parallel_size": 1}, 2),
     ((1, 2, 2), {"tensor_parallel_size": 2}, 4), ((1, 1, None), {"data_parallel_size": 2}, None),
     ((2, 1, 2), {"data_parallel_size": 2, "num_gpus": 3}, 3), ((2, 1, 3), {"max_num_seqs": 4}, 3)],
)  # fmt: skip
def test_replicas_have_gpus_of_their_own(sizes, change, gpus):
    tp, dp, count = sizes
    engine = engine_of(tensor_parallel_size=tp, data_parallel_size=dp, num_gpus=count, gpu="H100")
    run = SimpleNamespace(engine=engine, policy=VOTE16, recording="r")
    asked_for, _, _ = changed(run, [f"engine.{name}={value}" for name, value in change.items()])
    assert asked_for.num_gpus == gpus


def test_servers_that_took_problems_in_turn_are_replayed_as_they_were(votes, tmp_path):
    """As `attach URL URL --workload` keeps them: problems of all, steps of each."""
    truth = asked(votes, replicas=Replicas(count=2, together=True))
    keys, (whole, *_) = list(truth.manifest.engines), truth.manifest.engines.values()
    urls = ["http://a", "http://b"]
    each = dataclasses.replace(whole.one_replica(), mode="server")
    engines = [dataclasses.replace(whole, mode="server", other=(("urls", " ".join(urls)),))]
    engines += [dataclasses.replace(each, other=(("url", url),)) for url in urls]
    names = dict(zip(keys, (engine.key() for engine in engines), strict=True))
    tables = {
        name: table.with_columns(engine=pl.col("engine").replace(names))
        for name, table in truth.tables.items()
    }
    tables["steps"] = tables["steps"].with_columns(source=pl.lit("measured"))
    own = {engine.key(): engine for engine in engines}
    replayed_tables.write_recording(
        tmp_path / "r", dataclasses.replace(truth.manifest, engines=own, provenance={}), tables
    )
    found = asked(Recording.open(tmp_path / "r"))
    for name in ("mean", "p95"):
        recorded = found.recorded.latency_s[name].value
        assert found.replayed.latency_s[name].value == pytest.approx(recorded, rel=0.03)
    evidence = gather([Recording.open(tmp_path / "r")])
    assert len({kind.engine for kind in explore(evidence, quick=True).kinds}) == 1


def test_devices_of_ranks_are_paid_once(tmp_path):
    engine = engine_of(data_parallel_size=2)
    made = record(tmp_path / "r", engine, GREEDY, problems=8, watts=300.0)
    (law,) = power_laws(gather([made]).power).values()
    one_replica = float(law.joules(1.0, 1.0, law.batch[0]))
    assert one_replica == pytest.approx(300.0, rel=0.01)


def test_a_table_of_efforts_is_replayed_with_the_samples_of_each(tmp_path):
    low = dataclasses.replace(VOTE16, n=4, reasoning_effort="low")
    high = dataclasses.replace(low, reasoning_effort="high")
    made = [
        record(tmp_path / each.reasoning_effort, engine_of(), each, problems=12, classes=True)
        for each in (low, high)
    ]
    run = summarise(made[0])[0]
    changes = ("policy.method=routed", "policy.n=2", "policy.route=easy=1@low | *=2@high")
    engine, policy, _ = changed(run, changes)
    assert policy.efforts == {"easy": "low", "*": "high"} and policy.reasoning_effort is None
    question = Question(engine=engine, policy=policy)
    with pytest.raises(UsageError, match="no samples with policy.reasoning_effort=high"):
        predict(made[0], run, question)
    found = predict(made[0], run, question, made[1:])
    rows = found.tables["samples"].filter(pl.col("queued").is_not_null())
    drawn = rows.group_by("problem_id").agg("output_tokens")
    for name, lengths in drawn.iter_rows():
        place = int(name[1:])
        own = made[place % 2].samples.filter(pl.col("problem_id") == name)["output_tokens"]
        assert len(lengths) == 1 + place % 2
        assert not Counter(lengths) - Counter(own.to_list())
    right, tokens = [], []
    for place in range(12):
        own = made[place % 2].samples.filter(pl.col("problem_id") == f"p{place}")
        right.append(own["correct"].mean())  # a vote of two is one of them at random, or both
        tokens.append(own["output_tokens"].mean() * (1 + place % 2))
    told = found.predicted
    assert told.accuracy.value == pytest.approx(np.mean(right), abs=0.12)
    assert told.tokens_per_problem.value == pytest.approx(np.mean(tokens), rel=0.15)
    with pytest.raises(UsageError, match="4 samples per problem were recorded"):
        wide = ("policy.method=routed", "policy.n=8", "policy.route=easy=1@low | *=8@high")
        predict(made[0], run, dataclasses.replace(question, policy=changed(run, wide)[1]), made[1:])
