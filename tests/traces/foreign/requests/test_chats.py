"""Sessions of requests that are lines of one file: Bailian's chats, aiperf's and guidellm's."""

import json

import pytest

from benchmarks.made.foreign_files import aiperf, bailian, guidellm_report
from traces.errors import OutcomesError
from traces.foreign.requests.importer import import_requests
from traces.foreign.requests.sessions import bailian as reader
from traces.recording.reader import Recording


def sent(count):
    return [(float(at), 40, 5, 0.1, 0.2) for at in range(count)]


def read(path, folder):
    found = import_requests(path, folder)
    return found, Recording.open(folder).problems


def chats(tmp_path, *links, **changes):
    """Import chats by their ids and parents."""
    names = ("chat_id", "parent_chat_id")
    spoil = {
        at: dict(zip(names, link, strict=True)) | changes.get(f"line{at}", {})
        for at, link in enumerate(links)
    }
    return read(bailian(tmp_path / "chats.jsonl", sent(len(links)), spoil), tmp_path / "r")


def test_a_chat_is_of_the_session_of_its_first_turn(tmp_path):
    found, problems = chats(tmp_path, (10, -1), (11, 10), (12, -1), (13, 11), (14, ...), (15, None))
    assert problems["session"].to_list() == ["10", "10", "12", "10", "14", "15"]
    assert (problems["arrival"] / 1e9).to_list() == [0, 1, 2, 3, 4, 5]
    assert found.facts["sessions"] == 4 and not found.facts["skipped"]
    assert found.rows[0] == ("sessions", "4")


def test_parents_may_come_later(tmp_path):
    _, problems = chats(tmp_path, (3, 2), (2, 1), (1, -1))
    assert problems["session"].to_list() == ["1", "1", "1"]


def test_parents_in_a_circle_or_absent_are_counted_and_begin_sessions(tmp_path):
    links = ((1, 2), (2, 3), (3, 1), (4, 2), (5, 5), (6, 99), (7, 6), (8, "x"), (9, [1]))
    found, problems = chats(tmp_path, *links)
    assert problems["session"].to_list() == ["1", "2", "3", "2", "5", "6", "6", "8", "9"]
    assert found.facts["skipped"] == {
        "values of parent_chat_id that lead back to their chat": 4,
        "values of parent_chat_id that are no chat of the file": 3,
    }


def test_chats_without_an_id_of_their_own_are_sessions_of_their_own(tmp_path):
    found, problems = chats(tmp_path, (1, -1), (1, -1), ("a", 1), (2, 1), (-1, -1))
    assert problems["session"].to_list() == ["1", "line 2", "line 3", "1", "line 5"]
    assert found.facts["skipped"] == {
        "values of chat_id that an earlier line has": 1,
        "values of chat_id that are no whole number": 2,
    }


def test_a_turn_that_is_kept_out_still_joins_those_around_it(tmp_path):
    found, problems = chats(tmp_path, (1, -1), (2, 1), (3, 2), line1={"prompt": -4})
    assert problems["session"].to_list() == ["1", "1"] and found.facts["requests"] == 2


def test_blocks_of_16_tokens_are_shared_across_the_file(tmp_path):
    ids = ([1, 2, 3], [1, 2], [1, 2, 3, 4])
    more = {f"line{at}": {"hash_ids": each} for at, each in enumerate(ids)}
    found, problems = chats(tmp_path, (1, -1), (2, -1), (3, -1), **more)
    one, other, none = problems["prompt_blocks"].to_list()
    assert one[:2] == other[:2] and one[2] != other[2] and none is None
    assert found.facts["skipped"] == {
        "values of hash_ids that are not one per 16 tokens of input_length": 1
    }


def test_more_chats_than_can_be_held_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_MOST_CHATS", 2)
    with pytest.raises(OutcomesError, match="more than 2 chats. Import a part of the file"):
        chats(tmp_path, (1, -1), (2, -1), (3, -1))


def test_a_long_chain_takes_no_longer_than_its_length():
    count = 200_000
    first, circles = reader.roots({at: at - 1 for at in range(count, 0, -1)})
    assert set(first.values()) == {1} and not circles


def test_turns_of_aiperf_are_of_the_session_of_their_correlation(tmp_path):
    path = aiperf(tmp_path / "a.jsonl", sent(6))
    told = [
        {"x_correlation_id": "one", "turn_index": 0},
        {"x_correlation_id": "alone", "turn_index": 0},
        {"x_correlation_id": "one", "turn_index": 1},
        {"x_correlation_id": "sub", "root_correlation_id": "two", "agent_depth": 1},
        {"x_correlation_id": "two", "root_correlation_id": "two", "turn_index": 0},
        {"x_correlation_id": 7, "turn_index": 3},
    ]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, more in zip(rows, told, strict=True):
        row["metadata"] |= more
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, problems = read(path, tmp_path / "r")
    assert problems["session"].to_list() == ["one", None, "one", "two", "two", None]
    assert found.facts["sessions"] == 2


def test_turns_of_guidellm_are_of_their_conversation(tmp_path):
    report = guidellm_report([(sent(5), None, None)])
    told = ({"conversation_id": "a"}, {"conversation_id": "a"}, {"conversation_id": "b"}, {})
    told = (*told, {"conversation_id": "sub", "graph_id": "a"})
    rows = report["benchmarks"][0]["requests"]["successful"]
    for row, more in zip(rows, told, strict=True):
        row["info"] |= more
    (tmp_path / "g.json").write_text(json.dumps(report))
    found, problems = read(tmp_path / "g.json", tmp_path / "r")
    assert problems["session"].to_list() == ["a", "a", None, None, "a"]
    assert found.facts["sessions"] == 1


def test_a_load_without_sessions_says_none(tmp_path):
    found, problems = read(aiperf(tmp_path / "a.jsonl", sent(2)), tmp_path / "r")
    assert found.facts["sessions"] is None and problems["session"].null_count() == 2
    assert "sessions" not in dict(found.rows)
