"""How often 90 % intervals of few problems hold the truth, in `show` and in `advise`.

Problems are drawn from a known law: times from a log-normal one (sigma 0.5), answers right with a
chance of 0.8, and shares of 16 samples that a problem of beta-distributed difficulty has right. The
step times of `advise` are taken as known.

    python -m benchmarks.few_problems
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from advisor.search.resampling import Resampling
from traces.schema.estimate import Estimate
from traces.statistics import Floats, mean, proportion

SETS = 2_000
SIZES = (2, 3, 5, 10, 30, 96)


def held(draw: Callable[[], Floats], true: float, *ways: Callable[[Floats], Estimate]) -> str:
    """Return the share of sets whose interval holds the truth, for each way of making one."""
    found = np.zeros(len(ways))
    for _ in range(SETS):
        values = draw()
        for at, way in enumerate(ways):
            known = way(values)
            if known.low is not None and known.high is not None:
                found[at] += known.low - 1e-12 <= true <= known.high + 1e-12
    return "  ".join(f"{share:4.0%}" for share in found / SETS)


def main() -> None:
    print("problems  time: show advise  answers: show advise  shares: show advise")
    for size in SIZES:
        rng = np.random.default_rng(size)
        drawn = Resampling(size)

        def advised(values: Floats, drawn: Resampling = drawn) -> Estimate:
            return drawn.estimate(
                values.mean(), drawn.mean(values), "s", runs=None, extrapolated=False
            )

        def accuracy(values: Floats, drawn: Resampling = drawn) -> Estimate:
            draws = drawn.accuracy(values)
            return drawn.estimate(values.mean(), draws, "1", runs=None, extrapolated=False)

        times = held(
            lambda: rng.lognormal(0, 0.5, size),  # noqa: B023
            float(np.exp(0.125)),
            lambda v: mean(v, "s"),
            advised,
        )
        right = held(
            lambda: (rng.random(size) < 0.8).astype(float),  # noqa: B023
            0.8,
            proportion,
            accuracy,
        )
        shares = held(
            lambda: rng.binomial(16, rng.beta(1.2, 0.5, size)) / 16,  # noqa: B023
            1.2 / 1.7,
            proportion,
            accuracy,
        )
        print(f"{size:8}  {times}   {right}   {shares}", flush=True)


if __name__ == "__main__":
    main()
