"""The comparison of `make bench`: what fell beyond its noise is named, the rest is not."""

import pytest

from benchmarks.quick import Ratio, fell, measured


@pytest.mark.parametrize(
    ("value", "noise", "kept_noise", "named"),
    [
        (0.80, 0.02, 0.02, True),
        (0.94, 0.0, 0.0, False),  # as much as the same work varies
        (0.92, 0.0, 0.0, True),
        (0.80, 0.10, 0.05, False),
        (0.80, 0.05, 0.10, False),
        (0.30, 0.10, 0.10, True),
        (1.50, 0.0, 0.0, False),
    ],
)
def test_a_fall_beyond_the_noise_is_named(value, noise, kept_noise, named):
    kept = Ratio(value=1.0, noise=kept_noise)
    assert fell(Ratio(value=value, noise=noise), kept) is named


def test_a_ratio_is_the_peers_time_over_ours():
    def spin(times):
        return lambda: sum(range(times))

    found = measured(spin(200_000), spin(2_000_000), pairs=5)
    assert 3 < found.value < 30
