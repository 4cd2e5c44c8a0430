"""The regressions behind step times, as scikit-learn estimators.

Loading scikit-learn takes a second, so that only what fits loads this module. What was fitted is
kept (`advisor.kept`), and predicts without it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike
from sklearn import config_context
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.linear_model import LinearRegression
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from traces.statistics import Floats

BLOCK: Final = 512  # rows that are made triangular at a time
NOTHING: Final = 1e-12  # share of the target below which a column's part in it is rounding


class _Linear(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A linear regression without an intercept: `coef_` [features]."""

    coef_: Floats

    def predict(self, X: ArrayLike) -> Floats:
        """Return the predictions [rows] of X [rows, features]."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=np.float64)
        return np.asarray(rows @ self.coef_)


class NonNegativeRegression(_Linear):
    """Least squares whose coefficients are 0 or more; columns may differ widely in size.

    `LinearRegression(positive=True)` solves a triangle of few rows that has the same least squares.
    It is exact to 12 digits or so, and less than that of the target is nothing. Normal equations
    would have half the digits, so that another processor would give other numbers.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> NonNegativeRegression:
        """Fit `coef_` [features] to X [rows, features] and y [rows]."""
        rows, target = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        size = np.sqrt(np.square(rows).sum(axis=0))
        used = size > 0
        self.coef_ = np.zeros(rows.shape[1])
        if used.any():
            triangle = _triangle(np.column_stack([rows[:, used] / size[used], target]))
            solver = LinearRegression(fit_intercept=False, positive=True)
            scaled = solver.fit(triangle[:, :-1], triangle[:, -1]).coef_
            scaled[scaled < NOTHING * np.sqrt(np.square(target).sum())] = 0.0
            self.coef_[used] = scaled / size[used]
        return self


class StepTimeRegression(_Linear):
    """Seconds of steps as a sum of what they compute, robust and in relative error.

    With t the measured and p the predicted time, weighted least squares of (t - p) / p, reweighted
    `iterations` times, with Huber's weights beyond `huber` robust standard deviations (Huber 1964).
    `solver` is any linear regressor without an intercept that has `coef_`, None for
    `NonNegativeRegression`.

    `fit` takes `towards` [held, features + 1], whose last column is what the others are to come
    near to in `held` times the spread of steps, and a `prior` [features], which counts as
    `prior_steps` steps.
    """

    def __init__(
        self,
        solver: Any = None,
        *,
        huber: float = 2.0,
        iterations: int = 6,
        held: float = 6.0,
        prior_steps: float = 300.0,
    ) -> None:
        self.solver = solver
        self.huber, self.iterations = huber, iterations
        self.held, self.prior_steps = held, prior_steps

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        tags.regressor_tags.poor_score = True  # where an intercept is needed, as with centred data
        return tags

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        towards: Floats | None = None,
        prior: Floats | None = None,
    ) -> StepTimeRegression:
        """Fit `coef_` [features] to steps X [steps, features] of y [steps] seconds each.

        Raises ValueError for seconds that are not above 0.
        """
        rows, seconds = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        if not (seconds > 0).all():
            raise ValueError("the seconds of a step must be above 0")
        solver = NonNegativeRegression() if self.solver is None else clone(self.solver)
        held = np.zeros((0, rows.shape[1] + 1)) if towards is None else towards
        predicted, weights, spread = seconds.copy(), np.ones_like(seconds), 0.1
        with config_context(assume_finite=True):
            for _ in range(self.iterations):
                near = self.held * spread * held
                scaled = np.concatenate([rows * (weights / predicted)[:, None], near[:, :-1]])
                target = np.concatenate([seconds * weights / predicted, near[:, -1]])
                if prior is not None:
                    squares = np.mean(np.square(scaled[: len(rows)]), axis=0)
                    size = np.sqrt(squares * self.prior_steps)
                    scaled = np.concatenate([scaled, np.diag(size)])
                    target = np.concatenate([target, size * prior])
                self.coef_ = np.array(solver.fit(scaled, target).coef_, dtype=np.float64)
                predicted = np.maximum(rows @ self.coef_, 1e-3 * seconds)
                residual = (seconds - predicted) / predicted
                spread = max(1.4826 * float(np.median(np.abs(residual))), 0.01)
                bound = self.huber * spread
                weights = np.sqrt(np.minimum(1.0, bound / np.maximum(np.abs(residual), 1e-12)))
        return self


def _triangle(rows: Floats) -> Floats:
    """Return R of the rows' QR: few rows with the same least squares. Blocks stay in the cache."""
    count, columns = rows.shape
    if (blocks := count // BLOCK) > 1:
        first = rows[: blocks * BLOCK].reshape(blocks, BLOCK, columns)
        parts = np.asarray(np.linalg.qr(first, mode="r"), dtype=float).reshape(-1, columns)
        rows = np.concatenate([parts, rows[blocks * BLOCK :]])
    return np.asarray(np.linalg.qr(rows, mode="r"), dtype=float)
