"""Screen 3: a running server while it is watched; what it gives is a recording at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.events import Resize
from textual.message import Message
from textual.widgets import Input, Static

from profiler.attach.attachment import CAUTION, Attachment, default_folder
from profiler.engines.interface import Finding
from traces.clock import now_ns
from traces.errors import UsageError
from traces.recording.reader import Recording
from tui.screens.base import ConfirmScreen, ModeScreen
from tui.screens.library import failure
from tui.screens.live.views import (
    History,
    finding_lines,
    problem_lines,
    rate_lines,
    sees_line,
    spread_lines,
    status,
    unread_lines,
    verdicts_lines,
)
from tui.screens.live.watch import LiveWatch, Snapshot, parse_target
from tui.screens.run.charts import family_line
from tui.text.kernels import held_texts
from tui.text.layout import wrap
from tui.text.live import next_lines
from tui.widgets.lanes import Lanes

WIDE = 120
TALL = 32
HOW = (
    "u asks for the URL of a vLLM server, or of several. It is watched without a restart, by its "
    "page of /metrics every second. With --listen 4318 (HTTP) or --listen-grpc 4317 spans and "
    "engine steps are received too, with --kernels FOLDER profiler windows are opened, and the "
    "power of GPUs of this machine is read. These are the options of ttscope attach.\n\n"
    "What is seen goes into a recording, which is on screen 1 when s stops it. d says what can be "
    "seen of a server, and what the rest needs. To pose a workload to it: ttscope attach URL "
    "--workload problems.jsonl --n 8."
)


class LiveScreen(ModeScreen):
    """Attaches to a URL in a worker, and draws a snapshot a second."""

    @dataclass
    class Examined(Message):
        """What can be seen of the server."""

        findings: list[Finding]

    @dataclass
    class Ticked(Message):
        """A second of the deployment."""

        watch: LiveWatch
        snapshot: Snapshot

    @dataclass
    class Ended(Message):
        """The watching ended; an error says why where it was not asked to."""

        watch: LiveWatch
        error: str | None

    @dataclass
    class Suggested(Message):
        """What to try next on what was watched."""

        lines: list[str]

    MODE = "live"
    CSS_PATH = "live.tcss"
    AUTO_FOCUS = "#page"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("u", "url", "URL", id="live.url"),
        Binding("d", "depth", "what is seen", id="live.depth"),
        Binding("s", "stop", "stop", id="live.stop"),
        Binding("escape", "leave", "leave the field", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._watch: LiveWatch | None = None
        self._target: Attachment | None = None
        self._history = History()
        self._findings: list[Finding] = []
        self._depth = False

    def compose_body(self) -> ComposeResult:
        yield Input(
            placeholder="http://HOST:8000 [--listen 4318] [--listen-grpc 4317] [--kernels FOLDER] "
            "[--api-key-env NAME]",
            id="url",
            compact=True,
        )
        yield Static(id="message", markup=False)
        yield Static(id="verdict", markup=False)
        with Container(id="numbers"):
            yield Lanes(id="gauges")
            yield Static(id="spreads", markup=False)
        yield Lanes(id="steps")
        yield Static(id="sees", markup=False)
        with VerticalScroll(id="page"):
            yield Static(HOW, id="text", markup=False)

    def show_library(self) -> None:
        self.set_status(self._status())

    def on_unmount(self) -> None:
        """End the watching with the app, so that its recording is complete."""
        self.action_stop()

    @on(Input.Submitted, "#url")
    def _attach_to(self, event: Input.Submitted) -> None:
        if self._watch is not None:
            self._say("this is being watched: s stops it", bad=True)
            return
        try:
            target = parse_target(event.value)
        except UsageError as error:
            self._say(str(error), bad=True)
            return
        if target.kernels is None or target.yes:
            self._begin(target)
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._begin(replace(target, yes=True))
            else:
                self._say("--kernels: not opened. Leave it out to watch without", bad=True)

        question = f"Open {target.windows_told()}?\n\n{CAUTION}"
        self.app.push_screen(ConfirmScreen(question), answered)

    def _begin(self, target: Attachment) -> None:
        folder = default_folder(target.accesses[0])
        self._target, self._history, self._findings = target, History(), []
        self._watch = LiveWatch(target, folder, self._ticked)
        self._say(f"attaching to {target.accesses[0].url} ...")
        self.set_status(self._status())
        self.query_one("#page").focus()
        self._draw()
        self._run(self._watch, target)

    @work(thread=True, group="live")
    def _run(self, watch: LiveWatch, target: Attachment) -> None:
        from profiler.doctor import examine_server

        error = None
        try:
            self.post_message(self.Examined(examine_server(target.accesses[0])))
            watch.run()
        except Exception as problem:  # told in place, the app goes on
            error = failure(problem)
        self.post_message(self.Ended(watch, error))

    def _ticked(self, snapshot: Snapshot) -> None:
        """Called in the watching thread."""
        if self._watch is not None:
            self.post_message(self.Ticked(self._watch, snapshot))

    @on(Examined)
    def _server_examined(self, event: Examined) -> None:
        self._findings = event.findings
        if self._depth:
            self._draw()

    @on(Ticked)
    def _second(self, event: Ticked) -> None:
        if event.watch is self._watch:
            self._history.add(event.snapshot)
            self._say(", ".join(event.watch.said))
            self._draw()

    @on(Ended)
    def _ended(self, event: Ended) -> None:
        self._watch = None
        kept = (event.watch.folder / "recording.json").exists()
        if event.error is not None:
            self._say(event.error, bad=True)
        elif event.watch.lost:
            self._say(f"the server is gone, kept in {event.watch.folder}", bad=True)
        else:
            self._say(f"kept in {event.watch.folder}. It is on screen 1 now")
        if kept:
            self.ttscope.open_paths([event.watch.folder])
            self._suggest(event.watch.folder)
        self.set_status(self._status())

    @work(thread=True, group="live")
    def _suggest(self, folder: Path) -> None:
        """Replay what was watched with the change that its verdict asks for."""
        from advisor.what_if.suggest import suggest

        try:
            lines = next_lines(str(folder), suggest(Recording.open(folder)))
        except Exception as problem:  # said in place, the app goes on
            lines = [f"no replay: {failure(problem)}"]
        self.post_message(self.Suggested(lines))

    @on(Suggested)
    def _show_next(self, event: Suggested) -> None:
        if self._watch is None:  # not while something else is watched
            self.query_one("#text", Static).update("\n".join(event.lines))

    @on(Resize)
    def _fit(self) -> None:
        self._draw()

    def _status(self) -> str:
        if self._watch is None or self._target is None:
            return "not connected"
        return status(self._history.last, self._target.accesses[0].url)

    def _say(self, text: str, *, bad: bool = False) -> None:
        message = self.query_one("#message", Static)
        message.display = bool(text)
        message.set_class(bad, "bad").update(text)

    def _draw(self) -> None:
        last = self._history.last
        self.query_one("#numbers").set_class(self.app.size.width >= WIDE, "wide")
        width = max(self.app.size.width - 2, 60)
        text = self.query_one("#text", Static)
        if self._depth:
            rates = finding_lines(self._findings, last, width=width) or ["attach first, with u"]
            unseen = []
            if last is not None:
                rates += unread_lines(last, width=width)
                unseen = verdicts_lines(last, width=width, whole=True)
            text.update("\n".join([*rates, "", *unseen]))
        if last is None:
            if not self._depth:
                text.update(HOW)
            for name in ("#verdict", "#gauges", "#spreads", "#steps", "#sees"):
                self.query_one(name, Static).update("")
            return
        self.set_status(self._status())
        tall = self.app.size.height >= TALL
        verdict = verdicts_lines(last, width=width, whole=False)
        self.query_one("#verdict", Static).update("\n".join(verdict))
        room = self.app.size.width - (56 if self.app.size.width >= WIDE else 1)
        steps = self._history.step_lanes(Lanes.bins(width)) if tall else []
        title = [("engine steps of the last minute", "dim")] if steps else []
        gauges = self._history.lanes(Lanes.bins(room))
        self.query_one("#gauges", Lanes).show(gauges, None, title)
        self.query_one("#steps", Lanes).show(steps, None)
        self.query_one("#spreads", Static).update("\n".join(spread_lines(last)))
        rates = rate_lines(last, width=width) if tall else []
        rates += wrap("sees", sees_line(last, self._findings), width=width, indent=6)
        kernels = family_line(last.families, width)
        told = [kernels, *held_texts(last.held)] if kernels else []
        self.query_one("#sees", Static).update("\n".join([*rates, *(t[:width] for t in told)]))
        if not self._depth:
            listening = self._target is not None and self._target.listens
            rates = problem_lines(last, now_ns=now_ns(), listening=listening)
            text.update("\n".join(rates))

    def action_url(self) -> None:
        self.query_one("#url").focus()

    def action_leave(self) -> None:
        """Leave the URL, so that keys are keys, and what was wrong with it."""
        if self.query_one("#message").has_class("bad"):
            self._say("")
        self.query_one("#page").focus()

    def action_depth(self) -> None:
        """Show what can be seen and what the rest needs, and the problems again."""
        self._depth = not self._depth
        self._draw()

    def action_stop(self) -> None:
        """End the watching; the recording is complete then."""
        if self._watch is not None:
            self._watch.stop()
