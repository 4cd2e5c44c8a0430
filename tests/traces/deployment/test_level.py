"""One level for all checks of a gate, and the power that it prints."""

import numpy as np
import pytest

from traces.deployment.level import GATE_LEVEL, Reach, by_noise, together
from traces.schema.estimate import Estimate
from traces.statistics import Z95, mean
from traces.summary.comparison import Limit, hold


def test_the_clearest_of_several_checks_must_be_as_clear_as_one_in_so_many():
    assert together([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert together([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert together([]) == []


def test_an_interval_that_ends_at_a_bound_is_at_the_level():
    measured = Estimate(value=2.0, low=1.0, high=9.0, unit="s")
    assert by_noise(measured, 1.0, above=True) == pytest.approx(GATE_LEVEL, abs=1e-4)
    assert by_noise(measured, 9.0, above=False) == pytest.approx(GATE_LEVEL, abs=1e-4)
    assert by_noise(measured, 2.0 - 5**0.5, above=True, beside=2.0) == pytest.approx(
        GATE_LEVEL, abs=1e-4
    )
    assert by_noise(Estimate(value=2.0, unit="s"), 1.0, above=True) == 1.0
    assert by_noise(Estimate(value=2.0, low=2.0, high=2.0, unit="s"), 1.9, above=True) == 0.0


@pytest.mark.parametrize("checks", [1, 4, 12])
def test_equal_runs_fail_as_often_whatever_the_number_of_checks(checks):
    rng = np.random.default_rng(checks)
    failed = 0
    for _ in range(2000):
        noise = rng.normal(size=checks)
        measured = [Estimate(value=z, low=z - Z95, high=z + Z95, unit="s") for z in noise]
        chances = together([by_noise(each, 0.0, above=True) for each in measured])
        failed += min(chances) < GATE_LEVEL
    assert 0.038 < failed / 2000 < 0.062


@pytest.mark.parametrize(
    ("value", "half", "verdict"),
    [
        (-0.05, 0.04, "broken"),  # shown, though it may be less than two points
        (-0.05, 0.06, "unsure"),  # as far, and not shown
        (-0.01, 0.005, "ok"),  # shown, and too small to matter
        (-0.015, 0.01, "unsure"),
        (0.05, 0.01, "ok"),
    ],
)
def test_a_regression_is_a_fall_that_is_shown_and_matters(value, half, verdict):
    limit = Limit(text="accuracy<-.02", tag="accuracy", above=False, amount=-0.02, relative=False,
                  regression=True)  # fmt: skip
    measured = Estimate(value=value, low=value - half, high=value + half, unit="1")
    judged = hold(limit, measured, problems=100)
    assert (judged.broken, judged.sure) == (verdict == "broken", verdict != "unsure")


def test_the_power_is_how_often_a_fall_is_found():
    """Answers that are right or wrong, held by what their mean says against what was promised."""
    rng, promised, problems, checks = np.random.default_rng(0), 0.8, 200, 3
    failed = 0
    for _ in range(2000):
        right = (rng.random(problems) < promised - 0.1).astype(float)
        measured = mean(right, "s")
        failed += by_noise(measured, promised, above=False) < GATE_LEVEL / checks
    half = Z95 * (0.7 * 0.3 / problems) ** 0.5
    reach = Reach(check="accuracy", kind="promise", metric="accuracy", unit="1", half=half,
                  worse_by=0.1, problems=problems)  # fmt: skip
    power = reach.power(checks)
    assert power.share == pytest.approx(failed / 2000, abs=0.04)
    assert power.more_problems == 500 and power.share_of_more > 0.97


def test_what_problems_do_not_narrow_bounds_the_power():
    reach = Reach(check="p95", kind="change", metric="latency_s.p95", unit="share", half=0.2,
                  worse_by=0.2, problems=50, of_problems=0.1)  # fmt: skip
    power = reach.power(4)
    assert power.more_problems is None and power.share < power.share_of_more < 0.5
