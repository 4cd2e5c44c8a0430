"""Screen 1: every run in a table, and the paired differences of the marked ones."""

from __future__ import annotations

import operator
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import DataTable, Input
from textual.widgets.data_table import CellDoesNotExist, ColumnKey

from traces.errors import TtscopeError
from traces.schema.formats import digits, number
from traces.summary.comparison import Difference, compare, configuration
from traces.summary.run import Run
from tui.screens.base import ConfirmScreen, ModeScreen, footer_key, help_key
from tui.screens.entries import (
    COLUMNS,
    Column,
    Entry,
    cell_text,
    engine_cells,
    fitting_columns,
    matches,
    near_words,
    sort_key,
    with_frames,
)
from tui.screens.library import (
    ImportMade,
    delete_recording,
    import_into,
    price_of,
    recordings_at,
    size_bytes,
)
from tui.screens.recordings.details import (
    EMPTY,
    arrow,
    columns_lines,
    compared_lines,
    entry_lines,
    front_text,
    latency_lines,
    price_told,
)
from tui.widgets.prompt import Field, FieldQuestion, Paths, Prompt
from tui.widgets.still import Box, StillText
from tui.widgets.table import RowTable


class Pair:
    """Two runs by the rows of their problems, which stay the same until they are read again."""

    def __init__(self, first: Run, second: Run) -> None:
        self.runs = (first, second)
        self._rows = (first.rows, second.rows)  # kept, so that their ids stay theirs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pair) and all(map(operator.is_, self._rows, other._rows))

    def __hash__(self) -> int:
        return hash(tuple(map(id, self._rows)))


# The keys of the Recordings screen, and what it asks for.


QUESTIONS = {
    "open": FieldQuestion(
        label="open", example="runs/one, or a folder of recordings", suggester=Paths()
    ),
    "price": FieldQuestion(label="price of a device-hour", example="2.5, - as recorded"),
    "import": FieldQuestion(
        label="import", example="trace.json.gz, samples.jsonl", suggester=Paths()
    ),
}
FILTER = FieldQuestion(label="filter", example="maj seqs64, or greedy|maj")
OF_RECORDINGS = frozenset({"mark", "filter", "sort", "reverse", "unmark", "advise", "delete"})
ORDER = "Sort by the next column, or the other way round. A click on a header does both."
KEYS: list[BindingType] = [
    footer_key("recordings.mark", "space", "mark", "mark",
        "Mark the row. All that are marked are compared with the first."),
    footer_key("recordings.filter", "slash", "filter", "filter",
        "Show only rows with every word that is typed. a|b means either."),
    footer_key("recordings.sort", "s", "sort", "sort", ORDER),
    help_key("recordings.reverse", "r", "reverse", "reverse", ORDER),
    help_key("recordings.unmark", "u", "unmark", "unmark all", "Unmark all rows."),
    footer_key("recordings.advise", "a", "advise", "advise",
        "Ask for advice from the marked recordings, or from all."),
    footer_key("recordings.open", "o", "ask('open')", "open",
        "Open other recordings beside these, by their path."),
    footer_key("recordings.import", "i", "ask('import')", "import",
        "Import files of other tools into a new recording in ./runs."),
    footer_key("recordings.delete", "x", "delete", "delete",
        "Delete the recording, once that is confirmed."),
    help_key("recordings.price", "dollar_sign", "ask('price')", "price",
        "Set the price of a device-hour, from which costs follow."),
    Binding(
        "escape", "leave", "leave", show=False,
        tooltip="Leave the field or the panel below, back to the table.",
    ),
]  # fmt: skip

JustifyMethod = Literal["left", "right"]
Drawn = tuple[dict[str, str], bool, int, str]  # cells, whether marked, the width, the engine
WIDE = 100
TALL = 36  # from which the columns are told too
BESIDE = 120  # from which charts stand beside the row's numbers
WIDER, PANEL = 180, 70  # from which these stand beside the table, and in how many columns
MOST_GONE = 20  # rows that are taken out one by one


class RecordingsScreen(ModeScreen):
    """The table of runs; space marks, and marked runs are compared on the same problems."""

    MODE = "recordings"
    CSS_PATH = "recordings.tcss"
    AUTO_FOCUS = "#runs"
    BINDINGS: ClassVar[list[BindingType]] = KEYS
    LEGEND = (
        *((column.header, column.about) for column in COLUMNS),
        ("!", "Not learned from: incomplete, damaged, or without a decided problem."),
        ("* in front", "Marked."),
    )

    def __init__(self) -> None:
        super().__init__()
        self._sort = 4
        self._reverse = False
        self._asking = "open"
        self._shown: list[Entry] = []
        self._drawn: dict[str, Drawn] = {}
        self._engines: dict[str, str] = {}  # how each is shown
        self._columns: list[tuple[Column, int]] = []
        self._order = ("", False)  # the header that rows are sorted by, and whether reversed
        self._compared: dict[Pair, Difference | None] = {}
        self._repeats_among = 0
        self._loading = True  # when the table was last filled
        self._moved = False  # whether the cursor was

    def compose_body(self) -> ComposeResult:
        yield Prompt(field="filter", id="filtering")
        yield Prompt(field="ask", id="asking")
        yield StillText(id="message")
        with Box(id="both"):
            yield RowTable(id="runs", zebra_stripes=True)
            with VerticalScroll(id="panel"), Box(id="parts"):
                yield StillText(id="detail")
                yield StillText(id="side")

    def on_resize(self) -> None:
        self.set_class(self._is_beside, "beside")
        self.show_library()

    @property
    def _is_beside(self) -> bool:
        """Whether the panel stands beside the table."""
        return self.app.size.width >= WIDER

    @property
    def _table_width(self) -> int:
        return self.app.size.width - (PANEL if self._is_beside else 0)

    @property
    def _table(self) -> RowTable:
        return self.query_one("#runs", RowTable)

    def _fit_columns(self) -> None:
        """Make the columns anew where others are shown, or wider ones.

        The table would measure every cell for their widths.
        """
        fitting = fitting_columns(self.ttscope.entries, self._table_width)
        order = (COLUMNS[self._sort].header, self._reverse)
        if (fitting, order) == (self._columns, self._order):
            return
        if fitting == self._columns:  # what it sorts by is another
            self._order = order
            for column, width in fitting:
                self._table.columns[ColumnKey(column.header)].label = self._header(column, width)
            self._table.refresh()
            return
        self._columns, self._order, self._drawn = fitting, order, {}
        table = self._table
        table.clear(columns=True)
        table.add_column("", key="mark", width=1)
        for column, width in fitting:
            table.add_column(self._header(column, width), key=column.header, width=width)

    def _header(self, column: Column, width: int) -> Text:
        """Return a column's header, with an arrow where the rows are sorted by it."""
        header, side = column.header, "right" if column.right else "left"
        if header == COLUMNS[self._sort].header:
            header = f"{header}{arrow(self._reverse)}"
        return Text(header[:width], justify="right" if side == "right" else "left")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what is done with recordings where there are any."""
        if action in OF_RECORDINGS and self.is_mounted and not self.ttscope.entries:
            return False
        return super().check_action(action, parameters)

    def show_library(self) -> None:
        """Bring the table to what is loaded, matches the filter and is sorted."""
        words = self.query_one("#filter", Input).value
        column = COLUMNS[self._sort]
        entries = [entry for entry in self.ttscope.entries if matches(entry, words)]
        entries.sort(key=lambda entry: sort_key(entry, column))
        if self._reverse:
            sortable = [entry for entry in entries if sort_key(entry, column)[0] < 2]
            entries = sortable[::-1] + entries[len(sortable) :]
        if bool(self._shown) != bool(entries):
            self.refresh_bindings()
        self._shown = entries
        current = self._current_key()
        self._engines = engine_cells(self.ttscope.entries, self._table_width)
        self._fit_columns()
        self._fill(entries, current)
        self.set_status(self._status())
        self._show_panel()

    def _status(self) -> str:
        """Return what stands in the bar above the table; a price takes the room of the order."""
        every, price = self.ttscope.entries, self.ttscope.price
        read = sum(entry.listed is None for entry in every)
        loading = self.ttscope.loading_paths
        parts = [f"reading {read}/{len(every)}" if loading else f"{len(self._shown)}/{len(every)}"]
        if price is not None:
            parts.append(f"${digits(price)} an hour")
        if price is None or self.app.size.width >= WIDE:
            parts.append(f"sort {COLUMNS[self._sort].header} {arrow(self._reverse)}")
        return "  ".join([*parts, f"{len(self.ttscope.marked)} marked"])

    def _fill(self, entries: list[Entry], current: str | None) -> None:
        """Change the cells that differ; rows that stay are kept, for new ones are measured."""
        table = self._table
        keys = [entry.key for entry in entries]
        marked = set(self.ttscope.marked)
        drawn = {
            each.key: (
                each.cells,
                each.key in marked,
                self._table_width,
                self._engines.get(each.cells.get("engine", ""), ""),
            )
            for each in entries
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
        able = entry.teaches or entry.listed is not None
        mark = "*" if marked else ("" if able else "!")
        style = "bold" if marked else ("" if entry.comparable else "dim")
        numbers = entry.row is not None and entry.row.problems > 0
        width = self._table_width
        cells = [Text(mark, style="bold")]
        for column, _ in self._columns:
            side: JustifyMethod = "right" if column.right and numbers else "left"
            cells.append(
                Text(cell_text(column, entry, self._engines, width), style=style, justify=side)
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

    @property
    def chosen(self) -> Entry | None:
        """The run under the cursor, where the cursor was moved to it."""
        entry = self._current() if self._moved else None
        return None if entry is None or entry.run is None else entry

    @on(DataTable.RowHighlighted, "#runs")
    def _row_changed(self) -> None:
        self._moved = self._moved or self._table.cursor_row > 0
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
    def _filtered(self) -> None:
        """Keep the filter in sight while it filters."""
        prompt = self.query_one("#filtering", Prompt)
        prompt.set_class(bool(prompt.field.value), "used")
        prompt.remove_class("open")
        self._table.focus()

    @on(Field.Left)
    def _field_left(self, event: Field.Left) -> None:
        if event.field.id == "filter":
            event.field.value = ""
            self._filtered()
        else:
            self.query_one("#asking", Prompt).close()
            self.say("")
            self._table.focus()

    def action_leave(self) -> None:
        self._table.focus()

    def action_filter(self) -> None:
        self.query_one("#filtering", Prompt).ask(FILTER, None)

    def action_mark(self) -> None:
        """Mark or unmark the row and go to the next."""
        entry = self._current()
        if entry is None:
            return
        if entry.listed is not None:
            self.notify("still to be read")
            return
        if not entry.comparable:
            why = "it is incomplete or cannot be read"
            if entry.teaches:
                why = "its /metrics have no problem by itself"
            self.notify(f"not compared: {why}", severity="warning")
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
        shown_header = COLUMNS[self._sort].header
        place = headers.index(shown_header) if shown_header in headers else -1
        header = headers[(place + 1) % len(headers)]
        self._sort = next(i for i, column in enumerate(COLUMNS) if column.header == header)
        self.show_library()

    def action_reverse(self) -> None:
        self._reverse = not self._reverse
        self.show_library()

    def action_advise(self) -> None:
        self.app.switch_mode("advice")

    def action_ask(self, what: str, text: str = "") -> None:
        self._asking = what
        self.query_one("#asking", Prompt).ask(QUESTIONS[what], text)

    @on(Input.Submitted, "#ask")
    def _answered(self, event: Input.Submitted) -> None:
        """Do what was asked; what cannot be done is said, and its text stays."""
        text = event.value
        try:
            if not text.strip():
                self.say("")
            elif self._asking == "import":
                self.say("importing ...")
                self._import(text)
            elif self._asking == "price":
                price = price_of(text)
                self.ttscope.set_price(price)
                self.say(f"costs are {price_told(price)}")
            else:
                self.ttscope.open_paths(recordings_at(text))
                self.say("")
        except TtscopeError as error:
            self.say(str(error), bad=True)
            return
        self.query_one("#asking", Prompt).close()
        self._table.focus()

    def _import(self, text: str) -> None:
        def refuse(why: str) -> None:
            self._refuse(why)
            if self.is_current and not self.query_one("#asking", Prompt).is_open:
                self.action_ask("import", text)

        make = partial(import_into, text, Path("runs"))
        self.ask(make, self._show_import, refuse, group="import")

    def _show_import(self, made: ImportMade) -> None:
        notes = "".join(f". {note}" for note in made.notes[:2])
        self.say(f"{made.told}, kept in {made.folder}{notes}")
        self.ttscope.open_paths([made.folder])

    def action_delete(self) -> None:
        """Delete the recording under the cursor, once that is confirmed."""
        entry = self._current()
        if entry is not None and not entry.path.exists():
            self._drop(entry.path)
            return
        if entry is None or (entry.recording is None and entry.listed is None):
            self.say("nothing to delete: this is no recording", bad=True)
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
        self.say(f"deleted {path}{kept}")
        self.ttscope.forget(path)

    def _not_deleted(self, path: Path, error: TtscopeError) -> None:
        """Say why, or take a recording whose folder is gone out of the list."""
        if path.exists():
            self.say(str(error), bad=True)
        else:
            self._drop(path)

    def _drop(self, path: Path) -> None:
        self.say(f"{path}: its folder is gone. It is out of the list now", bad=True)
        self.ttscope.forget(path)

    def _show_panel(self) -> None:
        size, below = self.app.size, self._is_beside  # whether charts stand below the numbers
        width = max((PANEL if below else size.width) - 4, 40)
        side = width if below else width * 2 // 5 if size.width >= BESIDE else 0
        room = width - side - 2 if side and not below else width
        lines = self._panel(room)
        legend: list[str] = []
        if side and self._shown and size.height >= TALL:
            columns = [column for column, _ in self._columns]
            legend = columns_lines(columns, room)
        rows = size.height * 11 // 20 - 4  # of the panel, as in recordings.tcss
        if below:
            rows = size.height - len(lines) - len(legend) - 6
        detail, beside = [Content("\n".join(lines))], [self._charts(side - 2, rows)] if side else []
        if legend:
            hint = Content.styled("\n".join(legend), "$text-muted")
            (beside if below else detail).append(hint)
        self.query_one("#detail", StillText).update(Content("\n\n").join(detail))
        charts = self.query_one("#side", StillText)
        charts.display = side > 0
        if side:
            charts.styles.width = side
            charts.update(Content("\n\n").join(beside))

    def _charts(self, width: int, room: int) -> Content:
        """Return the row's distribution of times, and where it stands among the others."""
        entry = self._current()
        run = None if entry is None else entry.run
        rows = max(min(room // 3, 12), 3)
        histogram = [] if run is None else latency_lines(run, width, rows)
        parts = [Content(histogram[0])] if histogram else []
        parts += [Content(line).stylize("$primary", 5) for line in histogram[1:-1]]
        parts += [Content.styled(line, "$text-muted") for line in histogram[-1:]]
        room -= len(parts)
        front = front_text(self._shown, entry, width, min(room - 3, 28))
        parts += [Content(""), front] if front is not None and parts else [front] if front else []
        return Content("\n").join(parts)

    def _compare(self, pair: Pair) -> Difference | None:
        """Return the difference, or compare in a thread, once; the panel is drawn again then."""
        if not self.ttscope.loading_paths and self._repeats_among != len(self.ttscope.entries):
            self._compared.clear()  # more recordings may repeat these
            self._repeats_among = len(self.ttscope.entries)
        if pair not in self._compared:
            self._compared[pair] = None
            self._work_out(pair)
        return self._compared[pair]

    def _work_out(self, pair: Pair) -> None:
        def compared() -> Difference:
            first, second = map(self._with_frames, pair.runs)
            wanted = {configuration(run) for run in pair.runs} - {None}
            runs = [each.run for each in self.ttscope.entries if each.run is not None]
            repeats = [self._with_frames(run) for run in runs if configuration(run) in wanted]
            return compare(first, second, repeats)

        def show(found: Difference) -> None:
            self._compared[pair] = found
            self._show_panel()

        self.ask(compared, show, group="compare")

    def _with_frames(self, run: Run) -> Run:
        """Return a run with its samples and steps, without which its times are not compared."""
        entry = next((each for each in self.ttscope.entries if each.run is run), None)
        again = None if entry is None else with_frames(entry, self.ttscope.price).run
        return again or run

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
            words = self.query_one("#filter", Input).value
            return [f"nothing matches the filter{near_words(self.ttscope.entries, words)}"]
        return entry_lines(entry, marked=len(marked), width=width)
