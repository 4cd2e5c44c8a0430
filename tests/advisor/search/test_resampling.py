"""What `advise` draws says of problems what `show` says of them."""

from __future__ import annotations

import numpy as np
import pytest

from advisor.search.resampling import Resampling
from traces.statistics import mean, proportion


@pytest.mark.parametrize("problems", [2, 3, 10, 40])
def test_draws_of_a_mean_are_as_wide_as_the_interval_shown(problems):
    times = np.random.default_rng(problems).lognormal(0, 0.5, problems)
    drawn = Resampling(problems, count=4000)
    found = drawn.estimate(times.mean(), drawn.mean(times), "s", runs=None, extrapolated=False)
    shown = mean(times, "s")
    assert np.log([found.low, found.high]) == pytest.approx(
        np.log([shown.low, shown.high]), abs=0.12 * np.log(shown.high / shown.low)
    )


def test_intervals_of_five_problems_hold_about_nine_times_in_ten():
    """Without Student's law 76 %."""
    rng, drawn, held = np.random.default_rng(0), Resampling(5), 0
    for _ in range(400):
        times = rng.lognormal(0, 0.5, 5)
        found = drawn.estimate(times.mean(), drawn.mean(times), "s", runs=None, extrapolated=False)
        held += found.low <= np.exp(0.125) <= found.high
    assert 0.84 <= held / 400 <= 0.94


@pytest.mark.parametrize("right", [[1, 1, 1], [0], [0.5, 0.75, 0.25, 1], [1, 0, 1, 1, 0, 1]])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_chance_of_an_accuracy_is_that_of_its_interval(right, seed):
    values, shown = np.array(right, dtype=float), proportion(right)
    drawn = Resampling(len(right), seed=seed)
    draws = drawn.accuracy(values)
    if shown.low < values.mean():
        assert (draws >= shown.low).mean() == pytest.approx(0.95, abs=0.01)
    if shown.high > values.mean():
        assert (draws <= shown.high).mean() == pytest.approx(0.95, abs=0.01)
    assert drawn.accuracy(np.stack([values, values])) == pytest.approx(draws)  # of two replays
