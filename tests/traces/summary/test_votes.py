from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.schema.estimate import Interval
from traces.summary.votes import (
    accuracy,
    majority_curve,
    pass_curve,
    policies_within,
    sample_counts,
)

ROWS = st.lists(st.sampled_from([None, "a", "b", "c", "d"]), min_size=1, max_size=9)


def judged(answers):
    return [answer == "a" for answer in answers]


def by_hand(answers, k):
    """Every subset of k: the right share of the leaders, 0 when nothing was answered."""
    scores = []
    for subset in combinations(answers, k):
        votes = Counter(answer for answer in subset if answer is not None)
        leaders = [a for a, count in votes.items() if count == max(votes.values())]
        scores.append(leaders.count("a") / len(leaders) if leaders else 0.0)
    return np.mean(scores)


def test_counts_double_up_to_n():
    assert sample_counts(1) == [1]
    assert sample_counts(16) == [1, 2, 4, 8, 16]
    assert sample_counts(12) == [1, 2, 4, 8, 12]


@pytest.mark.parametrize(("n", "c", "k"), [(10, 3, 1), (10, 3, 4), (6, 0, 2), (6, 6, 2), (5, 4, 5)])
def test_pass_at_k_counts_subsets(n, c, k):
    hits = [any(i < c for i in subset) for subset in combinations(range(n), k)]
    assert pass_curve(n, c)[k - 1] == pytest.approx(np.mean(hits))


@pytest.mark.slow
@settings(max_examples=150)
@given(answers=ROWS)
def test_a_vote_is_the_mean_over_all_subsets(answers):
    curve = majority_curve(answers, judged(answers))
    for k in range(1, len(answers) + 1):
        assert curve[k - 1] == pytest.approx(by_hand(answers, k), abs=1e-12)
        assert majority_curve(answers, judged(answers), k) == pytest.approx(curve[:k], abs=1e-15)


@settings(max_examples=100)
@given(answers=ROWS, seed=st.integers(0, 99))
def test_invariants(answers, seed):
    right = judged(answers)
    votes, passed = majority_curve(answers, right), pass_curve(len(answers), sum(right))
    assert votes[0] == pytest.approx(passed[0])
    assert (np.diff(passed) >= -1e-12).all()
    assert (votes <= passed + 1e-12).all()
    order = np.random.default_rng(seed).permutation(len(answers))
    shuffled = majority_curve([answers[i] for i in order], [right[i] for i in order])
    np.testing.assert_allclose(shuffled, votes, atol=1e-12)


def test_unparsed_answers_have_no_vote():
    answers = [None, None, None, "a"]
    assert majority_curve(answers, judged(answers)) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert majority_curve([None, None], [None, None]).tolist() == [0.0, 0.0]


def test_many_samples_stay_exact():
    answers = ["a"] * 24 + ["b"] * 20 + [str(i) for i in range(20)]
    curve = majority_curve(answers, judged(answers))
    assert curve[-1] == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(64)[:8] for _ in range(4000)]
    sampled = np.mean([by_hand([answers[i] for i in d], 8) for d in drawn])
    assert curve[7] == pytest.approx(sampled, abs=0.025)


def test_two_forms_of_the_right_answer_split_its_votes():
    curve = majority_curve(["1/2", "0.5", "7", "7"], [True, True, False, False])
    assert curve.tolist() == pytest.approx([0.5, 0.5, 1 / 3, 0.0], abs=0.2)
    assert curve[-1] == 0.0


def frame(problems):
    rows = [
        {
            "problem": number, "sample_index": index, "answer": answer, "correct": answer == "a",
            "end": end, "output_tokens": 10 * (index + 1),
        }
        for number, samples in enumerate(problems)
        for index, (answer, end) in enumerate(samples)
    ]  # fmt: skip
    return pl.from_dicts(rows)


def test_only_problems_with_all_samples_ended_count():
    samples = frame(
        [
            [("a", 1), ("a", 2), ("b", 3), ("a", 4)],
            [("b", 1), ("b", 2), ("a", 3), ("b", 4)],
            [("a", 1), ("a", 2), ("a", None), ("a", 4)],  # in flight
            [("a", 1), ("a", 2)],  # samples missing
        ]
    )
    found = {(o.method, o.n): o for o in policies_within(samples, 4)}
    assert found["majority", 4].accuracy.value == 0.5
    assert found["pass_at_k", 4].accuracy.value == 1.0
    assert found["majority", 1].accuracy.value == found["pass_at_k", 1].accuracy.value == 0.5
    assert found["majority", 4].tokens_per_problem.value == 100
    assert found["majority", 1].tokens_per_problem.value == 25
    assert all(o.bound is None and o.budget_tokens is None for o in found.values())
    assert policies_within(samples.filter(pl.col("problem") == 3), 4) == ()


def test_a_run_and_the_vote_of_all_its_samples_have_one_interval():
    """`[.377, .699]` stood beside `[.390, .687]` of the same problems."""
    won, lost = [("a", 1)] * 4, [("b", 1)] * 4
    policies = policies_within(frame([won, won, won, lost] * 5), 4)
    voted = next(p for p in policies if (p.method, p.n) == ("majority", 4))
    found = accuracy(np.array([1.0, 1.0, 1.0, 0.0] * 5))
    assert (found.value, found.low, found.high) == (
        voted.accuracy.value, voted.accuracy.low, voted.accuracy.high,
    )  # fmt: skip
    assert found.others == Interval(low=voted.other_problems.low, high=voted.other_problems.high)
    assert accuracy(np.array([np.nan])) is None


def test_one_more_run_of_others_answers_each_problem_once():
    """Shares of 8 samples vary less than the one sample that a run draws of each problem."""
    even = [("a", 1), ("b", 2)] * 4
    found = policies_within(frame([even] * 40), 8)
    single = next(p for p in found if (p.method, p.n) == ("majority", 1)).other_problems
    half = 1.645 * np.sqrt(0.25 / 40)
    assert single.low == pytest.approx(0.5 - half, abs=0.03)
    assert single.high == pytest.approx(0.5 + half, abs=0.03)


def test_votes_over_more_samples_than_floats_count_the_subsets_of():
    """C(1100, 550) is no float; by draws without replacement, another way."""
    sizes = {"a": 380, "b": 340, "c": 200, None: 180}
    answers = [answer for answer, size in sizes.items() for _ in range(size)]
    curve = majority_curve(answers, [answer == "a" for answer in answers])
    assert len(curve) == 1100 and np.isfinite(curve).all()
    assert curve[0] == pytest.approx(380 / 1100)
    assert curve[-1] == 1.0
    rng = np.random.default_rng(1)
    for k in (8, 16, 100, 550, 1000):
        drawn = rng.multivariate_hypergeometric([*sizes.values()], k, size=20_000)[:, :3]
        leads = drawn == drawn.max(axis=1, keepdims=True)
        truth = (leads[:, 0] / leads.sum(axis=1)).mean()
        assert curve[k - 1] == pytest.approx(truth, abs=0.02 if k == 8 else 0.14)  # three errors


def test_votes_that_are_not_exact_say_so():
    samples = frame([[("a", 1), ("b", 2)] * 600] * 3)
    found = {o.n: o for o in policies_within(samples, 1200) if o.method == "majority"}
    assert {n for n, each in found.items() if each.basis == "subsets"} == {1, 2, 4, 8, 1200}
    assert found[1200].accuracy.value == 0.5
    for n in (16, 1024):  # three problems with the same votes are as one
        assert found[n].error == pytest.approx((0.25 / 128) ** 0.5, rel=0.05)
        assert found[n].accuracy.value == pytest.approx(0.5, abs=4 * found[n].error)


def test_tokens_that_a_sample_lacks_are_not_known():
    samples = frame([[("a", 1), ("b", 2)]] * 3)
    lacking = samples.with_columns(
        output_tokens=pl.when(pl.col("problem") > 0).then("output_tokens")
    )
    assert all(each.tokens_per_problem is None for each in policies_within(lacking, 2))
    own = lacking.filter(pl.col("problem") > 0)
    assert all(each.tokens_per_problem.value > 0 for each in policies_within(own, 2))
