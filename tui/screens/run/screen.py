"""Screen 2: one run over time, the step under the cursor, and one problem's samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.timer import Timer
from textual.widgets import Input

from advisor.accuracy.stopping import RULES, Savings, StopRule, savings
from traces.errors import UsageError
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy
from tui.screens.base import ModeScreen, Result, footer_key, help_key
from tui.screens.run.beside import Beside, replay_beside, told_here
from tui.screens.run.data import RunData, read_run
from tui.screens.run.model import PAGES, WIDE, RunModel
from tui.screens.run.playback import Goto, parse_goto
from tui.text.layout import whole_parts
from tui.widgets.lanes import Lanes, heading
from tui.widgets.prompt import Field, FieldQuestion, Prompt, Words
from tui.widgets.sample_bars import SampleBars, Samples
from tui.widgets.still import Box, StillText

# The keys of the Run screen, and what it asks for.


PLACES = "137, s48213 (a step), 3:32 (a time)"
SETTINGS = tuple(
    f"{part}.{field.name}="
    for part, kind in (("engine", EngineConfig), ("policy", Policy))
    for field in fields(kind)
)
QUESTIONS = {
    "goto": FieldQuestion(label="go to", example=PLACES),
    "replay": FieldQuestion(
        label="replay with",
        example="engine.max_num_seqs=8 policy.n=4, or nothing for as recorded",
        suggester=Words(SETTINGS),
    ),
}
SEEK = "Move the cursor by a column of the charts."
SEEK_TEN = "Move the cursor by ten columns."
ZOOM = "Zoom the charts in or out around the cursor."
NEXT = "Show the previous or the next problem."
ENDS = "Move the cursor to the start or the end of the run."
STEP = "Move the cursor to the engine step before or after."
SPEED = "Play slower or faster."
KEYS: list[BindingType] = [
    footer_key("run.play", "space", "play", "play", "Play the run from the cursor on."),
    footer_key("run.play", "space", "pause", "pause", "Stop playing at the cursor."),
    footer_key("run.goto", "g", "ask('goto')", "go to", "Go to a problem, a step or a time."),
    help_key("run.slowest", "w", "worst", "slowest problem", "Show the problem that took longest."),
    footer_key("run.rule", "r", "rule", "rule",
        "Judge the next stopping rule on this problem and on all."),
    footer_key("run.page", "k", "page", "more",
        "Show the next page: kernels and energy, policies, the replay, the problem."),
    footer_key("run.replay", "v", "ask('replay')", "replay",
        "Replay the run, as recorded or with changes, and show it beside."),
    footer_key("run.earlier", "left", "move(-1)", "time", SEEK, display="← →"),
    help_key("run.later", "right", "move(1)", "later", SEEK),
    help_key("run.much_earlier", "shift+left", "move(-10)", "ten columns earlier", SEEK_TEN),
    help_key("run.much_later", "shift+right", "move(10)", "ten columns later", SEEK_TEN),
    help_key("run.start", "home", "move(-1000000)", "start", ENDS),
    help_key("run.end", "end", "move(1000000)", "end", ENDS),
    help_key("run.back", "comma", "step(-1)", "a step back", STEP),
    help_key("run.on", "full_stop", "step(1)", "a step on", STEP),
    help_key("run.slower", "less_than_sign", "speed(0.5)", "slower", SPEED),
    help_key("run.faster", "greater_than_sign", "speed(2)", "faster", SPEED),
    help_key("run.zoom_in", "plus,equals_sign", "zoom(0.5)", "zoom in", ZOOM),
    help_key("run.zoom_out", "minus", "zoom(2)", "zoom out", ZOOM),
    help_key("run.zoom_problem", "z", "zoom_to('problem')", "zoom to the problem",
        "Zoom the charts to the time of the problem."),
    help_key("run.zoom_whole", "0", "zoom_to('whole')", "the whole run",
        "Show the whole run in the charts."),
    footer_key("run.previous", "left_square_bracket", "problem(-1)", "problem",
        NEXT, display="[ ]"),
    help_key("run.next", "right_square_bracket", "problem(1)", "next problem", NEXT),
    Binding(
        "escape", "leave", "leave", show=False,
        tooltip="Leave the field, or show the whole problem again after playing.",
    ),
]  # fmt: skip

OF_PROBLEMS = frozenset({"problem", "worst"})
OF_TIME = frozenset({"play", "pause", "move", "step", "speed", "zoom", "zoom_to"})
FRAME_S = 1 / 15
TALL = 32
OTHERS = 12  # rows of what stands around lanes and samples
SHORT = 22  # below which no more than a line or two of each is shown


class RunScreen(ModeScreen):
    """The run that was opened on screen 1, or the first that is complete."""

    MODE = "run"
    CSS_PATH = "run.tcss"
    AUTO_FOCUS = "#page"
    BINDINGS: ClassVar[list[BindingType]] = KEYS
    LEGEND = (
        (
            "batch",
            "Samples that ran in a step. At the left the highest, at the right the cursor's.",
        ),
        ("waiting", "Samples that waited for a place in the batch."),
        ("KV cache", "Share of the cache's blocks in use."),
        ("tok/s", "Generated tokens a second."),
        ("pace", "How many times as long steps took as others of their size in the run."),
        ("power", "Watts of the devices that were read."),
        ("===", "On the axis: when the problem ran. ^ is the cursor and its time."),
        ("vote", "How many of the samples that had ended agreed with the final answer."),
        ("rule", "Where the rule ends this problem, and what it changes over all problems."),
        ("differs", "The sample's answer is not the problem's."),
        ("straggler", "The last sample ended later than 1.5 times the median."),
    )

    def __init__(self) -> None:
        super().__init__()
        self.model: RunModel | None = None
        self._going: Goto | None = None  # where to, once the steps are read
        self._asking = "goto"
        self._timer: Timer | None = None
        self._last = 0.0

    def compose_body(self) -> ComposeResult:
        yield StillText(id="head")
        yield Lanes(id="lanes")
        yield StillText(id="step")
        yield StillText(id="message")
        yield Prompt(field="ask", id="prompt")
        yield StillText(id="title")
        with Samples(id="page"):
            with Box(id="both"):
                yield SampleBars(id="bars")
                yield SampleBars(id="other")
            yield StillText(id="text")
        yield StillText(id="vote")

    def on_mount(self) -> None:
        self._timer = self.set_interval(FRAME_S, self._tick, pause=True)
        super().on_mount()

    def show_library(self) -> None:
        """Show the open run; nothing changes when it is shown already."""
        entry = self.ttscope.current_entry()
        if entry is None or entry.run is None:
            waits = self.ttscope.loading_paths
            self._show(None)
            why = "loading ..." if waits else "no run to show: open one on screen 1"
            self.say(why, bad=not waits)
            return
        if self.ttscope.bring_back():
            if self.model is not None and self.model.entry.key != entry.key:
                self._show(None)
            self.say("loading ...")
        elif self.model is None or entry.run is not self.model.run:
            self._show(RunModel(entry, [rule.label for rule in RULES]))
            self.say("")

    def _show(self, model: RunModel | None) -> None:
        """Show another run, or none; nothing that was asked of the one before is left."""
        for group in ("run", "policies", "replay", "steps"):
            self.workers.cancel_group(self, group)
        self.query_one(Prompt).close()
        self.query_one("#page").focus()
        self._pause()
        self.model, self._going = model, None
        self.refresh_bindings()
        self.query_one("#page").scroll_home(animate=False)
        self.draw()
        if model is not None:
            self._read(model)

    def _ask(
        self,
        group: str,
        make: Callable[[], Result],
        show: Callable[[Result], None],
        failed: Callable[[str], None] | None = None,
    ) -> None:
        """Ask something about the run that is shown."""
        model = self.model
        self.ask(
            make,
            show,
            failed,
            group=group,
            exclusive=group != "run",
            still=lambda: self.model is model,
        )

    def _read(self, model: RunModel) -> None:
        self._ask(
            "run", lambda: read_run(model.recording, model.run), self._show_data, self._show_unread
        )

    def _judge(self, model: RunModel, rule: StopRule) -> None:
        def judged(found: Savings | str) -> None:
            model.judged[rule.label] = found
            self._draw_problem()

        self._ask("run", lambda: savings(model.run, rule), judged, judged)

    def _judge_policies(self, model: RunModel) -> None:
        from tui.text.recordings.show import judged_policies, policies_lines

        def told() -> list[str]:
            policies = judged_policies(model.recording, model.run)
            return policies_lines(model.run, policies, width=self._width)

        def show(lines: Sequence[str]) -> None:
            model.policies = lines
            self._draw_problem()

        self._ask("policies", told, show, lambda why: show([why]))

    def _replay(self, model: RunModel, changes: str) -> None:
        recording, run = model.recording, model.run
        if recording is None:
            return

        def show(beside: Beside) -> None:
            self.say("")
            model.show_beside(beside)
            self.draw()

        def refuse(why: str) -> None:
            self._refuse(why)
            if self.is_current and not self.query_one(Prompt).is_open:
                self.action_ask("replay", changes)

        width = self._width
        self._ask(
            "replay", lambda: replay_beside(recording, run, changes, width=width), show, refuse
        )

    def _read_page(self, model: RunModel, position: int) -> None:
        def show(is_new: bool) -> None:
            if is_new:
                self._draw_step()

        self._ask("steps", lambda: model.pages.read(position), show)

    def _show_data(self, data: RunData) -> None:
        model = self.model
        assert model is not None
        model.show_data(data)
        if self._going is not None:
            refusal, self._going = model.go_to(self._going), None
            self.say(refusal or "", bad=refusal is not None)
        self.refresh_bindings()
        source = model.run.replay_of
        entry = None if source is None else self.ttscope.entry_named(source)
        if entry is not None and entry.run is not None:
            name = f"{source}, which this replays"
            model.show_beside(Beside(run=entry.run, word="recorded", asked=name))
        self.draw()
        self._judge(model, RULES[0])

    def _show_unread(self, why: str) -> None:
        self._refuse(why)
        if self.model is not None:
            self.model.unread = True
        self._draw_time()

    def _refuse(self, why: str) -> None:
        super()._refuse(told_here(why))

    @on(Resize)
    def _fit(self) -> None:
        self.draw()

    @property
    def _width(self) -> int:
        return max(self.app.size.width - 1, 40)

    @property
    def _bins(self) -> int:
        return Lanes.bins(self._width)

    @property
    def _tall(self) -> bool:
        return self.app.size.height >= TALL

    @property
    def _short(self) -> bool:
        return self.app.size.height < SHORT

    def draw(self) -> None:
        """Draw all of the run, or nothing where none is shown."""
        if not self.is_mounted:
            return
        head = [] if self.model is None else self.model.head(self._width)
        self.query_one("#head", StillText).update("\n".join(head))
        self._draw_time()
        self._draw_problem()

    def _draw_time(self) -> None:
        model = self.model
        if model is None:
            self.set_status("")
            self.query_one(Lanes).show([], None)
            self.query_one("#step", StillText).update("")
            return
        self.set_status(model.status())
        lanes, cursor, below = model.charts(self._bins, tall=self._tall)
        above = heading("", "", "cursor", self._bins) if self._tall else ""
        room = self._room(model) - bool(above)
        self.query_one(Lanes).show(lanes, cursor, below, room=room, above=above)
        self._draw_step()
        if model.position >= 0:
            self._read_page(model, model.position)

    def _room(self, model: RunModel) -> int:
        """Return the rows that lanes may have: what the samples and all else need not."""
        height = self.app.size.height
        samples = min(model.most_samples + 2, height * 2 // 5)
        return height - samples - OTHERS

    def _draw_step(self) -> None:
        if self.model is not None:
            lines = self.model.step(self._bins, 10_000 if self._short else self._width)
            if self._short:
                lines = [whole_parts(line, self._width, " | ") for line in lines[:1]]
            self.query_one("#step", StillText).update("\n".join(lines))

    def _draw_problem(self) -> None:
        if not self.is_mounted:
            return
        model, width = self.model, self._width
        title = "" if model is None else model.title(width)
        vote = [] if model is None else model.vote(width, tall=self._tall)
        if self._short:
            title, vote = whole_parts(title, width), vote[:2]
        text = [] if model is None else model.text(width)
        own, other = (None, None) if model is None or text else model.bars(width)
        self.query_one("#title", StillText).update(title)
        self.query_one("#vote", StillText).update("\n".join(vote))
        self.query_one("#page").set_class(bool(text), "text")
        self.query_one("#text", StillText).update("\n".join(text))
        both = self.query_one("#both")
        both.set_class(other is not None, "beside")
        both.set_class(self._width >= WIDE, "wide")
        for name, drawn in (("#bars", own), ("#other", other)):
            self.query_one(name, SampleBars).show(drawn)

    # -- keys ----------------------------------------------------------------------------------

    def _pause(self) -> None:
        if self.model is not None and self.model.play is not None and self.model.play.playing:
            self.model.play = self.model.play.toggle()
            self.refresh_bindings()
        if self._timer is not None:
            self._timer.pause()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to play while nothing plays, to pause while it does, and rules of a vote.

        A run without a time has nothing to play or to zoom, one without problems none to go to.
        """
        model = self.model
        if action in OF_TIME and model is not None and model.data and model.play is None:
            return False
        if action in ("play", "pause"):
            play = None if model is None else model.play
            if (play is not None and play.playing) != (action == "pause"):
                return False
        if model is not None and not (model.run.rows is not None and model.run.rows.height):
            untimed = bool(model.data) and model.play is None
            if action in OF_PROBLEMS or (untimed and parameters == ("goto",)):
                return False
        if action == "rule" and model is not None:
            untimed = model.problem is not None and model.problem.row["arrival"] is None
            if untimed or model.most_samples < 2:
                return False
        return super().check_action(action, parameters)

    def action_pause(self) -> None:
        self.action_play()

    def action_play(self) -> None:
        model = self.model
        if model is None or model.play is None or self._timer is None:
            return
        model.play = model.play.toggle()
        model.cut, model.page = True, "problem"
        self._last = time.monotonic()
        if model.play.playing:
            self._timer.resume()
        else:
            self._timer.pause()
        self.refresh_bindings()
        self.draw()

    def _tick(self) -> None:
        model, now = self.model, time.monotonic()
        if model is None or model.play is None:
            return
        model.tick(now - self._last)
        self._last = now
        if not model.play.playing and self._timer is not None:
            self._timer.pause()
            self.refresh_bindings()
        self._draw_time()
        self._draw_problem()

    def action_speed(self, factor: float) -> None:
        if self.model is not None and self.model.play is not None:
            self.model.play = self.model.play.faster(factor)
            self.set_status(self.model.status())

    def action_move(self, columns: int) -> None:
        if self.model is not None:
            self.model.move(columns, self._bins)
            self._moved()

    def action_step(self, steps: int) -> None:
        if self.model is not None:
            self.model.step_by(steps)
            self._moved()

    def _moved(self) -> None:
        self._draw_time()
        if self.model is not None and self.model.cut:
            self.model.tick(0.0)
            self._draw_problem()

    def action_zoom(self, factor: float) -> None:
        if self.model is not None and self.model.play is not None:
            self.model.play = self.model.play.zoom(factor)
            self._draw_time()

    def action_zoom_to(self, what: str) -> None:
        if self.model is not None:
            self.model.show_time(what)
            self._draw_time()

    def action_problem(self, count: int) -> None:
        if self.model is not None:
            at = -1 if self.model.problem is None else self.model.problem.number
            self._go_to_problem(at + count)

    def _go_to_problem(self, at: int) -> None:
        if self.model is not None:
            self._pause()
            self.model.go_to_problem(at)
            self.draw()
            self.query_one("#page").scroll_home(animate=False)

    def action_worst(self) -> None:
        slowest = None if self.model is None else self.model.slowest()
        if slowest is not None:
            self._go_to_problem(slowest)

    def action_rule(self) -> None:
        model = self.model
        if model is None:
            return
        model.rule = (model.rule + 1) % len(RULES)
        rule = RULES[model.rule]
        if rule.label not in model.judged:
            self._judge(model, rule)
        self._draw_problem()

    def action_page(self) -> None:
        """Show kernels, policies that were not run, the replay's numbers, and the problem again."""
        model = self.model
        if model is None:
            return
        model.page = PAGES[(PAGES.index(model.page) + 1) % len(PAGES)]
        if model.page == "policies" and model.policies is None:
            self._judge_policies(model)
        self._draw_problem()
        self.query_one("#page").scroll_home(animate=False)

    def action_ask(self, what: str, text: str = "") -> None:
        self._asking = what
        self.query_one(Prompt).ask(QUESTIONS[what], text)

    @on(Input.Submitted, "#ask")
    def _answered(self, event: Input.Submitted) -> None:
        text, model = event.value, self.model
        if model is None:
            self.action_leave()
            return
        if self._asking == "replay":
            self.action_leave()
            self.say("replaying (the first replay compiles for some seconds) ...")
            self._replay(model, text)
            return
        refusal = None
        try:
            target = parse_goto(text) if text.strip() else None
        except UsageError as error:
            refusal = str(error)
        else:
            if target is not None and target.what != "problem" and model.is_reading:
                self._going = target  # once there are steps
            elif target is not None:
                refusal = model.go_to(target)
        if refusal:
            self.say(refusal, bad=True)  # and the text stays, to be mended
            return
        self.action_leave()
        self.draw()

    @on(Field.Left)
    def action_leave(self) -> None:
        """Close the field and what was wrong with it, and show the problem as a whole again."""
        prompt = self.query_one(Prompt)
        if prompt.is_open:
            prompt.close()
            self.say("")
            self.query_one("#page").focus()
            return
        if self.model is not None and self.model.cut:
            self._pause()
            self.model.cut = False
            self.draw()

    @on(Lanes.Seek)
    def _clicked(self, event: Lanes.Seek) -> None:
        if self.model is not None and self.model.play is not None:
            self.action_move(event.column - self.model.play.column(self._bins))
