"""What the app does about styles when its theme changes."""

from __future__ import annotations

from textual.app import App
from textual.containers import Vertical
from textual.widgets import Static

from tests.tui.pilot import settle
from tui.app.themes import DARK, LIGHT, ThemedStylesheet


class Themed(App):
    CSS = """
    Vertical { color: $accent; background: $panel; border: round $primary; }
    Static { color: $error; background: $surface; }
    """

    def __init__(self):
        super().__init__()
        self.stylesheet = ThemedStylesheet()
        self.stylesheet.set_variables(self.get_css_variables())

    def compose(self):
        with Vertical():
            yield Static("words")

    def on_mount(self):
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self.theme = DARK.name


async def test_another_theme_asks_for_one_drawing_a_widget_not_one_a_colour(monkeypatch):
    app, asked = Themed(), []
    async with app.run_test(size=(30, 10)) as pilot:
        await settle(pilot)
        words = app.query_one(Static)
        refresh = words.refresh
        monkeypatch.setattr(words, "refresh", lambda **how: asked.append(how) or refresh(**how))
        app.theme = LIGHT.name
        await settle(pilot)
        assert words.styles.color.hex == app.theme_variables["error"]
        assert words.parent.styles.color.hex == app.theme_variables["accent"]
        assert words.styles.background.hex == LIGHT.surface
        assert len(asked) <= 4  # for the app, the screen, the column and itself


async def test_nothing_is_parsed_where_nothing_is_new(monkeypatch):
    app, parsed = Themed(), []
    async with app.run_test(size=(30, 10)) as pilot:
        await settle(pilot)
        parse = app.stylesheet.parse
        monkeypatch.setattr(app.stylesheet, "parse", lambda: parsed.append(1) or parse())
        app.refresh_css(animate=False)
        assert not parsed
        app.stylesheet.add_source("Static { color: $success; }")
        app.refresh_css(animate=False)
        assert len(parsed) == 1
        assert app.query_one(Static).styles.color.hex == DARK.success
