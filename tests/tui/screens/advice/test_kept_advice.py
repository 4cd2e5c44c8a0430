"""The Advice screen as it was kept, in the states and sizes that `test_seen.py` lacks."""

from pathlib import Path

import pytest

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from tests.tui.kept_screens import SIZES, is_kept
from tests.tui.pilot import opened, press
from tui.app.app import TtscopeApp

pytestmark = pytest.mark.slow


async def test_states(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recording(Path("runs/one"), simulate(problems=10, n=4))
    limits = {"min_accuracy": "0.7"}
    app = TtscopeApp([Path("runs")], FakeAdvisor, limits=limits, screen="advice")
    async with opened(app) as (_, pilot):
        await is_kept(pilot, "advice", SIZES[1:])
        await press(pilot, "f")
        await is_kept(pilot, "advice-front", SIZES[1:])
        await press(pilot, "f", "w")
        await is_kept(pilot, "advice-what-if")
        await press(pilot, "escape", "b", "tab", *"0.1s", "enter")
        await is_kept(pilot, "advice-nothing-fits", SIZES[:1])
