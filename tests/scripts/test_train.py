"""The training schedule of the bundled reasoners, without training them."""

import pytest

from profiler.demo.task import LEVELS, TERMS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def train():
    """The module, whose torch takes seconds to import."""
    return pytest.importorskip("scripts.reasoners.train", reason="needs torch")


def run(train, right: float) -> list[tuple[str, int, float]]:
    """Return (stage, terms, rate) of every step of a run in which so many results are right."""
    progress, seen = train.Progress(train.PLANS["s"]), []
    while progress.stage != "done":
        seen.append((progress.stage, progress.terms, progress.rate(len(seen))))
        progress.right = dict.fromkeys(progress.right, right)
        progress.advance(len(seen))
    return seen


def test_terms_are_added_only_while_results_are_right(train) -> None:
    seen = run(train, 0.9)
    stages = [stage for stage, _, _ in seen]
    assert stages.count("walk") == train.WALK_STEPS
    assert stages.count("settle") == train.PLANS["s"].settle_steps
    assert {terms for stage, terms, _ in seen if stage == "walk"} == {train.FIRST_TERMS}
    assert {terms for stage, terms, _ in seen if stage == "settle"} == {len(TERMS)}


def test_a_run_that_does_not_learn_is_given_up(train) -> None:
    with pytest.raises(SystemExit, match=str(train.LONGEST_GROWTH_STEPS)):
        run(train, 0.5)


def test_rates_warm_up_and_fall(train) -> None:
    rates = [rate for _, _, rate in run(train, 0.9)]
    assert rates[0] < 0.05 and max(rates) == 1.0 and 0 < rates[-1] < 0.03


def test_unknown_products_preamble_and_labels_belong_to_their_stages(train) -> None:
    walk = train.Progress(train.PLANS["s"]).mix(0)
    assert not walk.results and not walk.unknown and walk.max_level == LEVELS[0]
    settle = train.Progress(train.PLANS["s"], stage="settle", terms=len(TERMS)).mix(2000)
    assert settle.results and settle.unknown and settle.preamble_share > 0
    assert settle.max_level == LEVELS[-1]


def test_a_larger_size_knows_all_that_a_smaller_one_does(train) -> None:
    small, middle, large = (train.Progress(train.PLANS[size]).unknown() for size in "sml")
    assert small > middle > large
