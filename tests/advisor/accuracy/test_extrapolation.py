"""A fresh run on the same problems falls in its interval; more samples are marked."""

import numpy as np
import pytest

from advisor.accuracy.extrapolation import extrapolate, fresh_interval, fresh_runs
from advisor.accuracy.models.answers import AnswerModel, count_answers
from benchmarks.votes_ahead import RIGHT, draw, family, voted
from traces.statistics import column_means
from traces.summary.votes import PolicyOutcome, majority_curve, pass_curve

COUNTS = (1, 2, 4, 8, 16, 32)


def judged(laws, n, rng):
    answers = draw(laws, n, rng)
    return answers, [[answer == RIGHT for answer in row] for row in answers]


def curves(answers, correct, counts):
    places = [k - 1 for k in counts]
    pairs = zip(answers, correct, strict=True)
    voted = [majority_curve(a, c, max(counts))[places] for a, c in pairs]
    passed = [pass_curve(len(c), sum(c))[places] for c in correct]
    return {"majority": np.array(voted), "pass_at_k": np.array(passed)}


def of_all(answers, correct):
    """What all samples give, by method: the last point of both curves."""
    rows = zip(answers, correct, strict=True)
    return {
        "majority": np.mean([voted(*row) for row in rows]),
        "pass_at_k": np.mean([any(row) for row in correct]),
    }


def outcomes_of(found, counts):
    return [
        PolicyOutcome(
            method=method,
            n=k,
            budget_tokens=None,
            accuracy=column_means(table[:, [place]], "1")[0],
            tokens_per_problem=None,
        )
        for method, table in found.items()
        for place, k in enumerate(counts)
    ]


@pytest.fixture(scope="module")
def held():
    """Whether fresh runs of k fell in the interval that a run of 64 gave: by family, method, k."""
    found = {}
    for name in ("beta", "bimodal", "popular mistake", "easy"):
        rng = np.random.default_rng([0, 3])
        laws = family(name, 100, rng)
        answers, correct = judged(laws, 64, rng)
        model = AnswerModel(draws=100, seed=0).fit(
            [count_answers(a, c) for a, c in zip(answers, correct, strict=True)]
        )
        said = outcomes_of(curves(answers, correct, COUNTS), COUNTS)
        for outcome in fresh_runs(model, said, methods=("majority", "pass_at_k")):
            fresh, again = outcome.fresh_run, of_all(*judged(laws, outcome.n, rng))[outcome.method]
            inside = fresh.low - 1e-9 <= again <= fresh.high + 1e-9
            found[name, outcome.method, outcome.n] = inside
    return found


@pytest.mark.slow
def test_a_fresh_run_falls_in_its_interval_nine_times_in_ten(held):
    assert len(held) == 48
    assert 0.86 <= np.mean(list(held.values())) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("method", ["majority", "pass_at_k"])
def test_for_votes_and_for_pass(held, method):
    assert np.mean([inside for key, inside in held.items() if key[1] == method]) >= 0.83


@pytest.mark.slow
def test_more_samples_are_marked_and_their_interval_holds_the_truth():
    hits = 0
    for seed in range(4):
        rng = np.random.default_rng([seed, 4])
        laws = family("beta", 200, rng)
        answers, correct = judged(laws, 16, rng)
        model = AnswerModel(draws=100, seed=seed).fit(
            [count_answers(a, c) for a, c in zip(answers, correct, strict=True)]
        )
        truth = of_all(*judged(family("beta", 1000, rng), 64, rng))
        for outcome in extrapolate(model, [64], np.full(200, 50.0)):
            assert outcome.accuracy.extrapolated
            assert outcome.basis == "model"
            assert outcome.tokens_per_problem.value == 3200
            assert outcome.accuracy.low <= outcome.accuracy.value <= outcome.accuracy.high
            hits += outcome.accuracy.low <= truth[outcome.method] <= outcome.accuracy.high
    assert hits >= 6  # of 8


def test_tokens_that_are_not_told_are_none_of_more_samples_either():
    model = AnswerModel(draws=20).fit([count_answers(["a", "b"], [True, False])] * 4)
    found = extrapolate(model, [4], np.array([9.0, np.nan, 9.0, 9.0]))
    assert [each.tokens_per_problem for each in found] == [None, None]


def test_other_policies_have_no_such_interval():
    model = AnswerModel(draws=20).fit([count_answers(["a", "b"], [True, False])] * 4)
    other = PolicyOutcome(
        method="best_of_n", n=2, budget_tokens=None, accuracy=None, tokens_per_problem=None
    )
    assert list(fresh_runs(model, [other], methods=("majority",))) == [other]
    assert extrapolate(model, [], np.zeros(4)) == []


def test_a_fresh_run_of_all_is_narrower_than_one_of_some_of_them():
    rng = np.random.default_rng(2)
    runs = (rng.random((1, 40, 400)) < rng.beta(1, 1, 400)).astype(float)

    def width(**options):
        found = fresh_interval(0.5, runs, **options)
        return found.high - found.low

    assert width(of=400) == width()
    assert width(of=40_000) == pytest.approx(width() / 10, rel=0.03)
    # More samples are judged on those 400 alone, whose choice stays in it.
    spread = runs.mean(axis=(0, 1)).std() / 20
    assert width(of=40_000, extrapolated=True) == pytest.approx(2 * 1.645 * spread, rel=0.1)


def test_what_the_laws_leave_open_for_all_is_no_less_for_more_problems():
    rng = np.random.default_rng(3)
    chance = rng.beta(1, 1, 4000) * 0.8 + 0.1
    common = rng.normal(0, 0.02, (1, 200, 1))  # of each draw of the laws, learned from the 4,000
    runs = (rng.random((1, 200, 4000)) < chance + common).astype(float)
    found = fresh_interval(0.5, runs, of=40_000, extrapolated=True)
    own, choice = float((chance * (1 - chance)).mean()), float(chance.var())
    spread = np.sqrt(own / 40_000 + 0.02**2 + choice * (1 / 4000 - 1 / 40_000))
    assert found.high - found.low == pytest.approx(2 * 1.645 * spread, rel=0.12)
