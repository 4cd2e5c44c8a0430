"""Rules that fire on what has finished, for fewer samples than were recorded."""

import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from advisor.accuracy.counterfactual import evaluate
from advisor.accuracy.finish_order import ReplayedOrder, replayed_order
from advisor.accuracy.samples import read_samples
from advisor.evidence.gather import gather
from advisor.evidence.runs import RecordedProblem
from advisor.replay.limits import Limits
from benchmarks.twin.replay_twin import naive_replay
from tests.advisor.synthetic import NGRAM, VOTE16, engine_of, law_of, record
from traces.recording.reader import Recording
from traces.summary.run import summarise

pytestmark = pytest.mark.slow

SLOTS, BLOCK, IN_FLIGHT = 8, 4, 4
ENGINE = engine_of(max_num_seqs=SLOTS)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A run of 16 samples on 8 slots: half of a problem's samples queue behind the others."""
    folder = tmp_path_factory.mktemp("order") / "r"
    return record(folder, ENGINE, VOTE16, concurrency=IN_FLIGHT, noise=0.0)


@pytest.fixture(scope="module")
def run(recording):
    return summarise(recording)[0]


def test_the_order_is_that_of_a_run_of_so_few(recording, run):
    """The truth is the twin, run with a block of each problem's samples alone."""
    order, samples = ReplayedOrder(recording, run), read_samples(run)
    (own,) = gather([recording], judged=False).runs
    at = 8  # recorded only when the first eight had left their slots
    loads = [
        RecordedProblem(
            prompt_tokens=problem.prompt_tokens,
            cached_tokens=problem.cached_tokens,
            samples=problem.samples[at : at + BLOCK],
        )
        for problem in own.problems.values()
    ]
    limits = Limits(
        max_num_seqs=SLOTS,
        max_num_batched_tokens=ENGINE.max_num_batched_tokens,
        block_size=ENGINE.block_size,
        num_blocks=ENGINE.num_gpu_blocks - 1,
    )
    truth = naive_replay(loads, law_of(ENGINE), limits, concurrency=IN_FLIGHT)
    ends = np.array(truth["ends"]).reshape(-1, BLOCK) - np.array(truth["arrival"])[:, None]
    place = {name: number for number, name in enumerate(own.problems)}
    found, recorded, real = [], [], []
    for problem in samples.problems:
        part = order.of(problem, range(at, at + BLOCK))
        found.append(part.finish_s)
        recorded.append(problem.finish_s[at : at + BLOCK])
        real.append(ends[place[problem.problem_id]])
    assert np.array(found) == pytest.approx(np.array(real), rel=0.03)
    first = np.argmin(real, axis=1)
    assert np.mean(np.argmin(found, axis=1) == first) > 0.95
    assert np.mean(np.argmin(recorded, axis=1) == first) < 0.9


def test_ranks_take_the_samples_as_they_did(recording, tmp_path):
    """Two ranks have twice the slots, so that samples end sooner than on one."""
    ends = {}
    for ranks in (1, 2):
        engine = replace(ENGINE, data_parallel_size=ranks)
        ran = record(tmp_path / str(ranks), engine, VOTE16, concurrency=IN_FLIGHT, noise=0.0)
        (one,) = summarise(ran)
        order, samples = ReplayedOrder(ran, one), read_samples(one)
        ends[ranks] = np.mean(
            [order.of(each, range(8)).finish_s.max() for each in samples.problems]
        )
    assert ends[2] < 0.75 * ends[1]


def test_samples_that_do_not_tell_their_drafts_keep_the_recorded_order(tmp_path):
    drafting = engine_of(max_num_seqs=SLOTS, speculative=NGRAM)
    ran = record(tmp_path / "r", drafting, VOTE16, concurrency=IN_FLIGHT, noise=0.0)
    assert replayed_order(ran, summarise(ran)[0]) is not None
    (part,) = ran.path.glob("samples-*")
    pl.read_parquet(part).drop("drafted_per_step", "accepted_per_step").write_parquet(part)
    (ran.path / "checksums.sha256").unlink()
    ran = Recording.open(ran.path)
    assert replayed_order(ran, summarise(ran)[0]) is None


def test_fewer_samples_are_judged_by_replay_and_all_as_recorded(recording, run):
    order = replayed_order(recording, run)
    basis = {
        (each.n, each.basis)
        for each in evaluate(run, order=order).outcomes
        if each.method in ("agreement", "first_finish")
    }
    assert basis == {(4, "replayed_order"), (8, "replayed_order"), (16, "finish_order")}
    without = {each.basis for each in evaluate(run).outcomes}
    assert "replayed_order" not in without


def test_a_run_without_steps_keeps_the_recorded_order(recording, run, tmp_path):
    shutil.copytree(recording.path, tmp_path / "bare")
    for part in (tmp_path / "bare").glob("steps-*"):
        part.unlink()
    assert replayed_order(Recording.open(tmp_path / "bare"), run) is None


def test_a_sample_larger_than_the_cache_keeps_the_recorded_order(recording, tmp_path):
    shutil.copytree(recording.path, tmp_path / "large")
    (part,) = (tmp_path / "large").glob("samples-*")
    pl.read_parquet(part).with_columns(prompt_tokens=99_999_999).write_parquet(part)
    (tmp_path / "large" / "checksums.sha256").unlink()
    large = Recording.open(tmp_path / "large")
    (run,) = summarise(large)
    found = evaluate(run, order=replayed_order(large, run)).outcomes
    assert {each.basis for each in found if each.method == "agreement"} == {"finish_order"}


def test_agreement_of_more_than_half_is_as_accurate_as_the_vote(recording, run):
    found = evaluate(run, order=replayed_order(recording, run)).outcomes
    votes = {each.n: each.accuracy for each in found if each.method == "majority"}
    told = [e for e in found if e.method == "agreement" and 2 * dict(e.rule)["agree"] > e.n]
    assert {each.n for each in told} == {4, 8, 16}
    for each in told:
        assert each.accuracy == votes[each.n]
