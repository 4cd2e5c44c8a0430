"""`ttscope tui`: what is checked before the app starts, and what it leaves with."""

from __future__ import annotations

import pytest

from tui.app import TtscopeApp


@pytest.mark.parametrize("code", [0, 1])
def test_an_app_that_broke_is_not_told_as_a_success(run, monkeypatch, code):
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr(TtscopeApp, "run", lambda app: setattr(app, "_return_code", code))
    assert run("tui")[0] == code
