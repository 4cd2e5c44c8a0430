from __future__ import annotations

import pytest

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import LARGE, SMALL, FakeAdvisor
from traces.schema import Budget
from traces.series import series
from tui.run_views import (
    axis_line,
    bar,
    chart_lines,
    extent_line,
    problem_at,
    sample_rows,
    step_lines,
    vote_lines,
)
from tui.views import (
    COLUMNS,
    candidates,
    load,
    matches,
    miss_lines,
    paste_text,
    pick_lines,
    points,
    recording_paths,
    sort_key,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    write_recording(folder / "a", simulate(problems=8, n=4))
    write_recording(folder / "b", simulate(problems=8, n=1), complete=False)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return load(folder / "a")[0].run


def test_a_folder_a_recording_and_nothing(folder, tmp_path):
    assert recording_paths([folder, folder / "a"]) == [folder / "a", folder / "b"]
    missing = tmp_path / "none"
    (entry,) = load(missing)
    assert entry.run is None
    assert "no such recording" in entry.error
    assert not entry.comparable


def test_a_damaged_recording_is_an_entry(folder, tmp_path):
    write_recording(tmp_path / "x", simulate(problems=2, n=1))
    part = next((tmp_path / "x").glob("samples-*.parquet"))
    part.write_bytes(part.read_bytes()[:50])
    (entry,) = load(tmp_path / "x")
    assert "truncated" in entry.error


def test_filter_and_sort(folder):
    good, cut = load(folder / "a")[0], load(folder / "b")[0]
    assert matches(good, "toy maj|greedy")
    assert matches(good, "")
    assert not matches(good, "toy greedy")
    assert not cut.comparable
    p50 = next(column for column in COLUMNS if column.header == "p50 s")
    energy = next(column for column in COLUMNS if column.header == "J/pb")
    assert sort_key(cut, p50) < sort_key(good, p50)
    assert sort_key(good, energy)[0] == 2


def test_every_cell_is_text(run):
    for column in COLUMNS:
        assert isinstance(column.cell(run), str)
    cells = {column.header: column.cell(run) for column in COLUMNS}
    assert cells["J/pb"] == cells["$/pb"] == "-"


def test_charts_have_one_width(run):
    found = series(run.step_rows, 101, 50)
    for cursor in (0, 20, 49):
        lines = chart_lines(found, cursor)
        assert {len(line) for line in lines} == {14 + 50 + 8}
        assert axis_line(found, cursor).index("^") == 14 + cursor
    row = run.rows.row(0, named=True)
    assert extent_line(found, row["arrival"], row["end"]).startswith("problem       =")


def test_steps_say_what_they_computed(run):
    text = " ".join(step_lines(run, 0, width=78))
    assert "step 0" in text
    assert "prefill 8 req, 80 tok" in text
    assert step_lines(run, -1, width=78) == ["no step here: the engine was idle"]


def test_bars_follow_the_clock(run):
    problem = problem_at(run, 0)
    assert [each.end for each in problem.samples] == sorted(each.end for each in problem.samples)
    for sample, left, line in sample_rows(problem, 80):
        assert len(left + line) <= 80
        assert "p" in line
        assert line.rstrip()[-1] in "A="
        assert line == bar(sample, problem.span_s, 80 - 15 - 6)
    last = sample_rows(problem, 80)[-1][2]
    assert len(last) == 80 - 15 - 6


def test_votes_converge_to_the_answer(run):
    for number in range(run.rows.height):
        problem = problem_at(run, number)
        text = " ".join(vote_lines(problem, width=78))
        final = problem.row["answer"]
        votes = [each.answer for each in problem.samples].count(final)
        assert text.startswith(f"vote  {final}: ")
        assert f"{votes}/4" in text


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


def test_candidates_are_marked_once():
    advice = FakeAdvisor([]).recommend(Budget())
    rows = candidates(advice)
    assert [(row.marks, row.pick) for row in rows] == [("@o", LARGE), ("o+", SMALL)]
    text = "\n".join(pick_lines(rows[0], advice, width=78))
    for wanted in ("no limit is given", "vllm serve large", "why", "regret", "next", "3.20 s*"):
        assert wanted in text, wanted
    assert "why" not in "\n".join(pick_lines(rows[1], advice, width=78))
    assert paste_text(LARGE).splitlines() == [
        "vllm serve large --max-num-seqs 8",
        "# policy: maj@4, temperature 0.8",
    ]
    assert points(rows) == {"@": ([1.6], [0.93]), "o": ([0.4], [0.71])}


def test_nothing_fits_names_the_nearest():
    advice = FakeAdvisor([]).recommend(Budget(max_latency_s=0.1))
    text = "\n".join(miss_lines(advice, width=78))
    assert "Nothing fits" in text
    assert "wanted 100 ms, nearest 600 ms [540, 660]" in text
    assert [row.marks for row in candidates(advice)] == ["!"]
