from __future__ import annotations

import pytest
from textual.app import App

from tests.tui.pilot import screen_text
from tui.app.themes import DARK, LIGHT
from tui.text.layout import fitting_ticks, tick_labels
from tui.widgets.scatter import Axis, Scatter

LIMITS = ((0.0, 2.7), (0.0347, 0.19), (0.2, 0.9), (0.0, 0.15), (90.0, 490.3), (1.2, 1.31))
UP = Axis(label="accuracy", low=0.0, high=1.0, ticks=(0.0, 0.5, 1.0))


class Plot(App):
    def compose(self):
        yield Scatter(id="scatter", draw=lambda: None)


@pytest.mark.parametrize("width", [20, 23, 30, 41, 80])
async def test_labels_of_the_x_axis_do_not_overlap(width):
    app = Plot()
    async with app.run_test(size=(width, 12)) as pilot:
        plot = app.query_one(Scatter)
        for low, high in LIMITS:
            found = fitting_ticks(low, high, plot.columns)
            plot.begin(Axis(label="s", low=low, high=high, ticks=found), UP)
            await pilot.pause()
            lines = screen_text(app).splitlines()
            assert lines[1].count("━") + lines[1].count("┻") == plot.columns
            assert lines[9].split() == tick_labels(found), (low, high)
            assert lines[11].strip() == "s" and len(found) >= 2


async def test_what_is_drawn_lies_where_the_axes_say():
    app = Plot()
    async with app.run_test(size=(29, 15)) as pilot:  # 20 columns by 9 rows in the frame
        plot = app.query_one(Scatter)
        assert (plot.columns, plot.rows) == (20, 9)
        plot.begin(Axis(label="t (s)", low=0.0, high=2.0, ticks=(1.0,)), UP)
        plot.line([0.0, 1.99], [0.01, 0.01], "#56B4E9")
        plot.points([0.05, 1.0, 1.95, 2.5], [0.95, 0.5, 0.5, 0.5], "A", "bold #2FBF96")
        plot.bar(1.0, 0.5, "#E4E6E8", across=0.4)
        plot.bar(1.0, 0.5, "#E4E6E8", up=0.2)
        await pilot.pause()
        lines = screen_text(app).splitlines()
        inside = [line[8:28] for line in lines[2:11]]
        assert inside[0] == f"A{' ' * 19}"
        assert inside[4] == "      ╶───│───╴    A"
        assert [row for row, line in enumerate(inside) if line[10] in "│╷╵"] == [2, 3, 4, 5, 6]
        assert set(inside[8]) == {"⣀"} or set(inside[8]) == {"⠤"}
        assert lines[1][18] == "┻" and lines[11][18] == "┳" and lines[12].strip() == "1"
        assert [line[:8] for line in (lines[0], lines[6])] == ["  accura", "   0.5 ┫"]


def luminance(color):
    """Return the relative luminance of WCAG 2.2, from 0 to 1."""
    parts = [part / 255 for part in color.triplet]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [DARK, LIGHT])
async def test_words_stand_out_from_the_ground_and_the_frame_less(theme):
    app = Plot()
    async with app.run_test(size=(29, 15)) as pilot:
        app.register_theme(theme)
        app.theme = theme.name
        axis = Axis(label="t (s)", low=0.0, high=2.0, ticks=(1.0,))
        app.query_one(Scatter).begin(axis, UP)
        await pilot.pause()
        strips = app.screen._compositor.render_strips()

        def contrast(words):
            style = next(each.style for strip in strips for each in strip if words in each.text)
            dark, light = sorted(map(luminance, (style.bgcolor, style.color)))
            return (light + 0.05) / (dark + 0.05)

        assert min(map(contrast, ("accuracy", "t (s)", "0.5"))) > 4.5
        assert 1.5 < contrast("━") < 4.5
