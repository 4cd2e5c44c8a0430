"""The Run screen as it was kept: with engine steps, of outcomes alone, and of watched servers."""

from pathlib import Path

import pytest

from tests.traces.synthetic import simulate, write_recording
from tests.tui.kept_screens import is_kept
from tests.tui.live_recordings import write_watched
from tests.tui.pilot import opened, press, settle, text_of
from tests.tui.screens.recordings.test_kept_recordings import outcomes
from tui.app.app import TtscopeApp
from tui.screens.base import KeyFooter
from tui.screens.library import import_into

pytestmark = pytest.mark.slow


async def test_states(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recording(Path("runs/vote"), simulate(problems=12, n=4))
    write_watched(Path("runs/watched"), spans=False, engines=2)
    outcomes(Path("evals.jsonl"))
    import_into("evals.jsonl", Path("runs"))
    async with opened(TtscopeApp([Path("runs")])) as (app, pilot):

        async def show(name):
            await press(pilot, "1")
            app.open_run(next(each for each in app.entries if each.path.name == name))
            app.switch_mode("run")
            await settle(pilot)

        await show("vote")
        await press(pilot, "w", "r")
        await is_kept(pilot, "run")
        await show("watched")
        await is_kept(pilot, "run-watched")
        await show("evals")
        await is_kept(pilot, "run-outcomes")
        keys = app.screen.query_one(KeyFooter).shown.values()
        assert "problem" in keys and not {"play", "time", "rule"} & set(keys)
        assert "notes: k)" in text_of(app, "#head")
        rows = text_of(app, "#bars").splitlines()[1:]  # a row each, though without a time
        assert [row.split()[0] for row in rows] == ["0", "1", "2"]
