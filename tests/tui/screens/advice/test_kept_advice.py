"""The Advice screen as it was kept, in each of its states."""

from pathlib import Path

import pytest

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from tests.tui.kept_screens import is_kept
from tests.tui.pilot import opened, press
from tui.app.app import TtscopeApp

pytestmark = pytest.mark.slow


async def test_states(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recording(Path("runs/one"), simulate(problems=10, n=4))
    limits = {"min_accuracy": "0.7"}
    app = TtscopeApp([Path("runs")], FakeAdvisor, limits=limits, screen="advice")
    async with opened(app) as (_, pilot):
        await is_kept(pilot, "advice")
        await press(pilot, "f")
        await is_kept(pilot, "advice-front")
        await press(pilot, "f", "b")
        await is_kept(pilot, "advice-budget")
        await press(pilot, "escape", "w")
        await is_kept(pilot, "advice-what-if")
        await press(pilot, "escape", "b", "tab", *"0.1s", "enter")
        await is_kept(pilot, "advice-nothing-fits")
