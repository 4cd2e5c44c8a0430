"""Samples and steps of recordings that nobody looks at are let go, and come back when needed."""

from functools import partial

import pytest

from tests.advisor.synthetic import VOTE16, engine_of, record
from tests.traces.synthetic import engine_config, simulate, write_recording
from tests.tui.pilot import opened, settle, text_of
from tui.app.app import TtscopeApp
from tui.screens.entries import fit_frames, load
from tui.screens.run.screen import RunScreen

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for problems, name in ((10, "one"), (20, "two"), (5, "three")):
        engine = engine_config(max_num_seqs=problems)
        write_recording(
            folder / name, simulate(problems=problems, n=4, seqs=problems), engine=engine
        )
    return folder


def test_the_largest_go_first_and_what_is_shown_stays(folder):
    one, two, three = (load(folder / name)[0] for name in ("one", "two", "three"))
    assert two.frame_bytes > one.frame_bytes > three.frame_bytes > 0
    entries = [one, two, three]
    assert fit_frames(entries, (), sum(each.frame_bytes for each in entries)) == entries
    kept = fit_frames(entries, (), one.frame_bytes + three.frame_bytes)
    assert [each.key for each in kept] == [each.key for each in entries]
    assert kept[0] is one
    assert kept[2] is three
    assert (kept[1].run.sample_rows, kept[1].run.step_rows, kept[1].frame_bytes) == (None, None, 0)
    assert kept[1].run.to_json() == two.run.to_json()
    assert kept[1].run.rows is two.run.rows
    shown = fit_frames(entries, {two.key}, 0)
    assert [each.frame_bytes > 0 for each in shown] == [False, True, False]


async def test_a_comparison_reads_them_again(tmp_path, monkeypatch):
    """Of the two, and of the repeats that tell the spread from run to run."""
    for seed, (name, seqs) in enumerate((("a", 4), ("a2", 4), ("a3", 4), ("b", 8))):
        engine = engine_of(max_num_seqs=seqs)
        record(tmp_path / name, engine, VOTE16, problems=12, seed=seed, drift=0.05 * seed)
    panels = []
    for most_bytes in (10**9, 0):
        fitted = partial(fit_frames, most_bytes=most_bytes)
        monkeypatch.setattr("tui.screens.library_app.fit_frames", fitted)
        async with opened(TtscopeApp([tmp_path]), (120, 40)) as (app, pilot):
            let_go = [each.path.name for each in app.entries if not each.frame_bytes]
            assert len(let_go) == (0 if most_bytes else 4)
            await settle(pilot)
            for each in app.entries:
                if each.path.name in ("a", "b"):
                    app.toggle_mark(each.key)
            await settle(pilot)
            panels.append(text_of(app, "#detail"))
    assert "throughput" in panels[0] and "measured by 3" in panels[0]
    assert panels[0] == panels[1]


async def test_a_run_that_was_let_go_is_read_again(folder, monkeypatch):
    monkeypatch.setattr("tui.screens.library_app.fit_frames", partial(fit_frames, most_bytes=0))
    async with opened(TtscopeApp([folder]), (120, 40)) as (app, pilot):
        for name, problems in (("two", 20), ("one", 10), ("two", 20)):
            await pilot.press("1")
            app.open_run(next(each for each in app.entries if each.path.name == name))
            await settle(pilot)
            assert isinstance(app.screen, RunScreen)
            title = text_of(app, "#title")
            assert f"problem 1 of {problems}" in title
            assert app.screen.model.play is not None
            whole = [each.path.name for each in app.entries if each.frame_bytes]
            assert whole == [name]


async def test_a_run_that_is_gone_when_it_is_wanted_again(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("tui.screens.library_app.fit_frames", partial(fit_frames, most_bytes=0))
    for name in ("a", "b"):
        write_recording(tmp_path / name, simulate(problems=4, n=2))
    async with opened(TtscopeApp([tmp_path]), (120, 40)) as (app, pilot):
        other = next(each for each in app.entries if not each.frame_bytes)
        for part in other.path.iterdir():
            part.unlink()
        app.open_run(other)
        await settle(pilot)
        (broken,) = (each for each in app.entries if each.run is None)
        assert broken.path == other.path
        assert "no recording.json" in broken.error
