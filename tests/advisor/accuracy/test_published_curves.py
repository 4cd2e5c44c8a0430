"""Votes of R1-Distill-Qwen-7B as published by others: only averages over problems are known."""

import json

import numpy as np
import pytest

from advisor.accuracy.models.vote_curve import VoteCurve
from advisor.accuracy.models.vote_curve import _votes as votes_by_law
from traces.errors import OutcomesError

pytestmark = pytest.mark.slow

SETS = {"MATH500": 500, "AIME24": 30}


@pytest.fixture(scope="module", params=sorted(SETS))
def published(request, shared):
    path = shared / "data" / "accuracy" / "optscale" / f"{request.param}_majority_vote.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    curve = [row["accuracy"] for row in json.loads(path.read_text())]
    return SETS[request.param], dict(enumerate(curve, start=1))


def fit(problems, curve, upto, *farthest):
    seen = {n: value for n, value in curve.items() if n in (1, 2, 4, 8, 16) and n <= upto}
    return VoteCurve(problems=problems).fit(seen, farthest)


def test_up_to_8_samples_foretell_64(published):
    problems, curve = published
    found = fit(problems, curve, 8, 64).predict(64)
    assert found.extrapolated
    assert found.low <= curve[64] <= found.high
    # And it says something: no wider than four standard errors of an average of so many problems.
    assert found.high - found.low < 4 * (0.25 / problems) ** 0.5


def test_the_fall_on_aime_is_noise(published):
    problems, curve = published
    if problems != SETS["AIME24"]:
        pytest.skip("the fall from .667 to .600 is on AIME24")
    assert round(curve[16] - curve[64], 3) == 0.067
    found = fit(problems, curve, 16, 64).predict(64)
    assert found.low <= curve[64] < curve[16] <= found.high


@pytest.mark.parametrize("average", [0.0, 1.0])
def test_all_of_very_many_problems_alike_are_refused(average):
    with pytest.raises(OutcomesError, match="over 1,000,000 problems: none of the laws"):
        VoteCurve(problems=1_000_000).fit({1: average}, [4])


def test_a_real_rise_is_told():
    """Half the problems have p = .6 against scattered mistakes: votes solve nearly all of them."""
    curve = {1: 0.60, 2: 0.60, 4: 0.78, 8: 0.92}
    found = VoteCurve(problems=2000).fit(curve, [64]).predict(64)
    assert found.low - curve[1] > 0.25


def votes_of(hit, popular, counts, rng):
    """Accuracy by count of votes over problems: right by chance, else a popular mistake or one
    of twenty others."""
    rest = (1 - hit)[:, None] * np.concatenate(
        [popular[:, None], (1 - popular)[:, None] / 20 * np.ones((1, 20))], axis=1
    )
    chances = np.concatenate([hit[:, None], rest], axis=1)
    tally, before, found = np.zeros(chances.shape, dtype=int), 0, {}
    for count in counts:
        tally += rng.multinomial(count - before, chances)
        before = count
        leads = tally == tally.max(axis=1, keepdims=True)
        found[count] = float((leads[:, 0] / leads.sum(axis=1)).mean())
    return found


def test_a_curve_that_begins_later_does_not_take_its_first_vote_for_one_sample():
    """Votes of 8 are right in .80 where single samples are in .65."""
    rng = np.random.default_rng(0)
    hit, popular = rng.beta(2.0, 1.1, 1319), rng.beta(2, 4, 1319)
    counts = (1, 2, 4, 8, 16, 32, 64)
    truth = votes_of(hit, popular, counts, rng)
    assert truth[8] > truth[1] + 0.06
    model = VoteCurve(problems=1319).fit({n: truth[n] for n in (8, 64)}, counts)
    for count in counts:
        found = model.predict(count)
        assert found.low - 0.005 <= truth[count] <= found.high + 0.005, count
    assert model.predict(1).high - model.predict(1).low < 0.3  # and it says something


def test_rare_mistakes_do_not_vote_together():
    """Right in .3, and every mistake another: votes of many find the answer."""
    mistakes = np.tile([0.0, 1.0], (200, 1))  # the last is the mass of rare ones
    found = votes_by_law(np.full(200, 0.3), mistakes, [1, 2, 64], np.random.default_rng(0))
    assert found[:, 0].mean() == pytest.approx(0.3, abs=0.1)
    assert found[:, 1].mean() == pytest.approx(0.3, abs=0.1)  # two that differ share
    assert found[:, 2].min() == 1.0
