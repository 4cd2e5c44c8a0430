"""Replicas and data-parallel ranks that were watched: their traffic and their load are together."""

import dataclasses
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from advisor.advice.advisor import Advisor
from advisor.evidence import measured
from advisor.evidence.features import FEATURES
from advisor.evidence.gather import Evidence, _rate, _with_drawn
from advisor.evidence.live import front_end_time
from advisor.evidence.live.front_end_time import with_front_end
from advisor.evidence.live.servers import deployed as of_all
from advisor.evidence.live.servers import replayable, servers_of
from advisor.evidence.measured import (
    Made,
    RunsMade,
    latencies,
    runs_in,
    runs_watched,
    same_load,
)
from advisor.search import space
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from advisor.what_if.suggest import suggest
from tests.advisor.asking import predicted
from tests.advisor.evidence.live.test_watched import drawn_window, lengths_told
from tests.advisor.synthetic import GREEDY, VOTE16, engine_of, record
from tests.advisor.watched import NAMED, UNNAMED, deployed, requests
from traces.live.numbers import FINISHED, ITL, Histogram
from traces.schema.advice import Budget
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.tts.policy import AS_SENT
from traces.summary.run import summarise


def window_of(requests):
    lengths = lengths_told([100.0, np.inf], np.full(requests, 50))
    return drawn_window(lengths, lengths, requests, increase={(FINISHED, ""): float(requests)})


def spans_of(count):
    """What spans tell, which do not say on which server a request was."""
    engine = EngineConfig(model="small", mode="server", other=(("service.name", "vllm"),))
    return requests("live", engine, [f"s{place}" for place in range(count)])


def traffic(spans, dtype=None, in_turn=None, more=()):
    ranks = [
        engine_of(mode="server", dtype=dtype, other=(("engine", str(rank)),)) for rank in (0, 1)
    ]
    recording = SimpleNamespace(
        name="live",
        manifest=SimpleNamespace(engines={"a": ranks[0], "b": ranks[1], **dict(enumerate(more))}),
    )
    windows = {"a": window_of(20), "b": window_of(20)}
    runs, notes = _with_drawn(recording, windows, spans, in_turn or {})
    evidence = Evidence(
        recordings=("live",), workload=None, models={}, steps=(), runs=tuple(runs),
        power={}, price_usd_per_device_hour=None,
    )  # fmt: skip
    return ranks, evidence, notes


def test_watched_replicas_share_the_load():
    ranks, evidence, _ = traffic([])
    (rate,) = {run.rate_per_s for run in evidence.runs}
    assert {run.engine for run in evidence.runs} == set(ranks)
    assert evidence.load == (None, pytest.approx(2 * rate))


@pytest.mark.parametrize(
    ("count", "dtype", "kept"), [(40, None, True), (30, None, False), (40, "bfloat16", True)]
)
def test_spans_are_held_against_all_servers_of_their_model(count, dtype, kept):
    """They stand for all requests, or none: no request is there twice."""
    ranks, evidence, notes = traffic([spans_of(count)], dtype)
    assert {run.engine for run in evidence.runs} == ({spans_of(1).engine} if kept else set(ranks))
    first = {run.engine: len(run.problems) for run in reversed(evidence.runs)}
    assert sum(first.values()) == 40
    assert [f"spans are of {count} of 40" in note for note in notes] == [True] * (not kept)


def test_requests_that_came_in_turn_are_told_of_and_not_left_out_of_what_is_drawn():
    spans = spans_of(20)
    _, _, (note,) = traffic([spans], in_turn={spans.engine: [12, 8]})
    assert "spans are of 40 of 40 requests that ended, 20 of them one after another" in note
    _, _, (note,) = traffic([spans_of(38)], in_turn={spans.engine: [2]})
    assert note.startswith("left out of live: 1 problem whose 2 requests")


def test_spans_of_another_model_stand_for_no_server():
    """A server of another model whose /metrics was not read has them, or no server."""
    own = spans_of(40)
    other = replace(own, engine=replace(own.engine, model="other"))
    ranks, evidence, (note,) = traffic([other], more=[other.engine])  # by another name
    assert {run.engine for run in evidence.runs} == set(ranks)
    assert "spans are of 40 of 40" in note
    unread = engine_of(mode="server", model="third")
    ranks, evidence, (note,) = traffic([other], more=[unread, other.engine])
    assert {run.engine for run in evidence.runs} == set(ranks)
    assert note == "left out of live: spans of other, which no watched server has"
    its = replace(own, engine=replace(own.engine, model="third"))
    ranks, evidence, notes = traffic([its], more=[unread, its.engine])
    assert {run.engine for run in evidence.runs} == {*ranks, its.engine} and notes == []


def test_a_watch_is_under_the_load_of_all_its_requests_and_not_of_those_with_spans():
    watch = SimpleNamespace(manifest=SimpleNamespace(policies={}, provenance={}))
    _, evidence, _ = traffic([spans_of(10)])
    (rate,) = {run.rate_per_s for run in evidence.runs}
    made = Made(
        recording=watch, engine=engine_of(), policy=AS_SENT, rate_per_s=_rate(evidence.runs)
    )
    assert same_load(made.load, evidence.load) and made.load == (None, pytest.approx(2 * rate))


def test_at_a_rate_what_was_paid_stands_beside_what_is_predicted(tmp_path):
    """Not the part of the time in which the devices were busy."""
    engine = engine_of(tensor_parallel_size=2)
    made = runs_in(record(tmp_path / "r", engine, GREEDY, problems=4, rate_per_s=2.0))
    found = RunsMade(made).measured(engine, GREEDY, (None, 2.0), 3.6)
    assert found.estimates["device_s"].value == pytest.approx(2 / 2.0)
    assert found.estimates["cost_usd"].value == pytest.approx(0.001)


def test_what_served_fewer_than_came_was_paid_for_its_busy_time(tmp_path, monkeypatch):
    engine = engine_of()
    made = runs_in(record(tmp_path / "r", engine, GREEDY, problems=4, rate_per_s=10.0))
    run = measured._run_of(made[0])
    for busy_s, paid in ((0.05, 0.1), (0.3, 0.3)):
        busy = Estimate(value=busy_s, unit="device-s")
        monkeypatch.setattr(
            measured, "_run_of", lambda _, busy=busy: replace(run, device_s_per_problem=busy)
        )
        found = RunsMade(made).measured(engine, GREEDY, (None, 10.0), 3.6).estimates
        assert found["device_s"].value == pytest.approx(paid)
        assert found["cost_usd"].value == pytest.approx(paid / 1000)


def test_spans_of_several_servers_have_the_mean_step_of_all(monkeypatch):
    """Half a step would else be in each time to the first token twice."""
    asked = []
    monkeypatch.setattr(
        front_end_time, "_of_spans", lambda _, key, run, step_s: asked.append(step_s) or {}
    )
    windows = {}
    for key, step_s in (("a", 0.02), ("b", 0.06)):
        gaps = Histogram(np.array([np.inf]), np.full((11, 1), 4), np.full(11, 4 * step_s))
        windows[key] = replace(window_of(20), histograms={ITL: gaps})
    engines = {key: engine_of(mode="server", model=key) for key in windows}
    recording = SimpleNamespace(
        engine_key=lambda engine: f"spans of {engine.model}",
        manifest=SimpleNamespace(engines=engines),
    )
    for model in ("other", "b"):
        with_front_end(recording, [replace(spans_of(3), engine=engine_of(model=model))], windows)
    assert asked == pytest.approx([0.04, 0.06])


def polled(*engines):
    """A watch of these servers, which told something each."""
    keys = [f"e{number}" for number in range(len(engines))]
    return SimpleNamespace(
        manifest=SimpleNamespace(
            engines=dict(zip(keys, engines, strict=True)), policies={}, provenance={}
        ),
        table=lambda _: pl.LazyFrame({"name": ["vllm:num_requests_running"] * len(keys),
                                      "engine": keys}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("blocks", "groups"), [((27_313, 27_295), [2]), ((27_313, 20_000), [1, 1]), ((9, None), [1, 1])]
)
def test_servers_whose_caches_differ_as_from_start_to_start_are_set_up_alike(blocks, groups):
    own = [
        engine_of(mode="server", num_gpu_blocks=count, other=(("url", f"http://{place}"),))
        for place, count in enumerate(blocks)
    ]
    found = servers_of(polled(*own))
    assert [each.replicas for each in found] == groups
    if len(found) == 1:
        assert found[0].engine.num_gpu_blocks == min(blocks)


def test_a_server_that_tells_of_its_ranks_and_of_all_counts_its_ranks():
    """As SGLang does: some numbers are the scheduler's, others of the process that tokenises."""
    whole = engine_of(mode="server", data_parallel_size=2)
    ranks = [
        replace(whole, data_parallel_size=1, other=(("engine", str(rank)),)) for rank in (0, 1)
    ]
    (found,) = servers_of(polled(whole, *ranks))
    assert found.replicas == 2 and found.engine.data_parallel_size == 2


@pytest.mark.parametrize(
    ("others", "count"),
    [
        ([{"url": "a"}, {"url": "b"}], 2),
        ([{"url": at, "engine": rank} for at in "ab" for rank in "01"], 2),
        ([{"engine": "0"}, {"engine": "1"}], 1),
        ([{"engine": "0 4f"}, {"engine": "1 4f"}, {"engine": "0 5a"}, {"engine": "1 5a"}], 2),
        ([{"engine": "4f"}, {"engine": "5a"}], 2),
    ],
)
def test_ranks_on_the_page_of_a_server_are_no_servers(others, count):
    """Ray's page has several replicas, each named behind its rank."""
    own = [engine_of(mode="server", other=tuple(each.items())) for each in others]
    (found,) = servers_of(polled(*own))
    assert (found.engine.ranks, found.replicas) == (len(own) // count, len(own))


def test_a_limit_that_bound_one_of_several_servers_may_be_raised():
    """Spans say no server, so their engine has no limit."""
    engine = engine_of(mode="server", max_num_seqs=8)
    most = np.zeros(len(FEATURES))
    most[FEATURES.index("requests")] = 8
    evidence = SimpleNamespace(
        runs=[replace(spans_of(1), engine=replace(engine, max_num_seqs=None, other=()))],
        steps=[SimpleNamespace(engine=engine, most=most)],
    )
    assert space._bound(evidence) == {engine}


def test_what_is_drawn_has_run_and_nothing_of_it_was_measured_by_the_problem(tmp_path):
    """Its problems are requests, and what spans tell are others."""
    recording = record(tmp_path / "r", engine_of(), GREEDY, problems=4)
    drawn = replace(spans_of(4), engine=engine_of(), drawn=True)
    made = RunsMade(runs_watched(recording, [drawn, drawn], 4.0))
    assert made.has(engine_of(), AS_SENT)
    assert made.measured(engine_of(), AS_SENT, (None, 4.0), None) is None


def test_what_was_measured_is_of_the_problems_that_are_replayed(tmp_path):
    recording = record(tmp_path / "r", engine_of(), GREEDY, problems=6)
    (run,) = summarise(recording)
    names = run.rows["problem_id"].to_list()[:2]
    some = run.among(names)
    kept = run.rows.filter(problem_id=names[0]).vstack(run.rows.filter(problem_id=names[1]))
    assert some.latency_s["mean"].value == pytest.approx(kept["latency_s"].mean())
    assert some.tokens_per_problem.value == pytest.approx(kept["tokens"].mean())
    assert (some.problems, some.throughput_tokens_per_s) == (2, None)
    assert run.among(run.rows["problem_id"].to_list()) is run
    made = Made(recording=recording, engine=run.engine, policy=GREEDY, problem_ids=frozenset(names))
    assert latencies(made).keys() == set(names)


LIMIT = "engine.max_num_seqs=6"


@pytest.fixture(scope="module")
def truths(tmp_path_factory):
    """Two servers' own loads, the second with more of them: as they were, and with a limit."""
    vote = dataclasses.replace(VOTE16, n=2)
    base = record(tmp_path_factory.mktemp("truth") / "base", engine_of(), vote, problems=120)

    def served(seed, rate, *changes):
        return predicted(base, *changes, rate_per_s=rate, seed=seed, arrivals_sent=True)

    loads = ((0, 60.0), (1, 100.0))
    return {name: [served(*load, *name) for load in loads] for name in ((), (LIMIT,))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spans", "steps"), [(NAMED, True), (UNNAMED, True), (UNNAMED, False), (None, True)]
)
def test_servers_that_were_watched_together_are_replayed_as_one_engine(
    truths, tmp_path, spans, steps
):
    seen = deployed(truths[()], tmp_path, spans=spans, steps=steps, period_s=0.1)
    (run,) = replayable(seen)
    assert run.engine.data_parallel_size == 2 and "url" not in dict(run.engine.other)
    found = predicted(seen, LIMIT)
    each = [truth.predicted.latency_s["mean"].value for truth in truths[(LIMIT,)]]
    latency = found.predicted.latency_s["mean"]
    assert latency.low <= np.mean(each) <= latency.high
    as_it_was = found.replayed.latency_s["mean"]
    was = np.mean([truth.predicted.latency_s["mean"].value for truth in truths[()]])
    assert as_it_was.low <= was <= as_it_was.high
    told = " ".join(found.notes)
    assert ("each request on the one that had it" in told) == (spans != UNNAMED)
    assert ("routers of 3 kinds" in told) == (spans == UNNAMED)
    if spans != UNNAMED and steps:
        assert latency.value == pytest.approx(np.mean(each), rel=0.15 if spans is None else 0.05)
    if spans is not None:
        assert found.recorded.latency_s["mean"].value == pytest.approx(was, rel=1e-6)
        assert found.recorded.problems == 240


@pytest.mark.slow
def test_what_is_proposed_for_several_servers_is_of_all_of_them(truths, tmp_path, monkeypatch):
    seen = deployed(truths[()], tmp_path, spans=UNNAMED)
    one = summarise(seen)[0]
    assert of_all(seen, one).engine.data_parallel_size == 2
    with monkeypatch.context() as once:  # the runs are summed up once
        once.setattr("advisor.evidence.live.servers.summarise", None)
        found = suggest(seen)
    assert found.prediction.recorded.engine.data_parallel_size == 2
    pick = Advisor.fit([seen]).recommend(Budget(optimise="latency")).system_optimal
    assert pick.policy == AS_SENT and pick.estimates["latency_s"].value > 0


@pytest.mark.slow
def test_servers_of_different_limits_are_each_replayed_by_themselves(truths, tmp_path):
    seen = deployed([truths[()][0], truths[(LIMIT,)][1]], tmp_path, spans=UNNAMED)
    runs, groups = replayable(seen), servers_of(seen)
    assert [run.engine.max_num_seqs for run in runs] == [32, 6] and len(groups) == 2
    for run in runs:
        found = predict(seen, run, Question(engine=run.engine, policy=AS_SENT))
        assert len(found.tables["problems"]) == pytest.approx(240, abs=12)  # requests of one server
