"""A smaller max_tokens is exact from lengths: what it cuts has no vote."""

import dataclasses
import json

import numpy as np
import pytest

from advisor.accuracy.counterfactual import evaluate
from advisor.advice.advisor import Advisor
from advisor.evidence.runs import limited, limits_that_cut, read_runs
from advisor.search.budget import parse_budget
from tests.advisor.synthetic import VOTE16, engine_of, record
from tests.tui.conftest import run  # noqa: F401
from tests.tui.verbs.test_outcomes_alone import imported, outcomes, three  # noqa: F401
from traces.errors import UsageError
from traces.foreign.evaluations.importer import import_outcomes
from traces.foreign.evaluations.reader import Given
from traces.recording.reader import Recording
from traces.summary.run import summarise

LIMIT = 2048


def cut(path, limit):
    """Return the lines as a run with that limit would have written them."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["output_tokens"] > limit:
            row |= {"output_tokens": limit, "answer": None, "correct": False}
            row["finish_reason"] = "length"
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def both(tmp_path):
    """An import as it is, and of what a smaller limit would have given."""
    outcomes(tmp_path / "a.jsonl", 0.5, 1800, problems=12, samples=6)
    (tmp_path / "b.jsonl").write_text(cut(tmp_path / "a.jsonl", LIMIT))
    found = []
    for name, most in (("a", 16384), ("b", LIMIT)):
        given = Given(max_tokens=most, prompt_tokens=9, model="m")
        import_outcomes([tmp_path / f"{name}.jsonl"], tmp_path / name, given=given)
        found.append(Recording.open(tmp_path / name))
    return found


def by_name(found):
    return {
        (each.method, each.n, tuple(each.rule.items())): each
        for each in found.outcomes
        if each.max_tokens == found.max_tokens and each.budget_tokens is None
    }


@pytest.mark.slow
def test_all_policies_are_those_of_a_run_with_that_limit(both):
    whole, real = (summarise(each)[0] for each in both)
    found = evaluate(whole, max_tokens=LIMIT)
    assert {each.max_tokens for each in found.outcomes} == {LIMIT}
    ours, theirs = by_name(found), by_name(evaluate(real))
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, each in theirs.items():
        assert ours[name].accuracy.value == pytest.approx(each.accuracy.value, abs=1e-12), name
        assert ours[name].tokens_per_problem.value == pytest.approx(
            each.tokens_per_problem.value, abs=1e-9
        )


@pytest.mark.slow
def test_a_limit_that_cuts_some_is_told_without_being_asked(both):
    found = evaluate(summarise(both[0])[0])
    rows = {(each.n, each.max_tokens): each for each in found.outcomes if each.max_tokens}
    assert rows.keys() >= {(n, LIMIT) for n in (1, 6)}
    real = {each.n: each for each in evaluate(summarise(both[1])[0]).outcomes
            if each.method == "majority" and each.max_tokens is None}  # fmt: skip
    for (n, most), each in rows.items():
        assert each.fresh_run is None  # that of samples that were not cut
        if most != LIMIT:
            continue
        assert each.accuracy.value == pytest.approx(real[n].accuracy.value, abs=1e-12)


def test_nothing_is_said_beyond_a_limit_that_cut_samples(both):
    real = summarise(both[1])[0]
    with pytest.raises(UsageError, match="were cut at 2,048, and how they would have gone on"):
        evaluate(real, max_tokens=4096)
    with pytest.raises(UsageError, match="must be at least 1"):
        evaluate(real, max_tokens=0)
    (own,), *_ = read_runs(both[1])
    assert limited(own, 4096) is None
    untold = dataclasses.replace(own, policy=dataclasses.replace(own.policy, max_tokens=None))
    assert limited(untold, 4096) is None and limited(untold, LIMIT) is not None
    (whole,), *_ = read_runs(both[0])
    assert limited(whole, 30000).problems == whole.problems  # none was cut


def test_limits_that_are_tried_cut_some_and_not_most():
    lengths = [int(x) for x in np.geomspace(500, 30_000, 200)]
    for most in limits_that_cut(lengths):
        share = np.mean([length > most for length in lengths])
        assert 0.01 <= share <= 0.4 and most & (most - 1) == 0
    assert limits_that_cut([30, 60, 90]) == [] and limits_that_cut([]) == []


@pytest.mark.slow
def test_replay_and_advice_have_the_limit(run, three, tmp_path):  # noqa: F811
    names = ("replay", "runs/small", "--gpu", "test_gpu", "--concurrency", "1", "--json")
    out = run.ok(*names, "--set", f"policy.max_tokens={LIMIT}")
    found, tokens = json.loads(out)["predicted"], np.minimum(three["small"], LIMIT)
    assert found["tokens_per_problem"]["value"] == pytest.approx(tokens.sum(axis=1).mean())
    recordings = [Recording.open(tmp_path / "runs" / "small")]
    advisor = Advisor.fit(recordings, gpus=["test_gpu"])
    limits = {kind.policy.max_tokens for kind in advisor.space.kinds}
    assert limits == {16384, *limits_that_cut(three["small"].ravel().tolist())}
    pick = advisor.recommend(parse_budget({"optimise": "latency"})).system_optimal
    assert pick.policy.method == "first_finish"
    policies = {kind.policy for kind in advisor.space.kinds}
    shorter = dataclasses.replace(pick.policy, max_tokens=min(limits))
    assert shorter in policies
    assert shorter.label_with_temperature().endswith(f" max {min(limits)}")
    assert f'"max_tokens": {min(limits)}' in json.dumps(dataclasses.asdict(shorter))


def test_what_nobody_judged_is_not_wrong_when_it_is_cut(tmp_path):
    (own,), *_ = read_runs(record(tmp_path / "r", engine_of(), VOTE16, problems=3))
    for judged in (True, False):
        problems = {
            name: dataclasses.replace(
                problem,
                samples=tuple(
                    dataclasses.replace(each, correct=each.correct if judged else None)
                    for each in problem.samples
                ),
            )
            for name, problem in own.problems.items()
        }
        cut = limited(dataclasses.replace(own, problems=problems), 4)
        told = {each.correct for problem in cut.problems.values() for each in problem.samples}
        assert told == ({False} if judged else {None})
