"""A recording's samples as a trace of requests, and back."""

import json
from pathlib import Path

import pytest

from benchmarks.made.foreign_files import azure, mooncake
from traces.errors import RecordingError
from traces.foreign.mooncake import export_requests
from traces.foreign.requests.importer import import_requests
from traces.foreign.requests.reader import RequestChoices
from traces.recording.manifest import Manifest
from traces.recording.reader import Recording
from traces.recording.writer import RecordingWriter, read_clocks
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy

WORKLOADS = Path(__file__).parents[4] / "shared" / "data" / "workloads"
ENGINE, POLICY = EngineConfig(model="m"), Policy(method="majority", n=2, temperature=0.8)


def sample(problem, index, **changes):
    row = {"problem_id": problem, "sample_index": index, "role": "sample"}
    row |= {"engine": ENGINE.key(), "policy": POLICY.key(), "span_id": f"{problem}{index}"}
    row |= {"arrival": 1_000_000_000, "prompt_tokens": 700, "output_tokens": 5}
    return row | changes


def record(folder, samples, *, concurrency=None):
    manifest = Manifest(
        clock_start=read_clocks(),
        engines={ENGINE.key(): ENGINE},
        policies={POLICY.key(): POLICY},
        concurrency=concurrency,
    )
    with RecordingWriter(folder, manifest) as writer:
        for name in dict.fromkeys(each["problem_id"] for each in samples):
            keys = {"engine": ENGINE.key(), "policy": POLICY.key(), "span_id": name}
            writer.append(
                "problems",
                keys | {"problem_id": name, "arrival": 500_000_000, "prompt_tokens": 700},
            )
        for each in samples:
            writer.append("samples", each)
    return Recording.open(folder)


def exported(recording, path):
    found = export_requests(recording, path)
    return found, [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_of_a_problem_share_their_prompt(tmp_path):
    rows = [
        sample("p", 0),
        sample("p", 1, arrival=1_002_500_000),
        sample("q", 0, arrival=1_001_000_000, prompt_tokens=30),
        sample("q", 1, arrival=None, prompt_tokens=None),  # then those of its problem
    ]
    found, lines = exported(record(tmp_path / "r", rows), tmp_path / "t.jsonl")
    assert [row["timestamp"] for row in lines] == [0, 500, 501, 502.5]
    assert [row["input_length"] for row in lines] == [700, 700, 30, 700]
    assert [row["output_length"] for row in lines] == [5] * 4
    assert [row["hash_ids"] for row in lines] == [[0, 1], [2, 3], [4], [2, 3]]
    assert (found.requests, found.blocks, found.notes) == (4, 5, ())
    assert all(
        list(row) == ["timestamp", "input_length", "output_length", "hash_ids"] for row in lines
    )


def test_what_a_trace_does_not_say_is_told(tmp_path):
    rows = [
        sample("p", 0, cached_tokens=128),
        sample("p", 1, cached_tokens=640, cancelled_by="decision"),
        sample("p", 2, output_tokens=None),
        sample("p", 3, role="revision", prompt_tokens=900),
        sample("p", 4, role="revision", prompt_tokens=900),
    ]
    found, lines = exported(record(tmp_path / "r", rows, concurrency=2), tmp_path / "t.jsonl")
    told = " | ".join(found.notes)
    for wanted in (
        "without an arrival or a length, left out: 1",
        "cancelled have the length they had then: 1",
        "go on from samples, which their ids do not show: 2",
        "recorded with 2 problems in flight",
        "ids are shared within a problem only",
    ):
        assert wanted in told, wanted
    ids = [tuple(row["hash_ids"]) for row in lines]
    assert ids[0] == ids[1] and len({name for each in ids for name in each}) == 6


def test_an_imported_trace_goes_round(tmp_path):
    sent = [(0.0, 1300, 5, 0, 0), (0.1234, 1300, 6, 0, 0), (7.5, 20, 1, 0, 0)]
    path = mooncake(tmp_path / "in.jsonl", sent)
    import_requests(path, tmp_path / "r")
    _, lines = exported(Recording.open(tmp_path / "r"), tmp_path / "out.jsonl")
    given = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["timestamp"] for row in lines] == [0, 123.4, 7500]
    names = {}
    for ours, theirs in zip(lines, given, strict=True):
        assert ours["input_length"] == theirs["input_length"]
        assert ours["output_length"] == theirs["output_length"]
        renamed = [names.setdefault(each, len(names)) for each in theirs["hash_ids"]]
        assert ours["hash_ids"] == renamed
    import_requests(tmp_path / "out.jsonl", tmp_path / "again")
    again = Recording.open(tmp_path / "again")
    assert again.problems["prompt_tokens"].to_list() == [1300, 1300, 20]
    assert again.problems["arrival"].to_list() == [0, 123_400_000, 7_500_000_000]


@pytest.mark.parametrize("size", [16, 100, 1024])
def test_blocks_of_another_size_are_named_anew(tmp_path, size):
    def row(prompt, same):  # of as many tokens as another prompt begins with
        ids = [
            place if place < same // size else prompt + place for place in range(-(-prompt // size))
        ]
        return {"timestamp": 0, "input_length": prompt, "output_length": 1, "hash_ids": ids}

    rows = [row(2048, 2048), row(1500, 1100), row(700, 0)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    import_requests(
        tmp_path / "in.jsonl", tmp_path / "r", choices=RequestChoices(block_tokens=size)
    )
    found, lines = exported(Recording.open(tmp_path / "r"), tmp_path / "out.jsonl")
    assert [each["hash_ids"] for each in lines] == [[0, 1, 2, 3], [0, 1, 4], [5, 6]]
    assert found.blocks == 7


def test_the_mooncake_trace_comes_back_as_it_was(tmp_path):
    path = WORKLOADS / "mooncake_conversation_3000.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in ../shared/data/workloads")
    import_requests(path, tmp_path / "r")
    _, lines = exported(Recording.open(tmp_path / "r"), tmp_path / "out.jsonl")
    assert lines == [json.loads(line) for line in path.read_text().splitlines()]


def test_what_cannot_be_exported(tmp_path):
    recording = record(tmp_path / "r", [sample("p", 0, output_tokens=None)])
    with pytest.raises(
        RecordingError, match="no sample in it has an arrival, a prompt and an output"
    ):
        export_requests(recording, tmp_path / "t.jsonl")
    import_requests(azure(tmp_path / "t.csv", [(0.0, 5, 5, 0, 0)]), tmp_path / "s")
    with pytest.raises(RecordingError, match="cannot be written"):
        export_requests(Recording.open(tmp_path / "s"), tmp_path)
