"""What a key of the Advice screen asks of Textual: layouts, and styles that are found again."""

import pytest

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from tests.tui.pilot import opened, press, text_of
from tui.app.app import TtscopeApp

pytestmark = pytest.mark.slow


def made(folder):
    """Return the app with an answer on the Advice screen."""
    write_recording(folder / "one", simulate(problems=10, n=4))
    return TtscopeApp([folder], FakeAdvisor, limits={"min_accuracy": "0.7"}, screen="advice")


async def test_layouts_and_styles(tmp_path, monkeypatch):
    app = made(tmp_path)
    async with opened(app) as (_, pilot):
        layouts, styled = [], []
        app.screen.screen_layout_refresh_signal.subscribe(app.screen, layouts.append)
        find = app.stylesheet.apply

        def apply(node, **given):
            styled.append(node)
            find(node, **given)

        monkeypatch.setattr(app.stylesheet, "apply", apply)
        await press(pilot, "f", "f")  # the first time something is drawn at all
        layouts.clear()
        await press(pilot, "f")
        assert len(layouts) == 1
        await press(pilot, "f")
        assert len(layouts) == 2
        assert "Run large" in text_of(app, "#answer")
        styled.clear()
        await press(pilot, "b", "escape")
        assert app.screen.query_one("#answer") in styled
        layouts.clear()
        await press(pilot, "f", "down", "up")  # other rows have other lines
        assert len(layouts) == 1
