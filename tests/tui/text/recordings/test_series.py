from __future__ import annotations

import time

import numpy as np
import polars as pl
import pytest

from tui.text.recordings.series import Timeline

MS = 1_000_000
COUNTS = ("prefill_requests", "decode_requests", "running", "waiting", "kv_blocks")


def timeline(*steps, start=10**18):
    """Each step is its end in ms, its wall time in ms or None, and its requests."""
    rows = [
        dict.fromkeys(COUNTS, size)
        | {"prefill_requests": 0, "accepted": None, "end": start + round(end * MS)}
        | {"wall_ns": None if wall is None else round(wall * MS)}
        for end, wall, size in steps
    ]
    schema = {
        "end": pl.Int64,
        "wall_ns": pl.Int64,
        "interval_ns": pl.Int64,
        "accepted": pl.List(pl.Int64),
        "prefill_tokens": pl.Int64,
        "profiled": pl.Boolean,
    }
    frame = pl.DataFrame(
        rows, schema=schema | dict.fromkeys(COUNTS, pl.Int64), orient="row", strict=False
    )
    return Timeline.of(frame, 101)


def tokens(found):
    return np.nan_to_num(found.tokens_per_s) * np.diff(found.edges_ns) / 1e9


def same(values, wanted):
    return np.array_equal(values, [np.nan if each is None else each for each in wanted], True)


def test_a_step_is_spread_over_the_time_it_ran():
    steps = timeline((3, 3, 32), (6, 3, 16))
    found = steps.bins(24)  # an eighth of a millisecond and more: below a step
    assert found.tokens_per_s[:12] == pytest.approx(np.full(12, 32 / 3e-3))
    assert found.tokens_per_s[12:] == pytest.approx(np.full(12, 16 / 3e-3))
    assert same(found.batch, [32] * 12 + [16] * 12)
    assert same(found.kv_share, [0.32] * 12 + [0.16] * 12)
    ended = np.flatnonzero(found.first_step >= 0)
    assert ended.tolist() == [11, 23]
    assert found.first_step[ended].tolist() == [0, 1]
    inside = steps.bins(4, steps.start_ns + MS, steps.start_ns + 2 * MS)
    assert inside.tokens_per_s == pytest.approx(np.full(4, 32 / 3e-3))
    assert same(inside.waiting, [32] * 4)
    assert same(inside.first_step, [-1] * 4)


def test_the_pace_is_that_of_steps_of_one_size():
    """Steps of 1 and 32 requests in turn, twice as long in the last quarter of the time."""
    sizes = np.tile([1, 32], 200)
    took = np.where(sizes == 1, 3.0, 5.0) * np.where(np.arange(400) < 320, 1.0, 2.0)
    found = timeline(*zip(np.cumsum(took), took, sizes.tolist(), strict=True)).bins(48)
    assert found.uneven
    assert found.pace[-10:] / found.pace[:10] == pytest.approx(np.full(10, 2.0), rel=0.1)
    even = np.where(sizes == 1, 3.0, 5.0)
    found = timeline(*zip(np.cumsum(even), even, sizes.tolist(), strict=True)).bins(48)
    assert not found.uneven
    assert found.pace == pytest.approx(np.ones(48))
    few = timeline((2, 2, 8), (10, 2, 4)).bins(10)
    assert np.isnan(few.pace).all() and not few.uneven


def test_time_spent_idle_is_blank():
    found = timeline((2, 2, 8), (10, 2, 4)).bins(10)
    assert same(found.batch, [8, 8, *[None] * 6, 4, 4])
    assert same(np.isfinite(found.tokens_per_s), np.isfinite(found.batch))
    outside = timeline((2, 2, 8)).bins(4, 10**18 - 4 * MS, 10**18 + 4 * MS)
    assert same(outside.batch, [None, None, 8, None])
    assert tokens(outside) == pytest.approx([0, 0, 8, 0])


def test_without_a_wall_time_tokens_come_at_the_end():
    found = timeline((1, 1, 8), (4, None, 6)).bins(4)
    assert same(found.batch, [8, None, None, 6])
    assert tokens(found) == pytest.approx([8, 0, 0, 6])
    alone = timeline((1, None, 5)).bins(3)
    assert np.nanmax(alone.batch) == 5


def test_steps_that_overlap_follow_one_another():
    """As they do with asynchronous scheduling: each is begun while the one before runs."""
    found = timeline((2, 2, 8), (4, 4, 6), (6, 4, 4)).bins(6)
    assert tokens(found) == pytest.approx([4, 4, 3, 3, 2, 2])
    assert same(found.batch, [8, 8, 6, 6, 4, 4])


def test_a_bin_has_the_highest_of_the_steps_that_ran_in_it():
    found = timeline((1, 1, 2), (4, 3, 9)).bins(2)
    assert same(found.batch, [9, 9])
    assert tokens(found) == pytest.approx([2 + 3, 6])
    assert found.first_step.tolist() == [0, 1]


@pytest.mark.parametrize("bins", [1, 7, 64, 3001])
def test_bins_have_all_tokens_and_those_of_any_stretch(bins):
    rng = np.random.default_rng(bins)
    gaps, walls = rng.exponential(1.0, 200), rng.exponential(2.0, 200)
    sizes = rng.integers(0, 40, 200)
    ends = np.cumsum(np.where(rng.random(200) < 0.3, gaps, 0) + walls)
    steps = timeline(*zip(ends.tolist(), walls.tolist(), sizes.tolist(), strict=True))
    whole = steps.bins(bins)
    assert tokens(whole).sum() == pytest.approx(sizes.sum(), rel=1e-9)
    # Cumulative tokens are a line from each step's begin to its end.
    times = np.array([steps.begins_ns, steps.ends_ns]).T.ravel() - steps.start_ns
    given = np.array([steps.tokens_before[:-1], steps.tokens_before[1:]]).T.ravel()
    wanted = np.interp(whole.edges_ns - steps.start_ns, times, given)
    assert np.cumsum(tokens(whole)) == pytest.approx(wanted[1:], abs=1e-6)


def test_a_million_steps_are_light():
    size = 1_000_000
    ends = 10**18 + np.arange(1, size + 1) * 3 * MS
    rows = pl.DataFrame({"end": ends}).with_columns(
        pl.lit(3 * MS).alias("wall_ns"),
        pl.lit(None, dtype=pl.Int64).alias("interval_ns"),
        pl.lit(None, dtype=pl.List(pl.Int64)).alias("accepted"),
        *(pl.lit(8).alias(name) for name in (*COUNTS, "prefill_tokens")),
        pl.lit(False).alias("profiled"),
    )
    found = Timeline.of(rows, 101)
    arrays = [each for each in vars(found).values() if isinstance(each, np.ndarray)]
    assert sum(each.nbytes for each in arrays) <= 49 * size
    seconds = []
    for _ in range(5):
        begun = time.thread_time()
        found.bins(200, found.end_ns - 10**9, found.end_ns)
        seconds.append(time.thread_time() - begun)
    assert min(seconds) < 0.005
