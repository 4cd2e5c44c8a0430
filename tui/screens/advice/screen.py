"""Screen 4: a budget, the picks that meet it, what to expect of each, and the command to run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast, get_args

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.events import DescendantFocus, Resize
from textual.message import Message
from textual.widgets import DataTable, Input, Label, Select, Static
from textual.worker import get_current_worker

from advisor.search.budget import Prices
from traces.errors import TtscopeError
from traces.schema.advice import Budget, Objective, Pick, Recommendation
from traces.schema.quantities import latency, statistic
from tui.screens.advice.budget import budget_of, in_fields, price_hint
from tui.screens.advice.plot import (
    AXES,
    axis_title,
    error_bar,
    gone_lines,
    next_axis,
    pick_rows,
    points,
    present_candidate,
    with_fronts,
)
from tui.screens.advice.rows import Candidate, candidates, paste_text
from tui.screens.advice.what_if import examples, what_if
from tui.screens.base import ModeScreen
from tui.screens.library import failure
from tui.text.advice import limit_on
from tui.text.layout import fitting_ticks, ticks, with_room
from tui.widgets.scatter import Scatter

# What the workers of the Advice screen tell it.


Question = tuple[object, ...]  # the budget, the recordings by key, and what runs today


@dataclass
class Advised(Message):
    """The worker's answer to a question: a recommendation, or why there is none."""

    question: Question
    advice: Recommendation | None
    error: str | None
    recordings: int
    seconds: float


@dataclass
class WhatIf(Message):
    """What a change makes of a pick, or why that cannot be said."""

    lines: list[str]
    error: str | None = None


# The keys of the Advice screen.


KEYS: list[BindingType] = [
    Binding("c", "copy", "copy command", id="advice.copy"),
    Binding("b", "budget", "budget", id="advice.budget"),
    Binding("x", "axis", "axis", id="advice.axis"),
    Binding("w", "what_if", "what if", id="advice.what_if"),
    Binding("e", "explain", "explain", id="advice.explain"),
    Binding("m", "measure", "measure next", id="advice.measure"),
    Binding("escape", "leave", "to the picks", show=False),
]


# The Advice screen's budget fields, columns and marks.


STATISTICS = tuple((statistic(each), each) for each in (None, 50, 95, 99))
STATISTIC = statistic(Budget.latency_percentile)  # what the command line takes too
OBJECTIVES = get_args(Objective)
FIELDS = (  # option of parse_budget, label, example, least columns: one more than most values
    ("max_latency", "<=", "5s or 250ms", 8),
    ("max_cost", "cost <=", "$0.002, or 0.5s of a device", 9),
    ("max_energy", "energy <=", "800J", 7),
    ("min_accuracy", "acc >=", "0.75 or 75%", 6),
    ("gpus", "GPUs <=", "4", 5),
    ("rate", "rate", "2/s", 8),
    ("price", "$/h", "2.5, or by type H100=2.5", 14),
    ("confidence", "sure", "0.9", 5),
)
EMPTY = {"rate": "-", "confidence": f"{Budget.confidence:g}"}  # else it is not limited
NOT_LIMITED = "none"
FIRST_ROW = 4
STYLES = {
    "o": "#56B4E9",
    "@": "bold #2FBF96",
    "+": "bold #E69F00",
    "!": "#FF8A4C",
    "P": "bold #CC79A7",
}
MARKS = "@ system-optimal  + compute-optimal  o front  f by FLOPs  P present  ! misses"
WIDE = 110
EDGE = 2  # a scroll bar
TABLE_SHARE = 0.75  # of the width, at most; as in advice.tcss
NUMBERS = (  # header, estimate, whether only wide terminals show it
    ("acc", "accuracy", False),
    ("mean s", "latency_s", False),
    ("p95 s", "latency_p95_s", True),
    ("dev-s", "device_s", True),
    ("$/pb", "cost_usd", True),
    ("tok", "tokens", True),
)


class AdviceScreen(ModeScreen):
    """Asks the advisor in a thread whenever the budget or the marked recordings change."""

    MODE = "advice"
    CSS_PATH = "advice.tcss"
    AUTO_FOCUS = "#picks"
    BINDINGS: ClassVar[list[BindingType]] = KEYS

    def __init__(self) -> None:
        super().__init__()
        self._advice: Recommendation | None = None
        self._rows: list[Candidate] = []
        self._asked: Question | None = None
        self._rests_on: tuple[object, ...] | None = (
            None  # the question of `_advice`, its budget aside
        )
        self._gone: list[Path] = []  # recordings that were left out, for their folders are gone
        self._axis = 0
        self._passing = False  # whether the message goes when something else is shown
        self._what_if: list[str] = []

    def compose_body(self) -> ComposeResult:
        with Horizontal(classes="fields"):
            statistics = [(latency(each).noun, name) for name, each in STATISTICS]
            yield Select(
                statistics, value=STATISTIC, allow_blank=False, compact=True, id="statistic"
            )
            yield from self._inputs(FIELDS[:FIRST_ROW])
        with Horizontal(classes="fields"):
            yield from self._inputs(FIELDS[FIRST_ROW:])
            yield Label("for")
            objectives = [(name, name) for name in OBJECTIVES]
            yield Select(
                objectives, value=Budget.optimise, allow_blank=False, compact=True, id="objective"
            )
        yield Static(id="message", markup=False)
        yield Input(
            id="change",
            compact=True,
        )
        with Horizontal(id="middle"):
            yield Scatter(id="scatter")
            yield DataTable[Text](id="picks", cursor_type="row")
        with VerticalScroll(id="pick"):
            yield Static(id="detail", markup=False)

    def _inputs(self, fields: tuple[tuple[str, str, str, int], ...]) -> ComposeResult:
        for name, label, _, columns in fields:
            yield Label(label)
            start = self.ttscope.limits.get(name, "")
            empty = EMPTY.get(name, NOT_LIMITED)
            field = Input(start, placeholder=empty, id=f"field_{name}", compact=True)
            field.add_class("budget")
            field.styles.width, field.styles.min_width = f"{columns}fr", columns
            yield field

    def on_mount(self) -> None:
        plot = self.query_one(Scatter)
        plot.margin_top, plot.margin_left, plot.margin_bottom = 0, 7, 3
        super().on_mount()

    def show_library(self) -> None:
        """Ask once everything is loaded; the same question is not asked twice."""
        if self.ttscope.loading_paths:
            self._say("loading the recordings ...")
            return
        self.query_one("#field_price", Input).placeholder = price_hint(self.ttscope.price)
        self._ask()

    @on(Input.Submitted, ".budget")
    def _submitted(self) -> None:
        self._budget_changed()
        self.action_leave()

    @on(Input.Blurred, ".budget")
    @on(Select.Changed)
    def _budget_changed(self) -> None:
        if not self.ttscope.loading_paths:
            self._ask()

    @on(Input.Blurred, ".budget")
    def _left(self, event: Input.Blurred) -> None:
        event.input.cursor_position = 0  # what is too long shows its beginning
        self._changed_what_is_shown()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        for name, _, example, _ in FIELDS:
            if self._asked is not None and event.widget.id == f"field_{name}":
                self._say(f"for example {example} (enter applies, esc leaves)", passing=True)

    @on(Input.Changed, ".budget")
    def _typed(self) -> None:
        """Answer while one types, once there is an answer at all; half a number is no mistake."""
        if self._advice is not None and not self.ttscope.loading_paths:
            try:
                self._budget()
            except TtscopeError:
                return
            self._ask()

    def _budget(self) -> Budget:
        """Return what the fields ask for. Raises UsageError."""
        texts = {name: self.query_one(f"#field_{name}", Input).value for name, *_ in FIELDS}
        return budget_of(
            texts,
            percentile=dict(STATISTICS)[str(self.query_one("#statistic", Select).value)],
            objective=str(self.query_one("#objective", Select).value),
            price=self.ttscope.price,
        )

    def _ask(self) -> None:
        try:
            budget = self._budget()
        except TtscopeError as error:
            self._asked = None
            self.workers.cancel_group(self, "advice")
            self._say(str(error), bad=True)
            return
        gone = self.ttscope.forget_gone()
        entries = self.ttscope.advisable()
        present = self.ttscope.present_entry()
        today = None if present is None else present.key
        question = (budget, tuple(entry.key for entry in entries), today)
        if question == self._asked and not gone:
            return
        if self._rests_on != question[1:]:
            self._clear()
        self._asked, self._gone = question, gone
        if not entries:
            why = "no complete recording to learn from: make one with ttscope record"
            self._say("\n".join([why, *self._gone_lines()]), bad=True)
            return
        self._say(f"learning from {len(entries)} recordings and replaying candidates ...")
        self._work_out(budget, question)

    def _clear(self) -> None:
        """Take away what is said of other recordings."""
        for group in ("advice", "what_if"):
            self.workers.cancel_group(self, group)
        self._advice, self._rows, self._what_if = None, [], []
        self.remove_class("answered", "whole")
        self.query_one("#picks", DataTable).clear(columns=True)
        self.query_one(Scatter).clear()
        self.query_one("#detail", Static).update("")
        self.set_status("")

    @work(thread=True, exclusive=True, group="advice")
    def _work_out(self, budget: Budget, question: Question) -> None:
        worker = get_current_worker()
        entries = self.ttscope.advisable()
        recordings = [entry.recording for entry in entries if entry.recording is not None]
        advice, error, begun = None, None, time.perf_counter()
        try:
            advice = self.ttscope.advisor_for(recordings).recommend(
                budget, self.ttscope.runs_today()
            )
        except TtscopeError as problem:
            error = str(problem)
        except Exception as problem:  # shown in place, the app goes on
            error = f"the advisor failed ({failure(problem)})"
        if not worker.is_cancelled:
            seconds = time.perf_counter() - begun
            self.post_message(Advised(question, advice, error, len(recordings), seconds))

    @on(Advised)
    def _answered(self, event: Advised) -> None:
        if event.question != self._asked:  # another was asked meanwhile, or what is no budget
            return
        if event.advice is None:
            self._asked = None
            self._say(event.error or "no advice", bad=True)
            return
        self._advice, self._rests_on = event.advice, event.question[1:]
        self.workers.cancel_group(self, "what_if")
        self.add_class("answered")
        if self.focused is None:
            self.call_after_refresh(self.query_one("#picks").focus)
        self._rows = with_fronts(candidates(event.advice))
        present = self.ttscope.present_entry()
        if present is not None and present.run is not None:
            price = Prices(event.advice.budget, None).of(present.run.engine)
            self._rows.append(present_candidate(present.run, price))
        self._what_if = []
        self.set_status(f"{event.recordings} recordings, {event.seconds:.2f} s")
        self._say_legend()
        self._fill()
        self._fit_plot()
        self._show_pick()

    @on(Resize)
    def _fit_table(self) -> None:
        if self._advice is not None:
            self._fill()

    @on(Scatter.Resized)
    def _fit_plot(self) -> None:
        # The plot sizes its canvas from the layout before the one that is being made.
        self.call_after_refresh(self._relayout_plot)

    def _relayout_plot(self) -> None:
        self._plot()
        self.query_one(Scatter).refresh(layout=True)

    def _say_legend(self) -> None:
        """Say what the marks mean, and which recordings are gone."""
        if self._advice is None:
            return
        left_out = sum(self._advice.infeasible.values())
        legend = f"{self._advice.candidates:,} candidates, {left_out:,} out  {MARKS}"
        self._say("\n".join([legend, *self._gone_lines()]))

    def _gone_lines(self) -> list[str]:
        return gone_lines(self._gone, self.app.size.width - 2)

    def _changed_what_is_shown(self) -> None:
        """Bring the line of marks back where a word about something else has its place."""
        if self._passing and self._asked is None:
            self._ask()  # it says again what is wrong
        elif self._passing:
            self._say_legend()

    def _say(self, text: str, *, bad: bool = False, passing: bool = False) -> None:
        self._passing = passing
        message = self.query_one("#message", Static)
        message.set_class(bad, "bad")
        message.update(in_fields(text) if bad else text)

    def _fill(self) -> None:
        table = self.query_one("#picks", DataTable)
        row = max(table.cursor_row, 0)
        width = self.app.size.width
        numbers = [(header, name) for header, name, wide in NUMBERS if width >= WIDE or not wide]
        headers, rows = pick_rows(self._rows, numbers, int(width * TABLE_SHARE) - EDGE)
        table.clear(columns=True)
        table.add_columns(*headers)
        for each in rows:
            cells = [
                Text(text, justify="right" if at > 1 else "left") for at, text in enumerate(each)
            ]
            table.add_row(*cells)  # without keys: the present configuration may stand twice
        table.move_cursor(row=min(row, max(len(self._rows) - 1, 0)))

    def _plot(self) -> None:
        if self._advice is None:
            return
        plot, axis = self.query_one(Scatter), AXES[self._axis]
        plot.clear()
        plot.set_xlabel(axis_title(axis))
        plot.set_ylabel("accuracy")
        by_mark = points(self._rows, axis)
        selected = self._selected()
        bar = None if selected is None else error_bar(selected, axis)
        if bar is not None:
            plot.errorbar([bar.x], [bar.y], [bar.x_half], [bar.y_half], marker_style="dim")
        for mark in ("!", "o", "P", "+", "@"):
            if mark in by_mark:
                xs, ys = by_mark[mark]
                plot.scatter(xs, ys, marker=mark, marker_style=STYLES[mark])
        rows = plot.size.height - 5
        if by_mark:
            xs, ys = ([v for pair in by_mark.values() for v in pair[axis_]] for axis_ in (0, 1))
            if bar is not None:
                xs, ys = [*xs, bar.x - bar.x_half, bar.x + bar.x_half], [*ys, bar.y - bar.y_half]
            left, right = with_room(xs)
            bottom, top = with_room(ys)
            top = min(top, 1.02)
            plot.set_xlimits(left, right)
            plot.set_ylimits(bottom, top)
            plot.set_xticks(fitting_ticks(left, right, plot.columns))
            plot.set_yticks(ticks(bottom, top, rows // 2))
            limit = limit_on(self._advice.budget, axis)
            if limit is not None and left <= limit <= right:
                plot.add_v_line(limit, line_style="red")

    @on(DataTable.RowHighlighted, "#picks")
    def _row_changed(self) -> None:
        self._changed_what_is_shown()
        self._show_pick()
        self._plot()

    def _selected(self) -> Candidate | None:
        row = self.query_one("#picks", DataTable).cursor_row
        return self._rows[row] if 0 <= row < len(self._rows) else None

    def _show_pick(self) -> None:
        if self._advice is None:
            return
        from tui.screens.advice.pick import answer_lines

        width = max(self.app.size.width - 4, 40)
        lines: list[str] = [*self._what_if, ""] if self._what_if else []
        lines += answer_lines(self._advice, self._selected(), width=width)
        self.query_one("#detail", Static).update("\n".join(lines))

    def action_copy(self) -> None:
        selected = self._selected()
        if selected is None or selected.pick.command is None:
            limited = self._advice is None or self._advice.budget.required
            self.notify("nothing to copy yet" if limited else "set a limit first: press b")
            return
        self.app.copy_to_clipboard(paste_text(selected.pick))
        self.notify("command and policy copied")

    @on(DataTable.RowSelected, "#picks")
    def action_explain(self) -> None:
        """Give what is said of the row the whole screen, where it scrolls; or the plot again."""
        if self._advice is None:
            return
        self.toggle_class("whole")
        self.query_one("#pick" if self.has_class("whole") else "#picks").focus()

    def action_measure(self) -> None:
        """Write what to measure next as a plan for `ttscope sweep`."""
        if self._advice is None:
            return
        try:
            path = self.ttscope.write_plan(self._advice)
        except TtscopeError as error:
            self._say(str(error), bad=True, passing=True)
            return
        self._say(f"plan in {path}, measured by ttscope sweep {path} -o runs", passing=True)

    def action_axis(self) -> None:
        """Plot accuracy against the next thing that is known."""
        self._axis = next_axis(self._rows, self._axis)
        self._changed_what_is_shown()
        self._fit_plot()

    def action_what_if(self) -> None:
        selected, field = self._selected(), self.query_one("#change", Input)
        if selected is not None:
            field.placeholder = f"{examples(selected.pick)}: what it makes of this pick"
        field.add_class("open")
        field.focus()

    @on(Input.Submitted, "#change")
    def _change_given(self, event: Input.Submitted) -> None:
        selected = self._selected()
        self.action_leave()
        if selected is not None and event.value.strip():
            self._say("replaying the pick and the change (the first replay compiles) ...")
            budget = None if self._advice is None else self._advice.budget
            self._work_out_change(selected.pick, event.value, budget)

    @work(thread=True, exclusive=True, group="what_if")
    def _work_out_change(self, pick: Pick, changes: str, budget: Budget | None) -> None:
        worker = get_current_worker()
        try:
            message = WhatIf(what_if(self.ttscope.advisable(), pick, changes, budget))
        except Exception as problem:  # shown in place, the app goes on
            message = WhatIf([], failure(problem))
        if not worker.is_cancelled:
            self.post_message(message)

    @on(WhatIf)
    def _change_told(self, event: WhatIf) -> None:
        self._what_if = event.lines
        self._say(event.error or "", bad=event.error is not None, passing=True)
        if event.error is None:
            self._changed_what_is_shown()
        self._show_pick()

    def action_budget(self) -> None:
        cast(Input, self.query_one("#field_max_latency")).focus()

    def action_leave(self) -> None:
        """Go back to the picks, or out of the fields while there are none."""
        self._changed_what_is_shown()
        self.query_one("#change").remove_class("open")
        self.remove_class("whole")
        self.set_focus(self.query_one("#picks") if self._advice is not None else None)
