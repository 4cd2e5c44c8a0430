from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
import pytest

from traces.votes import majority_at, pass_at_k, policies_within, sample_counts


def exact_majority(answers, correct, k):
    right = {a for a, c in zip(answers, correct, strict=True) if c and a is not None}
    chances = []
    for subset in combinations(range(len(answers)), k):
        votes = [answers[i] for i in subset if answers[i] is not None]
        if not votes:
            chances.append(0.0)
            continue
        most = max(votes.count(a) for a in votes)
        leading = {a for a in votes if votes.count(a) == most}
        chances.append(len(leading & right) / len(leading))
    return np.mean(chances)


def test_counts_double_up_to_n():
    assert sample_counts(1) == [1]
    assert sample_counts(16) == [1, 2, 4, 8, 16]
    assert sample_counts(12) == [1, 2, 4, 8, 12]


@pytest.mark.parametrize(("n", "c", "k"), [(10, 3, 1), (10, 3, 4), (6, 0, 2), (6, 6, 2), (5, 4, 5)])
def test_pass_at_k_counts_subsets(n, c, k):
    hits = [any(i < c for i in subset) for subset in combinations(range(n), k)]
    assert pass_at_k(n, c, k) == pytest.approx(np.mean(hits))


def test_majority_is_near_the_exact_mean_over_subsets():
    answers = ["7", "7", "8", None, "9", "7", "8", "8"]
    correct = [True, True, False, False, False, True, False, False]
    found = majority_at(answers, correct, [1, 2, 4, 8], np.random.default_rng(0))
    exact = [exact_majority(answers, correct, k) for k in (1, 2, 4, 8)]
    assert found[0] == exact[0] == 3 / 8
    assert found[3] == exact[3] == 0.5  # a tie of 7 and 8
    assert found == pytest.approx(exact, abs=0.06)


def test_no_answer_is_wrong():
    assert majority_at([None, None], [None, None], [1, 2], np.random.default_rng(0)) == [0.0, 0.0]


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
