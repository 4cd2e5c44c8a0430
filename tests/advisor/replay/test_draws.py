"""Draws of the recorded samples, and what tokens of another run lie off by, without a replay."""

import numpy as np
import pytest

from advisor.replay.draws import exact_half_width, of_other_draws, places_drawn

REPEATS, PROBLEMS, SAMPLES = 400, 40, 8


@pytest.mark.parametrize(("n", "draws"), [(1, 8), (2, 8), (4, 4), (6, 4), (16, 4)])
def test_every_sample_is_drawn_as_often(n, draws):
    places = places_drawn([16] * 5, n, 0, ordered=False)
    assert len(places) == draws
    for problem in range(5):
        own = [draw[problem] for draw in places]
        assert all(len(set(each.tolist())) == n for each in own)
        counts = np.bincount(np.concatenate(own), minlength=16)
        assert counts.max() - counts.min() <= 1 + (draws * n > 16)


def test_a_rule_sees_samples_in_the_order_of_the_draw():
    (in_order, *_), (drawn, *_) = (places_drawn([9], 9, 0, ordered=each) for each in (False, True))
    assert in_order[0].tolist() == sorted(drawn[0].tolist()) != drawn[0].tolist()


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_tokens_of_another_run_lie_in_their_interval(n):
    """Nine in ten runs, of the same problems and of as many others, whose lengths vary as much."""
    rng, held = np.random.default_rng(n), {"fresh": 0, "others": 0}

    def tokens(means, count):
        return means[:, None] * rng.lognormal(0, 0.5, (len(means), count))

    for _ in range(REPEATS):
        means, other = rng.lognormal(5, 0.3, (2, PROBLEMS))
        seen = tokens(means, SAMPLES)
        value = n * seen.mean()
        half = exact_half_width(value, list(seen), n)
        expected = n * seen.mean(axis=1)
        between = 1.6449 * np.sqrt(2 * expected.var(ddof=1) / PROBLEMS) / value
        others = np.hypot(between, of_other_draws(half, n / SAMPLES))
        for name, problems, far in (("fresh", means, half), ("others", other, others)):
            run = tokens(problems, n).sum(axis=1).mean()
            held[name] += abs(np.log(run / value)) <= far
    assert all(0.86 < count / REPEATS < 0.94 for count in held.values()), held


def test_lengths_that_were_equal_twice_may_differ_the_third_time():
    """Two samples each: all draws agreed, and tokens had an interval without width."""
    widths = []
    for repeats in (2, 8, 32):
        own = [np.full(repeats, 10.0 + 10 * place) for place in range(20)]
        widths.append(exact_half_width(105.0, own, 1))
    assert widths[0] > 1.5 * widths[1] > 2 * widths[2] > 0
    rng, off = np.random.default_rng(0), []
    lengths = np.arange(10.0, 210.0, 10.0)
    for _ in range(2000):
        other = rng.random(20) < 0.5 / 21
        off.append(np.where(other, rng.choice(lengths, 20), lengths).mean() / 105 - 1)
    assert widths[0] == pytest.approx(1.6449 * np.sqrt(1.5) * np.std(off), rel=0.15)


def test_lengths_of_one_sample_each_are_those_of_all():
    one = [np.array([length]) for length in (10.0, 20.0, 30.0)]
    assert exact_half_width(20.0, one, 1) > exact_half_width(20.0, [np.full(2, 20.0)] * 3, 1) == 0
    assert exact_half_width(20.0, [np.array([20.0])], 1) == 0.0
