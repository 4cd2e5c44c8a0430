"""An estimate says what its interval is of, and a prediction has both of its intervals."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from traces.schema.estimate import Estimate, Interval, with_intervals
from traces.schema.formats import intervals_of

PREDICTED = Estimate.predicted(
    10.0,
    "s",
    fresh=Interval(low=9.0, high=11.0),
    others=Interval(low=7.0, high=None),
    of="fresh",
    runs=3,
)
RECORDED = Estimate(value=10.0, low=8.0, high=12.0, unit="s", of="all")


def test_a_prediction_has_the_ends_of_the_interval_that_is_asked_for():
    others = PREDICTED.which("others")
    assert (PREDICTED.low, PREDICTED.high, PREDICTED.of) == (9.0, 11.0, "fresh")
    assert (others.low, others.high, others.of) == (7.0, None, "others")
    assert others.which("fresh") == PREDICTED
    assert RECORDED.which("others") == RECORDED  # which has no other one


def test_both_intervals_go_into_another_unit_and_stay_above_a_floor():
    ms = PREDICTED.scaled(1000, "ms")
    assert (ms.value, ms.low, ms.high) == (10_000, 9_000, 11_000)
    assert ms.fresh == Interval(low=9_000, high=11_000)
    assert ms.others == Interval(low=7_000, high=None)
    paid = PREDICTED.at_least(9.5)
    assert (paid.low, paid.fresh.low, paid.others.low) == (9.5, 9.5, 9.5)


def test_json_says_what_the_interval_is_of_and_goes_back():
    plain = PREDICTED.to_json()
    assert plain["of"] == "fresh" and plain["others"] == {"low": 7.0, "high": None}
    assert Estimate.from_json(plain) == PREDICTED
    assert RECORDED.to_json().keys() >= {"low", "high", "of"}
    assert not {"fresh", "others"} & RECORDED.to_json().keys()
    assert "of" not in Estimate(value=1.0, unit="s").to_json()


@dataclass(frozen=True)
class Answer:
    picks: tuple[Estimate, ...]
    by_name: dict[str, Estimate]
    count: int


def test_all_predictions_of_an_answer_change_their_ends():
    answer = Answer(picks=(PREDICTED, RECORDED), by_name={"a": PREDICTED}, count=2)
    changed = with_intervals(answer, "others")
    assert changed.picks == (PREDICTED.which("others"), RECORDED)
    assert changed.by_name["a"].of == "others" and changed.count == 2


@pytest.mark.parametrize(
    ("shown", "head"),
    [
        ([PREDICTED, PREDICTED, RECORDED], "90 % intervals of one more run of the same problems"),
        ([RECORDED, None], "90 % intervals of all problems like these"),
        ([Estimate(value=1.0, unit="s"), None], ""),
    ],
)
def test_the_head_of_a_table_says_what_its_intervals_are_of(shown, head):
    assert intervals_of(shown) == head


def test_one_more_run_of_others_may_be_what_one_of_the_same_problems_may_be():
    """A p95 whose slow problems tie has others at the tie, and runs of the same beyond it."""
    ends = {"fresh": Interval(low=8.0, high=12.0), "others": Interval(low=7.0, high=10.0)}
    found = Estimate.predicted(10.0, "s", **ends, of="others")
    assert found.others == Interval(low=7.0, high=12.0) and found.high == 12.0
    open_end = Estimate.predicted(10.0, "s", **ends | {"others": Interval(low=9.0)}, of="fresh")
    assert open_end.others == Interval(low=8.0, high=None)


def test_a_column_of_other_intervals_is_named_in_the_head():
    head = intervals_of([PREDICTED], beside={"measured": [None, RECORDED], "none": []})
    assert head == (
        "90 % intervals of one more run of the same problems (measured: of all problems like these)"
    )
    assert intervals_of([PREDICTED], beside={"again": [PREDICTED]}) == intervals_of([PREDICTED])
    assert intervals_of([], beside={"measured": [RECORDED]}) == intervals_of([RECORDED])
