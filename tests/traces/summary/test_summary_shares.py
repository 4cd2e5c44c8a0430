from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces.synthetic import simulate
from traces.recording.tables import TABLES
from traces.summary.problems import busy_seconds, share, share_steps


def frames(rows):
    return (
        pl.from_dicts(rows["steps"], schema=TABLES["steps"]),
        pl.from_dicts(rows["samples"], schema=TABLES["samples"]),
    )


@settings(max_examples=25)
@given(
    problems=st.integers(1, 8), n=st.integers(1, 6), seqs=st.integers(1, 9),
    concurrency=st.integers(1, 4), seed=st.integers(0, 1000),
)  # fmt: skip
def test_shares_sum_to_the_busy_time(problems, n, seqs, concurrency, seed):
    rows = simulate(problems=problems, n=n, seqs=seqs, concurrency=concurrency, seed=seed)
    steps, samples = frames(rows)
    shares = share_steps(steps, samples)
    assert (shares.sample_s > 0).all()
    assert shares.sample_s.sum() == pytest.approx(shares.busy_s)
    assert shares.busy_s == pytest.approx(busy_seconds(steps).sum())


def test_shares_match_a_step_by_step_count():
    rows = simulate(problems=5, n=4, seqs=6, seed=2)
    steps, samples = frames(rows)
    seconds = busy_seconds(steps)
    exact = np.zeros(samples.height)
    for position, step in enumerate(steps.iter_rows(named=True)):
        tokens = np.zeros(samples.height)
        for row, sample in enumerate(samples.iter_rows(named=True)):
            if sample["first_step"] == step["step"]:
                tokens[row] = 10
            elif sample["first_step"] < step["step"] <= sample["last_step"]:
                tokens[row] = 1
        exact += seconds[position] * tokens / tokens.sum()
    assert share_steps(steps, samples).sample_s == pytest.approx(exact)


def test_alone_a_sample_occupies_everything():
    steps, samples = frames(simulate(problems=1, n=1))
    shares = share_steps(steps, samples)
    assert shares.sample_s[0] == pytest.approx(busy_seconds(steps).sum())


def test_steps_are_found_by_time_where_their_numbers_are_not_recorded():
    steps, samples = frames(simulate(problems=4, n=3, seed=4))
    by_number = share_steps(steps, samples).sample_s
    blind = samples.with_columns(first_step=None, last_step=None).cast(TABLES["samples"])
    assert share_steps(steps, blind).sample_s == pytest.approx(by_number)


def test_unknown_samples_have_no_share():
    steps, samples = frames(simulate(problems=2, n=2))
    nowhere = samples.with_columns(first_step=None, last_step=None, scheduled=None, end=None)
    assert np.isnan(share_steps(steps, nowhere.cast(TABLES["samples"])).sample_s).all()
    assert np.isnan(share_steps(steps.clear(), samples).sample_s).all()


def test_profiled_steps_cost_nothing():
    steps, samples = frames(simulate(problems=2, n=2))
    marked = steps.with_columns(profiled=pl.col("step") < 3)
    shares = share_steps(marked, samples)
    assert shares.busy_s == pytest.approx(busy_seconds(steps)[3:].sum())
    assert shares.sample_s.sum() == pytest.approx(shares.busy_s)


def test_what_nobody_ran_for_is_nobodys():
    steps, samples = frames(simulate(problems=1, n=1))
    amounts = np.ones(steps.height)
    early = samples.with_columns(last_step=pl.col("first_step"))
    assert share(amounts, steps, early).sum() == pytest.approx(amounts.sum())
    amounts[0] = 0.0  # the only step that it ran in
    assert np.isnan(share(amounts, steps, early)).all()


def cancelled_before_it_ran(rows):
    """Add to every second problem a sample that was cancelled while it waited."""
    idle = []
    for sample in rows["samples"]:
        if sample["sample_index"] == 0 and len(idle) < len(rows["samples"]) // 4:
            blank = dict.fromkeys(("queued", "scheduled", "first_token", "think_end"))
            steps = dict.fromkeys(("first_step", "last_step", "cached_tokens", "correct", "answer"))
            told = {"sample_index": 99, "output_tokens": 0, "cancelled_by": "decision"}
            idle.append(sample | blank | steps | told)
    return idle


def test_a_sample_that_never_ran_cost_nothing_and_changes_no_share():
    rows = simulate(problems=8, n=4, seqs=6, seed=5)
    before = share_steps(*frames(rows)).sample_s
    idle = cancelled_before_it_ran(rows)
    assert idle
    steps, samples = frames(rows | {"samples": rows["samples"] + idle})
    after = share_steps(steps, samples).sample_s
    assert after[: len(before)] == pytest.approx(before)
    assert (after[len(before) :] == 0).all()


def test_where_scheduling_is_not_told_a_cancelled_sample_stays_unknown():
    rows = simulate(problems=2, n=2, seqs=6, seed=5)
    for sample in rows["samples"]:
        sample |= {"scheduled": None, "first_step": None, "cancelled_by": "decision"}
        sample["output_tokens"] = 0
    assert np.isnan(share_steps(*frames(rows)).sample_s).all()


def test_a_step_behind_a_pause_begins_when_its_first_sample_is_scheduled():
    """A front end sees its end alone: a prefill of 1 s, and three steps of 100 ms, twice."""
    ends = [1.0, 1.1, 1.2, 1.3, 6.0, 6.1, 6.2, 6.3]
    steps = pl.from_dicts(
        [
            {"engine": "e", "step": number, "end": round(end * 1e9), "interval_ns": interval}
            for number, (end, interval) in enumerate(
                zip(ends, [None, 100_000_000, 100_000_000, 100_000_000] * 2, strict=True)
            )
        ],
        schema=TABLES["steps"],
    )
    samples = pl.from_dicts(
        [
            {"engine": "e", "prompt_tokens": 9, "cached_tokens": 0, "output_tokens": 4,
             "scheduled": round(begun * 1e9), "end": round(end * 1e9)}
            for begun, end in ((0.0, 1.3), (5.0, 6.3))
        ],
        schema=TABLES["samples"],
    )  # fmt: skip
    shares = share_steps(steps, samples)
    # Where the first step began is not known: samples before it may have run for long.
    assert shares.sample_s == pytest.approx([0.3, 1.3])
    assert busy_seconds(steps).sum() == pytest.approx(0.6)  # nobody tells
    alone = share_steps(steps, samples.with_columns(scheduled=pl.lit(6_050_000_000)))
    assert alone.busy_s == pytest.approx(0.6)  # of others, which are not in the recording
