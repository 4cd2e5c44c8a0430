from __future__ import annotations

import pytest
from textual.app import App
from textual_hires_canvas import Canvas

from tui.text.layout import fitting_ticks, tick_labels
from tui.widgets.scatter import Scatter

LIMITS = ((0.0, 2.7), (0.0347, 0.19), (0.2, 0.9), (0.0, 0.15), (90.0, 490.3), (1.2, 1.31))


class Plot(App):
    def compose(self):
        yield Scatter(id="scatter")


@pytest.mark.parametrize("width", [20, 23, 30, 41, 80])
async def test_labels_of_the_x_axis_do_not_overlap(width):
    app = Plot()
    async with app.run_test(size=(width, 12)) as pilot:
        plot = app.query_one(Scatter)
        plot.margin_top, plot.margin_left, plot.margin_bottom = 0, 7, 3
        await pilot.pause()
        for low, high in LIMITS:
            found = fitting_ticks(low, high, plot.columns)
            plot.clear()
            plot.scatter([low, high], [0.0, 1.0])
            plot.set_xlimits(low, high)
            plot.set_xticks(found)
            plot.refresh(layout=True)
            await pilot.pause()
            assert plot._scale_rectangle.width == plot.columns
            drawn = "".join(plot.query_one("#margin-bottom", Canvas)._buffer[0])
            assert drawn.split() == tick_labels(found), (low, high)
            assert len(found) >= 2
