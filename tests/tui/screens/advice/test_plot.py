from __future__ import annotations

import pytest

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import LARGE, SMALL, FakeAdvisor
from traces.errors import UsageError
from traces.schema.advice import Budget
from tui.screens.advice.plot import (
    AXES,
    error_bar,
    next_axis,
    points,
    present_candidate,
    with_fronts,
)
from tui.screens.advice.rows import candidates
from tui.screens.advice.what_if import what_if
from tui.screens.entries import load
from tui.text.advice import limit_on


@pytest.fixture(scope="module")
def rows():
    return with_fronts(candidates(FakeAdvisor([]).recommend(Budget())))


def test_points_error_bars_and_axes(rows):
    assert points(rows, AXES[0]) == {"@": ([1.6], [0.93]), "o": ([0.4], [0.71])}
    bar = error_bar(rows[0], AXES[0])
    assert (bar.x, bar.x_half) == (1.6, pytest.approx(0.16))
    assert error_bar(rows[0], AXES[2]) is None
    seen = [0]
    for _ in range(5):
        seen.append(next_axis(rows, seen[-1]))
    assert [AXES[each].name for each in seen[:5]] == [
        "latency_s", "latency_p95_s", "device_s", "tokens", "flops",
    ]  # fmt: skip
    assert seen[5] == 0


def test_fewest_flops_are_marked(rows):
    assert [row.marks for row in rows] == ["@of", "o+f"]
    dearer = [*rows, type(rows[0])(marks="o", pick=type(LARGE)(**{
        **vars(SMALL), "command": None,
        "estimates": {**SMALL.estimates, "flops": LARGE.estimates["flops"]},
        "engine": LARGE.engine,
    }))]  # fmt: skip
    assert with_fronts(dearer)[2].marks == "o"


def test_limits_stand_on_their_axis():
    budget = Budget(max_latency_s=2.0, latency_percentile=95, max_device_s=3.0)
    assert [limit_on(budget, axis) for axis in AXES[:4]] == [None, 2.0, None, 3.0]
    assert limit_on(budget, AXES[5]) is None


def test_the_present_is_what_was_measured(tmp_path):
    (entry,) = load(write_recording(tmp_path / "a", simulate(problems=8, n=4)).path)
    row = present_candidate(entry.run, 3600.0)
    assert row.marks == "P"
    assert row.pick.estimates["accuracy"] == entry.run.accuracy
    assert row.pick.estimates["cost_usd"].value == entry.run.device_s_per_problem.value
    with pytest.raises(UsageError, match="no recording of large"):
        what_if([entry], LARGE, "engine.max_num_seqs=4")
