"""What is not seen of a server's steps and traffic, inferred, against runs whose truth is known."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import advisor.what_if.suggest as what_next
from advisor.advice.advisor import Advisor
from advisor.evidence.features import ALL, FEATURES, Features, Reads
from advisor.evidence.gather import gather
from advisor.evidence.live.front_end import with_decode_context, with_prompt_context
from advisor.evidence.live.histograms import (
    LONGEST,
    MOST_DRAWN,
    arrivals_in,
    drawn_traffic,
    mean_steps,
)
from advisor.evidence.runs import rate_under_load
from advisor.replay.recording import write_recording
from advisor.replay.replay import Replicas
from advisor.search.space import explore
from advisor.what_if.predict import FarOff, far_off_of
from advisor.what_if.suggest import suggest
from tests.advisor.asking import predicted
from tests.advisor.synthetic import NGRAM, VOTE16, engine_of, record
from tests.advisor.watched import front_end, watched
from traces.errors import RecordingError, UsageError
from traces.live.numbers import (
    ACCEPTED_AT,
    ASKED_TOKENS,
    DRAFTED,
    DRAFTS,
    FINISHED,
    ITL,
    KV,
    OUTPUT_LENGTH,
    PROMPT,
    PROMPT_LENGTH,
    RUNNING,
    STEP_TOKENS,
    TTFT,
    WAITING,
    Bounds,
    Histogram,
    Window,
)
from traces.live.verdict import Finding, Verdict
from traces.recording.reader import Held, Recording
from traces.recording.tables import TABLES
from traces.schema.advice import Budget
from traces.schema.engine import UNKNOWN_METHOD, Speculative
from traces.schema.estimate import Estimate
from traces.schema.tts.policy import AS_SENT
from traces.summary.prefix_hits import CACHED, HIT_TOKENS
from traces.summary.run import NOTHING, summarise
from tui.text.recordings.live import effect_text

VOTE4 = dataclasses.replace(VOTE16, n=4)
REPLAYED = {}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of 300 problems of 4 samples, as recorded in the engine's own process."""
    folder = tmp_path_factory.mktemp("truth") / "base"
    return record(folder, engine_of(), VOTE4, problems=300, concurrency=8)


def at_rate(base, rate, *changes):
    """The same problems arriving at random: what would really happen; replayed once each."""
    key = base.path, rate, changes
    if key not in REPLAYED:
        REPLAYED[key] = predicted(base, *changes, rate_per_s=rate)
    return REPLAYED[key]


def with_drawn(truth, **changes):
    return dataclasses.replace(truth, drawn=dataclasses.replace(truth.drawn, **changes))


@pytest.fixture(scope="module")
def truth(base):
    return at_rate(base, 60.0)


@pytest.fixture(scope="module")
def seen(truth, tmp_path_factory):
    """What spans and the plugin tell of it."""
    return watched(truth, tmp_path_factory.mktemp("whole") / "seen")


@pytest.fixture(scope="module")
def polled(truth, tmp_path_factory):
    """What /metrics alone tell of it."""
    return watched(truth, tmp_path_factory.mktemp("polled") / "seen", spans=False, steps=False)


@pytest.mark.slow
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


@pytest.mark.slow
def test_steps_that_tell_their_context_stay(base):
    steps = base.frame("steps")
    assert with_prompt_context(steps, 512).equals(steps)


def prompt_steps(source, requests, tokens):
    """Steps of so many requests, which decode where a step has no tokens of a prompt."""
    prompts = [requests * (count > 0) for count in tokens]
    decodes = [requests - each for each in prompts]
    rows = {
        "prefill_requests": prompts, "prefill_tokens": tokens, "running": requests, "finished": 0,
        "decode_requests": decodes, "decode_tokens": decodes, "cached_prompt_tokens": 0,
        "interval_ns": [None, *[5] * (len(tokens) - 1)], "prefill_kv_tokens": None,
        "prefill_query_context": None, "source": source,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=dict.fromkeys(rows, pl.Int64) | {"source": pl.Utf8})


def test_a_prompt_is_whole_in_its_step_where_no_limit_of_tokens_is_known():
    seen = with_prompt_context(prompt_steps("front_end", 2, [100, 0]), None)
    assert seen["prefill_tokens"].to_list() == [100, 0]
    assert seen["prefill_kv_tokens"].to_list() == [100, 0]


def test_measured_chunks_get_the_context_before_them():
    seen = with_prompt_context(prompt_steps("measured", 1, [100, 50, 0]), 100)
    assert seen["prefill_kv_tokens"].to_list() == [100, 150, 0]
    assert seen["prefill_query_context"].to_list() == [5050, 50 * 100 + 1275, 0]


def test_decoding_requests_read_what_those_of_the_known_steps_around_them_do():
    rows = {"decode_requests": [2, 4, 0, 4, 1], "decode_kv_tokens": [200, None, 0, None, 300]}
    seen = with_decode_context(pl.DataFrame(rows, schema=dict.fromkeys(rows, pl.Int64)), None)
    assert seen["decode_kv_tokens"].to_list() == [200, 4 * 150, 0, 4 * 250, 300]


@pytest.mark.parametrize(("size", "wanted"), [(None, [None] * 3), (16, [2 * 56, 40, None])])
def test_where_no_context_is_known_it_is_what_the_blocks_hold(size, wanted):
    rows = {
        "decode_requests": [2, 1, 1], "decode_kv_tokens": [None] * 3,
        "kv_blocks": [8, 3, None], "running": [2, 1, 1],
    }  # fmt: skip
    steps = pl.DataFrame(rows, schema=dict.fromkeys(rows, pl.Int64))
    assert with_decode_context(steps, size)["decode_kv_tokens"].to_list() == wanted


@pytest.mark.slow
def test_steps_whose_context_is_lost_are_learned_from_too(seen):
    """They are those of a busy server, so that the law would be that of a quiet one."""
    whole = gather([seen], judged=False, timed=False).steps
    steps = seen.frame("steps")
    lost = pl.col("running") >= steps["running"].quantile(0.7)
    kept = pl.when(~lost).then("decode_kv_tokens").cast(pl.Int64)
    tables = {name: seen.frame(name) for name in TABLES}
    tables["steps"] = steps.with_columns(decode_kv_tokens=kept)
    part = Held(seen.path, seen.manifest, tables=tables)
    (table,) = gather([part], judged=False, timed=False).steps
    assert table.seconds.tolist() == whole[0].seconds.tolist()
    place = FEATURES.index("kv_tokens")
    found, wanted = (each.composition[:, place].sum() for each in (table, whole[0]))
    assert found == pytest.approx(wanted, rel=0.1)


def relative(found, wanted, name, which=None):
    values = [getattr(each, name) for each in (found, wanted)]
    values = [each if which is None else each[which] for each in values]
    return values[0].value / values[1].value - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "steps"), [("engine.max_num_seqs=8", True), ("engine.max_num_seqs=64", "passes")]
)
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


@pytest.mark.slow
def test_metrics_alone_predict_within_a_wide_interval(base, polled):
    found = predicted(polled, "engine.max_num_seqs=8")
    wanted = at_rate(base, 60.0, "engine.max_num_seqs=8").predicted
    for name, which in (("ttft_s", "mean"), ("throughput_tokens_per_s", None)):
        estimate = getattr(found.predicted, name)
        estimate = estimate if which is None else estimate[which]
        real = getattr(wanted, name)
        real = real if which is None else real[which]
        assert estimate.low <= real.value <= estimate.high, (name, estimate, real)
    assert found.recorded.latency_s["mean"] is not None and found.recorded.latency_s["p95"] is None
    assert any("/metrics" in note for note in found.notes)


@pytest.mark.slow
def test_spans_of_a_part_do_not_stand_for_all(truth, tmp_path):
    keep = truth.tables["problems"]["problem_id"][::2].to_list()
    tables = {
        name: frame.filter(pl.col("problem_id").is_in(keep)) if name != "steps" else frame
        for name, frame in truth.tables.items()
    }
    half = with_drawn(truth, tables=tables)
    recording = watched(half, tmp_path / "half", polled=truth)
    evidence = gather([recording], judged=False)
    assert all(run.drawn for run in evidence.runs)
    assert "600 of 1,200 requests" in evidence.lost[0]


@pytest.mark.slow
def test_a_model_whose_facts_are_not_here_has_a_law_of_its_own(truth, seen, tmp_path):
    unknown = dataclasses.replace(truth.manifest, models={})
    blind = with_drawn(truth, manifest=unknown)
    recording = watched(blind, tmp_path / "blind")
    found, known = (predicted(each, "engine.max_num_seqs=8") for each in (recording, seen))
    assert abs(relative(found.predicted, known.predicted, "latency_s", "mean")) < 0.05
    assert sum("not known here" in note for note in found.notes) == 1
    pick = advice([recording], rate_per_s=20.0, optimise="latency").system_optimal
    wanted = advice([seen], rate_per_s=20.0, optimise="latency")
    assert pick.estimates["latency_s"].value == pytest.approx(
        wanted.system_optimal.estimates["latency_s"].value, rel=0.05
    )
    assert pick.estimates["flops"] is None


@pytest.mark.slow
def test_the_policy_of_others_cannot_be_changed(seen):
    with pytest.raises(UsageError, match="replayed as it was sent"):
        predicted(seen, "policy.n=2")


@pytest.mark.slow
def test_a_queue_behind_max_num_seqs_is_answered_with_more(base, tmp_path):
    slow = at_rate(base, 120.0, "engine.max_num_seqs=8")
    recording = watched(slow, tmp_path / "seen", period_s=0.1)
    found = suggest(recording)
    assert found.arguments == ("--set", "engine.max_num_seqs=16")
    before, after = (found.prediction.replayed, found.prediction.predicted)
    assert after.latency_s["mean"].value < before.latency_s["mean"].value


@pytest.mark.slow
def test_steps_that_were_seen_with_as_many_requests_tell_no_growth(base, tmp_path):
    """A full server has as many at each poll."""
    full = at_rate(base, 400.0, "engine.max_num_seqs=8")
    recording = watched(full, tmp_path / "seen", spans=False, steps=False)
    found = [predicted(recording, f"engine.max_num_seqs={seqs}") for seqs in (8, 16)]
    before, after = (each.predicted.tpot_s["mean"] for each in found)
    truth = at_rate(base, 400.0, "engine.max_num_seqs=16").predicted
    assert after.low < before.value < after.value < 1.5 * before.value < after.high
    assert after.low < truth.tpot_s["mean"].value < after.high
    assert any("do not show what each request adds" in note for note in found[1].notes)


def server_where_requests_wait(monkeypatch, max_num_seqs):
    engine = engine_of(max_num_seqs=max_num_seqs)
    numbers = SimpleNamespace(running=8, running_max=8, capped_share=0.5, kv_share_max=0.1,
                              samples_per_s=1.0)  # fmt: skip
    finding = Finding(kind="queueing", evidence="")
    server = SimpleNamespace(
        window=None, engine=engine, numbers=numbers, verdict=Verdict(engine="e", found=(finding,))
    )
    runs = [SimpleNamespace(engine=engine, rows=None, step_rows=0.02, problems=400)]
    monkeypatch.setattr(what_next, "paces", lambda pace: np.array([1.0, 1.0 + (pace or 0.0)]))
    monkeypatch.setattr(what_next, "summarise", lambda _: runs)
    monkeypatch.setattr(what_next, "watched_engines", lambda *_: [server])
    monkeypatch.setattr(what_next, "servers_of", lambda _: [])


def took(mean_s, p95_s=None, low=None, high=None, p50_s=None, ttft_s=None):
    """A run of which latencies alone are known, or a p95 TTFT too."""
    p50, p95, ttft = (
        None if each is None else Estimate(value=each, unit="s") for each in (p50_s, p95_s, ttft_s)
    )
    return SimpleNamespace(
        latency_s={
            "mean": Estimate(value=mean_s, low=low, high=high, unit="s"), "p50": p50, "p95": p95
        },
        ttft_s=NOTHING | {"p95": ttft}, throughput_tokens_per_s=None, engine=engine_of(),
    )  # fmt: skip


def test_what_the_replay_has_slower_is_not_proposed(monkeypatch):
    server_where_requests_wait(monkeypatch, 8)
    for after, told in ((1.21, "1.21 s with it, and 1.03 s without"), (0.9, None)):
        found = SimpleNamespace(replayed=took(1.03), predicted=took(after), far_off=None)
        monkeypatch.setattr(what_next, "_predicted", lambda *_, found=found: found)
        proposed = suggest(None)
        assert (told in proposed) if told else (proposed.prediction is found)


@pytest.mark.slow
def test_the_watch_of_nothing_says_so(truth, tmp_path):
    recording = watched(truth, tmp_path / "seen", spans=False, steps=False, metrics=False)
    assert suggest(recording) == "nothing was watched"


def advice(recordings, **budget):
    return Advisor.fit(recordings).recommend(Budget(**budget))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [True, "passes"])
def test_advice_for_the_traffic_of_others_has_no_accuracy(truth, tmp_path, steps):
    recording = watched(truth, tmp_path / "seen", steps=steps)
    slow = advice([recording], max_device_s=1.0, optimise="latency")
    pick = slow.system_optimal
    assert pick.policy == AS_SENT
    assert pick.estimates["accuracy"] is None
    latency, measured = pick.estimates["latency_s"], summarise(recording)[0].latency_s["mean"]
    assert latency.low <= measured.value <= latency.high
    assert pick.engine.max_num_seqs >= 32  # fewer would queue
    assert not any("workload" in line for line in slow.reasons)
    assert any("ttscope attach" in line for line in slow.measure_next)


@pytest.mark.slow
def test_advice_on_what_was_watched_says_what_keeps_up_and_nothing_of_accuracy(seen):
    advisor = Advisor.fit([seen])
    assert advisor.recommend(Budget(rate_per_s=20.0, optimise="cost")).system_optimal is not None
    assert advisor.recommend(Budget(rate_per_s=2_000.0)).system_optimal is None
    for budget in ({"min_accuracy": 0.5}, {"optimise": "accuracy"}):
        with pytest.raises(UsageError, match="not judged"):
            advisor.recommend(Budget(**budget))


@pytest.mark.slow
def test_watched_traffic_beside_ones_own_runs_teaches_steps_alone(base, seen):
    evidence = gather([base, seen])
    assert {run.policy for run in evidence.runs} == {VOTE4}
    assert {table.engine.mode for table in evidence.steps} == {"in_process", "server"}
    (told,) = [each for each in evidence.lost if each.startswith(f"{seen.name}: ")]
    assert "none of its requests is among the problems" in told


@pytest.mark.slow
def test_metrics_alone_are_advised_on(polled):
    pick = advice([polled], optimise="latency").system_optimal
    assert pick.policy == AS_SENT and pick.estimates["latency_s"].value > 0
    told = gather([polled], judged=False).lost
    assert any(each.startswith("seen: each sample counts as a problem") for each in told)


@pytest.mark.slow
@pytest.mark.parametrize("spans", [True, False])
def test_advice_at_the_recorded_load_is_the_replay_of_it(base, tmp_path, spans):
    """A client kept 12 problems in flight. As many a second at random would meet longer queues."""
    truth = predicted(base, concurrency=12)
    recording = watched(truth, tmp_path / "seen", spans=spans)
    found = advice([recording], optimise="latency", latency_percentile=95)
    pick = found.system_optimal
    told = pick.estimates["latency_p95_s"]
    wanted = predicted(recording, f"engine.max_num_seqs={pick.engine.max_num_seqs}").predicted
    wanted = wanted.latency_s["p95"]
    assert told.value == pytest.approx(wanted.value, rel=0.02)
    assert told.low == pytest.approx(wanted.low, rel=0.05)
    assert told.high == pytest.approx(wanted.high, rel=0.05)
    assert any("arrive when they did as recorded" in reason for reason in found.reasons)


@pytest.mark.slow
def test_samples_are_not_counted_among_requests_of_several(truth, polled, tmp_path):
    spans = watched(truth, tmp_path / "spans")
    both, one = gather([polled, spans], judged=False), gather([spans], judged=False)
    assert "spans: a request of up to 4 samples is one problem" in both.lost
    assert any(each.startswith("seen: its /metrics do not say which") for each in both.lost)
    assert [run.problems.keys() for run in both.runs] == [run.problems.keys() for run in one.runs]
    assert len(both.steps) > len(one.steps)


@pytest.mark.slow
def test_two_watches_of_one_name_are_advised_on_together(truth, tmp_path):
    alone = watched(truth, tmp_path / "mon" / "live", spans=False, steps=False)
    seen = watched(truth, tmp_path / "tue" / "live", spans=False, steps=False)
    advisor = Advisor.fit([alone, seen])
    names = {run.recording: len(run.problems) for run in advisor.evidence.runs}
    assert names.keys() == {"mon/live", "tue/live"}
    assert len(advisor.space.problem_ids) == sum(names.values())
    assert advisor.recommend(Budget(rate_per_s=20.0)).system_optimal.policy == AS_SENT


def lengths_told(bounds, values):
    """A histogram of lengths in ten intervals between polls."""
    counts, sums = np.zeros((11, len(bounds))), np.zeros(11)
    interval = np.arange(len(values)) % 10 + 1
    np.add.at(counts, (interval, np.searchsorted(bounds, values)), 1)
    np.add.at(sums, interval, values)
    return Histogram(bounds=np.array(bounds), counts=counts, sums=sums)


def drawn_window(prompts, outputs, began, **parts):
    """Ten intervals between polls in which so many requests of these lengths began."""
    told = {
        "times": np.arange(11) * 10**9, "seconds": 10.0, "resets": 0, "increase": {}, "counted": {},
        "gauges": {WAITING: np.zeros(11)},
    }  # fmt: skip
    firsts = lengths_told([0.1, np.inf], np.full(began, 0.05))
    histograms = {PROMPT_LENGTH: prompts, OUTPUT_LENGTH: outputs, TTFT: firsts}
    return Window(**told | parts, histograms=histograms)


def test_drawn_requests_fit_in_the_context_that_the_server_allows():
    """Prompts above the last bound and long outputs: both drawn for themselves may be too long."""
    rng = np.random.default_rng(0)
    prompts, outputs = rng.integers(100, 24_000, 2000), rng.integers(500, 8_000, 2000)
    bounds = [1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0, np.inf]
    window = drawn_window(lengths_told(bounds, prompts), lengths_told(bounds, outputs), 2000)
    for run in drawn_traffic(window, engine_of(max_model_len=32_768), "live", "e"):
        lengths = [(p.prompt_tokens, p.samples[0].output_tokens) for p in run.problems.values()]
        assert len(lengths) == 2000
        assert max(map(sum, lengths)) <= 32_768
        means = np.mean(lengths, axis=0)
        assert means == pytest.approx([prompts.mean(), outputs.mean()], rel=0.01)


@pytest.mark.parametrize("largest", [1e-320, 1.5e308, -1.5e308])
def test_no_request_is_longer_than_any_context(largest):
    """Where the bounds and sums of a histogram are nonsense, as a page may have anything."""
    told = lengths_told([largest, np.inf], np.full(100, 50.0))
    told = dataclasses.replace(told, sums=np.full(11, 1e300))
    window = drawn_window(told, told, began=100)
    for run in drawn_traffic(window, engine_of(max_model_len=None), "live", "e"):
        lengths = [(p.prompt_tokens, p.samples[0].output_tokens) for p in run.problems.values()]
        assert len(lengths) == 100
        assert np.max(lengths) <= LONGEST


def test_of_more_requests_than_a_replay_takes_the_last_are_drawn(monkeypatch):
    """A page that counts millions does not ask for hours of replay."""
    lengths = lengths_told([100.0, np.inf], np.full(2000, 50))
    window = drawn_window(lengths, lengths, 2000)
    every = arrivals_in(window)
    assert len(every) == 2000
    monkeypatch.setattr("advisor.evidence.live.histograms.MOST_DRAWN", 500)
    for run in drawn_traffic(window, engine_of(), "live", "e"):
        assert [each.arrival_ns for each in run.problems.values()] == every[-500:].tolist()
        assert run.rate_per_s == pytest.approx(2000 / 10, rel=0.02)


@pytest.mark.parametrize("times", [10**9, 10**300])
def test_no_counter_of_a_page_fills_the_memory(times):
    """Each interval counts 200 requests that many times: the last of them all came in the last."""
    firsts = lengths_told([0.1, np.inf], np.full(2000, 0.05))
    firsts = Histogram(bounds=firsts.bounds, counts=firsts.counts * times, sums=firsts.sums)
    window = drawn_window(None, None, 0)
    arrivals = arrivals_in(dataclasses.replace(window, histograms={TTFT: firsts}))
    assert len(arrivals) == MOST_DRAWN
    assert 0 <= arrivals[0] <= arrivals[-1] <= 10 * 10**9


def test_what_waits_at_the_first_poll_is_replayed_too():
    lengths = lengths_told([100.0, np.inf], np.full(20, 50))
    waiting = 40.0 - 4.0 * np.arange(11)  # of 60 that began, 6 in each interval
    window = drawn_window(lengths, lengths, 60, gauges={WAITING: waiting})
    run = drawn_traffic(window, engine_of(), "live", "e")[0]
    arrivals = np.array([each.arrival_ns for each in run.problems.values()])
    assert len(arrivals) == 60 and (arrivals == 0).sum() == 40
    assert run.rate_per_s == pytest.approx(2.0)  # of those that came while it was watched


@pytest.mark.parametrize(("hits", "unit"), [(CACHED, 1), (HIT_TOKENS, 1), (HIT_TOKENS, 16)])
def test_the_coarse_law_reads_what_of_a_prompt_came_from_the_cache(hits, unit):
    """One prompt of 4,400 tokens in every tenth step, 4,000 of them cached.

    vLLM 0.8 counts what its cache was asked for, and had, in blocks.
    """
    polls, steps, prompts = 21, 100.0, 10.0
    each = np.full(polls, steps)
    gaps = Histogram(
        bounds=np.array([0.1, np.inf]), counts=np.tile([400.0, 0.0], (polls, 1)),
        sums=np.full(polls, 4.0),
    )  # fmt: skip
    firsts = dataclasses.replace(gaps, counts=np.tile([prompts, 0.0], (polls, 1)))
    window = Window(
        times=np.arange(polls) * 10**9, seconds=20.0, resets=0,
        increase={(PROMPT, ""): 44_000.0 * polls, (ASKED_TOKENS, ""): 44_000.0 * polls / unit},
        counted={f"{STEP_TOKENS}_count": each, PROMPT: each * 440, hits: each * 400 / unit},
        gauges={RUNNING: np.full(polls, 4.0), KV: np.full(polls, np.nan)},
        histograms={ITL: gaps, TTFT: firsts},
    )  # fmt: skip
    for reads, read in ((Reads(), 0.0), (Reads(window=4096.0), 400 * 4096 - 96 * 95 / 2)):
        seen = mean_steps(window, engine_of(), reads)
        found = Features(*seen.composition.mean(axis=0))
        assert found.query_context == pytest.approx(0.1 * 1_680_200)
        assert found.window_context == pytest.approx(0.1 * read, rel=1e-3)
        assert found.kv_tokens == pytest.approx(0.1 * 4400)


@pytest.mark.parametrize("told", [None, 8])
def test_no_change_of_a_limit_that_is_not_known(monkeypatch, told):
    asked = []
    server_where_requests_wait(monkeypatch, told)
    nothing = SimpleNamespace(
        replayed=None, predicted=SimpleNamespace(latency_s={"mean": None}), far_off=None
    )
    monkeypatch.setattr(what_next, "_predicted", lambda *_: asked.append(1) or nothing)
    found = suggest(None)
    assert ("max_num_seqs is now is not known" in str(found)) == (told is None)
    assert len(asked) == (told is not None)


@pytest.mark.parametrize(("told", "rate"), [(95, 1.0), (10, 9.5)])
def test_the_load_is_that_of_metrics_where_spans_tell_of_a_part(told, rate):
    """Spans sampled at a tenth of what ended come at a tenth of its rate."""
    window = SimpleNamespace(total=lambda _: 100.0, histograms={})
    server = SimpleNamespace(numbers=SimpleNamespace(samples_per_s=9.5), window=window)
    rows = pl.DataFrame({"arrival": [0, 10**9, 2 * 10**9], "latency_s": 0.1})
    samples = pl.DataFrame({"problem": range(told)})
    run = SimpleNamespace(rows=rows, sample_rows=samples, engine=engine_of(), latency_s=NOTHING)
    assert what_next._rate(None, [server], run) == rate


def test_requests_that_came_in_turn_are_none_of_the_load_that_is_replayed(monkeypatch):
    """Two traces a second of five calls each: the replay takes ten requests a second."""
    window = SimpleNamespace(total=lambda _: 100.0, histograms={})
    server = SimpleNamespace(numbers=SimpleNamespace(samples_per_s=10.0), window=window)
    rows = pl.DataFrame({"arrival": [place * 5 * 10**8 for place in range(20)], "latency_s": 0.1})
    samples = pl.DataFrame({"problem": np.repeat(np.arange(20), 5)})
    run = SimpleNamespace(rows=rows, sample_rows=samples, engine=engine_of(), latency_s=NOTHING)
    for kept, rate in ((0, 10.0), (20, 2.0)):
        problems = dict.fromkeys(range(kept), SimpleNamespace(samples=range(5)))
        read = SimpleNamespace(runs=[SimpleNamespace(engine=engine_of(), problems=problems)])
        monkeypatch.setattr(what_next, "read_runs", lambda _, read=read: read)
        assert what_next._rate(None, [server], run) == pytest.approx(rate)


def test_more_load_is_more_than_came_while_it_came():
    """Two bursts of 40 requests at ten a second, the first 20 s after the watch began."""
    burst = np.arange(40) * 10**8
    arrivals = [*(20 * 10**9 + burst).tolist(), *(60 * 10**9 + burst).tolist()]
    assert rate_under_load(arrivals, 0.5) == pytest.approx(79 / (7.9 + 0.5 - 0.1), rel=0.02)
    steady = np.cumsum(np.random.default_rng(3).exponential(1e8, 4000)).astype(int)
    assert rate_under_load(steady, 0.0) == pytest.approx(10.0, rel=0.05)
    together = np.repeat(np.arange(20) * 10**10, 16)  # sixteen at once, each ten seconds
    assert rate_under_load(together, 4.0) == pytest.approx(319 / (19 * 4.0))
    stays = np.tile(np.linspace(1.0, 6.0, 16), 20)  # a pause begins when the last of them is done
    assert rate_under_load(together, stays) == pytest.approx(319 / (19 * 6.0))
    assert rate_under_load([None, 7, 7], 1.0) is None
    unknown = (rate_under_load(together, stay) for stay in (np.nan, -1.0))
    assert list(unknown) == [rate_under_load(together, 0.0)] * 2


def test_the_load_of_metrics_is_that_of_the_time_in_which_it_came():
    """100 requests at ten a second, in a watch of a minute in which nothing else came."""
    times = np.arange(61) * 10**9
    counts = np.zeros((61, 1))
    counts[31:41] = 10.0
    firsts = Histogram(bounds=np.array([np.inf]), counts=counts, sums=np.zeros(61))
    window = Window(
        times=times, seconds=60.0, resets=0, increase={(FINISHED, ""): 100.0},
        histograms={TTFT: firsts}, gauges={WAITING: np.zeros(61)}, counted={},
    )  # fmt: skip
    server = SimpleNamespace(numbers=SimpleNamespace(samples_per_s=100 / 60), window=window)
    run = SimpleNamespace(rows=None, sample_rows=None, engine=engine_of(), latency_s=NOTHING)
    assert what_next._rate(None, [server], run) == pytest.approx(10.0, rel=0.02)


def test_replicas_are_predicted_as_the_suggested_command_runs_them(monkeypatch):
    asked = []
    monkeypatch.setattr(what_next, "predict", lambda _, __, question: asked.append(question))
    run = SimpleNamespace(engine=engine_of(mode="server"), policy=None)
    what_next._predicted(None, run, ("--replicas", "2"))
    assert asked[0].replicas == Replicas(count=2)


@pytest.mark.parametrize(
    ("held", "seen", "how"),
    [
        ("", {}, "with spans and steps"),
        ("samples", {}, "with steps"),
        ("samples steps", {"problems": 5}, "It holds 5 requests. Watch again for longer"),
        ("samples steps", {}, "does not show why"),
        ("samples steps", {"step_rows": 0.3}, "from 1.00 to 1.30 times their usual time"),
        ("steps", {"step_rows": 0.3, "problems": 5}, "A longer watch does not help"),
    ],
)
def test_no_command_is_offered_from_a_replay_that_is_far_off(monkeypatch, held, seen, how):
    """What it says of the run as it was would be said of the change too."""
    server_where_requests_wait(monkeypatch, 8)
    (run,) = what_next.summarise(None)
    vars(run).update(seen)
    off = FarOff(tags=("latency_s.mean",), words="16.7 s in the replay, and 8.24 s as recorded")
    found = SimpleNamespace(replayed=took(16.7), predicted=took(2.0), far_off=off)
    monkeypatch.setattr(what_next, "_predicted", lambda *_: found)
    said = suggest(SimpleNamespace(rows=lambda table: table in held.split()))
    assert isinstance(said, str) and off.words in said and how in said and "--set" not in said


def test_a_stalled_engine_is_answered_by_no_replay(monkeypatch):
    server_where_requests_wait(monkeypatch, 8)
    (server,) = what_next.watched_engines(None)
    server.verdict = Verdict(engine="e", found=(Finding(kind="stalled", evidence=""),))
    assert "log" in suggest(None)


def effect(recorded, replayed, predicted, off=None):
    """What is said of a change, by its replay and that of the run as it was."""
    prediction = SimpleNamespace(
        recorded=recorded, replayed=replayed, predicted=predicted, far_off=off
    )
    return effect_text(SimpleNamespace(why="requests wait", prediction=prediction))


def test_the_effect_of_a_change_stands_beside_what_was_recorded():
    told = effect(took(8.45), took(12.5), took(6.14))
    assert "latency mean 12.5 s (recorded 8.45 s) -> 6.14 s" in told


def test_a_p95_that_the_page_refutes_is_no_effect_of_a_change():
    recorded, replayed = took(0.85), took(0.6, 1.14)
    bounds = {"latency_s.p95": Bounds(low=2.0, high=2.5, unit="s")}
    off = far_off_of(recorded, replayed, bounds)
    assert "a p95 latency of 1.14 s in the replay, and 2.00 to 2.50 s as recorded" in off.text
    told = effect(recorded, replayed, took(0.5, 0.67), off)
    assert "latency mean 600 ms (recorded 850 ms) -> 500 ms" in told
    assert "670 ms" not in told and told.endswith(f", but not latency p95: {off.words}")
    near = {"latency_s.p95": Bounds(low=1.0, high=2.5, unit="s")}
    assert far_off_of(recorded, replayed, near) is None


@pytest.mark.parametrize(
    ("recorded", "replayed", "tag"),
    [
        (took(16.0, p50_s=16.7), took(16.0, p50_s=8.24), "latency_s.p50"),
        (took(16.0, ttft_s=23.7), took(16.0, ttft_s=0.0105), "ttft_s.p95"),
        (took(9.0, ttft_s=10.7), took(9.0, ttft_s=0.985), "ttft_s.p95"),
        (took(9.0), took(9.0, ttft_s=0.985), "ttft_s.p95"),  # /metrics say it is more
        (took(9.0, ttft_s=0.013), took(9.0, ttft_s=0.028), None),  # next to nothing of the latency
    ],
)
def test_each_time_that_the_replay_does_not_give_is_told(recorded, replayed, tag):
    bounds = {"ttft_s.p95": Bounds(low=10.0, high=20.0, unit="s")}
    off = far_off_of(recorded, replayed, bounds)
    assert (() if off is None else off.tags) == ((tag,) if tag else ())
    if tag == "ttft_s.p95":
        assert effect(recorded, replayed, took(4.0), off).endswith(f". But {off.words}")


def test_the_three_numbers_that_are_furthest_off_are_named():
    was = took(9.0, 12.0, p50_s=8.0, ttft_s=10.0)
    off = far_off_of(was, took(3.0, 2.0, p50_s=4.0, ttft_s=0.1), {})
    assert len(off.tags) == 4 and off.words.count(" in the replay") == 3
    assert "a median latency" not in off.words


def test_a_run_outside_of_its_replays_narrow_interval_is_far_off():
    replayed = took(1.0, low=0.95, high=1.05)
    assert far_off_of(took(1.15), replayed, {}) is None  # runs differ by as much
    assert far_off_of(took(1.2), replayed, {}).tags == ("latency_s.mean",)
    assert far_off_of(took(0.8), replayed, {}) is not None
    assert far_off_of(took(1.2), took(1.0, low=0.8, high=1.3), {}) is None


@pytest.mark.slow
def test_recorded_and_replayed_throughput_are_of_one_span(polled, tmp_path):
    """The watch went on as long again after the load had ended."""
    rows = polled.frame("scrapes")
    last = rows.filter(pl.col("time") == rows["time"].max())
    step = 250_000_000
    idle = [last.with_columns(time=pl.col("time") + place * step) for place in range(1, 40)]
    longer = predicted(set_up(polled, tmp_path / "longer", pl.concat([rows, *idle])))
    first = predicted(polled).recorded.throughput_tokens_per_s
    second, replayed = (each.throughput_tokens_per_s for each in (longer.recorded, longer.replayed))
    assert second.value == pytest.approx(first.value, rel=1e-6)
    assert second.value == pytest.approx(replayed.value, rel=0.05)


def took_by_a_front_end(truth):
    """Seconds of each problem, some two steps of the engine, and a few many more."""
    count = truth.tables["problems"].height
    return 0.006 * np.exp(np.random.default_rng(5).normal(0, 0.6, count))


@pytest.mark.slow
@pytest.mark.parametrize(
    "rate", [20.0, 60.0]
)  # an engine that is idle at times, and one that is not
def test_spans_and_steps_tell_the_front_ends_part_and_not_the_step_that_ran(base, tmp_path, rate):
    truth = at_rate(base, rate)
    took = took_by_a_front_end(truth)
    seen = watched(truth, tmp_path / "live", took_s=took)
    (run,) = gather([seen], judged=False).runs
    found = [problem.front_end_s for problem in run.problems.values()]
    assert np.mean(found) == pytest.approx(took.mean(), rel=0.08)
    for q in (0.1, 0.5, 0.9):
        assert np.quantile(found, q) == pytest.approx(np.quantile(took, q), rel=0.2), q


@pytest.mark.slow
def test_the_front_end_is_in_ttft_and_latency_and_not_in_tpot(base, truth, seen, tmp_path):
    took = took_by_a_front_end(truth)
    change = "engine.max_num_seqs=64"
    plain = predicted(seen, change)
    found = predicted(watched(truth, tmp_path / "live", took_s=took), change)
    wanted = at_rate(base, 60.0, change).predicted
    for name, more in (("ttft_s", took.mean()), ("latency_s", took.mean()), ("tpot_s", 0.0)):
        real = getattr(wanted, name)["mean"].value + more
        assert getattr(found.predicted, name)["mean"].value == pytest.approx(real, rel=0.05), name
    longer = found.predicted.ttft_s["mean"].value - plain.predicted.ttft_s["mean"].value
    assert longer == pytest.approx(took.mean(), rel=0.15)
    assert any("is in TTFT and latency" in note for note in found.notes)
    assert any("engine's part alone" in note for note in plain.notes)
    assert not any("drawn" in note for note in found.notes)  # all siblings are replayed
    alone = watched(truth, tmp_path / "alone", took_s=took, spans=False, steps=False)
    (drawn, *_) = gather([alone], judged=False).runs
    for problem in drawn.problems.values():
        assert problem.front_end_s == pytest.approx(took.mean(), rel=0.25)


@pytest.mark.slow
def test_advice_has_the_front_end_in_latency(truth, seen, tmp_path):
    took = took_by_a_front_end(truth)
    later = watched(truth, tmp_path / "live", took_s=took)
    found = [advice([each], rate_per_s=20.0, optimise="latency") for each in (seen, later)]
    plain, longer = (each.system_optimal.estimates["latency_s"].value for each in found)
    assert longer - plain == pytest.approx(took.mean(), rel=0.2)


def disturbed(truth, seed):
    """The same run on a machine that at times does something else: ends come later or earlier.

    Neighbours are disturbed alike, as by a stall that holds up all that is in flight.
    """
    problems, samples = truth.tables["problems"], truth.tables["samples"]
    rng = np.random.default_rng(seed)
    stretch = np.repeat(np.exp(rng.normal(0.0, 0.5, len(problems) // 5 + 1)), 5)[: len(problems)]
    took = (problems["decided_at"] - problems["arrival"]).to_numpy() * stretch
    later = pl.Series(problems["arrival"].to_numpy() + np.rint(took).astype(np.int64))
    longer = problems.select("problem_id", stretch=pl.Series(stretch))
    ends = pl.col("arrival") + ((pl.col("end") - pl.col("arrival")) * pl.col("stretch")).round()
    moved = samples.join(longer, on="problem_id", how="left", maintain_order="left")
    tables = truth.tables | {
        "problems": problems.with_columns(decided_at=later, end=later),
        "samples": moved.with_columns(end=ends.cast(pl.Int64)).drop("stretch"),
    }
    return with_drawn(truth, tables=tables)


@pytest.mark.slow
def test_the_interval_of_throughput_has_what_the_last_problems_lie_off(truth, seen, tmp_path):
    recording = watched(disturbed(truth, 0), tmp_path / "seen")
    told = predicted(recording).predicted.throughput_tokens_per_s
    tokens = int(truth.tables["samples"]["output_tokens"].sum())
    inside = []
    for seed in range(1, 101):
        problems = disturbed(truth, seed).tables["problems"]
        seconds = (problems["decided_at"].max() - problems["arrival"].min()) / 1e9
        inside.append(told.low <= tokens / seconds <= told.high)
    assert np.mean(inside) >= 0.8
    calm = predicted(seen).predicted.throughput_tokens_per_s
    assert told.high - told.low > 1.5 * (calm.high - calm.low)


@pytest.mark.slow
def test_advice_offers_more_requests_at_once_where_their_limit_bound(base, tmp_path):
    seen = watched(at_rate(base, 100.0, "engine.max_num_seqs=8"), tmp_path / "seen", period_s=0.1)
    pick = advice([seen], rate_per_s=60.0, optimise="latency").system_optimal
    assert pick.engine.max_num_seqs in (16, 32)
    latency = pick.estimates["latency_s"]
    assert latency.extrapolated
    wanted = at_rate(base, 60.0, f"engine.max_num_seqs={pick.engine.max_num_seqs}").predicted
    assert latency.low <= wanted.latency_s["mean"].value <= latency.high


@pytest.mark.slow
def test_advice_offers_no_more_where_the_limit_was_never_met(base, tmp_path):
    seen = watched(at_rate(base, 5.0, "engine.max_num_seqs=64"), tmp_path / "seen")
    space = explore(gather([seen], judged=False))
    assert space.max_num_seqs.max() == 64


def test_requests_of_polls_out_of_order_ascend():
    """As a forged recording has them: a replay takes arrivals that ascend."""
    window = drawn_window(None, None, 40, times=np.array([0, 3, 1, 2, *range(4, 11)]) * 10**9)
    arrivals = arrivals_in(window)
    assert len(arrivals) == 40 and (np.diff(arrivals) >= 0).all()


def test_seconds_of_few_long_steps_are_in_the_law():
    """Polls each second: 30 of 100 steps that decode, 3 of 10 steps with 8,000 prompt tokens."""
    steps = np.array([0.0] + [100.0] * 30 + [10.0] * 3)
    long = steps == 10.0
    decoded, firsts = 8 * steps, np.where(long, 10.0, 0.0)
    window = Window(
        times=np.arange(34) * 10**9, seconds=33.0, resets=0, increase={},
        counted={f"{STEP_TOKENS}_count": steps, PROMPT: 8000 * steps * long},
        gauges={RUNNING: np.full(34, 8.0), WAITING: np.zeros(34), KV: np.full(34, np.nan)},
        histograms={
            ITL: Histogram(np.array([np.inf]), decoded[:, None], 8.0 * (steps > 0)),
            TTFT: Histogram(np.array([np.inf]), firsts[:, None], firsts),
        },
    )  # fmt: skip
    found = mean_steps(window, engine_of(), ALL)
    tokens = Features(*found.composition.T).tokens
    assert found.seconds[tokens > 8000] == pytest.approx([0.1] * 3)
    assert found.seconds[tokens < 8000] == pytest.approx([0.01] * (tokens < 8000).sum())
    assert tokens.max() == tokens[tokens > 8000].min() == 8008


def set_up(recording, folder, rows, **settings):
    """Return the watch of a server with other rows of /metrics, and other settings."""
    (engine,) = recording.manifest.engines.values()
    engine = dataclasses.replace(engine, **settings)
    own = pl.lit(engine.key())
    kept = {
        name: recording.frame(name).with_columns(engine=own)
        for name in ("problems", "samples", "steps")
    }
    manifest = dataclasses.replace(recording.manifest, engines={engine.key(): engine})
    write_recording(folder, manifest, {**kept, "scrapes": rows.with_columns(engine=own)})
    return Recording.open(folder)


@pytest.mark.slow
@pytest.mark.parametrize("steps_counted", [True, False])  # as SGLang's page, and as NIM's
def test_a_page_without_lengths_is_replayed_with_a_wide_interval(
    truth, polled, tmp_path, steps_counted
):
    untold = [PROMPT_LENGTH, OUTPUT_LENGTH, *([] if steps_counted else [STEP_TOKENS])]
    rows = polled.frame("scrapes").filter(~pl.col("name").str.contains("|".join(untold)))
    found = predicted(set_up(polled, tmp_path / "bare", rows))
    whole = predicted(polled)
    told, real = (each.predicted.latency_s["mean"] for each in (found, truth))
    assert told.low <= real.value <= told.high
    wide, known = (each.predicted.latency_s["p95"] for each in (found, whole))
    assert wide.high - wide.low > known.high - known.low
    assert any("their means alone" in note for note in found.notes)
    assert not any("their means alone" in note for note in whole.notes)


@pytest.mark.slow
def test_a_page_without_times_between_tokens_says_that_it_lacks_them(polled, tmp_path):
    rows = polled.frame("scrapes").filter(~pl.col("name").str.starts_with(ITL))
    with pytest.raises(RecordingError, match="mean time between tokens"):
        predicted(set_up(polled, tmp_path / "bare", rows))


@pytest.mark.slow
def test_a_server_that_drafts_is_replayed_by_what_its_page_says_of_drafts(tmp_path):
    """Its spans and its histograms tell nothing of a request's own drafts."""
    drafting = engine_of(speculative=NGRAM)
    base = record(tmp_path / "base", drafting, VOTE4, problems=60, concurrency=8)
    run = at_rate(base, 60.0)
    took = base.samples["accepted_per_step"].explode().drop_nulls().to_numpy()
    counts = {(DRAFTS, ""): len(took), (DRAFTED, ""): NGRAM.num_speculative_tokens * len(took)}
    counts |= {
        (ACCEPTED_AT, f'position="{place}"'): int((took > place).sum()) for place in range(3)
    }
    seen = watched(run, tmp_path / "seen")
    (key,) = seen.manifest.engines
    rows = seen.frame("scrapes")
    times = rows["time"].unique().sort().to_list()
    more = [
        {"time": at, "engine": key, "name": name, "labels": labels, "le": None,
         "value": float(count) * place / (len(times) - 1)}
        for place, at in enumerate(times) for (name, labels), count in counts.items()
    ]  # fmt: skip
    rows = pl.concat([rows, pl.DataFrame(more, schema=rows.schema)]).sort("time")
    found = predicted(set_up(seen, tmp_path / "told", rows), "engine.max_num_seqs=16")
    wanted = at_rate(base, 60.0, "engine.max_num_seqs=16").predicted
    assert abs(relative(found.predicted, wanted, "latency_s", "mean")) < 0.1
    assert any("tokens a step. Each request has that" in note for note in found.notes)
    with pytest.raises(UsageError, match="how drafts went"):
        predicted(seen)
    unnamed = Speculative(method=UNKNOWN_METHOD, num_speculative_tokens=3)
    told = predicted(set_up(seen, tmp_path / "unnamed", rows, speculative=unnamed))
    assert (
        told.predicted.latency_s
        == predicted(set_up(seen, tmp_path / "again", rows)).predicted.latency_s
    )
    assert any("3 tokens ahead" in note for note in told.notes)
    server = dataclasses.replace(drafting, mode="server")
    client = {  # a workload's requests, which a client saw
        name: frame.with_columns(engine=pl.lit(server.key())) for name, frame in run.tables.items()
    }
    client["samples"] = client["samples"].drop("drafted_per_step", "accepted_per_step")
    client["scrapes"] = rows.with_columns(engine=pl.lit(server.key()))
    manifest = dataclasses.replace(run.manifest, engines={server.key(): server})
    write_recording(tmp_path / "client", manifest, client)
    found = predicted(Recording.open(tmp_path / "client"))
    assert any("tokens a step. Each request has that" in note for note in found.notes)
    untold = set_up(seen, tmp_path / "untold", rows, speculative=None)
    assert predicted(untold).predicted.latency_s == told.predicted.latency_s
    (run,) = gather([untold], judged=False).runs
    assert run.engine.speculative == unnamed
    sums = rows.filter(pl.col("name") != ACCEPTED_AT)
    of_sums = set_up(seen, tmp_path / "sums", sums, speculative=None)
    assert gather([of_sums], judged=False).runs[0].engine.speculative == unnamed
    bare = sums.filter(pl.col("name") != DRAFTED)
    for other, remedy in ((), "with the plugin"), ((("engine_name", "SGLang"),), "/server_info"):
        of_none = set_up(seen, tmp_path / remedy[-4:], bare, speculative=None, other=other)
        with pytest.raises(RecordingError, match=f"tokens ahead is not known.*{remedy}"):
            predicted(of_none)
        with pytest.raises(RecordingError, match="how many tokens ahead is not known"):
            gather([of_none])
    none = rows.with_columns(
        value=pl.when(pl.col("name").str.contains("spec_decode")).then(7.0).otherwise("value")
    )
    idle = set_up(seen, tmp_path / "idle", none, speculative=unnamed)
    advances = [
        sample.advance
        for run in gather([idle], judged=False).runs
        for problem in run.problems.values()
        for sample in problem.samples
    ]
    assert {step for each in advances for step in each.tolist()} == {1}
    assert predicted(idle).predicted.latency_s["mean"].value > 0
    unknown = set_up(seen, tmp_path / "unknown", none, speculative=None)
    assert predicted(unknown).predicted.latency_s == predicted(idle).predicted.latency_s
