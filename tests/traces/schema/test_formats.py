from __future__ import annotations

import dataclasses
import math

import pytest

from traces.schema.estimate import Estimate
from traces.schema.formats import (
    chance,
    compact,
    digits,
    interval,
    number,
    percent,
    percent_change,
    relative_change,
    with_interval,
    written,
)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"), (4.2e-6, "s/token", "4.20 us"), (123.4, "s", "123 s"),
        (790e6, "FLOP", "790 MFLOP"), (0.3235, "device-s", "324 dev-ms"),
        (3.2, "device-s", "3.20 dev-s"), (0.896, "1", "0.896"), (12345.0, "tokens", "12,345"),
        (0.0123, "USD", "$0.0123"), (-0.002, "USD", "-$0.00200"), (2.66e-5, "USD", "$0.0000266"),
        (26.1, "problems/s", "26.1 problems/s"), (2.0, "devices", "2 devices"),
        (1.0, "devices", "1 device"), (22_100.0, "J", "22.1 kJ"), (0.25, "J/token", "250 mJ"),
        (0.0, "s", "0 s"), (None, "s", "-"), (math.nan, "s", "-"),
    ],
)  # fmt: skip
def test_numbers(value, unit, text):
    assert number(value, unit) == text


def test_an_interval_has_the_unit_of_its_value():
    estimate = Estimate(value=0.9, low=0.8, high=1.1, unit="s")
    assert with_interval(estimate) == "900 ms [800, 1100]"
    assert with_interval(Estimate(value=0.9, unit="s", extrapolated=True)) == "900 ms*"
    lower = Estimate(value=-0.9, low=-1.1, high=0.2, unit="s")
    assert with_interval(lower, sign=True) == "-900 ms [-1100, +200]"
    assert interval(None) == ""
    assert with_interval(None) == "-"
    assert with_interval(Estimate(value=0.9, low=0.8, unit="s")) == "900 ms [800, -]"


def test_what_cannot_differ_has_no_interval():
    """Such as the device time at a rate, and the difference of a run from itself."""
    fixed = Estimate(value=0.521, low=0.521, high=0.521, unit="device-s", extrapolated=True)
    assert with_interval(fixed) == "521 dev-ms*"
    assert relative_change(Estimate(value=0.0, low=0.0, high=0.0, unit="1")) == "0 %"
    narrow = Estimate(value=0.521, low=0.5209, high=0.521, unit="device-s")
    assert with_interval(narrow) == "521 dev-ms [521, 521]"
    rounded = dataclasses.replace(fixed, low=0.521 * (1 - 1e-15), high=0.521 * (1 + 1e-15))
    assert with_interval(rounded) == "521 dev-ms*"


@pytest.mark.parametrize(
    ("value", "low", "high", "unit", "text"),
    [
        (0.116, 0.0139, 26.225, "s", "116 ms [13.9, 26225]"),
        (0.5, 0.0, 12.0, "device-s", "500 dev-ms [0, 12000]"),
        (0.3, 0.3, 3.929, "s", "300 ms [300, 3929]"),
        (1.05, 0.95, 1.2, "s", "1.05 s [0.950, 1.20]"),
        (1500.0, 1100.0, 2400.0, "s", "1,500 s [1100, 2400]"),
        (790.0, 405.0, 1220.0, "tokens", "790 [405, 1220]"),
        (790e6, 405e6, 12.2e9, "FLOP", "790 MFLOP [405, 12200]"),
        (1.85e-5, 1.67e-5, 2.04e-5, "USD", "$0.0000185 [0.0000167, 0.0000204]"),
    ],
)
def test_an_interval_reads_as_two_numbers(value, low, high, unit, text):
    assert with_interval(Estimate(value=value, low=low, high=high, unit=unit)) == text


def test_shares_never_round_to_none_or_all():
    assert [percent(share) for share in (0, 0.001, 0.5, 0.999, 1)] == [
        *("0 %", "<1 %", "50 %", ">99 %", "100 %")
    ]
    assert percent(None) == "-"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "<1 %"), (0.899, "89 %"), (0.9, "90 %"), (0.99, "99 %"), (1.0, ">99 %"), (None, "-")],
)
def test_a_chance_is_never_rounded_up(share, text):
    assert chance(share) == text


def test_what_somebody_chose_has_no_zeros_at_its_end():
    assert written(0.05, "s") == "50 ms"
    assert written(0.002, "USD") == "$0.002"
    assert written(0.75, "1") == "0.75"
    assert written(3.0, "problems/s") == "3 problems/s"
    assert written(2e-5, "USD") == "$0.00002"
    assert written(4.63e-7, "USD") == "$0.000000463"


def test_a_rate_that_nobody_chose_has_three_digits():
    rates = (14.2668, 3.90125, 100 / 60, 0.125, 1234.0, 0.000125)
    assert [written(each, "problems/s") for each in rates] == [
        *("14.3 problems/s", "3.90 problems/s", "1.67 problems/s", "0.125 problems/s"),
        *("1234 problems/s", "0.000125 problems/s"),
    ]


def test_a_change_is_in_per_cent():
    shares = (0.0123, -0.5, 0.0, None)
    assert [percent_change(each) for each in shares] == ["+1.2 %", "-50.0 %", "0 %", "-"]
    interval = Estimate(value=-0.04, low=-0.1, high=0.0, unit="1")
    assert relative_change(interval) == "-4.0 % [-10.0, 0]"
    assert [percent_change(each) for each in (3.99, 4.0, 12.566)] == [
        "+399.0 %",
        "5.00 times",
        "13.6 times",
    ]
    large = Estimate(value=12.6, low=2.1, high=20.3, unit="share")
    assert relative_change(large) == "13.6 times [3.10, 21.3]"
    larger = Estimate(value=900.0, low=100.0, high=1500.0, unit="share")
    assert relative_change(larger) == "901 times [101, 1501]"


def test_small_things():
    assert [digits(x) for x in (0, 0.01234, 1.234, 12.34, 1234.5)] == [
        *("0", "0.0123", "1.23", "12.3", "1,234")
    ]
    assert [digits(x) for x in (0.09996, 0.9996, -9.996, 99.96)] == [
        *("0.100", "1.00", "-10.0", "100")
    ]
    assert [compact(x) for x in (41, 834.3, 2573, 1.2e6, None)] == [
        *("41.0", "834", "2.57k", "1.20M", "-")
    ]


def test_a_difference_of_shares_is_in_points():
    def told(value, low, high):
        return with_interval(Estimate(value=value, low=low, high=high, unit="1"), sign=True)

    assert told(0.012, -0.004, 0.028) == "+1.2 points [-0.4, +2.8]"
    assert told(0.0, -0.101, 0.0) == "±0 points [-10.1, 0]"
    assert told(0.0004, -0.00004, 0.5) == "+0.04 points [-<0.01, +50.0]"
    assert number(-0.519, "1", sign=True) == "-51.9 points"
    assert number(0.519, "1") == "0.519"
    assert number(1e-17, "1", sign=True) == "±0 points"  # rounding
