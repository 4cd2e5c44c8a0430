"""Requests inferred from forward passes, against those that were really there."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import profiler.demo
from advisor.evidence.gather import gather
from advisor.evidence.live.passes import inferred_traffic
from tests.advisor.asking import predicted
from tests.advisor.synthetic import GREEDY, VOTE16, engine_of, record
from tests.advisor.watched import imported, watched
from traces.forward_pass.limits import SeenLimits
from traces.recording.reader import Recording
from traces.summary.run import summarise

SHIPPED = Path(profiler.demo.__file__).parent / "recordings"
MS = 1_000_000
STEP = 10 * MS


def served(
    count=200, seqs=6, *, mixed=True, newest=0, ahead=0, every_ms=40, budget=10**6, seed=1
):  # fmt: skip
    """Return the steps of an engine that serves requests in turn, and what each of them was.

    Steps take 10 ms. `mixed` ones hold prompts and decodes, else one kind alone. An engine may
    count the `newest` token of a context, and tell of the queue so many steps `ahead`. A step
    computes up to a `budget` of tokens, and of a prompt that is longer the rest in the next ones.
    """
    rng = np.random.default_rng(seed)
    came = np.cumsum(rng.exponential(every_ms * MS, count)).astype(int).tolist()
    truth = [
        {"came": at, "prompt": int(rng.integers(20, 400)), "output": int(rng.integers(1, 60)),
         "made": 0, "computed": 0}
        for at in came
    ]  # fmt: skip
    coming, waiting, running, rows, now = truth.copy(), [], [], [], 0
    while coming or waiting or running:
        if not (waiting or running):
            now = max(now, coming[0]["came"])
        while coming and coming[0]["came"] <= now:
            waiting.append(coming.pop(0))
        prompts = [r for r in running if not r["made"]] + waiting[: seqs - len(running)]
        decodes = [r for r in running if r["made"]] if mixed or not prompts else []
        free, parts = budget - len(decodes), []
        for each in prompts:
            part = min(each["prompt"] - each["computed"], free)
            if part:
                each["computed"], free = each["computed"] + part, free - part
                parts.append(part)
                running += [] if each in running else [each]
        waiting = [r for r in waiting if r not in running]
        begun = prompts[: len(parts)]
        idle = not rows or now > rows[-1]["end"]
        now += STEP
        rows.append({
            "engine": "e", "step": len(rows), "end": now, "wall_ns": STEP,
            "interval_ns": None if idle else STEP, "preempted": 0, "waiting": len(waiting),
            "prefill_requests": len(begun), "prefill_tokens": sum(parts),
            "prefill_kv_tokens": sum(r["computed"] for r in begun),
            "decode_requests": len(decodes), "decode_tokens": len(decodes),
            "decode_kv_tokens": sum(r["prompt"] + newest + r["made"] - 1 for r in decodes),
            "prefill_query_context": 0,
        })  # fmt: skip
        for each in [*decodes, *(r for r in begun if r["computed"] == r["prompt"])]:
            each["made"] += 1
            each["end"] = now
        running = [r for r in running if r["made"] < r["output"]]
    steps = pl.DataFrame(rows)
    if ahead:
        later = pl.col("waiting").shift(-ahead, fill_value=0)
        steps = steps.with_columns(waiting=later)
    return steps, truth


ENGINE = engine_of(mode="server", max_num_seqs=None, max_num_batched_tokens=None)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"mixed": False},  # as SGLang does without mixed chunks
        {"newest": 1},
        {"ahead": 1, "every_ms": 25},  # of a queue, and scheduled ahead
        {"every_ms": 400},  # one at a time
        {"budget": 150},  # so that prompts come in chunks
    ],
)
def test_the_sums_tell_each_request(how):
    steps, truth = served(**how)
    runs = inferred_traffic(steps, ENGINE, "r", "k")
    assert len(runs) == 8
    for run in runs:
        found = {int(name.rpartition(".")[2]): each for name, each in run.problems.items()}
        assert len(found) >= 0.97 * len(truth)
        pairs = [(truth[place], each) for place, each in found.items()]
        exact = [
            (was["prompt"], was["output"]) == (each.prompt_tokens, each.samples[0].output_tokens)
            for was, each in pairs
        ]
        assert np.mean(exact) > 0.75
        late = [each.arrival_ns - was["came"] for was, each in pairs]
        assert np.abs(late).max() <= 3 * STEP
        off = [each.latency_s * 1e9 - (was["end"] - was["came"]) for was, each in pairs]
        assert np.median(np.abs(off)) <= 1.5 * STEP
        assert abs(np.mean(off)) <= STEP


def changed_steps(steps, why):
    if why == "sampled":
        return steps.with_columns(end=pl.lit(None, pl.Int64))
    if why == "speculates":
        return steps.with_columns(decode_tokens=pl.lit(None, pl.Int64))
    if why == "decodes for others":
        names = ("prefill_requests", "prefill_tokens", "prefill_kv_tokens")
        return steps.with_columns(pl.lit(0).alias(name) for name in names)
    if why == "preempted":
        return steps.with_columns(preempted=pl.lit(1))
    if why == "do not add up":
        return steps.with_columns(decode_kv_tokens=pl.col("decode_kv_tokens").shuffle(seed=1))
    return steps.head(30)


@pytest.mark.parametrize(
    "why",
    ["sampled", "speculates", "decodes for others", "preempted", "do not add up", "only"],
)
def test_steps_that_tell_no_request_say_why(why):
    told = inferred_traffic(changed_steps(served()[0], why), ENGINE, "r", "k")
    assert isinstance(told, str) and why in told


def test_steps_that_are_missing_tell_no_request():
    told = inferred_traffic(served()[0], ENGINE, "r", "k", lost=500)
    assert "500 of" in told and "are missing" in told


def test_limits_are_those_that_steps_run_into():
    limits = SeenLimits()
    for step in served(every_ms=15)[0].filter(pl.col("decode_requests") > 0).to_dicts():
        requests = step["prefill_requests"] + step["decode_requests"]
        tokens = step["prefill_tokens"] + step["decode_requests"]
        limits.take(requests, tokens, step["waiting"])
    assert (limits.max_num_seqs, limits.max_num_batched_tokens) == (6, None)
    for tokens in (100, *[128] * 20):
        limits.take(3, tokens, 4)
    assert limits.max_num_batched_tokens is None  # others had more
    for _ in range(20):
        limits.take(3, 2048, 4)
    assert limits.max_num_batched_tokens == 2048


VOTE4 = dataclasses.replace(VOTE16, n=4)


@pytest.fixture(scope="module", params=["alone", "siblings"])
def base(request, tmp_path_factory):
    """A run of 300 requests, or of 150 with 4 samples each, as recorded in the engine's process."""
    folder = tmp_path_factory.mktemp("truth") / request.param
    policy, count = (GREEDY, 300) if request.param == "alone" else (VOTE4, 150)
    return record(folder, engine_of(), policy, problems=count, concurrency=8)


@pytest.fixture(scope="module")
def rate(base):
    return 200.0 if summarise(base)[0].policy.n == 1 else 60.0


@pytest.fixture(scope="module")
def truth(base, rate):
    """What really happens at a rate where requests wait."""
    return predicted(base, "engine.max_num_seqs=8", rate_per_s=rate)


def inferred(recording):
    return [run for run in gather([recording]).runs if run.inferred]


def off(found, wanted):
    """Return how far sorted values lie off those wanted, on average, of their mean."""
    found, wanted = (np.sort(np.asarray(each, dtype=float)) for each in (found, wanted))
    at = np.linspace(0, 1, 101)
    return np.abs(np.quantile(found, at) - np.quantile(wanted, at)).mean() / wanted.mean()


@pytest.mark.slow
def test_requests_have_the_lengths_and_times_that_they_had(truth, tmp_path):
    recording = imported(truth, tmp_path / "passes")
    runs = inferred(recording)
    samples, problems = truth.tables["samples"], truth.tables["problems"]
    assert len(runs) == 8
    assert len(runs[0].problems) > 0.95 * samples.height
    arrival = dict(problems.select("problem_id", "arrival").iter_rows())
    came = np.array([arrival[name] for name in samples["problem_id"]])
    for run in runs:
        each = list(run.problems.values())
        assert off([p.prompt_tokens for p in each], samples["prompt_tokens"]) < 0.05
        tokens = [p.samples[0].output_tokens for p in each]
        assert off(tokens, samples["output_tokens"]) < 0.12
        told = np.sort([p.arrival_ns for p in each])
        assert np.abs(told - np.sort(came)[: len(told)]).mean() / 1e9 < 0.02
        latency = (samples["end"].to_numpy() - came) / 1e9
        assert off([p.latency_s for p in each], latency) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "requests", "prompt", "output", "latency"),
    [
        ("demo-s-tp1-seqs64-greedy-high-", 96, 0.02, 0.02, 0.03),
        ("demo-s-tp1-seqs64-maj@16-", 1536, 0.1, 0.06, 0.08),
    ],
)
def test_steps_of_a_real_vllm_tell_its_requests(tmp_path, of, requests, prompt, output, latency):
    (path,) = SHIPPED.glob(f"{of}*")
    recorded = Recording.open(path)
    real = recorded.samples
    passes = imported(SimpleNamespace(tables={"steps": recorded.steps}), tmp_path / "passes")
    each = list(inferred(passes)[0].problems.values())
    assert real.height == requests and 0.95 * requests < len(each) <= requests
    took = (real["end"] - real["arrival"]).to_numpy() / 1e9
    assert off([p.prompt_tokens for p in each], real["prompt_tokens"]) < prompt
    assert off([p.samples[0].output_tokens for p in each], real["output_tokens"]) < output
    assert off([p.latency_s for p in each], took) < latency


@pytest.mark.slow
@pytest.mark.parametrize("change", ["engine.max_num_seqs=4", "engine.max_num_seqs=16"])
def test_other_limits_are_predicted_of_what_was_inferred(base, rate, truth, tmp_path, change):
    found = predicted(imported(truth, tmp_path / "passes"), change)
    wanted = predicted(base, change, rate_per_s=rate).predicted
    assert found.recorded.engine.max_num_seqs == 8
    assert found.far_off is None
    assert any("inferred from the sums of forward passes" in note for note in found.notes)
    alone = summarise(base)[0].policy.n == 1  # else a problem has several requests
    for name in ("latency_s", "tpot_s") if alone else ("tpot_s",):
        each, real = (getattr(one, name)["mean"] for one in (found.predicted, wanted))
        # Nobody names the device, so it is taken for a GPU. Its steps grow as a processor's do.
        assert each.value == pytest.approx(real.value, rel=0.25), name
        assert each.low <= real.value <= each.high, name


@pytest.mark.slow
def test_beside_metrics_requests_are_those_that_passes_tell(base, rate, truth, tmp_path):
    change = "engine.max_num_seqs=16"
    found = predicted(watched(truth, tmp_path / "seen", spans=False, steps="passes"), change)
    wanted = predicted(base, change, rate_per_s=rate).predicted
    assert any("inferred from the sums of forward passes" in note for note in found.notes)
    assert not any("lengths are drawn from the histograms" in note for note in found.notes)
    assert found.recorded.ttft_s["mean"] is not None  # of /metrics
    alone = summarise(base)[0].policy.n == 1
    for name, which in (("tpot_s", "mean"), ("latency_s", "mean"), ("latency_s", "p95")):
        each, real = (getattr(one, name)[which] for one in (found.predicted, wanted))
        if alone or name == "tpot_s":
            assert each.low <= real.value <= each.high, (name, which)


def test_requests_that_a_short_recording_cuts_off_are_said_to_be_left_out(tmp_path):
    (path,) = SHIPPED.glob("demo-s-tp1-seqs64-maj@16-*")
    steps = Recording.open(path).steps
    for name, part, told in (("short", 0.2, True), ("whole", 1.0, False)):
        frame = steps.head(round(part * steps.height))
        passes = imported(SimpleNamespace(tables={"steps": frame}), tmp_path / name)
        evidence = gather([passes])
        kept = len(evidence.runs[0].problems)
        assert any("are left out. The others are shorter" in each for each in evidence.lost) == told
        assert kept < 300 if told else kept > 1400


@pytest.mark.parametrize(
    "name", ["prefill_requests", "prefill_tokens", "decode_requests", "decode_kv_tokens"]
)
def test_steps_that_do_not_say_what_they_computed_tell_no_request(name):
    """A forged recording ended in a traceback: a null became a negative number."""
    steps, _ = served(50)
    first = pl.int_range(pl.len()) == 0
    lacking = steps.with_columns(pl.when(~first).then(pl.col(name)).alias(name))
    why = inferred_traffic(lacking, engine_of(), "r", "e")
    assert why == "some of its steps do not say what they computed"
