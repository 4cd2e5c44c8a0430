from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.models.accuracy import VoteAccuracy, pass_at_k

ROWS = st.lists(st.sampled_from([None, "a", "b", "c", "d"]), min_size=1, max_size=9)


def by_hand(answers, right, k):
    """Every subset of k: the right share of the leaders, 0 when nothing was answered."""
    scores = []
    for subset in combinations(answers, k):
        votes = Counter(answer for answer in subset if answer is not None)
        leaders = [a for a, count in votes.items() if count == max(votes.values())]
        scores.append(leaders.count(right) / len(leaders) if leaders else 0.0)
    return sum(scores) / len(scores)


@settings(max_examples=150, deadline=None)
@given(answers=ROWS)
def test_a_vote_is_the_mean_over_all_subsets(answers):
    got = VoteAccuracy().fit([answers], [[answer == "a" for answer in answers]])
    for k in range(1, len(answers) + 1):
        assert got.majority_[0, k - 1] == pytest.approx(by_hand(answers, "a", k), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(answers=ROWS, seed=st.integers(0, 99))
def test_invariants(answers, seed):
    right = [answer == "a" for answer in answers]
    got = VoteAccuracy().fit([answers], [right])
    assert got.majority_[0, 0] == pytest.approx(got.any_[0, 0])
    assert (np.diff(got.any_[0]) >= -1e-12).all()
    assert (got.majority_ <= got.any_ + 1e-12).all()
    order = np.random.default_rng(seed).permutation(len(answers))
    shuffled = VoteAccuracy().fit([[answers[i] for i in order]], [[right[i] for i in order]])
    np.testing.assert_allclose(shuffled.majority_, got.majority_, atol=1e-12)


def test_unparsed_answers_have_no_vote():
    answers = [None, None, None, "a"]
    got = VoteAccuracy().fit([answers], [[False, False, False, True]])
    assert got.majority_[0].tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_pass_at_k_is_chens():
    # 1 - C(7, 4) / C(10, 4)
    assert pass_at_k(10, 3)[3] == pytest.approx(1 - 35 / 210)
    assert pass_at_k(4, 0).tolist() == [0, 0, 0, 0]


def test_many_samples_stay_exact():
    answers = ["a"] * 24 + ["b"] * 20 + [str(i) for i in range(20)]
    got = VoteAccuracy().fit([answers], [[answer == "a" for answer in answers]])
    assert got.majority_[0, -1] == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(64)[:8] for _ in range(4000)]
    sampled = np.mean([by_hand([answers[i] for i in d], "a", 8) for d in drawn])
    assert got.majority_[0, 7] == pytest.approx(sampled, abs=0.025)


def test_a_problem_with_fewer_samples_bounds_n():
    got = VoteAccuracy().fit([["a", "b"], ["a"]], [[True, False], [True]])
    assert got.n_ == 1
    assert got.majority_.tolist() == [[0.5], [1.0]]
