"""Screen 1: every run in a table, and the paired differences of the marked ones."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widgets import DataTable, Input, Static
from textual.widgets.data_table import CellDoesNotExist
from textual.worker import get_current_worker

from traces.errors import TtscopeError
from traces.schema.formats import number
from traces.summary.comparison import Difference, compare
from traces.summary.run import Run
from tui.screens.base import ConfirmScreen, ModeScreen
from tui.screens.entries import (
    COLUMNS,
    Column,
    Entry,
    cell_text,
    fitting_columns,
    matches,
    sort_key,
)
from tui.screens.library import (
    ImportMade,
    delete_recording,
    failure,
    import_into,
    price_of,
    recordings_at,
    size_bytes,
)
from tui.screens.recordings.details import EMPTY, compared_lines, entry_lines, price_told, status_of

# What the workers of the Recordings screen tell it.


@dataclass
class ImportDone(Message):
    """Files of others are a recording now."""

    made: ImportMade


@dataclass
class Failed(Message):
    """Something that was asked for cannot be done."""

    text: str


class Pair:
    """Two runs by the rows of their problems, which stay the same until they are read again."""

    def __init__(self, first: Run, second: Run) -> None:
        self.runs = (first, second)
        self._rows = (first.rows, second.rows)  # kept, so that their ids stay theirs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pair) and all(map(operator.is_, self._rows, other._rows))

    def __hash__(self) -> int:
        return hash(tuple(map(id, self._rows)))


@dataclass
class Compared(Message):
    """Two marked runs were compared."""

    pair: Pair
    found: Difference


# The keys of the Recordings screen, and what it asks for.


QUESTIONS = {
    "open": "recordings, or folders of them, to open beside these",
    "price": "USD per device-hour, such as 2.5, or - for what the recordings say",
    "import": "profiler traces, one per rank, samples of evaluations, or a file of requests",
}
KEYS: list[BindingType] = [
    Binding("space", "mark", "mark", id="recordings.mark"),
    Binding("slash", "filter", "filter", id="recordings.filter"),
    Binding("s", "sort", "sort", id="recordings.sort"),
    Binding("r", "reverse", "reverse", id="recordings.reverse", show=False),
    Binding("u", "unmark", "unmark all", id="recordings.unmark", show=False),
    Binding("a", "advise", "advise", id="recordings.advise"),
    Binding("o", "ask('open')", "open", id="recordings.open"),
    Binding("i", "ask('import')", "import", id="recordings.import"),
    Binding("x", "delete", "delete", id="recordings.delete"),
    Binding("dollar_sign", "ask('price')", "price", id="recordings.price", show=False),
    Binding("escape", "leave_filter", "leave the field", show=False),
]

JustifyMethod = Literal["left", "right"]
Drawn = tuple[dict[str, str], bool, int]  # the cells of an entry, whether marked, at which width
WIDE = 100
MOST_GONE = 20  # rows that are taken out one by one


class RecordingsScreen(ModeScreen):
    """The table of runs; space marks, and marked runs are compared on the same problems."""

    MODE = "recordings"
    CSS_PATH = "recordings.tcss"
    AUTO_FOCUS = "#runs"
    BINDINGS: ClassVar[list[BindingType]] = KEYS

    def __init__(self) -> None:
        super().__init__()
        self._sort = 4
        self._reverse = False
        self._asking = "open"
        self._shown: list[Entry] = []
        self._drawn: dict[str, Drawn] = {}
        self._columns: list[tuple[Column, int]] = []
        self._compared: dict[Pair, Difference | None] = {}
        self._repeats_among = 0
        self._loading = True  # when the table was last filled

    def compose_body(self) -> ComposeResult:
        yield Input(placeholder="words, or a|b", id="filter", compact=True)
        yield Input(id="ask", compact=True)
        yield DataTable[Text](id="runs", cursor_type="row", zebra_stripes=True)
        yield Static(id="message", markup=False)
        with VerticalScroll(id="panel"):
            yield Static(id="detail", markup=False)

    def on_resize(self) -> None:
        self.show_library()

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#runs", DataTable)

    def _fit_columns(self) -> None:
        """Make the columns anew where others are shown, or wider ones.

        The table would measure every cell for their widths.
        """
        fitting = fitting_columns(self.ttscope.entries, self.app.size.width)
        if fitting == self._columns:
            return
        self._columns, self._drawn = fitting, {}
        table = self._table
        table.clear(columns=True)
        table.add_column("", key="mark", width=1)
        for column, width in fitting:
            side: JustifyMethod = "right" if column.right else "left"
            header = Text(column.header, justify=side)
            table.add_column(header, key=column.header, width=width)

    def show_library(self) -> None:
        """Bring the table to what is loaded, matches the filter and is sorted."""
        words = self.query_one("#filter", Input).value
        column = COLUMNS[self._sort]
        entries = [entry for entry in self.ttscope.entries if matches(entry, words)]
        entries.sort(key=lambda entry: sort_key(entry, column))
        if self._reverse:
            sortable = [entry for entry in entries if sort_key(entry, column)[0] < 2]
            entries = sortable[::-1] + entries[len(sortable) :]
        self._shown = entries
        current = self._current_key()
        self._fit_columns()
        self._fill(entries, current)
        arrow = "^" if self._reverse else "v"
        status = status_of(
            shown=len(entries),
            total=len(self.ttscope.entries),
            marked=len(self.ttscope.marked),
            loading=self.ttscope.loading_paths,
            sort=f"{column.header} {arrow}",
            price=self.ttscope.price,
            wide=self.app.size.width >= WIDE,
        )
        self.set_status(status)
        self._show_panel()

    def _fill(self, entries: list[Entry], current: str | None) -> None:
        """Change the cells that differ; rows that stay are kept, for new ones are measured."""
        table = self._table
        keys = [entry.key for entry in entries]
        marked = set(self.ttscope.marked)
        drawn = {
            each.key: (each.cells, each.key in marked, self.app.size.width) for each in entries
        }
        at_top = table.cursor_row <= 0
        if at_top and self._loading and keys:  # when the last numbers come, too
            current = keys[0]
        self._loading = self.ttscope.loading_paths
        gone = self._drawn.keys() - set(keys)
        if len(gone) > MOST_GONE or not self._drawn:
            table.clear()
            self._drawn, gone = {}, set()
        for key in gone:
            table.remove_row(key)
        order = [key for key in self._drawn if key not in gone]
        names = ["mark", *(column.header for column, _ in self._columns)]
        for entry in entries:
            was = self._drawn.get(entry.key)
            now = drawn[entry.key]
            if was is not None and was[0] is now[0] and was[1:] == now[1:]:
                continue
            cells = self._cells(entry, entry.key in marked)
            if was is None:
                table.add_row(*cells, key=entry.key)
                order.append(entry.key)
                continue
            for name, cell in zip(names, cells, strict=True):
                kept = table.get_cell(entry.key, name)
                if (kept, kept.style) != (cell, cell.style):  # texts compare without their style
                    table.update_cell(entry.key, name, cell)
        self._drawn = drawn
        if order != keys:
            places = {id(table.get_cell(key, "mark")): place for place, key in enumerate(keys)}
            table.sort("mark", key=lambda mark: places[id(mark)])
        if current in keys and table.cursor_row != keys.index(current):
            table.move_cursor(row=keys.index(current))

    def _cells(self, entry: Entry, marked: bool) -> list[Text]:
        able = entry.comparable or entry.listed is not None
        mark = "*" if marked else ("" if able else "!")
        style = "bold" if marked else ("" if entry.comparable else "dim")
        run = entry.run or entry.listed
        numbers = run is not None and run.problems > 0
        cells = [Text(mark, style="bold")]
        for column, _ in self._columns:
            side: JustifyMethod = "right" if column.right and numbers else "left"
            cells.append(
                Text(cell_text(column, entry, self.app.size.width), style=style, justify=side)
            )
        return cells

    def _current_key(self) -> str | None:
        table = self._table
        try:
            key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        except CellDoesNotExist:
            return None
        return None if key is None else str(key)

    def _current(self) -> Entry | None:
        key = self._current_key()
        return next((entry for entry in self._shown if entry.key == key), None)

    @on(DataTable.RowHighlighted, "#runs")
    def _row_changed(self) -> None:
        self._show_panel()

    @on(DataTable.RowSelected, "#runs")
    def _row_opened(self) -> None:
        entry = self._current()
        if entry is not None and entry.listed is not None:
            self.ttscope.read_now(entry)
            return
        if entry is None or entry.run is None:
            self.notify(entry.error if entry and entry.error else "nothing to open")
            return
        self.ttscope.open_run(entry)

    @on(Input.Changed, "#filter")
    def _filter_changed(self) -> None:
        self.show_library()

    @on(Input.Submitted, "#filter")
    def action_leave_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.set_class(bool(field.value), "used")
        field.remove_class("open")
        self.query_one("#ask").remove_class("open")
        self._table.focus()

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.add_class("open")
        field.focus()

    def action_mark(self) -> None:
        """Mark or unmark the row and go to the next."""
        entry = self._current()
        if entry is None:
            return
        if entry.listed is not None:
            self.notify("still to be read")
            return
        if not entry.comparable:
            self.notify("not compared: it is incomplete or cannot be read", severity="warning")
            return
        self.ttscope.toggle_mark(entry.key)
        self._table.action_cursor_down()

    def action_unmark(self) -> None:
        self.ttscope.clear_marks()

    @on(DataTable.HeaderSelected, "#runs")
    def _header_clicked(self, event: DataTable.HeaderSelected) -> None:
        """Sort by a column, or the other way round when it is sorted by it already."""
        headers = [column.header for column in COLUMNS]
        if event.column_key.value in headers:
            place = headers.index(str(event.column_key.value))
            self._reverse = not self._reverse if place == self._sort else False
            self._sort = place
            self.show_library()

    def action_sort(self) -> None:
        headers = [column.header for column, _ in self._columns]
        place = headers.index(COLUMNS[self._sort].header) if self._shown_column() else -1
        header = headers[(place + 1) % len(headers)]
        self._sort = next(i for i, column in enumerate(COLUMNS) if column.header == header)
        self.show_library()

    def _shown_column(self) -> bool:
        return any(column == COLUMNS[self._sort] for column, _ in self._columns)

    def action_reverse(self) -> None:
        self._reverse = not self._reverse
        self.show_library()

    def action_advise(self) -> None:
        self.app.switch_mode("advice")

    def action_ask(self, what: str) -> None:
        field = self.query_one("#ask", Input)
        self._asking, field.placeholder, field.value = what, QUESTIONS[what], ""
        field.add_class("open")
        field.focus()

    @on(Input.Submitted, "#ask")
    def _answered(self, event: Input.Submitted) -> None:
        self.action_leave_filter()
        if not event.value.strip():
            return
        if self._asking == "import":
            self._say("importing ...")
            self._import(event.value)
            return
        try:
            if self._asking == "price":
                price = price_of(event.value)
                self.ttscope.set_price(price)
                self._say(f"costs are {price_told(price)}")
            else:
                self.ttscope.open_paths(recordings_at(event.value))
                self._say("")
        except TtscopeError as error:
            self._say(str(error), bad=True)

    @work(thread=True, group="import")
    def _import(self, text: str) -> None:
        try:
            made = import_into(text, Path("runs"))
        except Exception as error:  # a file of others may be broken in any way
            self.post_message(Failed(failure(error)))
        else:
            self.post_message(ImportDone(made))

    @on(ImportDone)
    def _imported(self, event: ImportDone) -> None:
        notes = "".join(f". {note}" for note in event.made.notes[:2])
        self._say(f"{event.made.told}, kept in {event.made.folder}{notes}")
        self.ttscope.open_paths([event.made.folder])

    @on(Failed)
    def _failed(self, event: Failed) -> None:
        self._say(event.text, bad=True)

    def action_delete(self) -> None:
        """Delete the recording under the cursor, once that is confirmed."""
        entry = self._current()
        if entry is not None and not entry.path.exists():
            self._drop(entry.path)
            return
        if entry is None or (entry.recording is None and entry.listed is None):
            self._say("nothing to delete: this is no recording", bad=True)
            return
        path = entry.path
        try:
            size = number(size_bytes(path), "B")
        except TtscopeError as error:
            self._not_deleted(path, error)
            return
        question = f"Delete the recording {path} ({size})? It cannot be undone."
        self.app.push_screen(ConfirmScreen(question), lambda yes: self._delete(path, bool(yes)))

    def _delete(self, path: Path, yes: bool) -> None:
        if not yes:
            return
        try:
            left = delete_recording(path)
        except TtscopeError as error:
            self._not_deleted(path, error)
            return
        kept = f", where {len(left)} other files stay" if left else ""
        self._say(f"deleted {path}{kept}")
        self.ttscope.forget(path)

    def _not_deleted(self, path: Path, error: TtscopeError) -> None:
        """Say why, or take a recording whose folder is gone out of the list."""
        if path.exists():
            self._say(str(error), bad=True)
        else:
            self._drop(path)

    def _drop(self, path: Path) -> None:
        self._say(f"{path}: its folder is gone. It is out of the list now", bad=True)
        self.ttscope.forget(path)

    def _say(self, text: str, *, bad: bool = False) -> None:
        message = self.query_one("#message", Static)
        message.update(text)
        message.set_class(bool(text), "said").set_class(bad, "bad")

    def _show_panel(self) -> None:
        width = max(self.app.size.width - 4, 40)
        self.query_one("#detail", Static).update("\n".join(self._panel(width)))

    def _compare(self, pair: Pair) -> Difference | None:
        """Return the difference, or compare in a thread, once; the panel is drawn again then."""
        if not self.ttscope.loading_paths and self._repeats_among != len(self.ttscope.entries):
            self._compared.clear()  # more recordings may repeat these
            self._repeats_among = len(self.ttscope.entries)
        if pair not in self._compared:
            self._compared[pair] = None
            self._work_out(pair)
        return self._compared[pair]

    @work(thread=True, group="compare")
    def _work_out(self, pair: Pair) -> None:
        repeats = [each.run for each in self.ttscope.entries if each.run is not None]
        difference = compare(*pair.runs, repeats)
        if not get_current_worker().is_cancelled:
            self.post_message(Compared(pair, difference))

    @on(Compared)
    def _show_difference(self, event: Compared) -> None:
        self._compared[event.pair] = event.found
        self._show_panel()

    def _panel(self, width: int) -> list[str]:
        marked = self.ttscope.marked_entries()
        if len(marked) >= 2:
            first, *others = [each.run for each in marked if each.run is not None]
            differences = [self._compare(Pair(first, other)) for other in others]
            return compared_lines(marked, differences, width=width)
        if not self.ttscope.entries:
            return ["loading ..." if self.ttscope.loading_paths else EMPTY]
        entry = self._current()
        if entry is None:
            return ["nothing matches the filter"]
        return entry_lines(entry, marked=len(marked), width=width)
