"""Decode attention beyond what was measured: ``python benchmarks/decode_attention.py FOLDER...``.

Each folder holds operator times of one GPU. Models learn from contexts of at most `--known` tokens
(2,048), and are asked for up to twice and up to eight times as far. Ours against linear
interpolation of the table and a random forest of the log (of batch, context and their product), all
in one run, by the mean absolute relative error.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from advisor.step_time.operators.attention import DecodeAttention
from advisor.step_time.operators.files import read_operators
from advisor.step_time.operators.grids import fill_between, fill_beyond, to_grid
from profiler.runs.provenance import installed

Floats = npt.NDArray[np.float64]
Predict = Callable[[Floats, Floats], Floats]


def ours(batch: Floats, context: Floats, seconds: Floats) -> Predict:
    return DecodeAttention().fit(batch, context, seconds).predict


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


MODELS = {
    "ours": ours,
    "table, linear": table,
    "random forest": forest,
}


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
        print(f"{'mean |error|, %':<18}{'to 2x':>8}{'to 8x':>8}")
        own = batch[known], context[known], seconds[known]
        for name, fit in MODELS.items():
            error = 100 * np.abs(fit(*own)(batch, context) / seconds - 1)
            print(f"{name:<18}{error[near].mean():>8.1f}{error[far].mean():>8.1f}")


if __name__ == "__main__":
    main()
