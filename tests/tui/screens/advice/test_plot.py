"""What the Front panel draws, and what its rows are."""

from __future__ import annotations

import dataclasses

import pytest

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor, estimate
from traces.schema.advice import Budget, Load
from traces.schema.quantities import objective, quantity
from tui.screens.advice.pick import answer_sections
from tui.screens.advice.plot import AXES, Plane, axes, dotted, next_axis
from tui.screens.advice.rows import COLOURS, present_candidate, shown_quantities, table_of, words_of
from tui.screens.entries import load
from tui.text.advice import limit_on
from tui.text.fronts import FLOPS, FRONT, MISS, SYMBOLS, candidates, joined_on, names_of

BUDGET = Budget(min_accuracy=0.7)
LATENCY, FLOPS_AXIS = quantity("latency_s"), quantity("flops")


@pytest.fixture(scope="module")
def rows():
    return candidates(FakeAdvisor([]).recommend(BUDGET))


def test_points_error_bars_and_axes(rows):
    plane = Plane(axis=LATENCY, log=False, factor=1.0, unit="s")
    assert plane.points(rows) == {"A": ([1.6], [0.93]), "B": ([0.4], [0.71])}
    bar = plane.error_bar(rows[0])
    estimates = [rows[0].pick.estimates[name] for name in ("latency_s", "accuracy")]
    assert [bar.across, bar.up] == [(each.low, each.high) for each in estimates]
    (x, y, half, none), (above, middle, nothing, height) = bar.arms()
    assert (x - half, x + half) == pytest.approx(bar.across) and y == bar.y
    assert none == nothing == 0
    x, y, half = above, middle, height
    assert (y - half, y + half) == pytest.approx(bar.up) and x == bar.x
    assert Plane.of(rows, quantity("cost_usd")).error_bar(rows[0]) is None
    known = axes(BUDGET, rows)
    assert [each.name for each in known] == [
        "latency_s", "latency_p95_s", "device_s", "tokens", "flops",
    ]  # fmt: skip
    assert next_axis(known, known[-1]) == known[0]
    by_p95 = axes(dataclasses.replace(BUDGET, latency_percentile=95), rows)
    assert by_p95[0].name == "latency_p95_s"  # what is optimised
    assert Plane.of(rows, by_p95[0]).title == "p95 latency (s)"


def test_nothing_is_drawn_where_no_accuracy_is_known(rows):
    unknown = []
    for row in rows:
        pick = dataclasses.replace(row.pick, estimates={**row.pick.estimates, "accuracy": None})
        unknown.append(dataclasses.replace(row, pick=pick))
    assert axes(BUDGET, unknown) == []


def test_the_table_has_what_is_drawn_and_what_is_limited(rows):
    def shown(budget, axis=None):
        return [each.name for each in shown_quantities(budget, rows, axis)]

    assert shown(BUDGET)[:2] == ["accuracy", "latency_s"]
    assert shown(BUDGET, FLOPS_AXIS)[:3] == ["accuracy", "flops", "latency_s"]
    by_cost = dataclasses.replace(BUDGET, max_device_s=2.0)
    assert shown(by_cost)[:3] == ["accuracy", "latency_s", "device_s"]
    heads, cells = table_of(rows, BUDGET, 60, quantity("latency_p95_s"))
    assert heads[2:4] == ["accuracy", "p95 latency"]
    assert cells[0][3] == "3.20 s*"


def test_the_axis_has_the_unit_of_the_table(rows):
    short = [
        dataclasses.replace(
            row,
            pick=dataclasses.replace(
                row.pick, estimates=row.pick.estimates | {"latency_s": estimate(value, "s")}
            ),
        )
        for row, value in zip(rows, (0.2, 0.08), strict=True)
    ]
    plane = Plane.of(short, LATENCY)
    assert plane.title == "mean latency (ms)"
    assert plane.points(short) == {"A": ([pytest.approx(200)], [0.93]), "B": ([80.0], [0.71])}
    bar = plane.error_bar(short[0])
    assert bar.across == (pytest.approx(180), pytest.approx(220))
    assert [Plane.of(rows, quantity(name)).title for name in ("tokens", "flops")] == [
        "tokens", "FLOPs (GFLOP)",
    ]  # fmt: skip


def test_numbers_that_lie_far_apart_have_a_logarithmic_axis(rows):
    assert not Plane.of(rows, FLOPS_AXIS).log
    far = [
        dataclasses.replace(
            row,
            pick=dataclasses.replace(
                row.pick, estimates=row.pick.estimates | {"flops": estimate(value, "FLOP")}
            ),
        )
        for row, value in zip(rows, (1e11, 1e8), strict=True)
    ]
    plane = Plane.of(far, FLOPS_AXIS)
    assert plane.points(far)["A"] == ([pytest.approx(2)], [0.93])  # of 1e9
    left, right = plane.room([-1.0, 2.0])
    places = plane.ticks(left, right, 40)
    assert left < -1 and right > 2 and all(left <= each <= right for each in places)
    assert {-1.0, 0.0, 1.0, 2.0} <= {round(each, 6) for each in places}


def test_fronts_are_joined_by_accuracy(rows):
    plane = Plane(axis=LATENCY, log=False, factor=1.0, unit="s")
    assert plane.front(rows, FRONT) == ([0.4, 1.6], [0.71, 0.93])
    assert plane.front(rows, MISS) == ([], [])
    xs, ys = dotted(([0.0, 1.0], [0.0, 0.2]), 0.25, 0.1)
    assert (xs, ys) == ([0.0, 0.25, 0.5, 0.75], pytest.approx([0.0, 0.05, 0.1, 0.15]))


def test_a_front_is_joined_on_its_own_axis_alone(rows):
    joined = {name: joined_on(BUDGET, quantity(name)) for name in AXES}
    own = objective(BUDGET.goal, BUDGET.latency_percentile).name
    assert {name for name, fronts in joined.items() if FRONT in fronts} == {own}
    assert {name for name, fronts in joined.items() if FLOPS in fronts} == {"flops"}


def test_rows_say_what_they_are(rows):
    assert [row.symbol for row in rows] == ["A", "B"]
    assert [words_of(row, BUDGET) for row in rows] == [
        "system-optimal, on both fronts", "compute-optimal, on both fronts",
    ]  # fmt: skip
    other = dataclasses.replace(rows[0], roles=frozenset({FLOPS}))
    assert (other.symbol, words_of(other, BUDGET)) == ("○", "on the front by FLOPs")
    named = names_of(dataclasses.replace(BUDGET, latency_percentile=95))
    assert named["●"] == "front by p95 latency"
    assert {*named} == {*SYMBOLS.values()} == {*COLOURS}


def test_limits_stand_on_their_axis():
    budget = Budget(max_latency_s=2.0, latency_percentile=95, max_device_s=3.0)
    assert [limit_on(budget, quantity(axis)) for axis in AXES[:4]] == [None, 2.0, None, 3.0]
    assert limit_on(budget, quantity("tokens")) is None


def test_the_present_is_what_was_measured(tmp_path):
    (entry,) = load(write_recording(tmp_path / "a", simulate(problems=8, n=4)).path)
    answer = FakeAdvisor([]).recommend(Budget(price_usd_per_device_hour=3600.0))
    row = present_candidate(entry.run, answer, 3600.0)
    assert row.symbol == "◆"
    assert row.pick.estimates["accuracy"] == entry.run.accuracy
    assert row.pick.estimates["cost_usd"].value == entry.run.device_s_per_problem.value
    unpriced = present_candidate(entry.run, answer, None)
    assert unpriced.pick.estimates["cost_usd"] is None


def test_the_present_under_another_load_has_no_times(tmp_path):
    simulated = simulate(problems=8, n=4)
    (entry,) = load(write_recording(tmp_path / "a", simulated, concurrency=1).path)
    answer = dataclasses.replace(
        FakeAdvisor([]).recommend(BUDGET), load=Load(concurrency=None, rate_per_s=2.0)
    )
    row = present_candidate(entry.run, answer, None)
    assert row.pick.estimates["latency_s"] is None is row.pick.estimates["device_s"]
    assert row.pick.estimates["tokens"] == entry.run.tokens_per_problem
    sections, _ = answer_sections(answer, row, width=80)
    text = " ".join(line for each in sections for line in each.lines)
    assert "measured under another load (1 problem in flight)" in text
    (untold,) = load(write_recording(tmp_path / "b", simulated).path)
    row = present_candidate(untold.run, answer, None)
    assert row.pick.measured.at_load and row.pick.measured.concurrency is None
    assert row.pick.estimates["latency_s"] == untold.run.latency_s["mean"]
    sections, _ = answer_sections(answer, row, width=80)
    assert "another load" not in " ".join(line for each in sections for line in each.lines)
