"""What stands below the table of recordings: one of them, or how the marked ones differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from textual.content import Content

from traces.schema.formats import counted, digits, number
from traces.summary.comparison import Difference
from traces.summary.run import Run
from tui.screens.entries import Column, Entry
from tui.text.layout import BLOCKS, labelled, wrap
from tui.text.recordings.show import difference_lines, energy_lines, time_lines, warning_lines

EMPTY = (
    "no recordings here: make one with `ttscope demo` or `ttscope record`, press o to open "
    "others by path, i to import files of other tools, or 3 to watch a server"
)

FEWEST = 10  # problems of a histogram


def arrow(reverse: bool) -> str:
    """Return the mark of an order: up for the least first."""
    return "▼" if reverse else "▲"


def price_told(price: float | None) -> str:
    """Return what costs rest on: a price of a device-hour, or the recordings' own."""
    return "those of the recordings" if price is None else f"at ${digits(price)} a device-hour"


KEYS_TOLD = "enter: open   ?: help, columns   - not measured   ! not compared"


def entry_lines(entry: Entry, *, marked: int, width: int) -> list[str]:
    """Return what is to know of one recording, and what can be done with it."""
    run = entry.run
    if run is None and entry.listed is not None:
        return [f"{entry.path}: still to be read. Press enter to read it now"]
    if run is None:
        return [f"! {entry.error}"]
    if entry.is_watched:
        opens = "enter: open it on screen 3, with its verdict, TTFT, ITL, queue and charts"
        return [
            *wrap("", _watched(entry, run), width=width, indent=0),
            *time_lines(run, width),
            *warning_lines(run, width),
            opens,
        ]
    hint = "space: mark two to compare them on the same problems"
    return [
        f"{run.recording}: {counted(run.problems, 'problem')} completed",
        *time_lines(run, width),
        *energy_lines(run, width),
        *warning_lines(run, width),
        "space: mark another to compare with it" if marked == 1 else hint,
        KEYS_TOLD,
    ]


def _watched(entry: Entry, run: Run) -> str:
    """Return which servers were watched, and how many problems were seen of the row's."""
    engines = 1 if entry.recording is None else len(entry.recording.manifest.engines)
    url = dict(run.engine.other).get("url", "")
    if engines == 1:
        servers = ", ".join(filter(None, ("a server that was watched", url)))
    elif run.problems:
        servers = f"{url}, one of {engines} servers that were watched"
    else:
        servers = f"{engines} servers that were watched"
    seen = f", {counted(run.problems, 'problem')} seen by spans" if run.problems else ""
    return f"{run.recording}: {servers}{seen}"


def columns_lines(columns: Sequence[Column], width: int) -> list[str]:
    """Return what the columns hold, a sentence each."""
    return labelled(((each.header, each.about) for each in columns), width=width, indent=11)


def latency_lines(run: Run, width: int, rows: int) -> list[str]:
    """Return how long the problems took, as a histogram of so many rows with its ends."""
    seconds = np.array([]) if run.rows is None else run.rows["latency_s"].drop_nulls().to_numpy()
    if seconds.size < FEWEST or rows < 3:
        return []
    bins = max(min(width - 6, 2 * seconds.size), 10)
    counts, edges = np.histogram(seconds, bins=bins, range=(0.0, float(seconds.max())))
    top = int(counts.max())
    levels = np.rint(counts / top * rows * 8).astype(int)
    levels = np.where(counts > 0, np.maximum(levels, 1), 0)
    lines = [f"time of {counted(seconds.size, 'problem')}"]
    for above in range(rows - 1, -1, -1):
        label = f"{top:>4} " if above == rows - 1 else "     "
        level = np.clip(levels - above * 8, 0, 8)
        lines.append(f"{label}{''.join(BLOCKS[each] for each in level)}")
    end = number(float(edges[-1]), "s")
    return [*lines, f"     0{end:>{max(bins - 1, len(end) + 1)}}"]


def front_text(
    entries: Sequence[Entry], current: Entry | None, width: int, rows: int
) -> Content | None:
    """Return accuracy against median latency of the runs; None with fewer than two."""
    points = {
        entry.key: (entry.run.latency_s["p50"].value, entry.run.accuracy.value)
        for entry in entries
        if entry.run and entry.run.latency_s["p50"] is not None and entry.run.accuracy is not None
    }
    if len(points) < 2 or rows < 4 or width < 20:
        return None
    left, columns = 6, width - 7
    most = max(seconds for seconds, _ in points.values())
    low, high = (pick(share for _, share in points.values()) for pick in (min, max))
    grid = [[" "] * columns for _ in range(rows)]
    here = None
    for key, (seconds, share) in points.items():
        column = round(seconds / most * (columns - 1))
        row = round((high - share) / ((high - low) or 1.0) * (rows - 1))
        grid[row][column] = "●"
        if current is not None and key == current.key:
            here = (row, column)
    if here is not None:
        grid[here[0]][here[1]] = "◆"
    lines: list[Content] = [Content("accuracy against p50 time (◆ this row)")]
    for at, cells in enumerate(grid):
        label = {0: f"{high:.3f}", rows - 1: f"{low:.3f}"}.get(at, "")
        line = Content(f"{label:>{left - 1}}│{''.join(cells)}").stylize("$primary", left)
        if here is not None and at == here[0]:
            line = line.stylize("bold $accent", left + here[1], left + here[1] + 1)
        lines.append(line)
    end = number(most, "s")
    lines.append(Content(f"{'0':>{left}}{end:>{columns}}"))
    return Content("\n").join(lines)


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
