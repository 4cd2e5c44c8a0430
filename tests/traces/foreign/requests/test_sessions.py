"""Sessions of coding agents: what their turns share, and what is kept out."""

import json

import pytest

from tests.conftest import SHARED
from traces.errors import OutcomesError, UsageError
from traces.foreign.kinds import files_in, kind_of
from traces.foreign.requests.importer import import_requests
from traces.recording.reader import Recording

SESSIONS = SHARED / "data" / "agents" / "kv_cache_tester"


def turn(t, tokens, ids, *, out=10, took=2.0, **more):
    return {"t": t, "type": "n", "model": "big", "in": tokens, "out": out, "hash_ids": ids,
            "api_time": took, "think_time": 0.5, **more}  # fmt: skip


def agent(t, turns):
    return {"t": t, "type": "subagent", "agent_id": "a", "requests": turns}


def session(path, turns, *, cut=0, **more):
    """Write a session of the file's name."""
    head = {"id": path.stem, "block_size": 64, "hash_id_scope": "local"}
    text = json.dumps({**head, **more, "requests": turns})
    path.write_text(text[: len(text) - cut])
    return path


def imported(tmp_path, turns, **more):
    return together(tmp_path, session(tmp_path / "session.json", turns, **more))


def together(tmp_path, *paths):
    found = import_requests(paths[0] if len(paths) == 1 else paths, tmp_path / "r")
    return found, Recording.open(tmp_path / "r")


def found_earlier(problems):
    """The tokens of prompts that a session had in an earlier request, and those of all prompts."""
    found = tokens = 0
    for (_,), turns in problems.sort("start").group_by("session", maintain_order=True):
        seen = set()
        for blocks, length in turns.select("prompt_blocks", "prompt_tokens").iter_rows():
            known = next((i for i, each in enumerate(blocks) if each not in seen), len(blocks))
            found, tokens = found + min(64 * known, length), tokens + length
            seen.update(blocks)
    return found, tokens


def test_turns_share_their_full_blocks_and_nobody_shares_the_rest(tmp_path):
    turns = [turn(0.0, 130, [1, 2]), turn(5.0, 192, [1, 2, 3]), turn(9.0, 200, [1, 2, 3])]
    found, recording = imported(tmp_path, turns)
    blocks = recording.problems["prompt_blocks"].to_list()
    assert [len(each) for each in blocks] == [3, 3, 4]
    assert blocks[1] == blocks[2][:3] and blocks[0][:2] == blocks[1][:2]
    assert len({*blocks[0], *blocks[1], *blocks[2]}) == 5
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
        ([1, 1 << 63], "no list of whole numbers"), ("1,2", "no list of whole numbers"),
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


def test_the_requests_of_many_sessions_are_one_load_that_keeps_them_apart(tmp_path):
    turns = [turn(0.0, 130, [1, 2]), turn(5.0, 192, [1, 2, 3])]
    paths = [session(tmp_path / f"{name}.json", turns) for name in "ab"]
    found, recording = together(tmp_path, *paths)
    problems = recording.problems
    assert problems["problem_id"].to_list() == ["a/1", "a/2", "b/1", "b/2"]
    assert problems["session"].to_list() == ["a", "a", "b", "b"]
    assert (problems["start"] / 1e9).to_list() == [0, 5, 0, 5]
    blocks = [set(each) for each in problems["prompt_blocks"]]
    assert len(blocks[0] & blocks[1]) == len(blocks[2] & blocks[3]) == 2
    assert not (blocks[0] | blocks[1]) & (blocks[2] | blocks[3])
    assert (found.facts["sessions"], found.facts["requests"]) == (2, 4)
    assert [each["file"] for each in found.facts["files"]] == ["a.json", "b.json"]
    assert found.rows[0] == ("sessions", "2") and "2 files, 4 requests" in found.head
    assert recording.manifest.workload.name == "a and 1 more"
    notes = "\n".join(found.notes)
    assert "lay in time to the others is not known" in notes
    assert "share blocks within their session alone" in notes


@pytest.mark.parametrize(("scope", "shared"), [("global", 2), ("local", 0), (None, 0), (7, 0)])
def test_sessions_share_blocks_where_their_ids_are_said_to_hold_for_all(tmp_path, scope, shared):
    paths = [
        session(tmp_path / f"{name}.json", [turn(0.0, 130, [1, 2])], hash_id_scope=scope)
        for name in "ab"
    ]
    found, recording = together(tmp_path, *paths)
    one, other = (set(each) for each in recording.problems["prompt_blocks"])
    assert len(one & other) == shared
    assert any("within their session alone" in each for each in found.notes) == (not shared)


_LEFT_OUT = ("other.json", "again.json", "bad.json", "sizeless.json")


def test_files_that_cannot_be_read_are_named_and_the_others_are_read(tmp_path):
    good, cut = ([turn(0.0, 64, [1]), turn(4.0, 64, [1])] for _ in range(2))
    empty, other = tmp_path / "empty.json", tmp_path / "other.json"
    empty.write_text("")
    other.write_text('{"a": 1}')
    paths = [
        empty,
        session(tmp_path / "good.json", good),
        other,
        session(tmp_path / "again.json", good, id="good"),
        session(tmp_path / "cut.json", cut, cut=60),
        session(tmp_path / "bad.json", [turn(0.0, None, [1])]),
        session(tmp_path / "sizeless.json", good, block_size=None),
    ]
    assert kind_of(paths) == "requests"
    found, recording = together(tmp_path, *paths)
    assert recording.problems["problem_id"].to_list() == ["good/1", "good/2", "cut/1"]
    notes = "\n".join(found.notes)
    empties = [each["file"] for each in found.facts["files"] if not each["requests"]]
    assert len(found.facts["files"]) == 7 and set(empties) == {"empty.json", *_LEFT_OUT}
    assert "files that are left out: 5. empty.json: the file is empty" in notes
    for wanted in (
        "other.json: no coding-agent session",
        "again.json: has the id of an earlier file",
        "bad.json: no request in it can be read",
        "sizeless.json: block_size is no number of tokens",
        "cut.json: the file is cut off",
    ):
        assert wanted in notes, wanted


def test_what_many_files_lack_is_counted_once_with_its_first_place(tmp_path):
    bad = [turn(0.0, 64, [1]), turn(1.0, None, [1])]
    paths = [session(tmp_path / f"{number}.json", bad) for number in range(9)]
    empty = [tmp_path / f"empty{number}.json" for number in range(8)]
    for path in empty:
        path.write_text("")
    found, _ = together(tmp_path, *paths, *empty)
    (count,) = found.facts["skipped"].values()
    notes = "\n".join(found.notes)
    assert count == 9 and "(first: 0.json request 2)" in notes
    assert "left out: 8. empty0.json, empty1.json, empty2.json and 5 more: the file" in notes
    assert len(found.notes) == 5


def test_nothing_is_written_where_none_of_many_files_can_be_read(tmp_path):
    paths = [session(tmp_path / f"{name}.json", [turn(0.0, None, [1])]) for name in "ab"]
    with pytest.raises(OutcomesError, match=r"none of 2 files can be read. a.json, b.json: no req"):
        together(tmp_path, *paths)
    assert not (tmp_path / "r").exists() or not list((tmp_path / "r").iterdir())


def test_files_of_different_blocks_are_no_one_load(tmp_path):
    paths = [
        session(tmp_path / f"{size}.json", [turn(0.0, size, [1])], block_size=size)
        for size in (64, 16)
    ]
    with pytest.raises(UsageError, match=r"16.json: has blocks of 16 .*64.json of 64"):
        together(tmp_path, *paths)


def test_a_folder_stands_for_its_files(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ba":
        session(tmp_path / "in" / f"{name}.json", [turn(0.0, 64, [1])])
    (tmp_path / "in" / "LICENSE").write_text("free")
    paths = files_in([tmp_path / "in"])
    assert [each.name for each in paths] == ["a.json", "b.json"]
    found, _ = together(tmp_path, *paths)
    assert found.facts["sessions"] == 2


def test_a_name_that_is_no_id_is_the_files(tmp_path):
    paths = [
        session(tmp_path / f"{at}.json", [turn(0.0, 64, [1])], id=name)
        for at, name in enumerate((None, "", 7, "x" * 1000, "mine"))
    ]
    _, recording = together(tmp_path, *paths)
    assert recording.problems["session"].to_list() == ["0", "1", "2", "3", "mine"]


@pytest.mark.parametrize("name", ["api_time", "think_time"])
def test_a_wait_of_less_than_no_time_is_counted(tmp_path, name):
    found, recording = imported(tmp_path, [turn(0.0, 64, [1]) | {name: -1.0}])
    assert found.facts["skipped"] == {f"values of {name} that are no time": 1}
    assert recording.problems.height == 1


def test_a_turn_before_the_one_above_it_is_kept_out_but_a_sub_agent_has_times_of_its_own(tmp_path):
    turns = [
        turn(0.0, 64, [1]),
        agent(3.0, [turn(3.5, 64, [1]), turn(9.0, 64, [1])]),
        turn(5.0, 64, [1]),
        turn(4.0, 64, [1]),
        turn(6.0, 64, [1]),
    ]
    found, recording = imported(tmp_path, turns)
    assert (recording.problems.sort("start")["start"] / 1e9).to_list() == [0, 3.5, 5, 6, 9]
    assert found.facts["skipped"] == {"requests whose t is before that of the turn above": 1}
    assert set(recording.problems["session"]) == {"session"}


def test_times_of_a_sub_agent_count_from_its_start_where_they_lie_before_it(tmp_path):
    inner = agent(2.0, [turn(0.5, 64, [1])])
    turns = [turn(0.0, 64, [1]), agent(30.0, [turn(0.0, 64, [1]), inner, turn(40.0, 64, [1])])]
    _, recording = imported(tmp_path, turns)
    assert (recording.problems.sort("start")["start"] // 10**8).to_list() == [0, 300, 325, 700]


def test_times_of_a_sub_agent_that_differ_by_rounding_are_those_of_the_session(tmp_path):
    _, recording = imported(tmp_path, [turn(0.0, 64, [1]), agent(30.0, [turn(29.5, 64, [1])])])
    assert (recording.problems.sort("start")["start"] // 10**8).to_list() == [0, 295]


@pytest.mark.skipif(not SESSIONS.exists(), reason="the sessions of agents lie outside the project")
def test_real_sessions_are_imported_whole_with_what_they_share(tmp_path):
    """By their page nine in ten tokens of a prompt were in one before."""
    paths = files_in([SESSIONS])
    found, recording = together(tmp_path, *paths)
    totals = [json.loads(path.read_text())["totals"]["combined_tokens"] for path in paths]
    assert found.facts["prompt_tokens"] == sum(each["input"] for each in totals)
    assert found.facts["output_tokens"] == sum(each["output"] for each in totals)
    assert not found.facts["skipped"]
    assert found.facts["sessions"] == recording.problems["session"].n_unique() == len(paths)
    assert recording.problems["problem_id"].is_unique().all()
    shared, tokens = found_earlier(recording.problems)
    assert shared / tokens > 0.9
    named = recording.problems.select("session", "prompt_blocks").explode("prompt_blocks")
    blocks = named.unique()
    assert blocks["prompt_blocks"].is_unique().all()
