"""No answer hangs on a last digit: another processor adds in another order."""

import copy
import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.advice.advisor import Advisor
from advisor.search.resampling import Resampling
from advisor.step_time.law import non_negative_least_squares
from traces.schema.advice import Budget
from traces.statistics import ROUNDING, largest, tied

NOISE = 1e-12  # share, a hundred times that of sums in another order
LEVELS = np.array([-2.0, -1.0, 0.0, 1e-9, 1.0, 1.00001, 3.0, 1e9, math.inf])


def noisy(values, seed=0, noise=NOISE):
    return values * (1 + noise * np.random.default_rng(seed).uniform(-1, 1, values.shape))


@given(st.lists(st.sampled_from(LEVELS.tolist()), max_size=30), st.integers(0, 99))
def test_what_differs_by_rounding_is_tied_and_nothing_else(values, seed):
    values = np.array(values)
    told = tied(noisy(values, seed))
    assert [(a == told).tolist() for a in told] == [(a == values).tolist() for a in values]
    np.testing.assert_allclose(told, values, rtol=ROUNDING)
    assert np.argsort(told, kind="stable").tolist() == np.argsort(values, kind="stable").tolist()


@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 1.00001, 3.0]), min_size=1), st.integers(0, 99)
)
def test_of_the_largest_the_first_is_taken(values, seed):
    assert largest(noisy(np.array(values), seed)) == np.argmax(values)


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_draws_keep_their_order(q):
    """Problems of as many steps take as long, but for the order in which these are added."""
    resampling = Resampling(60)
    times = np.random.default_rng(1).choice([0.11, 0.12, 0.35], size=60)
    for seed in range(5):
        other = noisy(times, seed)
        np.testing.assert_array_equal(
            resampling.quantile_order(times, q), resampling.quantile_order(other, q)
        )
        np.testing.assert_allclose(
            resampling.quantile(times, q), resampling.quantile(other, q), rtol=ROUNDING
        )


def test_least_squares_have_the_same_digits_in_any_order():
    """Columns are as unlike as those of steps, and nearly the same, as requests and tokens are."""
    rng = np.random.default_rng(2)
    count = 2000
    requests = rng.integers(1, 65, count).astype(float)
    tokens = requests + (rng.random(count) < 0.01)
    rows = np.column_stack([np.ones(count), requests, tokens, requests * rng.uniform(100, 900)])
    target = rows @ np.array([2e-3, 3e-5, 4e-5, 1e-8]) * rng.normal(1, 0.05, count)
    weighted, target = rows / target[:, None], np.ones(count)
    found = non_negative_least_squares(weighted, target)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(count)
        again = non_negative_least_squares(weighted[order], target[order])
        np.testing.assert_allclose(again, found, rtol=1e-11)


def perturbed(advisor, seed):
    """An advisor whose laws differ by as much as its ties allow for."""
    model = copy.copy(advisor.model)
    model.laws_ = {
        key: dataclasses.replace(
            law, seconds=noisy(law.seconds, seed, 1e-10), ends=noisy(law.ends, seed, 1e-10)
        )
        for key, law in model.laws_.items()
    }
    return Advisor.of(advisor.evidence, model=model)


def parts_of(document, place=""):
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for name, part in items:
            yield from parts_of(part, f"{place}.{name}")
    else:
        yield place, document


@pytest.mark.slow
@pytest.mark.parametrize(
    "budget",
    [
        Budget(min_accuracy=0.6, optimise="latency"),
        Budget(max_latency_s=0.5, latency_percentile=95, optimise="cost"),
        Budget(rate_per_s=2.0, min_accuracy=0.5, optimise="cost"),
        Budget(optimise="throughput", min_accuracy=0.55, max_latency_s=2.0),
    ],
    ids=lambda budget: budget.optimise,
)
def test_an_answer_does_not_hang_on_a_last_digit(fresh_advisor, budget):
    advisor = fresh_advisor()
    first = dict(parts_of(advisor.recommend(budget).to_json()))
    assert len(first) > 100
    again = dict(parts_of(perturbed(advisor, 0).recommend(budget).to_json()))
    assert again.keys() == first.keys()
    for place, value in first.items():
        if isinstance(value, float):
            assert math.isclose(value, again[place], rel_tol=1e-7, abs_tol=1e-9), place
        else:
            assert value == again[place], place
