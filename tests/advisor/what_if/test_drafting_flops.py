"""FLOPs of engines whose drafts a model makes: with its share, or not known at all."""

import dataclasses

import pytest

from advisor.advice.advisor import Advisor
from tests.advisor.synthetic import FACTS, GREEDY, VOTE16, engine_of, record
from traces.schema.advice import Budget
from traces.schema.engine import Speculative

DRAFT = Speculative(method="draft_model", model="small", num_speculative_tokens=3)


@pytest.fixture(scope="module")
def drafted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafted")
    return record(folder / "drafted", engine_of("large", speculative=DRAFT), GREEDY)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return record(tmp_path_factory.mktemp("plain") / "plain", engine_of("large"), GREEDY)


def flops_of(answer):
    picks = [answer.system_optimal, *answer.pareto, *answer.equals]
    return [
        None if (found := pick.estimates["flops"]) is None else found.value
        for pick in picks
        if pick.engine.speculative is not None
    ]


@pytest.mark.slow
def test_flops_are_not_told_where_no_recording_has_the_drafting_model(plain, drafted):
    answer = Advisor.fit([plain, drafted], draws=40).recommend(Budget())
    assert answer.system_optimal.engine.speculative == DRAFT  # or nothing would be shown
    assert set(flops_of(answer)) == {None}
    assert answer.compute_optimal.engine.speculative is None
    assert all(pick.engine.speculative is None for pick in answer.compute_pareto)
    (line,) = (line for line in answer.reasons if line.startswith("the compute-optimal one "))
    assert "no recording has the facts of its draft model" in line
    assert "inf" not in line


def test_alone_there_is_no_compute_optimal_one(drafted):
    answer = Advisor.fit([drafted], draws=40).recommend(Budget())
    assert answer.compute_optimal is None
    assert answer.compute_pareto == ()
    assert any("FLOPs are not known" in line for line in answer.reasons)


def test_they_hold_what_the_drafting_model_forwards(plain, drafted):
    models = dict(drafted.manifest.models) | {"small": FACTS["small"]}
    dataclasses.replace(drafted.manifest, models=models).write(drafted.path)
    known = dataclasses.replace(
        drafted, manifest=dataclasses.replace(drafted.manifest, models=models)
    )
    answer = Advisor.fit([plain, known], draws=40).recommend(Budget())
    (flops,) = set(flops_of(answer))
    steps = drafted.steps
    tokens = steps["prefill_tokens"].sum() + steps["decode_tokens"].sum()
    context = steps["prefill_query_context"].sum() + steps["decode_kv_tokens"].sum()
    problems = drafted.problems.height
    large, small = FACTS["large"], FACTS["small"]
    least = (large.matmul_flops(tokens) + large.attention_flops(context)) / problems
    assert flops > least
    # Drafted are the prompt and at most three tokens for each one that is kept.
    assert flops < least + small.matmul_flops(4 * tokens) / problems


def test_a_rule_counts_drafts_as_a_vote_does(tmp_path):
    """The draft model forwards the prompt and what it drafts, not what the other one verifies."""
    made = record(tmp_path / "d", engine_of("large", speculative=DRAFT), VOTE16, problems=8)
    models = dict(made.manifest.models) | {
        "small": dataclasses.replace(
            FACTS["small"], active_parameters=FACTS["large"].active_parameters
        )
    }
    made = dataclasses.replace(made, manifest=dataclasses.replace(made.manifest, models=models))
    advisor = Advisor.fit([made], draws=40)
    work, kinds = advisor.policy_work, advisor.space.kinds
    (kind,) = (each for each in kinds if each.policy == VOTE16)
    _, _, flops = work.stopped(kind, work._run_alone(kind, None))
    assert flops.sum() == pytest.approx(work.tokens_and_flops(kind)[1].sum(), rel=0.01)
