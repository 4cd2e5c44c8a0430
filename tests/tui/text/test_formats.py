from __future__ import annotations

import math

import pytest

from traces.schema.estimate import Estimate
from tui.text.formats import (
    align,
    clock,
    clock_decimals,
    compact,
    digits,
    fitting_ticks,
    interval,
    number,
    percent,
    sparkline,
    tick_labels,
    ticks,
    whole,
    with_room,
    wrap,
)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (4.2e-6, "s/token", "4.20 us"),
        (123.4, "s", "123 s"),
        (790e6, "FLOP", "790 MFLOP"),
        (0.3235, "device-s", "324 dev-ms"),
        (3.2, "device s", "3.20 dev-s"),
        (0.896, "1", "0.896"),
        (12345.0, "tokens", "12,345"),
        (0.0123, "USD", "$0.0123"),
        (-0.002, "USD", "-$0.00200"),
        (22_100.0, "J", "22.1 kJ"),
        (0.25, "J/token", "250 mJ"),
        (0.0, "s", "0 s"),
        (None, "s", "-"),
        (math.nan, "s", "-"),
    ],
)
def test_numbers(value, unit, text):
    assert number(value, unit) == text


def test_an_interval_has_the_unit_of_its_value():
    estimate = Estimate(value=0.9, low=0.8, high=1.1, unit="s")
    assert whole(estimate) == "900 ms [800, 1,100]"
    assert whole(Estimate(value=0.9, unit="s", extrapolated=True)) == "900 ms*"
    change = Estimate(value=-0.9, low=-1.1, high=0.2, unit="s")
    assert whole(change, sign=True) == "-900 ms [-1,100, +200]"
    assert interval(None) == ""
    assert whole(None) == "-"


def test_shares_never_round_to_none_or_all():
    assert [percent(share) for share in (0, 0.001, 0.5, 0.999, 1)] == [
        *("0 %", "<1 %", "50 %", ">99 %", "100 %")
    ]
    assert percent(None) == "-"


def test_small_things():
    assert [digits(x) for x in (0, 0.01234, 1.234, 12.34, 1234.5)] == [
        *("0", "0.0123", "1.23", "12.3", "1,234")
    ]
    assert [compact(x) for x in (41, 834.3, 2573, 1.2e6, None)] == [
        *("41.0", "834", "2.57k", "1.20M", "-")
    ]
    assert sparkline([0, 1, math.nan, 2]) == "▁▅ █"
    assert sparkline([0, 0]) == "▁▁"
    assert clock(125.25) == "2:05.2"
    assert clock(59.96) == "1:00.0"
    assert clock(4.90123, 4) == "0:04.9012"
    assert align([("a", "1"), ("bb", "22")], right=(1,)) == ["a    1", "bb  22"]
    assert wrap("x", "one two three", width=10, indent=3) == ["x  one two", "   three"]


@pytest.mark.parametrize(
    ("span_s", "decimals"),
    [(7200, 1), (10, 1), (9.9, 2), (1, 2), (0.99, 3), (0.1, 3), (0.099, 4), (1e-3, 5), (0, 11)],
)
def test_a_shorter_stretch_has_times_of_more_decimals(span_s, decimals):
    assert clock_decimals(span_s) == decimals


@pytest.mark.parametrize("most", [2, 3, 5, 9])
@pytest.mark.parametrize(("low", "high"), [(0.0, 2.7), (0.64, 1.03), (3e-4, 8e-4), (90, 1e5)])
def test_ticks_are_few_round_and_inside(low, high, most):
    found = ticks(low, high, most)
    assert 2 <= len(found) <= max(most, 5)
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


def test_ticks_are_labelled_as_what_they_are():
    assert tick_labels([0.05, 0.15]) == ["0.05", "0.15"]
    assert tick_labels([0.2, 0.3, 0.4]) == ["0.2", "0.3", "0.4"]
    assert tick_labels([0.0, 200.0]) == ["0", "200"]
    assert tick_labels([2.5e-7]) == ["0.00000025"]


def test_ticks_fit_an_axis_and_are_never_fewer_than_two():
    assert fitting_ticks(0.0347, 0.19, 11) == [0.05, 0.15]
    assert fitting_ticks(0.0347, 0.19, 60) == ticks(0.0347, 0.19, 7)
    assert fitting_ticks(1.0, 1.0, 20) == [1.0]
    for columns in range(1, 100):
        for low, high in ((0.0, 2.7), (0.0347, 0.19), (3e-6, 8e-6), (0.0, 2.5e9)):
            assert len(fitting_ticks(low, high, columns)) >= 2


def test_axes_leave_room():
    assert with_room([1.0, 2.0]) == pytest.approx((0.9, 2.1))
    low, high = with_room([0.5])
    assert low < 0.5 < high


def test_a_difference_of_shares_is_in_points():
    def told(value, low, high):
        return whole(Estimate(value=value, low=low, high=high, unit="1"), sign=True)

    assert told(0.012, -0.004, 0.028) == "+1.2 points [-0.4, +2.8]"
    assert told(0.0, -0.101, 0.0) == "±0 points [-10.1, 0]"
    assert told(0.0004, -0.00004, 0.5) == "+0.04 points [-<0.01, +50.0]"
    assert number(-0.519, "1", sign=True) == "-51.9 points"
    assert number(0.519, "1") == "0.519"
    assert number(1e-17, "1", sign=True) == "±0 points"  # rounding
