"""A recording that is on no disk."""

from dataclasses import replace

import pytest
from polars.testing import assert_frame_equal

from tests.traces.synthetic import simulate, write_recording
from traces.recording.reader import Held
from traces.recording.tables import KEYS, TABLES
from traces.summary.run import summarise


@pytest.fixture
def written(tmp_path):
    return write_recording(tmp_path / "run", simulate(problems=8, n=4))


@pytest.fixture
def held(written, tmp_path):
    tables = {name: written.frame(name) for name in ("problems", "samples", "steps")}
    return Held(tmp_path / "nowhere" / "run", written.manifest, tables=tables)


def test_its_tables_are_those_of_a_recording_on_disk(written, held):
    assert not held.path.exists()
    for name, columns in TABLES.items():
        assert held.rows(name) == written.rows(name)
        assert_frame_equal(held.frame(name), written.frame(name))
        some = KEYS.get(name, tuple(columns)[:2]) * 2  # as readers put them together
        assert_frame_equal(held.frame(name, some), written.frame(name, some))
    assert_frame_equal(held.step_times, written.step_times)


def test_its_summary_is_that_of_a_recording_on_disk(written, held):
    assert held.complete and held.losses == []
    assert [run.to_json() for run in summarise(held)] == [
        run.to_json() for run in summarise(written)
    ]


def test_rows_that_were_dropped_are_told(held):
    lossy = replace(held, manifest=replace(held.manifest, dropped={"steps": 3}))
    assert lossy.losses == ["rows of steps lost while recording: 3"]
