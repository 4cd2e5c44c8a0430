"""Screen 3: a running server while it is watched; what it gives is a recording at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.message import Message
from textual.widgets import Input, Static

from profiler.attach.attachment import CAUTION, Attachment, default_folder
from profiler.engines.interface import Capability
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.summary.run import summarise
from tui.options import Watch, option_names
from tui.screens.base import ConfirmScreen, ModeScreen, footer_key
from tui.screens.entries import Entry
from tui.screens.library import failure
from tui.screens.live.panels import (
    Recorded,
    live_panels,
    rate_lines,
    read_recorded,
    recorded_lines,
    recorded_panels,
)
from tui.screens.live.views import (
    TIMES,
    History,
    action_lines,
    finding_lines,
    is_held_up,
    now_text,
    problem_lines,
    sees_line,
    spread_lines,
    status,
    unread_lines,
    verdict_text,
    verdicts_lines,
)
from tui.screens.live.watch import LiveWatch, Snapshot, parse_target
from tui.screens.run.charts import family_line
from tui.text.layout import clock, wrap
from tui.text.recordings.kernels import held_texts
from tui.text.recordings.live import INDENT, next_lines, silence_told
from tui.widgets.lanes import Lanes
from tui.widgets.panel import Panel, PanelView
from tui.widgets.prompt import Field, FieldQuestion, Prompt, Words
from tui.widgets.still import Box, StillText

if TYPE_CHECKING:
    from advisor.what_if.suggest import Suggestion

WIDE, TALL = 116, 38  # from which framed panels have room for their numbers
WIDER = 160  # from which three stand side by side
ROOMY = 30  # rows from which rates stand below the times, without panels
PANELS = 8  # at most
FEW_SERVERS = 4  # rows of a table of servers where there is little room
HOW = (
    "No server is being watched.\n\n"
    "Press u and enter a server's URL, or several for replicas. ttscope reads /metrics once a "
    "second. The server needs no restart. The options are those of ttscope attach: --listen 4318 "
    "(HTTP) or --listen-grpc 4317 also receives spans and engine steps, and --kernels FOLDER opens "
    "profiler windows. The power of this machine's GPUs is read.\n\n"
    "Press s to stop. What was seen is then a recording on screen 1, and enter on it opens it "
    "here again. To send a workload: ttscope attach URL --workload FILE --n 8. A line of FILE is "
    '{"id": "1", "prompt": "6*7=", "answer": "42"}. In place of FILE, demo sends the problems of '
    "ttscope demo."
)
URL = FieldQuestion(
    label="URL",
    example="http://HOST:8000 --listen 4318",
    suggester=Words(option_names(Watch).split(", ")),
)


def _servers_told(target: Attachment) -> str:
    """Return the first server that is watched, and how many others are."""
    more = len(target.accesses) - 1
    return target.accesses[0].url + (f" and {more} more" if more else "")


def _read_whole(folder: Path) -> Recorded | None:
    """Read the whole of what was watched into a folder, None where it holds no run."""
    recording = Recording.open(folder)
    runs = summarise(recording)
    return read_recorded(recording, runs[0]) if runs else None


def _replaying(width: int) -> list[str]:
    """Return what is said while the change that a verdict asks for is replayed."""
    return wrap(
        "NEXT", "replaying the change that the verdict asks for ...", width=width, indent=INDENT
    )


class LiveScreen(ModeScreen):
    """Attaches to a URL in a worker, and draws a snapshot a second."""

    @dataclass
    class Examined(Message):
        """What can be seen of the server."""

        findings: list[Capability]

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

    MODE = "live"
    CSS_PATH = "live.tcss"
    AUTO_FOCUS = "#page"
    BINDINGS: ClassVar[list[BindingType]] = [
        footer_key("live.url", "u", "url", "URL", "Enter the URL of a server to watch."),
        footer_key("live.depth", "d", "depth", "what is seen",
            "Show what can be seen of the server, and what each missing part needs."),
        footer_key("live.stop", "s", "stop", "stop", "Stop watching, and complete the recording."),
        Binding("escape", "leave", "leave", show=False, tooltip="Leave the field."),
    ]  # fmt: skip
    LEGEND = (
        ("TTFT", "Time to the first token, from the arrival of a request."),
        ("ITL", "Time between two tokens of a request."),
        ("queue", "Time that a request waits before it runs."),
        ("request", "Time from the arrival of a request to its end."),
        ("p50, p95", "Half, or 95 %, of requests took at most this. Of a histogram both ends."),
        ("KV cache", "Share of the cache's blocks in use."),
        ("accept", "Tokens that a step with a draft gives."),
    )

    def __init__(self) -> None:
        super().__init__()
        self._watch: LiveWatch | None = None
        self._target: Attachment | None = None
        self._history = History()
        self._findings: list[Capability] = []
        self._depth = False
        self._asked = ""  # which may be mended where it fails
        self._shown: Entry | None = None  # a recording
        self._recorded: Recorded | None = None
        self._kept: Path | None = None  # what was watched last
        self._next: Callable[[int], list[str]] | None = None  # lines of a width

    def compose_body(self) -> ComposeResult:
        yield Prompt(field="url", id="prompt")
        yield StillText(id="message")
        yield StillText(id="verdict")
        yield StillText(id="next")
        with Box(id="panels"):
            for _ in range(PANELS):
                yield PanelView()
        yield Lanes(id="gauges")
        yield StillText(id="spreads")
        yield StillText(id="sees")
        with VerticalScroll(id="page"):
            yield StillText(id="text")

    def on_mount(self) -> None:
        """Watch what the app was started with."""
        super().on_mount()
        asked, self.ttscope.watch_first = self.ttscope.watch_first, ""
        if asked:
            self._ask(asked)

    def show_library(self) -> None:
        """Show the recording of watched servers that was opened, unless a server is watched."""
        entry = self.ttscope.opened_entry()
        if entry is not None and entry.is_watched and self._watch is None:
            self._show_recorded(entry)
        self.set_status(self._status())

    def _show_recorded(self, entry: Entry) -> None:
        if self._shown is not None and self._shown.run is entry.run:
            return
        self._clear()
        self._shown = entry
        self.say("")
        self._draw()
        recording, run = entry.recording, entry.run
        if recording is not None and run is not None:
            self._read_back(entry.path, lambda: read_recorded(replace(recording), run))

    def _clear(self) -> None:
        self.workers.cancel_group(self, "recorded")
        self._target, self._history, self._findings = None, History(), []
        self._shown, self._recorded, self._next, self._depth = None, None, None, False
        self._kept = None

    def _read_back(self, folder: Path, read: Callable[[], Recorded | None]) -> None:
        """Show what was recorded into a folder, and what to try next on it."""

        def show(recorded: Recorded | None) -> None:
            self._recorded, self._next = recorded, _replaying
            self._draw()
            self._suggest(folder)

        self.ask(read, show, group="recorded", still=lambda: self._is_of(folder))

    def _suggest(self, folder: Path) -> None:
        """Replay what was watched with the change that its verdict asks for."""

        def found() -> Suggestion | str:
            from advisor.what_if.suggest import suggest

            return suggest(Recording.open(folder))

        def show(found: Suggestion | str) -> None:
            self._next = partial(next_lines, str(folder), found)
            self._draw()

        self.ask(found, show, show, group="live", still=lambda: self._is_of(folder))

    def _is_of(self, folder: Path) -> bool:
        """Whether what is shown is the recording in a folder, and no server that is watched."""
        shown = self._kept if self._shown is None else self._shown.path
        return self._watch is None and shown == folder

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to stop while a server is watched, and its depths while one is shown."""
        if action == "stop" and self._watch is None:
            return False
        if action == "depth" and self._target is None:
            return False
        return super().check_action(action, parameters)

    def on_unmount(self) -> None:
        """End the watching with the app, so that its recording is complete."""
        self.action_stop()

    @on(Input.Submitted, "#url")
    def _attach_to(self, event: Input.Submitted) -> None:
        self._ask(event.value)

    def _ask(self, value: str) -> None:
        """Watch what was typed, or say what is wrong with it."""
        if self._watch is not None:
            self.say("this is being watched: s stops it", bad=True)
            return
        try:
            target = parse_target(value)
        except UsageError as error:
            self.say(str(error), bad=True)
            return
        self._asked = value
        if target.kernels is None or target.yes:
            self._begin(target)
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._begin(replace(target, yes=True))
            else:
                self.say("--kernels: not opened. Leave it out to watch without", bad=True)

        question = f"Open {target.windows_told()}?\n\n{CAUTION}"
        self.app.push_screen(ConfirmScreen(question), answered)

    def _begin(self, target: Attachment) -> None:
        folder = default_folder(target.accesses[0])
        opened = self.ttscope.opened_entry()
        if opened is not None and opened.is_watched:
            self.ttscope.leave_run()  # or it would be shown again once this has ended
        self._clear()
        self._target = target
        self._watch = LiveWatch(target, folder, self._ticked)
        self.ttscope.watching = True
        self.query_one(Prompt).close()
        self.say(f"attaching to {_servers_told(target)} ...")
        self.set_status(self._status())
        self.query_one("#page").focus()
        self.refresh_bindings()
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
            snapshot = event.snapshot
            self._history.add(snapshot)
            silent = silence_told(snapshot.silences)
            messages = [*([silent] if silent else []), *event.watch.said, *snapshot.lost]
            self.say(", ".join(messages), bad=bool(silent))
            self._next = partial(action_lines, snapshot)
            self._draw()

    @on(Ended)
    def _ended(self, event: Ended) -> None:
        self._watch, self._next = None, None
        self.ttscope.watching = False
        self.refresh_bindings()
        kept = (event.watch.folder / "recording.json").exists()
        if event.error is not None:
            self.say(event.error, bad=True)
        elif event.watch.lost:
            self.say(f"the server is gone, kept in {event.watch.folder}", bad=True)
        else:
            self.say(f"kept in {event.watch.folder}. It is on screen 1 now")
        if kept:  # the last minute is no verdict on the whole
            self._kept, self._history = event.watch.folder, History()
            self.ttscope.open_paths([event.watch.folder])
            self._next = _replaying
            self._read_back(event.watch.folder, partial(_read_whole, event.watch.folder))
        elif event.error is not None and self.is_current:
            self.query_one(Prompt).ask(URL, self._asked)
        self._draw()
        self.set_status(self._status())

    @on(Resize)
    def _fit(self) -> None:
        self._draw()

    def _status(self) -> str:
        if self._shown is not None:
            span = None if self._recorded is None else self._recorded.span
            lasted = "" if span is None else f"  {clock((span[1] - span[0]) / 1e9)}"
            return f"recorded: {self._shown.path.name}{lasted}"
        if self._watch is None or self._target is None:
            return "not connected"
        return status(self._history.last, _servers_told(self._target))

    @property
    def _width(self) -> int:
        return max(self.app.size.width - 2, 40)

    @property
    def _is_dashboard(self) -> bool:
        """Whether there is room for framed panels."""
        return self.app.size.width >= WIDE and self.app.size.height >= TALL

    @property
    def _headlines(self) -> int:
        """How many verdicts there is room for."""
        return 4 if self.app.size.height >= TALL else 2

    def _draw(self) -> None:
        last = self._history.last
        self.set_class(last is not None or self._recorded is not None, "shown")
        self.set_class(self._is_dashboard, "dashboard")
        lines = [] if self._next is None else self._next(self._width)
        self.query_one("#next", StillText).update("\n".join(lines))
        self.query_one("#next").display = bool(lines)
        self.set_status(self._status())
        if self._recorded is not None:
            self._draw_recorded(self._recorded)
        elif last is not None:
            self._draw_live(last)
        else:
            for name in ("#verdict", "#gauges", "#spreads", "#sees"):
                self.query_one(name, Static).update("")
            self._draw_panels([])
            path = self._kept if self._shown is None else self._shown.path
            waits = "" if path is None else f"reading {path} ..."
            self._tell(self._depths(None) if self._depth else [waits or HOW])

    def _tell(self, lines: Sequence[str]) -> None:
        self.query_one("#text", StillText).update("\n".join(lines))

    def _draw_panels(self, panels: Sequence[Panel]) -> None:
        shown = panels if self._is_dashboard else ()
        most = 3 if self.app.size.width >= WIDER else 2
        columns = min(most, max((len(shown) + 1) // 2, 1))
        grid = self.query_one("#panels").styles
        grid.grid_size_columns = columns
        needs = [each.needs for each in shown]
        rows = [max(needs[at : at + columns]) for at in range(0, len(needs), columns)]
        grid.grid_rows = " ".join(f"{each}fr" for each in rows) or "1fr"
        for at, view in enumerate(self.query(PanelView)):
            view.show(shown[at] if at < len(shown) else None)

    def _draw_live(self, last: Snapshot) -> None:
        width = self._width
        verdict = verdict_text(
            last.verdicts,
            last.names,
            width=width,
            unseen=True,
            most=self._headlines,
            held_up=is_held_up(last),
        )
        now = now_text(last, width=width)
        self.query_one("#verdict", StillText).update(Content("\n").join([now, verdict]))
        self._draw_panels(live_panels(self._history))
        if not self._is_dashboard:
            gauges = self._history.lanes(Lanes.bins(width))
            gauges = [lane for lane in gauges if lane.name not in TIMES]  # the table has them
            above = self._history.heading(Lanes.bins(width))
            self.query_one("#gauges", Lanes).show(gauges, None, above=above)
            engines = [each for each in last.numbers.values() if each is not None]
            told = spread_lines(last)
            if self.app.size.height >= ROOMY:
                told += rate_lines(engines)
            self.query_one("#spreads", StillText).update("\n".join(told))
        rates = wrap("sees", sees_line(last, self._findings), width=width, indent=6)
        kernels = family_line(last.families, width)
        told = [kernels, *held_texts(last.held)] if kernels else []
        self.query_one("#sees", StillText).update("\n".join([*rates, *(t[:width] for t in told)]))
        listening = self._target is not None and self._target.listens
        problems = problem_lines(last, now_ns=last.now_ns, listening=listening)
        self._tell(self._depths(last) if self._depth else problems)

    def _draw_recorded(self, recorded: Recorded) -> None:
        width = self._width
        verdicts = [each.verdict for each in recorded.servers]
        text = verdict_text(
            verdicts, recorded.names, width=width, unseen=False, most=self._headlines
        )
        self.query_one("#verdict", StillText).update(text)
        self._draw_panels(recorded_panels(recorded))
        if not self._is_dashboard:
            bins = Lanes.bins(width)
            above = recorded.heading(bins)
            self.query_one("#gauges", Lanes).show(recorded.lanes(bins), None, above=above)
            spreads = recorded.spreads(FEW_SERVERS)
            self.query_one("#spreads", StillText).update("\n".join(spreads))
        self.query_one("#sees", StillText).update("")
        self._tell(recorded_lines(recorded, width=width))

    def _depths(self, last: Snapshot | None) -> list[str]:
        """Return what can be seen, and what the rest needs."""
        width = self._width
        lines = finding_lines(self._findings, last, width=width) or ["Press u to watch a server."]
        if last is not None:
            lines += [*unread_lines(last, width=width), ""]
            lines += verdicts_lines(last, width=width)
        return lines

    def action_url(self) -> None:
        self.query_one(Prompt).ask(URL)

    @on(Field.Left)
    def action_leave(self) -> None:
        """Leave the URL, so that keys are keys, and what was wrong with it."""
        if self.query_one("#message").has_class("bad"):
            self.say("")
        self.query_one(Prompt).close()
        self.query_one("#page").focus()

    def action_depth(self) -> None:
        """Show what can be seen and what the rest needs, and the problems again."""
        self._depth = not self._depth
        self._draw()

    def action_stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()
