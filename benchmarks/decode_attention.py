"""Decode attention beyond what was measured: ``python benchmarks/decode_attention.py FOLDER...``.

Each folder holds operator times of one GPU. Models learn from contexts of at most `--known` tokens
(2,048): 5-fold within them, mean of ten shuffles with the least and the most, then up to twice and
up to eight times as far. Ours against linear interpolation of the table, a random forest of the log
(of batch, context and their product) and non-negative least squares of four terms (1, n, k, n k),
all in one run, by the mean absolute relative error.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from advisor.step_time.law import non_negative_least_squares
from advisor.step_time.operators.attention import DecodeAttention
from advisor.step_time.operators.files import read_operators
from advisor.step_time.operators.grids import fill_between, fill_beyond, to_grid
from profiler.runs.provenance import installed

Floats = npt.NDArray[np.float64]
Predict = Callable[[Floats, Floats], Floats]
FOLDS, SHUFFLES = 5, 10


def ours(batch: Floats, context: Floats, seconds: Floats) -> Predict:
    return DecodeAttention().fit(batch, context, seconds).predict


def law_alone(batch: Floats, context: Floats, seconds: Floats) -> Predict:
    return DecodeAttention().fit(batch, context, seconds).law


def table(batch: Floats, context: Floats, seconds: Floats) -> Predict:
    knots, grid = to_grid(np.column_stack([batch, context]), seconds)
    fill_between(grid, knots, (1, 0))
    fill_beyond(grid, knots, (1, 0), hold=False)

    def along(known: Floats, values: Floats, at: Floats) -> Floats:
        """Each row of `values` at its own place, going on with the last slope."""
        low = np.clip(np.searchsorted(known, at, side="right") - 1, 0, len(known) - 2)
        rows = np.arange(len(at))
        slope = (values[rows, low + 1] - values[rows, low]) / (known[low + 1] - known[low])
        return values[rows, low] + slope * (at - known[low])

    def predict(n: Floats, k: Floats) -> Floats:
        by_batch = np.array([along(knots[1], grid, np.full(len(grid), at)) for at in k])
        return np.maximum(along(knots[0], by_batch, n), seconds.min())

    return predict


def forest(batch: Floats, context: Floats, seconds: Floats) -> Predict:
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(n_estimators=300, random_state=0)
    model.fit(np.column_stack([batch, context, batch * context]), np.log(seconds))
    return lambda n, k: np.exp(model.predict(np.column_stack([n, k, n * k])))


def four_terms(batch: Floats, context: Floats, seconds: Floats) -> Predict:
    def terms(n: Floats, k: Floats) -> Floats:
        return np.column_stack([np.ones(len(n)), n, k, n * k])

    rows = terms(batch, context) / seconds[:, None]
    prices = non_negative_least_squares(rows, np.ones(len(seconds)))
    return lambda n, k: terms(n, k) @ prices


MODELS = {
    "ours": ours,
    "its law alone": law_alone,
    "table, linear": table,
    "random forest": forest,
    "four terms, NNLS": four_terms,
}


def folded(fit: Callable[..., Predict], rows: tuple[Floats, Floats, Floats], seed: int) -> float:
    """Return the mean error of rows that were left out, a fifth at a time."""
    batch, context, seconds = rows
    fold = np.random.default_rng(seed).permutation(len(seconds)) % FOLDS
    errors = np.zeros(len(seconds))
    for number in range(FOLDS):
        left = fold == number
        predict = fit(batch[~left], context[~left], seconds[~left])
        errors[left] = np.abs(predict(batch[left], context[left]) / seconds[left] - 1)
    return float(errors.mean())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folders", nargs="+", type=Path)
    options.add_argument("--known", type=int, default=2048)
    given = options.parse_args()
    print(f"scikit-learn {installed('scikit-learn')}, numpy {installed('numpy')}")
    for folder in given.folders:
        operators = read_operators(folder)
        rows = operators.attention
        batch, context, seconds = rows[rows[:, 0] == 0].T[2:]
        known = context <= given.known
        near = (context > given.known) & (context <= 2 * given.known)
        far = (context > given.known) & (context <= 8 * given.known)
        print(f"\n{operators.gpu}: {known.sum()} rows known, {near.sum()} and {far.sum()} beyond")
        print(f"{'mean |error|, %':<18}{'5-fold':>18}{'to 2x':>8}{'to 8x':>8}")
        own = batch[known], context[known], seconds[known]
        for name, fit in MODELS.items():
            shuffles = SHUFFLES if name != "random forest" else 3
            within = 100 * np.array([folded(fit, own, seed) for seed in range(shuffles)])
            error = 100 * np.abs(fit(*own)(batch, context) / seconds - 1)
            spread = f"{within.mean():.1f} ({within.min():.1f}-{within.max():.1f})"
            print(f"{name:<18}{spread:>18}{error[near].mean():>8.1f}{error[far].mean():>8.1f}")


if __name__ == "__main__":
    main()
