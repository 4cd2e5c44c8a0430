"""What the app does about styles when its theme changes."""

from __future__ import annotations

import pytest
from textual.app import App
from textual.containers import Vertical
from textual.widgets import Input, Static

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from tests.tui.pilot import opened, press, settle
from tui.app.app import TtscopeApp
from tui.app.themes import DARK, LIGHT, ThemedStylesheet


class Themed(App):
    CSS = """
    Vertical { color: $accent; background: $panel; border: round $primary; }
    Static { color: $error; background: $surface; }
    .open Static { color: $success; }
    Input .input--placeholder { color: $accent; }
    Input.open .input--placeholder { color: $primary; }
    """

    def __init__(self):
        super().__init__()
        self.stylesheet = ThemedStylesheet()
        self.stylesheet.set_variables(self.get_css_variables())

    def compose(self):
        with Vertical():
            yield Static("words")
            yield Input(placeholder="type")

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
        assert len(asked) == 1


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


async def test_styles_of_a_theme_are_kept_until_something_else_changes_them():
    app = Themed()
    async with app.run_test(size=(30, 10)) as pilot:
        await settle(pilot)
        words, field = app.query_one(Static), app.query_one(Input)

        async def shows(*names):
            for theme in (LIGHT, DARK, LIGHT):
                app.theme = theme.name
                await settle(pilot)
                placeholder = field.get_component_styles("input--placeholder")
                found = [each.color.hex for each in (words.styles, placeholder)]
                assert found == [app.theme_variables[name] for name in names]

        await shows("error", "accent")
        words.parent.add_class("open")
        field.add_class("open")
        await shows("success", "primary")
        words.parent.remove_class("open")
        app.stylesheet.add_source("Static { color: $secondary; }")
        app.refresh_css(animate=False)
        await shows("secondary", "primary")


def found_again(app):
    """Return which nodes of a screen have other styles once they are found again."""

    def styles(node):
        names = sorted(node.COMPONENT_CLASSES)
        parts = [node.get_component_styles(each).get_rules() for each in names]
        return node.styles.base.get_rules(), parts

    nodes = [*app.screen.walk_children(with_self=True)]
    before = [styles(node) for node in nodes]
    for node in nodes:
        app.stylesheet.apply(node)
    return [node for node, was in zip(nodes, before, strict=True) if styles(node) != was]


@pytest.mark.slow
async def test_another_theme_leaves_every_screen_as_if_it_began_with_it(tmp_path):
    write_recording(tmp_path / "one", simulate(problems=4, n=2))
    app = TtscopeApp([tmp_path], FakeAdvisor, limits={"min_accuracy": "0.7"})
    async with opened(app) as (_, pilot):
        for size in ((80, 24), (120, 40), (200, 60)):
            await pilot.resize_terminal(*size)
            for key in ("1", "i", "escape", "2", "4", "b", "escape", "f", "f", "e", "e"):
                await press(pilot, key)
                drawn = app.export_screenshot()
                for theme in (LIGHT, DARK):
                    app.theme = theme.name
                    await settle(pilot)
                    assert not found_again(app), (size, key)
                if not isinstance(app.focused, Input):  # whose cursor blinks
                    assert app.export_screenshot() == drawn, (size, key)
