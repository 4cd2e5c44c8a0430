from __future__ import annotations

import pytest

from tui.text.layout import fitting_ticks, log_ticks, tick_labels, ticks, with_room


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


def test_logarithmic_ticks_stand_apart_and_are_never_none():
    assert log_ticks(0.04, 1.2, 60) == [0.05, 0.1, 0.2, 0.3, 0.5, 1.0]
    assert log_ticks(0.04, 1.2, 20) == [0.1, 0.3, 1.0]
    for low, high, columns in ((1e7, 3e10, 12), (0.021, 0.09, 10), (4.1, 4.9 * 4, 8)):
        found = log_ticks(low, high, columns)
        assert found and all(low <= tick <= high for tick in found)
