"""Workloads that give the lengths of their samples."""

import json

import pytest

from benchmarks.made.stub import StubEngine
from profiler.engines.interface import SampleRequest
from profiler.engines.server.server import ServerEngine
from profiler.runs.record import record
from profiler.workload.problems import load_workload
from tests.profiler.command import warm_ttscope
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.tts.parameters import make_policy
from traces.schema.tts.policy import Policy

VOTE = Policy(method="majority", n=3, temperature=0.8)


def written(path, *lengths, **more):
    """A file with a problem for each of the lengths, None for one that has none."""
    rows = [
        {"id": index, "prompt": "aCb6", "answer": "12"}
        | ({} if given is None else {"output_tokens": given})
        | more
        for index, given in enumerate(lengths)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recorded(tmp_path, policy, *lengths, engine=None, **options):
    loaded = load_workload(written(tmp_path / "w.jsonl", *lengths))
    path = record(loaded, policy, engine or StubEngine(), tmp_path / "r", **options)
    return Recording.open(path)


def rows_of(recording):
    return recording.samples.sort("problem_id", "sample_index").to_dicts()


def test_samples_get_the_lengths_they_are_given(tmp_path):
    rows = rows_of(recorded(tmp_path, VOTE, 7, [5, 20, 1, 9]))
    assert [row["output_tokens"] for row in rows] == [7, 7, 7, 5, 20, 1]
    assert {row["finish_reason"] for row in rows} == {"length"}
    assert {row["error"] for row in rows} == {None}


def test_given_lengths_are_not_cut_and_what_max_tokens_cuts_is(tmp_path):
    policy = Policy(method="majority", n=2, temperature=0.8, max_tokens=4)
    recording = recorded(tmp_path, policy, 4, None, engine=StubEngine(lengths=(6, 9)))
    rows = rows_of(recording)
    assert [row["output_tokens"] for row in rows] == [4] * 4
    assert [row["finish_reason"] for row in rows] == ["length"] * 4
    assert [row["censored"] for row in rows] == [False, False, True, True]


def test_what_the_model_did_not_end_is_not_judged(tmp_path):
    recording = recorded(tmp_path, VOTE, 7, None)
    assert [row["correct"] for row in rows_of(recording)] == [None] * 3 + [True] * 3
    assert recording.problems.sort("problem_id")["correct"].to_list() == [None, True]


def test_the_recording_says_that_lengths_were_given(tmp_path):
    notes = recorded(tmp_path, VOTE, 7, None, 3).frame("events")["detail"].to_list()
    assert any("output lengths of 2 of 3 problems" in note for note in notes)


def test_lengths_belong_to_the_workload(tmp_path):
    hashes = {
        load_workload(written(tmp_path / "w.jsonl", given)).facts(None).hash
        for given in (None, 7, 8, [7, 8])
    }
    assert len(hashes) == 4


def test_a_length_that_was_not_kept_is_a_failure(tmp_path):
    recording = recorded(tmp_path, VOTE, 40, engine=StubEngine(keeps_lengths=False))
    assert {row["error"] for row in rows_of(recording)} == {"length not kept"}
    assert recording.problems["error"].to_list() == ["3 samples failed"]


def test_what_is_cancelled_has_not_missed_its_length(tmp_path):
    policy = make_policy({"method": "first_finish", "n": 3, "first": 1, "temperature": 0.8})
    engine = StubEngine(answers=lambda request_id: "12")
    rows = rows_of(recorded(tmp_path, policy, [3, 30, 40], engine=engine))
    assert rows[0]["output_tokens"] == 3
    assert {row["error"] for row in rows} == {None}


@pytest.mark.parametrize("given", [0, -1, 2.5, "7", True, [], [3, 0], [3, None], {"0": 3}])
def test_bad_lengths_are_one_line(tmp_path, given):
    path = written(tmp_path / "w.jsonl", 5, given)
    with pytest.raises(UsageError, match=r'w\.jsonl, line 2: "output_tokens" must be') as told:
        load_workload(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("policy", "lengths", "options", "message"),
    [
        ({"method": "sequential", "n": 3}, [9], {}, "cannot be kept by sequential"),
        ({"method": "beam", "n": 4}, [9], {}, "cannot be kept by beam"),
        ({"method": "budget_forcing", "n": 1}, [9], {}, "cannot be kept by budget_forcing"),
        ({"thinking_token_budget": 8}, [9], {}, "with a thinking budget"),
        ({}, [9], {"budget_checkpoints": (4,)}, "with --budget-checkpoints"),
        ({"method": "majority", "n": 3}, [9, [9, 9]], {}, "problem 1: .* 2 lengths for 3 samples"),
        ({"max_tokens": 8}, [9], {}, "asks for 9, above max_tokens 8"),
        ({}, [64], {}, "asks for 64, which max_model_len 64 cannot hold"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, policy, lengths, options, message):
    engine = StubEngine()
    engine.config = type(engine.config)(model="stub", max_model_len=64)
    with pytest.raises(UsageError, match=message):
        recorded(tmp_path, make_policy(policy), *lengths, engine=engine, **options)
    assert not (tmp_path / "r").exists()
    assert not engine.submitted


async def test_a_server_is_asked_in_vllms_names():
    engine = object.__new__(ServerEngine)
    engine._served, engine.chat_template, engine.engine = "m", None, "vLLM"
    asked = {"request_id": "1", "prompt": "a", "chat": True, "temperature": 0.8, "top_p": 1.0}
    fixed = SampleRequest(**asked, max_tokens=9, fixed_length=True)
    wanted = {"min_tokens": 9, "max_tokens": 9, "ignore_eos": True}
    assert wanted.items() <= (await engine._body(fixed, True)).items()
    free = await engine._body(SampleRequest(**asked, max_tokens=9), True)
    assert free["max_tokens"] == 9 and not {"min_tokens", "ignore_eos"} & free.keys()


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")  # of vLLM
def test_repeats_do_the_same_work(tmp_path):
    lengths = [[3 + 7 * problem + 11 * sample for sample in range(4)] for problem in range(6)]
    path = written(tmp_path / "w.jsonl", *lengths)
    common = ("record", "--model", "demo/s", "--dtype", "float32", "--max-num-seqs", "4", "--json")
    tables = []
    for name in ("first", "second"):
        done = warm_ttscope(
            *(*common, "--workload", path, "--n", "4", "--concurrency", "2"),
            *("-o", tmp_path / name),
        )
        assert done.returncode == 0, done.stderr[-3000:]
        recording = Recording.open(tmp_path / name)
        rows = rows_of(recording)
        assert [row["output_tokens"] for row in rows] == [n for each in lengths for n in each]
        assert {(row["finish_reason"], row["censored"]) for row in rows} == {("length", False)}
        kept = ("problem_id", "sample_index", "prompt_tokens", "cached_tokens", "first_step")
        tables.append(
            (
                [tuple(row[column] for column in (*kept, "last_step")) for row in rows],
                recording.steps.select("decode_requests", "prefill_tokens", "waiting").rows(),
            )
        )
    assert tables[0] == tables[1]
