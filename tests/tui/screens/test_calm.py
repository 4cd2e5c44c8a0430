"""How often the app draws for a key, and what it lays out for another text."""

import pytest
from textual.app import App

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from tests.tui.pilot import opened, press, settle, text_of
from tests.tui.screens.advice.test_layouts import made
from tui.app.app import TtscopeApp
from tui.app.themes import LIGHT
from tui.screens.advice.screen import AdviceScreen, Advised
from tui.screens.base import CalmScreen
from tui.widgets.scatter import Scatter
from tui.widgets.still import StillText


def times_called(monkeypatch, widget, name):
    """Return a list with an entry for each call of a method of a widget."""
    times, method = [], getattr(widget, name)

    def called(self, *given, **named):
        times.append(named)
        return method(self, *given, **named)

    monkeypatch.setattr(widget, name, called)
    return times


@pytest.mark.slow
async def test_a_key_draws_what_changes_and_once(tmp_path, monkeypatch):
    charts = times_called(monkeypatch, Scatter, "render_lines")
    screens = times_called(monkeypatch, AdviceScreen, "refresh")
    async with opened(made(tmp_path), (120, 40)) as (app, pilot):
        screens.clear()
        await press(pilot, "b")
        assert app.screen.focused.id == "field_min_accuracy"
        assert not screens  # another focus draws two panels, not all
        await press(pilot, "escape")
        charts.clear()
        await press(pilot, "f", "f", "f", "f")  # each lays out, and the chart has another size
        assert len(charts) <= 6
        await press(pilot, "m")
        screens.clear()
        await pilot.pause(0.2)
        assert len(screens) <= 2  # behind a question it rests


async def test_a_screen_is_made_before_its_key_and_asks_nothing_until_shown(tmp_path, monkeypatch):
    composed, heard = times_called(monkeypatch, AdviceScreen, "compose_body"), []
    write_recording(tmp_path / "one", simulate(problems=4, n=2))
    app = TtscopeApp([tmp_path], FakeAdvisor, limits={"min_accuracy": "0.7"})
    app.learns_ahead = True
    async with opened(app, message_hook=heard.append) as (_, pilot):
        assert len(composed) == 1 and not any(isinstance(each, Advised) for each in heard)
        await press(pilot, "t", "4")
        assert len(composed) == 1 and "Run large" in text_of(app, "#answer")
        assert app.screen.styles.background.hex == LIGHT.background


class Calm(App):
    def get_default_screen(self):
        return CalmScreen()


async def test_what_waits_for_a_drawing_runs_though_a_layout_paused_the_timer(monkeypatch):
    app, ran = Calm(), []
    async with app.run_test() as pilot:
        await pilot.pause(0.1)
        monkeypatch.setattr(app.screen._update_timer, "resume", lambda: None)  # it is asleep
        app.screen._compositor_refresh()
        app.screen._layout_required = True
        app.screen.call_after_refresh(ran.append, True)
        await pilot.pause(0.1)
        assert ran


class Texts(App):
    def compose(self):
        yield StillText(id="text")


async def test_a_text_of_as_many_rows_asks_for_no_layout():
    app = Texts()
    async with app.run_test(size=(20, 10)) as pilot:
        text, layouts = app.query_one(StillText), []
        app.screen.screen_layout_refresh_signal.subscribe(app.screen, layouts.append)
        text.update("one")
        await settle(pilot)
        for told, height, asked in (("two", 1, False), ("x " * 15, 2, True), ("1\n2", 2, False)):
            layouts.clear()
            text.update(told)
            await settle(pilot)
            assert (text.size.height, bool(layouts)) == (height, asked)
            assert str(text.render()) == told
