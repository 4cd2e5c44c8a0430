from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from advisor.evidence.features import (
    FEATURES,
    HOST_WORK,
    PARTS,
    Features,
    Reads,
    Work,
    demands,
    feature_matrix,
    reads_of,
    work_of_steps,
)
from advisor.evidence.gather import gather
from advisor.step_time.fit import StepTimeModel
from advisor.step_time.law import non_negative_least_squares
from tests.advisor.synthetic import FACTS, GREEDY, NGRAM, VOTE16, engine_of, law_of, record
from traces.errors import UsageError
from traces.recording.tables import COMPOSITION, WINDOWED
from traces.schema.tts.policy import Policy
from traces.statistics import student_95
from traces.summary.comparison import RUN_TO_RUN, assumed
from traces.summary.run import summarise


@pytest.mark.slow
def test_a_known_law_comes_back(tmp_path):
    engines = [engine_of(), engine_of("large"), engine_of("large", tensor_parallel_size=2)]
    recordings = [
        record(tmp_path / f"{number}{policy.method}", engine, policy, noise=0.02)
        for number, engine in enumerate(engines)
        for policy in (GREEDY, VOTE16)
    ]
    evidence = gather(recordings)
    model = StepTimeModel().fit(evidence.steps)
    for table in evidence.steps:
        predicted = model.law(table.engine).predict(table.composition)
        truth = table.composition @ law_of(table.engine)
        assert predicted.sum() == pytest.approx(truth.sum(), rel=0.01)
        assert np.median(np.abs(predicted / truth - 1)) < 0.03


@pytest.mark.slow
def test_experts_and_windows_are_learned_and_count(tmp_path):
    engine = engine_of("mixed")
    assert reads_of(FACTS["mixed"]) == Reads(experts=2 / 16, window=64.0)
    loads = [(GREEDY, 1), (GREEDY, 8), (VOTE16, 1), (VOTE16, 4)]
    recordings = [
        record(tmp_path / str(i), engine, policy, concurrency=c, noise=0.02)
        for i, (policy, c) in enumerate(loads)
    ]
    evidence = gather(recordings)
    assert "sliding windows" in evidence.lost[0]
    assert "Runs of small models with such layers" in evidence.lost[0]
    truth = law_of(engine)
    tables = evidence.steps
    law = StepTimeModel().fit(tables[:-1]).law(engine)
    held = tables[-1]  # a load that was not learned from
    predicted, should = law.predict(held.composition), held.composition @ truth
    assert predicted.sum() == pytest.approx(should.sum(), rel=0.01)
    assert np.median(np.abs(predicted / should - 1)) < 0.02
    # Without what experts and windows take, a law of the same steps is far off.
    without = [FEATURES.index(n) for n in ("experts", "window_tokens", "window_context")]
    for table in tables:
        table.composition[:, without] = 0.0
    poorer = StepTimeModel().fit(tables[:-1]).law(engine).predict(held.composition)
    assert np.median(np.abs(poorer / should - 1)) > 2 * np.median(np.abs(predicted / should - 1))


def test_windows_that_a_recording_does_not_tell_are_inferred(tmp_path):
    recording = record(tmp_path / "a", engine_of("mixed"), VOTE16, problems=8)
    reads = reads_of(FACTS["mixed"])
    told = work_of_steps(recording.steps, reads)
    guessed = work_of_steps(recording.steps.drop(WINDOWED), reads)
    for name in WINDOWED:
        true, guess = (np.asarray(getattr(each, name)) for each in (told, guessed))
        assert guess.sum() == pytest.approx(true.sum(), rel=0.05)
    assert (np.asarray(guessed.decode_window_tokens) <= told.decode_kv_tokens).all()


def test_the_mean_of_steps_with_less_than_a_request_reads_its_share():
    row = {
        "prefill_requests": 1.0, "prefill_tokens": 40.0, "decode_requests": 1.0,
        "decode_tokens": 1.0, "prefill_kv_tokens": 60.0, "decode_kv_tokens": 100.0,
        "prefill_query_context": 1620.0,
    }  # fmt: skip
    one, quarter = (
        work_of_steps(pl.DataFrame({name: [share * row[name]] for name in row}), Reads(window=16.0))
        for share in (1.0, 0.25)
    )
    assert one.decode_window_tokens == [16.0]
    for name in Work._fields:
        assert getattr(quarter, name) == pytest.approx(0.25 * getattr(one, name)), name


@pytest.mark.slow
def test_the_recorders_own_work_is_told_from_the_steps(tmp_path):
    host = (8e-4, 3e-4, 1e-4)  # a problem begins, a sample begins, a sample ends
    recordings = [
        record(tmp_path / f"{n}-{c}", engine_of(), votes(n), concurrency=c, noise=0.02, host=host)
        for n in (1, 4, 16)
        for c in (1, 8)
    ]
    law = StepTimeModel().fit(gather(recordings).steps).law(engine_of())
    learned, truth = Features(*law.seconds), Features(*law_of(engine_of(), host))
    for name, seconds in zip(HOST_WORK, host, strict=True):
        assert learned._asdict()[name] == pytest.approx(seconds, rel=0.15)
    assert learned.step == pytest.approx(truth.step, rel=0.05)


def test_without_a_join_there_is_no_such_work(tmp_path):
    steps = gather([record(tmp_path / "a", engine_of(), GREEDY, problems=8)]).steps
    assert steps[0].composition[:, -3:].sum() == 0
    served = engine_of(mode="server")  # another process's engine does not wait for the recorder
    steps = gather([record(tmp_path / "b", served, GREEDY, problems=8, host=(0, 0, 0))]).steps
    assert steps[0].composition[:, -3:].sum() == 0


def test_a_pause_between_problems_is_in_the_step_after_it(tmp_path):
    host = (8e-4, 3e-4, 1e-4)
    recording = record(
        tmp_path / "a", engine_of(), votes(4), problems=8, concurrency=1, noise=0.0, host=host
    )
    (table,) = gather([recording]).steps
    # The first problem began before any step; the seven others and their samples after one.
    assert table.composition[:, -3:].sum(axis=0).tolist() == [7, 28, 31]
    predicted = table.composition @ law_of(engine_of(), host)
    np.testing.assert_allclose(table.seconds, predicted, rtol=1e-5)


def votes(n: int) -> Policy:
    return Policy(method="majority", n=n, temperature=0.8, max_tokens=200)


def test_a_stall_does_not_bend_the_law(tmp_path):
    engine = engine_of()
    (table,) = gather([record(tmp_path / "a", engine, VOTE16, noise=0.0)]).steps
    seconds = table.seconds.copy()
    seconds[::50] *= 8
    stalled = type(table)(**{**vars(table), "seconds": seconds})
    law = StepTimeModel().fit([stalled]).law(engine)
    predicted = law.predict(table.composition)
    # The total keeps the stalls' share; the shape is that of the undisturbed steps.
    assert predicted.sum() == pytest.approx(seconds.sum(), rel=1e-6)
    shape = predicted / table.seconds
    assert np.quantile(shape, 0.95) / np.quantile(shape, 0.05) < 1.1


@pytest.mark.slow
def test_the_spread_is_that_of_runs_left_out(tmp_path):
    engine = engine_of()
    drifts = (0.1, -0.1, 0.1, -0.1)
    recordings = [
        record(tmp_path / f"r{i}", engine, VOTE16, drift=drift, problems=12)
        for i, drift in enumerate(drifts)
    ]
    law = StepTimeModel().fit(gather(recordings).steps).law(engine)
    assert law.repeats == 4
    assert law.runs == 4
    assert 0.08 < law.sigma < 0.25


def test_one_recording_has_an_assumed_spread_and_says_so(tmp_path):
    engine = engine_of()
    law = StepTimeModel().fit(gather([record(tmp_path / "a", engine, GREEDY)]).steps).law(engine)
    assert law.repeats == 0
    assert law.sigma >= RUN_TO_RUN


@pytest.mark.slow
def test_a_single_recording_whose_large_batches_bend_away_says_less_of_larger_ones(tmp_path):
    (table,) = gather([record(tmp_path / "one", engine_of(), VOTE16, concurrency=1)]).steps
    requests = table.composition[:, FEATURES.index("requests")]
    large = requests > requests.max() / 2
    laws = [
        StepTimeModel().fit([replace(table, seconds=seconds)]).law(table.engine)
        for seconds in (table.seconds, table.seconds * np.where(large, 1.5, 1.0))
    ]
    straight, bent = laws
    assert straight.sigma_outside < 1.3 * straight.sigma
    assert bent.sigma_outside > max(0.8 * np.log(1.5), straight.sigma_outside)


def test_what_was_never_recorded_is_refused(tmp_path):
    recordings = [record(tmp_path / "a", engine_of(), GREEDY, problems=8)]
    model = StepTimeModel().fit(gather(recordings).steps)
    with pytest.raises(UsageError, match="ngram k3 of small was never recorded"):
        model.law(engine_of(speculative=NGRAM))
    # Limits of the scheduler do not change the law.
    assert model.law(engine_of(max_num_seqs=1)) is model.law(engine_of())


def test_larger_steps_than_any_recorded_are_outside(tmp_path):
    engine = engine_of()
    recordings = [record(tmp_path / "a", engine, GREEDY, problems=8)]
    law = StepTimeModel().fit(gather(recordings).steps).law(engine)
    most = Features(*law.high).requests
    assert not law.beyond({"requests": most}) and law.beyond({"requests": 2 * most})
    assert law.most.requests == pytest.approx(1.1 * most)


@pytest.mark.parametrize(("share", "inside"), [(1 / 2240, True), (0.01, True), (0.013, False)])
def test_steps_beyond_that_take_too_little_time_mark_nothing(tmp_path, share, inside):
    law = StepTimeModel().fit(gather([record(tmp_path / "a", engine_of(), GREEDY)]).steps)
    run = SimpleNamespace(busy_s=100.0, beyond_s=100.0 * share)
    assert law.law(engine_of()).within([run, run]) == inside


def test_coefficients_are_never_negative():
    rng = np.random.default_rng(0)
    rows = rng.random((200, 3)) * np.array([1.0, 1e6, 1e-6])
    target = rows @ np.array([2.0, 3e-6, -1e5])
    found = non_negative_least_squares(rows, target)
    assert (found >= 0).all()
    assert found[2] == 0
    exact = non_negative_least_squares(rows, rows @ np.array([2.0, 3e-6, 1e5]))
    np.testing.assert_allclose(exact, [2.0, 3e-6, 1e5], rtol=1e-6)


def test_widening_of_few_repeats_is_students():
    known = {1: 6.314, 2: 2.920, 3: 2.353, 5: 2.015, 10: 1.812, 30: 1.697}
    for freedom, point in known.items():
        assert student_95(freedom) == pytest.approx(point, rel=5e-3)


def test_every_feature_asks_for_something_and_has_its_words():
    asked = demands(FACTS["mixed"], engine_of("mixed", speculative=NGRAM))
    assert (np.array(list(asked.values())).sum(axis=0) > 0).all()
    assert sorted(name for part in PARTS.values() for name in part) == sorted(FEATURES)
    assert Work._fields == (*COMPOSITION, *WINDOWED)


def test_the_composition_counts_drafts_and_context():
    row = {
        "prefill_requests": 1, "prefill_tokens": 10, "decode_requests": 2, "decode_tokens": 8,
        "prefill_kv_tokens": 10, "decode_kv_tokens": 100, "prefill_query_context": 55,
    }  # fmt: skip
    (got,) = feature_matrix(pl.DataFrame([row]), speculative=True)
    assert dict(zip(FEATURES, got.tolist(), strict=True)) == {
        "step": 1, "prefill_step": 1, "draft_step": 1, "requests": 3, "prefill_requests": 1,
        "draft_requests": 2, "tokens": 18, "experts": 0, "kv_tokens": 110,
        "query_context": 55 + 400, "window_tokens": 0, "window_context": 0,
        **dict.fromkeys(HOST_WORK, 0),
    }  # fmt: skip


def test_the_spread_that_is_assumed_of_a_run_is_the_one_that_a_comparison_assumes(tmp_path):
    """Of a machine that was twice as fast from a third of the run on."""
    recording = record(tmp_path / "r", engine_of(), VOTE16, noise=0.02)
    (run,) = summarise(recording)
    (table,) = gather([recording]).steps

    def drifting(count):
        return np.where(np.arange(count) < count // 3, 2.0, 1.0)

    rows = run.step_rows.with_columns(
        pl.col("interval_ns", "wall_ns") * pl.Series(drifting(run.step_rows.height))
    )
    drifted = replace(table, seconds=table.seconds * drifting(len(table.seconds)))
    (wanted,) = assumed([replace(run, step_rows=rows)])
    sigma = StepTimeModel().fit([drifted]).law(table.engine).sigma
    assert wanted > 3 * RUN_TO_RUN
    assert sigma == pytest.approx(wanted, rel=0.03)
