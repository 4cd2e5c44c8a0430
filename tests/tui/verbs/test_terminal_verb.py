"""`ttscope tui`: what is checked before the app starts, and what it leaves with."""

from __future__ import annotations

import pytest

from tests.tui.pilot import opened
from tui.app.app import TtscopeApp


@pytest.mark.parametrize("code", [0, 1])
def test_an_app_that_broke_is_not_told_as_a_success(run, monkeypatch, code):
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr(TtscopeApp, "run", lambda app: setattr(app, "_return_code", code))
    assert run("tui")[0] == code


@pytest.mark.parametrize("picture", [[], ["--screenshot", "x.svg"]])
def test_names_are_checked_before_the_app_starts(run, tmp_path, picture):
    pytest.importorskip("aiconfigurator_core")
    told = run.refused("tui", "--gpu", "nosuch", *picture, code=2)
    assert "nosuch" in told and "h100_sxm" in told
    (tmp_path / "k.toml").write_text("[run]\nfly = 'p'\n")
    assert "no run.fly" in run.refused("tui", "--keys", "k.toml", *picture, code=2)
    assert not (tmp_path / "x.svg").exists()


def test_the_screen_is_the_first_and_a_wrong_one_is_refused(run, monkeypatch):
    monkeypatch.setattr("gc.freeze", lambda: None)
    shown = []
    monkeypatch.setattr(TtscopeApp, "run", lambda app: shown.append(app.DEFAULT_MODE))
    assert run("tui", "--screen", "advice")[0] == 0
    assert run("tui")[0] == 0
    assert shown == ["advice", "recordings"]
    assert "--screen advise: wants one of recordings, run, live, advice" in run.refused(
        "tui", "--screen", "advise", code=2
    )


@pytest.mark.slow
@pytest.mark.parametrize("screen", ["recordings", "run", "live", "advice"])
async def test_the_app_opens_on_a_screen(tmp_path, screen):
    async with opened(TtscopeApp([tmp_path], screen=screen)) as (app, _):
        assert app.current_mode == screen
