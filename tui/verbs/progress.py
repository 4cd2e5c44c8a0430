"""Progress of long work on stderr: bars on a terminal, a line now and then in a log.

Drawing never fails the work: after the first failure nothing more is drawn.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from traces.plain_text import clean
from tui.terminal import say
from tui.text.layout import without_middle

LINE_EVERY_S = 30.0  # in a log
DRAW_EVERY_S = 0.1  # on a terminal
_BAR, _COUNT, _TIME = 16, 13, 7  # columns; the name has the rest
_NAME = (12, 60)  # columns at least, at most
_STATES = {"starting": "starting vLLM for", "lost": "its worker was lost:"}  # of a job


class _Cell(ProgressColumn):
    """A cell of a fixed width, so that nothing moves while it changes."""

    def __init__(self, text: Callable[[Task], str], width: int, *, right: bool = False) -> None:
        super().__init__(Column(width=width, no_wrap=True, justify="right" if right else "left"))
        self._text, self._width = text, width

    def render(self, task: Task) -> Text:
        return Text(without_middle(clean(self._text(task)), self._width), no_wrap=True)


class TaskBars(Progress):
    """Rich's bars on a terminal; elsewhere only the account of the tasks, for `line`."""

    def __init__(self, *, drawn: bool) -> None:
        console = Console(stderr=True)
        room = console.width - _COUNT - _TIME - 6  # between them 3, and 3 for the ^C of Ctrl-C
        bar_width = max(1, min(_BAR, room - _NAME[0]))
        name_width = max(1, min(_NAME[1], room - bar_width))
        super().__init__(
            _Cell(lambda task: task.description, name_width),
            BarColumn(bar_width, table_column=Column(width=bar_width)),
            _Cell(_count, _COUNT, right=True),
            _Cell(lambda task: _clock(task.elapsed), _TIME, right=True),
            console=console,
            transient=True,
            disable=not drawn,
            auto_refresh=False,  # `progress_bar` does it
            redirect_stdout=False,  # a result that is printed meanwhile goes to stdout
        )

    def start(self) -> None:
        self._try(super().start)

    def refresh(self) -> None:
        self._try(super().refresh)

    def stop(self) -> None:
        if self.live.is_started:
            self._try(super().stop)

    def _try(self, draw: Callable[[], None]) -> None:
        if self.disable:
            return
        try:
            draw()
        except Exception:  # of the terminal or of Rich; the work goes on
            self.disable = True
            with contextlib.suppress(Exception):
                super().stop()

    def line(self) -> str | None:
        """Return what runs, how much of it is done, and for how long it has run."""
        tasks = self.tasks
        if not tasks:
            return None
        parts = [f"{task.description} {_count(task)}".rstrip() for task in tasks]
        return f"ttscope: {', '.join(parts)}, {_clock(tasks[0].elapsed)}"


def _count(task: Task) -> str:
    return "" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}"


def _clock(seconds: float | None) -> str:
    minutes, rest = divmod(int(seconds or 0), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@contextlib.contextmanager
def progress_bar(*, line_every_s: float = LINE_EVERY_S) -> Iterator[TaskBars]:
    """Show progress on stderr: bars where it is a terminal, else a line every `line_every_s`."""
    drawn = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    bars, ended = TaskBars(drawn=drawn), threading.Event()

    def tell() -> None:
        while not ended.wait(DRAW_EVERY_S if drawn else line_every_s):
            if drawn:
                bars.refresh()
            elif line := bars.line():
                with contextlib.suppress(OSError, ValueError):  # a log that is full or closed
                    say(line, file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, name="ttscope-progress", daemon=True)
    bars.start()
    thread.start()
    try:
        yield bars
    finally:
        ended.set()
        thread.join()
        bars.stop()


def sweep_progress(bars: TaskBars, plan: Any, *, at_a_time: bool = False) -> Any:
    """Return a listener for `run_plan` that says which run is going on, or runs `at_a_time`."""
    all_runs = bars.add_task("runs", total=sum(len(group.jobs) for group in plan))
    shown: dict[str, tuple[TaskID, str]] = {}  # one row for all where one runs at a time

    def show(job: str, words: str, total: int | None, done: int = 0) -> None:
        row = job if at_a_time else ""
        task, before = shown.get(row, (None, None))
        if task is None or before != words:
            if task is not None:
                bars.remove_task(task)
            shown[row] = bars.add_task(words, total=total), words
        bars.update(shown[row][0], completed=done, total=total)

    def listen(line: Mapping[str, Any]) -> None:
        if "finished" in line or line.get("state") == "skipped":
            bars.advance(all_runs)
            if done := shown.pop(line.get("finished", ""), None):
                bars.remove_task(done[0])
        elif state := _STATES.get(line.get("state", "")):
            show(line["job"], f"{state} {line['job']}", None)
        elif "total" in line:
            show(line["job"], line["job"], line["total"], line["done"])

    return listen


@contextlib.contextmanager
def own_stdout() -> Iterator[TextIO]:
    """Give the real stdout; what vLLM and its libraries print meanwhile goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w") as mine:
            yield mine
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
