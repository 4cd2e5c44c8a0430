"""Whether one more run, of the same problems or of others, falls into its law as often as said."""

from collections.abc import Callable

import numpy as np
import pytest

from traces.statistics import Floats, RunLaw, fresh, of_single_samples, others, share

RUNS = 1500
LAWS = {"even": (1.2, 0.8), "two humps": (0.4, 0.3), "hard": (0.8, 2.5), "alike": (20.0, 10.0)}


def recorded(
    rng: np.random.Generator, law: tuple[float, float], problems: int, samples: int
) -> tuple[Floats, Floats]:
    """Return each problem's chance to be right, and the share of its samples that are."""
    chances = rng.beta(*law, problems)
    return chances, rng.binomial(samples, chances) / samples


def run_of(rng: np.random.Generator, chances: Floats) -> float:
    return float((rng.random(chances.size) < chances).mean())


Told = Callable[[np.random.Generator, tuple[float, float], int, int], tuple[RunLaw, float]]


def of_others(
    rng: np.random.Generator, law: tuple[float, float], problems: int, samples: int
) -> tuple[RunLaw, float]:
    _, shares = recorded(rng, law, problems, samples)
    other = run_of(rng, rng.beta(*law, problems))
    return others(float(shares.mean()), float(shares.var()), problems), other


def of_the_same(
    rng: np.random.Generator, law: tuple[float, float], problems: int, samples: int
) -> tuple[RunLaw, float]:
    chances, shares = recorded(rng, law, problems, samples)
    told = fresh(float(shares.mean()), of_single_samples(shares, samples), problems)
    return told, run_of(rng, chances)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize(("problems", "samples"), [(60, 4), (60, 16), (200, 2)])
@pytest.mark.parametrize("made", [of_others, of_the_same])
def test_runs_fall_into_the_interval(
    made: Told, problems: int, samples: int, law: tuple[float, float]
) -> None:
    rng = np.random.default_rng([problems, samples])
    held = 0
    for _ in range(RUNS // 3):
        told, run = made(rng, law, problems, samples)
        held += bool(told.interval().holds(run))
    assert 0.88 <= held / (RUNS // 3) <= 0.97  # ends are numbers of problems, which round outwards


@pytest.mark.slow
@pytest.mark.parametrize("made", [of_others, of_the_same])
@pytest.mark.parametrize("problems", [10, 60])
def test_chances_come_true(made: Told, problems: int) -> None:
    rng = np.random.default_rng(problems)
    said, met = [], []
    for number in range(RUNS):
        told, run = made(rng, list(LAWS.values())[number % len(LAWS)], problems, 8)
        limit = float(np.clip(told.value + rng.normal(0, 0.1), 0, 1))
        said.append(told.chance(limit))
        met.append(run >= limit)
    chances, came = np.array(said), np.array(met)
    for low, high in ((0.1, 0.4), (0.4, 0.6), (0.6, 0.9), (0.9, 1.01)):
        some = (chances >= low) & (chances < high)
        assert came[some].mean() == pytest.approx(chances[some].mean(), abs=0.06)


def test_one_run_of_others_varies_more_than_the_mean() -> None:
    mean = share(0.8, 0.05, 60)
    run = others(0.8, 0.05, 60).interval()
    assert mean.low is not None and mean.high is not None
    assert run.low is not None and run.high is not None
    assert run.low < mean.low < mean.high < run.high
    many = others(0.8, 0.05, 60, of=100_000).interval()
    assert many.low == pytest.approx(mean.low, abs=2e-3)
    assert many.high == pytest.approx(mean.high, abs=2e-3)


def test_answers_that_never_vary_say_nothing_of_other_problems() -> None:
    same, other = fresh(0.8, 0.0, 60).interval(), others(0.8, 0.16, 60).interval()
    assert (same.low, same.high) == (pytest.approx(0.8, abs=0.02), pytest.approx(0.8, abs=0.02))
    assert other.low is not None and other.low < 0.7


def test_chances_and_intervals_agree() -> None:
    law = others(0.8, 0.1, 60)
    found = law.interval()
    assert found.low is not None and found.high is not None
    assert law.chance(found.low) >= 0.95 > law.chance(found.low + 1 / 60)
    assert law.chance(found.high) >= 0.05 > law.chance(found.high + 1 / 60)
    assert law.chance(0) == 1.0 and law.chance(1.01) == 0.0


def test_all_right_is_never_certain() -> None:
    for law in (others(1.0, 0.0, 20), fresh(1.0, 0.0, 20)):
        assert 0.9 < law.chance(0.9) < 1.0
        assert law.interval().high == 1.0


def test_one_problem_has_a_law() -> None:
    found = others(1.0, 0.0, 1).interval()
    assert (found.low, found.high) == (0.0, 1.0)
