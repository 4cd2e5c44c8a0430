"""Steps that stand for all: small recordings keep every one, a thousand long ones fit in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.evidence import gather as gathering
from advisor.evidence.gather import gather
from advisor.evidence.steps import MOST_STEPS, most_of_each, places
from advisor.step_time import fit as step_time_fit
from advisor.step_time.fit import StepTimeModel, left_out_groups
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.errors import RecordingError
from traces.recording.reader import Recording

COUNTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=60)


@given(COUNTS, st.integers(1, 100_000))
def test_all_together_keep_as_many_as_may_be(counts, most):
    each = most_of_each(counts, most)
    if sum(counts) <= most:
        assert each is None
        return
    kept = sum(min(count, each) for count in counts)
    assert kept <= max(most, len(counts))
    more = sum(min(count, each + 1) for count in counts)
    assert more > most  # one more of each would be too many


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_one_step_is_taken_of_each_stretch(rows, kept):
    found = places(rows, kept, "run")
    assert len(found) == min(rows, kept)
    assert (np.diff(found) > 0).all()
    edges = np.linspace(0, rows, len(found) + 1).astype(int)
    assert (found >= edges[:-1]).all()
    assert (found < edges[1:]).all()
    assert (found == places(rows, kept, "run")).all()


def test_stretches_are_not_met_at_the_same_place():
    found = places(100_000, 1000, "run")
    assert len(np.unique(found % 100)) > 60


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        record(folder / f"{n}", engine_of(max_num_seqs=seqs), VOTE16, concurrency=2, seed=n)
        for n, seqs in enumerate((8, 16, 32))
    ]


@pytest.mark.slow
def test_a_small_fit_is_not_touched(runs):
    whole = [len(run.steps) for run in runs]
    assert sum(whole) < MOST_STEPS
    tables = gather(runs).steps
    assert [len(table.seconds) for table in tables] == whole
    assert all(table.most_of_all is None for table in tables)


@pytest.mark.slow
def test_a_sample_gives_nearly_the_law_of_all(runs, monkeypatch):
    tables = gather(runs).steps
    law = StepTimeModel().fit(tables).law(engine_of())
    monkeypatch.setattr(gathering, "MOST_STEPS", sum(len(t.seconds) for t in tables) // 5)
    fewer = gather(runs).steps
    again = gather([Recording.open(run.path) for run in runs]).steps
    for some, same, every in zip(fewer, again, tables, strict=True):
        assert len(some.seconds) < len(every.seconds) / 2
        np.testing.assert_array_equal(some.composition, same.composition)
        np.testing.assert_array_equal(some.most, every.most)
        assert set(map(tuple, some.composition)) <= set(map(tuple, every.composition))
    found = StepTimeModel().fit(fewer).law(engine_of())
    np.testing.assert_array_equal(found.high, law.high)
    assert found.fewest == law.fewest
    for table in tables:
        total = table.composition.sum(axis=0)
        assert total @ found.seconds == pytest.approx(total @ law.seconds, rel=0.01)


@pytest.mark.slow
def test_what_was_read_does_not_stay(runs):
    opened = [Recording.open(run.path) for run in runs]
    gather(opened)
    assert all(set(vars(each)) == {"path", "manifest", "unread", "named"} for each in opened)


@pytest.mark.slow
def test_a_recording_read_afresh_has_samples_without_their_tokens(runs):
    whole, less = runs[0].samples, runs[0].afresh().samples
    assert set(whole.columns) - set(less.columns) == {"token_ids", "token_logprobs"}
    assert less.equals(whole.select(less.columns))


@pytest.mark.slow
def test_rows_are_counted_without_reading_them(runs, tmp_path):
    assert runs[0].rows("steps") == runs[0].steps.height
    damaged = record(tmp_path / "damaged", engine_of(), VOTE16, problems=2)
    (part,) = damaged.path.glob("steps-*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(RecordingError, match=r"steps-.*truncated or corrupt"):
        damaged.rows("steps")


@pytest.mark.slow
def test_so_many_configurations_are_left_out_at_most(runs, monkeypatch):
    tables = gather(runs).steps
    every = left_out_groups(tables)
    assert len(every) == 3
    monkeypatch.setattr(step_time_fit, "MOST_LEFT_OUT", 2)
    assert left_out_groups(tables) == [every[0], every[2]]
