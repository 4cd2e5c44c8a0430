"""Sessions of coding agents: what their turns share, and what is kept out."""

import json

import polars as pl
import pytest

from tests.conftest import SHARED
from traces.errors import OutcomesError
from traces.foreign.requests.importer import import_requests
from traces.recording.reader import Recording

SESSIONS = SHARED / "data" / "agents" / "kv_cache_tester"


def turn(t, tokens, ids, *, out=10, took=2.0, **more):
    return {"t": t, "type": "n", "model": "big", "in": tokens, "out": out, "hash_ids": ids,
            "api_time": took, "think_time": 0.5, **more}  # fmt: skip


def agent(t, turns):
    return {"t": t, "type": "subagent", "agent_id": "a", "requests": turns}


def imported(tmp_path, turns, *, cut=0, **more):
    document = {"id": "s", "block_size": 64, "hash_id_scope": "local", "requests": turns, **more}
    path = tmp_path / "session.json"
    text = json.dumps(document)
    path.write_text(text[: len(text) - cut])
    found = import_requests(path, tmp_path / "r")
    return found, Recording.open(tmp_path / "r")


def test_turns_share_their_full_blocks_and_nobody_shares_the_rest(tmp_path):
    turns = [turn(0.0, 130, [1, 2]), turn(5.0, 192, [1, 2, 3]), turn(9.0, 200, [1, 2, 3])]
    found, recording = imported(tmp_path, turns)
    blocks = recording.problems["prompt_blocks"].to_list()
    assert [each[:3] for each in blocks[1:]] == [[1, 2, 3], [1, 2, 3]]
    assert [len(each) for each in blocks] == [3, 3, 4]
    assert blocks[0][2] != blocks[2][3] and not {blocks[0][2], blocks[2][3]} & {1, 2, 3}
    assert recording.manifest.workload.prompt_block_tokens == 64
    assert not found.facts["skipped"]


def test_times_and_lengths_are_those_of_the_session_and_of_its_sub_agents(tmp_path):
    turns = [
        turn(0.0, 64, [1]),
        agent(3.0, [turn(3.5, 128, [7, 8], model="small"), agent(4.0, [turn(4.5, 64, [7])])]),
        turn(8.0, 64, [1], took=None),
    ]
    found, recording = imported(tmp_path, turns)
    problems = recording.problems.sort("start")
    begun = problems["start"][0]
    assert ((problems["start"] - begun) / 1e9).to_list() == [0, 3.5, 4.5, 8.0]
    took = ((problems["end"] - problems["start"]) / 1e9).to_list()
    assert took == [2, 2, 2, None]
    assert found.facts["requests"] == 4 and found.facts["measured"] == 3
    (note,) = [each for each in found.notes if "several models" in each]
    assert "big 3, small 1" in note
    (engine,) = recording.manifest.engines.values()
    assert engine.model == "big"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (turn(5.0, None, [1]), "requests without in and out"),
        (turn(5.0, 64, [1], out=0), "requests without in and out"),
        (turn(-1.0, 64, [1]), "requests whose t is no time in seconds"),
        (turn("soon", 64, [1]), "requests whose t is no time in seconds"),
        ("words", "requests without in and out"),
        (None, "requests without in and out"),
    ],
)
def test_a_turn_that_cannot_be_is_counted_and_kept_out(tmp_path, bad, why):
    found, recording = imported(tmp_path, [turn(0.0, 64, [1]), bad, turn(9.0, 64, [1])])
    assert found.facts["requests"] == recording.problems.height == 2
    (reason,) = found.facts["skipped"]
    assert reason.startswith(why)


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ([1], "one per 64 tokens"), ([1, 2, 3, 4], "one per 64 tokens"),
        ([1, -2], "no list of whole numbers"), ([1, True], "no list of whole numbers"),
        ([1, 1 << 62], "no list of whole numbers"), ("1,2", "no list of whole numbers"),
    ],
)  # fmt: skip
def test_hashes_that_contradict_the_length_share_nothing(tmp_path, ids, why):
    found, recording = imported(tmp_path, [turn(0.0, 128, [1, 2]), turn(4.0, 129, ids)])
    (reason,) = found.facts["skipped"]
    assert why in reason and found.facts["skipped"][reason] == 1
    assert recording.problems["prompt_blocks"].null_count() == 1
    assert recording.problems.height == 2


def test_an_answer_that_took_less_than_no_time_has_no_end(tmp_path):
    turns = [turn(0.0, 64, [1], took=-3.0), turn(4.0, 64, [1])]
    found, recording = imported(tmp_path, turns)
    assert recording.problems.sort("start")["end"].null_count() == 1
    assert found.facts["skipped"] == {"values of api_time that are no time": 1}


def test_sub_agents_without_end_are_kept_out(tmp_path):
    deep = turn(1.0, 64, [1])
    for _ in range(20):
        deep = agent(1.0, [deep])
    found, _ = imported(tmp_path, [turn(0.0, 64, [1]), deep])
    assert found.facts["requests"] == 1 and sum(found.facts["skipped"].values()) == 1


def test_a_session_that_was_cut_off_is_read_up_to_there(tmp_path):
    found, _ = imported(tmp_path, [turn(0.0, 64, [1]), turn(4.0, 64, [1])], cut=60)
    assert found.facts["requests"] == 1
    assert any("cut off" in each for each in found.notes)


def test_a_size_of_blocks_that_is_none_is_refused(tmp_path):
    with pytest.raises(OutcomesError, match="block_size is no number of tokens"):
        imported(tmp_path, [turn(0.0, 64, [1])], block_size=0)


@pytest.mark.skipif(not SESSIONS.exists(), reason="the sessions of agents lie outside the project")
def test_real_sessions_are_imported_whole_with_what_they_share(tmp_path):
    """By their page nine in ten tokens of a prompt were in one before."""
    tokens = shared = 0
    for number, path in enumerate(sorted(SESSIONS.glob("*.json"))):
        found = import_requests(path, tmp_path / str(number))
        told = json.loads(path.read_text())["totals"]["combined_tokens"]
        assert found.facts["prompt_tokens"] == told["input"]
        assert found.facts["output_tokens"] == told["output"]
        assert not found.facts["skipped"]
        seen = set()
        problems = Recording.open(tmp_path / str(number)).problems.sort("start")
        for blocks, length in problems.select("prompt_blocks", pl.col("prompt_tokens")).iter_rows():
            known = next((i for i, each in enumerate(blocks) if each not in seen), len(blocks))
            shared, tokens, seen = (
                shared + min(64 * known, length),
                tokens + length,
                seen | {*blocks},
            )
    assert shared / tokens > 0.9
