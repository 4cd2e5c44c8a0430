from __future__ import annotations

import re

import numpy as np
import pytest

from advisor.accuracy.stopping import RULES, savings
from tests.traces.synthetic import START, simulate, write_recording
from tui.screens.entries import load
from tui.screens.run.charts import (
    axis_line,
    beside_lanes,
    collective_line,
    columns_of,
    draft_line,
    family_line,
    run_lanes,
    step_lines,
)
from tui.screens.run.data import StepPages, read_run
from tui.screens.run.model import RunModel
from tui.screens.run.playback import Goto
from tui.screens.run.problem import (
    NOTE,
    bar,
    columns,
    cut_at,
    problem_at,
    problem_in_flight,
    problem_title,
    same_problem,
    sample_rows,
    stop_lines,
    vote_lines,
)
from tui.widgets.lanes import LEFT, RIGHT, Lane, lane_lines, rows_for
from tui.widgets.sample_bars import SampleRow, Scale, _lines, legend_of


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    write_recording(folder / "a", simulate(problems=8, n=4))
    return load(folder / "a")[0]


@pytest.fixture(scope="module")
def run(entry):
    return entry.run


@pytest.fixture(scope="module")
def data(entry):
    return read_run(entry.recording, entry.run)


def test_a_lane_has_its_highest_number_and_a_unit_that_fits():
    share = Lane(name="KV cache", values=np.array([0.02, 0.0733]), unit="%", top=100.0)
    (line,) = lane_lines(share, 0, 1)
    assert line[:LEFT].split() == ["KV", "cache", "0.0733", "%│"] and line.endswith("0.0200")
    assert line[LEFT : LEFT + 2] == "▁▁"  # of 100 %
    slow = Lane(name="TTFT", values=np.array([2220.0, 12_400.0]), unit="ms")
    (line,) = lane_lines(slow, 0, 1)
    assert line[:LEFT].split() == ["TTFT", "12.4", "s│"] and line.endswith("2.22 s")
    mixed = Lane(name="TTFT", values=np.array([1200.0, 337.0]), unit="ms")  # as tables have them
    (line,) = lane_lines(mixed, -1, 1)
    assert line[:LEFT].split() == ["TTFT", "1.20", "s│"] and line.endswith("│ 337 ms")


def test_charts_have_one_width(run, data):
    found = data.timeline.bins(50)
    lanes = run_lanes(found, np.full(50, 300.0), tall=True)
    assert [lane.name for lane in lanes] == ["batch", "waiting", "KV cache", "tok/s", "power"]
    for cursor in (0, 20, 49):
        assert {len(lane_lines(lane, cursor, 1)[0]) for lane in lanes} == {LEFT + 50 + RIGHT}
        axis = axis_line(data.timeline.start_ns, found.edges_ns, cursor, int(found.edges_ns[3]))
        assert axis.index("^") == LEFT + cursor
    top, low = lane_lines(lanes[0], 3, 2)
    assert len(low) == LEFT + 50 + 1
    assert top[:LEFT].split() == ["batch", f"{np.nanmax(found.batch):.0f}", "seqs│"]
    assert low[:LEFT].endswith(" 0│")
    full = int(np.nanargmax(found.batch))
    assert top[LEFT + full] == low[LEFT + full] == "█"
    assert len({lane.style for lane in lanes}) == len(lanes)
    row = run.rows.row(0, named=True)
    start, extent = data.timeline.start_ns, (row["arrival"], row["end"])
    axis = axis_line(start, found.edges_ns, 30, int(found.edges_ns[3]), extent)
    assert axis[LEFT:].startswith("=")
    later = int(found.edges_ns[-1]) + 10
    assert columns_of(found.edges_ns, later, later + 5) == (0, 0)
    assert columns_of(found.edges_ns, int(found.edges_ns[40]), None) == (40, 50)


@pytest.mark.parametrize("start_s", [4.9, 3599.2])
@pytest.mark.parametrize("span_ns", [10**6, 7 * 10**6, 3 * 10**8, 5 * 10**9, 10**12])
def test_times_of_the_axis_differ_at_every_zoom(start_s, span_ns):
    begin = START + round(start_s * 1e9)
    edges = begin + np.linspace(0, span_ns, 57).astype(np.int64)
    for cursor in range(56):
        axis = axis_line(START, edges, cursor, int(edges[cursor]), (begin, None))
        assert axis[LEFT:].index("^") == cursor
        assert len(axis) <= LEFT + 56 + RIGHT
        times = re.findall(r"\d+:\d\d\.\d+(?= |$)", axis)
        assert len(times) in ((3,) if cursor < 50 else (2, 3))
        assert len(set(times)) == len(times) - (cursor == 0)


def test_a_stretch_of_time_is_binned_as_the_whole(data):
    timeline = data.timeline
    whole = timeline.bins(64)
    left, right = int(whole.edges_ns[16]), int(whole.edges_ns[48])
    part = timeline.bins(32, left, right)
    assert np.array_equal(part.batch, whole.batch[16:48], equal_nan=True)
    assert np.array_equal(part.first_step, whole.first_step[16:48])
    assert np.allclose(part.tokens_per_s, whole.tokens_per_s[16:48], equal_nan=True, rtol=1e-6)


def test_a_run_beside_another_has_its_scale(data):
    found = data.timeline.bins(20)
    lanes = beside_lanes(found, found, "replay")
    assert [lane.name for lane in lanes] == ["batch", " replay", "tok/s", " replay"]
    assert lanes[0].top == lanes[1].top == np.nanmax(found.batch)


def test_steps_say_what_they_computed(entry, run, data):
    pages = StepPages(entry.recording, run)
    assert "reads" not in " ".join(step_lines(pages.known(0), width=78, joules=None))
    assert pages.read(0)
    assert not pages.read(1)  # it is there
    text = " ".join(step_lines(pages.known(0), width=78, joules=1.5))
    for wanted in ("step 0", "prefill 8 req, 80 tok", "reads 80 KV tok", "1.50 J"):
        assert wanted in text
    assert pages.known(-1) is None
    assert step_lines(None, width=78, joules=None) == ["no step here: the engine was idle"]
    assert draft_line(pages.known(0), run) is None
    assert "1/2 0/2" in draft_line({"drafted": [2, 2], "accepted": [1]}, run)
    assert data.joules(pages.known(0)) is None
    assert data.kernels_of(0) == (None, None)


def test_kernels_and_power_of_a_step(tmp_path):
    rows = simulate(problems=20, n=4)
    ends = [row["end"] for row in rows["steps"]]
    times = range(START - 10**7, ends[-1] + 10**7, 10**6)
    rows["power"] = [
        {"host": "h", "device": "0", "kind": "rapl", "time": time, "watts": 50.0} for time in times
    ]
    rows["kernels"] = [
        {"step": 3, "rank": 0, "family": family, "name": family, "count": 2, "time": ns,
         "self_time": ns, "collective": moved, "group_size": 2, "exposed_time": 0}
        for family, ns, moved in (("gemm", 300, None), ("communication", 100, "all_reduce"))
    ]  # fmt: skip
    (entry,) = load(write_recording(tmp_path / "x", rows).path)
    data = read_run(entry.recording, entry.run)
    pages = StepPages(entry.recording, entry.run)
    wall_s = pages.known(3)["wall_ns"] / 1e9
    assert data.joules(pages.known(3)) == pytest.approx(50.0 * wall_s, rel=0.01)
    assert "50.0 W" in " ".join(step_lines(pages.known(3), width=78, joules=50.0 * wall_s))
    watts = data.watts(data.timeline.bins(10).edges_ns)
    assert np.nanmedian(watts) == pytest.approx(50.0, rel=0.01)
    families, moved = data.kernels_of(3)
    assert family_line(families, 78) == "kernels gemm ######### 75 % communication ### 25 %"
    assert "all_reduce x2 100 ns" in collective_line(moved, 78)
    assert data.kernels_of(4) == (None, None)
    model = RunModel(entry, [])
    model.show_data(data)
    model.step_by(3)
    text = " ".join(model.step(50, 78))
    for wanted in ("step 3", "kernels gemm", "collectives all_reduce"):
        assert wanted in text
    lanes, *_ = model.charts(50, tall=False)
    assert lanes[-1].name == "power"


@pytest.mark.parametrize("walls", ["twice the interval", None])
def test_steps_that_overlap_or_tell_no_wall_time_begin_where_the_one_before_ended(tmp_path, walls):
    rows = simulate(problems=20, n=4)
    for row in rows["steps"]:
        row["wall_ns"] = None if walls is None else 2 * (row["interval_ns"] or 0)
    first, last = rows["steps"][0]["end"], rows["steps"][-1]["end"]
    rows["power"] = [
        {"host": "h", "device": "0", "kind": "rapl", "time": time, "watts": 50.0}
        for time in range(START - 10**7, last + 10**7, 10**6)
    ]
    (entry,) = load(write_recording(tmp_path / "x", rows).path)
    data, pages = read_run(entry.recording, entry.run), StepPages(entry.recording, entry.run)
    drawn = [data.joules(pages.known(at)) for at in range(1, len(rows["steps"]))]
    assert sum(drawn) == pytest.approx(50.0 * (last - first) / 1e9, rel=0.01)
    assert "50.0 W" in " ".join(step_lines(pages.known(3), width=78, joules=drawn[2]))
    model = RunModel(entry, [])
    model.show_data(data)
    begun, ended = (rows["steps"][at]["end"] for at in (2, 3))
    model.go_to(Goto("time", ((begun + ended) / 2 - model.play.start) / 1e9))
    assert "step 3" in " ".join(model.step(10_000, 78))  # columns shorter than a step


def test_bars_follow_the_clock(run):
    problem = problem_at(run, 0)
    assert [each.end for each in problem.samples] == sorted(each.end for each in problem.samples)
    _, space = columns(problem, 80)
    for row, sample in zip(sample_rows(problem, 80), problem.samples, strict=True):
        assert len(row.left + row.bar) + NOTE <= 80
        assert "p" in row.bar
        assert row.bar.rstrip()[-1] in "A="
        assert row.bar == bar(sample, problem.span_s, space)
        assert row.left[5] == {True: "+", False: "-"}[row.correct]
    assert len(sample_rows(problem, 80)[-1].bar) == space
    legend = legend_of(sample_rows(problem, 80), letters=False).plain
    assert "▆ thinking" in legend and "= thinking" not in legend
    letters = legend_of(sample_rows(problem, 80), letters=True).plain
    assert "= thinking  A answering" in letters
    assert "cancelled" not in legend and "stop" not in legend


def test_a_problem_as_it_stood(run):
    problem = problem_at(run, 1)
    middle = problem.samples[1].end
    then = cut_at(problem, middle)
    assert [each.end is None for each in then.samples] == [
        each.end > middle for each in problem.samples
    ]
    assert all(each.answer is None for each in then.samples if each.end is None)
    running = sample_rows(then, 80, until=middle)[-1]
    assert running.bar.endswith(">")
    assert len(running.bar) < len(sample_rows(problem, 80)[-1].bar)
    assert all(row.bar == "" for row in sample_rows(cut_at(problem, -1.0), 80, until=-1.0))


def test_which_problem_is_in_flight(run):
    row = run.rows.row(5, named=True)
    at = problem_in_flight(run, row["decided_at"] - 1)
    assert run.rows["arrival"][at] <= row["decided_at"] <= run.rows["decided_at"][at]
    assert problem_in_flight(run, run.rows["arrival"][0] - 1) is None
    assert same_problem(problem_at(run, 5), run).number == 5


def test_votes_converge_to_the_answer(run):
    for number in range(run.rows.height):
        problem = problem_at(run, number)
        text = " ".join(vote_lines(problem, width=78))
        final = problem.row["answer"]
        votes = [each.answer for each in problem.samples].count(final)
        assert text.startswith(f"vote  {final}: ")
        assert f"{votes}/4" in text
        assert f"problem {number + 1} of 8" in problem_title(problem)


def test_a_rule_is_told_of_one_problem_and_of_all(run):
    judged = savings(run, RULES[4])
    early = next(
        problem_at(run, number)
        for number in range(run.rows.height)
        if judged.stopped[run.rows["problem_id"][number]].early
    )
    stop = judged.stopped[early.row["problem_id"]]
    text = " ".join(stop_lines(early, judged, "x", width=78))
    assert f"{stop.ended} ended" in text
    assert "all 8: " in text
    assert all(max(map(len, stop_lines(early, judged, "x", width=w))) <= w for w in (60, 78))
    rows = sample_rows(early, 80, stop=stop)
    assert any("~" in row.bar or "a" in row.bar for row in rows)
    assert "▂ after the stop" in legend_of(rows, letters=False).plain
    assert "a after the stop" in legend_of(rows, letters=True).plain
    whole = legend_of(rows, letters=False).plain
    narrow = legend_of(rows, letters=False, width=len(whole) - 1).plain
    assert narrow.count("\n") == 1 and narrow.replace("\n", "  ") == whole


@pytest.mark.parametrize("bar", ["=" * 5, "=" * 30, "=" * 60])
def test_where_a_rule_stops_is_told_in_one_line(bar):
    row = SampleRow(left="   1 + 7     14 ", correct=True, bar=bar, note="differs")
    for width in (50, 80):
        scale = Scale(left="", columns=20, end="1 s", width=width)
        lines = _lines(row, "◂ ASC .95 stops here", scale, letters=False)
        assert sum("◂ ASC .95 stops here" in line.plain for line in lines) == 1
        assert all(len(line) <= width for line in lines if line.plain.strip().startswith("◂"))
        assert len(lines) == 1 + (len(row.left + bar) + 8 + 21 > width)


def test_lanes_take_the_room_there_is():
    assert [rows_for(room, 4) for room in (0, 6, 7, 11, 23, 400)] == [
        (1, False), (1, False), (1, True), (2, True), (5, True), (14, True),
    ]  # fmt: skip


def test_a_rule_is_judged_or_says_why_not(run):
    early = problem_at(run, 0)
    assert "judging" in stop_lines(early, None, "x", width=78)[0]
    assert stop_lines(early, "why not", "x", width=78) == ["rule  why not"]


def test_a_rule_that_is_met_as_all_end_does_not_wait(tmp_path):
    rows = simulate(problems=2, n=4)
    for row in rows["samples"]:
        if row["problem_id"] == "p0":
            row["end"] = max(r["end"] for r in rows["samples"] if r["problem_id"] == "p0")
            row["answer"], row["correct"] = "7", True
    (entry,) = load(write_recording(tmp_path / "x", rows).path)
    judged = savings(entry.run, RULES[4])  # a quarter agree
    text = " ".join(stop_lines(problem_at(entry.run, 0), judged, "x", width=200))
    assert "is met here by 2 of 4 samples" in text
    assert "nothing is saved" in text
    assert "waits for the last" in " ".join(
        stop_lines(problem_at(entry.run, 0), savings(entry.run, RULES[2]), "x", width=200)
    )


def test_stragglers_and_others_are_named(tmp_path):
    rows = simulate(problems=1, n=4)
    own = sorted(rows["samples"], key=lambda row: row["end"])
    own[0] |= {"answer": None, "correct": False}
    own[1] |= {"cancelled_by": "decision"}
    own[-1]["end"] += 10**9
    rows["problems"][0] |= {"end": own[-1]["end"], "decided_at": own[-1]["end"]}
    (entry,) = load(write_recording(tmp_path / "x", rows).path)
    notes = [row.note for row in sample_rows(problem_at(entry.run, 0), 80)]
    assert notes[0] == "no answer"
    assert notes[1] == "cancelled"
    assert notes[-1] == "straggler"


def test_a_problem_in_flight_is_drawn(tmp_path):
    rows = simulate(problems=3, n=2)
    for name in ("end", "decided_at", "answer", "correct"):
        rows["problems"][-1][name] = None
    own = [row for row in rows["samples"] if row["problem_id"] == "p2"]
    own[0] |= {"end": None, "output_tokens": None, "think_end": None, "answer": None}
    (entry,) = load(write_recording(tmp_path / "x", rows, complete=False).path)
    problem = problem_at(entry.run, 2)
    assert problem.samples[-1].end is None
    assert bar(problem.samples[-1], problem.span_s, 20).endswith(">")
    assert vote_lines(problem, width=78) == []
