"""A table of rows whose cursor the usual keys move."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import DataTable


class RowTable(DataTable[Text]):
    """A DataTable of rows: home and g lead to the first, end and G to the last, j and k by one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "cursor_down", "a row down", show=False, tooltip="Go a row down."),
        Binding("up,k", "cursor_up", "a row up", show=False, tooltip="Go a row up."),
        Binding("home,g", "scroll_top", "first row", show=False, tooltip="Go to the first row."),
        Binding("end,G", "scroll_bottom", "last row", show=False, tooltip="Go to the last row."),
    ]

    def __init__(self, *, id: str, zebra_stripes: bool = False) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=zebra_stripes)

    def on_resize(self, _: Resize) -> None:
        """Keep the row under the cursor in sight: what is told of it may take rows of the table."""
        if self.row_count:
            self.move_cursor(row=self.cursor_row)
