"""The regressions are scikit-learn estimators, as its own checks have it."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from advisor.step_time.regression import NonNegativeRegression, StepTimeRegression


@parametrize_with_checks([NonNegativeRegression(), StepTimeRegression()])
def test_scikit_learn_takes_it_for_one_of_its_own(estimator, check):
    check(estimator)


def steps(rng, count=400):
    rows = np.column_stack(
        [np.ones(count), rng.integers(1, 64, count), rng.integers(1, 9999, count)]
    )
    return rows.astype(float), np.array([2e-3, 3e-5, 4e-8])


def test_a_few_stalls_do_not_move_the_law():
    rng = np.random.default_rng(0)
    rows, law = steps(rng)
    seconds = rows @ law * rng.lognormal(0, 0.02, len(rows))
    seconds[::25] *= 8
    found = StepTimeRegression().fit(rows, seconds)
    assert found.coef_ == pytest.approx(law, rel=0.1)
    plain = NonNegativeRegression().fit(rows, seconds)
    typical = np.delete(np.arange(len(rows)), np.s_[::25])
    off, plainly = (
        abs(np.log(each.predict(rows[typical]) / seconds[typical])).mean()
        for each in (found, plain)
    )
    assert off < 0.03 < plainly


def test_what_steps_do_not_tell_comes_from_what_it_is_held_towards():
    """All steps have as many requests, so that the fixed part and a request's cannot be told."""
    rows = np.column_stack([np.ones(50), np.full(50, 10.0)])
    seconds = np.full(50, 2e-3)
    shape = np.array([1e-3, 1e-4])
    towards = np.column_stack([np.diag(1 / shape), np.ones(2)]) * 1e-3
    found = StepTimeRegression().fit(rows, seconds, towards=towards)
    assert found.coef_ == pytest.approx(shape, rel=0.05)
    prior = StepTimeRegression().fit(rows, seconds, prior=np.array([1.5e-3, 5e-5]))
    assert prior.coef_ == pytest.approx([1.5e-3, 5e-5], rel=0.05)


def test_another_solver_is_put_in():
    rng = np.random.default_rng(1)
    rows, law = steps(rng)
    seconds = rows @ law * rng.lognormal(0, 0.02, len(rows))
    own = StepTimeRegression(Ridge(alpha=1e-9, fit_intercept=False, positive=True))
    assert clone(own).fit(rows, seconds).coef_ == pytest.approx(law, rel=0.1)


def test_a_step_takes_time():
    with pytest.raises(ValueError, match="must be above 0"):
        StepTimeRegression().fit([[1.0], [2.0]], [1e-3, 0.0])
