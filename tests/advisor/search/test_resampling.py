"""What `advise` draws says of problems what `show` says of them."""

from __future__ import annotations

import numpy as np
import pytest

from advisor.search.resampling import Resampling
from traces.statistics import mean, proportion, quantile


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


@pytest.mark.parametrize("problems", [1, 6, 20, 45, 96, 300])
@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_how_sure_a_percentile_is_beyond_the_slowest_problem(problems, q):
    """All lie below the true one with the chance q^n. Half of the slower take twice as long."""
    times = np.random.default_rng(problems).lognormal(0, 0.5, problems)
    for values in (times, np.stack([times, times])):
        draws = Resampling(problems, seed=1).quantile(values, q)
        for factor in (1, 2, 5):
            below = 1 - max(1 - factor * (1 - q), 0) ** problems
            assert (draws <= factor * times.max()).mean() == pytest.approx(below, abs=0.01)
    if problems > 1:
        known, shown = Resampling(problems, count=2000), quantile(times, q, "s")
        for at, lower in (("high", False), ("low", True)):
            draws = known.quantile(times, q, lower=lower)
            found = known.estimate(shown.value, draws, "s", runs=None, extrapolated=False)
            assert getattr(shown, at) in (None, getattr(found, at))  # what is shown was seen


def test_the_chance_of_a_percentile_is_true_of_times_that_jump():
    """As 5.1 % take eight times as long the true p95 does. In between 90 % sure is rarely said."""
    rng, drawn, sure = np.random.default_rng(0), Resampling(50), 0
    for _ in range(400):
        times = np.where(rng.random(50) < 0.051, 8.0, 1.0)
        sure += (drawn.quantile(times, 0.95) <= 4).mean() >= 0.9
    assert 0.03 < sure / 400 <= 0.1


def test_of_one_problem_others_are_taken_to_spread_as_times_do():
    means = Resampling(1, count=2000).mean(np.array([2.0]))
    assert np.median(means) == pytest.approx(2 * np.exp(0.5), rel=0.01)
    assert np.std(np.log(means)) == pytest.approx(1, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("problems", [5, 20, 60])
def test_a_run_of_as_many_others_falls_in_its_interval_nine_times_in_ten(problems):
    """In the interval of all such problems it falls 75 times in a hundred."""
    rng, drawn, held = np.random.default_rng(3), Resampling(problems), np.zeros(2)
    for _ in range(400):
        times, others = rng.lognormal(0, 0.5, (2, problems))
        for place, of in enumerate(("all", "others")):
            ends = drawn.interval(times.mean(), drawn.mean(times, of=of), "s")
            held[place] += ends.low <= others.mean() <= ends.high
    assert 0.86 <= held[1] / 400 <= 0.95
    assert held[0] / 400 < 0.83


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "q"), [(20, 0.5), (60, 0.95)])
def test_a_percentile_of_as_many_others_falls_below_its_limit_as_often_as_said(problems, q):
    rng, drawn, met = np.random.default_rng(4), Resampling(problems, count=1000), 0
    for _ in range(300):
        times, others = rng.lognormal(0, 0.5, (2, problems))
        limit = np.quantile(drawn.quantile(times, q, of="others"), 0.9)
        met += np.quantile(others, q) <= limit
    assert 0.87 <= met / 300 <= 0.97
