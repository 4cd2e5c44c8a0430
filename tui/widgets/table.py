"""A table of rows whose cursor the usual keys move."""

from __future__ import annotations

from typing import ClassVar, cast

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.coordinate import Coordinate
from textual.events import Resize
from textual.widgets import DataTable
from textual.widgets.data_table import RowKey

SegmentLines = list[list[Segment]]  # as Textual has them: of each cell of a row


def fitted(cell: Text, width: int) -> str:
    """Return the first line of a cell in so many columns, cut or filled up."""
    text = cell.plain.partition("\n")[0].expandtabs()
    if cell.justify == "right":
        text = text.rstrip()
    filled = " " * (width - cell_len(text))
    return set_cell_size(filled + text if cell.justify == "right" else text + filled, width)


class RowTable(DataTable[Text]):
    """A DataTable of rows: home and g lead to the first, end and G to the last, j and k by one.

    A cell is a line in one style.
    """

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

    def _render_line_in_row(
        self,
        row_key: RowKey,
        line_no: int,
        base_style: Style,
        cursor_location: Coordinate,
        hover_location: Coordinate,
    ) -> tuple[SegmentLines, SegmentLines]:
        """Draw a row at once: Textual draws each cell by a tree of rich's for several lines.

        It does so for all rows whenever the table has another size, or the focus moves.
        """
        at = self._row_locations.get(row_key)
        at = -1 if at is None else at  # the header
        look, over = self._get_styles_to_render_cell(
            at < 0,
            False,
            False,
            hover_location.row == at,
            cursor_location.row == at,
            self.show_cursor,
            self._show_hover_cursor,
            self.cursor_foreground_priority == "css",
            self.cursor_background_priority == "css",
        )
        look = self._get_row_style(at, base_style) + look
        cells = cast(list[Text], self._get_row_renderables(at).cells)
        row: SegmentLines = []
        room, pad = self.size.width, self.cell_padding
        for place, (column, cell) in enumerate(zip(self.ordered_columns, cells, strict=True)):
            width = column.get_render_width(self)
            room -= width
            style = look + Style.from_meta({"row": at, "column": place})
            edge = Segment(" " * pad, style + over)
            shown = style + Style.parse(str(cell.style)) + over
            row.append([edge, Segment(fitted(cell, width - 2 * pad), shown), edge])
        beyond = look + Style.from_meta({"row": at, "column": 0, "out_of_bounds": True})
        row.append([Segment(" " * max(room, 0), beyond)])
        return [], row
