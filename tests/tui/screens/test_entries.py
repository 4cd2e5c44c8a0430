from __future__ import annotations

from pathlib import Path

import pytest

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import LARGE, SMALL, FakeAdvisor
from traces.foreign.steps.forward_passes import import_passes
from traces.schema.advice import Budget
from tui.report.material import gather_material
from tui.screens.advice.rows import paste_text
from tui.screens.entries import (
    COLUMNS,
    cell_text,
    fitting_columns,
    foreseen,
    listed,
    load,
    matches,
    recording_paths,
    sort_key,
)
from tui.screens.index import Indexes
from tui.text.fronts import candidates


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


def test_what_advice_learns_of_is_foreseen_where_all_is_whole(folder):
    whole, cut = (listed(folder / name, Indexes()) for name in "ab")
    (found,) = foreseen(whole)
    assert found.teaches and found.run is None and not whole[0].teaches
    assert found.key == load(folder / "a")[0].key
    assert foreseen([*whole, *cut]) is None


def test_filter_and_sort(folder):
    good, cut = load(folder / "a")[0], load(folder / "b")[0]
    assert matches(good, "toy maj|greedy")
    assert matches(good, "")
    assert not matches(good, "toy greedy")
    assert matches(good, "t") and matches(good, "oy") and not matches(good, "o")
    assert "seqs" in good.title and not matches(good, "s")  # every engine has such words
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


def test_candidates_are_marked_once():
    advice = FakeAdvisor([]).recommend(Budget())
    rows = candidates(advice)
    assert [(row.symbol, row.pick) for row in rows] == [("A", LARGE), ("B", SMALL)]
    assert paste_text(LARGE).splitlines() == [
        "vllm serve large --max-num-seqs 8",
        "# policy: maj@4, temperature 0.8",
    ]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_runs_of_one_configuration_have_their_recordings_names(folder, tmp_path, width):
    names = ("first", "live-localhost-8137-20261128-051924")
    for name in names:
        write_recording(tmp_path / name, simulate(problems=2, n=1))
    alike = [load(tmp_path / name)[0] for name in names]
    columns = [column for column, _ in fitting_columns(alike, width)]
    (named,) = [column for column in columns if column.header == "recording"]
    cells = [cell_text(named, entry, {}, width) for entry in alike]
    assert cells == ["first", names[1] if width == 200 else "live-loc…8-051924"]
    one = [column.header for column, _ in fitting_columns(alike[:1], 80)]
    assert "recording" not in one


@pytest.mark.slow
def test_forward_passes_are_no_servers_on_the_live_screen_and_teach_advice(tmp_path):
    foreign = Path(__file__).parents[2] / "data" / "foreign"
    import_passes(sorted(foreign.glob("fpm_dynamo.4192.*")), tmp_path / "passes", model="demo")
    (entry,) = load(tmp_path / "passes")
    assert entry.teaches and not entry.is_watched
    found = gather_material([entry.recording], {"max_latency": "2s"}, seed=0)
    assert found.advice is not None and found.no_advice is None
