"""Collectives at sizes that were left out: ``python benchmarks/communication.py TABLE``.

TABLE is a CSV of collectives in Vidur's form (times in ms by number of workers and bytes). Of each
group a fifth of the sizes at a time is left out; the mean absolute relative error of ours, with
prices per range of sizes, beside one start and one price per byte for all.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np

from advisor.step_time.operators.communication import (
    CollectiveKind,
    Communication,
    read_collectives,
)

EDGES = (0.0, 2.0**20, 2.0**22, 2.0**24, np.inf)


def left_out(model: Communication, sizes: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return the relative error of each size when a fifth with it was left out."""
    fold = np.random.default_rng(1).permutation(len(sizes)) % 5
    errors = np.zeros(len(sizes))
    for number in range(5):
        left = fold == number
        kind = CollectiveKind("any", 2, False)
        rows = np.column_stack([sizes[~left], seconds[~left]])
        law = model.fit({kind: rows}).laws_[kind]
        errors[left] = law.seconds(sizes[left]) / seconds[left] - 1
    return errors


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("table", type=Path)
    names = ["all", "< 1 MiB", "< 4 MiB", "< 16 MiB", "larger"]
    print(f"{'mean |error|, %':<38}" + "".join(f"{name:>10}" for name in names))
    for kind, rows in sorted(read_collectives(options.parse_args().table).items()):
        sizes, place = np.unique(rows[:, 0], return_inverse=True)
        seconds = np.array([np.median(rows[place == n, 1]) for n in range(len(sizes))])
        for name, model in (
            ("by ranges", Communication()),
            ("one price", Communication(breaks=False)),
        ):
            errors = 100 * np.abs(left_out(model, sizes, seconds))
            within = [errors[(sizes >= low) & (sizes < high)] for low, high in pairwise(EDGES)]
            cells = [errors.mean(), *(part.mean() for part in within)]
            print(f"{kind!s:<27}{name:<11}" + "".join(f"{cell:>10.1f}" for cell in cells))


if __name__ == "__main__":
    main()
