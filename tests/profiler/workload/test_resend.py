"""A recorded run posed again: the same problems, arrivals and lengths."""

import dataclasses
import json

import pytest

from benchmarks.made.stub import StubEngine
from profiler.runs.record import record
from profiler.workload.problems import load_workload
from profiler.workload.resend import pose_again
from traces.errors import UsageError
from traces.recording.manifest import read_manifest
from traces.recording.reader import Recording
from traces.schema.tts.parameters import make_policy
from traces.schema.tts.policy import Policy

VOTE = Policy(method="majority", n=3, temperature=0.8, max_tokens=50)
ARRIVALS = (0.0, 0.03, 0.03, 0.15)


def recorded(tmp_path, workload, policy=VOTE, **options):
    return Recording.open(record(workload, policy, StubEngine(), tmp_path / "r", **options))


def again(recording, policy=None, **options):
    manifest = recording.manifest
    (engine,), (own,) = manifest.engines.values(), manifest.policies.values()
    return pose_again(recording, engine, own, policy or own, **{"source": None, **options})


def lengths_of(recording):
    rows = recording.samples.sort("problem_id", "sample_index")
    return rows.group_by("problem_id", maintain_order=True).agg("output_tokens").rows()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"id": i, "prompt": f"what is {i} + 1?", "answer": str(i + 1)} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_generated_problems_are_made_again_and_keep_their_lengths(tmp_path):
    first = recorded(tmp_path, load_workload("demo", problems=6, seed=3))
    resent = again(first)
    assert [p.prompt for p in resent.workload.problems] == [
        p.prompt for p in load_workload("demo", problems=6, seed=3).problems
    ]
    assert resent.policy.max_tokens is None
    assert (resent.policy.n, resent.policy.temperature) == (3, 0.8)
    assert resent.left_out == 0
    second = record(resent.workload, resent.policy, StubEngine(lengths=(1, 1)), tmp_path / "again")
    assert lengths_of(Recording.open(second)) == lengths_of(first)


def test_fewer_samples_are_the_first_ones(tmp_path):
    first = recorded(tmp_path, load_workload("demo", problems=3))
    resent = again(first, dataclasses.replace(VOTE, n=2))
    own = dict(lengths_of(first))
    for problem in resent.workload.problems:
        assert list(problem.output_tokens) == own[problem.problem_id][:2]
    assert again(first, Policy(method="greedy")).policy.method == "greedy"


def test_what_a_thought_was_cut_to_is_a_length_like_any_other(tmp_path):
    policy = Policy(method="majority", n=2, temperature=0.8, thinking_token_budget=4)
    engine = StubEngine(lengths=(9, 12), native=False)
    path = record(load_workload("demo", problems=2), policy, engine, tmp_path / "r")
    first = Recording.open(path)
    assert (first.samples["role"] == "forced").any()
    resent = again(first)
    assert resent.policy.thinking_token_budget is None
    whole = first.samples["output_tokens"].sum()
    assert sum(sum(p.output_tokens) for p in resent.workload.problems) == whole


def test_other_prompts_come_from_their_file(tmp_path, file):
    first = recorded(tmp_path, load_workload(str(file)))
    with pytest.raises(UsageError, match=r"prompts are not in it. .* --workload own\.jsonl"):
        again(first)
    resent = again(first, source=str(file))
    assert [p.prompt for p in resent.workload.problems] == [
        p.prompt for p in load_workload(str(file)).problems
    ]
    file.write_text(file.read_text().replace("what is", "What is"))
    with pytest.raises(UsageError, match="other problems than were recorded"):
        again(first, source=str(file))


def test_the_verifier_that_judged_is_part_of_the_file(tmp_path, file):
    first = recorded(tmp_path, load_workload(str(file), verifier="numeric"))
    assert len(again(first, source=str(file)).workload.problems) == 4


@pytest.mark.parametrize("method", ["early_stopping", "first_finish", "sequential"])
def test_policies_that_look_at_answers_are_refused(tmp_path, method):
    first = recorded(tmp_path, load_workload("demo", problems=2))
    with pytest.raises(UsageError, match="decides by answers"):
        again(first, make_policy({"method": method, "n": 3, "temperature": 0.8}))


def test_more_samples_than_were_recorded_cannot_be_sent(tmp_path):
    first = recorded(tmp_path, load_workload("demo", problems=2))
    with pytest.raises(UsageError, match="all its 8 samples"):
        again(first, dataclasses.replace(VOTE, n=8))


def test_problems_begin_at_their_arrivals_however_many_are_in_flight(tmp_path):
    workload = load_workload("demo", problems=4)
    path = record(
        workload, VOTE, StubEngine(step_s=0.01, lengths=(20, 20)), tmp_path / "r",
        concurrency=1, arrivals_s=ARRIVALS,
    )  # fmt: skip
    problems = Recording.open(path).problems.sort("arrival")
    assert problems["problem_id"].to_list() == [p.problem_id for p in workload.problems]
    begun = [(each - problems["arrival"][0]) / 1e9 for each in problems["arrival"]]
    # They arrived when they were due, though they begin after the step that was running.
    assert begun == pytest.approx([each - ARRIVALS[0] for each in ARRIVALS], abs=1e-6)
    assert (problems["start"] >= problems["arrival"]).all()
    manifest = read_manifest(path)
    rate_per_s = 3 / (ARRIVALS[-1] - ARRIVALS[0])
    assert (manifest.concurrency, manifest.rate_per_s) == (None, pytest.approx(rate_per_s))
    # They come at the same times when sent again.
    assert again(Recording.open(path)).arrivals_s == pytest.approx(begun, abs=1e-6)


def test_no_result_is_waited_for_beyond_the_next_arrival(tmp_path):
    waits = []

    class Waiting(StubEngine):
        def poll(self, wait_s=None):
            waits.append((wait_s, len({each.request_id for each in self.submitted})))
            return super().poll(wait_s)

    record(
        load_workload("demo", problems=4), Policy(max_tokens=300),
        Waiting(step_s=0.01, lengths=(20, 20)), tmp_path / "r", arrivals_s=ARRIVALS,
    )  # fmt: skip
    for wait_s, begun in waits:
        if begun == 4:
            assert wait_s is None
        else:
            gap = ARRIVALS[begun] - (ARRIVALS[begun - 1] if begun else 0.0)
            assert 0 <= wait_s <= gap


def test_arrivals_that_a_stop_leaves_out_are_not_waited_for(tmp_path):
    waits = []

    class Waiting(StubEngine):
        def poll(self, wait_s=None):
            waits.append(wait_s)
            return super().poll(wait_s)

    record(
        load_workload("demo", problems=4), Policy(max_tokens=300),
        Waiting(step_s=0.01, lengths=(20, 20)), tmp_path / "r",
        arrivals_s=(0.0, 0.001, 9000.0, 9000.1), stop_after_s=0.05,
    )  # fmt: skip
    assert waits[-1] is None
    assert Recording.open(tmp_path / "r").problems.height == 2


def test_arrivals_are_one_for_each_problem(tmp_path):
    with pytest.raises(UsageError, match="2 arrivals for 3 problems"):
        recorded(tmp_path, load_workload("demo", problems=3), arrivals_s=(0.0, 1.0))
