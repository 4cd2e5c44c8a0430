from __future__ import annotations

import math

import pytest

from tui.text.layout import align, clock, clock_decimals, fold, sparkline, whole_parts, wrap


def test_small_things():
    assert sparkline([0, 1, math.nan, 2]) == "▁▄ ▇"
    assert sparkline([0, 0]) == "▁▁"
    assert clock(125.25) == "2:05.2"
    assert clock(59.96) == "1:00.0"
    assert clock(4.90123, 4) == "0:04.9012"
    assert align([("a", "1"), ("bb", "22")], right=(1,)) == ["a    1", "bb  22"]
    assert whole_parts("p50 31.7 ms  p95 107 ms", 17) == "p50 31.7 ms"
    assert whole_parts("step 0 | 2.60 ms", 16, " | ") == "step 0 | 2.60 ms"
    assert wrap("x", "one two three", width=10, indent=3) == ["x  one two", "   three"]
    assert wrap("x", "one <1 % (two)", width=10, indent=3) == ["x  one", "   <1 %", "   (two)"]
    assert fold("one two 96 %.", 12, "- ") == ["- one two", "96 %."]


def test_columns_without_room_follow_below():
    rows = [("name", "one", "two", "three"), ("a", "1.00", "2", "3")]
    assert align(rows, right=(1, 2, 3), width=17) == [
        "name   one",
        "a     1.00",
        "name  two  three",
        "a       2      3",
    ]
    assert align(rows, width=80) == align(rows)
    assert align(rows, width=3) == [
        *("name  one", "a     1.00", "name  two", "a     2", "name  three", "a     3"),
    ]


@pytest.mark.parametrize(
    ("span_s", "decimals"),
    [(7200, 1), (10, 1), (9.9, 2), (1, 2), (0.99, 3), (0.1, 3), (0.099, 4), (1e-3, 5), (0, 11)],
)
def test_a_shorter_stretch_has_times_of_more_decimals(span_s, decimals):
    assert clock_decimals(span_s) == decimals
