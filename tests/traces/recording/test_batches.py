"""Reading a table of a recording a piece at a time."""

import polars as pl
import pytest

from tests.traces.synthetic import simulate, write_recording
from traces.errors import RecordingError
from traces.recording import reader as module
from traces.recording.parts import list_parts, part_path, write_part
from traces.recording.reader import Recording, batches, begin_again
from traces.recording.writer import merge


@pytest.fixture
def recording(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 7)
    return write_recording(tmp_path / "r", simulate(problems=4, n=2))


def test_the_pieces_are_the_table(recording):
    pieces = list(batches(recording, "steps"))
    assert len(pieces) > 2
    assert pl.concat(pieces).equals(recording.frame("steps"))
    some = list(batches(recording, "steps", ("end", "flops"), pl.col("step") > 3))
    chosen = recording.frame("steps").filter(pl.col("step") > 3)
    assert pl.concat(some).equals(chosen.select("end", "flops"))


def test_a_merge_in_the_middle_begins_again(recording):
    folder, steps = recording.path, recording.frame("steps")
    (old,) = list_parts(folder, "steps")
    old.path.unlink()
    paths = [
        write_part(folder, "steps", part, at, at)
        for at, part in enumerate([steps.head(9), steps.tail(steps.height - 9)])
    ]
    reads = []

    def read():
        found = []
        for rows in batches(recording, "steps"):
            found.append(rows)
            if not reads:
                merge(paths, part_path(folder, "steps", 0, 1), "steps")
                for path in paths:
                    path.unlink()
                reads.append(1)
        return pl.concat(found)

    assert begin_again(recording, read).equals(steps)


def test_a_damaged_part_and_a_folder_that_is_gone_are_said(recording):
    (part,) = list_parts(recording.path, "steps")
    whole = part.path.read_bytes()
    part.path.write_bytes(b"PAR1" + bytes(len(whole) // 2 - 4) + whole[len(whole) // 2 :])
    with pytest.raises(RecordingError, match=part.path.name):
        list(batches(recording, "steps"))
    part.path.unlink()
    for each in recording.path.iterdir():
        each.unlink()
    recording.path.rmdir()
    with pytest.raises(RecordingError, match="its folder is gone"):
        list(batches(Recording(recording.path, recording.manifest), "steps"))
