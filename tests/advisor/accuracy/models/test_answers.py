"""Votes of 64 foretold from 8, against rivals, on problems of several shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.accuracy.models.answers import AnswerCounts, AnswerModel, count_answers
from advisor.accuracy.models.mistakes import LAWS, draw_mistakes, partition_likelihood
from advisor.accuracy.models.success import SuccessLaw
from benchmarks.votes_ahead import FAMILIES, fit_beta_binomial, score_family


@pytest.fixture(scope="module")
def scores():
    """Log score and coverage by family, forecaster and vote."""
    return {name: score_family(name, 0, 200) for name in FAMILIES}


def mean_score(scores, family, rival, vote):
    return scores[family][rival, vote].logs.mean()


def coverage(scores, rival, vote):
    return np.mean([run[rival, vote].held for run in scores.values()])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rival", ["carried", "beta-binomial"])
def test_votes_are_foretold_better_in_every_shape(scores, family, rival):
    won = mean_score(scores, family, "ours", "majority")
    assert won > mean_score(scores, family, rival, "majority")


@pytest.mark.slow
@pytest.mark.parametrize("rival", ["carried", "beta-binomial"])
def test_pass_at_64_is_foretold_better_over_all_shapes(scores, rival):
    def over_all(name):
        return np.mean([mean_score(scores, family, name, "pass") for family in FAMILIES])

    assert over_all("ours") > over_all(rival)
    # Where one beta is the truth, that must cost next to nothing.
    lost = mean_score(scores, "beta", "beta-binomial", "pass") - mean_score(
        scores, "beta", "ours", "pass"
    )
    assert lost < 0.01


@pytest.mark.slow
def test_intervals_hold_where_the_rivals_do_not(scores):
    for vote in ("majority", "pass"):
        assert coverage(scores, "ours", vote) >= 0.75
        for rival in ("carried", "beta-binomial"):
            assert coverage(scores, "ours", vote) > coverage(scores, rival, vote)


def test_beta_binomial_is_the_one_of_highest_likelihood():
    rng = np.random.default_rng(0)
    hits = rng.binomial(8, rng.beta(0.6, 2.0, 20_000))
    assert fit_beta_binomial(hits, 8) == pytest.approx((0.6, 2.0), rel=0.06)


def test_counts():
    answers = ["a", "a", None, "b", "c", "b", "d"]
    found = count_answers(answers, [True, True, None, False, False, False, True])
    assert found == AnswerCounts(right=(2, 1), wrong=(2, 1), unparsed=1)


def test_never_and_always_solved_problems_stay_so():
    problems = [AnswerCounts(wrong=(32,))] * 60 + [AnswerCounts(right=(32,))] * 40
    votes = AnswerModel(draws=100).fit(problems).simulate([128])[128]
    assert votes.majority[0][:, :60].mean() < 0.02
    assert votes.majority[0][:, 60:].mean() > 0.98
    assert 0.0 < votes.any_right[0][:, :60].mean() < 0.25  # one may be solved yet


def test_seen_samples_are_kept():
    problems = [AnswerCounts(right=(1,), wrong=(7,)), AnswerCounts(right=(8,))] * 20
    model = AnswerModel(draws=50).fit(problems)
    again = model.simulate([8], keep=True)[8]
    assert (again.any_right == 1).all()
    assert (again.majority[0] == np.tile([0.0, 1.0], 20)).all()
    with pytest.raises(ValueError, match="more than 4 samples"):
        model.simulate([4], keep=True)


@pytest.mark.slow
def test_the_order_of_problems_does_not_matter_much_and_a_seed_repeats():
    rng = np.random.default_rng(1)
    problems = [
        AnswerCounts(right=(h,) if h else (), wrong=(8 - h,) if h < 8 else ())
        for h in rng.binomial(8, rng.beta(1, 1, 200)).tolist()
    ]
    first = AnswerModel(draws=100).fit(problems).simulate([32])[32].majority
    same = AnswerModel(draws=100).fit(problems).simulate([32])[32].majority
    turned = AnswerModel(draws=100).fit(problems[::-1]).simulate([32])[32].majority
    np.testing.assert_array_equal(first, same)
    assert turned.mean() == pytest.approx(first.mean(), abs=0.02)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), max_size=5), st.integers(0, len(LAWS) - 1), st.integers(0, 9))
def test_mistakes_are_a_distribution(sizes, law, seed):
    chances = partition_likelihood(sizes)
    assert chances.max() == 1.0
    if chances[law] == 0:
        return  # more classes than that law has
    counts = np.array([sizes], dtype=np.int64).reshape(1, -1)
    drawn = draw_mistakes(counts, np.array([law]), np.random.default_rng(seed))
    assert (drawn >= 0).all()
    assert drawn.sum() == pytest.approx(1.0)


def test_partitions_of_a_dirichlet_process_have_chances_that_sum_to_1():
    """The partitions of 3: {3}, {2, 1} three ways, {1, 1, 1}."""
    logs = [partition_likelihood(sizes) for sizes in ((3,), (2, 1), (1, 1, 1))]
    strength = LAWS[2][1]
    exact = np.array([2.0, strength, strength**2]) / ((strength + 1) * (strength + 2))
    assert exact @ [1, 3, 1] == pytest.approx(1.0)
    # Each is known up to its own best law, so compare two laws within a partition.
    other = LAWS[3][1]
    wanted = np.array([2.0, other, other**2]) / ((other + 1) * (other + 2))
    found = np.array([each[3] / each[2] for each in logs])
    assert found == pytest.approx(wanted / exact)


def test_success_law_finds_the_shares():
    rng = np.random.default_rng(2)
    chance = np.concatenate([np.zeros(300), rng.beta(4, 4, 700)])
    right = rng.binomial(32, chance)
    law = SuccessLaw(draws=100).fit(right, 32 - right)
    assert law.weights_.sum(axis=1) == pytest.approx(np.ones(100))
    assert law.weights_[:, 0].mean() == pytest.approx(0.3, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("options", [4, 10])
def test_a_guess_is_no_better_for_more_votes(options):
    """Each question is known, or guessed among its options: 8 samples foretell votes of 64."""
    rng, off = np.random.default_rng(options), []
    for _ in range(3):
        known = rng.random(300) < 0.6
        hit = np.where(known, rng.beta(8, 2, 300), 1 / options)
        laws = [np.array([p, *np.full(options - 1, (1 - p) / (options - 1))]) for p in hit]
        drawn = [rng.choice(options, 8, p=law).tolist() for law in laws]
        model = AnswerModel().fit([count_answers(each, [a == 0 for a in each]) for each in drawn])
        (runs,) = model.simulate([64], repeats=4).values()
        tallies = np.array([rng.multinomial(64, law, size=20) for law in laws])
        leads = tallies == tallies.max(axis=2, keepdims=True)
        truth = (leads[:, :, 0] / leads.sum(axis=2)).mean()
        off.append(runs.majority.mean() - truth)
    assert np.mean(off) < 0.05
