"""Answers forced at budgets after the run: which are forced, and in what they must not be."""

import json

import polars as pl
import pytest

from benchmarks.made.stub import THINK_END, StubEngine
from profiler.runs.record import record
from profiler.workload.problems import Problem, Workload
from profiler.workload.verifiers import ByText
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.tts.policy import Policy
from traces.summary.run import summarise

POLICY = Policy(method="majority", n=4, temperature=0.8, max_tokens=100)
CANARY = "canary-91"


def workload(count=5):
    return Workload(
        name="own",
        problems=[Problem(problem_id=f"p{i}", prompt=CANARY, expected="2") for i in range(count)],
        verifier=ByText(),
    )


def answers(request_id):
    return f"{CANARY}</think>{int(request_id.rpartition('.')[2]) % 3}"


def run(folder, **options):
    engine = StubEngine(answers=answers, lengths=(5, 40))
    return engine, Recording.open(record(workload(), POLICY, engine, folder, **options))


@pytest.fixture
def pair(tmp_path):
    """The same run without and with checkpoints."""
    _, plain = run(tmp_path / "plain")
    engine, checked = run(tmp_path / "checked", budget_checkpoints=(16, 4), checkpoint_samples=3)
    return plain, checked, engine


def test_each_budget_has_an_answer(pair):
    _, recording, engine = pair
    rows = recording.frame("answers")
    assert rows.height == 5 * 3 * 2
    assert rows["budget_tokens"].unique().sort().to_list() == [4, 16]
    assert rows["sample_index"].unique().sort().to_list() == [0, 1, 2]
    samples = recording.samples.select("problem_id", "sample_index", "think_tokens", "answer")
    joined = rows.join(samples, on=["problem_id", "sample_index"], suffix="_own")
    assert (joined["forced"] == (joined["budget_tokens"] < joined["think_tokens"])).all()
    kept = joined.filter(~pl.col("forced"))
    assert kept.height and (kept["answer"] == kept["answer_own"]).all()
    forced = rows.filter(pl.col("forced"))
    asked = [r for r in engine.submitted if r.request_id.startswith("checkpoint.")]
    assert len(asked) == forced.height == recording.checkpoints.height
    for request in asked:
        *_, budget = request.request_id.split(".")
        ids = request.continues.token_ids
        assert len(ids) == 5 + int(budget) and THINK_END not in ids
        assert request.continues.append == "</think>"
        assert request.max_tokens == 100 - int(budget) - 1


def test_they_are_in_no_number_of_the_run(pair):
    plain, checked, _ = pair
    assert checked.samples.height == plain.samples.height
    assert checked.steps.height == plain.steps.height
    first, second = (summarise(recording)[0] for recording in (plain, checked))
    for name in ("problems", "accuracy", "tokens_per_problem", "flops_per_problem", "policies"):
        assert getattr(first, name) == getattr(second, name), name
    assert second.device_s_per_problem is not None
    last = checked.problems["end"].max()
    assert checked.checkpoints["arrival"].min() >= last
    assert checked.steps["end"].max() <= last


def test_their_cost_is_kept_and_no_text(pair):
    _, recording, _ = pair
    cost = recording.manifest.checkpoints
    assert cost.budgets == (4, 16) and cost.samples == 3
    assert cost.requests == recording.checkpoints.height
    assert cost.output_tokens == recording.checkpoints["output_tokens"].sum()
    assert cost.prompt_tokens == recording.checkpoints["prompt_tokens"].sum()
    assert cost.seconds > 0 and cost.failed == 0
    assert recording.checkpoints["token_ids"].null_count() == cost.requests
    everything = [recording.frame(t).to_dicts() for t in ("samples", "answers", "problems")]
    assert CANARY not in json.dumps(everything, default=str)
    assert Recording.open(recording.path).manifest == recording.manifest


@pytest.mark.parametrize(
    ("budgets", "policy", "message"),
    [
        ((0,), POLICY, "above 0"),
        ((4, 4), POLICY, "different token counts"),
        ((100,), POLICY, "below max_tokens, 100"),
        ((8,), Policy(thinking_token_budget=8), "below the thinking budget, 8"),
        ((8,), Policy(method="beam", n=4), "whole samples"),
    ],
)
def test_impossible_budgets_are_refused(tmp_path, budgets, policy, message):
    with pytest.raises(UsageError, match=message):
        record(workload(), policy, StubEngine(), tmp_path / "r", budget_checkpoints=budgets)
    assert not (tmp_path / "r").exists()
