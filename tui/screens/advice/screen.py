"""Screen 4: a budget, the picks that meet it, what to expect of each, and the command to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.events import DescendantBlur, DescendantFocus, Resize
from textual.message import Message
from textual.widget import Widget
from textual.widgets import DataTable, Input, Label
from textual.worker import Worker, get_current_worker

from traces.errors import TtscopeError, WorkloadsError
from traces.schema.advice import Budget, Recommendation
from traces.schema.formats import counted
from tui.screens.advice.budget import BudgetForm, in_fields
from tui.screens.advice.front import FrontPanel
from tui.screens.advice.page import Page, beside
from tui.screens.advice.pick import EMPTY, MIXED, Section, answer_sections, is_outline, styled
from tui.screens.advice.rows import gone_lines, paste_text, present_candidate
from tui.screens.advice.what_if import examples
from tui.screens.base import ConfirmScreen, ModeScreen, footer_key, set_class_alone
from tui.screens.library import failure
from tui.screens.library_app import FittedAdvisor
from tui.text.fronts import CandidateRow, candidates
from tui.text.layout import side_by_side
from tui.widgets.still import StillColumn, StillRow, StillText

if TYPE_CHECKING:
    from advisor.advice.accounts.costs import Accounts
    from advisor.advice.accounts.efforts import EffortMap
    from advisor.advice.measure_next.forward_shapes import Forwards
    from traces.recording.reader import Recording

OF_AN_ANSWER = frozenset({"copy", "explain", "front", "axis", "what_if", "measure"})

EARLIER = "Answer of an earlier session"

# What the workers of the Advice screen tell it.


Question = tuple[object, ...]  # budget and price of an API, recordings by key, what runs today
WhatIf = tuple[str, Sequence[Sequence[str]]]  # what a change makes of a pick: title and table


@dataclass
class Advised(Message):
    """The worker's answer to a question: a recommendation, or why there is none.

    `mend` says in the place of an answer what to do, where a line about the fault is too short.
    `earlier` answers are of an earlier session, and worked out again.
    """

    question: Question
    advice: Recommendation | None
    error: str | None
    recordings: int
    mend: str = ""
    earlier: bool = False


@dataclass
class Accounted(Message):
    """What the picks of a recommendation cost and which effort to use, or why that is not known."""

    question: Question
    accounts: Accounts | None = None
    efforts: EffortMap | None = None
    error: str | None = None


@dataclass
class Progress(Message):
    """How many of how many candidates are replayed; None while it is not known."""

    question: Question
    done: int
    total: int | None


class ChangeField(Input):
    """Where a change is typed; the footer says what ends that."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "replay both", key_display="enter"),
        Binding("escape", "screen.leave", "leave", key_display="esc"),
    ]


class Cancelled(Exception):
    """Another question was asked meanwhile."""


# The keys of the Advice screen.


KEYS: list[BindingType] = [
    footer_key("advice.budget", "b", "budget", "budget",
        "Go to the budget's fields. Enter applies, escape takes it back."),
    footer_key("advice.copy", "c", "copy", "copy", "Copy the command and the policy of the row."),
    footer_key("advice.explain", "e", "explain", "answer",
        "Give the answer the whole screen, and again for all panels."),
    footer_key("advice.front", "f", "front", "front",
        "Give the front and its rows the whole screen, and again for all panels."),
    footer_key("advice.what_if", "w", "what_if", "what if",
        "Change a setting of the row, and replay both."),
    footer_key("advice.measure", "m", "measure", "measure",
        "Write what to measure next as a plan for ttscope sweep."),
    footer_key("advice.axis", "x", "axis", "axis", "Draw accuracy against the next quantity."),
    Binding("escape", "leave", "to the answer", show=False),
]  # fmt: skip
NARROW, LOW = 116, 34  # columns and rows below which one panel is shown beside the budget
TWO_COLUMNS = 150  # from which the reasons stand beside the answer
READABLE = 100  # columns of text


class AdviceScreen(ModeScreen):
    """Asks the advisor in a thread whenever the budget or the marked recordings change.

    A first estimate is shown while candidates are replayed.
    """

    MODE = "advice"
    CSS_PATH = "advice.tcss"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = KEYS
    LEGEND = (
        ("maj@8", "The most frequent of 8 answers."),
        ("agree 4/7", "Up to 7 samples, until 4 agree."),
        ("first 4/8", "The most frequent of the first 4 of 8 answers."),
        ("asc 0.95/16", "Up to 16 samples, until the vote is 95 % sure."),
        ("route@6", "Samples by a table, up to 6. The answer of the row has it."),
        ("sure", "How likely all limits hold together."),
    )

    def __init__(self) -> None:
        super().__init__()
        self._advice: Recommendation | None = None
        self._asked: Question | None = None
        self._rests_on: tuple[object, ...] | None = (
            None  # the question of `_advice`, its budget aside
        )
        self._is_earlier = False  # whether `_advice` is of an earlier session
        self._in_vain = False  # whether what was asked before all was read had no answer
        self._gone: list[Path] = []  # recordings that were left out, for their folders are gone
        self._passing = False  # whether the message goes when something else is shown
        self._whole: Literal["all", "answer", "front"] = "all"  # who has the whole screen
        self._room = (False, False)  # whether one panel is shown beside the budget, and two columns
        self._answers: dict[object, tuple[Content, Content]] = {}  # answers by their rows
        self._what_if: WhatIf | None = None
        self._accounted: Accounted | None = None  # of `_advice`

    def compose_body(self) -> ComposeResult:
        with StillRow(id="above"):
            yield BudgetForm(self.ttscope.limits, id="budget")
            yield FrontPanel(id="front")
        yield Page(id="answer", classes="panel")
        with StillColumn(id="asking"):
            with Horizontal(id="asking_row"):
                yield Label("what if")
                yield ChangeField(id="change", compact=True)
            yield StillText(id="change_hint")
        yield StillText(id="message")

    def on_mount(self) -> None:
        self._answer_panel.border_title = "Answer"
        super().on_mount()

    @property
    def _answer_panel(self) -> Page:
        return self.query_one("#answer", Page)

    @property
    def _front(self) -> FrontPanel:
        return self.query_one(FrontPanel)

    @property
    def _form(self) -> BudgetForm:
        return self.query_one(BudgetForm)

    # -- layout --------------------------------------------------------------------------------

    @on(Resize)
    def _fit(self) -> None:
        size = self.app.size
        narrow = size.width < NARROW or size.height < LOW
        self._room = (narrow, size.width >= TWO_COLUMNS and not narrow)
        self.set_class(narrow, "narrow")
        self._show_panels()
        self.call_after_refresh(self._show_answer)

    def _show_panels(self) -> None:
        """Show the panels that there is room for, without a look at the styles of all in them."""
        narrow, given = self._room[0], self._whole
        above = self.query_one("#above")
        above.display = given != "answer"
        above.styles.height = "1fr" if given == "front" else None
        self._front.display = given == "front" or not narrow
        self._form.display = given != "front"
        self._answer_panel.display = given != "front"
        self._form.fit(narrow)

    @on(DescendantFocus)
    @on(DescendantBlur)
    def _frame(self) -> None:
        """Draw the frame of the panel that has the focus in another colour."""
        for panel in (self._form, self._front, self._answer_panel):
            set_class_alone(panel, panel.has_focus_within, "entered")

    @property
    def _home(self) -> Widget:
        """What has the focus while no field has it."""
        return self._front.table if self._shows_rows else self._answer_panel

    @property
    def _shows_rows(self) -> bool:
        return self._whole == "front" or (self._whole == "all" and not self._room[0])

    def _go_home(self) -> None:
        self.set_focus(self._home if self._advice is not None else None)

    def _enter(self) -> None:
        """Go to the first answer, unless a field was gone to before it came."""
        if self.focused is None:
            self._go_home()

    def action_explain(self) -> None:
        """Give the answer the whole screen, where it scrolls; or all panels again."""
        if self._advice is not None:
            from_rows = self._whole == "front" and self._room[0]  # back to the answer beside it
            self._give("all" if self._whole == "answer" or from_rows else "answer")

    def action_front(self) -> None:
        """Give the front and its rows the whole screen, or all panels again."""
        if self._advice is not None:
            self._give("all" if self._whole == "front" else "front")

    def _give(self, given: Literal["all", "answer", "front"]) -> None:
        """Give a panel the whole screen, or show all."""
        if given != self._whole:
            self._whole = given
            self._show_panels()
        self._go_home()
        self.call_after_refresh(self._show_answer)

    @on(DataTable.RowSelected, "#picks")
    def _row_chosen(self) -> None:
        self._whole = "all"
        self.action_explain()

    def action_leave(self) -> None:
        """Take back what was typed, and show all panels."""
        self._form.take_back()
        self._ask_change(False)
        self._changed_what_is_shown()
        self._give("all")

    # -- what is asked -------------------------------------------------------------------------

    def show_library(self) -> None:
        """Ask once it is known what there is; the same question is not asked twice."""
        if self._waits:
            self._say("loading the recordings ...")
            return
        self._form.set_price(self.ttscope.price)
        self._ask()

    @property
    def _waits(self) -> bool:
        """Whether it is not known yet what advice rests on, or was foreseen in vain."""
        return self.ttscope.loading_paths and (not self.ttscope.foresees or self._in_vain)

    @on(BudgetForm.Changed)
    def _budget_changed(self, event: BudgetForm.Changed) -> None:
        """Answer while one types, once there is an answer at all; half a number is no mistake."""
        if self._waits or not self.is_current:
            return
        if event.typing:
            try:
                self._form.read(), self._form.api_price()
            except TtscopeError:
                return
            if self._advice is None:
                return
        self._ask()

    @on(BudgetForm.Left)
    def _budget_left(self) -> None:
        self._changed_what_is_shown()
        self._go_home()

    def action_budget(self) -> None:
        self._form.enter()

    def _ask(self) -> None:
        try:
            budget, api_price = self._form.read(), self._form.api_price()
        except TtscopeError as error:
            self._asked = None
            self._stop()
            self._say(str(error), bad=True)
            return
        gone = self.ttscope.forget_gone()
        entries = self.ttscope.advisable()
        present = self.ttscope.present_entry()
        today = None if present is None else present.key
        question = ((budget, api_price), tuple(entry.key for entry in entries), today)
        if question == self._asked and not gone:
            return
        if self._rests_on != question[1:]:
            self._clear()
        self._asked, self._gone = question, gone
        if not entries:
            self._say("\n".join(self._gone_lines()), bad=True)
            self._answer_panel.show(Content(EMPTY))
            return
        self._say("\n".join(self._gone_lines()))
        if self._advice is not None:
            self._answer_panel.border_title = "Answer to the budget before"
        self._show_progress(f"Learning from {len(entries)} recordings ...")
        self._work_out(budget, api_price, question)

    def _clear(self) -> None:
        """Take away what is said of other recordings."""
        self._stop()
        self.workers.cancel_group(self, "what_if")
        self._advice, self._what_if, self._accounted, self._answers = None, None, None, {}
        self._answer_panel.border_title = "Answer"
        self.refresh_bindings()
        self._whole = "all"
        self._show_panels()
        self._front.clear()
        self._answer_panel.show(Content(""))
        self.set_status("")

    def _stop(self) -> None:
        self.workers.cancel_group(self, "advice")
        self._show_progress(None)

    @work(thread=True, exclusive=True, group="advice")
    def _work_out(self, budget: Budget, api_price: float | None, question: Question) -> None:
        worker = get_current_worker()
        recordings = self._recordings()
        tell = partial(self._tell, worker, question, len(recordings))
        today = self.ttscope.runs_today()
        alone = self.ttscope.present_entry() is None  # an answer has what runs today beside it
        answers = self.ttscope.answers if alone else None
        before = None if answers is None else answers.find(budget, recordings)
        if before is not None:
            tell(before, None, earlier=True)
        try:
            with self.ttscope.advising, self.ttscope.answering():
                if worker.is_cancelled:
                    return
                with self.ttscope.estimating:
                    advisor = self.ttscope.advisor_for(recordings)
                    outline = None if before is not None else advisor.outline(budget)
                if outline is not None:
                    tell(outline, None)

                def heard(done: int, total: int) -> None:
                    if worker.is_cancelled:
                        raise Cancelled
                    self.post_message(Progress(question, done, total))

                if worker.is_cancelled:
                    return
                answer = advisor.recommend(budget, today, heard)
                tell(answer, None)
                if answers is not None and answer != before:
                    answers.keep(budget, recordings, answer)
            with self.ttscope.advising:  # taken again, so that a newer question goes first
                if not worker.is_cancelled:
                    self._account(advisor, answer, api_price, question)
        except Cancelled:
            pass
        except WorkloadsError as problem:
            tell(None, str(problem), MIXED)
        except TtscopeError as problem:
            tell(None, str(problem))
        except Exception as problem:  # shown in place, the app goes on
            tell(None, f"the advisor failed ({failure(problem)})")

    def _recordings(self) -> list[Recording]:
        """Return what advice rests on."""
        return [each.recording for each in self.ttscope.advisable() if each.recording is not None]

    def _account(
        self,
        advisor: FittedAdvisor,
        answer: Recommendation,
        api_price: float | None,
        question: Question,
    ) -> None:
        """Work out what goes with an answer that is shown already."""
        try:
            accounted = Accounted(question, *advisor.accounts(answer, api_price))
        except TtscopeError as problem:
            accounted = Accounted(question, error=str(problem))
        self.post_message(accounted)

    def _tell(
        self,
        worker: Worker[None],
        question: Question,
        recordings: int,
        advice: Recommendation | None,
        error: str | None,
        mend: str = "",
        *,
        earlier: bool = False,
    ) -> None:
        if not worker.is_cancelled:
            self.post_message(Advised(question, advice, error, recordings, mend, earlier))

    # -- what is answered ----------------------------------------------------------------------

    @on(Progress)
    def _replayed(self, event: Progress) -> None:
        if event.question == self._asked:
            self._show_progress("Replaying candidates", event.done, event.total)

    def _show_progress(self, doing: str | None, done: int = 0, total: int | None = None) -> None:
        self._answer_panel.show_progress(doing, done, total)

    @on(Advised)
    def _answered(self, event: Advised) -> None:
        if event.question != self._asked:  # another was asked meanwhile, or what is no budget
            return
        if event.advice is None:
            if self._advice is not None and (self._is_earlier or is_outline(self._advice)):
                self._clear()
            self._asked = None
            self._show_progress(None)
            self._in_vain = self.ttscope.loading_paths
            if self._in_vain:  # what cannot be read is not asked about
                self._say("loading the recordings ...")
                return
            self._say(event.error or "no advice", bad=True)
            if event.mend:
                self._answer_panel.show(Content(event.mend))
            return
        first, same = self._advice is None, self._is_earlier and self._advice == event.advice
        self._answer_panel.border_title = EARLIER if event.earlier else "Answer"
        self._advice, self._rests_on = event.advice, event.question[1:]
        self._is_earlier = event.earlier
        if event.earlier:
            self._show_progress("Working it out again ...")
        elif is_outline(event.advice):
            self._show_progress("Checking step times against runs that were left out ...")
        else:
            self._show_progress(None)
        if same:
            return
        self.workers.cancel_group(self, "what_if")
        self._what_if, self._accounted, self._answers = None, None, {}
        rows = candidates(event.advice)
        present = self.ttscope.present_entry()
        if present is not None and present.run is not None:
            price = self.ttscope.advisor.price_of(present.run, event.advice.budget)
            rows.append(present_candidate(present.run, event.advice, price))
        self.set_status(counted(event.recordings, "recording"))
        if event.advice.budget.rate_per_s is None:
            self._form.set_load(event.advice.load)
        self._front.show(event.advice, rows)
        self._say("\n".join(self._gone_lines()))
        self._show_answer()
        if first:
            self.refresh_bindings()
            self.call_after_refresh(self._enter)

    @on(Accounted)
    def _with_accounts(self, event: Accounted) -> None:
        if event.question != self._asked:
            return
        self._accounted, self._answers = event, {}
        if event.error is not None:
            self._say(event.error, bad=True)
        self._show_answer()

    def _gone_lines(self) -> list[str]:
        return gone_lines(self._gone, self.app.size.width - 2)

    def _changed_what_is_shown(self) -> None:
        """Take a word about something else away."""
        if self._passing and self._asked is None:
            self._ask()  # it says again what is wrong
        elif self._passing:
            self._say("\n".join(self._gone_lines()))

    def _say(self, text: str, *, bad: bool = False, passing: bool = False) -> None:
        self._passing = passing
        self.say(in_fields(text) if bad else text, bad=bad)

    @on(FrontPanel.RowChanged)
    def _row_changed(self) -> None:
        self._changed_what_is_shown()
        self._show_answer()

    def _show_answer(self) -> None:
        if self._advice is None:
            return
        if not self._answer_panel.display:
            return
        wide = self._room[1]
        inner = max(self.app.size.width - 5, 40)  # borders, room, scroll bar
        width = min(inner // 2 - 3 if wide else inner, READABLE)
        row = self._front.selected
        key = (None if row is None else (row.key, row.symbol), width, wide)
        if key not in self._answers:
            self._answers[key] = self._answer_of(row, width, wide)
        drawn = self._answers[key]
        if self._what_if:
            title, rows = self._what_if
            lines = [title, *side_by_side(rows, width)]
            section = [Section(kind="table", lines=lines)]
            drawn = (Content("\n\n").join([styled(section), drawn[0]]), drawn[1])
        self._answer_panel.show(beside(*drawn, inner // 2 + 2) if wide else drawn[0])

    def _answer_of(
        self, row: CandidateRow | None, width: int, wide: bool
    ) -> tuple[Content, Content]:
        """Return what is said of a row, and why, where that stands beside it."""
        assert self._advice is not None
        accounted = self._accounted
        main, rest = answer_sections(
            self._advice,
            row,
            width=width,
            accounts=None if accounted is None else accounted.accounts,
            efforts=None if accounted is None else accounted.efforts,
        )
        return (styled(main), styled(rest)) if wide else (styled([*main, *rest]), Content(""))

    # -- what is done with the answer ----------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what an answer is needed for once there is one."""
        if action in OF_AN_ANSWER and self._advice is None:
            return False
        return super().check_action(action, parameters)

    def action_copy(self) -> None:
        selected = self._front.selected
        if selected is None or selected.pick.command is None:
            limited = self._advice is None or self._advice.budget.required
            self.notify("nothing to copy yet" if limited else "set a limit first: press b")
            return
        self.app.copy_to_clipboard(paste_text(selected.pick))
        self.notify("command and policy copied")

    def action_measure(self) -> None:
        """Ask, then write what to measure next as a plan for `ttscope sweep`."""
        if self._advice is None:
            return
        path = self.ttscope.plan_path()
        question = f"Write what to measure next into {path}, as a plan for ttscope sweep?"

        def answered(agreed: bool | None) -> None:
            if agreed:
                self.call_later(self._write_plan, path)  # once this screen is back

        self.app.push_screen(ConfirmScreen(question), answered)

    def _write_plan(self, path: Path) -> None:
        if self._advice is not None:
            self._say("writing what to measure next ...", passing=True)
            answer = self._advice

            def planned() -> Forwards:
                with self.ttscope.advising:
                    return self.ttscope.advisor.write_plan(path, answer)

            self.ask(planned, partial(self._tell_plan, path), group="plan")

    def _refuse(self, why: str) -> None:
        self._say(why, bad=True, passing=True)

    def _tell_plan(self, path: Path, forwards: Forwards) -> None:
        lines = [f"plan in {path}, measured by ttscope sweep {path} -o runs"]
        if forwards.files:
            names = ", ".join(map(str, forwards.files))
            lines.append(
                f"or its kernels there, without weights: shapes in {names}, commands in {path}"
            )
        if self._room[1]:
            lines += forwards.commands
        self._say("\n".join(lines), passing=True)

    def action_axis(self) -> None:
        """Draw accuracy against the next thing that is known."""
        self._front.next_axis()
        self._changed_what_is_shown()

    def action_what_if(self) -> None:
        selected = self._front.selected
        if selected is None:
            return
        hint = f"such as {examples(selected.pick)}. Enter replays both, esc leaves"
        self.query_one("#change_hint", StillText).update(hint)
        self._ask_change(True)
        self.set_focus(self.query_one("#change"))

    def _ask_change(self, asking: bool) -> None:
        self.query_one("#asking").display = asking

    @on(Input.Submitted, "#change")
    def _change_given(self, event: Input.Submitted) -> None:
        selected = self._front.selected
        if selected is None or not event.value.strip():
            self.action_leave()
            return
        self._say("replaying the pick and the change (the first replay compiles) ...")
        pick, budget = selected.pick, None if self._advice is None else self._advice.budget

        def changed() -> WhatIf:
            with self.ttscope.advising:
                advisor = self.ttscope.advisor_for(self._recordings())
                return advisor.what_if(pick, event.value, budget)

        self.ask(changed, self._show_change, group="what_if", exclusive=True)

    def _show_change(self, told: WhatIf) -> None:
        """Show the difference. What cannot be asked stays in the field, to be mended there."""
        self._what_if = told
        self._say("\n".join(self._gone_lines()))
        self._ask_change(False)
        self._give("all" if self._whole == "front" else self._whole)
        self._answer_panel.scroll_home(animate=False)
