from __future__ import annotations

import json

import pytest

from tests.traces.synthetic import simulate, write_recording
from traces.errors import RecordingError, UsageError
from traces.foreign.kinds import kind_of
from traces.recording.reader import Recording
from tui.screens.library import (
    delete_recording,
    failure,
    import_into,
    paths_of,
    price_of,
    recordings_at,
    size_bytes,
    words_of,
)
from tui.screens.live.watch import parse_target


@pytest.fixture
def folder(tmp_path):
    write_recording(tmp_path / "a b", simulate(problems=2, n=1))
    return tmp_path


def test_paths_are_read_as_a_shell_does(folder):
    assert paths_of(f"'{folder}/a b'") == [folder / "a b"]
    assert paths_of(f"{folder}/*") == [folder / "a b"]
    assert recordings_at(str(folder)) == [folder / "a b"]
    for text, told in ((f"{folder}/none", "no such file"), ("'a", "quotation"), ("x*", "no such")):
        with pytest.raises(UsageError, match=told):
            paths_of(text)
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no recording"):
        recordings_at(str(folder / "empty"))


def test_an_open_quote_is_one_line_everywhere():
    for read in (words_of, paths_of, parse_target):
        with pytest.raises(UsageError, match="'a: No closing quotation. Close it"):
            read("'a")


def test_prices():
    assert price_of(" $2.5") == 2.5
    assert price_of("-") is None
    with pytest.raises(UsageError, match=r"one price for all devices .* \$/h on screen 4"):
        price_of("H100=2.5")
    for text in ("", "x", "0", "-1", "inf", "1e99"):
        with pytest.raises(UsageError, match="USD per device-hour"):
            price_of(text)


def test_files_of_others_become_a_recording(folder):
    rows = [
        {"problem_id": "p", "sample_index": i, "answer": str(i % 2), "correct": i % 2 == 0}
        for i in range(4)
    ]
    path = folder / "others.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    first = import_into(str(path), folder)
    assert first.folder == folder / "others"
    assert "4 samples of 1 problem" in first.told
    assert Recording.open(first.folder).samples.height == 4
    assert import_into(str(path), folder).folder == folder / "others-2"
    with pytest.raises(UsageError, match="name the files"):
        import_into("", folder)
    for size in ("7B", "32B"):
        path.rename(path := folder / f"Qwen2.5-{size}.jsonl")
        assert import_into(str(path), folder).folder == folder / f"Qwen2.5-{size}"


def test_requests_become_a_recording_too(folder):
    path = folder / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.0,100,20\n2023-11-16 18:17:05.0,200,30\n"
    )
    made = import_into(str(path), folder)
    assert "2 requests in 2.00 s" in made.told
    assert Recording.open(made.folder).samples.height == 2
    assert kind_of([path]) == "requests"
    with pytest.raises(UsageError, match="one file of requests at a time"):
        import_into(f"{path} {path}", folder)


def test_only_a_recording_is_deleted_and_only_its_files(folder):
    path = folder / "a b"
    assert size_bytes(path) == sum(each.stat().st_size for each in path.iterdir())
    (path / "notes.txt").write_text("mine")
    assert delete_recording(path) == [path / "notes.txt"]
    with pytest.raises(RecordingError, match="not a recording"):
        delete_recording(path)
    again = write_recording(folder / "c", simulate(problems=2, n=1)).path
    assert delete_recording(again) == []
    assert not again.exists()
    assert failure(ZeroDivisionError("x")) == "ZeroDivisionError: x"
