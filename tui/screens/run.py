"""Screen 2: one run over time, the step under the cursor, and one problem's samples."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Click, Resize
from textual.widgets import Input, Static

from traces.series import Series, series
from traces.summary import Run
from tui.run_views import (
    LEFT,
    RIGHT,
    Problem,
    axis_line,
    chart_lines,
    extent_line,
    problem_at,
    problem_title,
    run_title,
    sample_rows,
    scale_line,
    step_lines,
    vote_lines,
)
from tui.screens.base import ModeScreen
from tui.show_text import policy_lines, warnings

COLOURS = {".": "dim", "p": "yellow", "=": "cyan", "A": "bold green", "x": "bold red", ">": "dim"}


class Samples(VerticalScroll, inherit_bindings=False):
    """The samples; left and right move the cursor in time, so only up and down scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "scroll_up", "up", show=False),
        Binding("down", "scroll_down", "down", show=False),
        Binding("pageup", "page_up", "page up", show=False),
        Binding("pagedown", "page_down", "page down", show=False),
    ]


class RunScreen(ModeScreen):
    """The run that was opened on screen 1, or the first that is complete."""

    MODE = "run"
    CSS_PATH = "run.tcss"
    AUTO_FOCUS = "#samples"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "time", key_display="← →", id="run.earlier"),
        Binding("right", "move(1)", "later", id="run.later", show=False),
        Binding("comma", "step(-1)", "step back", id="run.back", show=False),
        Binding("full_stop", "step(1)", "step on", id="run.on", show=False),
        Binding(
            "left_square_bracket", "problem(-1)", "problem", key_display="[ ]", id="run.previous"
        ),
        Binding("right_square_bracket", "problem(1)", "next problem", id="run.next", show=False),
        Binding("g", "goto", "go to", id="run.goto"),
        Binding("w", "worst", "slowest", id="run.slowest"),
        Binding("k", "votes", "maj@k", id="run.votes"),
        Binding("escape", "leave", "leave the field", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._run: Run | None = None
        self._series: Series | None = None
        self._problem: Problem | None = None
        self._cursor = 0
        self._position = -1
        self._votes = False

    def compose_body(self) -> ComposeResult:
        """Return the charts, the step, the problem and its samples."""
        yield Static(id="warnings", markup=False)
        yield Static(id="charts", markup=False)
        yield Static(id="step", markup=False)
        yield Input(placeholder="number of a problem", id="goto", type="integer", compact=True)
        yield Static(id="title", markup=False)
        with Samples(id="samples"):
            yield Static(id="bars", markup=False)
        yield Static(id="vote", markup=False)

    def show_library(self) -> None:
        """Show the open run; nothing changes when it is shown already."""
        entry = self.ttscope.current_entry()
        run = None if entry is None else entry.run
        if run is None:
            text = (
                "loading ..."
                if self.ttscope.loading_paths
                else "no run to show: open one on screen 1"
            )
            self.set_status("")
            self.query_one("#charts", Static).update(text)
            return
        if run is not self._run:
            self._run, self._series = run, None
            self._cursor, self._position, self._votes = 0, -1, False
            self._problem = problem_at(run, 0)
            self._draw()

    def on_screen_resume(self) -> None:
        """Show another run when one was opened meanwhile."""
        self.show_library()

    @on(Resize)
    def _fit(self) -> None:
        self._series = None
        self._draw()

    @property
    def _width(self) -> int:
        return max(self.app.size.width - 1, 60)

    def _draw(self) -> None:
        run = self._run
        if run is None or not self.is_mounted:
            return
        if self._series is None and run.step_rows is not None:
            bins = max(self._width - LEFT - RIGHT - 1, 10)
            self._series = series(run.step_rows, run.engine.num_gpu_blocks, bins)
            if self._series is not None:
                self._cursor = min(self._cursor, self._series.bins - 1)
                self._position = int(self._series.first_step[self._cursor])
        title = [run.engine.model, "" if run.policy is None else run.policy.label()]
        self.set_status(" ".join([*title, run.engine.label()]))
        head = [*warnings(run, self._width), run_title(run)]
        self.query_one("#warnings", Static).update("\n".join(head))
        self._draw_charts(run)
        self._draw_problem(run)

    def _draw_charts(self, run: Run) -> None:
        charts, step = self.query_one("#charts", Static), self.query_one("#step", Static)
        if self._series is None:
            seen = run.engine.mode == "server" and run.imported is None
            outside = ": the server was seen from outside" if seen else ""
            charts.update(f"no engine steps were recorded{outside}")
            step.update("")
            return
        text = Text(no_wrap=True)
        for line in chart_lines(self._series, self._cursor):
            row = Text(f"{line}\n")
            row.stylize("cyan", LEFT, LEFT + self._series.bins)
            row.stylize("reverse", LEFT + self._cursor, LEFT + self._cursor + 1)
            text.append_text(row)
        if self._problem is not None and self._problem.row["arrival"] is not None:
            times = self._problem.row
            extent = extent_line(self._series, times["arrival"], times["end"])
            text.append(f"{extent}\n", "yellow")
        text.append(axis_line(self._series, self._cursor))
        charts.update(text)
        step.update("\n".join(step_lines(run, self._position, width=self._width)))

    def _draw_problem(self, run: Run) -> None:
        title, bars, vote = (
            self.query_one(f"#{name}", Static) for name in ("title", "bars", "vote")
        )
        if self._votes:
            title.update("what fewer samples would have answered")
            bars.update("\n".join(policy_lines(run)) or "only majority recordings contain this")
            vote.update("")
            return
        problem = self._problem
        if problem is None:
            title.update("no problem was recorded")
            bars.update("")
            vote.update("")
            return
        title.update(problem_title(problem))
        text = Text(scale_line(problem, self._width), style="dim", no_wrap=True)
        for sample, left, line in sample_rows(problem, self._width):
            colour = {True: "green", False: "red", None: ""}[sample.correct]
            text.append("\n")
            text.append(left, colour)
            for mark in line:
                text.append(mark, COLOURS.get(mark, ""))
            if sample.error:
                text.append(f" {sample.error}", "red")
        bars.update(text)
        vote.update("\n".join(vote_lines(problem, width=self._width)))

    def action_move(self, bins: int) -> None:
        """Move the cursor by bins of the chart."""
        if self._series is None or self._run is None:
            return
        self._cursor = min(max(self._cursor + bins, 0), self._series.bins - 1)
        self._position = int(self._series.first_step[self._cursor])
        self._draw_charts(self._run)

    def action_step(self, steps: int) -> None:
        """Move by single engine steps."""
        run, found = self._run, self._series
        if run is None or run.step_rows is None or found is None:
            return
        start = self._position if self._position >= 0 else self._nearest(found)
        self._position = min(max(start + steps, 0), run.step_rows.height - 1)
        end = run.step_rows["end"][self._position]
        if end is not None:
            span = found.edges_ns[-1] - found.edges_ns[0] + 1
            self._cursor = min(int((end - found.edges_ns[0]) * found.bins // span), found.bins - 1)
        self._draw_charts(run)

    def _nearest(self, found: Series) -> int:
        before = [int(place) for place in found.first_step[: self._cursor + 1] if place >= 0]
        return before[-1] if before else 0

    def action_problem(self, count: int) -> None:
        """Go to the next or the previous problem."""
        number = 0 if self._problem is None else self._problem.number + count
        self._go_to(number)

    def _go_to(self, number: int) -> None:
        run = self._run
        if run is None or run.rows is None or not run.rows.height:
            return
        self._votes = False
        self._problem = problem_at(run, number % run.rows.height)
        self._draw_charts(run)
        self._draw_problem(run)
        self.query_one("#samples").scroll_home(animate=False)

    def action_worst(self) -> None:
        """Go to the problem that took longest."""
        if self._run is not None and self._run.rows is not None:
            slowest = self._run.rows["latency_s"].arg_max()
            if slowest is not None:
                self._go_to(slowest)

    def action_votes(self) -> None:
        """Show maj@k and pass@k instead of the problem, and back."""
        if self._run is not None:
            self._votes = not self._votes
            self._draw_problem(self._run)

    def action_goto(self) -> None:
        """Ask for the number of a problem."""
        field = self.query_one("#goto", Input)
        field.add_class("open")
        field.focus()

    @on(Input.Submitted, "#goto")
    def _number_given(self, event: Input.Submitted) -> None:
        if event.value.lstrip("-").isdigit():
            self._go_to(int(event.value) - 1)
        self.action_leave()

    def action_leave(self) -> None:
        """Close the field."""
        field = self.query_one("#goto", Input)
        field.value = ""
        field.remove_class("open")
        self.query_one("#samples").focus()

    @on(Click, "#charts")
    def _clicked(self, event: Click) -> None:
        if self._series is not None:
            self.action_move(event.x - LEFT - self._cursor)
