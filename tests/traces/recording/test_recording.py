"""Recordings: what is written is read back, whatever becomes of the files."""

import errno
import json
import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from math import isfinite
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.servers.clients import until
from tests.traces.synthetic import simulate, write_recording
from traces.errors import NewerSchemaError, RecordingError, UsageError
from traces.recording import checksums, parts
from traces.recording import writer as merging
from traces.recording.checksums import read_checksums
from traces.recording.manifest import Manifest, take_folder
from traces.recording.parts import read_part, write_part
from traces.recording.reader import Recording, batches, find_recordings
from traces.recording.tables import COLUMNS, STEP_TIMES, TABLES
from traces.recording.writer import RecordingWriter, read_clocks
from traces.schema.engine import Config, EngineConfig, Speculative
from traces.schema.tts.policy import Policy


def make(folder, rows=5, **changes):
    with RecordingWriter(folder, Manifest(clock_start=read_clocks(), **changes)) as writer:
        for step in range(rows):
            writer.append("steps", {"engine": "e", "step": step, "drafted": [1, 0]})
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"engines": {"e": EngineConfig(model="m", tensor_parallel_size=0)}},
        {"engines": {"e": EngineConfig(model="m", block_size=2**21)}},
        {"price_usd_per_device_hour": 1e300},
        {"concurrency": 2**63},
    ],
)
def test_what_could_not_be_read_again_is_not_begun(tmp_path, changes):
    with pytest.raises(UsageError, match="no recording can hold this"):
        RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks(), **changes))
    assert not (tmp_path / "r").exists()


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
    (recording.path / checksums.NAME).unlink()
    assert recording.frame("steps", ["end", "waiting"])["waiting"].null_count() == whole.height


@pytest.mark.slow
@settings(max_examples=12)
@given(count=st.integers(0, 40), fan_in=st.integers(2, 4))
def test_merging_keeps_every_row_once(tmp_path_factory, count, fan_in):
    folder = tmp_path_factory.mktemp("merge")
    for number in range(count):
        frame = pl.DataFrame({"engine": ["e"], "step": [number]})
        parts.write_part(folder, "steps", frame, number, number)
        merging.merge_full_levels(folder, "steps", fan_in)
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
    (folder / checksums.NAME).unlink()
    manifest.write_text(json.dumps(data | {"schema_version": 99}))
    with pytest.raises(NewerSchemaError, match="99 is newer.*Upgrade"):
        Recording.open(folder)
    manifest.write_text(manifest.read_text()[:20])
    with pytest.raises(RecordingError, match="cannot be read"):
        Recording.open(folder)
    manifest.write_text(json.dumps(data | {"engines": {"e": {"dtype": "x"}}}))
    with pytest.raises(RecordingError, match="malformed"):
        Recording.open(folder)


def test_a_recording_that_begins_is_not_called_damaged(tmp_path):
    """Its name is taken before its first words are on the disk. With rows it has begun."""
    folder = tmp_path / "new"
    take_folder(folder)
    for rows, message in ((False, "a recording begins there"), (True, "Restore it from a copy")):
        if rows:
            (folder / "steps-000000.parquet").touch()
        with pytest.raises(RecordingError, match=message):
            Recording.open(folder)


def test_full_buffer_drops_and_counts(tmp_path):
    manifest = Manifest(clock_start=read_clocks())
    writer = RecordingWriter(tmp_path / "r", manifest, capacity=10, period_s=60)
    for step in range(25):
        writer.append("steps", {"engine": "e", "step": step})
    with pytest.raises(
        RecordingError, match=r"15 rows were lost \(15 of steps\)\. They came faster"
    ):
        writer.close(complete=True)
    recording = Recording.open(tmp_path / "r")
    assert not recording.complete
    assert recording.steps.height == 10
    assert recording.losses == ["rows of steps lost while recording: 15"]


def test_two_threads_change_the_manifest_one_after_the_other(tmp_path, monkeypatch):
    """Both write into the same file, which then takes the place of the one before."""
    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()), period_s=60)
    other = threading.Thread(target=lambda: writer.update(probe_cost_us=2.0))
    write, began, both = Manifest.write, [], threading.Event()

    def slow(manifest, folder):
        began.append(manifest)
        if len(began) == 2:
            both.set()
        elif len(began) == 1:
            other.start()
            assert not both.wait(0.3)
        write(manifest, folder)

    monkeypatch.setattr(Manifest, "write", slow)
    writer.update(price_usd_per_device_hour=3.0)
    other.join()
    writer.close(complete=True)
    manifest = Recording.open(writer.path).manifest
    assert (manifest.probe_cost_us, manifest.price_usd_per_device_hour) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("failing", "told"),
    [
        ("manifest.Manifest.write", "every row was kept, and recording.json has no end"),
        ("writer.write_part", r"1 rows were lost \(1 of steps\).*No space left"),
    ],
)
def test_a_failing_disk_does_not_stop_the_run(tmp_path, monkeypatch, failing, told):
    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()), period_s=0.01)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"traces.recording.{failing}", full)
    writer.append("steps", {"engine": "e", "step": 0})
    with pytest.raises(RecordingError, match=told):
        writer.close(complete=True)
    assert not Recording.open(tmp_path / "r").complete


def test_a_bad_row_costs_only_itself(tmp_path):
    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()), period_s=60)
    for step in (0, "not a number", 2, 1 << 64, 4):
        writer.append("steps", {"engine": "e", "step": step})
    writer.append("problems", {"problem_id": "a"})
    with pytest.raises(KeyError, match="no column nonsense"):
        writer.append("steps", {"nonsense": 1})
    writer.close(complete=True)
    recording = Recording.open(tmp_path / "r")
    assert recording.problems.height == 1
    assert recording.steps["step"].to_list() == [0, 2, 4]
    assert recording.manifest.dropped == {"steps": 2}
    assert not recording.complete


def test_a_drained_row_that_does_not_fit_costs_those_behind_it(tmp_path):
    heard = []

    def failing(table, rows):
        raise ValueError("gone")

    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()), period_s=60)
    drained = [[{"step": 0}, {"step": 1}, {"nonsense": 1}, {"step": 3}]]
    writer.add_source("steps", lambda: drained.pop() if drained else [])
    writer.add_listener(failing)
    writer.add_listener(lambda table, rows: heard.append((table, rows.height)))
    writer.close(complete=True)
    recording = Recording.open(tmp_path / "r")
    assert recording.steps["step"].to_list() == [0, 1]
    assert recording.manifest.dropped == {"steps": 2}
    assert heard == [("steps", 2)]


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


def _fails(command):
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte; skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or _fails(mount):
        pytest.skip("no disk may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    """Fill a disk, and return the file that does."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    return ballast


def test_rows_wait_for_room_on_a_full_disk(small_disk, caplog):
    writer = RecordingWriter(small_disk / "r", Manifest(clock_start=read_clocks()), period_s=0.01)
    ballast = fill(small_disk)
    for step in range(500):
        writer.append("steps", {"engine": "e", "step": step})
    until(lambda: "Rows wait in memory" in caplog.text)
    ballast.unlink()
    writer.append("steps", {"engine": "e", "step": 500})
    writer.close(complete=True)
    recording = Recording.open(small_disk / "r")
    assert recording.complete
    assert recording.steps["step"].to_list() == list(range(501))


def test_what_a_full_disk_cost_is_counted_and_the_recording_can_be_read(small_disk):
    writer = RecordingWriter(small_disk / "r", Manifest(clock_start=read_clocks()), period_s=0.01)
    writer.append("events", {"kind": "note", "detail": "before"})
    until(lambda: list((small_disk / "r").glob("events-*.parquet")))
    fill(small_disk)
    for step in range(500):
        writer.append("steps", {"engine": "e", "step": step})
    lost = r"500 rows were lost \(500 of steps\). Writing failed \(No space left on device\)"
    with pytest.raises(RecordingError, match=lost):
        writer.close(complete=True)
    recording = Recording.open(small_disk / "r")
    assert not recording.complete
    assert recording.manifest.clock_end is not None  # its room was reserved
    assert recording.cut == "writing failed with No space left on device"
    assert recording.losses == ["rows of steps lost while recording: 500"]
    assert recording.frame("events").height == 1
    assert recording.steps.height == 0


def test_who_takes_the_room_that_is_free_does_not_take_that_of_the_end(small_disk, monkeypatch):
    """The end has the engines that came meanwhile, in the room that is there."""
    writer = RecordingWriter(small_disk / "r", Manifest(clock_start=read_clocks()), period_s=60)

    def taken(*_):
        fill(small_disk)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", taken)
    writer.update(provenance={"told": 1})
    fill(small_disk)
    writer.append("steps", {"engine": "e", "step": 0})
    with pytest.raises(RecordingError, match="^[^,]*: 1 rows were lost"):
        writer.close(complete=True)
    recording = Recording.open(small_disk / "r")
    assert recording.manifest.clock_end is not None
    assert recording.manifest.provenance == {"told": 1}
    assert recording.cut == "writing failed with No space left on device"


def test_a_checksum_that_found_no_room_leaves_none_of_its_line(small_disk):
    """Else the next one ends the line, and is lost: a closed recording refuses its file then."""
    path = small_disk / checksums.NAME
    path.write_bytes(b"#" * 4085 + b"\n")  # ten bytes of a page are left
    ballast = fill(small_disk)
    with pytest.raises(OSError, match="No space"):
        checksums.add(small_disk, "steps-000000.parquet", "0" * 64)
    ballast.unlink()
    checksums.add(small_disk, "steps-000001.parquet", "1" * 64)
    assert checksums.read_checksums(small_disk) == {"steps-000001.parquet": ("1" * 64,)}


def test_a_part_is_synced_before_it_appears_and_its_folder_behind(tmp_path, monkeypatch):
    """So that it survives a power failure whole, or is not there."""
    done = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: done.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
    )
    replaced = Path.replace

    def replace(path, target):
        done.append(f"{path} appears")
        return replaced(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    path = write_part(tmp_path, "events", pl.DataFrame(schema=TABLES["events"]), 0, 0)
    partial = path.with_suffix(".partial")
    assert done == [str(partial), f"{partial} appears", str(tmp_path)]


@pytest.mark.parametrize("closed", [True, False])
def test_what_ended_a_recording_is_said(tmp_path, closed):
    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()), period_s=60)
    assert "still going" in Recording.open(tmp_path / "r").cut
    if closed:
        writer.close(complete=False)
        assert Recording.open(tmp_path / "r").cut == "ended early"
    writer.close(complete=True)


@pytest.mark.parametrize("instead", ["a folder", "a link", "nothing"])
def test_nothing_is_written_into_a_folder_in_the_place_of_ours(tmp_path, instead):
    folder, other = tmp_path / "r", make(tmp_path / "other")
    writer = RecordingWriter(folder, Manifest(clock_start=read_clocks()), period_s=60)
    writer.append("steps", {"engine": "e", "step": 0})
    folder.rename(tmp_path / "moved")
    if instead == "a link":
        folder.symlink_to(other)
    elif instead == "a folder":
        other = other.rename(folder)
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    with pytest.raises(RecordingError, match=r"1 rows were lost.*deleted or moved while"):
        writer.close(complete=True)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_that_was_deleted_in_between_is_said_to_be(tmp_path, part):
    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()), period_s=0.01)
    for step in range(3):
        writer.append("steps", {"engine": "e", "step": step})
        until((tmp_path / f"r/steps-00000{step}.parquet").exists)
    (tmp_path / f"r/steps-00000{part}.parquet").unlink()
    with pytest.raises(RecordingError, match="parts of steps were deleted while it was written"):
        writer.close(complete=True)
    assert not Recording.open(tmp_path / "r").complete


def test_a_recording_can_be_made_in_a_linked_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "r").symlink_to(tmp_path / "real")
    with RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks())) as writer:
        writer.append("steps", {"engine": "e", "step": 0})
    assert Recording.open(tmp_path / "real").steps.height == 1


def test_a_table_that_cannot_be_written_costs_no_other(tmp_path, monkeypatch):
    write = parts.write_part

    def failing(folder, table, *rest):
        if table == "steps":
            raise pl.exceptions.ComputeError("No space left on device (os error 28)")
        return write(folder, table, *rest)

    monkeypatch.setattr("traces.recording.writer.write_part", failing)
    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()), period_s=0.01)
    writer.append("steps", {"engine": "e", "step": 0})
    writer.append("problems", {"problem_id": "a"})
    with pytest.raises(RecordingError, match=r"1 rows were lost \(1 of steps\)"):
        writer.close(complete=True)
    assert Recording.open(tmp_path / "r").problems.height == 1


def test_of_two_writers_one_gets_the_folder(tmp_path):
    def take(folder):
        try:
            return RecordingWriter(folder, Manifest(clock_start=read_clocks()))
        except RecordingError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            taken = list(pool.map(take, [tmp_path / str(number)] * 8))
            (writer,) = [each for each in taken if isinstance(each, RecordingWriter)]
            assert all("already holds" in each for each in taken if each is not writer)
            writer.close(complete=True)


@pytest.mark.parametrize("name", ["r[1]", "r*", "r?", "r{1,2}", "r\\x", "r 1", "ü%20", "a:b"])
def test_a_folder_is_read_by_its_name_and_never_as_a_pattern(tmp_path, name):
    make(tmp_path / "r1", rows=3)
    recording = Recording.open(make(tmp_path / name, rows=5))
    assert recording.steps.height == recording.rows("steps") == 5
    assert recording.table("steps").collect().height == 5
    assert recording.step_times.height == 5


def test_a_folder_whose_name_is_no_text_is_not_called_damaged(tmp_path):
    folder = make(tmp_path / os.fsdecode(b"\xff\xfe"), rows=5)
    with pytest.raises(RecordingError, match="the locale cannot read its name"):
        Recording.open(folder)


@pytest.mark.parametrize("file", ["steps-000000.parquet", "recording.json"])
def test_a_changed_byte_is_noticed(tmp_path, file):
    folder = make(tmp_path / "r", rows=50)
    data = (folder / file).read_bytes()
    for at in range(0, len(data), 97):
        changed = bytearray(data)
        changed[at] ^= 1
        (folder / file).write_bytes(changed)
        with pytest.raises(RecordingError, match=f"{file}: "):
            Recording.open(folder).frame("steps")
    (folder / file).write_bytes(data)
    assert Recording.open(folder).steps.height == 50


def test_a_copied_part_counts_once(tmp_path):
    folder = make(tmp_path / "r")
    for old in (False, True):
        if old:
            (folder / checksums.NAME).unlink()
        for copy in ("steps-000001.parquet", "steps-000007.parquet"):
            shutil.copy(folder / "steps-000000.parquet", folder / copy)
        assert Recording.open(folder).steps.height == 5
        assert Recording.open(folder).table("steps").collect().height == 5


def test_a_part_that_is_missing_is_said(tmp_path):
    folder = make(tmp_path / "r")
    (folder / "steps-000000.parquet").unlink()
    recording = Recording.open(folder)
    assert not recording.complete
    assert recording.losses == ["steps-000000.parquet is missing: its rows are lost"]


@pytest.mark.parametrize("file", ["steps-000000.parquet", "recording.json", checksums.NAME])
def test_links_and_special_files_are_refused(tmp_path, file):
    folder = make(tmp_path / "r")
    elsewhere = tmp_path / "elsewhere"
    (folder / file).rename(elsewhere)
    for make_special in (lambda path: path.symlink_to(elsewhere), os.mkfifo, os.mkdir):
        make_special(folder / file)
        with pytest.raises(RecordingError, match=f"{file}: is a link or a special file"):
            Recording.open(folder).frame("steps")
        (folder / file).rmdir() if (folder / file).is_dir() else (folder / file).unlink()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"schema_version": 1e999}',
        '{"schema_version": true}',
        '{"schema_version": 1, "clock_start": {"monotonic_ns": 1, "unix_ns": 9e99}}',
        '{"schema_version": 1, "clock_start": null}',
        '{"schema_version": 1, "clock_start": {"monotonic_ns": "1", "unix_ns": 1}}',
        "[]",
        "",
        "\\xff",
    ],
)
def test_a_manifest_of_another_shape_is_one_line(tmp_path, text):
    folder = make(tmp_path / "r")
    (folder / checksums.NAME).unlink()
    (folder / "recording.json").write_text(text)
    with pytest.raises(RecordingError, match="recording.json: "):
        Recording.open(folder)
    with (folder / "recording.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    with pytest.raises(RecordingError, match=r"recording\.json: is larger than"):
        Recording.open(folder)


@pytest.mark.parametrize("end", [pl.lit(9223372036854775807, pl.Int64), pl.struct("end")])
def test_what_nothing_can_be_computed_with_is_damage(tmp_path, end):
    folder = make(tmp_path / "r")
    part = folder / "steps-000000.parquet"
    (folder / checksums.NAME).unlink()
    pl.read_parquet(part).with_columns(end=end).write_parquet(part)
    with pytest.raises(RecordingError, match="steps-000000.parquet: says .* as end|truncated"):
        Recording.open(folder).frame("steps")


@pytest.mark.slow
def test_a_small_file_of_many_rows_is_refused(tmp_path):
    folder = make(tmp_path / "r")
    part = folder / "steps-000000.parquet"
    pl.read_parquet(part)[:1].select(pl.all().repeat_by(2_000_000).explode()).write_parquet(part)
    (folder / checksums.NAME).unlink()
    for read in (Recording.open(folder).frame, Recording.open(folder).table):
        with pytest.raises(RecordingError, match="claims 2,000,000 rows in"):
            read("steps")


@pytest.mark.parametrize("length", [1_024, 1_025, 5_000_000])
def test_lists_of_steps_are_as_long_as_a_draft_can_be(tmp_path, length):
    folder = make(tmp_path / "r")
    (folder / checksums.NAME).unlink()
    part = folder / "steps-000000.parquet"
    zeros = pl.lit(0, pl.Int64).repeat_by(length)
    pl.read_parquet(part).with_columns(accepted=zeros).write_parquet(part)
    recording = Recording.open(folder)
    if length == 1_024:
        assert set(recording.frame("steps")["accepted"].list.len()) == {length}
        assert recording.table("steps").collect().height == recording.rows("steps")
        return
    for read in (recording.frame, recording.table):
        with pytest.raises(RecordingError, match="claims [0-9,]+ values of accepted in"):
            read("steps")


def test_one_long_list_among_short_ones_is_refused_and_not_written(tmp_path):
    folder = make(tmp_path / "r")
    (folder / checksums.NAME).unlink()
    part = folder / "steps-000000.parquet"
    steps = pl.read_parquet(part)
    lists = [[0] * 1_025, *[[0]] * (steps.height - 1)]
    steps = steps.with_columns(drafted=pl.Series(lists, dtype=pl.List(pl.Int64)))
    steps.write_parquet(part)
    assert parts.sound_rows("steps", steps).height == steps.height - 1
    for read in (Recording.open(folder).frame, Recording.open(folder).table):
        with pytest.raises(RecordingError, match="says 1025 as the length of drafted"):
            read("steps")


@pytest.mark.parametrize("changed", [b"\xff" * 64, b"\x19\xff" * 32, b"\x1c" * 4_000, b"\x15"])
def test_a_footer_that_is_no_footer_is_damage(tmp_path, changed):
    path = tmp_path / "steps-000000.parquet"
    footer = changed + len(changed).to_bytes(4, "little") + b"PAR1"
    path.write_bytes(b"PAR1" + bytes(8) + footer)
    with pytest.raises((ValueError, IndexError, RecursionError)):
        parts._count_values(path)


def test_a_folder_that_could_not_be_written_can_be_taken_again(small_disk):
    ballast = fill(small_disk)
    with pytest.raises(RecordingError, match="cannot be written"):
        RecordingWriter(small_disk / "r", Manifest(clock_start=read_clocks()))
    ballast.unlink()
    assert Recording.open(make(small_disk / "r")).complete


@pytest.mark.slow
def test_too_many_engines_are_refused_as_they_are_written_and_read(tmp_path):
    engines = {f"e{i}": EngineConfig(model=f"m{i}") for i in range(4_097)}
    with pytest.raises(UsageError, match="over 4,096 engines"):
        make(tmp_path / "r", engines=engines)
    folder = make(tmp_path / "r")
    manifest = json.loads((folder / "recording.json").read_text())
    manifest["engines"] = {key: each.to_json() for key, each in engines.items()}
    (folder / "recording.json").write_text(json.dumps(manifest))
    (folder / "checksums.sha256").unlink()
    with pytest.raises(RecordingError, match="over 4,096 engines"):
        Recording.open(folder)


@pytest.mark.parametrize("at", [(merging, "write_part"), (merging, "sound_rows"), (pl, "concat")])
def test_ctrl_c_while_a_part_is_written_loses_nothing(tmp_path, monkeypatch, at):
    """Polars raises KeyboardInterrupt in the writer's thread when the process is interrupted."""
    function, pressed = getattr(*at), []

    def interrupted(*arguments, **more):
        if len(pressed) < 2:
            pressed.append(True)
            raise KeyboardInterrupt
        return function(*arguments, **more)

    monkeypatch.setattr(*at, interrupted)
    writer = RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks()))
    writer.append("events", {"time": 1, "kind": "note", "detail": "kept"})
    writer.close(complete=True)
    assert len(pressed) == 2
    recording = Recording.open(tmp_path / "r")
    assert recording.complete
    assert recording.frame("events")["detail"].to_list() == ["kept"]


@pytest.mark.parametrize("there", [False, True])
def test_a_recording_with_text_is_its_users_alone(tmp_path, there):
    folder = tmp_path / "r"
    if there:
        folder.mkdir(mode=0o755)
    facts = Manifest(clock_start=read_clocks(), text_recorded=True)
    with RecordingWriter(folder, facts, period_s=0.01) as writer:
        for table in ("steps", "events"):
            writer.append(table, {"engine": "e"})
        modes = {each.stat().st_mode & 0o777 for each in folder.iterdir()}
    modes |= {each.stat().st_mode & 0o777 for each in folder.iterdir()}
    assert (folder.stat().st_mode & 0o777, modes) == (0o700, {0o600})
    assert len(list(folder.iterdir())) >= 4


@pytest.mark.parametrize("table", sorted(COLUMNS))
def test_a_value_out_of_its_columns_range_is_one_line(tmp_path, table):
    """With a checksum too: who forges a part can write its line."""
    folder = make(tmp_path / "r")
    for name, column in COLUMNS[table].items():
        if not isfinite(column.low):
            continue
        for value in (column.low - 1, column.high + 1, column.low, column.high):
            held = [value] if isinstance(column.type, pl.List) else value
            other = held if column.present else None
            frame = pl.DataFrame({name: [other, held]}, schema={name: column.type})
            path = write_part(folder, table, frame, 50, 50)
            sound = column.low <= value <= column.high
            refused = nullcontext() if sound else pytest.raises(RecordingError, match=name)
            with refused:
                read_part(path, table, [name], read_checksums(folder))
            refused = nullcontext() if sound else pytest.raises(RecordingError, match=name)
            with refused:
                list(batches(Recording.open(folder), table, [name]))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("engines", "block_size"), (1 << 20) + 1), (("engines", "block_size"), 0),
        (("engines", "data_parallel_size"), 1 << 40), (("engines", "max_num_seqs"), -1),
        (("models", "head_dim"), -1), (("policies", "n"), 1 << 40),
        (("clock_start", "unix_ns"), 1 << 62), (("concurrency",), -1), (("rate_per_s",), 0.0),
        (("dropped", "steps"), -5), (("provenance", "imported"), []),
        (("provenance", "imported"), None), (("provenance", "imported"), {"files": [3]}),
        (("provenance", "imported"), {"unlike": [3]}), (("provenance", "replayed"), 5),
        (("provenance", "imported"), {"failed_problems": "x"}), (("provenance", "cpus"), -1),
    ],
)  # fmt: skip
def test_a_number_out_of_its_fields_range_is_one_line(tmp_path, at, value):
    written = write_recording(tmp_path / "r", simulate(problems=2, n=2))
    (written.path / checksums.NAME).unlink()
    path = written.path / "recording.json"
    document = json.loads(path.read_text())
    inside = document
    for name in at[:-1]:
        inside = inside[name]
        if name in ("engines", "models", "policies"):
            (inside,) = inside.values()
    inside[at[-1]] = value
    path.write_text(json.dumps(document))
    with pytest.raises(RecordingError, match="malformed") as refused:
        Recording.open(written.path)
    assert len(str(refused.value).splitlines()) == 1


def test_names_and_bits_may_be_any_of_64_bits(tmp_path):
    rows = {"problems": {"prompt_blocks": [-(1 << 63), (1 << 63) - 1]}}
    rows["power"] = {"throttle_bits": (1 << 63) - 1}
    with RecordingWriter(tmp_path / "r", Manifest(clock_start=read_clocks())) as writer:
        for table, row in rows.items():
            writer.append(table, row)
    recording = Recording.open(tmp_path / "r")
    for table, row in rows.items():
        (name,) = row
        assert recording.frame(table)[name].to_list() == list(row.values())


@pytest.mark.parametrize("name", ["family", "name"])
def test_a_kernel_without_a_name_is_one_line(tmp_path, name):
    folder = make(tmp_path / "r")
    row = {"family": "f", "name": "n"}
    path = write_part(folder, "kernels", pl.DataFrame([row, row | {name: None}]), 50, 50)
    with pytest.raises(RecordingError, match=f"says None as {name}, which is never missing"):
        read_part(path, "kernels")
