"""10,000 replicates of 500 problems x 64 numbers of samples: ``python benchmarks/bootstrap.py``.

Our bootstrap over problems of a whole table, against a plain loop over replicates and, where scipy
is installed, scipy.stats.bootstrap of the same table; the ratio is within one run.
"""

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np

from profiler.runs.provenance import cpu_name, installed
from traces.statistics import bootstrap_means


def seconds(call: Callable[[], object], turns: int) -> float:
    """Return the least time of some turns."""
    best = float("inf")
    for _ in range(turns):
        begun = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begun)
    return best


def loop(values: np.ndarray, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Draw and average one replicate at a time."""
    size = len(values)
    return np.array([values[rng.integers(0, size, size)].mean(axis=0) for _ in range(replicates)])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--turns", type=int, default=3)
    turns = options.parse_args().turns
    rng = np.random.default_rng(0)
    values, replicates = rng.random((500, 64)), 10_000
    versions = [f"{name} {installed(name)}" for name in ("numpy", "scipy") if installed(name)]
    print(", ".join([str(cpu_name()), f"Python {platform.python_version()}", *versions]))
    ours = seconds(lambda: bootstrap_means(values, replicates=replicates), turns)
    plain = seconds(lambda: loop(values, replicates, rng), turns)
    print(f"ours {ours:.2f} s")
    print(f"a loop over replicates {plain:.2f} s, {plain / ours:.1f} times as long")
    if installed("scipy"):
        from scipy import stats

        def theirs() -> object:
            return stats.bootstrap(
                (values,), np.mean, n_resamples=replicates, axis=0, method="percentile", batch=50
            )

        other = seconds(theirs, 1)
        print(f"scipy.stats.bootstrap {other:.2f} s, {other / ours:.1f} times as long")


if __name__ == "__main__":
    main()
