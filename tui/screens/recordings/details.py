"""What stands below the table of recordings: one of them, or how the marked ones differ."""

from __future__ import annotations

from collections.abc import Sequence

from traces.schema.formats import counted, digits
from traces.summary.comparison import Difference
from tui.screens.entries import Entry
from tui.text.show import difference_lines, energy_lines, time_lines, warning_lines

EMPTY = (
    "no recordings here: make one with `ttscope demo` or `ttscope record`, press o to open "
    "others by path, or i to import files of other tools"
)


def price_told(price: float | None) -> str:
    """Return what costs rest on: a price of a device-hour, or the recordings' own."""
    return "those of the recordings" if price is None else f"at ${digits(price)} a device-hour"


def status_of(
    *,
    shown: int,
    total: int,
    marked: int,
    loading: bool,
    sort: str,
    price: float | None,
    wide: bool,
) -> str:
    """Return what stands in the bar above the table; a price takes the room of the order."""
    parts = [f"{'loading, ' if loading else ''}{shown}/{total}"]
    if price is not None:
        parts.append(f"${digits(price)} an hour")
    if price is None or wide:
        parts.append(f"sort {sort}")
    return "  ".join([*parts, f"{marked} marked"])


def entry_lines(entry: Entry, *, marked: int, width: int) -> list[str]:
    """Return what is to know of one recording, and what can be done with it."""
    run = entry.run
    if run is None and entry.listed is not None:
        return [f"{entry.path}: still to be read (enter reads it now)"]
    if run is None:
        return [f"! {entry.error}"]
    hint = "mark two with space to compare them on the same problems"
    return [
        f"{run.recording}: {counted(run.problems, 'problem')} decided",
        *time_lines(run, width),
        *energy_lines(run, width),
        *warning_lines(run, width),
        "mark another to compare with it" if marked == 1 else hint,
        "enter opens it.  - not measured   ! not compared   a share's +- is half its interval",
    ]


def compared_lines(
    marked: Sequence[Entry], differences: Sequence[Difference | None], *, width: int
) -> list[str]:
    """Return the marked recordings against the first, paired; None is still worked out."""
    lines: list[str] = []
    for other, each in zip(marked[1:], differences, strict=True):
        lines += [f"1 {marked[0].title}  ({marked[0].path.name})"[:width]]
        lines += [f"2 {other.title}  ({other.path.name})"[:width]]
        shown = ["comparing ..."] if each is None else difference_lines(each, width=width)
        lines += [*shown, ""]
    return lines[:-1]
