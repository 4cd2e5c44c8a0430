from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from tests.traces.synthetic import (
    MODEL,
    START,
    engine_config,
    simulate,
    speculative_engine,
    write_recording,
)
from traces.recording.reader import Recording
from traces.schema.tts.policy import Policy
from traces.statistics import share
from traces.summary.comparison import compare
from traces.summary.kernels import bus_bandwidth
from traces.summary.metrics import METRICS, estimate_of
from traces.summary.run import Run, summarise
from tui.text.recordings.series import series


@pytest.fixture(scope="module")
def rows():
    return simulate(problems=24, n=4, seed=1)


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    (found,) = summarise(write_recording(tmp_path_factory.mktemp("r") / "one", rows))
    return found


def test_numbers_by_hand(run, rows):
    problems, samples = rows["problems"], rows["samples"]
    right = sum(row["correct"] for row in problems)
    assert run.accuracy.value == right / 24
    of_answers = share(right / 24, right / 24 * (1 - right / 24), 24)
    assert run.accuracy.low == pytest.approx(of_answers.low)
    assert run.accuracy.high == pytest.approx(of_answers.high)
    latency = [(row["decided_at"] - row["arrival"]) / 1e9 for row in problems]
    assert run.latency_s["mean"].value == pytest.approx(np.mean(latency))
    assert run.latency_s["p95"].value == pytest.approx(np.quantile(latency, 0.95))
    ttft = [(row["first_token"] - row["arrival"]) / 1e9 for row in samples]
    assert run.ttft_s["p50"].value == pytest.approx(np.median(ttft))
    tpot = [
        (row["end"] - row["first_token"]) / 1e9 / (row["output_tokens"] - 1)
        for row in samples
        if row["output_tokens"] > 1
    ]
    assert run.tpot_s["mean"].value == pytest.approx(np.mean(tpot))
    tokens = sum(row["output_tokens"] for row in samples)
    assert run.tokens_per_problem.value == pytest.approx(tokens / 24)
    assert run.cost_per_token_device_s.value == pytest.approx(sum(latency) / tokens)
    end = max(row["end"] for row in samples)
    assert run.throughput_tokens_per_s.value == pytest.approx(tokens / ((end - START) / 1e9))
    assert (run.problems, run.problems_in_flight, run.steps) == (24, 0, len(rows["steps"]))


@pytest.mark.parametrize("cached", [0, 6])  # tokens of a prompt, which are not forwarded
def test_flops_by_hand(rows, tmp_path, cached):
    samples = [{**row, "cached_tokens": cached} for row in rows["samples"]]
    (found,) = summarise(write_recording(tmp_path / "a", {**rows, "samples": samples}))
    total = 0.0
    for row in samples:
        length = 10 + row["output_tokens"] - 1  # the last token is never fed back
        total += MODEL.matmul_flops(length - cached)
        total += MODEL.attention_flops(sum(range(cached + 1, length + 1)))
    assert found.flops_per_problem.value == pytest.approx(total / 24)


def test_tokens_are_unknown_where_problems_do_not_tell_those_of_cancelled_samples(rows, tmp_path):
    def untold(count):
        easy = {row["problem_id"] for row in rows["problems"][:count]}
        samples = [
            {**row, "output_tokens": None, "cancelled_by": "decision"}
            if row["problem_id"] in easy and row["sample_index"] == 3
            else row
            for row in rows["samples"]
        ]
        return summarise(write_recording(tmp_path / f"r{count}", rows | {"samples": samples}))[0]

    one, two = untold(1), untold(2)  # of 24: 1 in 20 may lack them
    told = [one.tokens_per_problem, one.cost_per_token_device_s]
    assert None not in told and one.tokens_per_problem.low is not None
    assert two.tokens_per_problem is None and two.cost_per_token_device_s is None
    assert two.latency_s["mean"] is not None
    compared = {change.metric.tag for change in compare(one, two).changes}
    assert "latency_s.mean" in compared and "tokens_per_problem" not in compared
    compared = {change.metric.tag for change in compare(one, one).changes}
    assert "tokens_per_problem" in compared


def test_flops_of_a_run_with_drafts_are_not_known(rows, tmp_path):
    engine = speculative_engine()
    samples = [{**row, "engine": engine.key()} for row in rows["samples"]]
    (found,) = summarise(
        write_recording(tmp_path / "a", {**rows, "samples": samples}, engine=engine)
    )
    assert found.tokens_per_problem is not None and found.flops_per_problem is None


@pytest.mark.parametrize(
    ("facts", "max_model_len"),
    [
        ({"active_parameters": None}, 4096),
        ({"attention": ("latent_attention",)}, 4096),
        ({"attention": ("full_attention", "linear_attention")}, 4096),
        ({"attention": ("sliding_attention",), "sliding_window": 4095}, 4096),
        ({"attention": ("sliding_attention",), "sliding_window": 4096}, None),
    ],
)
def test_flops_of_a_model_that_is_not_counted_are_not_known(rows, tmp_path, facts, max_model_len):
    recording = write_recording(
        tmp_path / "a", rows, engine=engine_config(max_model_len=max_model_len)
    )
    models = {MODEL.name: replace(MODEL, **facts)}
    replace(recording.manifest, models=models).write(recording.path)
    (found,) = summarise(Recording.open(recording.path))
    assert found.tokens_per_problem is not None and found.flops_per_problem is None


def test_samples_of_an_engine_that_is_not_told_have_no_flops(rows, tmp_path):
    first = rows["samples"][0]
    scorer = {**first, "engine": "of nobody", "role": "scorer", "sample_index": 99}
    more = {**rows, "samples": [*rows["samples"], scorer]}
    recording = write_recording(tmp_path / "a", more)
    assert "of nobody" in recording.samples["engine"].to_list()
    (found,) = summarise(recording)
    (whole,) = summarise(write_recording(tmp_path / "b", rows))
    cut = found.rows.filter(found.rows["problem_id"] == first["problem_id"])
    assert cut["flops"].to_list() == [None]
    assert found.rows["flops"].drop_nulls().to_list() == whole.rows["flops"][1:].to_list()


def test_what_is_not_known_stays_absent(rows, tmp_path):
    unknown = [{**row, "cached_tokens": None} for row in rows["samples"]]
    engine = engine_config(enable_prefix_caching=None)
    blind = {"problems": rows["problems"], "samples": unknown}
    (found,) = summarise(write_recording(tmp_path / "a", blind, engine=engine))
    assert found.flops_per_problem is None
    assert found.device_s_per_problem is None
    assert found.steps is None
    assert found.step_time == {"prefill_s": None, "decode_s": None, "mixed_s": None}
    assert found.tokens_per_problem is not None


def test_device_seconds_sum_to_the_busy_time(run, rows, tmp_path):
    busy = sum((row["interval_ns"] or row["wall_ns"]) for row in rows["steps"]) / 1e9
    assert run.device_s_per_problem.value * 24 == pytest.approx(busy)
    engine = engine_config(tensor_parallel_size=2)
    (two,) = summarise(write_recording(tmp_path / "tp2", rows, engine=engine), 3.6)
    assert two.device_s_per_problem.value * 24 == pytest.approx(2 * busy)
    assert two.cost_usd_per_problem.value == pytest.approx(two.device_s_per_problem.value / 1000)
    assert two.cost_usd_per_problem.unit == "USD"


def test_a_killed_run_leaves_out_what_was_in_flight(rows, tmp_path):
    problems = [dict(row) for row in rows["problems"]]
    for name in ("end", "decided_at", "answer", "correct"):
        problems[-1][name] = None
    samples = [dict(row) for row in rows["samples"]]
    samples[-1] |= {"end": None, "output_tokens": None, "last_step": None, "correct": None}
    cut = {**rows, "problems": problems, "samples": samples}
    (found,) = summarise(write_recording(tmp_path / "cut", cut, complete=False))
    assert (found.complete, found.problems, found.problems_in_flight) == (False, 23, 1)
    assert found.throughput_tokens_per_s is None
    assert found.latency_s["mean"] is not None


def test_nothing_yet(tmp_path):
    (found,) = summarise(write_recording(tmp_path / "empty", {}, complete=False))
    assert found.problems == 0
    assert found.accuracy is None
    assert found.policies == ()
    json.dumps(found.to_json(), allow_nan=False)


def test_timed_out_is_wrong_and_has_no_latency(rows, tmp_path):
    problems = [dict(row) for row in rows["problems"]]
    problems[0] |= {"decided_at": None, "answer": None, "correct": False, "timed_out": True}
    (found,) = summarise(write_recording(tmp_path / "late", {**rows, "problems": problems}))
    right = sum(bool(row["correct"]) for row in problems)
    assert found.accuracy.value == right / 24
    assert (found.problems, found.problems_failed) == (23, 1)
    assert "without a decision" in found.notes[0]


def test_a_timeout_without_a_known_answer_is_not_judged(rows, tmp_path):
    problems = [row | {"correct": None} for row in rows["problems"]]
    problems[0] |= {"answer": None, "timed_out": True}
    (found,) = summarise(write_recording(tmp_path / "unknown", {**rows, "problems": problems}))
    assert found.accuracy is None


def refused(row):
    """A request that failed at once, and a problem of which it was the only one."""
    if "sample_index" not in row:
        ended = {"decided_at": row["arrival"] + 5_000_000, "end": row["arrival"] + 5_000_000}
        return row | ended | {"answer": None, "correct": None, "error": "1 samples failed"}
    nothing = dict.fromkeys(("output_tokens", "first_token", "think_end", "answer", "correct"))
    return row | nothing | {"error": "HTTP 503", "end": row["arrival"] + 5_000_000}


def test_a_problem_whose_requests_all_failed_has_no_latency(tmp_path):
    rows = simulate(problems=100, n=1, seed=1)
    lost = {f"p{number}" for number in range(0, 90, 3)}
    made = {
        table: [refused(row) if row["problem_id"] in lost else row for row in rows[table]]
        for table in ("problems", "samples")
    }
    (found,) = summarise(write_recording(tmp_path / "failed", {**rows, **made}))
    assert (found.problems, found.problems_failed) == (70, 30)
    kept = [row for row in rows["problems"] if row["problem_id"] not in lost]
    took = [(row["decided_at"] - row["arrival"]) / 1e9 for row in kept]
    assert found.latency_s["mean"].value == pytest.approx(np.mean(took))
    assert found.accuracy.value == pytest.approx(np.mean([row["correct"] for row in kept]))
    assert found.notes == (
        "problems that ended without a decision (timed out or failed): 30. Accuracy is that of the "
        "others, without 30 that failed",
    )
    assert found.throughput_tokens_per_s is not None  # what was refused generated nothing


def test_a_problem_is_decided_by_the_samples_that_came(tmp_path):
    """Also where they have no answer, as those of lengths that were given."""
    rows = simulate(problems=40, n=4, seed=2)
    first = {"problem_id": "p0", "sample_index": 1}
    for table, rest in (("samples", first), ("problems", {"problem_id": "p0"})):
        for place, row in enumerate(rows[table]):
            if all(row[name] == value for name, value in rest.items()):
                broken = {"error": "HTTP 503", "answer": None, "correct": None}
                rows[table][place] = row | broken
    (found,) = summarise(write_recording(tmp_path / "r", rows))
    assert (found.problems, found.problems_failed) == (40, 0)
    assert found.notes == (
        "left out of maj@k and pass@k: of 40 problems 1 with failed samples (HTTP 503)",
    )
    whole = [row["correct"] for row in rows["samples"] if row["problem_id"] != "p0"]
    one = next(each for each in found.policies if each.method == "pass_at_k" and each.n == 1)
    assert one.accuracy.value == pytest.approx(np.mean(whole))


@pytest.mark.slow
def test_votes_of_what_survived_a_timeout_are_left_out(tmp_path):
    rows = simulate(problems=40, n=4, seed=2)
    few = {"timed_out": True}
    for number, late in ((2, few), (3, few), (0, {})):
        problems = [
            {**row, **(late if place < number else {})}
            for place, row in enumerate(rows["problems"])
        ]
        (found,) = summarise(
            write_recording(tmp_path / str(number), {**rows, "problems": problems})
        )
        assert bool(found.policies) == (number < 3)
        if number == 2:
            told = "left out of maj@k and pass@k: of 40 problems 2 cut off by the timeout"
            assert found.notes == (told,)
            whole = rows["samples"]
            kept = [row for row in whole if row["problem_id"] not in ("p0", "p1")]
            passed = next(each for each in found.policies if each.method == "pass_at_k")
            assert passed.accuracy.value == pytest.approx(np.mean([r["correct"] for r in kept]))
        elif number:
            assert found.notes[0].startswith("no table of maj@k and pass@k: of 40 problems 3 cut")
            assert found.notes[0].endswith("Record without --timeout, or with a longer one")
        else:
            assert found.notes == ()


def test_profiled_steps_stay_out(rows, tmp_path):
    middle = len(rows["steps"]) // 2
    steps = [{**row, "profiled": row["step"] == middle} for row in rows["steps"]]
    (found,) = summarise(write_recording(tmp_path / "p", {**rows, "steps": steps}))
    at = steps[middle]
    slowed = [
        row
        for row in rows["problems"]
        if row["arrival"] < at["end"] and row["decided_at"] > at["end"] - at["wall_ns"]
    ]
    assert 0 < len(slowed) < 24
    assert found.rows["slowed"].sum() == len(slowed)
    (note,) = found.notes  # it took as long as steps alike: nothing is left out
    assert note.startswith(f"kernel windows touched {len(slowed)} of 24 problems")
    assert found.latency_s["mean"].value == pytest.approx(
        summarise(write_recording(tmp_path / "q", rows))[0].latency_s["mean"].value, rel=0.01
    )
    assert found.accuracy.value == sum(row["correct"] for row in rows["problems"]) / 24


def test_step_time_by_kind(run, rows):
    for kind, wanted in {
        "decode": [row for row in rows["steps"] if not row["prefill_tokens"]],
        "mixed": [row for row in rows["steps"] if row["prefill_tokens"] and row["decode_tokens"]],
    }.items():
        mean = np.mean([row["interval_ns"] or row["wall_ns"] for row in wanted]) / 1e9
        assert run.step_time[f"{kind}_s"].value == pytest.approx(mean)
    begin = rows["steps"][0]["end"] - rows["steps"][0]["wall_ns"]
    assert sum(run.seconds.values()) == pytest.approx((rows["steps"][-1]["end"] - begin) / 1e9)


@pytest.mark.slow
def test_acceptance_from_samples_and_from_steps(rows, tmp_path):
    drafted, accepted = [3, 3, 0, 2], [3, 1, 0, 0]
    samples = [
        {**row, "drafted_per_step": drafted, "accepted_per_step": accepted}
        for row in rows["samples"]
    ]
    engine = speculative_engine()
    (found,) = summarise(
        write_recording(tmp_path / "s", {**rows, "samples": samples}, engine=engine)
    )
    shares = [each.value for each in found.acceptance.accepted_per_position]
    assert shares == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert found.acceptance.length.value == pytest.approx(1 + 4 / 3)
    assert found.acceptance.drafted == 8 * len(samples)
    steps = [{**row, "drafted": [3, 3, 2], "accepted": [2, 1, 1]} for row in rows["steps"]]
    (summed,) = summarise(write_recording(tmp_path / "t", {**rows, "steps": steps}, engine=engine))
    assert [e.value for e in summed.acceptance.accepted_per_position] == pytest.approx(shares)
    assert summed.acceptance.length.value == pytest.approx(found.acceptance.length.value)


def test_kernels_by_family_and_collectives(rows, tmp_path):
    kernels = [
        {"rank": rank, "family": family, "name": family, "self_time": time, "time": time}
        | ({"collective": "all_reduce", "group_size": 2, "count": 4, "bytes": 64} if comm else {})
        for rank in (0, 1)
        for family, time, comm in (("gemm", 3_000_000, False), ("comm", 1_000_000, True))
    ]
    (found,) = summarise(write_recording(tmp_path / "k", {**rows, "kernels": kernels}))
    assert [(f.family, f.s, f.share) for f in found.time_by_family] == [
        ("gemm", 0.003, 0.75),
        ("comm", 0.001, 0.25),
    ]
    (call,) = found.collectives
    assert (call.calls, call.bytes, call.s, call.exposed_s) == (4, 64, 0.001, None)
    assert call.busbw_bytes_per_s == 64 / 0.001  # two ranks: 2 (n - 1) / n is 1
    assert [(k.name, k.calls, k.s) for k in found.top_kernels] == [
        ("gemm", 1, 0.003),
        ("comm", 4, 0.001),
    ]


@pytest.mark.parametrize(
    ("name", "ranks", "factor"),
    [("all_reduce", 4, 1.5), ("all_gather", 4, 0.75), ("broadcast", 4, 1.0), ("barrier", 4, None)],
)
def test_bus_bandwidth_is_that_of_nccl_tests(name, ranks, factor):
    found = bus_bandwidth(name, 8e9, 2.0, ranks)
    assert found == (None if factor is None else 4e9 * factor)
    assert bus_bandwidth(name, None, 2.0, ranks) is None
    assert bus_bandwidth(name, 8e9, 2.0, None) is None


def test_a_problem_posed_twice_keeps_its_samples_apart(rows, tmp_path):
    again = {
        "problems": [*rows["problems"], *({**row, **shifted(row)} for row in rows["problems"])],
        "samples": [
            *({**row, "span_id": "a"} for row in rows["samples"]),
            *({**row, **shifted(row), "span_id": "b"} for row in rows["samples"]),
        ],
    }
    (found,) = summarise(write_recording(tmp_path / "again", again))
    assert found.problems == 48
    assert found.sample_rows.height == 2 * len(rows["samples"])
    assert set(found.sample_rows.group_by("problem").len()["len"]) == {4}


def shifted(row):
    times = ("arrival", "start", "end", "decided_at", "queued", "scheduled", "first_token")
    return {name: row[name] + 10**13 for name in times if row.get(name) is not None}


def test_two_policies_in_one_recording(rows, tmp_path):
    recording = write_recording(tmp_path / "two", rows)
    other = Policy(method="majority", n=8, temperature=0.8)
    recording.manifest.policies[other.key()] = other
    assert len(summarise(recording)) == 1  # only the policy that ran


def test_runs_pair_on_the_same_problems(run, tmp_path):
    slower = simulate(problems=24, n=4, seed=1, seqs=3)
    engine = engine_config(max_num_seqs=3)
    (other,) = summarise(write_recording(tmp_path / "slow", slower, engine=engine))
    found = compare(run, other)
    assert found.problems == 24
    by_tag = {change.metric.tag: change for change in found.changes}
    before, after = run.latency_s["mean"].value, other.latency_s["mean"].value
    assert by_tag["latency_s.mean"].difference.value == pytest.approx(after - before)
    assert by_tag["latency_s.mean"].verdict == "worse"
    assert by_tag["latency_s.p95"].difference.value == pytest.approx(
        other.latency_s["p95"].value - run.latency_s["p95"].value
    )
    assert by_tag["tokens_per_problem"].verdict == "cannot be told apart"
    assert found.config == {"engine.max_num_seqs": (8, 3)}
    json.dumps(found.to_json(), allow_nan=False)
    again = {change.metric.tag: change for change in compare(other, run).changes}
    assert again["latency_s.mean"].verdict == "better"


@pytest.mark.filterwarnings("error")
def test_without_tokens_or_time_no_throughputs_are_compared(run, rows, tmp_path):
    idle = [{**row, "output_tokens": 0} for row in rows["samples"]]
    at_once = [{**row, "decided_at": row["arrival"]} for row in rows["problems"]]
    for name, changed in ("idle", {"samples": idle}), ("at_once", {"problems": at_once}):
        (other,) = summarise(write_recording(tmp_path / name, rows | changed))
        compared = {change.metric.tag for change in compare(run, other).changes}
        assert "latency_s.mean" in compared and "throughput_tokens_per_s" not in compared


def test_other_problems_are_not_paired(run, rows, tmp_path):
    (other,) = summarise(write_recording(tmp_path / "x", rows, workload="other"))
    found = compare(run, other)
    assert (found.problems, found.changes) == (0, ())
    assert "same problems" in found.reason


def test_series_take_the_highest_of_a_bin(run, rows):
    found = series(run.step_rows, 101, 7)
    assert found.batch.size == 7
    batch = [row["running"] for row in rows["steps"]]
    assert np.nanmax(found.batch) == max(batch)
    assert np.nanmax(found.kv_share) == max(row["kv_blocks"] for row in rows["steps"]) / 100
    width = (found.edges_ns[-1] - found.edges_ns[0]) / 7 / 1e9
    total = sum(row["decode_requests"] for row in rows["steps"])
    assert np.nansum(found.tokens_per_s) * width == pytest.approx(total, rel=1e-6)
    assert found.first_step[0] == 0
    assert np.isnan(series(run.step_rows, None, 7).kv_share).all()
    assert series(run.step_rows.clear(), 101, 7) is None


def test_metrics_are_a_table(run):
    tags = [metric.tag for metric in METRICS]
    assert len(tags) == len(set(tags))
    for metric in METRICS:
        found = estimate_of(run, metric.tag)
        assert found is None or found.unit == metric.quantity.unit, metric.tag
        if metric.column is not None:
            assert metric.column in run.rows.columns


def test_a_run_needs_no_more_than_its_configuration():
    run = Run(recording="x", complete=True, engine=engine_config(), policy=Policy())
    assert asdict(run.energy_j)["total"] is None
    assert json.loads(json.dumps(run.to_json()))["latency_s"]["p95"] is None
