"""Containers without a frame are drawn as Textual draws its own."""

from textual.app import App
from textual.containers import Container, Grid, Horizontal
from textual.geometry import Region
from textual.widgets import Static

from tests.tui.pilot import settle
from tui.widgets.still import Box, StillGrid, StillRow

PAIRS = ((StillRow, Horizontal), (StillGrid, Grid), (Box, Container))


class Pairs(App):
    CSS = """
    Screen { background: #102030; }
    Horizontal, Grid, Container { height: 3; background: $accent 30%; color: $error; }
    """

    def compose(self):
        for ours, theirs in PAIRS:
            for kind in (ours, theirs):
                with kind():
                    yield Static("words")


async def test_a_container_without_a_frame_looks_as_textuals_own():
    app = Pairs()
    async with app.run_test(size=(30, 20)) as pilot:
        await settle(pilot)
        for ours, kind in PAIRS:
            theirs = next(each for each in app.query(kind) if type(each) is kind)
            for crop in (Region(0, 0, 30, 3), Region(4, 1, 9, 2)):
                drawn = app.query_one(ours).render_lines(crop)
                assert drawn == theirs.render_lines(crop)
                assert [each.cell_length for each in drawn] == [crop.width] * crop.height
