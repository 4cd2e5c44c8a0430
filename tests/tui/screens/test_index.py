"""The index beside recordings, by which they are listed before they are read."""

import json
import os

import pytest
from textual.widgets import DataTable

from tests.traces.synthetic import simulate, write_recording
from tests.tui.pilot import opened
from tui.app.app import TtscopeApp
from tui.screens.entries import listed, load, to_list
from tui.screens.index import NAME, Indexes, read_index, state_of, write_index


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tui.screens.index.FEWEST", 1)
    for name in ("one", "two"):
        write_recording(tmp_path / name, simulate(problems=4, n=2))
    return tmp_path


def note(folder, name):
    """Write the index as it is after `name` was read; return its rows."""
    indexes = Indexes()
    rows = [to_list(each) for each in load(folder / name)]
    indexes.note(folder / name, state_of(folder / name), rows)
    indexes.write()
    return rows


def test_a_row_of_the_index_looks_like_the_one_that_was_read(folder):
    note(folder, "one")
    (read,) = load(folder / "one")
    (row,) = listed(folder / "one", Indexes())
    assert row.run is None and row.key == read.key
    assert (row.title, row.cells, row.values) == (read.title, read.cells, read.values)


def test_what_is_not_in_the_index_is_listed_by_its_manifest(folder):
    (row,) = listed(folder / "two", Indexes())
    (read,) = load(folder / "two")
    assert row.title == read.title
    assert row.cells["tok/pb"] == ""
    (folder / "two" / "recording.json").write_text("{")
    assert listed(folder / "two", Indexes()) == []


def test_a_recording_that_changed_is_not_taken_from_the_index(folder):
    """Its files keep their sizes and times."""
    note(folder, "one")
    path = next((folder / "one").glob("problems-*.parquet"))
    status, data = path.stat(), bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert listed(folder / "one", Indexes())[0].cells["tok/pb"] == ""


def test_a_recording_with_other_times_is_read_no_second_time(folder, monkeypatch):
    note(folder, "one")
    os.utime(next((folder / "one").glob("problems-*.parquet")), ns=(1, 1))
    indexes = Indexes()
    assert listed(folder / "one", indexes)[0].cells["tok/pb"] != ""
    indexes.write()
    monkeypatch.setattr("tui.screens.index.content_of", lambda folder: pytest.fail("read again"))
    assert listed(folder / "one", Indexes())[0].cells["tok/pb"] != ""


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 1}', "\x00", "[" * 100_000])
def test_a_damaged_index_is_ignored_and_made_again(folder, damage):
    note(folder, "one")
    (folder / NAME).write_text(damage)
    assert read_index(folder) == {}
    note(folder, "one")
    assert set(read_index(folder)) == {"one"}


def test_a_foreign_or_hostile_index_is_ignored(folder):
    note(folder, "one")
    whole = json.loads((folder / NAME).read_bytes())
    (folder / NAME).write_text(json.dumps(whole | {"code": "0"}))
    assert read_index(folder) == {}
    whole["recordings"]["one"]["rows"][0]["cells"]["model"] = "\x1b[2J"
    (folder / NAME).write_text(json.dumps(whole))
    assert read_index(folder) == {}
    (folder / NAME).unlink()
    os.mkfifo(folder / NAME)
    assert read_index(folder) == {}
    (folder / NAME).unlink()
    (folder / NAME).symlink_to("/dev/zero")
    assert read_index(folder) == {}


def test_a_folder_that_cannot_be_written_has_no_index(tmp_path):
    (tmp_path / "file").write_text("")
    assert not write_index(tmp_path / "file", {})


def test_a_folder_of_few_recordings_gets_no_index(folder, monkeypatch):
    monkeypatch.setattr("tui.screens.index.FEWEST", 3)
    note(folder, "one")
    assert not (folder / NAME).exists()


@pytest.mark.slow
async def test_the_app_lists_leaves_an_index_and_lists_by_it(folder):
    async with opened(TtscopeApp([folder]), (160, 40)) as (app, _):
        assert app.query_one("#runs", DataTable).row_count == 2
        assert all(entry.run is not None for entry in app.entries)
    assert set(read_index(folder)) == {"one", "two"}
    (folder / NAME).write_text("nonsense")
    async with opened(TtscopeApp([folder]), (160, 40)) as (app, _):
        assert len(app.entries) == 2
    assert set(read_index(folder)) == {"one", "two"}
