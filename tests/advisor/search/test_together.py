"""Whether the luckiest of many candidates is believed less than it looks."""

import numpy as np
import pytest

from advisor.accuracy.models.together import luck_by_name, own_luck
from advisor.search.resampling import Resampling
from traces.statistics import others


def test_the_luckiest_of_equal_candidates_is_drawn_to_the_others() -> None:
    rng, looked, thought = np.random.default_rng(0), [], []
    for _ in range(200):
        shares = (rng.random((24, 20)) < 0.7).astype(float)
        luck = own_luck(shares, rng.normal(0, 0.5, 24))
        best = int(shares.mean(axis=1).argmax())
        looked.append(shares[best].mean())
        thought.append(shares[best].mean() - luck[best])
        assert (luck >= 0).all()
    assert np.mean(looked) > 0.85
    assert np.mean(thought) < np.mean(looked) - 0.05


def test_candidates_that_differ_stay_as_they_are() -> None:
    rng = np.random.default_rng(1)
    true = np.linspace(0.1, 0.9, 12)
    shares = (rng.random((12, 2000)) < true[:, None]).astype(float)
    assert own_luck(shares, np.log(np.arange(1, 13))).max() < 0.01


def test_votes_over_the_same_samples_have_their_luck_in_common() -> None:
    rng = np.random.default_rng(2)
    hard, apart = rng.random(30), rng.random((8, 30))
    chances = np.linspace(0.5, 0.7, 8)[:, None]
    costs = np.log(np.arange(1, 9))
    alike = own_luck((hard < chances).astype(float), costs)
    assert alike.max() < 0.3 * own_luck((apart < chances).astype(float), costs).max()


def test_what_is_the_same_counts_once() -> None:
    rng = np.random.default_rng(3)
    own = {
        name: (rng.random(30) < 0.3 + 0.1 * place).astype(float)
        for place, name in enumerate("abcde")
    }
    costs = dict.fromkeys(own, 1.0) | {"e": 3.0}
    alone = luck_by_name(own, costs)
    twice = luck_by_name(own | {"f": own["a"], "g": own["a"]}, costs | {"f": 2.0, "g": 9.0})
    assert {name: twice[name] for name in own} == alone
    assert twice["f"] == twice["g"] == twice["a"]


@pytest.mark.parametrize("shape", [(0, 10), (3, 10), (5, 1)])
def test_too_few_tell_nothing(shape: tuple[int, int]) -> None:
    shares = dict(enumerate(np.ones(shape)))
    found = luck_by_name(shares, dict.fromkeys(shares, 1.0))
    assert set(found.values()) <= {0.0}


@pytest.mark.parametrize("right", [[1, 1, 1], [0.5, 0.75, 0.25, 1], [1, 0] * 20 + [1] * 20])
def test_draws_of_a_run_have_its_law(right: list[float]) -> None:
    values = np.array(right, dtype=float)
    drawn = Resampling(len(values), count=4000)
    law = others(values.mean(), values.var(), len(values))
    draws = drawn.run_accuracy(values)
    for limit in np.arange(len(values) + 1) / len(values):
        for half in (drawn.choosing, ~drawn.choosing):
            assert (draws[half] >= limit - 1e-9).mean() == pytest.approx(
                law.chance(limit), abs=2e-3
            )
    doubted = drawn.run_accuracy(values, 0.1)
    assert doubted.mean() == pytest.approx(draws.mean() - 0.1, abs=0.03)


def test_a_run_goes_with_its_problems() -> None:
    """Where the drawn problems are easy, a run of them is more often right."""
    values = np.repeat([0.0, 1.0], (20, 40))
    drawn = Resampling(60)
    assert np.corrcoef(drawn.weights @ values, drawn.run_accuracy(values))[0, 1] > 0.6
