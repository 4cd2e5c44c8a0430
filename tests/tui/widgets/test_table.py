from __future__ import annotations

from rich.text import Text
from textual.app import App
from textual.widgets import Static

from tui.widgets.table import RowTable


class Rows(App):
    CSS = "RowTable { height: 1fr; } Static { height: auto; }"

    def compose(self):
        yield RowTable(id="rows")
        yield Static("one line", id="told")


async def test_the_cursor_stays_in_sight_when_the_table_loses_rows():
    app = Rows()
    async with app.run_test(size=(40, 20)) as pilot:
        table = app.query_one(RowTable)
        table.add_column("name")
        for row in range(30):
            table.add_row(Text(str(row)))
        await pilot.press("end")
        await pilot.pause()
        app.query_one(Static).update("\n".join(["of the last row"] * 10))
        await pilot.pause()
        last = table.scroll_offset.y + table.size.height - 1  # without the header
        assert table.scroll_offset.y <= table.cursor_row < last
