"""10,000 replicates of 500 problems x 64 numbers of samples: ``python benchmarks/bootstrap.py``.

Our bootstrap over problems of a whole table, and scipy.stats.bootstrap of the same table, in turns.
Printed are the medians of the processor seconds, and of their ratio.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy import stats

from profiler.runs.provenance import cpu_name, installed
from traces.statistics import bootstrap_means


def seconds(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--turns", type=int, default=7)
    turns = options.parse_args().turns
    values, replicates = np.random.default_rng(0).random((500, 64)), 10_000
    versions = [f"{name} {installed(name)}" for name in ("numpy", "scipy")]
    print(", ".join([str(cpu_name()), f"Python {platform.python_version()}", *versions]))

    def theirs() -> object:
        return stats.bootstrap(
            (values,), np.mean, n_resamples=replicates, axis=0, method="percentile", batch=50
        )

    pairs = [
        (seconds(lambda: bootstrap_means(values, replicates=replicates)), seconds(theirs))
        for _ in range(turns)
    ]
    ours, other = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"ours {ours:.2f} s, scipy.stats.bootstrap {other:.2f} s: {ratio:.1f} times as long")


if __name__ == "__main__":
    main()
