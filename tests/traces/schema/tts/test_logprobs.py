import numpy as np
import pytest

from traces.schema.tts.logprobs import means_among


def drawn(count=240, seed=0):
    """Lengths, and means that are a little lower where the sample is longer."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 900, count).astype(float)
    return tokens, -(0.2 + 0.5 * rng.random(count)) * (tokens / 400) ** 0.2


def test_means_stay_as_they_are():
    tokens, means = drawn()
    found = means_among(means, tokens)
    assert found.why is None
    np.testing.assert_array_equal(found.values, means)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda means, tokens: means * tokens, "below -20"),
        (lambda means, tokens: np.full(len(means), -5000.0), "below -20"),
        (lambda means, tokens: -means, "above 0"),
        (lambda means, tokens: 800 + means, "above 0"),
        (lambda means, tokens: np.where(tokens > 450, 0.5, means), "above 0"),
        (lambda means, tokens: np.where(tokens > 450, 0.5, -90), "above 0 or below -20"),
        (lambda means, tokens: means * tokens / 40, "grows with output_tokens"),
    ],
)
def test_what_no_mean_can_be_leaves_nothing(change, why):
    tokens, means = drawn()
    found = means_among(change(means, tokens), tokens)
    assert why in found.why
    assert "divided by output_tokens" in found.why
    assert np.isnan(found.values).all()


def test_a_single_value_that_is_no_mean_is_left_out_alone():
    tokens, means = drawn()
    means[7] = 0.7
    found = means_among(means, tokens)
    assert found.why.startswith("1 of 240 values of logprob_mean are above 0")
    assert found.first == 7
    assert np.flatnonzero(np.isnan(found.values)).tolist() == [7]


def test_rounding_above_zero_is_zero():
    found = means_among(np.array([1e-7, -0.1, np.nan]), np.array([5.0, 6.0, 7.0]))
    assert found.why is None
    np.testing.assert_array_equal(found.values, [0.0, -0.1, np.nan])


def test_large_means_of_equal_lengths_or_unknown_ones_stay():
    _, means = drawn()
    low = means - 2.0  # of a model that wavers
    for tokens in (np.full(240, 12.0), np.full(240, np.nan)):
        assert means_among(low, tokens).why is None
    lengths, means = drawn()
    assert means_among(means - 2.0, lengths).why is None
