from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.accuracy.subsets import RandomOrders, best_of_curve, routed
from tests.advisor.sampled import samples
from traces.schema.tts.stop_rules import SAFE, WINDOWS, Stop, lead_is_safe
from traces.summary.votes import majority_curve

PAIRS = Stop(rule=WINDOWS, value=2, drawn_first=2)

ROWS = st.lists(
    st.tuples(
        st.sampled_from([None, "a", "b", "c"]), st.sampled_from([-0.1, -0.5, -0.9, float("nan")])
    ),
    min_size=1,
    max_size=7,
)


def leaders(totals):
    """The right share of the answers with the largest total."""
    if not totals or max(totals.values()) <= 0:
        return 0.0
    lead = [a for a, total in totals.items() if total > max(totals.values()) - 1e-12]
    return lead.count("a") / len(lead)


def vote(rows, weight):
    totals = {}
    for answer, score in rows:
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + weight(score)
    return leaders(totals)


def plurality(rows):
    return vote(rows, lambda score: 1.0)


def best_by_hand(rows):
    able = [row for row in rows if row[0] is not None and np.isfinite(row[1])]
    if not able:
        return plurality(rows)
    top = [answer for answer, score in able if score == max(s for _, s in able)]
    return top.count("a") / len(top)


def weighted_by_hand(rows):
    able = [row for row in rows if row[0] is not None and np.isfinite(row[1])]
    return vote(able, np.exp) if able else plurality(rows)


def problem_of(rows):
    return samples([answer for answer, _ in rows], logprob=[score for _, score in rows])


@pytest.mark.slow
@settings(max_examples=150)
@given(rows=ROWS)
def test_best_of_k_is_the_mean_over_all_subsets(rows):
    problem = problem_of(rows)
    curve = best_of_curve(problem, problem.logprob_mean)
    for k in range(1, len(rows) + 1):
        exact = np.mean([best_by_hand(subset) for subset in combinations(rows, k)])
        assert curve[k - 1] == pytest.approx(exact, abs=1e-12)


@settings(max_examples=40)
@given(rows=ROWS)
def test_a_weighted_vote_of_few_subsets_is_the_mean_over_all(rows):
    problem = problem_of(rows)
    orders = RandomOrders(problem, np.random.default_rng(0), 2)
    for k in range(1, len(rows) + 1):
        exact = np.mean([weighted_by_hand(subset) for subset in combinations(rows, k)])
        found = orders.weighted(k, problem.logprob_mean)
        assert found.right == pytest.approx(exact, abs=1e-12)
        assert found.variance == 0.0


@settings(max_examples=60)
@given(rows=ROWS, seed=st.integers(0, 99))
def test_the_order_of_samples_changes_nothing_exact(rows, seed):
    order = np.random.default_rng(seed).permutation(len(rows))
    first, second = problem_of(rows), problem_of([rows[i] for i in order])
    np.testing.assert_allclose(
        best_of_curve(first, first.logprob_mean),
        best_of_curve(second, second.logprob_mean),
        atol=1e-12,
    )


@settings(max_examples=40)
@given(rows=ROWS, k=st.integers(1, 7))
def test_weighted_votes_are_near_the_mean_over_all_subsets(rows, k):
    k = min(k, len(rows))
    problem = problem_of(rows)
    found = RandomOrders(problem, np.random.default_rng(0), 512).weighted(k, problem.logprob_mean)
    exact = np.mean([weighted_by_hand(subset) for subset in combinations(rows, k)])
    assert found.right == pytest.approx(exact, abs=5 * np.sqrt(found.variance) + 0.02)
    assert found.tokens == 10 * k
    if k == len(rows):
        assert found.right == pytest.approx(exact)
        assert found.variance == 0.0


def test_equal_weights_are_the_majority():
    answers = ["a", "b", "a", "c", None, "b", "a", "b"]
    problem = samples(answers, logprob=[-0.3] * 8)
    orders = RandomOrders(problem, np.random.default_rng(1), 512)
    exact = majority_curve(problem.answers, problem.correct)
    for k in (1, 3, 8):
        found = orders.weighted(k, problem.logprob_mean).right
        assert found == pytest.approx(orders.weighted(k, np.full(8, np.nan)).right)
        assert found == pytest.approx(exact[k - 1], abs=0.08)


def test_the_least_confident_do_not_vote():
    problem = samples(["a", "a", "b", "b", "b"], logprob=[-0.1, -0.2, -1.0, -1.1, -1.2])
    orders = RandomOrders(problem, np.random.default_rng(0), 64)
    logs = problem.logprob_mean
    assert orders.confident(5, logs, logs, 0.4).right == 1.0
    assert orders.confident(5, logs, np.zeros(5), 1.0).right == 0.0
    # A nan neither votes nor counts towards the share that is kept.
    unknown = np.array([-0.1, np.nan, -1.0, -1.1, -1.2])
    assert orders.confident(5, unknown, unknown, 0.25).right == 1.0


def windows_by_hand(answers, n, window):
    """ESC in one order: the right share and the samples drawn."""
    for start in range(0, n, window):
        end = min(start + window, n)
        piece = answers[start:end]
        if (piece[0] is not None and len(set(piece)) == 1) or end == n:
            return plurality([(a, 0.0) for a in answers[:end]]), end
    raise AssertionError


@pytest.mark.parametrize("answers", [["a", "a", "b", "a", "a", "a"], ["a", None, "b", "b", "a"]])
def test_windows_are_the_mean_over_all_orders(answers):
    problem = samples(answers)
    found = RandomOrders(problem, np.random.default_rng(0), 4000).until(len(answers), PAIRS)
    exact = np.mean([windows_by_hand(o, len(o), 2) for o in permutations(answers)], axis=0)
    assert found.right == pytest.approx(exact[0], abs=0.03)
    assert found.tokens == pytest.approx(10 * exact[1], abs=0.6)


def one_by_one_by_hand(answers, threshold):
    for end in range(1, len(answers) + 1):
        counts = sorted((answers[:end].count(a) for a in {*answers} - {None}), reverse=True)
        first, second = [*counts, 0, 0][:2]
        if lead_is_safe(first, second) >= threshold or end == len(answers):
            return plurality([(a, 0.0) for a in answers[:end]]), end
    raise AssertionError


def test_one_by_one_is_the_mean_over_all_orders():
    answers = ["a", "a", "b", "a", "a", None]
    problem = samples(answers)
    found = RandomOrders(problem, np.random.default_rng(0), 4000).until(
        6, Stop(rule=SAFE, value=0.85, drawn_first=1)
    )
    exact = np.mean([one_by_one_by_hand(list(o), 0.85) for o in permutations(answers)], axis=0)
    assert found.right == pytest.approx(exact[0], abs=0.03)
    assert found.tokens == pytest.approx(10 * exact[1], abs=0.8)
    assert found.tokens < 60


def test_tables_of_all_counts_are_the_votes_of_each():
    """To the last bit, with equal lengths and answers that did not parse among the samples."""
    rng = np.random.default_rng(3)
    for number in range(6):
        answers = [[None, "a", "b", "c"][i] for i in rng.integers(4, size=16 + number)]
        problem = samples(answers, tokens=rng.integers(1, 6, len(answers)).astype(float))
        orders = RandomOrders(problem, rng, 12)
        firsts, counts = (3, 4, 0), (16, 12, 8, 6, 4, 3)
        able = ((12, 6, 3), (16, 8, 4), counts)
        asked = np.array([[count in own for count in counts] for own in able])
        votes, agree = orders.tables(firsts, counts, asked)
        for f, first in enumerate(firsts):
            chosen = orders.orders[:, :first]
            same = orders.answers[chosen][..., None] == np.arange(len(orders.right))
            most = same.sum(axis=1).max(axis=1)
            assert agree[f].tolist() == most.tolist()
            for c, count in enumerate(counts):
                if asked[f, c]:
                    one = orders.ended(count, count, routed((count,) * (first + 1)))
                    if count == first:
                        one[1] = orders.tokens[chosen].sum(axis=1)
                    assert votes[f, c].tolist() == one.tolist()


def test_a_problem_without_answers_is_wrong():
    problem = samples([None, None, None])
    orders = RandomOrders(problem, np.random.default_rng(0), 16)
    assert best_of_curve(problem, problem.logprob_mean).tolist() == [0.0, 0.0, 0.0]
    assert orders.weighted(2, problem.logprob_mean).right == 0.0
    assert orders.until(3, PAIRS).right == 0.0
