"""Merging parts a piece at a time."""

import polars as pl
import pytest

from traces.errors import RecordingError
from traces.recording import writer as merging
from traces.recording.parts import last_rows, read_part, write_part
from traces.recording.tables import TABLES
from traces.recording.writer import merge


def parts(folder, table, frames):
    """Write frames of some of a table's columns as its parts; return their paths."""
    columns = TABLES[table]
    return [
        write_part(folder, table, pl.DataFrame(each, schema_overrides=columns), at, at)
        for at, each in enumerate(frames)
    ]


def samples(names, end=None):
    rows = {"problem_id": names, "engine": "e", "policy": "p", "sample_index": 0}
    return rows | {"span_id": [f"s{name}" for name in names], "end": end}


@pytest.mark.parametrize("rows", [1, 3, 200_000])
def test_rows_keep_their_order_whatever_the_size_of_a_piece(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(merging, "ROWS", rows)
    monkeypatch.setattr(merging, "_FIRST_ROWS", min(rows, 2))
    paths = parts(
        tmp_path,
        "scrapes",
        [
            {"time": list(range(at * 7, at * 7 + 7)), "name": "n", "labels": "", "le": at / 2}
            for at in range(3)
        ],
    )
    target = tmp_path / "scrapes-000000-000002.parquet"
    merge(paths, target, "scrapes")
    found = read_part(target, "scrapes")
    assert found["time"].to_list() == list(range(21))
    assert found["le"].to_list() == [0.0] * 7 + [0.5] * 7 + [1.0] * 7
    assert found["value"].null_count() == 21  # a column that the parts lack
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize("piece", [1, 2, 1_000])
def test_the_last_row_of_a_key_stands(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(merging, "_FIRST_ROWS", piece)
    monkeypatch.setattr(merging, "_BYTES", piece)
    paths = parts(
        tmp_path,
        "samples",
        [samples(["a", "b", "a"]), samples(["c", "a"], 1), samples(["b", "d"], 2)],
    )
    target = tmp_path / "samples-000000-000002.parquet"
    merge(paths, target, "samples", last_only=True)
    found = read_part(target, "samples")
    whole = pl.concat([read_part(path, "samples") for path in paths])
    assert found.equals(last_rows(whole.lazy(), "samples").collect())
    assert found["problem_id"].to_list() == ["c", "a", "b", "d"]
    merge(paths, target, "samples")  # of a level: all stay
    assert read_part(target, "samples").equals(whole)


def test_parts_without_rows_and_lists_are_merged(tmp_path):
    tokens = samples(["a"]) | {"token_ids": [[1, 2, 3]]}
    empty = {name: [] for name in TABLES["samples"]}
    paths = parts(tmp_path, "samples", [empty, tokens, empty])
    target = tmp_path / "samples-000000-000002.parquet"
    merge(paths, target, "samples", last_only=True)
    assert read_part(target, "samples")["token_ids"].to_list() == [[1, 2, 3]]
    merge(paths[:1], target, "samples", last_only=True)
    assert read_part(target, "samples").height == 0


def test_a_damaged_part_is_named_and_leaves_nothing_behind(tmp_path):
    paths = parts(tmp_path, "steps", [{"step": [1, 2]}, {"step": [3]}])
    whole = paths[1].read_bytes()
    middle = len(whole) // 2
    paths[1].write_bytes(b"PAR1" + bytes(middle - 4) + whole[middle:])
    target = tmp_path / "steps-000000-000001.parquet"
    with pytest.raises(RecordingError, match="steps-000001"):
        merge(paths, target, "steps")
    assert not target.exists()
    assert list(tmp_path.glob("*.partial")) == []
