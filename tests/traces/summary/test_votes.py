from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.summary import votes
from traces.summary.votes import majority_curve, pass_curve, policies_within, sample_counts

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


@settings(max_examples=150)
@given(answers=ROWS)
def test_a_vote_is_the_mean_over_all_subsets(answers):
    curve = majority_curve(answers, judged(answers))
    for k in range(1, len(answers) + 1):
        assert curve[k - 1] == pytest.approx(by_hand(answers, k), abs=1e-12)
        first = majority_curve(answers, judged(answers), range(1, k + 1))
        assert first == pytest.approx(curve[:k], abs=1e-15)


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


@pytest.mark.parametrize(("answers", "value"), [(["a"] * 5, 1.0), (["b", "c", "b", "d"], 0.0)])
def test_all_right_is_1_and_all_wrong_0(answers, value):
    assert majority_curve(answers, judged(answers)).tolist() == [value] * len(answers)
    assert pass_curve(len(answers), sum(judged(answers))).tolist() == [value] * len(answers)


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
            "problem": number,
            "sample_index": index,
            "answer": answer,
            "correct": answer == "a",
            "end": end,
            "output_tokens": 10 * (index + 1),
        }
        for number, samples in enumerate(problems)
        for index, (answer, end) in enumerate(samples)
    ]
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


@pytest.mark.parametrize(
    ("own", "others", "unparsed"),
    [
        (40, (30,), 0),
        (30, (40, 5), 20),
        (20, (20, 20, 19, 3, 1, 1), 9),
        (7, (3,) * 30, 5),
        (99, (), 9),
    ],
)
def test_votes_of_many_samples_are_counted_as_those_of_few(monkeypatch, own, others, unparsed):
    counted = votes.win_probability.__wrapped__(own, others, unparsed)
    ks = (1, 2, 3, 8, 17, counted.size // 2, counted.size - 1, counted.size)
    monkeypatch.setattr(votes, "COUNTED", 10)
    monkeypatch.setattr(votes, "FEW", 10)
    found = votes.win_probability.__wrapped__(own, others, unparsed, ks)
    assert found == pytest.approx(counted[np.array(ks) - 1], abs=1e-9)
    curve = votes.win_probability.__wrapped__(own, others, unparsed)
    assert curve == pytest.approx(counted, abs=0.05)  # between some it is a line


def test_votes_of_thousands_of_samples():
    """More subsets than a float holds, as published sets of 10,000 samples have."""
    close, sure = ["a"] * 5_040 + ["b"] * 4_960, ["a"] * 1_100
    for answers in (close, sure):
        found = majority_curve(answers, judged(answers), [1, 3, len(answers)])
        p = answers.count("a") / len(answers)
        assert found == pytest.approx([p, p**3 + 3 * p**2 * (1 - p), 1.0], abs=1e-3)
    rng = np.random.default_rng(0)
    more = rng.hypergeometric(5_040, 4_960, 2_048, 200_000)
    drawn = (more > 1_024).mean() + (more == 1_024).mean() / 2
    assert majority_curve(close, judged(close), [2_048]) == pytest.approx([drawn], abs=0.004)
    samples = frame([[(answer, 1) for answer in ["a"] * 700 + ["b"] * 400]])
    of_all = {(o.method, o.n): o.accuracy.value for o in policies_within(samples, 1_100)}
    assert of_all["majority", 1_100] == of_all["pass_at_k", 1_100] == 1.0
    assert of_all["majority", 1] == pytest.approx(7 / 11)
