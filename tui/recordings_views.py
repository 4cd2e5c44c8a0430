"""What stands below the table of recordings: one of them, or how the marked ones differ."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from traces.comparison import Difference
from tui.formats import counted
from tui.show_text import difference_lines, energy_lines, time_lines, warnings
from tui.views import Column, Entry, cell_text

EMPTY = (
    "no recordings here: make one with `ttscope demo` or `ttscope record`; o opens others by "
    "path, i imports files of other tools"
)


def entry_lines(entry: Entry, *, marked: int, width: int) -> list[str]:
    """Return what is to know of one recording, and what can be done with it."""
    run = entry.run
    if run is None:
        return [f"! {entry.error}"]
    hint = "mark two with space to compare them on the same problems"
    return [
        f"{run.recording}: {counted(run.problems, 'problem')} decided",
        *time_lines(run, width),
        *energy_lines(run, width),
        *warnings(run, width),
        "mark another to compare with it" if marked == 1 else hint,
        "enter opens it.  - not measured   ! not compared   a share's +- is half its interval",
    ]


def compared_lines(
    marked: Sequence[Entry], found: Sequence[Difference | None], *, width: int
) -> list[str]:
    """Return the marked recordings against the first, paired; None is still worked out."""
    lines: list[str] = []
    for other, each in zip(marked[1:], found, strict=True):
        lines += [f"1 {marked[0].title}  ({marked[0].path.name})"[:width]]
        lines += [f"2 {other.title}  ({other.path.name})"[:width]]
        told = ["comparing ..."] if each is None else difference_lines(each, width=width)
        lines += [*told, ""]
    return lines[:-1]


def run_cell(entry: Entry, column: Column, style: str, width: int) -> Text:
    """Return a cell of the table, in place of numbers why there are none."""
    if entry.run is None:
        text = {"model": entry.path.name, "policy": "cannot be read"}.get(column.header, "")
        return Text(text, style=style)
    if not column.right:
        return Text(cell_text(column, entry, width), style=style)
    if not entry.run.problems:
        note = "no problem" if entry.run.complete else "incomplete"
        return Text(note if column.header.startswith("acc") else "", style=style)
    return Text(entry.cells[column.header], style=style, justify="right")
