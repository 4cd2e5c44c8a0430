"""Recordings: what is written is read back, whatever becomes of the files."""

import json
import os
import shutil
import time

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import parts
from traces.errors import NewerSchemaError, RecordingError
from traces.manifest import Manifest
from traces.recording import Recording, find_recordings
from traces.schema import Config, EngineConfig, Policy, Speculative
from traces.tables import STEP_TIMES, TABLES
from traces.writer import RecordingWriter, read_clocks


def make(folder, rows=5, **changes):
    with RecordingWriter(folder, Manifest(clock_start=read_clocks(), **changes)) as writer:
        for step in range(rows):
            writer.append("steps", {"engine": "e", "step": step, "drafted": [1, 0]})
    return folder


def test_round_trip(tmp_path):
    engine = EngineConfig(
        model="m",
        speculative=Speculative(method="ngram", num_speculative_tokens=3),
        other=(("a", "b"),),
    )
    policy = Policy(method="majority", n=4, temperature=0.8, rule=(("window", 2.0),))
    path = make(tmp_path / "r", engines={engine.key(): engine}, policies={policy.key(): policy})
    recording = Recording.open(path)
    assert recording.complete
    assert recording.manifest.engines == {engine.key(): engine}
    assert recording.manifest.policies == {policy.key(): policy}
    assert recording.steps["step"].to_list() == [0, 1, 2, 3, 4]
    assert recording.steps["wall_ns"].null_count() == 5
    for table, schema in TABLES.items():
        assert dict(recording.frame(table).schema) == dict(schema)
        assert recording.table(table).collect().equals(recording.frame(table))
    assert hash(Config(engine=engine, policy=policy)) == hash(Config(engine=engine, policy=policy))


def test_some_columns_are_those_of_all(tmp_path):
    recording = Recording.open(make(tmp_path / "r"))
    whole = recording.frame("steps")
    texts = pl.col("engine", "source").cast(pl.Utf8)
    assert recording.step_times.with_columns(texts).equals(whole.select(STEP_TIMES))
    part = parts.list_parts(recording.path, "steps")[0].path
    pl.read_parquet(part).drop("waiting").write_parquet(part)  # as an older ttscope wrote it
    assert recording.frame("steps", ["end", "waiting"])["waiting"].null_count() == whole.height


def test_last_row_of_a_span_stands(tmp_path):
    row = {"engine": "e", "policy": "p", "problem_id": "a", "span_id": "s", "arrival": 1}
    with RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks())) as writer:
        writer.append("problems", row)
        writer.append("problems", {**row, "problem_id": "b", "span_id": "t"})
        writer.append("problems", row | {"end": 9})
    problems = Recording.open(tmp_path / "r").problems.sort("problem_id")
    assert problems["end"].to_list() == [9, None]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 60), fan_in=st.integers(2, 5))
def test_merging_keeps_every_row_once(tmp_path_factory, count, fan_in):
    folder = tmp_path_factory.mktemp("merge")
    for number in range(count):
        frame = pl.DataFrame({"engine": ["e"], "step": [number]})
        parts.write_part(folder, "steps", frame, number, number)
        parts.merge_full_levels(folder, "steps", fan_in)
    listed = parts.list_parts(folder, "steps")
    rows = [step for part in listed for step in parts.read_part(part.path, "steps")["step"]]
    assert rows == list(range(count))
    assert len(listed) <= fan_in * 7


def test_a_day_of_parts_stays_below_200_files():
    files = dict.fromkeys(range(4), 0)
    for _ in range(86_400):
        files[0] += 1
        for level in (0, 1, 2):
            if files[level] == parts.FAN_IN:
                files[level], files[level + 1] = 0, files[level + 1] + 1
    assert sum(files.values()) < 200


def test_sources_left_by_a_kill_are_ignored(tmp_path):
    folder = make(tmp_path / "r", rows=1)
    frame = pl.read_parquet(folder / "steps-000000.parquet")
    parts.write_part(folder, "steps", pl.concat([frame, frame]), 0, 63)
    (folder / "steps-000064.partial").write_bytes(b"half")
    assert Recording.open(folder).steps.height == 2


@pytest.mark.parametrize("cut", [0, 1, 3, 7, 40, 400, -1, -4, -9])
def test_truncated_part_is_named(tmp_path, cut):
    folder = make(tmp_path / "r")
    part = folder / "steps-000000.parquet"
    part.write_bytes(part.read_bytes()[:cut])
    with pytest.raises(RecordingError, match=r"steps-000000.parquet: truncated or corrupt.*copy"):
        Recording.open(folder)


def test_corrupt_part_is_named(tmp_path):
    folder = make(tmp_path / "r", rows=2000)
    part = folder / "steps-000000.parquet"
    data = bytearray(part.read_bytes())
    data[4:60] = os.urandom(56)
    part.write_bytes(data)
    with pytest.raises(RecordingError, match="steps-000000.parquet"):
        Recording.open(folder).frame("steps")


def test_manifest_errors(tmp_path):
    with pytest.raises(RecordingError, match="no such recording"):
        Recording.open(tmp_path / "absent")
    with pytest.raises(RecordingError, match="not a recording"):
        Recording.open("/etc/passwd")
    with pytest.raises(RecordingError, match="no recording.json"):
        Recording.open(tmp_path)
    folder = make(tmp_path / "r")
    manifest = folder / "recording.json"
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(data | {"schema_version": 99}))
    with pytest.raises(NewerSchemaError, match="99 is newer.*upgrade"):
        Recording.open(folder)
    manifest.write_text(manifest.read_text()[:20])
    with pytest.raises(RecordingError, match="cannot be read"):
        Recording.open(folder)
    manifest.write_text(json.dumps(data | {"engines": {"e": {"dtype": "x"}}}))
    with pytest.raises(RecordingError, match="malformed"):
        Recording.open(folder)


def test_a_taken_folder_is_refused(tmp_path):
    folder = make(tmp_path / "r")
    with pytest.raises(RecordingError, match="already holds a recording"):
        make(folder)


def test_full_buffer_drops_and_counts(tmp_path):
    manifest = Manifest(clock_start=read_clocks())
    writer = RecordingWriter(tmp_path / "r", manifest, capacity=10, period_s=60)
    for step in range(25):
        writer.append("steps", {"engine": "e", "step": step})
    writer.close(complete=True)
    recording = Recording.open(tmp_path / "r")
    assert recording.steps.height == 10
    assert recording.manifest.dropped == {"steps": 15}


def test_a_manifest_that_cannot_be_closed_is_told(tmp_path, monkeypatch):
    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()), period_s=0.01)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "write", full)
    with pytest.raises(RecordingError, match="No space left.*its end is missing"):
        writer.close(complete=True)
    assert not Recording.open(tmp_path / "r").complete


def test_a_failing_disk_does_not_stop_the_run(tmp_path, monkeypatch):
    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()), period_s=0.01)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("traces.writer.write_part", full)
    writer.append("steps", {"engine": "e", "step": 0})
    with pytest.raises(RecordingError, match="No space left.*1 rows were lost"):
        writer.close(complete=True)
    assert not Recording.open(tmp_path / "r").complete


def test_a_bad_row_costs_only_its_batch(tmp_path):
    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()), period_s=60)
    writer.append("steps", {"engine": "e", "step": "not a number"})
    writer.append("problems", {"problem_id": "a"})
    with pytest.raises(KeyError, match="no column nonsense"):
        writer.append("steps", {"nonsense": 1})
    writer.close(complete=True)
    recording = Recording.open(tmp_path / "r")
    assert recording.problems.height == 1
    assert recording.manifest.dropped == {"steps": 1}


def test_find_recordings(tmp_path):
    first, second = make(tmp_path / "b"), make(tmp_path / "a")
    (tmp_path / "other").mkdir()
    assert find_recordings(tmp_path) == [second, first]
    assert find_recordings(first) == [first]
    assert find_recordings(tmp_path / "other") == []


def test_closing_leaves_one_file_per_table(tmp_path):
    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()), period_s=0.01)
    key = {"engine": "e", "policy": "p", "problem_id": "a", "span_id": "s"}
    writer.append("problems", key)
    for step in range(20):
        writer.append("steps", {"engine": "e", "step": step})
        time.sleep(0.02)
    writer.append("problems", key | {"end": 5})
    writer.close(complete=True)
    assert len(list((tmp_path / "r").glob("*.parquet"))) == 2
    recording = Recording.open(tmp_path / "r")
    assert recording.steps["step"].to_list() == list(range(20))
    assert recording.problems["end"].to_list() == [5]


def test_a_folder_that_is_gone_is_told_apart_from_files_that_change(tmp_path):
    path = make(tmp_path / "r")
    recording = Recording.open(path)
    shutil.rmtree(path)
    for read in (recording.frame, recording.rows, recording.table):
        with pytest.raises(RecordingError, match="its folder is gone"):
            read("steps")
