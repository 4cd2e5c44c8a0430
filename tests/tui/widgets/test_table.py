from __future__ import annotations

from rich.console import Console
from rich.text import Text
from textual.app import App
from textual.widgets import DataTable, Static

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


SIDES = (None, "left", "right")
CELLS = [
    "plain",
    "",
    "much too long for it",
    "  in front",
    "behind  ",
    "広い文字です",
    "a\tb",
    "1\n2",
]


class One(App):
    def __init__(self, table):
        super().__init__()
        self.table = table

    def compose(self):
        yield self.table

    def on_mount(self):
        for width, side in zip((1, 9, 9), SIDES, strict=True):
            self.table.add_column(Text("a head", justify=side), width=width)
        for at, text in enumerate(CELLS):
            style = ("", "bold", "dim")[at % 3]
            self.table.add_row(*[Text(text, style=style, justify=side) for side in SIDES])
        self.table.move_cursor(row=3)


def looks(table):
    """Return the characters of a table's lines with their styles; a space has no weight."""
    lines = table.render_lines(table.size.region)
    return [
        [
            (letter, look.color, look.bgcolor, letter != " " and (look.bold, look.dim), look.meta)
            for letter, look in ((letter, each.style) for each in line for letter in each.text)
        ]
        for line in lines
    ]


async def test_rows_look_as_textual_draws_them_and_no_cell_goes_through_rich(monkeypatch):
    render, through_rich, shown = Console.render_lines, [], []
    monkeypatch.setattr(
        Console, "render_lines", lambda *of, **how: through_rich.append(of) or render(*of, **how)
    )
    ours = RowTable(id="ours", zebra_stripes=True)
    for table in (ours, DataTable(cursor_type="row", zebra_stripes=True)):
        app, seen = One(table), []
        shown.append(seen)
        async with app.run_test(size=(40, 12)) as pilot:
            for theme, focused in (("textual-dark", table), ("textual-light", None)):
                app.theme = theme
                app.screen.set_focus(focused)
                await pilot.pause()
                seen += looks(table)
        assert bool(through_rich) == (table is not ours)
    assert shown[0] == shown[1]
